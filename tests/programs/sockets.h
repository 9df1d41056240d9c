// SPDX-License-Identifier: Apache-2.0
/* What socket programs share: options set and compared, messages sent and received, addresses. */
#ifndef SOCKETS_H
#define SOCKETS_H
#include "program.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

union address {
	struct sockaddr any;
	struct sockaddr_un un;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static unused void set_option(int fd, int level, int option, int value)
{
	need(!setsockopt(fd, level, option, &value, sizeof(value)));
}

static unused int option(int fd, int level, int option)
{
	int value = -1;
	socklen_t size = sizeof(value);
	return getsockopt(fd, level, option, &value, &size) ? -errno : value;
}

static unused void send_text(int fd, const char *text)
{
	need(send(fd, text, strlen(text), MSG_DONTWAIT) == (ssize_t)strlen(text));
}

/* One receive: the text, "" at the end of a stream, the error's name in brackets. Not freed. */
static unused char *receive_text(int fd)
{
	char *text = calloc(1, 4096);
	if (recv(fd, text, 4095, MSG_DONTWAIT) < 0)
		snprintf(text, 4096, "<%s>", strerrorname_np(errno));
	return text;
}

/* An address in the file system, or abstract if the name begins with '@', unique by our pid. */
static unused socklen_t unix_address(union address *address, const char *name)
{
	*address = (union address){.un.sun_family = AF_UNIX};
	if (name[0] != '@') {
		snprintf(address->un.sun_path, sizeof(address->un.sun_path), "%s/%s", dir, name);
		return sizeof(address->un);
	}
	int size = snprintf(address->un.sun_path, sizeof(address->un.sun_path), "@%s-%d", name, getpid());
	address->un.sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + size;
}

static unused int unix_socket(int type, const char *name)
{
	union address address;
	socklen_t size = unix_address(&address, name);
	int fd = socket(AF_UNIX, type, 0);
	if (name[0] != '@')
		unlink(address.un.sun_path);
	need(fd >= 0 && !bind(fd, &address.any, size));
	return fd;
}

static unused int unix_connect(int fd, const char *name)
{
	union address address;
	socklen_t size = unix_address(&address, name);
	return connect(fd, &address.any, size);
}

/* Bind to the loopback of that family, at a port that the kernel chooses. */
static unused void bind_loopback(int fd, int family)
{
	union address address = {.v4 = {.sin_family = family}};
	if (family == AF_INET)
		address.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		address.v6.sin6_addr = in6addr_loopback;
	need(!bind(fd, &address.any, family == AF_INET ? sizeof(address.v4) : sizeof(address.v6)));
}

static unused union address name_of(int fd)
{
	union address address = {};
	socklen_t size = sizeof(address);
	getsockname(fd, &address.any, &size);
	return address;
}

static unused union address peer_of(int fd)
{
	union address address = {};
	socklen_t size = sizeof(address);
	getpeername(fd, &address.any, &size);
	return address;
}

static unused int connect_to(int fd, union address address)
{
	return connect(fd, &address.any,
		       address.any.sa_family == AF_INET ? sizeof(address.v4) : sizeof(address.v6));
}

static unused bool same_address(union address a, union address b)
{
	return !memcmp(&a, &b, sizeof(a));
}

#endif
