// SPDX-License-Identifier: Apache-2.0
/*
 * Watches of files: what is watched for, under which number; of what was renamed since, too. As
 * `link`: of a link itself, and with flags. As `deleted`: of an open file that has no name any more.
 */
#include "program.h"
#include <sys/inotify.h>

static char buffer[4096] __attribute__((aligned(8)));
static struct inotify_event *event = (struct inotify_event *)buffer;

static void check_event(int fd, int wd, unsigned mask, const char *name)
{
	memset(buffer, 0, sizeof(buffer));
	check(read(fd, buffer, sizeof(buffer)) > 0, "%s", strerror(errno));
	check_is(event->wd, wd);
	check_is(event->mask & 0xfff, mask);
	check_text(event->len ? event->name : "", name);
	check_is(read(fd, buffer, sizeof(buffer)), -1);
}

static int check_deleted(void)
{
	int file = open(path("file"), O_RDWR | O_CREAT, 0644);
	int fd = inotify_init1(IN_NONBLOCK), wd = inotify_add_watch(fd, path("file"), IN_MODIFY);
	need(file >= 0 && wd > 0 && !unlink(path("file")));
	need(write(file, "text", 4) == 4 && read(fd, buffer, sizeof(buffer)) > 0);

	checkpoint();

	check_is(read(fd, buffer, sizeof(buffer)), -1);
	check_is(write(file, "more", 4), 4);
	check_event(fd, wd, IN_MODIFY, "");
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 2 && !strcmp(argv[2], "deleted"))
		return check_deleted();
	need(!mkdir(path("one"), 0755) && !mkdir(path("two"), 0755) && !mkdir(path("three"), 0755));
	need(!symlink("nowhere", path("link")) && !mkdir(path("five"), 0755) &&
	     !mkdir(path("four"), 0755));
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), empty = inotify_init();
	int one = inotify_add_watch(fd, path("one"), IN_CREATE);
	int two = inotify_add_watch(fd, path("two"), IN_DELETE);
	int three = inotify_add_watch(fd, path("three"), IN_CREATE | IN_DELETE | IN_ONLYDIR);
	bool link = argc > 2;
	const char *once = link ? path("link") : path("four");
	int four = inotify_add_watch(fd, once, IN_ATTRIB | IN_DONT_FOLLOW | (link ? IN_ONESHOT : 0));
	int five = inotify_add_watch(fd, path("five"), IN_ATTRIB | (link ? IN_EXCL_UNLINK : 0));
	need(one > 0 && two > 0 && three > 0 && four > 0 && five > 0 && empty >= 0);
	need(!inotify_rm_watch(fd, two) && !rename(path("five"), path("six")));
	need(read(fd, buffer, sizeof(buffer)) > 0); /* that the second was removed */
	char *before = proc_line("fdinfo/3", "inotify wd:5");

	checkpoint();

	check_text(proc_line("fdinfo/3", "inotify wd:5"), before);
	check(strstr(before, link ? "mask:4000004" : "mask:4 "));
	check_is(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(empty, F_GETFL) & O_NONBLOCK, 0);
	check_is(fcntl(fd, F_GETFD), FD_CLOEXEC);
	check_is(read(fd, buffer, sizeof(buffer)), -1);
	need(!mkdir(path("one/new"), 0755) && !rmdir(path("one/new")));
	check_event(fd, one, IN_CREATE, "new");
	need(!mkdir(path("three/new"), 0755));
	check_event(fd, three, IN_CREATE, "new");
	need(!rmdir(path("three/new")));
	check_event(fd, three, IN_DELETE, "new");
	need(!lchown(once, 1, 1));
	check(read(fd, buffer, sizeof(buffer)) > 0);
	check_is(event->wd, four);
	check_is(event->mask & IN_ALL_EVENTS, IN_ATTRIB);
	need(!lchown(once, 0, 0));
	check_is(read(fd, buffer, sizeof(buffer)), link ? -1 : (int)sizeof(*event));
	need(!chmod(path("six"), 0700));
	check_event(fd, five, IN_ATTRIB, "");
	int next = inotify_add_watch(empty, path("one"), IN_OPEN);
	check_is(next, 1);
	check(inotify_add_watch(fd, path("one/.."), IN_OPEN) > five);
	return verdict();
}
