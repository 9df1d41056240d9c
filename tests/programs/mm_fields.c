// SPDX-License-Identifier: Apache-2.0
/* What the kernel keeps of a process's layout: command line, environment, auxv, exe, bounds. */
#include "program.h"
#include <elf.h>

static const char *files[] = {"cmdline", "environ", "auxv"};

static size_t whole(const char *name, char *buffer, size_t size)
{
	char file[64];
	snprintf(file, sizeof(file), "/proc/self/%s", name);
	int fd = open(file, O_RDONLY);
	ssize_t got = read(fd, buffer, size);
	close(fd);
	return got < 0 ? 0 : got;
}

/* Fields of /proc/self/stat by their numbers in proc(5). */
static unsigned long stat_field(int number)
{
	char *at = strrchr(slurp("/proc/self/stat"), ')');
	for (int i = 2; i < number; i++)
		at = strchr(at + 1, ' ');
	return strtoul(at, NULL, 10);
}

static const int fields[] = {26, 27, 28, 45, 46, 47, 48, 49, 50, 51};

int main(int argc, char **argv)
{
	begin(argc, argv);
	static char before[lengthof(files)][16384], after[16384], exe[PATH_MAX];
	size_t sizes[lengthof(files)];
	unsigned long values[lengthof(fields)];

	strcpy(argv[2], "new"); /* shows in cmdline */
	for (unsigned i = 0; i < lengthof(files); i++)
		need((sizes[i] = whole(files[i], before[i], sizeof(before[i]))) > 0);
	for (unsigned i = 0; i < lengthof(fields); i++)
		need((values[i] = stat_field(fields[i])) > 0);
	need(readlink("/proc/self/exe", exe, sizeof(exe)) > 0);

	checkpoint();

	for (unsigned i = 0; i < lengthof(files); i++) {
		size_t size = whole(files[i], after, sizeof(after));
		check(size == sizes[i], "%s: %zu, was %zu", files[i], size, sizes[i]);
		check(!memcmp(before[i], after, size), "%s", files[i]);
	}
	for (unsigned i = 0; i < lengthof(fields); i++)
		check(stat_field(fields[i]) == values[i], "field %d of stat", fields[i]);
	memset(after, 0, sizeof(after));
	need(readlink("/proc/self/exe", after, sizeof(after) - 1) > 0);
	check_text(after, exe);
	return verdict();
}
