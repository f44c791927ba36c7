"""Run a command so that it can't outlive the process that asked for it: `python guard.py GRACE CMD...`.

The guard is a process between the launcher and the command, and holds the reading end of a pipe on standard input.
The kernel closes that pipe when the launcher dies, by whatever signal; the guard then ends the command. It uses the
standard library alone, so that it starts in a few milliseconds and stays small. `PR_SET_PDEATHSIG` on the launcher's
own child would be simpler but follows the *thread* that started it; the guard has one thread, so there it's sound,
and it covers the one case that is left: the guard itself being killed.

It prints the command's process id as one line, forwards SIGTERM, allows GRACE seconds before SIGKILL, and ends with
the command's exit code (128 + signal when a signal ended it).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.25  # how late the end of the command may be noticed; the launcher's end is noticed at once


def _die_with_the_guard() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Run the command to its end and return its exit code."""
    grace_seconds, command = float(argv[0]), argv[1:]
    launcher = os.getppid()
    told_to_stop = False

    def note(_signum: int, _frame: FrameType | None) -> None:
        nonlocal told_to_stop
        told_to_stop = True

    signal.signal(signal.SIGTERM, note)
    # preexec_fn is safe here: this process has a single thread.
    child = subprocess.Popen(  # noqa: S603 - the launcher built the command
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=_die_with_the_guard,  # noqa: PLW1509
    )
    os.write(sys.stdout.fileno(), f"{child.pid}\n".encode())

    while child.poll() is None and not told_to_stop:
        readable, _, _ = select.select([sys.stdin], [], [], _LOOK_SECONDS)
        # A worker forked by the launcher may keep the pipe open after the launcher's death: hence the second test.
        if readable or os.getppid() != launcher:
            told_to_stop = True
    if child.poll() is None:
        child.terminate()
        deadline = time.monotonic() + grace_seconds
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if child.poll() is None:
            child.kill()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
