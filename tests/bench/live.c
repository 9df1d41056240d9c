// SPDX-License-Identifier: Apache-2.0
/*
 * The program that is saved while it writes:
 *	live FILE MIB huge|small
 * MIB of private memory, every page written and none like another; four threads; 20 descriptors.
 * It talks through FILE, which is in /dev/shm, mapped here and in the bench: no write to it is
 * ever held up by a disk or a dump, and the bench reads it while the program stands still.
 *
 * The writer looks at the clock all the time and writes pages as they are due; what lies between
 * two looks is counted, if there is a write in between, or if it is the longest. The watcher sleeps shortly, over and over, ahead of all ordinary tasks:
 * what it sees is the freeze rather than the scheduler.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	SUB_BITS = 4, SUBS = 1 << SUB_BITS, BUCKETS = 40 * SUBS, PHASES = 4, PAGE_WORDS = 512,
	HUGE_PAGE = 2 << 20, WATCH_NS = 50000, DOZE_NS = 1000000,
	LATE_NS = 1000000,	/* what is missed by more is not made up for */
	LONG_NS = 1000000,	/* a time between two looks that is worth knowing what it was */
};

/* What happened in a phase: buckets are linear in each power of two, as an HDR histogram's. */
struct phase {
	volatile uint64_t writes;
	volatile uint64_t longest;	/* ns between two looks of the writer; of the watcher at rate 0 */
	volatile uint64_t held;		/* the same, if it had to wait: no scheduler's doing */
	volatile uint64_t frozen;	/* the longest that the watcher was held */
	volatile uint64_t looks;		/* of the watcher */
	volatile uint64_t buckets[BUCKETS];
};

struct talk {
	volatile uint64_t request;	/* raised by the bench, to be forked; answered by the same number */
	volatile uint64_t answer;
	volatile uint64_t result;	/* ns that a fork() took */
	volatile uint64_t phase;		/* 0: nothing is counted */
	volatile uint64_t gap;		/* ns from one page to the next; 0: as fast as it goes */
	volatile uint64_t writing;
	uint64_t unused[2];
	struct phase phases[PHASES];
};

static struct talk *talk;
static uint64_t *memory, words;

static uint64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);	/* by the vDSO: no system call that could be restarted */
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void doze(long ns)
{
	struct timespec ts = {.tv_nsec = ns};
	nanosleep(&ts, NULL);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	return *state ^= *state << 17;
}

static void raise_to(volatile uint64_t *longest, uint64_t ns)
{
	if (ns > *longest)
		*longest = ns;
}

/* One thread counts at a time, hence plain additions. */
static void count(struct phase *phase, uint64_t ns)
{
	int shift = ns < SUBS ? 0 : 63 - __builtin_clzll(ns) - SUB_BITS;
	uint64_t bucket = ns < SUBS ? ns : (shift + 1) * SUBS + ((ns >> shift) & (SUBS - 1));
	if (bucket >= BUCKETS)
		bucket = BUCKETS - 1;
	phase->buckets[bucket] = phase->buckets[bucket] + 1;
}

/*
 * How often this thread has waited for something other than a CPU: a sleep, a page fault, or
 * whoever stopped it. Nothing is added by a scheduler, or a hypervisor, that runs others.
 */
static uint64_t waits(void)
{
	struct rusage usage;
	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw;
}

static void *watcher(void *arg)
{
	struct sched_param first = {.sched_priority = 1};
	uint64_t last, next, known;

	sched_setscheduler(0, SCHED_FIFO, &first);
	prctl(PR_SET_TIMERSLACK, 1);
	for (last = now();; last = next) {
		known = waits();
		uint64_t before = talk->phase;
		struct phase *phase = &talk->phases[before];
		doze(before ? WATCH_NS : DOZE_NS);
		next = now();
		if (before != talk->phase)
			continue;
		if (waits() > known + 1)	/* its own sleep is one */
			raise_to(&phase->frozen, next - last);
		if (!talk->writing) {
			count(phase, next - last);
			raise_to(&phase->longest, next - last);
		}
		phase->looks = phase->looks + 1;
	}
	return arg;
}

