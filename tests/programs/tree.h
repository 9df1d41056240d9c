// SPDX-License-Identifier: Apache-2.0
/*
 * What programs of several processes share. The root begins, forks with `child`, says checkpoint()
 * when all have arrived, and collects the others' verdicts when they have ended:
 *
 *	static void worker(int number)
 *	{
 *		...
 *		arrived();		// and waits, like checkpoint(), for the restore
 *		check(...);
 *	}
 *
 *	pid_t pid = child(worker, 1);
 *	all_arrived(1);
 *	checkpoint();
 *	collect(pid);
 *	return verdict();
 */
#ifndef TREE_H
#define TREE_H
#include "program.h"
#include <sys/wait.h>

static int arrivals[2] = {-1, -1};

static unused void end(void)
{
	char name[32];
	snprintf(name, sizeof(name), "failed.%d", getpid());
	if (failures[0])
		tell(name, failures);
	_exit(failures[0] != 0);
}

/* Have a new process do this, and tell what it has found out. The first fork makes the root one. */
static unused pid_t child(void (*run)(int), int number)
{
	if (arrivals[0] < 0)
		need(!pipe2(arrivals, O_CLOEXEC));
	pid_t pid = fork();
	need(pid >= 0);
	if (!pid) {
		run(number);
		end();
	}
	return pid;
}

/* In a child: it is ready. */
static unused void here(void)
{
	need(write(arrivals[1], "", 1) == 1);
	close(arrivals[0]);
	close(arrivals[1]);
}

static unused void await_file(const char *name)
{
	struct stat st;
	char *file = path(name);
	while (stat(file, &st))
		usleep(5000);
	free(file);
}

static unused void await_go(void)
{
	await_file("go");
}

/* In a child: what checkpoint() is in the root. */
static unused void arrived(void)
{
	here();
	await_go();
}

/* In the root: wait until so many are ready. */
static unused void all_arrived(int count)
{
	char byte;
	while (count--)
		need(read(arrivals[0], &byte, 1) == 1);
	close(arrivals[0]);
	close(arrivals[1]);
}

/* Wait for a child's end and take over what it has found out. */
static unused void collect(pid_t pid)
{
	char name[32];
	int status = -1;
	check_is(waitpid(pid, &status, 0), pid);
	snprintf(name, sizeof(name), "failed.%d", pid);
	const char *told = slurp(path(name));
	if (*told)
		fail(__LINE__, "a child", "%s", told);
	else
		check_is(status, 0);
}

/* The letter of /proc/PID/stat. */
static unused char state_of(pid_t pid)
{
	char name[32];
	snprintf(name, sizeof(name), "/proc/%d/stat", pid);
	char *text = slurp(name), *end = strrchr(text, ')');
	return end ? end[2] : 0;
}

static unused void await_state(pid_t pid, char state)
{
	while (state_of(pid) != state)
		usleep(1000);
}
#endif
