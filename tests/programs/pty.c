// SPDX-License-Identifier: Apache-2.0
/*
 * Pseudo terminals with both ends here: modes, size, packet mode, locked, several files of one end.
 * As `session`: one that controls our session. As `odd`: masters without a slave, and exclusive
 * ones. As `unread`: lines, and half of one, in a terminal that keeps them together; packets; and
 * the last words of one that is closed. As `raw`: bytes in both directions.
 */
#include "program.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#define TIOCGPTLCK_ _IOR('T', 0x39, int)
#define TIOCGPKT_ _IOR('T', 0x38, int)
#define TIOCGEXCL_ _IOR('T', 0x40, int)

static int flag(int fd, unsigned long request)
{
	int value = -1;
	check_is(ioctl(fd, request, &value), 0);
	return value;
}

static char *take(int fd)
{
	char *text = calloc(1, 4096);
	if (read(fd, text, 4095) < 0)
		snprintf(text, 4096, "<%s>", strerrorname_np(errno));
	return text;
}

static void put(int fd, const char *text)
{
	need(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
}

/* What is written is there when poll(2) says so: it goes by way of a kernel thread. */
static void settle(int fd)
{
	for (int unread = 0; !unread; usleep(1000))
		need(!ioctl(fd, FIONREAD, &unread));
}

static void set_raw(int fd, unsigned keep)
{
	struct termios mode;
	need(!tcgetattr(fd, &mode));
	mode.c_lflag = keep;
	mode.c_oflag = mode.c_iflag = 0;
	mode.c_cc[VMIN] = 0;
	mode.c_cc[VINTR] = 'x';
	need(!tcsetattr(fd, TCSANOW, &mode));
}

static int check_session(void)
{
	int master, slave;
	need(!openpty(&master, &slave, NULL, NULL, NULL));
	need(getsid(0) == getpid() && !ioctl(slave, TIOCSCTTY, 0));
	need(tcgetpgrp(slave) == getpid());
	int own = open("/dev/tty", O_RDWR | O_NOCTTY);
	need(own >= 0);
	set_raw(slave, ISIG);
	signal(SIGINT, SIG_IGN);

	checkpoint();

	check_is(tcgetpgrp(slave), getpid());
	check_is(tcgetsid(slave), getpid());
	check_is(tcgetsid(own), getpid());
	put(own, "out");
	settle(master);
	check_text(take(master), "out");
	int again = open("/dev/tty", O_RDWR | O_NOCTTY);
	check(again >= 0, "%s", strerror(errno));
	return verdict();
}

static int check_odd(void)
{
	int lone, slave, pair[2], fresh = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
	need(!openpty(&lone, &slave, NULL, NULL, NULL) && !close(slave));
	need(fresh >= 0 && !fcntl(lone, F_SETFL, O_NONBLOCK));
	need(!openpty(&pair[0], &pair[1], NULL, NULL, NULL) && !ioctl(pair[1], TIOCEXCL));
	need(!ioctl(lone, TIOCEXCL));
	/* /dev/tty, of another terminal than the one that nobody has opened yet */
	int own[2];
	need(!openpty(&own[0], &own[1], NULL, NULL, NULL) && !ioctl(own[1], TIOCSCTTY, 0));
	need(open("/dev/tty", O_RDWR | O_NOCTTY) >= 0);
	char *name = strdup(ptsname(lone));

	checkpoint();

	check_is(flag(pair[1], TIOCGEXCL_), 1);
	check_is(flag(pair[0], TIOCGEXCL_), 0);
	check_is(flag(lone, TIOCGEXCL_), 1);
	check_text(take(lone), "<EIO>");
	check_text(take(fresh), "<EAGAIN>");
	slave = open(name, O_RDWR | O_NOCTTY);
	check(slave >= 0, "%s", strerror(errno));
	check_text(take(lone), "<EAGAIN>");
	return verdict();
}

/* Type a key at a time: what comes at once is echoed at once. */
static void type(int master, int slave, const char *keys)
{
	for (; *keys; keys++) {
		need(write(master, keys, 1) == 1);
		usleep(1000);
	}
	settle(slave);
}

static int check_raw(void)
{
	int master, slave;
	need(!openpty(&master, &slave, NULL, NULL, NULL));
	set_raw(slave, 0);
	put(slave, "to the master\n");
	put(master, "to the\nslave");
	settle(master);
	settle(slave);

	checkpoint();

	check_text(take(slave), "to the\nslave");
	check_text(take(master), "to the master\n");
	return verdict();
}

static int check_unread(void)
{
	int master, slave;
	struct termios mode, now;
	need(!openpty(&master, &slave, NULL, NULL, NULL) && !tcgetattr(slave, &mode));
	mode.c_cc[VEOL] = ';';
	need(!tcsetattr(slave, TCSANOW, &mode) && !fcntl(master, F_SETFL, O_NONBLOCK));
	need(!fcntl(slave, F_SETFL, O_NONBLOCK));
	/* A line, one that a part is read of, ended by EOF, by VEOL, nothing but EOF, with a newline
	   in it that is none and what would stop the terminal; and half of one. */
	type(master, slave, "one\nsecond\nthree\4four;\4fi\26\nve\26\23\n");
	check_text(take(slave), "one\n");
	char part[4] = "";
	need(read(slave, part, 3) == 3 && !strcmp(part, "sec"));
	type(master, slave, "sux");
	int packets[2], packet = 1, closed[2];
	need(!openpty(&closed[0], &closed[1], NULL, NULL, NULL));
	put(closed[1], "last words");
	settle(closed[0]);
	need(!close(closed[1]));
	need(!openpty(&packets[0], &packets[1], NULL, NULL, NULL));
	set_raw(packets[1], 0);
	need(!ioctl(packets[0], TIOCPKT, &packet));
	put(packets[1], "packet");
	put(packets[0], "to the\n\23slave");
	settle(packets[0]);
	settle(packets[1]);

	checkpoint();

	check_is(tcgetattr(slave, &now), 0);
	check(!memcmp(&mode, &now, sizeof(mode)));
	check_text(take(slave), "ond\n");
	check_text(take(slave), "three");
	check_text(take(slave), "four;");
	check_text(take(slave), "");
	check_text(take(slave), "fi\nve\23\n");
	check_text(take(slave), "<EAGAIN>");
	check_text(take(master), "one\r\nsecond\r\nthreefour;fi^\b^Jve^\b^S\r\nsux");
	type(master, slave, "\177\177ix\n");
	check_text(take(slave), "six\n");
	check_text(take(closed[0]), "last words");
	check_text(take(closed[0]), "<EIO>");
	char *got = take(packets[0]);
	check_is(got[0], TIOCPKT_DATA);
	check_text(got + 1, "packet");
	check_text(take(packets[1]), "to the\n\23slave");
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	const char *kind = argc > 2 ? argv[2] : "";
	if (!strcmp(kind, "odd"))
		return check_odd();
	if (!strcmp(kind, "unread"))
		return check_unread();
	if (*kind)
		return strcmp(kind, "session") ? check_raw() : check_session();
	int master, slave, other, other_slave, locked, packet = 1;
	struct winsize size = {31, 77, 5, 6}, now = {};
	struct termios mode, mode_now;
	need(!openpty(&master, &slave, NULL, NULL, &size));
	need(!openpty(&other, &other_slave, NULL, NULL, NULL));
	set_raw(slave, ISIG);
	need(!tcgetattr(slave, &mode));
	char *name = strdup(ttyname(slave));
	int again = open(name, O_WRONLY | O_NOCTTY | O_NONBLOCK), twin = dup(slave);
	need(again >= 0 && twin >= 0 && !fcntl(other, F_SETFL, O_NONBLOCK));
	need(!ioctl(other, TIOCPKT, &packet));
	need((locked = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)) >= 0);

	checkpoint();

	check_text(ttyname(slave), name);
	check_text(ptsname(master), name);
	check_is(tcgetattr(again, &mode_now), 0);
	check(!memcmp(&mode, &mode_now, sizeof(mode)));
	check_is(ioctl(master, TIOCGWINSZ, &now), 0);
	check(!memcmp(&size, &now, sizeof(size)));
	check_is(fcntl(again, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY | O_NONBLOCK);
	check_is(fcntl(slave, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR);
	check_is(fcntl(locked, F_GETFD), FD_CLOEXEC);
	check_is(flag(locked, TIOCGPTLCK_), 1);
	check_is(flag(master, TIOCGPTLCK_), 0);
	check_is(flag(other, TIOCGPKT_), 1);
	check_is(flag(master, TIOCGPKT_), 0);
	put(again, "out");
	settle(master);
	check_text(take(master), "out");
	put(master, "in");
	settle(slave);
	check_text(take(twin), "in");
	check_text(take(other), "<EAGAIN>");
	return verdict();
}
