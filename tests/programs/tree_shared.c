// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that several processes share: anonymous, a memfd, a file, and with the argument `sysv` a
 * System V segment, in a namespace of their own; they write and read in both directions.
 */
#include "tree.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

#define PAGE 4096
#define SIZE (4 * PAGE)
#define CHILDREN 3

static unsigned char *areas[4];

static void *map(int fd, int flags)
{
	void *area = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
	need(area != MAP_FAILED);
	return area;
}

static void wait_for(volatile unsigned char *at, unsigned char value)
{
	while (*at != value)
		usleep(1000);
}

/* Each page i + 1 is what child i writes, and reads from the root. */
static void shares(int number)
{
	if (number == 1)	/* elsewhere than the others have it */
		areas[0] = mremap(areas[0], SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
				  areas[0] - 64 * PAGE);
	need(areas[0] != MAP_FAILED);
	for (size_t i = 0; i < lengthof(areas); i++)
		fill(areas[i] + (number + 1) * PAGE, PAGE, 10 * i + number);
	arrived();
	for (size_t i = 0; i < lengthof(areas); i++) {
		check_is(differs(areas[i], PAGE, 100 + i), -1);
		check_is(differs(areas[i] + (number + 1) * PAGE, PAGE, 10 * i + number), -1);
		areas[i][(number + 1) * PAGE] = 200;
		wait_for(areas[i] + (number + 1) * PAGE, 201);
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t pids[CHILDREN];
	if (argc > 2 && unshare(CLONE_NEWIPC))
		skip("no IPC namespace of one's own");
	int memfd = memfd_create("shared", 0);
	int file = open(path("shared"), O_RDWR | O_CREAT, 0600);
	int segment = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	need(memfd >= 0 && file >= 0 && segment >= 0);
	need(!ftruncate(memfd, SIZE) && !ftruncate(file, SIZE));
	areas[0] = map(-1, MAP_ANONYMOUS);
	areas[1] = map(memfd, 0);
	areas[2] = map(file, 0);
	areas[3] = argc > 2 ? shmat(segment, NULL, 0) : map(-1, MAP_ANONYMOUS);
	need(areas[3] != (void *)-1);
	need(!shmctl(segment, IPC_RMID, NULL));
	close(memfd);
	close(file);
	for (size_t i = 0; i < lengthof(areas); i++)
		fill(areas[i], PAGE, 100 + i);
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = child(shares, i);
	all_arrived(CHILDREN);

	checkpoint();

	for (size_t i = 0; i < lengthof(areas); i++)
		for (int j = 0; j < CHILDREN; j++) {
			wait_for(areas[i] + (j + 1) * PAGE, 200);
			areas[i][(j + 1) * PAGE] = 201;
		}
	for (int i = 0; i < CHILDREN; i++)
		collect(pids[i]);
	return verdict();
}
