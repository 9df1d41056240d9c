// SPDX-License-Identifier: Apache-2.0
/* Options of sockets, and that credentials are passed where that was asked for. */
#include "sockets.h"

static const struct {
	int option, value;
} plain[] = {
	{SO_PASSCRED, 1}, {SO_PASSSEC, 1},  {SO_SNDBUF, 30000}, {SO_RCVBUF, 40000},
	{SO_MARK, 7},	  {SO_PRIORITY, 3}, {SO_RCVLOWAT, 5},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct timeval limit = {3, 500000}, now;
	socklen_t size = sizeof(now);
	int before[lengthof(plain)], pair[2];
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	for (unsigned i = 0; i < lengthof(plain); i++) {
		set_option(pair[0], SOL_SOCKET, plain[i].option, plain[i].value);
		before[i] = option(pair[0], SOL_SOCKET, plain[i].option);
	}
	need(!setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)));

	checkpoint();

	for (unsigned i = 0; i < lengthof(plain); i++)
		check(option(pair[0], SOL_SOCKET, plain[i].option) == before[i], "option %d: %d was %d",
		      plain[i].option, option(pair[0], SOL_SOCKET, plain[i].option), before[i]);
	check_is(option(pair[1], SOL_SOCKET, SO_PASSCRED), 0);
	check_is(getsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &now, &size), 0);
	check_is(now.tv_sec, 3);
	check_is(now.tv_usec, 500000);

	char byte, control[100];
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof(control)};
	send_text(pair[1], "x");
	check_is(recvmsg(pair[0], &message, MSG_DONTWAIT), 1);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	check(header && header->cmsg_type == SCM_CREDENTIALS);
	if (header)
		check_is(((struct ucred *)CMSG_DATA(header))->pid, getpid());
	return verdict();
}
