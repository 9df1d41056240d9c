// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that the kernel writes: what system calls read or fill in, signal frames, and a futex. No
 * call may fail, be cut short or come back with EINTR, and errno stays what it was.
 */
#include "mutate.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/random.h>

enum { BUFFERS = 1024, CHUNK = 3 * PAGE, TICK_NS = 500000, ERRNO = 4711 };

static int numbers[2];
static uint32_t turn_, bounces;

/* The next of the buffers, after each of which a page tells whether it was written over. */
static uint64_t *buffer(uint64_t *area, uint64_t n)
{
	return area + n % BUFFERS * (CHUNK + PAGE) / 8;
}

/*
 * The bytes in a pipe have an order that says what was lost or doubled. A call that is stopped half
 * way tells how far it got, that is the kernel's way; but it never fails.
 */
static void feed(struct worker *self)
{
	uint64_t *out = own_area(CHUNK, false), value = 0;
	ssize_t did;

	errno = ERRNO;
	while (going(self)) {
		for (size_t i = 0; i < CHUNK / 8; i++)
			out[i] = ++value;
		for (ssize_t done = 0; done < CHUNK; done += did)
			must((did = write(numbers[1], (char *)out + done, CHUNK - done)) > 0);
		must_be(errno, ERRNO);
	}
	must(!close(numbers[1]));
}

static void consume(struct worker *self)
{
	uint64_t *area = own_area(BUFFERS * (CHUNK + PAGE), false), value = 0;

	errno = ERRNO;
	for (uint64_t n = 0;; n++) {
		char *in = (char *)buffer(area, n);
		ssize_t got, have = 0;

		self->rounds++; /* the end of the pipe ends it */
		while (have < CHUNK && (got = read(numbers[0], in + have, CHUNK - have)) > 0)
			have += got;
		if (!have && !got)
			return;
		must_be(have, CHUNK);
		for (size_t i = 0; i < CHUNK / 8; i++)
			must_be(((uint64_t *)in)[i], ++value);
		must(holds((uint64_t *)(in + CHUNK), n / BUFFERS, n % BUFFERS));
		write_page((uint64_t *)(in + CHUNK), n / BUFFERS + 1, n % BUFFERS);
		must_be(errno, ERRNO);
	}
}

/* The clock of the system call, not the vDSO, never goes back; sleep is never short. */
static void clocks(struct worker *self)
{
	uint64_t *area = own_area(BUFFERS * (CHUNK + PAGE), false);
	int64_t last = 0;

	errno = ERRNO;
	for (uint64_t n = 0; going(self); n++) {
		struct timespec *now = (struct timespec *)buffer(area, n);
		int64_t ns;

		must(!syscall(SYS_clock_gettime, CLOCK_MONOTONIC, now));
		ns = now->tv_sec * 1000000000L + now->tv_nsec;
		must(ns >= last);
		last = ns;
		if (n % 64 == 0) {
			struct timespec nap = {.tv_nsec = 2000000};

			must_be(clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL), 0);
			must(now_ns(CLOCK_MONOTONIC) >= ns + 2000000);
			must_be(poll(NULL, 0, 2), 0);
		}
		must_be(errno, ERRNO);
	}
}

/* Random bytes in the middle of pages that are otherwise known; what came is still there later. */
static void randoms(struct worker *self)
{
	uint64_t *area = own_area(BUFFERS * (CHUNK + PAGE), false), sums[BUFFERS] = {};
	ssize_t did;

	errno = ERRNO;
	for (uint64_t n = 0; going(self); n++) {
		unsigned char *in = (unsigned char *)buffer(area, n);
		uint64_t *sum = &sums[n % BUFFERS], now = 0;

		for (size_t i = 0; i < CHUNK; i++)
			now = now * 31 + in[i];
		must_be(now, *sum);
		for (ssize_t done = 100; done < CHUNK - 100; done += did)
			must((did = getrandom(in + done, CHUNK - 100 - done, 0)) > 0);
		*sum = 0;
		for (size_t i = 0; i < CHUNK; i++)
			*sum = *sum * 31 + in[i];
		must_be(errno, ERRNO);
	}
}

/* Two threads that take turns, and sleep meanwhile. */
static void bounce(struct worker *self)
{
	uint32_t mine = self->number % 2;

	errno = ERRNO;
	while (true) {
		uint32_t now = __atomic_load_n(&turn_, __ATOMIC_ACQUIRE), end = -2u + mine;

		if (now >= -2u)
			return;
		if (now % 2 != mine) {
			long ret = syscall(SYS_futex, &turn_, FUTEX_WAIT, now, NULL);

			if (ret && errno != EAGAIN)
				wrong("futex: %s", strerror(errno));
			errno = ERRNO;
			continue;
		}
		must_be(bounces, now);
		bounces = now + 1;
		__atomic_store_n(&turn_, going(self) ? now + 1 : end, __ATOMIC_RELEASE);
		must(syscall(SYS_futex, &turn_, FUTEX_WAKE, 2) >= 0);
		must_be(errno, ERRNO);
	}
}

static __thread volatile uint64_t ticks, *pages_of_handler;

/* The frame goes onto the stack of whoever is interrupted; we use more of it, and pages besides. */
static void on_tick(int signo)
{
	uint64_t frame[4 * WORDS];
	uint64_t n = ++ticks;

	write_page(frame + WORDS, n, signo);
	if (!holds(pages_of_handler + n % 64 * WORDS, n > 64 ? n - 64 : 0, n % 64))
		wrong("page of tick %lu", n);
	write_page(pages_of_handler + n % 64 * WORDS, n, n % 64);
	if (!holds(frame + WORDS, n, signo))
		wrong("frame of tick %lu", n);
}

/* Arithmetic in general and vector registers, with signals all the time. */
static void interrupted(struct worker *self)
{
	struct sigevent to_us = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
	struct itimerspec often = {{0, TICK_NS}, {0, TICK_NS}}, never = {};
	timer_t timer;

	pages_of_handler = own_area(64 * PAGE, false);
	to_us._sigev_un._tid = gettid();
	must(!timer_create(CLOCK_MONOTONIC, &to_us, &timer));
	must(!timer_settime(timer, 0, &often, NULL));
	while (going(self)) {
		uint64_t before = ticks, sum = 0, number = 1;
		double product = 1;

		do {
			for (int i = 0; i < 1000; i++) {
				sum += number;
				number = number * 3 + 1;
				product *= 1.0000001;
			}
		} while (ticks == before && number);
		for (double same = 1; number; number = 0) {
			uint64_t again = 0, value = 1;

			while (value != number) {
				again += value;
				value = value * 3 + 1;
				same *= 1.0000001;
			}
			must_be(again, sum);
			must(same == product);
		}
	}
	must(!timer_settime(timer, 0, &never, NULL));
}

int main(int argc, char **argv)
{
	struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_RESTART};

	begin(argc, argv);
	need(!pipe2(numbers, O_CLOEXEC));
	need(!sigaction(SIGUSR1, &tick, NULL));
	/* Not all at once: the scheduler then forgets about other processes for seconds (6.18). */
	employ(clocks);
	if (argc > 2 && !strcmp(argv[2], "wakes")) {
		employ(bounce);
		employ(bounce);
		employ(interrupted);
	} else {
		employ(feed);
		employ(consume);
		employ(randoms);
	}
	return judge_workers();
}
