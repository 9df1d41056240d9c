// SPDX-License-Identifier: Apache-2.0
/* seccomp filters that refuse some calls. */
#ifndef FILTERS_H
#define FILTERS_H
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

#define REFUSE(nr, error) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), \
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW(nr) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define NR_IS BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define OTHERWISE(action) BPF_STMT(BPF_RET | BPF_K, action)

/* Calls that no kernel has any more; their errors tell which filter has the say. */
enum { FIRST = SYS_uselib, SECOND = SYS_create_module, THIRD = SYS_query_module };

static struct sock_filter older[] = {
	NR_IS, REFUSE(FIRST, 11), REFUSE(SECOND, 12),
	/* what a dump might call */
	REFUSE(SYS_shmat, 1), REFUSE(SYS_shmdt, 1), REFUSE(SYS_userfaultfd, 1),
	REFUSE(SYS_sigaltstack, 1), REFUSE(SYS_tgkill, 1), REFUSE(SYS_rt_sigprocmask, 1),
	REFUSE(SYS_mremap, 1), REFUSE(SYS_clone3, ENOSYS), REFUSE(SYS_getitimer, 1),
	OTHERWISE(SECCOMP_RET_ALLOW),
};
static struct sock_filter newer[] = {
	NR_IS, REFUSE(SECOND, 22), REFUSE(THIRD, 23), OTHERWISE(SECCOMP_RET_ALLOW),
};

#define INSTALL(filter, flags) install(filter, lengthof(filter), flags)
static unused int install(struct sock_filter *filter, unsigned short length, unsigned flags)
{
	struct sock_fprog program = {length, filter};
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static unused int error_of(int nr)
{
	errno = 0;
	return syscall(nr, 0, 0, 0, 0) ? errno : 0;
}

/* Check that this thread has none of the two, the older one, or both. */
static unused void check_filters(int count)
{
	char file[40];
	snprintf(file, sizeof(file), "task/%d/status", gettid());
	check_is(atoi(strchr(proc_line(file, "Seccomp_filters:"), ':') + 1), count);
	check_is(error_of(FIRST), count >= 1 ? 11 : ENOSYS);
	check_is(error_of(SECOND), count >= 2 ? 22 : count ? 12 : ENOSYS);
	check_is(error_of(THIRD), count >= 2 ? 23 : ENOSYS);
}
#endif
