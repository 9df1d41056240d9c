// SPDX-License-Identifier: Apache-2.0
/* Looking at mappings from inside: does a page fault, is it present, what does the kernel say of it. */
#ifndef MEMORY_H
#define MEMORY_H
#include "program.h"
#include <setjmp.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

static sigjmp_buf after_fault;
static volatile bool expected;

static void on_fault(int signo)
{
	if (expected)
		siglongjmp(after_fault, signo);
	signal(signo, SIG_DFL); /* dies of it on return */
}

/* Call this once restored, so that no handler is part of the state. */
static unused void catch_faults(void)
{
	struct sigaction catch = {.sa_handler = on_fault};
	sigaction(SIGSEGV, &catch, NULL);
	sigaction(SIGBUS, &catch, NULL);
}

/* Does touching this address fault? Writing writes what is there. */
static unused int faults(volatile char *address, bool write)
{
	bool faulted = sigsetjmp(after_fault, 1);
	expected = !faulted;
	if (!faulted && write)
		*address = *address;
	else if (!faulted)
		(void)*address;
	expected = false;
	return faulted;
}

static unused int resident(void *page)
{
	unsigned char state = 0;
	return mincore(page, PAGE, &state) ? -1 : state & 1;
}

/* The line of /proc/self/smaps with this key, of the mapping that begins here; "" if there is none. */
static unused char *smaps_line(void *start, const char *key)
{
	char head[32], *text = slurp("/proc/self/smaps"), *line;
	snprintf(head, sizeof(head), "%lx-", (unsigned long)start);
	line = strstr(text, head);
	line = line ? strstr(line, key) : NULL;
	if (!line)
		return "";
	*strchrnul(line, '\n') = 0;
	return line;
}

/* Does the mapping that begins here have this two-letter flag of smaps? */
static unused bool has_flag(void *start, const char *flag)
{
	return strstr(smaps_line(start, "VmFlags:"), flag);
}

static unused char *map_anonymous(size_t size, int flags)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	need(area != MAP_FAILED);
	return area;
}

/* A file of so many patterned pages, open for reading and writing. */
static unused int patterned_file(const char *name, size_t size, unsigned seed)
{
	int fd = open(path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	char *content = malloc(size);
	fill(content, size, seed);
	need(fd >= 0 && write(fd, content, size) == (ssize_t)size);
	free(content);
	return fd;
}

#endif
