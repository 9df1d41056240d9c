// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that sweep memory until another thread executes the program anew, with nothing left of
 * them: soon at first, and then each time twice as late.
 */
#include "mutate.h"

enum { SWEPT = 1024, FIRST_MS = 10, LAST = 12 };

/* Page k gets round n only after page k-1 did, as in mutate_sweep. */
static void sweep(struct worker *self)
{
	uint64_t *area = own_area(SWEPT * PAGE, false);

	for (uint64_t n = 1; going(self); n++)
		for (uint64_t k = 0; k < SWEPT; k++) {
			must(holds(area + k * WORDS, n - 1, k));
			write_page(area + k * WORDS, n, k);
		}
}

int main(int argc, char **argv)
{
	int generation = argc > 2 ? atoi(argv[2]) : 0;
	struct stat st;
	char next[16];

	begin(argc, argv);
	employ(sweep);
	employ(sweep);
	tell("ready", "");
	if (generation < LAST) {
		int64_t until = now_ns(CLOCK_MONOTONIC) + ((FIRST_MS * 1000000L) << generation);

		while (stat(path("go"), &st) && now_ns(CLOCK_MONOTONIC) < until)
			usleep(1000);
		snprintf(next, sizeof(next), "%d", generation + 1);
		if (stat(path("go"), &st))
			must(!execl(argv[0], argv[0], argv[1], next, NULL));
	}
	return judge_workers();
}
