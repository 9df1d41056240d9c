// SPDX-License-Identifier: Apache-2.0
/* Interrupted waits for descriptors, with a timeout and without: poll, select, epoll_wait. */
#include "restart.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

static int ends[2], epoll;

static long in_poll(void)
{
	struct pollfd p = {.fd = ends[0], .events = POLLIN};
	return OR_ERRNO(syscall(SYS_poll, &p, 1, TIMEOUT / MS));
}

static long in_endless_poll(void)
{
	struct pollfd p = {.fd = ends[0], .events = POLLIN};
	return OR_ERRNO(syscall(SYS_poll, &p, 1, -1));
}

static long in_ppoll(void)
{
	struct pollfd p = {.fd = ends[0], .events = POLLIN};
	struct timespec limit = to_timespec(TIMEOUT);
	sigset_t none;
	sigemptyset(&none);
	return OR_ERRNO(ppoll(&p, 1, &limit, &none));
}

static long in_select(void)
{
	struct timeval limit = {TIMEOUT / 1000000000, TIMEOUT % 1000000000 / 1000};
	fd_set set;
	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	return OR_ERRNO(syscall(SYS_select, ends[0] + 1, &set, NULL, NULL, &limit));
}

static long in_pselect(void)
{
	struct timespec limit = to_timespec(TIMEOUT);
	fd_set set;
	FD_ZERO(&set);
	FD_SET(ends[0], &set);
	return OR_ERRNO(pselect(ends[0] + 1, &set, NULL, NULL, &limit, NULL));
}

static long in_epoll_wait(void)
{
	struct epoll_event event;
	return OR_ERRNO(syscall(SYS_epoll_wait, epoll, &event, 1, TIMEOUT / MS));
}

static long in_endless_epoll_wait(void)
{
	struct epoll_event event = {};
	long count = OR_ERRNO(syscall(SYS_epoll_wait, epoll, &event, 1, -1));
	return count == 1 ? event.data.u32 : count;
}

static void release(void)
{
	need(write(ends[1], "x", 1) == 1);
}

static struct call calls[] = {
	{"poll", SYS_poll, GOES_ON, in_poll, 0, NULL},
	{"ppoll", SYS_ppoll, BEGINS_AGAIN, in_ppoll, 0, NULL},
	{"select", SYS_select, BEGINS_AGAIN, in_select, 0, NULL},
	{"pselect", SYS_pselect6, BEGINS_AGAIN, in_pselect, 0, NULL},
	{"epoll_wait", SYS_epoll_wait, FAILS, in_epoll_wait, 0, NULL},
	{"endless poll", SYS_poll, GOES_ON, in_endless_poll, 1, release},
	{"endless epoll_wait", SYS_epoll_wait, FAILS, in_endless_epoll_wait, 77, release},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = 77};
	need(!pipe(ends));
	epoll = epoll_create1(0);
	need(!epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
	checkpoint_calls(argv, calls, lengthof(calls));
	return verdict();
}
