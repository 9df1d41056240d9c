// SPDX-License-Identifier: Apache-2.0
/* Named pipes: bytes in flight, both ends, one end for both ways. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	char text[100];
	unlink(path("fifo"));
	need(!mkfifo(path("fifo"), 0640));
	int reader = open(path("fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	int writer = open(path("fifo"), O_WRONLY);
	need(reader >= 0 && writer >= 0 && write(writer, "in flight", 9) == 9);
	need(!mkfifo(path("both"), 0640) || errno == EEXIST);
	int both = open(path("both"), O_RDWR | O_NONBLOCK);
	need(both >= 0 && write(both, "two", 3) == 3);

	checkpoint();

	check_is(fcntl(reader, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
	check_is(fcntl(writer, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY);
	check_is(write(writer, "!", 1), 1);
	check_is(read(reader, text, sizeof(text)), 10);
	check(!memcmp(text, "in flight!", 10));
	check_is(read(reader, text, sizeof(text)), -1);
	check_is(errno, EAGAIN);
	check_is(read(both, text, sizeof(text)), 3);
	check(!memcmp(text, "two", 3));
	int third = open(path("fifo"), O_RDONLY | O_NONBLOCK);
	check_is(write(writer, "more", 4), 4);
	check_is(read(third, text, sizeof(text)), 4); /* it is still the one of that name */
	return verdict();
}
