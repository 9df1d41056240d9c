// SPDX-License-Identifier: Apache-2.0
/* Interrupted waits of System V IPC, in a namespace of its own: a message, a semaphore. */
#include "restart.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

static int queue, semaphores;

static long receives(void)
{
	struct {
		long type;
		char text[10];
	} message;
	return OR_ERRNO(msgrcv(queue, &message, sizeof(message.text), 3, 0));
}

static void sends(void)
{
	struct {
		long type;
		char text[10];
	} message = {3, "hello"};
	need(!msgsnd(queue, &message, 5, 0));
}

static long waits(void)
{
	struct sembuf down = {0, -1, 0};
	return OR_ERRNO(semop(semaphores, &down, 1));
}

static void posts(void)
{
	struct sembuf up = {0, 1, 0};
	need(!semop(semaphores, &up, 1));
}

static long waits_timed(void)
{
	struct sembuf down = {1, -1, 0};
	struct timespec limit = to_timespec(TIMEOUT);
	return OR_ERRNO(semtimedop(semaphores, &down, 1, &limit));
}

static struct call calls[] = {
	{"semtimedop", SYS_semtimedop, FAILS, waits_timed, -EAGAIN, NULL},
	{"msgrcv", SYS_msgrcv, BEGINS_AGAIN, receives, 5, sends},
	{"semop", SYS_semtimedop, FAILS, waits, 0, posts},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(!unshare(CLONE_NEWIPC));
	queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	semaphores = semget(IPC_PRIVATE, 2, IPC_CREAT | 0600);
	need(queue >= 0 && semaphores >= 0);
	checkpoint_calls(argv, calls, lengthof(calls));
	return verdict();
}
