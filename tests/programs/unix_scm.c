// SPDX-License-Identifier: Apache-2.0
/*
 * Descriptors in flight: sent, not received, closed here; a pipe's end and a file. As `stream`: at
 * which byte they come. As `nested`: a socket in flight, with another one in it, and a file that
 * is open here as well. As `senders`: who sent it, told and not told, here and gone. As `epoll`,
 * `pidfd`: what is not dumped.
 */
#include "sockets.h"
#include <sys/epoll.h>
#include <sys/wait.h>

enum { ONE = CMSG_SPACE(sizeof(int)), TWO = CMSG_SPACE(2 * sizeof(int)) };

static void send_fds(int socket, const char *text, int count, const int *fds)
{
	char control[TWO] = "";
	struct iovec part = {(void *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = CMSG_SPACE(count * sizeof(int))};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(header), fds, count * sizeof(int));
	need(sendmsg(socket, &message, 0) == (ssize_t)strlen(text));
}

/* Receive up to size bytes: how many descriptors came with them, and the text. */
static int receive_fds(int socket, size_t size, const char *expected, int *fds)
{
	char text[100] = "", control[TWO];
	struct iovec part = {text, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT);
	check(got >= 0, "%s", strerror(errno));
	check_text(text, expected);
	struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS)
		return 0;
	int count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fds, CMSG_DATA(header), count * sizeof(int));
	return count;
}

static int check_stream(void)
{
	int pair[2], ends[2], received[2] = {-1, -1};
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !pipe(ends));
	send_text(pair[0], "plain");
	send_fds(pair[0], "with", 1, &ends[1]);
	send_text(pair[0], "behind");
	send_fds(pair[0], "two", 2, ends);
	need(!close(ends[1]));

	checkpoint();

	check_is(receive_fds(pair[1], 5, "plain", received), 0);
	check_is(receive_fds(pair[1], 2, "wi", received), 1);
	check_is(write(received[0], "x", 1), 1);
	check_is(receive_fds(pair[1], 2, "th", received), 0);
	check_is(receive_fds(pair[1], 6, "behind", received), 0);
	check_is(receive_fds(pair[1], 50, "two", received), 2);
	char text[2];
	check_is(read(received[0], text, 2), 1);
	check_text(receive_text(pair[1]), "<EAGAIN>");
	return verdict();
}

