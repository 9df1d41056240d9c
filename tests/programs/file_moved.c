// SPDX-License-Identifier: Apache-2.0
/*
 * Files that are not where they were opened: renamed, with another one in their place; their
 * directory renamed; removed with their directory; never named (O_TMPFILE); removed directories.
 */
#include "program.h"

static int make(const char *name, const char *text)
{
	int fd = open(path(name), O_RDWR | O_CREAT | O_TRUNC, 0640);
	need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	return fd;
}

static char *content(int fd)
{
	char *text = calloc(1, 100);
	if (pread(fd, text, 99, 0) < 0)
		snprintf(text, 100, "<%s>", strerrorname_np(errno));
	return text;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct stat st;
	int renamed = make("old", "renamed");
	need(!rename(path("old"), path("new")));
	close(make("old", "another"));
	need(!mkdir(path("here"), 0755));
	int inside = make("here/file", "inside");
	need(!rename(path("here"), path("there")) && !mkdir(path("gone"), 0755));
	int removed = make("gone/file", "removed");
	int directory = open(path("gone"), O_RDONLY | O_DIRECTORY), just = open(path("gone"), O_PATH);
	need(directory >= 0 && just >= 0 && !unlink(path("gone/file")) && !rmdir(path("gone")));
	int never = open(dir, O_TMPFILE | O_RDWR, 0600);
	if (never < 0)
		skip("no O_TMPFILE: %s", strerror(errno));
	need(write(never, "never named", 11) == 11);

	checkpoint();

	check_text(content(renamed), "renamed");
	check_text(content(inside), "inside");
	check_is(lseek(inside, 0, SEEK_CUR), 6);
	check_text(content(removed), "removed");
	check_text(content(never), "never named");
	check_is(write(removed, "!", 1), 1);
	check_text(content(removed), "removed!");
	check(!fstat(never, &st) && st.st_nlink == 0 && (st.st_mode & 07777) == 0600);
	check(!fstat(removed, &st) && st.st_nlink == 0 && (st.st_mode & 07777) == 0640);
	check(!fstat(directory, &st) && S_ISDIR(st.st_mode) && st.st_nlink == 0);
	check(!fstat(just, &st) && S_ISDIR(st.st_mode) && st.st_nlink == 0);
	check_is(fcntl(just, F_GETFL) & O_PATH, O_PATH);
	check_is(access(path("gone"), F_OK), -1);
	check(!ftruncate(removed, 7) && lseek(removed, 7, SEEK_SET) == 7); /* for a second copy */
	return verdict();
}
