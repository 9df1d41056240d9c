// SPDX-License-Identifier: Apache-2.0
/* Socket pairs: queued data both ways, with the bounds of messages; halves that were shut down. */
#include "sockets.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	int stream[2], datagram[2], sequence[2], half[2], ended[2], empty[2];
	need(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
	need(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagram));
	need(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sequence));
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, half) && !socketpair(AF_UNIX, SOCK_STREAM, 0, ended));
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, empty));
	int twin = dup(stream[1]);
	send_text(stream[0], "to ");
	send_text(stream[0], "you");
	send_text(stream[1], "to me");
	send_text(datagram[0], "first");
	send_text(datagram[0], "second one");
	send_text(datagram[1], "back");
	send_text(sequence[1], "a");
	send_text(sequence[1], "bc");
	send_text(half[0], "last");
	need(twin >= 0 && !shutdown(half[0], SHUT_WR));
	send_text(ended[0], "goodbye");
	need(!close(ended[0]));

	checkpoint();

	check_is(fcntl(stream[0], F_GETFD), FD_CLOEXEC);
	check_is(fcntl(twin, F_GETFD), 0);
	check_is(fcntl(datagram[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(sequence[0], F_GETFL) & O_NONBLOCK, 0);
	check_text(receive_text(twin), "to you");
	check_text(receive_text(stream[0]), "to me");
	check_text(receive_text(stream[0]), "<EAGAIN>");
	check_text(receive_text(datagram[1]), "first");
	check_text(receive_text(datagram[1]), "second one");
	check_text(receive_text(datagram[1]), "<EAGAIN>");
	check_text(receive_text(datagram[0]), "back");
	check_text(receive_text(datagram[0]), "<EAGAIN>");
	check_text(receive_text(sequence[0]), "a");
	check_text(receive_text(sequence[0]), "bc");
	check_is(recv(sequence[0], NULL, 0, MSG_DONTWAIT), -1);
	check_text(receive_text(half[1]), "last");
	check_text(receive_text(half[1]), "");
	send_text(half[1], "other way");
	check_text(receive_text(half[0]), "other way");
	check_is(send(half[0], "x", 1, MSG_NOSIGNAL), -1);
	check_text(receive_text(ended[1]), "goodbye");
	check_text(receive_text(ended[1]), "");
	check_text(receive_text(empty[0]), "<EAGAIN>");
	send_text(empty[0], "new");
	check_text(receive_text(empty[1]), "new");
	return verdict();
}
