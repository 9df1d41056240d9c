// SPDX-License-Identifier: Apache-2.0
/*
 * The process that `make demo` dumps: it never stops working, and knows of itself whether it lost
 * anything.
 *	demo DIRECTORY [MIB]
 * Three threads write pages of memory, here and there, each in its own third. The first thread counts
 * ticks of a timer, keeps a log of them, and answers on the loopback, at the port in DIRECTORY/port,
 * one line per line:
 *	count	the number of this answer
 *	work	pages written so far, and ticks counted
 *	verify	a line per thing that was checked, "ok NAME: what" or "lost NAME: what", then "."
 * Every page holds its number, how often it was written, and words that follow from both: so each
 * page shows whether it is whole, and their sum whether any is older or newer than the others.
 * It ends when DIRECTORY/go appears, or when nobody has asked anything for two minutes.
 */
#include "sockets.h"
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/timerfd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, WORKERS = 3, TICK_NS = 10000000, LONELY_S = 120 };
enum { PIPED = 40000, UNLINKED = 300000, EVENTS = 42, LOG_LINES = 1 << 16 };

struct worker {
	pthread_mutex_t lock;
	uint64_t *memory, pages, written, state;
};

static struct worker workers[WORKERS];
static uint64_t answers, ticks;
static volatile sig_atomic_t alarms;
static int timer, events, unlinked, logfile, pipe_ends[2], pair[2];

/* Memory, and who writes it */

static uint64_t word(uint64_t page, uint64_t writes, int i)
{
	uint64_t x = (page << 20 ^ writes) * 0x9e3779b97f4a7c15ULL;
	return (x ^ x >> 31) * 0x94d049bb133111ebULL + i;
}

static void write_page(struct worker *self, uint64_t page, uint64_t writes)
{
	uint64_t *words = self->memory + page * WORDS;
	words[0] = page;
	words[1] = writes;
	for (int i = 2; i < WORDS; i++)
		words[i] = word(page, writes, i);
}

static bool whole(struct worker *self, uint64_t page)
{
	uint64_t *words = self->memory + page * WORDS;
	bool good = words[0] == page;
	for (int i = 2; i < WORDS; i++)
		good &= words[i] == word(page, words[1], i);
	return good;
}

static void *work(void *argument)
{
	struct worker *self = argument;
	for (;;) {
		pthread_mutex_lock(&self->lock);
		for (int i = 0; i < 10; i++, self->written++) {
			self->state ^= self->state << 13;
			self->state ^= self->state >> 7;
			self->state ^= self->state << 17;
			uint64_t page = self->state % self->pages;
			write_page(self, page, self->memory[page * WORDS + 1] + 1);
		}
		pthread_mutex_unlock(&self->lock);
		usleep(1000);
	}
	return NULL;
}

static void start_workers(uint64_t pages)
{
	for (int i = 0; i < WORKERS; i++) {
		struct worker *self = &workers[i];
		pthread_t thread;
		*self = (struct worker){.pages = pages / WORKERS, .state = 88172645463325252ULL + i};
		pthread_mutex_init(&self->lock, NULL);
		self->memory = mmap(NULL, self->pages * PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		need(self->memory != MAP_FAILED);
		for (uint64_t page = 0; page < self->pages; page++)
			write_page(self, page, 0);
		need(!pthread_create(&thread, NULL, work, self));
	}
}

static uint64_t written(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < WORKERS; i++)
		sum += __atomic_load_n(&workers[i].written, __ATOMIC_RELAXED);
	return sum;
}

/* Files, timers and what waits in the kernel */

static void on_alarm(unused int signo)
{
	alarms++;
}

