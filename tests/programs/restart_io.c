// SPDX-License-Identifier: Apache-2.0
/* Interrupted input and output: pipes that are empty or full, sockets, timers, a record lock. */
#include "restart.h"
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

static int empty[2], full[2], pair[2], timed_pair[2], listener, event_fd, timer_fd;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static char buffer[1 << 16];

static long read_pipe(void)
{
	char c = 0;
	long count = OR_ERRNO(read(empty[0], &c, 1));
	return count == 1 ? c : count;
}

static void feed_pipe(void)
{
	need(write(empty[1], "p", 1) == 1);
}

static long write_pipe(void)
{
	return OR_ERRNO(write(full[1], "12345", 5));
}

static void drain_pipe(void)
{
	need(read(full[0], buffer, sizeof(buffer)) > 4096);
}

static long receive(void)
{
	char c = 0;
	long count = OR_ERRNO(recv(pair[0], &c, 1, 0));
	return count == 1 ? c : count;
}

static void send_one(void)
{
	need(send(pair[1], "s", 1, 0) == 1);
}

static long receive_timed(void)
{
	char c;
	return OR_ERRNO(recv(timed_pair[0], &c, 1, 0));
}

static long accepts(void)
{
	int fd = accept(listener, NULL, NULL);
	return fd < 0 ? -errno : 0;
}

static void connects(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	need(!connect(fd, (struct sockaddr *)&address, sizeof(address)));
}

static long read_event(void)
{
	uint64_t value = 0;
	long count = OR_ERRNO(read(event_fd, &value, sizeof(value)));
	return count == sizeof(value) ? (long)value : count;
}

static void add_event(void)
{
	uint64_t value = 5;
	need(write(event_fd, &value, sizeof(value)) == sizeof(value));
}

static long read_timer(void)
{
	uint64_t ticks = 0;
	long count = OR_ERRNO(read(timer_fd, &ticks, sizeof(ticks)));
	return count == sizeof(ticks) ? (long)ticks : count;
}

static struct call calls[] = {
	{"recv with a timeout", SYS_recvfrom, FAILS, receive_timed, -EAGAIN, NULL},
	{"read of a timer", SYS_read, BEGINS_AGAIN, read_timer, 1, NULL},
	{"read of a pipe", SYS_read, BEGINS_AGAIN, read_pipe, 'p', feed_pipe},
	{"write to a full pipe", SYS_write, BEGINS_AGAIN, write_pipe, 5, drain_pipe},
	{"recv", SYS_recvfrom, BEGINS_AGAIN, receive, 's', send_one},
	{"accept", SYS_accept, BEGINS_AGAIN, accepts, 0, connects},
	{"read of an eventfd", SYS_read, BEGINS_AGAIN, read_event, 5, add_event},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct timeval limit = {TIMEOUT / 1000000000, TIMEOUT % 1000000000 / 1000};
	struct itimerspec span = {.it_value = to_timespec(TIMEOUT + 20 * MS)};
	need(!pipe(empty) && !pipe(full));
	need(write(full[1], buffer, sizeof(buffer)) == sizeof(buffer));
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, timed_pair));
	need(!setsockopt(timed_pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", dir);
	need(!bind(listener, (struct sockaddr *)&address, sizeof(address)) && !listen(listener, 5));
	event_fd = eventfd(0, 0);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, 0);
	need(event_fd >= 0 && !timerfd_settime(timer_fd, 0, &span, NULL));
	checkpoint_calls(argv, calls, lengthof(calls));
	return verdict();
}
