// SPDX-License-Identifier: Apache-2.0
/*
 * Event polling: who is watched, for what, with what data; a set within a set; edge and one-shot
 * watches, one of them spent; two watches of one file by two descriptors.
 */
#include "program.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int epoll, count;
static struct epoll_event events[20];

static void watch(int set, int fd, uint32_t what, uint64_t data)
{
	struct epoll_event event = {.events = what, .data.u64 = data};
	need(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

/* What the last look has shown for that data; 0 if nothing. */
static uint32_t seen(uint64_t data)
{
	for (int i = 0; i < count; i++)
		if (events[i].data.u64 == data)
			return events[i].events;
	return 0;
}

static void look(void)
{
	count = epoll_wait(epoll, events, lengthof(events), 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	uint64_t one = 1;
	int quiet = eventfd(0, EFD_NONBLOCK), ready = eventfd(1, EFD_NONBLOCK);
	int twin = dup(ready), spent = eventfd(1, EFD_NONBLOCK), edge = eventfd(0, EFD_NONBLOCK);
	int inner_quiet = epoll_create1(0), inner_ready = epoll_create1(EPOLL_CLOEXEC);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	need(quiet >= 0 && ready >= 0 && twin >= 0 && spent >= 0 && edge >= 0 && epoll >= 0);
	watch(epoll, spent, EPOLLIN | EPOLLONESHOT, 0x300000000);
	look();
	need(seen(0x300000000) == EPOLLIN);
	watch(epoll, quiet, EPOLLIN, 0x100000000);
	watch(epoll, ready, EPOLLIN | EPOLLOUT, 0xffffffffffffffff);
	watch(epoll, twin, EPOLLIN | EPOLLRDHUP | EPOLLPRI, 0x200000000);
	watch(epoll, edge, EPOLLIN | EPOLLET, 0x400000000);
	watch(inner_quiet, quiet, EPOLLIN, 0);
	watch(inner_ready, ready, EPOLLIN, 0);
	watch(epoll, inner_quiet, EPOLLIN, 0x500000000);
	watch(epoll, inner_ready, EPOLLIN, 0x600000000);

	checkpoint();

	check_is(fcntl(epoll, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(inner_quiet, F_GETFD), 0);
	look();
	check_is(count, 3);
	check_is(seen(0xffffffffffffffff), EPOLLIN | EPOLLOUT);
	check_is(seen(0x200000000), EPOLLIN);
	check_is(seen(0x600000000), EPOLLIN);

	need(write(quiet, &one, 8) == 8 && write(edge, &one, 8) == 8);
	look();
	check_is(count, 6);
	check_is(seen(0x100000000), EPOLLIN);
	check_is(seen(0x400000000), EPOLLIN);
	check_is(seen(0x500000000), EPOLLIN);
	look();
	check_is(count, 5); /* an edge is told once */
	check_is(seen(0x400000000), 0);

	struct epoll_event again = {.events = EPOLLIN, .data.u64 = 0x300000000};
	check_is(epoll_ctl(epoll, EPOLL_CTL_MOD, spent, &again), 0);
	look();
	check_is(seen(0x300000000), EPOLLIN);
	check_is(epoll_ctl(epoll, EPOLL_CTL_DEL, twin, NULL), 0);
	check_is(epoll_ctl(epoll, EPOLL_CTL_DEL, ready, NULL), 0);
	return verdict();
}
