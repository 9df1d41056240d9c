// SPDX-License-Identifier: Apache-2.0
/* A file that was opened by a name that is gone, while it has another: still that file. */
#include "program.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct stat open_file, other_name;
	char text[10] = "";
	unlink(path("kept"));
	int fd = open(path("name"), O_RDWR | O_CREAT | O_TRUNC, 0640);
	need(fd >= 0 && write(fd, "text", 4) == 4);
	need(!link(path("name"), path("kept")) && !unlink(path("name")));

	checkpoint();

	check_is(pread(fd, text, sizeof(text), 0), 4);
	check_text(text, "text");
	check_is(lseek(fd, 0, SEEK_CUR), 4);
	check(!fstat(fd, &open_file) && !stat(path("kept"), &other_name));
	check_is(open_file.st_ino, other_name.st_ino);
	check_is(access(path("name"), F_OK), -1);
	return verdict();
}
