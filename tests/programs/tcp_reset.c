// SPDX-License-Identifier: Apache-2.0
/* TCP connections that are over, whose sockets are still open; and their listener, on that port. */
#include "sockets.h"

static int accepted(int listener, int *client)
{
	struct linger hard = {1, 0};
	*client = socket(AF_INET, SOCK_STREAM, 0);
	need(!connect_to(*client, name_of(listener)));
	int server = accept(listener, NULL, NULL);
	need(server >= 0 && !setsockopt(*client, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)));
	return server;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), client, other;
	set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
	bind_loopback(listener, AF_INET);
	need(!listen(listener, 5));
	int reset = accepted(listener, &client), done = accepted(listener, &other);
	need(!close(client)); /* by a reset */
	check_text(receive_text(reset), "<ECONNRESET>");
	need(!shutdown(done, SHUT_WR) && recv(other, &client, 1, 0) == 0);
	need(!shutdown(other, SHUT_WR) && recv(done, &client, 1, 0) == 0);
	int fresh = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int over[] = {reset, done, other};

	checkpoint();

	for (size_t i = 0; i < lengthof(over); i++) {
		check_text(receive_text(over[i]), "");
		check_is(send(over[i], "x", 1, MSG_NOSIGNAL), -1);
		check_is(errno, EPIPE);
	}
	check_text(receive_text(fresh), "<ENOTCONN>");
	check_is(connect_to(fresh, name_of(listener)), -1);
	check_is(errno, EINPROGRESS);
	int server = accept(listener, NULL, NULL);
	check(server >= 0, "%s", strerror(errno));
	struct linger hard = {1, 0};
	setsockopt(fresh, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	setsockopt(server, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	return verdict();
}
