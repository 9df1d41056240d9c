// SPDX-License-Identifier: Apache-2.0
/* Packet sockets: of which device and protocol, with options and groups. As `ring`: a mapped one. */
#include "sockets.h"
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>

static int packet(int type, int protocol)
{
	int fd = socket(AF_PACKET, type, htons(protocol));
	if (fd < 0)
		skip("no packet sockets: %s", strerror(errno));
	return fd;
}

static struct sockaddr_ll name(int fd)
{
	struct sockaddr_ll found = {};
	socklen_t size = sizeof(found);
	check_is(getsockname(fd, (struct sockaddr *)&found, &size), 0);
	return found;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int lo = if_nametoindex("lo");
	struct sockaddr_ll here = {AF_PACKET, htons(ETH_P_IP), lo, 0, 0, 0, {}};
	int bound = packet(SOCK_DGRAM | SOCK_NONBLOCK, 0), all = packet(SOCK_RAW | SOCK_CLOEXEC, ETH_P_LOOP);
	int idle = packet(SOCK_RAW, 0);
	need(lo > 0 && !bind(bound, (struct sockaddr *)&here, sizeof(here)));
	set_option(bound, SOL_PACKET, PACKET_AUXDATA, 1);
	set_option(bound, SOL_PACKET, PACKET_ORIGDEV, 1);
	set_option(all, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
	set_option(all, SOL_PACKET, PACKET_RESERVE, 40);
	set_option(all, SOL_PACKET, PACKET_LOSS, 1);
	set_option(all, SOL_PACKET, PACKET_COPY_THRESH, 2);
	set_option(all, SOL_SOCKET, SO_RCVBUF, 50000);
	struct packet_mreq group = {lo, PACKET_MR_MULTICAST, 6, {1, 0, 0x5e, 1, 2, 3}};
	need(!setsockopt(all, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &group, sizeof(group)));
	if (argc > 2) {
		struct tpacket_req ring = {4096, 4, 2048, 8};
		need(!setsockopt(all, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)));
	}
	int buffer = option(all, SOL_SOCKET, SO_RCVBUF);

	checkpoint();

	check_is(name(bound).sll_ifindex, lo);
	check_is(name(bound).sll_protocol, htons(ETH_P_IP));
	check_is(name(all).sll_ifindex, 0);
	check_is(name(all).sll_protocol, htons(ETH_P_LOOP));
	check_is(name(idle).sll_protocol, 0);
	check_is(option(bound, SOL_SOCKET, SO_TYPE), SOCK_DGRAM);
	check_is(option(all, SOL_SOCKET, SO_TYPE), SOCK_RAW);
	check_is(fcntl(bound, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(all, F_GETFD), FD_CLOEXEC);
	check_is(option(bound, SOL_PACKET, PACKET_AUXDATA), 1);
	check_is(option(bound, SOL_PACKET, PACKET_ORIGDEV), 1);
	check_is(option(all, SOL_PACKET, PACKET_AUXDATA), 0);
	check_is(option(all, SOL_PACKET, PACKET_VERSION), TPACKET_V2);
	check_is(option(all, SOL_PACKET, PACKET_RESERVE), 40);
	check_is(option(all, SOL_PACKET, PACKET_LOSS), 1);
	check_is(option(all, SOL_SOCKET, SO_RCVBUF), buffer);
	check(setsockopt(all, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &group, sizeof(group)) == 0);
	int udp = socket(AF_INET, SOCK_DGRAM, 0);
	bind_loopback(udp, AF_INET);
	need(!connect_to(udp, name_of(udp)));
	while (strlen(receive_text(bound)) != 6) /* other traffic of the machine's, until there is none */
		if (errno == EAGAIN)
			break;
	send_text(udp, "heard?");
	char text[100];
	ssize_t got = 0;
	for (bool heard = false; !heard && got >= 0;) {
		got = recv(bound, text, sizeof(text), 0);
		heard = got > 28 && !memcmp(text + 28, "heard?", 6);
	}
	check(got > 0);
	return verdict();
}
