// SPDX-License-Identifier: Apache-2.0
/*
 * TCP connections that are left out: their sockets come back without a peer, at their end. One has
 * not been accepted.
 */
#include "sockets.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	int listener = socket(AF_INET, SOCK_STREAM, 0), late = socket(AF_INET, SOCK_STREAM, 0);
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
	bind_loopback(listener, AF_INET);
	set_option(client, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(client, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	need(!listen(listener, 5) && !connect_to(client, name_of(listener)));
	int server = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	need(server >= 0 && !connect_to(late, name_of(listener)));
	send_text(client, "question");
	union address here = name_of(listener);
	need(!fcntl(listener, F_SETFL, O_NONBLOCK));

	checkpoint();

	check(same_address(name_of(listener), here));
	check_is(option(client, SOL_SOCKET, SO_KEEPALIVE), 1);
	check_is(option(client, IPPROTO_TCP, TCP_KEEPIDLE), 77);
	check_is(fcntl(client, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(server, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	struct linger hard = {1, 0};
	if (peer_of(client).any.sa_family) { /* we have not been away */
		check_text(receive_text(server), "question");
		check(accept(listener, NULL, NULL) >= 0);
		setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
		setsockopt(server, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
		setsockopt(late, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
		return verdict();
	}
	check_text(receive_text(client), "");
	check_text(receive_text(server), "");
	check_is(send(client, "x", 1, MSG_NOSIGNAL), -1);
	check_is(errno, EPIPE);
	check_is(name_of(client).v4.sin_port, 0);
	check_is(accept(listener, NULL, NULL), -1);
	check_is(errno, EAGAIN);
	close(client);
	client = socket(AF_INET, SOCK_STREAM, 0);
	check_is(connect_to(client, here), 0);
	check((server = accept(listener, NULL, NULL)) >= 0);
	send_text(client, "again");
	char text[10] = "";
	check_is(recv(server, text, sizeof(text), 0), 5);
	setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	setsockopt(server, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	return verdict();
}
