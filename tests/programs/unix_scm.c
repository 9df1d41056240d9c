// SPDX-License-Identifier: Apache-2.0
/* Descriptors in flight: sent, not received, closed here; a pipe's end and a file. */
#include "sockets.h"

static void send_fds(int socket, int one, int two)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = "";
	struct iovec part = {"fds", 3};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){CMSG_LEN(2 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(header), (int[]){one, two}, 2 * sizeof(int));
	need(sendmsg(socket, &message, 0) == 3);
}

static void receive_fds(int socket, int *fds)
{
	char text[10], control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec part = {text, sizeof(text)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof(control)};
	check_is(recvmsg(socket, &message, MSG_DONTWAIT), 3);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	check(header && header->cmsg_type == SCM_RIGHTS);
	if (header)
		memcpy(fds, CMSG_DATA(header), 2 * sizeof(int));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int pair[2], ends[2], received[2] = {-1, -1};
	char text[20] = "";
	int file = open(path("file"), O_RDWR | O_CREAT | O_TRUNC, 0644);
	need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) && !pipe(ends));
	need(write(file, "content", 7) == 7 && lseek(file, 3, SEEK_SET) == 3);
	send_fds(pair[0], ends[1], file);
	need(!close(ends[1]) && !close(file));

	checkpoint();

	receive_fds(pair[1], received);
	check_is(write(received[0], "through", 7), 7);
	check_is(read(ends[0], text, sizeof(text)), 7);
	check(!memcmp(text, "through", 7));
	check_is(read(received[1], text, sizeof(text)), 4);
	check(!memcmp(text, "tent", 4));
	return verdict();
}
