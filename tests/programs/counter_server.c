// SPDX-License-Identifier: Apache-2.0
/*
 * A server to look at, for demonstrations and measurements:
 *	counter_server DIRECTORY [MIB]
 * listens on the loopback at a port that it leaves in DIRECTORY/port, and answers a line per line:
 *	count	the number of this answer
 *	verify	"ok" if all of the MIB of memory is as it should be, or the first page that is not
 *	write N	writes N pages, here and there; answers how many were written in all
 * Every page holds its number and how often it was written, and a check over the two, so that any
 * state of the memory that was there at one instant is good, and a mixture of two is not: the
 * writes of all pages must add up.
 * It ends, like every program here, when DIRECTORY/go appears; nothing else ends it.
 */
#include "sockets.h"
#include <poll.h>
#include <sys/mman.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t *memory;
static size_t pages;
static uint64_t answers, written, state = 88172645463325252ULL;

static uint64_t mix(uint64_t page, uint64_t writes)
{
	uint64_t x = page * 0x9e3779b97f4a7c15ULL ^ writes * 0xbf58476d1ce4e5b9ULL;
	return (x ^ (x >> 31)) * 0x94d049bb133111ebULL;
}

static void write_page(uint64_t page, uint64_t writes)
{
	uint64_t *words = memory + page * WORDS, value = mix(page, writes);
	words[0] = page;
	words[1] = writes;
	for (int i = 2; i < WORDS; i++)
		words[i] = value + i;
}

static bool page_is_good(uint64_t page)
{
	uint64_t *words = memory + page * WORDS, value = mix(page, words[1]);
	bool good = words[0] == page;
	for (int i = 2; i < WORDS; i++)
		good &= words[i] == value + i;
	return good;
}

static uint64_t random_page(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % pages;
}

static void verify(char *answer, size_t size)
{
	uint64_t sum = 0;
	for (uint64_t page = 0; page < pages; page++) {
		if (!page_is_good(page)) {
			snprintf(answer, size, "page %lu of %zu is wrong\n", page, pages);
			return;
		}
		sum += memory[page * WORDS + 1];
	}
	if (sum != written)
		snprintf(answer, size, "%lu writes in memory, %lu counted\n", sum, written);
	else
		snprintf(answer, size, "ok\n");
}

static void answer_to(const char *line, char *answer, size_t size)
{
	if (!strncmp(line, "verify", 6)) {
		verify(answer, size);
	} else if (!strncmp(line, "write ", 6)) {
		for (long i = pages ? atol(line + 6) : 0; i > 0; i--, written++) {
			uint64_t page = random_page();
			write_page(page, memory[page * WORDS + 1] + 1);
		}
		snprintf(answer, size, "%lu\n", written);
	} else {
		snprintf(answer, size, "%lu\n", ++answers);
	}
}

/* Talk with one client until it leaves. */
static void serve(int client)
{
	char line[200], answer[200];
	FILE *in = fdopen(client, "r");
	while (in && fgets(line, sizeof(line), in)) {
		answer_to(line, answer, sizeof(answer));
		if (send(client, answer, strlen(answer), MSG_NOSIGNAL) < 0)
			break;
	}
	fclose(in);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct stat st;
	char port[20], answer[200], *go = path("go");
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	pages = argc > 2 ? strtoul(argv[2], NULL, 10) << 8 : 0;
	memory = mmap(NULL, pages * PAGE + PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED && listener >= 0);
	for (uint64_t page = 0; page < pages; page++)
		write_page(page, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	bind_loopback(listener, AF_INET);
	need(!listen(listener, 128));
	snprintf(port, sizeof(port), "%d\n", ntohs(name_of(listener).v4.sin_port));
	tell("port", port);
	tell("ready", "");

	struct pollfd ready = {.fd = listener, .events = POLLIN};
	while (stat(go, &st)) {
		if (poll(&ready, 1, 10) == 1)
			serve(accept(listener, NULL, NULL));
	}
	answer_to("verify", answer, sizeof(answer));
	check_text(answer, "ok\n");
	return verdict();
}
