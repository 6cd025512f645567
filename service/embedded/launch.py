"""Run as a program of its own: becomes a server that ends when the process that started it ends.

It stands between fork and exec so that no Python code has to run in a forked copy of a process with threads. The order
matters: the kernel clears a parent-death signal when credentials change, so it is requested after they have; and a
parent that died before the request is noticed by asking who the parent is after it.

Started as `python -I -S launch.py <JSON>`, with nothing imported but the standard library.
"""

import ctypes
import json
import os
import signal
import sys
from typing import TypedDict

PR_SET_PDEATHSIG = 1
NO_ACCESS = 3


class Launch(TypedDict):
    """What is to be started, how."""

    parent: int
    death_signal: int
    account: tuple[int, int] | None
    directory: str | None
    command: list[str]
    environment: dict[str, str]
    must_access: list[tuple[str, int]]


def _drop_privileges(uid: int, gid: int) -> None:
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _die_with_parent(parent: int, death_signal: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent ended before its child had started")


def _restore_signals() -> None:
    """Undo what the interpreter set for itself and what was inherited: ignored and blocked signals survive exec."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def launch(what: Launch) -> None:
    """Become the command. Does not return."""
    # A session of its own: Ctrl-C at a terminal reaches the parent only, which stops its children in its own order.
    os.setsid()
    os.umask(0o077)
    command = what["command"]
    if what["directory"] is not None:
        # Opened with our privileges, so that it does not matter whether the account may traverse what lies above it.
        descriptor = os.open(what["directory"], os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(descriptor, True)
        command = [word.replace("{directory}", f"/proc/self/fd/{descriptor}") for word in command]
    os.chdir("/")
    if what["account"] is not None:
        _drop_privileges(*what["account"])
    for path, mode in what["must_access"]:
        if not os.access(path, mode):
            print(path)  # noqa: T201 - the answer of this program
            sys.exit(NO_ACCESS)
    if not command:
        return
    _die_with_parent(what["parent"], what["death_signal"])
    _restore_signals()
    os.execve(command[0], command, what["environment"])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    try:
        launch(json.loads(sys.argv[1]))
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[1]}: {error}")
