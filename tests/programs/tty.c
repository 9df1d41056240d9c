// SPDX-License-Identifier: Apache-2.0
/* A shell's job: its terminal is on all three descriptors and controls it; the settings are kept. */
#include "program.h"
#include <sys/ioctl.h>
#include <termios.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct termios before, now;
	struct winsize size = {31, 77, 0, 0}, size_now;
	char name[100], name_now[100];
	int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
	need(tty >= 0 && isatty(0) && isatty(1) && isatty(2));
	need(!tcgetattr(0, &before));
	before.c_lflag &= ~(ECHO | ECHOE);
	before.c_cc[VQUIT] = 2; /* not a letter: commands are typed here */
	need(!tcsetattr(0, TCSANOW, &before) && !ioctl(0, TIOCSWINSZ, &size));
	need(!ttyname_r(0, name, sizeof(name)));

	checkpoint();

	for (int fd = 0; fd < 3; fd++) {
		check_is(ttyname_r(fd, name_now, sizeof(name_now)), 0);
		check_text(name_now, name);
	}
	check_is(tcgetattr(0, &now), 0);
	check_is(now.c_lflag, before.c_lflag);
	check(!memcmp(now.c_cc, before.c_cc, sizeof(now.c_cc)));
	check_is(ioctl(tty, TIOCGWINSZ, &size_now), 0);
	check(!memcmp(&size, &size_now, sizeof(size)));
	check_is(tcgetsid(tty), getsid(0));
	check_is(write(1, "", 0), 0);
	return verdict();
}
