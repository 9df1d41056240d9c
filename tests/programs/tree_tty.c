// SPDX-License-Identifier: Apache-2.0
/*
 * A terminal of their own: the root has the master, a child leads the session that the slave
 * controls, a group of that session is in the foreground. What is typed arrives, ^C hits the group.
 * With the argument `tty`, the child has it open as /dev/tty, too.
 */
#include "tree.h"
#include <sys/ioctl.h>
#include <termios.h>

static int master;
static volatile int hit;

static void count(int unused signo)
{
	hit++;
}

static void foreground(int unused number)
{
	signal(SIGINT, count);
	signal(SIGTTOU, SIG_IGN);
	need(!setpgid(0, 0) && !tcsetpgrp(0, getpid()));
	signal(SIGTTOU, SIG_DFL);
	arrived();
	check_is(tcgetpgrp(0), getpid());
	while (!hit)
		usleep(1000);
}

static void shell(int by_name)
{
	char line[8] = "";
	int slave;
	need(setsid() == getpid());
	need((slave = open(ptsname(master), O_RDWR)) >= 0);
	need(dup2(slave, 0) == 0 && dup2(slave, 1) == 1 && dup2(slave, 2) == 2 && !close(slave));
	int tty = by_name ? open("/dev/tty", O_RDWR | O_CLOEXEC) : dup(0);
	need(tty >= 0 && !close(master));
	pid_t job = child(foreground, 0);
	arrived();
	signal(SIGTTOU, SIG_IGN);
	check_is(tcgetsid(0), getpid());
	check_is(tcgetsid(tty), getpid());
	check_is(tcgetpgrp(tty), job);
	check_is(write(tty, "up\n", 3), 3);
	collect(job);
	check_is(tcsetpgrp(tty, getpgrp()), 0);
	check_is(read(tty, line, sizeof(line)), 5);
	check_text(line, "down\n");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char line[8] = "";
	master = posix_openpt(O_RDWR | O_NOCTTY);
	need(master >= 0 && !grantpt(master) && !unlockpt(master));
	pid_t pid = child(shell, argc > 2);
	all_arrived(2);

	checkpoint();

	check_is(read(master, line, 4), 4);
	check_text(line, "up\r\n");
	check_is(write(master, "\003", 1), 1);
	check_is(write(master, "down\n", 5), 5);
	collect(pid);
	return verdict();
}
