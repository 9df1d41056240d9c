// SPDX-License-Identifier: Apache-2.0
/*
 * File locks: POSIX ones are the process's, flock(2)'s and OFD ones an open file's. Who asks for them
 * is a child, made when all is restored, or another open file. Leases: see file_leases.c.
 */
#include "program.h"
#include <sys/file.h>
#include <sys/wait.h>

static int open_new(const char *name)
{
	int fd = open(path(name), O_RDWR | O_CREAT, 0600);
	need(fd >= 0);
	return fd;
}

static int lock(int fd, int cmd, short type, off_t start, off_t len)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
	return fcntl(fd, cmd, &lock);
}

/* What is in the way of a lock of this kind for writing. */
static struct flock in_the_way(int fd, int cmd, off_t start, off_t len)
{
	struct flock lock = {.l_type = F_WRLCK, .l_start = start, .l_len = len};
	if (fcntl(fd, cmd, &lock))
		lock.l_type = -1;
	return lock;
}

#define check_lock(found, type, start, len, pid) \
	do { \
		struct flock lock_ = found; \
		check_is(lock_.l_type, type); \
		check_is(lock_.l_start, start); \
		check_is(lock_.l_len, len); \
		check_is(lock_.l_pid, pid); \
	} while (0)

/* F_GETLK as a child sees it: to the process itself its own locks are never in the way. */
static struct flock seen_by_child(int fd, off_t start, off_t len)
{
	struct flock found = {.l_type = -1};
	int ends[2];
	check(!pipe(ends));
	pid_t child = fork();
	if (!child) {
		found = in_the_way(fd, F_GETLK, start, len);
		_exit(write(ends[1], &found, sizeof(found)) != sizeof(found));
	}
	close(ends[1]);
	check_is(read(ends[0], &found, sizeof(found)), sizeof(found));
	close(ends[0]);
	check_is(waitpid(child, NULL, 0), child);
	return found;
}

/* What flock(2) says to another open file of this name. */
static int flock_of(const char *name, int operation)
{
	int fd = open_new(name), result = flock(fd, operation | LOCK_NB) ? errno : 0;
	close(fd);
	return result;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int posix = open_new("posix"), same = open_new("posix");
	need(!lock(posix, F_SETLK, F_WRLCK, 10, 10) && !lock(same, F_SETLK, F_RDLCK, 50, 0));
	need(!lock(posix, F_SETLK, F_RDLCK, 30, 1) && dup(posix) >= 0);
	int exclusive = open_new("exclusive"), shared = open_new("shared"), too = open_new("shared");
	int copy = dup(exclusive);
	need(copy >= 0 && !flock(exclusive, LOCK_EX) && !flock(shared, LOCK_SH) && !flock(too, LOCK_SH));
	int ofd = open_new("ofd"), other = open_new("ofd");
	need(!lock(ofd, F_OFD_SETLK, F_WRLCK, 0, 5) && !lock(ofd, F_OFD_SETLK, F_RDLCK, 100, 0));
	need(!lock(other, F_OFD_SETLK, F_RDLCK, 200, 100) && dup(other) >= 0);
	int directory = open(dir, O_RDONLY | O_DIRECTORY);
	need(directory >= 0 && !flock(directory, LOCK_SH));

	checkpoint();

	check_lock(seen_by_child(posix, 0, 25), F_WRLCK, 10, 10, getpid());
	check_lock(seen_by_child(posix, 25, 20), F_RDLCK, 30, 1, getpid());
	check_lock(seen_by_child(posix, 45, 9), F_RDLCK, 50, 0, getpid());
	check_is(seen_by_child(posix, 31, 19).l_type, F_UNLCK);
	check_is(seen_by_child(posix, 0, 10).l_type, F_UNLCK);
	close(same); /* a process that closes any file of that inode loses all its locks there */
	check_is(seen_by_child(posix, 0, 0).l_type, F_UNLCK);

	check_is(flock_of("exclusive", LOCK_SH), EWOULDBLOCK);
	check_is(flock(copy, LOCK_EX | LOCK_NB), 0);
	close(exclusive);
	check_is(flock_of("exclusive", LOCK_SH), EWOULDBLOCK);
	check_is(flock(copy, LOCK_UN), 0);
	check_is(flock_of("exclusive", LOCK_EX), 0);
	check_is(flock_of("shared", LOCK_SH), 0);
	check_is(flock_of("shared", LOCK_EX), EWOULDBLOCK);
	close(shared);
	check_is(flock_of("shared", LOCK_EX), EWOULDBLOCK);
	close(too);
	check_is(flock_of("shared", LOCK_EX), 0);
	int again = open(dir, O_RDONLY | O_DIRECTORY);
	check_is(flock(again, LOCK_SH | LOCK_NB), 0);
	check_is(flock(again, LOCK_EX | LOCK_NB), -1);

	check_lock(in_the_way(other, F_OFD_GETLK, 0, 0), F_WRLCK, 0, 5, -1);
	check_lock(in_the_way(other, F_OFD_GETLK, 50, 0), F_RDLCK, 100, 0, -1);
	check_lock(in_the_way(ofd, F_OFD_GETLK, 50, 0), F_RDLCK, 200, 100, -1);
	close(ofd);
	check_is(in_the_way(other, F_OFD_GETLK, 0, 0).l_type, F_UNLCK);
	return verdict();
}
