// SPDX-License-Identifier: Apache-2.0
/* Regular files: position, access mode, flags of the file and the descriptor, what dups share. */
#include "program.h"

static char text[20];

int main(int argc, char **argv)
{
	begin(argc, argv);
	int file = open(path("file"), O_RDWR | O_CREAT | O_TRUNC, 0640);
	need(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 4, SEEK_SET) == 4);
	int twin = dup(file), other = open(path("file"), O_RDWR);
	int append = open(path("file"), O_WRONLY | O_APPEND | O_CLOEXEC);
	int readonly = open(path("file"), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_NOATIME);
	int sync = open(path("file"), O_WRONLY | O_SYNC);
	int beyond = open(path("file"), O_RDONLY);
	need(twin >= 0 && other >= 0 && append >= 0 && readonly >= 0 && sync >= 0 && beyond >= 0);
	need(fcntl(twin, F_SETFD, FD_CLOEXEC) == 0 && lseek(other, 7, SEEK_SET) == 7);
	need(lseek(beyond, 1LL << 33, SEEK_SET) == 1LL << 33);

	checkpoint();

	check_is(fcntl(file, F_GETFD), 0);
	check_is(fcntl(twin, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(append, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(file, F_GETFL) & O_ACCMODE, O_RDWR);
	check_is(fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND), O_WRONLY | O_APPEND);
	check_is(fcntl(readonly, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_NOATIME),
		 O_RDONLY | O_NONBLOCK | O_NOATIME);
	check_is(fcntl(sync, F_GETFL) & O_SYNC, O_SYNC);

	check_is(lseek(file, 0, SEEK_CUR), 4);
	check_is(lseek(other, 0, SEEK_CUR), 7);
	check_is(lseek(beyond, 0, SEEK_CUR), 1LL << 33);
	check_is(read(twin, text, 2), 2);
	check(!memcmp(text, "45", 2));
	check_is(lseek(file, 0, SEEK_CUR), 6);
	check_is(lseek(other, 0, SEEK_CUR), 7);
	check_is(write(readonly, "x", 1), -1);
	check_is(write(append, "!", 1), 1);
	check_is(pread(file, text, sizeof(text), 10), 1);
	need(!ftruncate(file, 10)); /* as it was, for the next one */
	return verdict();
}
