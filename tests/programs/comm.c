// SPDX-License-Identifier: Apache-2.0
/* Names of threads, with what makes them hard to parse. */
#include "threads.h"
#include <sys/prctl.h>

static const char *names[] = {"main renamed", "a (b) c) 1 R 2", "fifteen letters", "", "\xc3\xa4\\ \t"};

static void set_up(int number)
{
	need(!prctl(PR_SET_NAME, names[number]));
}

static void check_up(int number)
{
	char name[16] = "?";
	check_is(prctl(PR_GET_NAME, name), 0);
	check_text(name, names[number]);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	checkpoint_threads(lengthof(names) - 1, set_up, check_up);
	return verdict();
}
