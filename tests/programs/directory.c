// SPDX-License-Identifier: Apache-2.0
/* An open directory, and how far it was read; with argv[2], that it was opened as a directory. */
#include "program.h"
#include <dirent.h>

enum { FILES = 300 };

static char entries[4096];

/* Names seen by one getdents64(), marked; returns how many. */
static int read_some(int fd, bool *seen)
{
	long size = syscall(SYS_getdents64, fd, entries, sizeof(entries)), count = 0;
	for (long at = 0; at < size;) {
		struct dirent64 *entry = (struct dirent64 *)(entries + at);
		if (entry->d_name[0] == 'f') {
			seen[atoi(entry->d_name + 1)] = true;
			count++;
		}
		at += entry->d_reclen;
	}
	return size < 0 ? -1 : size ? count + 1 : 0;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	bool seen[FILES] = {};
	char name[20];
	need(!mkdir(path("many"), 0755) || errno == EEXIST);
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "many/f%d", i);
		tell(name, "");
	}
	int fd = open(path("many"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	need(fd >= 0 && read_some(fd, seen) > 0);
	off_t position = lseek(fd, 0, SEEK_CUR);
	need(position > 0);

	checkpoint();

	check_is(lseek(fd, 0, SEEK_CUR), position);
	if (argc > 2)
		check_is(fcntl(fd, F_GETFL) & O_DIRECTORY, O_DIRECTORY);
	check_is(fcntl(fd, F_GETFD), FD_CLOEXEC);
	while (read_some(fd, seen) > 0)
		;
	for (int i = 0; i < FILES; i++)
		check(seen[i], "f%d", i);
	return verdict();
}
