"""A child process that ends with its launcher, whatever ends the launcher."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.local import guard
from infra.local.errors import PortInUse

_EXIT_POLL_SECONDS = 0.1
_KILL_MARGIN_SECONDS = 5.0  # the guard kills after its grace; this is for the guard itself
_TAIL_LINES = 12


class GuardedProcess:
    """One command run under `guard.py`: it gets SIGTERM and then SIGKILL when this process dies or says so.

    The command runs in a session of its own, so Ctrl-C in a terminal reaches the launcher alone, which can then end
    things in order. Its output is appended to `log`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        grace_seconds: float,
        env: Mapping[str, str],
        keep_fds: Sequence[int] = (),
    ) -> None:
        self._command = list(command)
        self._log = log
        self._grace_seconds = grace_seconds
        self._env = dict(env)
        self._keep_fds = tuple(keep_fds)
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The command's own process id while it runs, else None."""
        return self._pid if self.running else None

    @property
    def running(self) -> bool:
        """Whether the command has been started and has not ended."""
        return self._guard is not None and self._guard.poll() is None

    def spawn(self) -> int:
        """Start the command and return its process id. Descriptors in `keep_fds` stay open in the guard."""
        if self.running:
            raise RuntimeError("the process runs already")
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(self._grace_seconds), *self._command]
        with self._log.open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603 - the command is built by this package
                guarded,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
                pass_fds=self._keep_fds,
                start_new_session=True,
            )
        stdout = self._guard.stdout
        line = stdout.readline() if stdout is not None else b""
        self._pid = int(line) if line.strip().isdigit() else None
        if self._pid is None:
            self._reap()
            raise OSError(f"could not run {self._command[0]}: {self.tail()}")
        return self._pid

    async def wait(self) -> int:
        """Wait until the command ends by itself or is stopped; return its exit code."""
        while (code := self.poll()) is None:  # noqa: ASYNC110 - no event loop outlives start() for sure
            await asyncio.sleep(_EXIT_POLL_SECONDS)
        return code

    def poll(self) -> int | None:
        """The exit code of the command if it has ended (128 + signal when a signal did it), else None."""
        if self._guard is None:
            raise RuntimeError("the process was never started")
        return self._guard.poll()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after the grace time; returns when the command is gone. Does nothing if it is."""
        if self._guard is None:
            return
        if self._guard.poll() is None:
            self._guard.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.wait(), self._grace_seconds + _KILL_MARGIN_SECONDS)
            except TimeoutError:
                self._guard.kill()
        self._reap()

    def tail(self) -> str:
        """The last lines of the command's output, for an error message."""
        return tail_of(self._log)

    def _reap(self) -> None:
        if self._guard is None:
            return
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._guard.wait(self._grace_seconds + _KILL_MARGIN_SECONDS)
        self._guard, self._pid = None, None


def tail_of(log: Path) -> str:
    """The last lines of a text file without the frames of Java's stack traces; empty when there is no such file."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in lines if not line.startswith("\tat ")][-_TAIL_LINES:])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now. Connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
        return True


def free_ports(count: int = 1) -> int:
    """The first of `count` ports in a row on 127.0.0.1 that are free now.

    They lie below those that the kernel gives to outgoing connections (32768 and up on Linux): one of these might have
    a port before its server does, or while the server is started again.
    """
    while True:
        first = random.randrange(10_000, 32_000)  # noqa: S311 - no secret
        if all(port_is_free(port) for port in range(first, first + count)):
            return first


def claim_port(port: int, *, setting: str) -> int:
    """`port` itself if it is free, or any free port when it is 0. Raises `PortInUse`, naming the setting to change."""
    if port == 0:
        return free_ports()
    if not port_is_free(port):
        raise PortInUse(port, setting=setting)
    return port


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a child: what a program needs to run here, none of the launcher's secrets."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | extra