static void write_page(uint64_t *state)
{
	uint64_t page = next_random(state) % (words / PAGE_WORDS);
	memory[page * PAGE_WORDS + (*state >> 32) % PAGE_WORDS] = *state;
}

/* A thread that never sleeps has waited if it was held; told now and then, it is not costly. */
static void look(struct phase *phase, uint64_t last, uint64_t next)
{
	static uint64_t known, at;
	uint64_t found;

	raise_to(&phase->longest, next - last);
	if (next - at < LONG_NS)
		return;
	found = waits();
	if (found != known && next - last >= LONG_NS)
		raise_to(&phase->held, next - last);
	known = found;
	at = next;
}

static void *writer(void *arg)
{
	uint64_t state = 88172645463325252ULL, last = now(), due = last, next;

	for (;;) {
		struct phase *phase = &talk->phases[talk->phase];
		if (!talk->writing) {
			doze(DOZE_NS);
			last = due = now();
			continue;
		}
		next = now();
		if (talk->gap && next < due) {
			look(phase, last, next);
			last = next;
			continue;
		}
		write_page(&state);
		next = now();
		count(phase, next - last);
		look(phase, last, next);
		phase->writes = phase->writes + 1;
		last = next;
		due = due + talk->gap + LATE_NS < next ? next : due + talk->gap;
	}
	return arg;
}

static void *idle(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static int fill(const char *pages)
{
	uint64_t size = words * 8, state = 88172645463325252ULL;
	char *room = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (room == MAP_FAILED)
		return -1;
	memory = (uint64_t *)(((uintptr_t)room + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	if (madvise(memory, size, strcmp(pages, "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE))
		return -1;
	for (uint64_t i = 0; i < words; i++)
		memory[i] = next_random(&state);
	return 0;
}

/* How long a fork() keeps its caller: what a snapshot by fork would cost it. */
static uint64_t fork_ns(void)
{
	uint64_t since = now(), took;
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	took = now() - since;
	waitpid(child, NULL, 0);
	return took;
}

static int open_listening(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	return fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 16) ? -1 : fd;
}

/* With 0 to 2 and FILE there are 20: 4 files, 2 pipes, 2 eventfds, timerfd, epoll, 5 sockets. */
static int open_files(const char *self)
{
	struct itimerspec far = {.it_value.tv_sec = 100000};
	int pipes[4], pair[2], events[2], timer, listening, set = epoll_create1(0);
	struct epoll_event in = {.events = EPOLLIN};

	for (int i = 0; i < 3; i++)
		if (open(self, O_RDONLY) < 0)
			return -1;
	if (pipe(pipes) || pipe(pipes + 2) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return -1;
	events[0] = eventfd(0, 0);
	events[1] = eventfd(1, EFD_NONBLOCK);
	timer = timerfd_create(CLOCK_MONOTONIC, 0);
	listening = open_listening();
	if (events[0] < 0 || events[1] < 0 || listening < 0 || socket(AF_INET, SOCK_DGRAM, 0) < 0 ||
	    open_listening() < 0 || timerfd_settime(timer, 0, &far, NULL))
		return -1;
	return epoll_ctl(set, EPOLL_CTL_ADD, events[0], &in) || epoll_ctl(set, EPOLL_CTL_ADD, timer, &in) ||
	       epoll_ctl(set, EPOLL_CTL_ADD, pipes[0], &in) || epoll_ctl(set, EPOLL_CTL_ADD, pair[0], &in) ||
	       epoll_ctl(set, EPOLL_CTL_ADD, listening, &in);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int fd = argc == 4 ? open(argv[1], O_RDWR) : -1;

	talk = mmap(NULL, sizeof(*talk), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	words = strtoul(argc == 4 ? argv[2] : "0", NULL, 10) << 17;
	if (talk == MAP_FAILED || !words || open_files(argv[0]) || fill(argv[3]))
		return 1;
	if (pthread_create(&thread, NULL, writer, NULL) || pthread_create(&thread, NULL, watcher, NULL) ||
	    pthread_create(&thread, NULL, idle, NULL))
		return 1;
	for (;; doze(DOZE_NS)) {
		if (talk->request == talk->answer)
			continue;
		talk->result = talk->request == 1 ? 0 : fork_ns();
		talk->answer = talk->request;
	}
}
