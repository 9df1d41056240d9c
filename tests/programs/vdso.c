// SPDX-License-Identifier: Apache-2.0
/* Clocks through the vdso: they agree with the kernel's, and time went on. */
#include "program.h"
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

static int64_t asked_of_kernel(clockid_t clock)
{
	struct timespec ts;
	syscall(SYS_clock_gettime, clock, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW,
				   CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,
				   CLOCK_TAI};

int main(int argc, char **argv)
{
	begin(argc, argv);
	int64_t before[lengthof(clocks)];
	char mapping[40], *vdso = (char *)getauxval(AT_SYSINFO_EHDR);
	for (unsigned i = 0; i < lengthof(clocks); i++)
		before[i] = now_ns(clocks[i]);

	checkpoint();

	for (unsigned i = 0; i < lengthof(clocks); i++) {
		int64_t low = asked_of_kernel(clocks[i]), got = now_ns(clocks[i]);
		int64_t high = asked_of_kernel(clocks[i]);
		check(low <= got && got <= high, "clock %d: %ld %ld %ld", clocks[i], low, got, high);
		check(got >= before[i], "clock %d: %ld %ld", clocks[i], got, before[i]);
	}
	struct timeval now;
	gettimeofday(&now, NULL);
	check(labs(now.tv_sec - asked_of_kernel(CLOCK_REALTIME) / 1000000000) <= 1);
	check(labs(time(NULL) - now.tv_sec) <= 1);
	check(sched_getcpu() >= 0);
	check(!memcmp(vdso, "\177ELF", 4));
	snprintf(mapping, sizeof(mapping), "%lx-", (unsigned long)vdso);
	check(strstr(proc_line("maps", mapping), "[vdso]"));
	return verdict();
}
