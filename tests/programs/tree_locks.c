// SPDX-License-Identifier: Apache-2.0
/* File locks of several processes: POSIX ones are each one's own, flock(2) is the open file's. */
#include "tree.h"
#include <sys/file.h>

static int shared;

static struct flock range(int number)
{
	return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = number * 10, .l_len = 10};
}

static void locks(int number)
{
	int own = open(path("posix"), O_RDWR);
	struct flock lock = range(number), other = range(1 - number), after = range(number);
	need(own >= 0 && !fcntl(own, F_SETLK, &lock));
	arrived();
	check_is(fcntl(own, F_SETLK, &other), -1);
	check_is(errno, EAGAIN);
	check_is(fcntl(own, F_SETLK, &after), 0);
	tell(number ? "checked.1" : "checked.0", "");
	await_file("looked");
	check_is(flock(shared, LOCK_UN), 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t pids[2];
	tell("posix", "");
	tell("flock", "");
	shared = open(path("flock"), O_RDWR);
	need(shared >= 0 && !flock(shared, LOCK_EX));
	for (int i = 0; i < 2; i++)
		pids[i] = child(locks, i);
	all_arrived(2);

	checkpoint();

	int posix = open(path("posix"), O_RDWR), other = open(path("flock"), O_RDWR);
	for (int i = 0; i < 2; i++) {
		struct flock lock = range(i);
		check_is(fcntl(posix, F_GETLK, &lock), 0);
		check_is(lock.l_type, F_WRLCK);
		check_is(lock.l_pid, pids[i]);
	}
	check_is(flock(other, LOCK_EX | LOCK_NB), -1);
	await_file("checked.0");
	await_file("checked.1");
	tell("looked", "");
	for (int i = 0; i < 2; i++)
		collect(pids[i]);
	check_is(flock(other, LOCK_EX | LOCK_NB), 0);
	return verdict();
}
