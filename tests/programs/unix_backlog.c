// SPDX-License-Identifier: Apache-2.0
/*
 * A connection that was made and not accepted yet, with what was sent on it already. As `order`:
 * several, which are accepted in their order; one has ended its half, one both.
 */
#include "sockets.h"

static int check_order(void)
{
	int listener = unix_socket(SOCK_STREAM | SOCK_NONBLOCK, "socket"), clients[6];
	static const int order[] = {3, 1, 5, 0, 4, 2};
	need(!listen(listener, 9));
	for (int i = 0; i < 6; i++)
		need((clients[i] = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0);
	for (int i = 0; i < 6; i++)
		need(!unix_connect(clients[order[i]], "socket"));
	need(!shutdown(clients[1], SHUT_WR) && !shutdown(clients[0], SHUT_RDWR));

	checkpoint();

	for (int i = 0; i < 6; i++) {
		int server = accept(listener, NULL, NULL), client = clients[order[i]];
		check(server >= 0, "%s", strerror(errno));
		check_text(receive_text(server), order[i] > 1 ? "<EAGAIN>" : "");
		if (!order[i])
			continue;
		send_text(server, "answer");
		check_text(receive_text(client), "answer");
	}
	check_text(receive_text(clients[0]), "");
	check_is(accept(listener, NULL, NULL), -1);
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 2)
		return check_order();
	int listener = unix_socket(SOCK_STREAM | SOCK_NONBLOCK, "socket");
	int client = socket(AF_UNIX, SOCK_STREAM, 0);
	need(!listen(listener, 3) && !unix_connect(client, "socket"));
	send_text(client, "early");

	checkpoint();

	int server = accept(listener, NULL, NULL);
	check(server >= 0, "%s", strerror(errno));
	check_text(receive_text(server), "early");
	send_text(server, "answer");
	check_text(receive_text(client), "answer");
	check_is(accept(listener, NULL, NULL), -1);
	return verdict();
}
