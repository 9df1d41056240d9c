// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that would notice if anybody stopped them and did not put everything back: they compute,
 * sleep, wait in the kernel, take signals and faults, and check what comes of it each time.
 *
 * Only the first thread and `signaled` have signals unblocked, so that in all others a call that
 * says EINTR, or returns too early, was somebody else's doing. epoll_wait alone may say EINTR: it
 * does so after any stop (signal(7)), and how often it did is told in the file `interrupted`.
 *
 * With the argument `gone`, another thread is what the first one was, which ends.
 */
#include "program.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/time.h>

enum { PAGE = 4096, PAGES = 64, MS = 1000000 };

struct worker {
	const char *name;
	void (*work)(struct worker *self);
	bool open; /* to signals */
	unsigned long rounds;
	char wrong[120]; /* the first thing that went wrong */
	pthread_t thread;
	sigset_t mask;
};

static volatile bool stop;
static int pipe_ends[2], silent[2], events, poller;
static volatile sig_atomic_t alarms, hits;
static char *fault_page, *memory;

#define wrong(self, ...) \
	((self)->wrong[0] ? 0 : snprintf((self)->wrong, sizeof((self)->wrong), __VA_ARGS__))

static uint64_t lcg(uint64_t x)
{
	return x * 6364136223846793005ULL + 1442695040888963407ULL;
}

static void compute(struct worker *self)
{
	uint64_t x = self->rounds, y = x;
	double a = x, b = a;
	for (int i = 0; i < 20000; i++)
		x = lcg(x), a = a * 0.999 + i;
	for (int i = 0; i < 20000; i++)
		y = lcg(y), b = b * 0.999 + i;
	if (x != y || a != b)
		wrong(self, "%lx %lx %g %g", x, y, a, b);
	usleep(100);
}

static void sleep_a_while(struct worker *self)
{
	struct timespec span = {0, 2 * MS};
	int64_t before = now_ns(CLOCK_MONOTONIC);
	int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &span, NULL);
	if (error || now_ns(CLOCK_MONOTONIC) < before + 2 * MS)
		wrong(self, "%s", strerror(error));
}

static void poll_a_while(struct worker *self)
{
	struct pollfd fd = {.fd = silent[0], .events = POLLIN};
	int64_t before = now_ns(CLOCK_MONOTONIC);
	int got = poll(&fd, 1, 3);
	if (got || now_ns(CLOCK_MONOTONIC) < before + 3 * MS)
		wrong(self, "%d, %s", got, strerror(errno));
}

static void read_numbers(struct worker *self)
{
	uint64_t number = -1;
	if (read(pipe_ends[0], &number, 8) != 8 || number != self->rounds)
		wrong(self, "%lu in round %lu: %s", number, self->rounds, strerror(errno));
}

static void write_numbers(struct worker *self)
{
	if (write(pipe_ends[1], &self->rounds, 8) != 8)
		wrong(self, "%s", strerror(errno));
	usleep(500);
}

static void wait_for_events(struct worker *self)
{
	struct epoll_event event;
	uint64_t count;
	int got = epoll_wait(poller, &event, 1, -1);
	if (got < 0 && errno == EINTR)
		tell("interrupted", "");
	else if (got != 1 || read(events, &count, 8) != 8)
		wrong(self, "%d, %s", got, strerror(errno));
}

static void make_events(struct worker *self)
{
	uint64_t one = 1;
	if (write(events, &one, 8) != 8)
		wrong(self, "%s", strerror(errno));
	usleep(700);
}

static void on_signal(unused int signo)
{
	alarms++;
}

static void on_fault(unused int signo, siginfo_t *info, unused void *context)
{
	if ((char *)info->si_addr != fault_page || mprotect(fault_page, PAGE, PROT_READ | PROT_WRITE))
		_exit(98);
	hits++;
}

static void fault(struct worker *self)
{
	sig_atomic_t before = hits;
	mprotect(fault_page, PAGE, PROT_NONE);
	*(volatile char *)fault_page = 1;
	if (hits != before + 1)
		wrong(self, "%d faults", hits - before);
	usleep(200);
}

static void write_memory(struct worker *self)
{
	volatile uint64_t *page = (uint64_t *)(memory + self->rounds % PAGES * PAGE);
	uint64_t last = self->rounds / PAGES;
	if (*page != last)
		wrong(self, "%lu, not %lu", *page, last);
	*page = last + 1;
	if (self->rounds % 4 == 0)
		usleep(100);
}

