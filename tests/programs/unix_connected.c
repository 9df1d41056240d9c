// SPDX-License-Identifier: Apache-2.0
/*
 * A connection with our own listener: who the peers are, what is queued; a listener that was closed
 * since; datagram sockets bound, connected one way. With argv[2], the name of an accepted socket too.
 */
#include "sockets.h"

static int pair_up(const char *name, int *listener, int *server)
{
	int client = socket(AF_UNIX, SOCK_STREAM, 0);
	*listener = unix_socket(SOCK_STREAM, name);
	need(!listen(*listener, 3) && !unix_connect(client, name));
	*server = accept(*listener, NULL, NULL);
	need(*server >= 0);
	return client;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	union address address;
	int listener, server, closed, other_server;
	int client = pair_up("listener", &listener, &server);
	int other = pair_up("@closed", &closed, &other_server);
	int mailbox = unix_socket(SOCK_DGRAM, "mailbox"), sender = unix_socket(SOCK_DGRAM, "sender");
	struct ucred cred = {};
	socklen_t size = sizeof(cred);
	need(!close(closed) && !unix_connect(sender, "mailbox"));
	send_text(client, "to server");
	send_text(server, "to client");
	send_text(sender, "letter");

	checkpoint();

	check_text(receive_text(server), "to server");
	check_text(receive_text(client), "to client");
	unix_address(&address, "listener");
	if (argc > 2) {
		check_text(name_of(server).un.sun_path, address.un.sun_path);
		check_text(peer_of(client).un.sun_path, address.un.sun_path);
	}
	check_is(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &cred, &size), 0);
	check_is(cred.uid, getuid());
	int third = socket(AF_UNIX, SOCK_STREAM, 0);
	check_is(unix_connect(third, "listener"), 0);
	check(accept4(listener, NULL, NULL, SOCK_NONBLOCK) >= 0);

	send_text(other, "still here");
	check_text(receive_text(other_server), "still here");
	check_is(unix_connect(socket(AF_UNIX, SOCK_STREAM, 0), "@closed"), -1);

	check_text(receive_text(mailbox), "letter");
	send_text(sender, "another");
	check_text(receive_text(mailbox), "another");
	unix_address(&address, "mailbox");
	check_text(peer_of(sender).un.sun_path, address.un.sun_path);
	return verdict();
}
