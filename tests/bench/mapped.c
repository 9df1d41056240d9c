// SPDX-License-Identifier: Apache-2.0
/*
 * What a restore is measured against: a program that maps a file of pages, privately, and begins.
 *	mapped FILE
 * It writes a byte to its standard output when it has read a page, and one when it has written to
 * all of them.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void say(void)
{
	if (write(1, ".", 1) != 1)
		_exit(1);
}

int main(int argc, char **argv)
{
	struct stat st;
	int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	if (file < 0 || fstat(file, &st))
		return 1;
	volatile char *pages = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (pages == MAP_FAILED)
		return 1;
	(void)pages[st.st_size / 2];
	say();
	for (off_t at = 0; at < st.st_size; at += PAGE)
		pages[at]++;
	say();
	return 0;
}
