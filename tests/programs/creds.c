// SPDX-License-Identifier: Apache-2.0
/*
 * Credentials, in one of these ways:
 *	caps	root with some capabilities gone, some inheritable and ambient, securebits, groups
 *	ids	all of the user and group ids differ
 *	nobody	another user, with two capabilities left
 *	threads	as caps, and a thread that has given up more
 */
#include "threads.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

static const char *lines[] = {"Uid:",	 "Gid:",    "Groups:", "CapInh:",
			      "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"};
static char *before[2][lengthof(lines)];
static int bits[2];
static const char *way;

static void set_caps(uint64_t permitted, uint64_t effective, uint64_t inheritable)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {
		{effective, permitted, inheritable},
		{effective >> 32, permitted >> 32, inheritable >> 32},
	};
	need(!syscall(SYS_capset, &header, data));
}

static const uint64_t admin = 1ULL << CAP_SYS_ADMIN, bind = 1ULL << CAP_NET_BIND_SERVICE,
		      chown_ = 1ULL << CAP_CHOWN, checkpoint_ = 1ULL << CAP_CHECKPOINT_RESTORE;

static void drop_some(void)
{
	gid_t groups[] = {5, 7, 70000};
	need(!setgroups(lengthof(groups), groups));
	need(!prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
	need(!prctl(PR_CAPBSET_DROP, CAP_MAC_ADMIN, 0, 0, 0));
	need(!prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP |
			    SECBIT_NO_SETUID_FIXUP_LOCKED, 0, 0, 0));
	set_caps(admin | bind | chown_ | checkpoint_, admin | chown_, bind | chown_);
	need(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
}

static void become_nobody(void)
{
	gid_t group = 12345;
	need(!setgroups(1, &group) && !setresgid(65534, 65534, 65534));
	need(!prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) && !setresuid(65534, 65534, 65534));
	set_caps(bind | chown_, bind, 0);
}

static char *status_line(const char *key)
{
	char file[40];
	snprintf(file, sizeof(file), "task/%d/status", gettid());
	return proc_line(file, key);
}

static void set_up(int number)
{
	if (number)
		set_caps(bind, 0, 0);
	bits[number] = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
	for (unsigned i = 0; i < lengthof(lines); i++)
		before[number][i] = status_line(lines[i]);
}

static void check_up(int number)
{
	for (unsigned i = 0; i < lengthof(lines); i++)
		check_text(status_line(lines[i]), before[number][i]);
	check_is(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0), bits[number]);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	way = argc > 2 ? argv[2] : "caps";
	if (!strcmp(way, "ids")) {
		need(!setresgid(101, 102, 103) && !setresuid(201, 0, 203));
		need(setfsgid(104) == 102 && setfsuid(204) == 0);
	} else if (!strcmp(way, "nobody")) {
		become_nobody();
	} else {
		drop_some();
	}
	checkpoint_threads(!strcmp(way, "threads"), set_up, check_up);
	return verdict();
}
