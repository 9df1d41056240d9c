// SPDX-License-Identifier: Apache-2.0
/* UDP sockets: bound, connected, with options, v4 and v6. As `corked`: with half a datagram. */
#include "sockets.h"

static int bound(int family)
{
	int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	need(fd >= 0);
	bind_loopback(fd, family);
	return fd;
}

static int check_corked(void)
{
	int fd = bound(AF_INET);
	need(!connect_to(fd, name_of(fd)));
	set_option(fd, IPPROTO_UDP, 1, 1); /* UDP_CORK */
	send_text(fd, "one");
	checkpoint();
	send_text(fd, "two");
	set_option(fd, IPPROTO_UDP, 1, 0);
	check_text(receive_text(fd), "onetwo");
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 2)
		return check_corked();
	int v4 = bound(AF_INET), v6 = bound(AF_INET6), connected = bound(AF_INET);
	int connected6 = bound(AF_INET6), unbound = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	set_option(v4, SOL_SOCKET, SO_BROADCAST, 1);
	set_option(v4, SOL_SOCKET, SO_RCVBUF, 50000);
	set_option(v4, SOL_SOCKET, SO_REUSEADDR, 1);
	int buffer = option(v4, SOL_SOCKET, SO_RCVBUF);
	need(!connect_to(connected, name_of(v4)) && !connect_to(connected6, name_of(v6)));
	int fds[] = {v4, v6, connected, connected6};
	union address names[4];
	for (int i = 0; i < 4; i++)
		names[i] = name_of(fds[i]);

	checkpoint();

	for (int i = 0; i < 4; i++)
		check(same_address(name_of(fds[i]), names[i]), "socket %d", i);
	check(same_address(peer_of(connected), names[0]));
	check(same_address(peer_of(connected6), names[1]));
	check_is(fcntl(v4, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(unbound, F_GETFD), FD_CLOEXEC);
	check_is(option(v4, SOL_SOCKET, SO_BROADCAST), 1);
	check_is(option(v4, SOL_SOCKET, SO_RCVBUF), buffer);
	check_is(option(v4, SOL_SOCKET, SO_REUSEADDR), 1);
	send_text(connected, "four");
	check_text(receive_text(v4), "four");
	send_text(connected6, "six");
	check_text(receive_text(v6), "six");
	check_is(name_of(unbound).v4.sin_port, 0);
	return verdict();
}
