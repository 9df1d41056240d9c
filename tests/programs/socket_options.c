// SPDX-License-Identifier: Apache-2.0
/* Options of sockets that are rarely set, of every family. */
#include "sockets.h"
#include <linux/netlink.h>

static const struct {
	int level, number, value;
} wanted[] = {
	{SOL_SOCKET, SO_TIMESTAMP, 1},
	{SOL_SOCKET, SO_RXQ_OVFL, 1},
	{IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
	{IPPROTO_TCP, TCP_DEFER_ACCEPT, 3},
	{IPPROTO_TCP, TCP_SYNCNT, 4},
	{IPPROTO_TCP, TCP_LINGER2, 33},
	{IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4096},
	{IPPROTO_TCP, TCP_FASTOPEN, 7},
	{IPPROTO_UDP, 104 /* UDP_GRO */, 1},
	{IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE},
	{IPPROTO_IP, IP_RECVERR, 1},
	{IPPROTO_IP, IP_RECVTTL, 1},
	{IPPROTO_IP, IP_TRANSPARENT, 1},
	{IPPROTO_IP, IP_MULTICAST_TTL, 5},
	{IPPROTO_IP, IP_MULTICAST_LOOP, 0},
	{IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9},
	{IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 3},
	{IPPROTO_IPV6, IPV6_RECVERR, 1},
	{IPPROTO_IPV6, IPV6_DONTFRAG, 1},
	{SOL_NETLINK, NETLINK_EXT_ACK, 1},
	{SOL_NETLINK, NETLINK_NO_ENOBUFS, 1},
	{SOL_NETLINK, NETLINK_CAP_ACK, 1},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	int pair[2], fds[] = {socket(AF_INET, SOCK_STREAM, 0), socket(AF_INET6, SOCK_STREAM, 0),
			      socket(AF_INET, SOCK_DGRAM, 0), socket(AF_INET6, SOCK_DGRAM, 0),
			      socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), -1};
	need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	fds[lengthof(fds) - 1] = pair[0];
	int values[lengthof(fds)][lengthof(wanted)], set = 0;
	for (size_t i = 0; i < lengthof(fds); i++) {
		for (size_t j = 0; j < lengthof(wanted); j++) /* not each is every socket's */
			set += !setsockopt(fds[i], wanted[j].level, wanted[j].number, &wanted[j].value,
					   sizeof(int));
		for (size_t j = 0; j < lengthof(wanted); j++)
			values[i][j] = option(fds[i], wanted[j].level, wanted[j].number);
	}
	need(set > 30);
	setsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, "reno", 4);

	checkpoint();

	char name[20] = "";
	socklen_t size = sizeof(name);
	check_is(getsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, name, &size), 0);
	check_text(name, "reno");
	for (size_t i = 0; i < lengthof(fds); i++)
		for (size_t j = 0; j < lengthof(wanted); j++) {
			int now = option(fds[i], wanted[j].level, wanted[j].number);
			check(now == values[i][j], "socket %zu, option %d of level %d: %d, expected %d", i,
			      wanted[j].number, wanted[j].level, now, values[i][j]);
		}
	return verdict();
}
