// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that stand in a system call while the program is dumped: each must return what it would
 * have returned, no sooner and no later.
 *
 * Later means: later than the time it was to wait and the time the process was not there. We know
 * the latter only from above, as the time spent at checkpoint(); so that starting the whole wait
 * anew is told from waiting for the rest, the calls have been under way for LEAD before it. All is
 * measured by the real-time clock: a restored process may live in a time namespace in which the
 * monotonic clock did not go on while it was away.
 */
#ifndef RESTART_H
#define RESTART_H
#include "program.h"
#include <pthread.h>

#define MS 1000000LL
#define LEAD (700 * MS)
#define SLACK (600 * MS)
#define TIMEOUT (2200 * MS)

/* What the kernel does of itself with a call of that kind that is interrupted without a handler. */
enum interrupted {
	BEGINS_AGAIN, /* and that is right: it waits for ever, or until a point in time */
	GOES_ON, /* by restart_syscall(), which knows what is left of the time */
	FAILS, /* with EINTR; what was left is forgotten, the whole wait anew must do */
};

struct call {
	const char *name;
	int number; /* of the system call that it must be seen in */
	enum interrupted kind;
	long (*run)(void); /* what the call returned, -errno if it failed */
	long result; /* what it should return */
	void (*release)(void); /* makes an endless one return */
};

struct caller {
	const struct call *call;
	long got;
	int64_t began, ended;
	volatile pid_t tid;
	pthread_t thread;
};

#define OR_ERRNO(call) ({ long result_ = (call); result_ < 0 ? -errno : result_; })

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static void *run_call(void *argument)
{
	struct caller *caller = argument;
	caller->began = now_ns(CLOCK_REALTIME);
	caller->tid = gettid();
	caller->got = caller->call->run();
	caller->ended = now_ns(CLOCK_REALTIME);
	return NULL;
}

static int current_syscall(pid_t tid)
{
	char name[64], *text;
	snprintf(name, sizeof(name), "/proc/self/task/%d/syscall", tid);
	text = slurp(name);
	int number = text[0] >= '0' && text[0] <= '9' ? atoi(text) : -1;
	free(text);
	return number;
}

static bool is_calling(struct caller *caller)
{
	return caller->tid && current_syscall(caller->tid) == caller->call->number;
}

static void check_caller(struct caller *caller, int64_t gone)
{
	const struct call *call = caller->call;
	int64_t took = caller->ended - caller->began, most = TIMEOUT + gone + SLACK;
	check(caller->got == call->result, "%s: %ld, expected %ld", call->name, caller->got,
	      call->result);
	if (call->release)
		return;
	if (call->kind == FAILS)
		most += LEAD;
	check(took >= TIMEOUT, "%s: %lld ms too early", call->name, (TIMEOUT - took) / MS);
	check(took <= most, "%s: %lld ms too late, %lld ms at the checkpoint", call->name,
	      (took - most) / MS, (long long)gone / MS);
}

/* checkpoint() with a thread in each of the calls; with argv[2], in those that begin again. */
static unused void checkpoint_calls(char **argv, const struct call *calls, unsigned length)
{
	struct caller *callers = calloc(length, sizeof(*callers));
	unsigned count = 0;
	for (unsigned i = 0; i < length; i++)
		if (!argv[2] || calls[i].kind == BEGINS_AGAIN)
			callers[count++].call = &calls[i];
	for (unsigned i = 0; i < count; i++) {
		need(!pthread_create(&callers[i].thread, NULL, run_call, &callers[i]));
		while (!is_calling(&callers[i]))
			usleep(1000);
	}
	while (now_ns(CLOCK_REALTIME) < callers[count - 1].began + LEAD)
		usleep(1000);
	for (unsigned i = 0; i < count; i++)
		need(is_calling(&callers[i]));

	int64_t ready = now_ns(CLOCK_REALTIME);
	checkpoint();
	int64_t gone = now_ns(CLOCK_REALTIME) - ready;

	for (unsigned i = 0; i < count; i++)
		check(!callers[i].call->release || !callers[i].ended, "%s returned %ld",
		      callers[i].call->name, callers[i].got);
	for (unsigned i = 0; i < count; i++) {
		if (callers[i].call->release)
			callers[i].call->release();
		pthread_join(callers[i].thread, NULL);
		check_caller(&callers[i], gone);
	}
}

#endif
