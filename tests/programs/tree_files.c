// SPDX-License-Identifier: Apache-2.0
/*
 * Descriptors of several processes: open files that they share and others that they do not, at
 * other numbers; a child with the same table (CLONE_FILES) and, with the argument `fs`, one with the
 * same directory (CLONE_FS), or `will`, one that is to have it once restored; an epoll set, an
 * eventfd and both ends of a socket pair.
 */
#include "tree.h"
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static int shared, event, set, pair[2], back[2];

static pid_t child_with(unsigned long flags, void (*run)(int))
{
	pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
	need(pid >= 0);
	if (!pid) {
		run(0);
		end();
	}
	return pid;
}

static void inherits(int unused number)
{
	char text[8] = "";
	int moved = dup2(shared, 77), own = open(path("file"), O_RDONLY);
	need(moved == 77 && own >= 0 && !close(shared));
	close(pair[0]);
	arrived();
	check_is(lseek(77, 0, SEEK_CUR), 3);
	check_is(lseek(own, 0, SEEK_CUR), 0);
	check_is(read(77, text, 2), 2);
	check_text(text, "de");
	check_is(fcntl(shared, F_GETFD), -1);
	check_is(write(pair[1], "x", 1), 1);
	check_is(recv(pair[1], text, 1, 0), 1);
	check_is(eventfd_write(event, 5), 0);
}

static void same_table(int unused number)
{
	char byte;
	/* Not arrived(): what it closed would be closed for the others. */
	need(write(arrivals[1], "", 1) == 1);
	await_go();
	check_is(dup2(shared, 50), 50);
	check_is(write(back[1], "y", 1), 1);
	while (fcntl(50, F_GETFD) >= 0)	/* until the root closes it */
		usleep(1000);
	check_is(read(back[0], &byte, 0), 0);
}

static void same_directory(int unused number)
{
	arrived();
	check_is(chdir("/proc"), 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 42}, got = {0};
	eventfd_t value;
	char byte, where[64];
	tell("file", "abcdefgh");
	shared = open(path("file"), O_RDONLY);
	event = eventfd(0, EFD_NONBLOCK);
	set = epoll_create1(0);
	need(shared >= 0 && event >= 0 && set >= 0);
	need(!epoll_ctl(set, EPOLL_CTL_ADD, event, &wanted));
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !pipe(back));
	need(lseek(shared, 3, SEEK_SET) == 3);
	pid_t one = child(inherits, 0), three = 0;
	if (argc > 2)
		three = child_with(strcmp(argv[2], "fs") ? 0 : CLONE_FS, same_directory);
	pid_t two = child_with(CLONE_FILES, same_table);
	all_arrived(argc);

	checkpoint();

	check_is(read(back[0], &byte, 1), 1);
	check_is(fcntl(50, F_GETFD), 0);
	check_is(close(50), 0);
	collect(two);
	check_is(recv(pair[0], &byte, 1, 0), 1);
	check_is(epoll_wait(set, &got, 1, 0), 0);
	check_is(send(pair[0], "z", 1, 0), 1);
	collect(one);
	check_is(epoll_wait(set, &got, 1, 1000), 1);
	check_is(got.data.u64, 42);
	check_is(eventfd_read(event, &value), 0);
	check_is(value, 5);
	check_is(lseek(shared, 0, SEEK_CUR), 5);
	close(pair[1]);
	if (three) {
		collect(three);
		need(getcwd(where, sizeof(where)));
		check_text(where, "/proc");
	}
	return verdict();
}
