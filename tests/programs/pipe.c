// SPDX-License-Identifier: Apache-2.0
/*
 * Pipes: bytes in flight, a full one, size, flags of each end, dups, an end that is
 * closed already.
 */
#include "program.h"

enum { CONTENT = 5000 };

static char buffer[1 << 20];

static ssize_t size_of(int fd)
{
	return fcntl(fd, F_GETPIPE_SZ);
}

static int fd_flags(int fd)
{
	return fcntl(fd, F_GETFD);
}

static int file_flags(int fd)
{
	return fcntl(fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int plain[2], full[2], no_writer[2], no_reader[2], empty[2], big[2];

	need(!pipe(plain));
	fill(buffer, CONTENT, 1);
	need(write(plain[1], buffer, CONTENT) == CONTENT);
	int reader = dup(plain[0]), writer = dup(plain[1]);
	need(fcntl(reader, F_SETFD, FD_CLOEXEC) == 0 && writer >= 0);

	need(!pipe2(full, O_NONBLOCK));
	fill(buffer, sizeof(buffer), 2);
	ssize_t held = write(full[1], buffer, sizeof(buffer));
	need(held == size_of(full[0]));

	need(!pipe(no_writer) && write(no_writer[1], "last", 4) == 4 && !close(no_writer[1]));
	need(!pipe(no_reader) && !close(no_reader[0]));
	need(!pipe(empty) && !fcntl(empty[0], F_SETFL, O_NONBLOCK));
	need(!pipe(big));
	need(fcntl(big[1], F_SETPIPE_SZ, 1 << 19) == 1 << 19);
	fill(buffer, 300000, 3);
	need(write(big[1], buffer, 300000) == 300000);
	signal(SIGPIPE, SIG_IGN);

	checkpoint();

	check_is(fd_flags(plain[0]), 0);
	check_is(fd_flags(reader), FD_CLOEXEC);
	check_is(file_flags(plain[0]), O_RDONLY);
	check_is(file_flags(plain[1]), O_WRONLY);
	check_is(write(writer, "!", 1), 1);
	check_is(read(reader, buffer, sizeof(buffer)), CONTENT + 1);
	check_is(differs(buffer, CONTENT, 1), -1);
	check_is(buffer[CONTENT], '!');

	check_is(file_flags(full[0]), O_RDONLY | O_NONBLOCK);
	check_is(file_flags(full[1]), O_WRONLY | O_NONBLOCK);
	check_is(write(full[1], buffer, 1), -1);
	check_is(read(full[0], buffer, sizeof(buffer)), held);
	check_is(differs(buffer, held, 2), -1);
	check_is(read(full[0], buffer, 1), -1);
	check_is(errno, EAGAIN);

	check_is(read(no_writer[0], buffer, 100), 4);
	check_is(read(no_writer[0], buffer, 100), 0);
	check_is(write(no_reader[1], "x", 1), -1);
	check_is(errno, EPIPE);

	check_is(file_flags(empty[0]), O_RDONLY | O_NONBLOCK);
	check_is(file_flags(empty[1]), O_WRONLY);
	check_is(read(empty[0], buffer, 1), -1);
	check_is(errno, EAGAIN);

	check_is(size_of(big[0]), 1 << 19);
	check_is(read(big[0], buffer, sizeof(buffer)), 300000);
	check_is(differs(buffer, 300000, 3), -1);
	return verdict();
}
