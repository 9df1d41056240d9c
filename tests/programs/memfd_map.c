// SPDX-License-Identifier: Apache-2.0
/* Memory files: mapped and open, mapped and closed, open only; sharing, position, size, name. */
#include "memory.h"

enum { PAGES = 16 };

static int memory_file(const char *name, unsigned seed)
{
	static char content[PAGES * PAGE];
	int fd = memfd_create(name, MFD_CLOEXEC);
	fill(content, sizeof(content), seed);
	need(fd >= 0 && write(fd, content, sizeof(content)) == sizeof(content));
	return fd;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	static char content[PAGES * PAGE];
	char link[100] = "";
	int both = memory_file("both ways", 1), closed = memory_file("closed", 2);
	int open_only = memory_file("open", 3);
	char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0);
	char *private = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, both, 0);
	char *orphan = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0);
	need(area != MAP_FAILED && private != MAP_FAILED && orphan != MAP_FAILED && !close(closed));
	fill(private, PAGE, 4);
	need(lseek(open_only, 1234, SEEK_SET) == 1234);
	need(!ftruncate(open_only, 1 << 20));

	checkpoint();

	check_is(differs(area, PAGES * PAGE, 1), -1);
	check_is(differs(private, PAGE, 4), -1);
	check_is((unsigned char)private[PAGE], pattern(PAGE, 1));
	check_is(differs(orphan, PAGES * PAGE, 2), -1);
	fill(area + PAGE, PAGE, 5);
	check_is(pread(both, content, PAGE, PAGE), PAGE);
	check_is(differs(content, PAGE, 5), -1);
	check_is(fcntl(both, F_GETFD), FD_CLOEXEC);
	need(readlink("/proc/self/fd/3", link, sizeof(link) - 1) > 0);
	check_text(link, "/memfd:both ways (deleted)");

	check_is(lseek(open_only, 0, SEEK_CUR), 1234);
	check_is(lseek(open_only, 0, SEEK_END), 1 << 20);
	check_is(pread(open_only, content, sizeof(content), 0), sizeof(content));
	check_is(differs(content, sizeof(content), 3), -1);
	return verdict();
}
