// SPDX-License-Identifier: Apache-2.0
/* Files of /proc and /sys: our own, and the machine's; how far they were read. */
#include "program.h"
#include <dirent.h>

static char buffer[4096];

int main(int argc, char **argv)
{
	begin(argc, argv);
	static const char secret[] = "what is here";
	int status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	int mem = open("/proc/self/mem", O_RDWR), maps = open("/proc/self/maps", O_RDONLY);
	int fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY), twin = dup(status);
	int comm = open("/proc/thread-self/comm", O_RDWR), path_only = open("/proc/self", O_PATH);
	int ostype = open("/proc/sys/kernel/ostype", O_RDONLY);
	int cpus = open("/sys/devices/system/cpu/possible", O_RDONLY);
	need(status >= 0 && mem >= 0 && maps >= 0 && fds >= 0 && twin >= 0 && comm >= 0);
	need(path_only >= 0 && ostype >= 0 && cpus >= 0);
	need(read(status, buffer, 6) == 6 && read(ostype, buffer, 2) == 2);

	checkpoint();

	check_is(fcntl(status, F_GETFD), FD_CLOEXEC);
	check_is(lseek(twin, 0, SEEK_CUR), 6);
	check_is(lseek(status, 0, SEEK_SET), 0);
	check(read(status, buffer, 40) == 40 && !memcmp(buffer, "Name:\tproc_files\n", 17));
	check_is(pread(mem, buffer, sizeof(secret), (off_t)secret), sizeof(secret));
	check_text(buffer, secret);
	check(read(maps, buffer, sizeof(buffer)) > 100);
	check(strstr(buffer, "proc_files"));
	check_is(write(comm, "renamed", 7), 7);
	check_text(proc_line("comm", "renamed"), "renamed");
	DIR *directory = fdopendir(fds);
	int count = 0;
	while (directory && readdir(directory))
		count++;
	check(count > 10);
	check_is(faccessat(path_only, "status", F_OK, 0), 0);
	memset(buffer, 0, sizeof(buffer));
	check(read(ostype, buffer, 100) > 0);
	check_text(buffer, "nux\n");
	check(read(cpus, buffer, 100) > 0);
	return verdict();
}
