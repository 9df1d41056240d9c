// SPDX-License-Identifier: Apache-2.0
/* Descriptors that only name something: a file, a directory, a symbolic link. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct stat st;
	tell("file", "text");
	need(!symlink("file", path("link")));
	int file = open(path("file"), O_PATH | O_CLOEXEC), directory = open(dir, O_PATH | O_DIRECTORY);
	int link = open(path("link"), O_PATH | O_NOFOLLOW);
	need(file >= 0 && directory >= 0 && link >= 0);

	checkpoint();

	check_is(fcntl(file, F_GETFL), O_PATH);
	check_is(fcntl(file, F_GETFD), FD_CLOEXEC);
	check_is(read(file, &st, 1), -1);
	check_is(errno, EBADF);
	check_is(fstatat(directory, "file", &st, 0), 0);
	check_is(st.st_size, 4);
	check_is(fcntl(link, F_GETFL) & O_NOFOLLOW, O_NOFOLLOW);
	check_is(fstat(link, &st), 0);
	check(S_ISLNK(st.st_mode));
	return verdict();
}
