// SPDX-License-Identifier: Apache-2.0
/* Memory files with seals: they are kept, and hold. */
#include "memory.h"

static int sealed(const char *text, int seals)
{
	int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
	need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	need(!fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char text[10] = "";
	int size = sealed("size", F_SEAL_SHRINK | F_SEAL_GROW), none = sealed("none", 0);
	int all = sealed("all", F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	int unsealable = memfd_create("plain", 0);
	need(unsealable >= 0);

	checkpoint();

	check_is(fcntl(size, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
	check_is(fcntl(all, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	check_is(fcntl(none, F_GET_SEALS), 0);
	check_is(fcntl(unsealable, F_GET_SEALS), F_SEAL_SEAL);
	check_is(pread(all, text, sizeof(text), 0), 3);
	check_text(text, "all");
	check_is(pwrite(all, "x", 1, 0), -1);
	check_is(ftruncate(size, 1), -1);
	check_is(pwrite(size, "S", 1, 0), 1);
	check_is(fcntl(none, F_ADD_SEALS, F_SEAL_GROW), 0);
	return verdict();
}