static void open_files(void)
{
	static char text[UNLINKED];
	struct itimerspec every = {{0, TICK_NS}, {0, TICK_NS}};
	struct itimerval often = {{0, 20000}, {0, 20000}};
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	char *name = path("unlinked");
	need(!pipe(pipe_ends) && !socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fill(text, sizeof(text), 1);
	need(write(pipe_ends[1], text, PIPED) == PIPED);
	send_text(pair[0], "a letter in the post");
	need((events = eventfd(EVENTS, EFD_NONBLOCK)) >= 0);
	need((unlinked = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0);
	need(write(unlinked, text, sizeof(text)) == sizeof(text) && !unlink(name));
	need((logfile = open(path("log"), O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0);
	need(!ftruncate(logfile, LOG_LINES * 16));
	need((timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0);
	need(!timerfd_settime(timer, 0, &every, NULL));
	need(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &often, NULL));
}

/*
 * One line of the log per expiration that we hear of. The log keeps its size, and wraps: a restored
 * process goes on where its own offset is, even when a copy of it has written more since.
 */
static void hear_timer(void)
{
	uint64_t expired;
	if (read(timer, &expired, sizeof(expired)) != sizeof(expired))
		return;
	if (lseek(logfile, 0, SEEK_CUR) == LOG_LINES * 16)
		lseek(logfile, 0, SEEK_SET);
	dprintf(logfile, "%15lu\n", ++ticks);
}

/* The examination */

static void answer(FILE *out, bool good, const char *name, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fprintf(out, "%s %s: ", good ? "ok" : "lost", name);
	vfprintf(out, format, args);
	fputc('\n', out);
	va_end(args);
	if (!good)
		fail(__LINE__, name, "lost");
}

static void verify_memory(FILE *out)
{
	uint64_t broken = 0, sum = 0, counted = 0, pages = 0;
	for (int i = 0; i < WORKERS; i++) {
		struct worker *one = &workers[i];
		pthread_mutex_lock(&one->lock);
		for (uint64_t page = 0; page < one->pages; page++) {
			broken += !whole(one, page);
			sum += one->memory[page * WORDS + 1];
		}
		counted += one->written;
		pages += one->pages;
		pthread_mutex_unlock(&one->lock);
	}
	answer(out, !broken && sum == counted, "memory",
	       "%lu pages, %lu broken; %lu writes found, %lu counted", pages, broken, sum, counted);
}

static void verify_threads(FILE *out)
{
	uint64_t before = written();
	for (int i = 0; i < 500 && written() < before + 100; i++)
		usleep(10000);
	answer(out, written() > before, "threads", "%d at work", WORKERS);
}

static void verify_timers(FILE *out)
{
	struct pollfd ticking = {.fd = timer, .events = POLLIN};
	sig_atomic_t before = alarms;
	hear_timer();
	for (int i = 0; i < 500 && alarms == before; i++)
		usleep(10000);
	bool ticks_on = poll(&ticking, 1, 5000) == 1, rings = alarms != before;
	answer(out, ticks_on && rings, "timers", "the descriptor %s, the signal %s",
	       ticks_on ? "ticks" : "stands still", rings ? "comes" : "does not come");
}

static void verify_files(FILE *out)
{
	static char text[UNLINKED];
	char last[17] = "";
	off_t offset = lseek(logfile, 0, SEEK_CUR);
	pread(logfile, last, 16, offset - 16);
	answer(out, ticks && strtoul(last, NULL, 10) == ticks, "log",
	       "%lu lines written, the last at offset %ld", ticks, offset - 16);
	bool good = pread(unlinked, text, UNLINKED, 0) == UNLINKED && differs(text, UNLINKED, 1) < 0;
	answer(out, good, "unlinked file", "%d bytes in a file without a name", UNLINKED);
}

/* What is taken out to be looked at is put back, for the next time. */
static void verify_queues(FILE *out)
{
	static char text[PIPED];
	uint64_t count = 0;
	char *letter = receive_text(pair[1]);
	bool good = read(pipe_ends[0], text, PIPED) == PIPED && differs(text, PIPED, 1) < 0;
	answer(out, good, "pipe", "%d bytes, not yet read", PIPED);
	answer(out, !strcmp(letter, "a letter in the post"), "socket", "%s", letter);
	bool counted = read(events, &count, 8) == 8 && count == EVENTS;
	answer(out, counted, "eventfd", "a count of %lu", count);
	if (write(pipe_ends[1], text, PIPED) != PIPED || write(events, &count, 8) != 8)
		answer(out, false, "pipe", "cannot be written");
	send_text(pair[0], letter);
	free(letter);
}

static void verify(FILE *out)
{
	verify_memory(out);
	verify_threads(out);
	verify_timers(out);
	verify_files(out);
	verify_queues(out);
}

/* Talk with one client until it leaves. */
static void serve(int client)
{
	char line[200];
	FILE *in = fdopen(client, "r"), *out = fdopen(dup(client), "w");
	need(in && out);
	while (fgets(line, sizeof(line), in)) {
		if (!strncmp(line, "verify", 6)) {
			verify(out);
			fputs(".\n", out);
		} else if (!strncmp(line, "work", 4)) {
			fprintf(out, "%lu %lu\n", written(), ticks);
		} else {
			fprintf(out, "%lu\n", ++answers);
		}
		fflush(out);
	}
	fclose(in);
	fclose(out);
}

static int listen_somewhere(void)
{
	char port[20];
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	need(listener >= 0);
	set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1);
	bind_loopback(listener, AF_INET);
	need(!listen(listener, 16));
	snprintf(port, sizeof(port), "%d\n", ntohs(name_of(listener).v4.sin_port));
	tell("port", port);
	return listener;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct stat st;
	char *go = path("go");
	signal(SIGPIPE, SIG_IGN);
	open_files();
	start_workers(argc > 2 ? strtoul(argv[2], NULL, 10) << 8 : WORKERS << 8);
	struct pollfd waiting[] = {{listen_somewhere(), POLLIN, 0}, {timer, POLLIN, 0}};
	time_t asked = time(NULL);
	tell("ready", "");
	while (stat(go, &st) && time(NULL) < asked + LONELY_S) {
		if (poll(waiting, 2, 100) < 1)
			continue;
		if (waiting[1].revents)
			hear_timer();
		if (waiting[0].revents) {
			serve(accept(waiting[0].fd, NULL, NULL));
			asked = time(NULL);
		}
	}
	verify(fopen("/dev/null", "w"));
	return verdict();
}
