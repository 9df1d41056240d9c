// SPDX-License-Identifier: Apache-2.0
/*
 * A watch whose descriptor was closed while a dup of the file lives on: it goes on to report under
 * the number that is closed; and one whose number is another file by now.
 */
#include "program.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	uint64_t one = 1;
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1}, seen[4] = {};
	int epoll = epoll_create1(0), closed = eventfd(0, 0), reused = eventfd(0, 0);
	int twin = dup(closed), other_twin = dup(reused);
	need(!epoll_ctl(epoll, EPOLL_CTL_ADD, closed, &event));
	event.data.u64 = 2;
	need(!epoll_ctl(epoll, EPOLL_CTL_ADD, reused, &event));
	need(!close(closed) && dup2(epoll, reused) == reused && !close(epoll));

	checkpoint();

	epoll = reused;
	check_is(epoll_wait(epoll, seen, 4, 0), 0);
	need(write(twin, &one, 8) == 8);
	check_is(epoll_wait(epoll, seen, 4, 0), 1);
	check_is(seen[0].data.u64, 1);
	need(write(other_twin, &one, 8) == 8);
	check_is(epoll_wait(epoll, seen, 4, 0), 2);
	check_is(fcntl(closed, F_GETFD), -1);
	need(!close(twin)); /* the last of it: the watch goes too */
	check_is(epoll_wait(epoll, seen, 4, 0), 1);
	check_is(seen[0].data.u64, 2);
	return verdict();
}
