# SPDX-License-Identifier: Apache-2.0
"""A terminal with a shell in it, as sshd or tmux has: what comes by a fifo is typed.

screen.py DIRECTORY PROGRAM...: types what is written to DIRECTORY/keys, adds what is shown to
DIRECTORY/screen.
"""

import os
import pty
import select
import sys

os.chdir(sys.argv[1])
pid, master = pty.fork()
if not pid:
    os.execvp(sys.argv[2], sys.argv[2:])
os.mkfifo("keys")
keys = os.open("keys", os.O_RDWR)
screen = os.open("screen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    ready, _, _ = select.select([keys, master], [], [])
    if keys in ready:
        os.write(master, os.read(keys, 4096))
    if master in ready:
        os.write(screen, os.read(master, 4096))
