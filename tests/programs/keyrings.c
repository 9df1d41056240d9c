// SPDX-License-Identifier: Apache-2.0
/*
 * A key that one thread alone may find, of two; in one of these ways:
 *	thread	in the keyring of the first thread
 *	process	in that of the process: the other thread has asked for it, and it is in its credentials
 *	revoked	the first thread's, as good as gone
 */
#include "threads.h"
#include <linux/keyctl.h>

static const char *way;
static int ring, asked_by;
static long key, keyring;

static long ask(int create)
{
	return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, ring, create);
}

static void set_up(int number)
{
	if (number != asked_by)
		return;
	key = syscall(SYS_add_key, "user", "ckpt-test", "hidden", 6, ring);
	if (key < 0)
		skip("keyrings: %s", strerror(errno));
	keyring = ask(0);
	need(keyring > 0);
	if (!strcmp(way, "revoked"))
		need(!syscall(SYS_keyctl, KEYCTL_REVOKE, ring));
}

static void check_up(int number)
{
	char text[8] = "";
	if (number != asked_by) {
		check(ask(0) < 0 && errno == ENOKEY, "thread %d has one", number);
	} else if (!strcmp(way, "revoked")) {
		check(ask(0) < 0 && errno == EKEYREVOKED);
	} else {
		check_is(ask(0), keyring);
		check_is(syscall(SYS_keyctl, KEYCTL_READ, key, text, sizeof(text)), 6);
		check_text(text, "hidden");
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	way = argc > 2 ? argv[2] : "thread";
	asked_by = !strcmp(way, "process");
	ring = asked_by ? KEY_SPEC_PROCESS_KEYRING : KEY_SPEC_THREAD_KEYRING;
	checkpoint_threads(1, set_up, check_up);
	return verdict();
}
