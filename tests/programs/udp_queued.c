// SPDX-License-Identifier: Apache-2.0
/* Datagrams that were received and not read yet, and whom they came from. */
#include "sockets.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	int to = socket(AF_INET, SOCK_DGRAM, 0), from = socket(AF_INET, SOCK_DGRAM, 0);
	char text[20] = "";
	bind_loopback(to, AF_INET);
	bind_loopback(from, AF_INET);
	need(!connect_to(from, name_of(to)));
	send_text(from, "one");
	send_text(from, "second");

	checkpoint();

	union address sender = {};
	socklen_t size = sizeof(sender);
	check_is(recvfrom(to, text, sizeof(text), MSG_DONTWAIT, &sender.any, &size), 3);
	check(same_address(sender, name_of(from)));
	check_text(receive_text(to), "second");
	return verdict();
}
