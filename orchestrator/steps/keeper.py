"""Runs a command in a process group that ends with whoever asked for it. A script, not a module.

    keeper.py LIFE MEMORY COMMAND [ARGUMENT …]

LIFE is a socket, and the asker holds its other end. It hears the command's exit status, or `!` and
why it couldn't begin. When the command ends, or that other end closes because the asker was killed,
the whole group is killed, and this process with it.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys


def main(life: int, memory: int, command: list[str]) -> None:
    os.set_inheritable(life, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # SIGTERM is meant for the others of the group
    child = os.fork()
    if not child:
        _become(command, memory, life)
    _let_go_of_pipes()
    while not _is_over(life, woken, child):
        pass
    os.killpg(0, signal.SIGKILL)


def _become(command: list[str], memory: int, life: int) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        os.execvp(command[0], command)  # noqa: S606
    except (OSError, ValueError, MemoryError) as error:
        os.write(life, f"!{getattr(error, 'strerror', None) or error}".encode())
    os._exit(127)


def _let_go_of_pipes() -> None:
    """So that their ends are seen when the command's own copies close."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)


def _is_over(life: int, woken: int, child: int) -> bool:
    ready, _, _ = select.select([life, woken], [], [])
    if life in ready:
        return True
    os.read(woken, 512)
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        os.write(life, f"\n{os.waitstatus_to_exitcode(status)}".encode())
    return bool(ended)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
