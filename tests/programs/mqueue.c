// SPDX-License-Identifier: Apache-2.0
/* A POSIX message queue: it looks like a file. */
#include "program.h"
#include <mqueue.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	char name[40], text[10000] = "";
	snprintf(name, sizeof(name), "/ckpt-test-%d", getpid());
	mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
	if (queue < 0)
		skip("no message queues: %s", strerror(errno));
	need(!mq_unlink(name) && !mq_send(queue, "message", 8, 1));

	checkpoint();

	check_is(mq_receive(queue, text, sizeof(text), NULL), 8);
	check_text(text, "message");
	return verdict();
}
