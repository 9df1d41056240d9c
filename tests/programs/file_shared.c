// SPDX-License-Identifier: Apache-2.0
/* Shared mappings of a file: written pages show in the file, before and after; one is read-only. */
#include "memory.h"

enum { PAGES = 16 };

int main(int argc, char **argv)
{
	begin(argc, argv);
	int fd = patterned_file("file", PAGES * PAGE, 1);
	char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int readonly_fd = open(path("file"), O_RDONLY);
	char *readonly = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, readonly_fd, 4 * PAGE);
	char page[PAGE];
	need(area != MAP_FAILED && readonly != MAP_FAILED);
	fill(area + 5 * PAGE, PAGE, 2);
	need(!close(fd) && !close(readonly_fd));

	checkpoint();

	fd = open(path("file"), O_RDONLY);
	check_is(pread(fd, page, PAGE, 5 * PAGE), PAGE);
	check_is(differs(page, PAGE, 2), -1);
	check_is(differs(area + 5 * PAGE, PAGE, 2), -1);
	check_is(differs(readonly + PAGE, PAGE, 2), -1);
	check_is(pread(fd, page, PAGE, 6 * PAGE), PAGE);
	check(!memcmp(page, area + 6 * PAGE, PAGE));
	fill(area + 7 * PAGE, PAGE, 3);
	check_is(pread(fd, page, PAGE, 7 * PAGE), PAGE);
	check_is(differs(page, PAGE, 3), -1);
	check_is(differs(readonly + 3 * PAGE, PAGE, 3), -1);
	catch_faults();
	check_is(faults(readonly, true), 1);
	return verdict();
}
