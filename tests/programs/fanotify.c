// SPDX-License-Identifier: Apache-2.0
/*
 * Marks of fanotify: on a directory, a file and a mount. As `filesystem`: on a whole one, and events
 * by file handle. As `permission`: those that somebody waits for.
 */
#include "program.h"
#include <sys/fanotify.h>

static char buffer[4096] __attribute__((aligned(8)));
static struct fanotify_event_metadata *event = (struct fanotify_event_metadata *)buffer;

static int group(unsigned flags, unsigned event_flags)
{
	int fd = fanotify_init(flags | FAN_NONBLOCK, event_flags);
	if (fd < 0)
		skip("no fanotify: %s", strerror(errno));
	return fd;
}

/* All that other processes do is to be seen as well, so look only for what we do. */
static bool seen(int fd, unsigned long long mask, const char *name)
{
	bool found = false;
	for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;)
		for (struct fanotify_event_metadata *one = event; FAN_EVENT_OK(one, got);
		     one = FAN_EVENT_NEXT(one, got)) {
			char link[64], target[PATH_MAX] = "";
			snprintf(link, sizeof(link), "/proc/self/fd/%d", one->fd);
			if (one->fd >= 0 && readlink(link, target, sizeof(target) - 1) > 0)
				close(one->fd);
			found |= one->pid == getpid() && one->mask & mask && !strcmp(target, name);
		}
	return found;
}

static void touch(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT, 0644);
	need(fd >= 0 && write(fd, "x", 1) == 1 && !close(fd));
}

/* What fdinfo says of a group. */
static char *marks(int fd)
{
	char name[40];
	snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", fd);
	return strstr(slurp(name), "fanotify");
}

static unsigned lines(const char *text)
{
	unsigned count = 0;
	for (; *text; text++)
		count += *text == '\n';
	return count;
}

static int check_permission(void)
{
	int fd = group(FAN_CLASS_CONTENT, O_RDONLY);
	touch(path("file"));
	need(!fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, path("file")));
	checkpoint();
	need(!fanotify_mark(fd, FAN_MARK_FLUSH, 0, AT_FDCWD, NULL));
	return verdict();
}

static int check_filesystem(void)
{
	int fd = group(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME, 0);
	need(!fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_DELETE, AT_FDCWD, "/dev"));
	need(!fanotify_mark(fd, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, dir));
	char *before = marks(fd);

	checkpoint();

	check_is(lines(marks(fd)), 3);
	check_text(marks(fd), before);
	need(!mkdir(path("new"), 0755) && !rmdir(path("new")));
	bool found = false;
	for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;)
		found |= !!memmem(buffer, got, "new", 4);
	check(found);
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 2)
		return strcmp(argv[2], "permission") ? check_filesystem() : check_permission();
	need(!mkdir(path("one"), 0755) && !mkdir(path("two"), 0755));
	touch(path("one/ignored"));
	touch(path("one/seen"));
	int fd = group(FAN_CLASS_NOTIF | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC);
	int other = group(FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE, O_RDWR | O_LARGEFILE);
	need(!fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, path("one")));
	need(!fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY,
			    FAN_MODIFY, AT_FDCWD, path("one/ignored")));
	need(!fanotify_mark(other, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD, "/dev"));
	char *before = marks(fd), *others = marks(other);

	checkpoint();

	check_text(marks(fd), before);
	check_text(marks(other), others);
	check_is(fcntl(fd, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(read(fd, buffer, sizeof(buffer)), -1);
	touch(path("one/ignored"));
	check(!seen(fd, FAN_MODIFY, path("one/ignored")));
	touch(path("one/seen"));
	check(seen(fd, FAN_MODIFY, path("one/seen")));
	char name[40];
	snprintf(name, sizeof(name), "/dev/ckpt-test-%d", getpid());
	touch(name);
	check(seen(other, FAN_CLOSE_WRITE, name));
	unlink(name);
	return verdict();
}
