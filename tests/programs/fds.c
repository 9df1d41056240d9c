// SPDX-License-Identifier: Apache-2.0
/* Many descriptors, and high numbers with gaps: argv[2] of them, of the kinds in turn. */
#include "program.h"
#include <sys/eventfd.h>
#include <sys/resource.h>

static int open_one(int i)
{
	static int ends[2];
	switch (i % 4) {
	case 0:
		return eventfd(i + 1, 0);
	case 1:
		return open(path("file"), O_RDONLY);
	case 2:
		need(!pipe(ends));
		return ends[0];
	default:
		return ends[1];
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int count = atoi(argv[2]), high = count + 1000;
	struct rlimit limit;
	uint64_t value;
	need(!getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = count + 2000;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		skip("no permission for %d descriptors", count);
	tell("file", "text");
	int *fds = calloc(count, sizeof(*fds));
	for (int i = 0; i < count; i++) {
		fds[i] = open_one(i);
		need(fds[i] >= 0 && (i % 4 != 1 || lseek(fds[i], i, SEEK_SET) == i));
	}
	need(fcntl(fds[0], F_DUPFD_CLOEXEC, high) == high);

	checkpoint();

	for (int i = 0; i + 3 < count; i += 4) {
		check_is(read(fds[i], &value, 8), 8);
		check_is(value, i + 1);
		check_is(lseek(fds[i + 1], 0, SEEK_CUR), i + 1);
		check_is(write(fds[i + 3], &i, sizeof(i)), sizeof(i));
		check_is(read(fds[i + 2], &value, 8), sizeof(i));
		check_is((int)value, i);
	}
	check_is(fcntl(high, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(high - 1, F_GETFD), -1);
	check_is(fcntl(high + 1, F_GETFD), -1);
	return verdict();
}
