"""What processes have worked: on a machine that others share it says more than the clock. Linux alone."""

import os
from collections import Counter
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def own_cpu_seconds(number: int) -> float:
    """CPU seconds of one process by now, all its threads."""
    return _seconds(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split())


def cpu_seconds(root: int) -> Counter[str]:
    """CPU seconds of a `turnlog up` and all below it by now: its own process, its workers, Kafka."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        number = int(folder.name)
        parents[number] = int(fields[1])
        seconds[number] = _seconds(fields)
    spent = Counter[str]()
    for number, own in seconds.items():
        if _is_below(number, root, parents):
            spent[_name(number)] += own
    return spent


def _seconds(fields: list[str]) -> float:
    """User and system time, of what follows the command in `stat` (proc(5))."""
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def _is_below(number: int, root: int, parents: dict[int, int]) -> bool:
    while number != root and number in parents:
        number = parents[number]
    return number == root


def _name(number: int) -> str:
    command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    if command[0].endswith(b"java"):
        return "Kafka"
    return "agents" if command[-3:-1] == [b"run", b"agents"] else "the rest"
