// SPDX-License-Identifier: Apache-2.0
/* Processes held by descriptor: this one, two that have ended; or a thread; or one outside. */
#include "program.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#define PIDFD_THREAD O_EXCL

static int opened(pid_t pid, int flags)
{
	int fd = syscall(SYS_pidfd_open, pid, flags);
	need(fd >= 0);
	return fd;
}

static int signalled(int fd, int signo)
{
	return syscall(SYS_pidfd_send_signal, fd, signo, NULL, 0);
}

/* The pid that fdinfo tells; -1 for a process that has ended. */
static int pid_of(int fd)
{
	char name[32];
	snprintf(name, sizeof(name), "fdinfo/%d", fd);
	return atoi(proc_line(name, "Pid:") + 4);
}

static ino_t inode(int fd)
{
	struct stat st = {};
	fstat(fd, &st);
	return st.st_ino;
}

static bool readable(int fd)
{
	struct pollfd one = { fd, POLLIN, 0 };
	return poll(&one, 1, 0) == 1 && one.revents & POLLIN;
}

static pid_t child(void)
{
	pid_t pid = fork();
	if (!pid)
		for (;;)
			pause();
	return pid;
}

static void end(pid_t pid)
{
	need(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid);
}

static int processes(void)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 7 }, seen = {};
	sigset_t set, pending;
	int epoll = epoll_create1(EPOLL_CLOEXEC); /* lower than what it watches */
	int self = opened(getpid(), O_NONBLOCK), twin = dup(self), other = opened(getpid(), 0);
	pid_t one = child(), two = child();
	int ended = opened(one, O_NONBLOCK), same = opened(one, 0), another = opened(two, 0);
	bool differ = inode(ended) != inode(another); /* since Linux 6.9 */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	need(epoll >= 0 && twin >= 0 && !sigprocmask(SIG_BLOCK, &set, NULL));
	need(!fcntl(twin, F_SETFD, 0));
	end(one);
	end(two);
	need(!epoll_ctl(epoll, EPOLL_CTL_ADD, ended, &event));

	checkpoint();

	check_is(pid_of(self), getpid());
	check_is(pid_of(twin), getpid());
	check_is(pid_of(other), getpid());
	check_is(fcntl(self, F_GETFD), FD_CLOEXEC);
	check_is(fcntl(twin, F_GETFD), 0);
	check_is(fcntl(self, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(fcntl(other, F_GETFL) & O_NONBLOCK, 0);
	check_is(inode(self), inode(other));
	check(!readable(self));
	check_is(signalled(other, SIGUSR1), 0);
	check_is(sigpending(&pending), 0);
	check(sigismember(&pending, SIGUSR1));
	for (int fd = ended; fd <= another; fd++) {
		check_is(pid_of(fd), -1);
		check(readable(fd));
		check_is(signalled(fd, 0), -1);
		check_is(errno, ESRCH);
		check_is(fcntl(fd, F_GETFD), FD_CLOEXEC);
	}
	check_is(fcntl(ended, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	check_is(inode(ended), inode(same));
	check_is(inode(ended) != inode(another), differ);
	check_is(epoll_wait(epoll, &seen, 1, 0), 1);
	check_is(seen.data.u64, 7);
	return verdict();
}

static pid_t tid;

static void *sleeper(void *unused_)
{
	tid = syscall(SYS_gettid);
	for (;;)
		pause();
	return unused_;
}

static int threads(void)
{
	pthread_t thread;
	need(!pthread_create(&thread, NULL, sleeper, NULL));
	while (!*(volatile pid_t *)&tid)
		usleep(1000);
	int fd = syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
	if (fd < 0)
		skip("no PIDFD_THREAD (Linux 6.9)");

	checkpoint();

	check_is(pid_of(fd), tid);
	check_is(fcntl(fd, F_GETFL) & PIDFD_THREAD, PIDFD_THREAD);
	check_is(signalled(fd, 0), 0);
	return verdict();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	need(argc == 3);
	if (!strcmp(argv[2], "process"))
		return processes();
	if (!strcmp(argv[2], "thread"))
		return threads();
	int parent = opened(getppid(), 0);
	checkpoint();
	check_is(pid_of(parent), getppid());
	return verdict();
}
