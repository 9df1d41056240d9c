// SPDX-License-Identifier: Apache-2.0
/* TCP connections over the loopback that are half closed, with data left in both directions. */
#include "sockets.h"

struct pair {
	int client, server;
};

static int state(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) ? -errno : info.tcpi_state;
}

/* The other end's answer takes its time. */
static void reach(int fd, int wanted)
{
	for (int tries = 0; state(fd) != wanted && tries < 5000; tries++)
		usleep(1000);
	check_is(state(fd), wanted);
}

static struct pair connected(int family)
{
	int listener = socket(family, SOCK_STREAM, 0);
	struct pair pair = {socket(family, SOCK_STREAM, 0), -1};
	struct linger hard = {1, 0}; /* the port is free at once for a second copy of us */
	bind_loopback(listener, family);
	need(!listen(listener, 5) && !connect_to(pair.client, name_of(listener)));
	need((pair.server = accept(listener, NULL, NULL)) >= 0 && !close(listener));
	need(!setsockopt(pair.client, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)));
	need(!setsockopt(pair.server, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)));
	return pair;
}

/* Data both ways, then the client's end of it: the server is still to read, and may answer. */
static struct pair half_closed(int family)
{
	struct pair pair = connected(family);
	send_text(pair.client, "question");
	send_text(pair.server, "answer");
	need(!shutdown(pair.client, SHUT_WR));
	reach(pair.server, TCP_CLOSE_WAIT);
	reach(pair.client, TCP_FIN_WAIT2);
	return pair;
}

static void check_half_closed(struct pair pair)
{
	char text[10] = "";
	reach(pair.client, TCP_FIN_WAIT2);
	reach(pair.server, TCP_CLOSE_WAIT);
	check_text(receive_text(pair.server), "question");
	check_text(receive_text(pair.server), "");
	check_text(receive_text(pair.client), "answer");
	check_text(receive_text(pair.client), "<EAGAIN>");
	check_is(send(pair.client, "x", 1, MSG_NOSIGNAL), -1);
	check_is(errno, EPIPE);
	send_text(pair.server, "more");
	check_is(recv(pair.client, text, sizeof(text), 0), 4);
	check_text(text, "more");
	need(!shutdown(pair.server, SHUT_WR));
	check_is(recv(pair.client, text, sizeof(text), 0), 0);
}

/* Nothing was said on it but that it ends. */
static struct pair quiet(void)
{
	struct pair pair = connected(AF_INET);
	need(!shutdown(pair.server, SHUT_WR));
	reach(pair.client, TCP_CLOSE_WAIT);
	reach(pair.server, TCP_FIN_WAIT2);
	return pair;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct pair v4 = half_closed(AF_INET), v6 = half_closed(AF_INET6), still = quiet();
	union address here = name_of(v6.client), there = peer_of(v6.client);

	checkpoint();

	check(same_address(name_of(v6.client), here));
	check(same_address(peer_of(v6.client), there));
	check_half_closed(v4);
	check_half_closed(v6);
	check_text(receive_text(still.client), "");
	reach(still.server, TCP_FIN_WAIT2);
	send_text(still.client, "after all");
	char text[20] = "";
	check_is(recv(still.server, text, sizeof(text), 0), 9);
	check_text(text, "after all");
	return verdict();
}
