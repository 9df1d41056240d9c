// SPDX-License-Identifier: Apache-2.0
/*
 * Private mappings of a file: pages written here, pages that are still the file's, a window in the
 * middle, a read-only one, and the part beyond the end of the file.
 */
#include "memory.h"

enum { PAGES = 32 };

int main(int argc, char **argv)
{
	begin(argc, argv);
	int fd = patterned_file("file", PAGES * PAGE + 100, 1);
	char *area = mmap(NULL, (PAGES + 2) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *window = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 8 * PAGE);
	char *readonly = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	char *content = malloc(PAGES * PAGE);
	need(area != MAP_FAILED && window != MAP_FAILED && readonly != MAP_FAILED);
	for (int i = 0; i < PAGES; i += 4)
		fill(area + i * PAGE, PAGE, 100 + i);
	fill(window + PAGE, PAGE, 200);

	checkpoint();

	need(pread(fd, content, PAGES * PAGE, 0) == PAGES * PAGE);
	check_is(differs(content, PAGES * PAGE, 1), -1);
	for (int i = 0; i < PAGES; i++)
		if (i % 4 == 0)
			check_is(differs(area + i * PAGE, PAGE, 100 + i), -1);
		else
			check(!memcmp(area + i * PAGE, content + i * PAGE, PAGE), "page %d", i);
	check(!memcmp(window, content + 8 * PAGE, PAGE));
	check_is(differs(window + PAGE, PAGE, 200), -1);
	check(!memcmp(readonly, content, PAGES * PAGE));
	check(all_zero(area + PAGES * PAGE + 100, PAGE - 100));

	/* What was not written here is the file's until it is. */
	char now = content[9 * PAGE + 5] ^ 0xff;
	need(pwrite(fd, &now, 1, 9 * PAGE + 5) == 1);
	check_is(area[9 * PAGE + 5], now);
	check_is(readonly[9 * PAGE + 5], now);
	need(pwrite(fd, &content[9 * PAGE + 5], 1, 9 * PAGE + 5) == 1);
	catch_faults();
	check_is(faults(readonly, true), 1);
	check_is(faults(area + (PAGES + 1) * PAGE, false), 1);
	return verdict();
}
