// SPDX-License-Identifier: Apache-2.0
/* The heap's end, to the byte, and its content; it grows and shrinks as before. */
#include "memory.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(strdup(dir)); /* malloc takes its part first */
	char *start = sbrk(37 * PAGE + 123), *end = sbrk(0);
	need(end == start + 37 * PAGE + 123);
	fill(start, end - start, 1);

	checkpoint();

	check_is(syscall(SYS_brk, 0), end);
	check_is(differs(start, end - start, 1), -1);
	check_is(sbrk(8 * PAGE), end);
	check(all_zero(end, 8 * PAGE));
	check_is(brk(start + PAGE), 0);
	check_is(differs(start, PAGE, 1), -1);
	catch_faults();
	check_is(faults(start + 3 * PAGE, false), 1);
	return verdict();
}
