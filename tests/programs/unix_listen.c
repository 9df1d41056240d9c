// SPDX-License-Identifier: Apache-2.0
/* Listening sockets: by path, abstract and given a name by the kernel. */
#include "sockets.h"

static void check_accepts(int listener, union address address, socklen_t size)
{
	int client = socket(AF_UNIX, SOCK_STREAM, 0);
	check_is(connect(client, &address.any, size), 0);
	int server = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	check(server >= 0, "%s", strerror(errno));
	send_text(client, "hello");
	check_text(receive_text(server), "hello");
	close(client);
	close(server);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	union address address, automatic = {.any.sa_family = AF_UNIX};
	socklen_t size, automatic_size = sizeof(automatic);
	int by_path = unix_socket(SOCK_STREAM | SOCK_NONBLOCK, "socket");
	int abstract = unix_socket(SOCK_STREAM | SOCK_CLOEXEC, "@abstract");
	int named = socket(AF_UNIX, SOCK_STREAM, 0);
	need(!bind(named, &automatic.any, sizeof(sa_family_t)));
	need(!getsockname(named, &automatic.any, &automatic_size) && automatic_size == 8);
	need(!listen(by_path, 3) && !listen(abstract, 3) && !listen(named, 3));

	checkpoint();

	check_is(option(by_path, SOL_SOCKET, SO_ACCEPTCONN), 1);
	check_is(fcntl(by_path, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(abstract, F_GETFD), FD_CLOEXEC);
	check_is(accept(by_path, NULL, NULL), -1);
	check_is(errno, EAGAIN);
	size = unix_address(&address, "socket");
	check_accepts(by_path, address, size);
	check_text(name_of(by_path).un.sun_path, address.un.sun_path);
	size = unix_address(&address, "@abstract");
	check_accepts(abstract, address, size);
	check_accepts(named, automatic, automatic_size);
	return verdict();
}
