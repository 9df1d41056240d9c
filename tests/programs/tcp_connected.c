// SPDX-License-Identifier: Apache-2.0
/* Both ends of a TCP connection over the loopback, with data under way and unread. */
#include "sockets.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	bind_loopback(listener, AF_INET);
	need(!listen(listener, 5) && !connect_to(client, name_of(listener)));
	int server = accept(listener, NULL, NULL);
	need(server >= 0);
	set_option(client, IPPROTO_TCP, TCP_NODELAY, 1);
	send_text(client, "question");
	send_text(server, "answer");
	union address here = name_of(client), there = peer_of(client);

	checkpoint();

	check(same_address(name_of(client), here));
	check(same_address(peer_of(client), there));
	check_is(option(client, IPPROTO_TCP, TCP_NODELAY), 1);
	check_text(receive_text(server), "question");
	check_text(receive_text(client), "answer");
	char text[10] = "";
	send_text(client, "more");
	check_is(recv(server, text, sizeof(text), 0), 4);
	check_text(text, "more");
	need(!shutdown(client, SHUT_WR));
	check_is(recv(server, text, sizeof(text), 0), 0);
	/* Port and connection are free at once for a second copy of us. */
	struct linger hard = {1, 0};
	setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	setsockopt(server, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	return verdict();
}