static void signaled(unused struct worker *self)
{
	pthread_kill(pthread_self(), SIGUSR1);
	usleep(300);
}

static void first(unused struct worker *self)
{
	usleep(5000);
}

static struct worker workers[] = {
	{.name = "computing", .work = compute},
	{.name = "sleeping", .work = sleep_a_while},
	{.name = "polling", .work = poll_a_while},
	{.name = "reading", .work = read_numbers},
	{.name = "writing", .work = write_numbers},
	{.name = "epoll", .work = wait_for_events},
	{.name = "events", .work = make_events},
	{.name = "faults", .work = fault},
	{.name = "memory", .work = write_memory},
	{.name = "signaled", .work = signaled, .open = true},
	{.name = "first", .work = first, .open = true},
};
static struct worker *self_of_first = &workers[lengthof(workers) - 1];

static void check_mask(struct worker *self)
{
	sigset_t now;
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	for (int signo = 1; signo < 65; signo++)
		if (sigismember(&now, signo) != sigismember(&self->mask, signo))
			wrong(self, "signal %d is %sblocked", signo,
			      sigismember(&now, signo) ? "" : "not ");
}

static void begin_work(struct worker *self)
{
	sigset_t all;
	free(path("")); /* or its arena would be a new mapping later */
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	if (!self->open)
		pthread_sigmask(SIG_SETMASK, &all, NULL);
	pthread_sigmask(SIG_BLOCK, NULL, &self->mask);
}

static void one_round(struct worker *self)
{
	self->work(self);
	check_mask(self);
	__atomic_add_fetch(&self->rounds, 1, __ATOMIC_RELEASE);
}

static void *run(void *argument)
{
	begin_work(argument);
	while (!stop)
		one_round(argument);
	return NULL;
}

/* Every thread is to go a few rounds more, within ten seconds. */
static void check_moving(void)
{
	unsigned long before[lengthof(workers)];
	for (unsigned i = 0; i < lengthof(workers); i++)
		before[i] = __atomic_load_n(&workers[i].rounds, __ATOMIC_ACQUIRE);
	for (unsigned i = 0; i < lengthof(workers); i++) {
		for (int tries = 0; tries < 2000 && workers[i].rounds < before[i] + 2; tries++)
			one_round(self_of_first);
		check(workers[i].rounds >= before[i] + 2, "%s stands still", workers[i].name);
		check(!workers[i].wrong[0], "%s: %s", workers[i].name, workers[i].wrong);
	}
}

static int be_unharmed(void)
{
	struct itimerval often = {{0, 1500}, {0, 1500}};
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	struct sigaction faulting = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	struct epoll_event event = {.events = EPOLLIN};
	struct stat st;
	char *go = path("go");

	need(!pipe(pipe_ends) && !pipe(silent));
	need((events = eventfd(0, 0)) >= 0 && (poller = epoll_create1(0)) >= 0);
	need(!epoll_ctl(poller, EPOLL_CTL_ADD, events, &event));
	fault_page = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + PAGE;
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(fault_page != MAP_FAILED + PAGE && memory != MAP_FAILED);
	memset(memory, 0, PAGES * PAGE);
	need(!sigaction(SIGALRM, &action, NULL) && !sigaction(SIGUSR1, &action, NULL));
	need(!sigaction(SIGSEGV, &faulting, NULL));
	begin_work(self_of_first);
	for (unsigned i = 0; i < lengthof(workers) - 1; i++)
		need(!pthread_create(&workers[i].thread, NULL, run, &workers[i]));
	need(!setitimer(ITIMER_REAL, &often, NULL));
	for (unsigned i = 0; i < lengthof(workers) - 1; i++)
		while (workers[i].rounds < 3)
			one_round(self_of_first);
	tell("ready", "");
	while (stat(go, &st))
		one_round(self_of_first);
	check_moving();
	check(alarms, "no signal came");
	return verdict();
}

static void *without_first_thread(unused void *argument)
{
	char name[40];
	snprintf(name, sizeof(name), "/proc/%d/stat", getpid());
	while (strrchr(slurp(name), ')')[2] != 'Z')
		usleep(1000);
	exit(be_unharmed());
}

int main(int argc, char **argv)
{
	pthread_t thread;
	begin(argc, argv);
	if (argc == 2)
		return be_unharmed();
	need(!pthread_create(&thread, NULL, without_first_thread, NULL));
	syscall(SYS_exit, 0);
}
