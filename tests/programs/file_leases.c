// SPDX-License-Identifier: Apache-2.0
/* Leases: their kind, that they are broken by who opens the file, and by which signal that is told. */
#include "program.h"

static volatile sig_atomic_t told;

static void on_break(int signo unused, siginfo_t *info, void *context unused)
{
	told = info->si_fd;
}

static int open_new(const char *name, int flags)
{
	int fd = open(path(name), flags | O_CREAT, 0600);
	need(fd >= 0);
	return fd;
}

/* Say how a lease of this file is broken by another open(2); it is told by a signal. */
static void breaks(const char *name, int fd)
{
	told = -1;
	check_is(open(path(name), O_WRONLY | O_NONBLOCK), -1);
	check_is(errno, EWOULDBLOCK);
	check_is(told, fd);
	check_is(fcntl(fd, F_SETLEASE, F_UNLCK), 0);
	check(open(path(name), O_WRONLY | O_NONBLOCK) >= 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction action = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO};
	need(!sigaction(SIGRTMIN, &action, NULL));
	close(open_new("reader", O_RDWR));
	int reader = open_new("reader", O_RDONLY), same = open_new("reader", O_RDONLY);
	int writer = open_new("writer", O_RDWR), copy = dup(writer);
	need(!fcntl(reader, F_SETSIG, SIGRTMIN) && !fcntl(writer, F_SETSIG, SIGRTMIN));
	if (fcntl(reader, F_SETLEASE, F_RDLCK))
		skip("no leases on this file system");
	need(!fcntl(writer, F_SETLEASE, F_WRLCK));

	checkpoint();

	check_is(fcntl(reader, F_GETLEASE), F_RDLCK);
	check_is(fcntl(same, F_GETLEASE), F_UNLCK);
	check_is(fcntl(writer, F_GETLEASE), F_WRLCK);
	check_is(fcntl(copy, F_GETLEASE), F_WRLCK);
	breaks("reader", reader);
	breaks("writer", writer);
	return verdict();
}
