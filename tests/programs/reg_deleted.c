// SPDX-License-Identifier: Apache-2.0
/*
 * Files without a name: unlinked, with descriptors that share and do not share a position; one
 * whose name is another file's by now; one that never had a name.
 */
#include "program.h"

enum { SIZE = 50000 };

static char content[SIZE + 1];

static int unlinked(const char *name, unsigned seed)
{
	int fd = open(path(name), O_RDWR | O_CREAT | O_TRUNC, 0640);
	fill(content, SIZE, seed);
	need(fd >= 0 && write(fd, content, SIZE) == SIZE);
	return fd;
}

static void check_content(int fd, unsigned seed)
{
	struct stat st;
	check_is(fstat(fd, &st), 0);
	check_is(st.st_nlink, 0);
	check_is(st.st_mode & 07777, 0640);
	check_is(st.st_size, SIZE);
	check_is(pread(fd, content, sizeof(content), 0), SIZE);
	check_is(differs(content, SIZE, seed), -1);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int gone = unlinked("gone", 1), again = open(path("gone"), O_RDONLY), twin = dup(gone);
	int replaced = unlinked("replaced", 2), nameless = open(dir, O_TMPFILE | O_RDWR, 0640);
	need(again >= 0 && twin >= 0 && lseek(gone, 100, SEEK_SET) == 100);
	need(!unlink(path("gone")) && !unlink(path("replaced")));
	tell("replaced", "another file");
	fill(content, SIZE, 3);
	need(nameless >= 0 && write(nameless, content, SIZE) == SIZE);

	checkpoint();

	check_content(gone, 1);
	check_content(replaced, 2);
	check_content(nameless, 3);
	check_is(lseek(twin, 0, SEEK_CUR), 100);
	check_is(lseek(again, 0, SEEK_CUR), 0);
	check_is(lseek(nameless, 0, SEEK_CUR), SIZE);
	check_is(pwrite(gone, "new", 3, 0), 3);
	check_is(pread(again, content, 3, 0), 3);
	check(!memcmp(content, "new", 3));
	check_is(access(path("gone"), F_OK), -1);
	check_text(slurp(path("replaced")), "another file");
	return verdict();
}
