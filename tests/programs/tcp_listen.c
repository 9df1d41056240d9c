// SPDX-License-Identifier: Apache-2.0
/* Listening TCP sockets: addresses, v6 only and both, options, that they accept; a bound one. */
#include "sockets.h"

static int listener(int family, int flags, int v6only)
{
	int fd = socket(family, SOCK_STREAM | flags, 0);
	need(fd >= 0);
	if (family == AF_INET6)
		set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, v6only);
	set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	return fd;
}

static void bind_any(int fd, int family)
{
	union address any = {.v6.sin6_family = family};
	need(!bind(fd, &any.any, family == AF_INET ? sizeof(any.v4) : sizeof(any.v6)));
}

static void check_accepts(int fd, union address address)
{
	int client = socket(address.any.sa_family, SOCK_STREAM, 0);
	check_is(connect_to(client, address), 0);
	int server = accept(fd, NULL, NULL);
	check(server >= 0, "%s", strerror(errno));
	close(client);
	close(server);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int v4 = listener(AF_INET, SOCK_NONBLOCK, 0), v6 = listener(AF_INET6, SOCK_CLOEXEC, 1);
	int any4 = listener(AF_INET, 0, 0), any6 = listener(AF_INET6, 0, 0);
	int shared = listener(AF_INET, 0, 0), sharing = listener(AF_INET, 0, 0);
	int bound = listener(AF_INET, 0, 0);
	set_option(shared, SOL_SOCKET, SO_REUSEPORT, 1);
	set_option(sharing, SOL_SOCKET, SO_REUSEPORT, 1);
	set_option(v4, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(v4, IPPROTO_TCP, TCP_KEEPIDLE, 111);
	set_option(v4, IPPROTO_TCP, TCP_KEEPINTVL, 22);
	set_option(v4, IPPROTO_TCP, TCP_KEEPCNT, 3);
	set_option(v4, IPPROTO_TCP, TCP_NODELAY, 1);
	bind_loopback(v4, AF_INET);
	bind_loopback(v6, AF_INET6);
	bind_any(any4, AF_INET);
	bind_any(any6, AF_INET6);
	bind_loopback(shared, AF_INET);
	bind_loopback(bound, AF_INET);
	union address names[] = {name_of(v4), name_of(v6), name_of(any4), name_of(any6),
				 name_of(shared), name_of(bound)};
	int fds[] = {v4, v6, any4, any6, shared, bound};
	need(!bind(sharing, &names[4].any, sizeof(names[4].v4)));
	need(!listen(v4, 5) && !listen(v6, 5) && !listen(any4, 5) && !listen(any6, 5));
	need(!listen(shared, 5) && !listen(sharing, 5));

	checkpoint();

	for (unsigned i = 0; i < lengthof(fds); i++)
		check(same_address(name_of(fds[i]), names[i]), "socket %u", i);
	check(same_address(name_of(sharing), names[4]));
	check_is(fcntl(v4, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(v6, F_GETFD), FD_CLOEXEC);
	check_is(option(v6, IPPROTO_IPV6, IPV6_V6ONLY), 1);
	check_is(option(any6, IPPROTO_IPV6, IPV6_V6ONLY), 0);
	check_is(option(v4, SOL_SOCKET, SO_ACCEPTCONN), 1);
	check_is(option(bound, SOL_SOCKET, SO_ACCEPTCONN), 0);
	check_is(option(v4, SOL_SOCKET, SO_REUSEADDR), 1);
	check_is(option(v4, SOL_SOCKET, SO_REUSEPORT), 0);
	check_is(option(shared, SOL_SOCKET, SO_REUSEPORT), 1);
	check_is(option(v4, SOL_SOCKET, SO_KEEPALIVE), 1);
	check_is(option(v4, IPPROTO_TCP, TCP_KEEPIDLE), 111);
	check_is(option(v4, IPPROTO_TCP, TCP_KEEPINTVL), 22);
	check_is(option(v4, IPPROTO_TCP, TCP_KEEPCNT), 3);
	check_is(option(v4, IPPROTO_TCP, TCP_NODELAY), 1);
	check_accepts(v4, names[0]);
	check_accepts(v6, names[1]);
	union address mapped = names[0];
	mapped.v4.sin_port = names[3].v6.sin6_port;
	check_accepts(any6, mapped); /* takes IPv4 too */
	check_is(accept(v4, NULL, NULL), -1);
	check_is(errno, EAGAIN);
	check_is(listen(bound, 1), 0);
	check_accepts(bound, names[5]);
	return verdict();
}
