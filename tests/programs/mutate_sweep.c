// SPDX-License-Identifier: Apache-2.0
/*
 * Counters swept over all pages, in small pages and in huge ones; two copies that are updated one
 * after the other, at random places; and a number that one thread writes and another follows.
 */
#include "mutate.h"

enum { SWEPT = 3072, TWINS = 4096, TRAIL = 512 };

/* Page k gets round n only after page k-1 did: nothing else is ever legal. */
static void sweep_area(struct worker *self, bool huge)
{
	uint64_t *area = own_area(SWEPT * PAGE, huge);

	for (uint64_t n = 1; going(self); n++)
		for (uint64_t k = 0; k < SWEPT; k++) {
			if (!holds(area + k * WORDS, n - 1, k))
				wrong("page %lu of %d in round %lu: first word is round's %d or %d",
				      k, SWEPT, n, area[k * WORDS] == stamp(n, k * WORDS),
				      area[k * WORDS] == stamp(n - 1, k * WORDS));
			write_page(area + k * WORDS, n, k);
		}
}

static void sweep(struct worker *self)
{
	sweep_area(self, false);
}

static void sweep_huge(struct worker *self)
{
	sweep_area(self, true);
}

/* Two copies, far apart, of numbers each on a page of its own. */
static void twins(struct worker *self)
{
	volatile uint64_t *one = own_area(TWINS * PAGE, false), *other = own_area(TWINS * PAGE, false);
	uint64_t n = 0;

	while (going(self)) {
		for (int i = 0; i < TWINS; i++) {
			uint64_t at = chance(self, TWINS) * WORDS + chance(self, WORDS);

			must_be(one[at], other[at]);
			one[at] = ++n;
			other[at] = n;
		}
		for (uint64_t at = 0; at < TWINS * WORDS; at++)
			must_be(one[at], other[at]);
	}
}

static volatile uint64_t *led, *followed;

/* Number after number, each on the next page; never does the follower know of a later one. */
static void leader(struct worker *self)
{
	for (uint64_t n = 1; going(self); n++) {
		led[n % TRAIL * WORDS] = n;
		__atomic_store_n(&led[TRAIL * WORDS], n, __ATOMIC_RELEASE);
		if (__atomic_load_n(&followed[TRAIL * WORDS], __ATOMIC_ACQUIRE) > n)
			wrong("at %lu, but followed to %lu", n, followed[TRAIL * WORDS]);
	}
}

static void follower(struct worker *self)
{
	for (uint64_t last = 0, n; going(self); last = n) {
		n = __atomic_load_n(&led[TRAIL * WORDS], __ATOMIC_ACQUIRE);
		if (n < last || led[n % TRAIL * WORDS] < n)
			wrong("led back from %lu to %lu, whose page says %lu", last, n,
			      led[n % TRAIL * WORDS]);
		must_be(followed[last % TRAIL * WORDS], last);
		followed[n % TRAIL * WORDS] = n;
		__atomic_store_n(&followed[TRAIL * WORDS], n, __ATOMIC_RELEASE);
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	led = own_area((TRAIL + 1) * PAGE, false);
	followed = own_area((TRAIL + 1) * PAGE, false);
	employ(sweep);
	employ(sweep_huge);
	employ(twins);
	employ(leader);
	employ(follower);
	return judge_workers();
}
