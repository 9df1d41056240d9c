// SPDX-License-Identifier: Apache-2.0
/* Watches of files: what is watched for, under which number. */
#include "program.h"
#include <sys/inotify.h>

static char buffer[4096] __attribute__((aligned(8)));

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct inotify_event *event = (struct inotify_event *)buffer;
	need(!mkdir(path("one"), 0755) && !mkdir(path("two"), 0755) && !mkdir(path("three"), 0755));
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	int one = inotify_add_watch(fd, path("one"), IN_CREATE);
	int two = inotify_add_watch(fd, path("two"), IN_DELETE);
	int three = inotify_add_watch(fd, path("three"), IN_CREATE | IN_DELETE | IN_ONLYDIR);
	need(one > 0 && two > 0 && three > 0 && !inotify_rm_watch(fd, two));
	need(read(fd, buffer, sizeof(buffer)) > 0); /* that the second was removed */

	checkpoint();

	check_is(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(fd, F_GETFD), FD_CLOEXEC);
	check_is(read(fd, buffer, sizeof(buffer)), -1);
	need(!mkdir(path("one/new"), 0755) && !rmdir(path("one/new")));
	check(read(fd, buffer, sizeof(buffer)) > 0);
	check_is(event->wd, one);
	check_is(event->mask & 0xfff, IN_CREATE);
	check_text(event->name, "new");
	check_is(read(fd, buffer, sizeof(buffer)), -1);
	need(!mkdir(path("three/new"), 0755) && !rmdir(path("three/new")));
	check(read(fd, buffer, sizeof(buffer)) > (long)sizeof(*event) + 16);
	check_is(event->wd, three);
	return verdict();
}
