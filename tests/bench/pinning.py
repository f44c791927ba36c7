"""Which core a process runs on: what is measured has one for itself, everything else the others."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

CAN_PIN = len(CORES) > 1


@contextlib.contextmanager
def one_core_left() -> Iterator[None]:
    """This process, and what it starts within the block, off the core of the measured one."""
    if CAN_PIN:
        os.sched_setaffinity(0, CORES[1:])
    try:
        yield
    finally:
        if CAN_PIN:
            os.sched_setaffinity(0, CORES)


def alone(pid: int) -> None:
    """A process with all its threads onto the core of its own; its children stay where they are."""
    if not CAN_PIN:
        return
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended
            os.sched_setaffinity(int(thread.name), CORES[:1])


async def descendant(pid: int, command: str) -> int:
    """The process below `pid` whose command line has these words. Fails when there is none."""
    listing = await asyncio.create_subprocess_exec("ps", "-ewwo", "pid=,ppid=,args=", stdout=asyncio.subprocess.PIPE)
    output, _ = await listing.communicate()
    family, found = {pid}, None
    for line in sorted(output.decode().splitlines(), key=lambda line: int(line.split()[0])):
        number, parent, arguments = line.split(None, 2)
        if int(parent) in family:
            family.add(int(number))
            found = int(number) if command in arguments else found
    assert found is not None, f"no {command!r} below {pid}"
    return found
