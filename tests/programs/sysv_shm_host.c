// SPDX-License-Identifier: Apache-2.0
/*
 * System V shared memory of the namespace that everybody is in: a segment without a key, one with,
 * and a removed one whose attachment has been split, with a hole that another mapping is in.
 */
#include "memory.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { SIZE = 16 * PAGE, SMALL = 56 };

static struct shmid_ds state(int id)
{
	struct shmid_ds found = {.shm_nattch = -1};
	shmctl(id, IPC_STAT, &found);
	return found;
}

static char *attached(int id, int flags)
{
	char *at = shmat(id, NULL, flags);
	need(at != (void *)-1);
	return at;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	key_t key = 0x5eed0000 | getpid();
	int private = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0640);
	int keyed = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0600);
	int removed = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	int small = shmget(IPC_PRIVATE, SMALL, IPC_CREAT | 0600);
	need(private >= 0 && keyed >= 0 && removed >= 0 && small >= 0);
	char *area = attached(private, 0), *readonly = attached(private, SHM_RDONLY);
	char *other = attached(keyed, 0), *split = attached(removed, 0);
	char *tiny = memset(attached(small, 0), 'x', SMALL);
	need(!shmctl(removed, IPC_RMID, NULL) && !shmctl(small, IPC_RMID, NULL));
	fill(area, 8 * PAGE, 1);
	fill(other, SIZE, 2);
	fill(split, SIZE, 3);
	need(!mprotect(split + PAGE, PAGE, PROT_READ));
	need(!munmap(split + 4 * PAGE, 2 * PAGE));
	need(mmap(split + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == split + 5 * PAGE);
	fill(split + 5 * PAGE, PAGE, 4);
	need(!munmap(split + 15 * PAGE, PAGE));
	long pieces = state(removed).shm_nattch;

	checkpoint();

	check_is(differs(area, 8 * PAGE, 1), -1);
	check(all_zero(area + 8 * PAGE, 8 * PAGE));
	check_is(differs(readonly, 8 * PAGE, 1), -1);
	check_is(differs(other, SIZE, 2), -1);
	for (int i = 0; i < SMALL; i++)
		check_is(tiny[i], 'x');
	check_is(differs(split, 4 * PAGE, 3), -1);
	check_is(differs(split + 5 * PAGE, PAGE, 4), -1);
	fill(area + 8 * PAGE, PAGE, 5);
	check_is(differs(readonly + 8 * PAGE, PAGE, 5), -1);

	check_is(state(private).shm_nattch, 2);
	check_is(state(private).shm_segsz, SIZE);
	check_is(state(private).shm_perm.mode, 0640);
	check_is(shmget(key, SIZE, 0), keyed);
	check_is(state(removed).shm_perm.mode, 0600 | SHM_DEST);
	check_is(state(removed).shm_nattch, pieces);
	catch_faults();
	check_is(faults(readonly, true), 1);
	check_is(mprotect(readonly, PAGE, PROT_READ | PROT_WRITE), -1);
	check_is(faults(split + PAGE, true), 1);
	check_is(mprotect(split + PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
	check_is(faults(split + PAGE, true), 0);
	check_is(faults(split + 4 * PAGE, false), 1);
	check_is(faults(split + 15 * PAGE, false), 1);

	check_is(shmdt(split), 0);
	check_is(state(removed).shm_nattch, -1);
	check_is(differs(split + 5 * PAGE, PAGE, 4), -1);
	check_is(shmctl(private, IPC_RMID, NULL), 0);
	check_is(shmctl(keyed, IPC_RMID, NULL), 0);
	return verdict();
}