static int check_nested(void)
{
	int outer[2], middle[2], inner[2], received[2] = {-1, -1};
	int file = open(path("file"), O_RDWR | O_CREAT | O_TRUNC, 0644);
	need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, outer) && write(file, "content", 7) == 7);
	need(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, middle));
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
	send_text(middle[0], "for the middle");
	send_fds(outer[0], "middle, twice", 2, (int[]){middle[1], middle[1]});
	send_fds(outer[0], "file", 1, &file);
	send_fds(outer[0], "inner", 1, &inner[1]);
	need(!close(middle[1]) && !close(inner[1]));

	checkpoint();

	check_is(receive_fds(outer[1], 50, "middle, twice", received), 2);
	check_is(fcntl(received[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	send_text(middle[0], "!");
	check_text(receive_text(received[1]), "for the middle!");
	send_text(received[0], "answer");
	check_text(receive_text(middle[0]), "answer");
	check_is(receive_fds(outer[1], 50, "file", received), 1);
	check_is(lseek(received[0], 3, SEEK_SET), 3);
	check_is(lseek(file, 0, SEEK_CUR), 3);
	check_is(receive_fds(outer[1], 50, "inner", received), 1);
	check_is(fcntl(received[0], F_GETFL) & O_NONBLOCK, 0);
	need(!close(received[0]));
	check_text(receive_text(inner[0]), "");
	return verdict();
}

enum { FROM = CMSG_SPACE(sizeof(struct ucred)) };

/* Send with a sender named, if there is one, and a descriptor, if that is not -1. */
static void send_from(int socket, const char *text, const struct ucred *from, int fd)
{
	char control[FROM + ONE] = "";
	struct iovec part = {(void *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = FROM * !!from + ONE * (fd >= 0)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (from) {
		*header = (struct cmsghdr){CMSG_LEN(sizeof(*from)), SOL_SOCKET, SCM_CREDENTIALS};
		memcpy(CMSG_DATA(header), from, sizeof(*from));
		header = CMSG_NXTHDR(&message, header);
	}
	if (fd >= 0) {
		*header = (struct cmsghdr){CMSG_LEN(sizeof(fd)), SOL_SOCKET, SCM_RIGHTS};
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	}
	need(sendmsg(socket, &message, 0) == (ssize_t)strlen(text));
}

/* Receive: `text from PID UID GID`, and ` +N` for N descriptors, which are closed. Not freed. */
static char *receive_from(int socket)
{
	char text[100] = "", control[FROM + TWO], *told;
	struct iovec part = {text, sizeof(text) - 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct ucred from = {-1, -1, -1};
	int fds[2], count = 0;
	if (recvmsg(socket, &message, MSG_DONTWAIT) < 0)
		return (char *)strerrorname_np(errno);
	for (struct cmsghdr *at = CMSG_FIRSTHDR(&message); at; at = CMSG_NXTHDR(&message, at)) {
		if (at->cmsg_type == SCM_CREDENTIALS)
			memcpy(&from, CMSG_DATA(at), sizeof(from));
		if (at->cmsg_type == SCM_RIGHTS)
			memcpy(fds, CMSG_DATA(at), at->cmsg_len - CMSG_LEN(0)), count++, close(fds[0]);
	}
	need(asprintf(&told, "%s from %d %d %d%s", text, from.pid, from.uid, from.gid,
		      count ? " +" : "") > 0);
	return told;
}

static char *from(const char *text, const struct ucred *who, const char *more)
{
	char *told;
	need(asprintf(&told, "%s from %d %d %d%s", text, who->pid, who->uid, who->gid, more) > 0);
	return told;
}

static int check_senders(void)
{
	static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
	int told[3][2], not_told[3][2], ends[2], child;
	need(!pipe(ends));
	struct ucred us = {getpid(), getuid(), getgid()}, odd = {getpid(), 12, 34}, init = {1, 5, 6},
		     nobody = {0, 65534, 65534}, dead = us;
	for (int i = 0; i < 3; i++) {
		need(!socketpair(AF_UNIX, types[i], 0, told[i]));
		need(!socketpair(AF_UNIX, types[i], 0, not_told[i]));
		send_text(told[i][0], "from before");
		set_option(told[i][1], SOL_SOCKET, SO_PASSCRED, 1);
		send_text(told[i][0], "us");
		send_from(told[i][0], "odd", &odd, -1);
		send_from(told[i][0], "odd, too", &odd, ends[0]);
		send_from(told[i][0], "init", &init, -1);
		send_text(not_told[i][0], "nobody");
		send_from(not_told[i][0], "init", &init, ends[1]);
	}
	if (!(child = fork())) {
		for (int i = 0; i < 3; i++) {
			send_text(told[i][0], "dead");
			send_from(not_told[i][0], "dead", &(struct ucred){getpid(), 0, 0}, ends[0]);
		}
		_exit(0);
	}
	need(child > 0 && waitpid(child, NULL, 0) == child);
	dead.pid = child;

	checkpoint();

	for (int i = 0; i < 3; i++) {
		check_text(receive_from(told[i][1]), from("from before", &nobody, ""));
		check_text(receive_from(told[i][1]), from("us", &us, ""));
		/* Of one sender, a stream joins what it can. */
		if (i)
			check_text(receive_from(told[i][1]), from("odd", &odd, ""));
		check_text(receive_from(told[i][1]), from(i ? "odd, too" : "oddodd, too", &odd, " +"));
		check_text(receive_from(told[i][1]), from("init", &init, ""));
		check_text(receive_from(told[i][1]), from("dead", &dead, ""));
		check_text(receive_from(told[i][1]), "EAGAIN");
		check_is(option(not_told[i][1], SOL_SOCKET, SO_PASSCRED), 0);
		set_option(not_told[i][1], SOL_SOCKET, SO_PASSCRED, 1);
		check_text(receive_from(not_told[i][1]), from("nobody", &nobody, ""));
		check_text(receive_from(not_told[i][1]), from("init", &init, " +"));
		check_text(receive_from(not_told[i][1]), from("dead", &dead, " +"));
	}
	return verdict();
}

static int check_refused(bool pidfd)
{
	int pair[2], epoll = epoll_create1(0);
	need(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	if (pidfd) {
		int on = 1, SO_PASSPIDFD_ = 76;
		if (setsockopt(pair[1], SOL_SOCKET, SO_PASSPIDFD_, &on, sizeof(on)))
			skip("no SO_PASSPIDFD");
		send_text(pair[0], "text");
	} else {
		send_fds(pair[0], "text", 1, &epoll);
		need(!close(epoll));
	}

	checkpoint();

	check_text(receive_text(pair[1]), "text");
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	const char *mode = argc > 2 ? argv[2] : "";
	if (!strcmp(mode, "stream"))
		return check_stream();
	if (!strcmp(mode, "nested"))
		return check_nested();
	if (!strcmp(mode, "senders"))
		return check_senders();
	if (*mode)
		return check_refused(!strcmp(mode, "pidfd"));
	int pair[2], ends[2], received[2] = {-1, -1};
	char text[20] = "";
	int file = open(path("file"), O_RDWR | O_CREAT | O_TRUNC, 0644);
	need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) && !pipe(ends));
	need(write(file, "content", 7) == 7 && lseek(file, 3, SEEK_SET) == 3);
	send_fds(pair[0], "fds", 2, (int[]){ends[1], file});
	need(!close(ends[1]) && !close(file));

	checkpoint();

	check_is(receive_fds(pair[1], 50, "fds", received), 2);
	check_is(write(received[0], "through", 7), 7);
	check_is(read(ends[0], text, sizeof(text)), 7);
	check(!memcmp(text, "through", 7));
	check_is(read(received[1], text, sizeof(text)), 4);
	check(!memcmp(text, "tent", 4));
	return verdict();
}
