// SPDX-License-Identifier: Apache-2.0
/* A connection that was made and not accepted yet, with what was sent on it already. */
#include "sockets.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
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
