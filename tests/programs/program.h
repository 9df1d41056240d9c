// SPDX-License-Identifier: Apache-2.0
/*
 * What every test program shares.
 *
 * A program reaches a state, stands at checkpoint() while it is dumped and restored, and then
 * checks the state itself:
 *
 *	int main(int argc, char **argv)
 *	{
 *		begin(argc, argv);
 *		int fd = eventfd(7, 0);
 *		need(fd >= 0);
 *		checkpoint();
 *		check_is(read_count(fd), 7);
 *		return verdict();
 *	}
 *
 * It talks with the harness through files in the directory argv[1]: it makes `ready`, waits for
 * `go`, leaves `verdict`. Files, because nothing of them stays open while we are dumped, and polling,
 * because a wait for a signal or on a descriptor would be one more state in every program.
 */
#ifndef PROGRAM_H
#define PROGRAM_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define lengthof(array) (sizeof(array) / sizeof((array)[0]))
#define unused __attribute__((unused))

static const char *dir;
static char failures[4096];

/* A path in the harness's directory; not freed. */
static unused char *path(const char *name)
{
	char *result;
	return asprintf(&result, "%s/%s", dir, name) < 0 ? NULL : result;
}

/* Make the file `name` with this text, all at once for those who look. */
static unused void tell(const char *name, const char *text)
{
	char *final = path(name), draft[PATH_MAX];
	snprintf(draft, sizeof(draft), "%s/.draft.%d", dir, getpid());
	int fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) || rename(draft, final))
		_exit(99);
	free(final);
}

/* Leave at once with this verdict: `skip: why`, or `setup: what`. */
static unused __attribute__((format(printf, 1, 2), noreturn)) void leave(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(failures, sizeof(failures), format, args);
	va_end(args);
	tell("verdict", failures);
	_exit(2);
}

#define skip(...) leave("skip: " __VA_ARGS__)
#define need(cond) \
	((cond) ? (void)0 : leave("setup: line %d: %s: %s", __LINE__, #cond, strerror(errno)))

static unused __attribute__((format(printf, 3, 4))) void fail(int line, const char *what,
							      const char *format, ...)
{
	size_t used = strlen(failures);
	va_list args;
	used += snprintf(failures + used, sizeof(failures) - used, "line %d: %s: ", line, what);
	if (used >= sizeof(failures) - 2)
		return;
	va_start(args, format);
	used += vsnprintf(failures + used, sizeof(failures) - used, format, args);
	va_end(args);
	if (used < sizeof(failures) - 2)
		strcat(failures, "\n");
}

/* Check once restored; every failure is told, with what the format adds. From one thread only. */
#define check(cond, ...) ((cond) ? (void)0 : fail(__LINE__, #cond, "" __VA_ARGS__))
#define check_is(actual, expected) \
	do { \
		long long is_ = (long long)(actual), expected_ = (long long)(expected); \
		check_(is_ == expected_, #actual, "is %lld (%#llx), expected %lld (%#llx)", is_, is_, \
		       expected_, expected_); \
	} while (0)
#define check_text(actual, expected) \
	do { \
		const char *is_ = (actual), *expected_ = (expected); \
		check_(!strcmp(is_, expected_), #actual, "is '%s', expected '%s'", is_, expected_); \
	} while (0)
#define check_(cond, what, ...) ((cond) ? (void)0 : fail(__LINE__, what, __VA_ARGS__))

static unused void begin(int argc, char **argv)
{
	if (argc < 2)
		exit(99);
	dir = argv[1];
}

/* Say that the state is reached and wait until told to check it: here we are dumped. */
static unused void checkpoint(void)
{
	struct stat st;
	char *go = path("go");
	tell("ready", "");
	while (stat(go, &st))
		usleep(5000);
	free(go);
}

static unused int verdict(void)
{
	tell("verdict", failures[0] ? failures : "ok");
	return failures[0] != 0;
}

/* A pattern that differs at every byte and every seed, so that a shifted or swapped page shows. */
static inline unsigned char pattern(size_t i, unsigned seed)
{
	return (i * 31 + (i >> 8) * 17 + (i >> 16) * 7 + seed * 101 + 1) & 0xff;
}

static unused void fill(void *buffer, size_t size, unsigned seed)
{
	for (size_t i = 0; i < size; i++)
		((volatile unsigned char *)buffer)[i] = pattern(i, seed);
}

/* Index of the first byte that differs from fill(), or -1. */
static unused long differs(const void *buffer, size_t size, unsigned seed)
{
	for (size_t i = 0; i < size; i++)
		if (((volatile unsigned char *)buffer)[i] != pattern(i, seed))
			return i;
	return -1;
}

static unused bool all_zero(const void *buffer, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (((volatile unsigned char *)buffer)[i])
			return false;
	return true;
}

/* The whole of a file, as a string that is not freed; "" when it cannot be read. */
static unused char *slurp(const char *name)
{
	size_t size = 1 << 20;
	char *text = calloc(1, size);
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t got, used = 0;
	if (fd < 0)
		return text;
	while ((got = read(fd, text + used, size - 1 - used)) > 0)
		used += got;
	close(fd);
	return text;
}

/* The line of /proc/self/<file> that begins with `key`, with the newline cut; "" if none. */
static unused char *proc_line(const char *file, const char *key)
{
	char name[64], *text, *line, *rest;
	snprintf(name, sizeof(name), "/proc/self/%s", file);
	text = slurp(name);
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		if (!strncmp(line, key, strlen(key)))
			return line;
	return "";
}

static unused int64_t now_ns(clockid_t clock)
{
	struct timespec ts;
	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

#endif
