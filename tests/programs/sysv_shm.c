// SPDX-License-Identifier: Apache-2.0
/* System V shared memory, in an IPC namespace of its own: content, key, mode, two attachments. */
#include "memory.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/shm.h>

enum { SIZE = 16 * PAGE, KEY = 0x5eed };

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(!unshare(CLONE_NEWIPC));
	int id = shmget(KEY, SIZE, IPC_CREAT | 0640);
	char *area = shmat(id, NULL, 0), *readonly = shmat(id, NULL, SHM_RDONLY);
	struct shmid_ds state;
	need(id >= 0 && area != (void *)-1 && readonly != (void *)-1);
	fill(area, 8 * PAGE, 1);

	checkpoint();

	check_is(differs(area, 8 * PAGE, 1), -1);
	check(all_zero(area + 8 * PAGE, 8 * PAGE));
	check_is(differs(readonly, 8 * PAGE, 1), -1);
	fill(area + 8 * PAGE, PAGE, 2);
	check_is(differs(readonly + 8 * PAGE, PAGE, 2), -1);
	check_is(shmget(KEY, SIZE, 0), id);
	check_is(shmctl(id, IPC_STAT, &state), 0);
	check_is(state.shm_nattch, 2);
	check_is(state.shm_perm.mode, 0640);
	check_is(state.shm_segsz, SIZE);
	catch_faults();
	check_is(faults(readonly, true), 1);
	check_is(shmdt(area), 0);
	return verdict();
}
