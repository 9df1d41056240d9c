// SPDX-License-Identifier: Apache-2.0
/*
 * An IPC namespace of its own: messages, semaphores, segments that nobody is attached to, sysctls.
 * With `all`, what no other tool keeps: a creator, a removed segment, limits below what is in use.
 */
#include "memory.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { SIZE = 4 * PAGE, KEY = 0x5eed, MANY = 40, OTHER = 65534 };

struct message {
	long type;
	char text[4096];
};

static const char *msgmnb = "/proc/sys/kernel/msgmnb", *sem = "/proc/sys/kernel/sem";

static void set(const char *name, const char *value)
{
	int fd = open(name, O_WRONLY | O_CLOEXEC);
	need(fd >= 0 && write(fd, value, strlen(value)) > 0);
	close(fd);
}

static int a_queue(void)
{
	struct message message = {.type = 5};
	int queue = msgget(KEY, IPC_CREAT | 0620);
	need(queue >= 0);
	for (int i = 0; i < 3; i++) {
		fill(message.text, 1000 * i, i);
		need(!msgsnd(queue, &message, 1000 * i, 0));
		message.type++;
	}
	return queue;
}

static void check_queue(int queue)
{
	struct message message;
	struct msqid_ds state;
	check_is(msgget(KEY, 0), queue);
	check_is(msgctl(queue, IPC_STAT, &state), 0);
	check_is(state.msg_perm.mode, 0620);
	check_is(state.msg_qnum, 3);
	for (int i = 0; i < 3; i++) {
		check_is(msgrcv(queue, &message, sizeof(message.text), 0, IPC_NOWAIT), 1000 * i);
		check_is(message.type, 5 + i);
		check_is(differs(message.text, 1000 * i, i), -1);
	}
}

static int a_set(void)
{
	unsigned short values[] = {7, 0, 32767};
	int set = semget(KEY, 3, IPC_CREAT | 0604);
	need(set >= 0 && !semctl(set, 0, SETALL, values));
	return set;
}

static void check_set(int set)
{
	unsigned short values[3] = {0};
	struct semid_ds state;
	check_is(semget(KEY, 0, 0), set);
	check_is(semctl(set, 0, GETALL, values), 0);
	check_is(values[0], 7);
	check_is(values[1], 0);
	check_is(values[2], 32767);
	check_is(semctl(set, 0, IPC_STAT, &state), 0);
	check_is(state.sem_perm.mode, 0604);
}

static int a_segment(key_t key)
{
	int id = shmget(key, SIZE, IPC_CREAT | 0640);
	char *area = shmat(id, NULL, 0);
	need(id >= 0 && area != (void *)-1);
	fill(area + PAGE, PAGE, id);
	need(!shmdt(area));
	return id;
}

static void check_segment(int id, key_t key)
{
	char *area = shmat(id, NULL, SHM_RDONLY);
	check_is(shmget(key, SIZE, 0), id);
	check(area != (void *)-1);
	check(all_zero(area, PAGE));
	check_is(differs(area + PAGE, PAGE, id), -1);
	check(all_zero(area + 2 * PAGE, 2 * PAGE));
	check_is(shmdt(area), 0);
}

static char *more;
static int removed, queues, empty;

/* What takes the `all`. */
static void set_more(void)
{
	struct message message = {.type = 1};
	struct msqid_ds limit;
	need(!setresgid(-1, OTHER, -1) && !setresuid(-1, OTHER, -1));
	removed = shmget(KEY + 7, SIZE, IPC_CREAT | 0600);
	need(!setresuid(-1, 0, -1) && !setresgid(-1, 0, -1));
	more = shmat(removed, NULL, 0);
	need(more != (void *)-1 && !shmctl(removed, SHM_LOCK, NULL));
	need(!shmctl(removed, IPC_RMID, NULL));
	fill(more, SIZE, 9);

	queues = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	for (int i = 0; i < MANY; i++)
		need(!msgsnd(queues, &message, i % 2 ? 0 : 300, 0));
	need(!msgctl(queues, IPC_STAT, &limit));
	limit.msg_qbytes = 20;
	need(!msgctl(queues, IPC_SET, &limit));
	empty = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
	set(msgmnb, "100");
	set(sem, "2\t2\t1\t0");
	set("/proc/sys/kernel/shm_rmid_forced", "1");
}

static void check_more(void)
{
	struct shmid_ds state;
	struct msqid_ds limit;
	check_is(differs(more, SIZE, 9), -1);
	check_is(shmctl(removed, IPC_STAT, &state), 0);
	check_is(state.shm_perm.mode, 0600 | SHM_DEST | SHM_LOCKED);
	check_is(state.shm_perm.uid, OTHER);
	check_is(state.shm_perm.cuid, OTHER);
	check_is(state.shm_perm.cgid, OTHER);
	check_is(state.shm_cpid, getpid());
	check_is(state.shm_nattch, 1);
	check_is(shmdt(more), 0);
	check_is(shmctl(removed, IPC_STAT, &state), -1);
	check_is(shmctl(empty, IPC_STAT, &state), 0);
	check_is(msgctl(queues, IPC_STAT, &limit), 0);
	check_is(limit.msg_qnum, MANY);
	check_is(limit.msg_qbytes, 20);
	check_text(slurp(sem), "2\t2\t1\t0\n");
	check_text(slurp("/proc/sys/kernel/shm_rmid_forced"), "1\n");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	bool all = argv[2] != NULL;
	need(!unshare(CLONE_NEWIPC));
	msgctl(msgget(IPC_PRIVATE, 0600), IPC_RMID, NULL); /* so that ids do not begin with 0 */
	semctl(semget(IPC_PRIVATE, 1, 0600), 0, IPC_RMID);
	shmctl(shmget(IPC_PRIVATE, 1, 0600), IPC_RMID, NULL);
	int first = a_segment(KEY), second = a_segment(KEY + 1), queue = a_queue(), set_ = a_set();
	set(msgmnb, "20000");
	if (all) {
		need(!shmctl(second, IPC_RMID, NULL));
		set_more();
	}

	checkpoint();

	check_queue(queue);
	check_set(set_);
	if (all) {
		check_more();
	} else {
		check_segment(first, KEY);
		check_segment(second, KEY + 1);
	}
	check_text(slurp(msgmnb), all ? "100\n" : "20000\n");
	return verdict();
}
