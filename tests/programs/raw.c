// SPDX-License-Identifier: Apache-2.0
/* Raw internet sockets: protocol, addresses, headers, filters; as `connected`, peer and checksum. */
#include "sockets.h"
#include <linux/icmp.h>
#include <linux/icmpv6.h>

static int raw(int family, int type, int protocol)
{
	int fd = socket(family, type, protocol);
	if (fd < 0)
		skip("no raw sockets: %s", strerror(errno));
	return fd;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int icmp = raw(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP);
	int bound = raw(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_UDP);
	int own = raw(AF_INET, SOCK_RAW, IPPROTO_RAW), connected = raw(AF_INET, SOCK_RAW, 253);
	int icmp6 = raw(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), six = raw(AF_INET6, SOCK_RAW, 254);
	struct icmp_filter filter = {~(1U << ICMP_ECHOREPLY)}, filter_now = {};
	unsigned filter6[8] = {1, 2, 3, 4, 5, 6, 7, 8}, filter6_now[8] = {};
	socklen_t size = sizeof(filter), size6 = sizeof(filter6);
	need(!setsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter, size));
	need(!setsockopt(icmp6, IPPROTO_ICMPV6, 1, filter6, size6));
	union address here = {.v4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}};
	need(!bind(bound, &here.any, sizeof(here.v4)));
	if (argc > 2) {
		need(!connect_to(connected, here));
		set_option(six, IPPROTO_IPV6, IPV6_CHECKSUM, 2);
	}
	set_option(bound, IPPROTO_IP, IP_HDRINCL, 1);
	set_option(bound, IPPROTO_IP, IP_NODEFRAG, 1);
	set_option(bound, SOL_SOCKET, SO_BROADCAST, 1);
	union address bound_to = name_of(bound), peer = peer_of(connected);

	checkpoint();

	check_is(fcntl(icmp, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(bound, F_GETFD), FD_CLOEXEC);
	check_is(option(icmp, SOL_SOCKET, SO_PROTOCOL), IPPROTO_ICMP);
	check_is(option(six, SOL_SOCKET, SO_PROTOCOL), 254);
	check_is(option(own, IPPROTO_IP, IP_HDRINCL), 1);
	check_is(option(bound, IPPROTO_IP, IP_HDRINCL), 1);
	check_is(option(bound, IPPROTO_IP, IP_NODEFRAG), 1);
	check_is(option(icmp, IPPROTO_IP, IP_HDRINCL), 0);
	check_is(option(bound, SOL_SOCKET, SO_BROADCAST), 1);
	check_is(option(six, IPPROTO_IPV6, IPV6_CHECKSUM), argc > 2 ? 2 : -1);
	check_is(getsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter_now, &size), 0);
	check_is(filter_now.data, filter.data);
	check_is(getsockopt(icmp6, IPPROTO_ICMPV6, 1, filter6_now, &size6), 0);
	check(!memcmp(filter6, filter6_now, sizeof(filter6)));
	check(same_address(name_of(bound), bound_to));
	check(same_address(peer_of(connected), peer));
	if (argc > 2)
		send_text(connected, "nobody hears it");
	return verdict();
}
