// SPDX-License-Identifier: Apache-2.0
/* The list of mappings reads the same afterwards: bounds, permissions, offsets, files, neighbours. */
#include "memory.h"

enum { SIZE = 1 << 20 };

static char before[SIZE], after[SIZE];

static void read_maps(char *buffer)
{
	int fd = open("/proc/self/maps", O_RDONLY);
	ssize_t got, used = 0;
	while ((got = read(fd, buffer + used, SIZE - 1 - used)) > 0)
		used += got;
	need(used > 0 && !close(fd));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *line, *rest, *other, *other_rest;
	free(path("so that the heap is there"));
	read_maps(before);

	checkpoint();

	read_maps(after);
	line = strtok_r(before, "\n", &rest);
	other = strtok_r(after, "\n", &other_rest);
	while (line && other) {
		check_text(other, line);
		line = strtok_r(NULL, "\n", &rest);
		other = strtok_r(NULL, "\n", &other_rest);
	}
	check(!line, "missing: %s", line);
	check(!other, "new: %s", other);
	return verdict();
}
