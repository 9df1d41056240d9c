// SPDX-License-Identifier: Apache-2.0
/* A pipe in packet mode keeps the bounds of what was written. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	char buffer[100];
	int ends[2];
	need(!pipe2(ends, O_DIRECT | O_NONBLOCK));
	need(write(ends[1], "one", 3) == 3 && write(ends[1], "three", 5) == 5);

	checkpoint();

	check_is(fcntl(ends[1], F_GETFL), O_WRONLY | O_DIRECT | O_NONBLOCK);
	check_is(read(ends[0], buffer, 100), 3);
	check(!memcmp(buffer, "one", 3));
	check_is(read(ends[0], buffer, 100), 5);
	check(!memcmp(buffer, "three", 5));
	check_is(read(ends[0], buffer, 100), -1);
	check_is(write(ends[1], "four", 4), 4);
	check_is(write(ends[1], "six", 3), 3);
	check_is(read(ends[0], buffer, 100), 4);
	return verdict();
}
