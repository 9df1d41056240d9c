// SPDX-License-Identifier: Apache-2.0
/*
 * seccomp filters, in one of these ways:
 *	chain	two filters that all threads share, installed with a capability that is gone now
 *	threads	a thread each with none, one and two filters, one of them logging
 *	list	a list of what may be called, by the program and by a dump; for all else it is killed
 *	short	such a list, with nothing on it that only a dump calls
 *	asleep	such a list, without restart_syscall(2): if a stop interrupts its sleep it is killed
 *	strict	a thread in strict mode
 *	notify	a filter that leaves decisions to whom it gives a descriptor
 */
#include "threads.h"
#include "filters.h"
#include <linux/capability.h>

static struct sock_filter newest[] = {
	NR_IS, REFUSE(THIRD, 33), OTHERWISE(SECCOMP_RET_ALLOW),
};
#define CALLED_HERE \
	ALLOW(SYS_openat), ALLOW(SYS_write), ALLOW(SYS_close), ALLOW(SYS_rename), \
	ALLOW(SYS_newfstatat), ALLOW(SYS_clock_nanosleep), ALLOW(SYS_exit_group), \
	ALLOW(SYS_getpid), ALLOW(SYS_brk), ALLOW(SYS_read), ALLOW(SYS_mmap), ALLOW(SYS_getrandom)
static struct sock_filter list[] = {
	NR_IS, CALLED_HERE, ALLOW(SYS_restart_syscall),
	/* what a dump calls */
	ALLOW(SYS_shmat), ALLOW(SYS_shmdt), ALLOW(SYS_pause), ALLOW(SYS_rt_sigprocmask),
	ALLOW(SYS_tgkill), ALLOW(SYS_prctl), ALLOW(SYS_sigaltstack), ALLOW(SYS_rt_sigaction),
	ALLOW(SYS_getitimer), ALLOW(SYS_timer_gettime), ALLOW(SYS_timer_getoverrun),
	ALLOW(SYS_membarrier), REFUSE(SYS_userfaultfd, EPERM),
	OTHERWISE(SECCOMP_RET_KILL_PROCESS),
};
static struct sock_filter shorter[] = {
	NR_IS, CALLED_HERE, ALLOW(SYS_restart_syscall), OTHERWISE(SECCOMP_RET_KILL_PROCESS),
};
static struct sock_filter asleep[] = {
	NR_IS, CALLED_HERE, OTHERWISE(SECCOMP_RET_KILL_PROCESS),
};
static struct sock_filter asking[] = {
	NR_IS,
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FIRST, 0, 1),
	OTHERWISE(SECCOMP_RET_USER_NOTIF),
	OTHERWISE(SECCOMP_RET_ALLOW),
};

static const char *way;

static void set_up(int number)
{
	if (strcmp(way, "threads"))
		return;
	if (number >= 1)
		need(!INSTALL(older, SECCOMP_FILTER_FLAG_LOG));
	if (number >= 2)
		need(!INSTALL(newer, 0));
}

static void check_up(int number)
{
	int count = strcmp(way, "threads") ? 2 : number;
	check_filters(count);
	check_is(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), count != 2 || !strcmp(way, "threads"));
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{0}};
	need(!syscall(SYS_capset, &header, data));
}

/* A filter for all threads can only be added where they share those that they have. */
static void check_shared(void)
{
	check(INSTALL(newest, 0) < 0 && errno == EACCES, "a capability is back");
	need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	check_is(INSTALL(newest, SECCOMP_FILTER_FLAG_TSYNC), 0);
	check_is(error_of(THIRD), 33);
}

static int to_strict[2], from_strict[2];

static void *be_strict(void *unused_)
{
	char byte = 0;
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	for (int i = 0; i < 2; i++)
		if (write(from_strict[1], &byte, 1) != 1 || read(to_strict[0], &byte, 1) != 1)
			break;
	syscall(SYS_getppid); /* which kills it */
	return unused_;
}

static void strict(void)
{
	pthread_t thread;
	char byte = 1;
	need(!pipe(to_strict) && !pipe(from_strict));
	need(!pthread_create(&thread, NULL, be_strict, NULL));
	need(read(from_strict[0], &byte, 1) == 1);
	checkpoint();
	check_is(write(to_strict[1], &byte, 1), 1);
	check_is(read(from_strict[0], &byte, 1), 1);
	/* A thread that is killed for its filter takes nobody along. */
	check_is(write(to_strict[1], &byte, 1), 1);
	check_is(pthread_join(thread, NULL), 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	way = argc > 2 ? argv[2] : "chain";
	if (!strcmp(way, "strict")) {
		strict();
		return verdict();
	}
	if (!strcmp(way, "chain")) {
		need(!INSTALL(older, 0) && !INSTALL(newer, 0));
		drop_capabilities();
		checkpoint_threads(2, set_up, check_up);
		check_shared();
		return verdict();
	}
	need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (!strcmp(way, "threads")) {
		checkpoint_threads(2, set_up, check_up);
		return verdict();
	}
	if (!strcmp(way, "list")) {
		need(!INSTALL(list, 0));
	} else if (!strcmp(way, "short")) {
		need(!INSTALL(shorter, 0));
	} else if (!strcmp(way, "asleep")) {
		need(!INSTALL(asleep, 0));
	} else {
		need(INSTALL(asking, SECCOMP_FILTER_FLAG_NEW_LISTENER) >= 0);
	}
	checkpoint();
	return verdict();
}
