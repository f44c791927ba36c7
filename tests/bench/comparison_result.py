"""What a comparison says: a table to read and JSON to keep. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from rich.table import Table

from tests.bench.contestants import FLOOR, OURS
from tests.bench.pinning import CAN_PIN
from tests.bench.report import machine
from tests.bench.turns import percentile


@dataclass(frozen=True)
class Sample:
    """A contestant in one round with so many turns in flight."""

    contestant: str
    round: int
    in_flight: int
    turns: int
    turns_per_second: float
    p50_ms: float
    p99_ms: float
    worker_cpu_ms: float
    """Of the worker's process, a turn."""

    @classmethod
    def of(cls, name: str, number: int, in_flight: int, seconds: Sequence[float], elapsed: float, cpu: float) -> Self:
        ordered = sorted(seconds)
        p50, p99 = (percentile(ordered, percent) * 1000 for percent in (50, 99))
        turns = len(ordered)
        return cls(name, number, in_flight, turns, turns / elapsed, p50, p99, cpu / turns * 1000)


@dataclass
class Result:
    """Of one run. By name of a contestant: what it keeps, its packages, why it is missing, what SIGKILL did."""

    keeps: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    after_sigkill: dict[str, str] = field(default_factory=dict)
    grown: dict[str, list[float]] = field(default_factory=dict)
    """Turns a second with 20 to 40 messages before each, a round each, of those that have threads."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"a_core_for_the_worker": CAN_PIN, **asdict(self)}

    def latencies(self, name: str) -> list[float]:
        """Milliseconds of the median turn alone, a round each."""
        return [each.p50_ms for each in self.samples if (each.contestant, each.in_flight) == (name, 1)]

    def rates(self, name: str, *, in_flight: int = 64) -> list[float]:
        """Turns a second with so many in flight, a round each."""
        return [
            each.turns_per_second for each in self.samples if (each.contestant, each.in_flight) == (name, in_flight)
        ]

    def worker_cpu(self, name: str) -> list[float]:
        """Milliseconds of the worker's CPU a turn with 64 in flight, a round each: what a core of it is worth."""
        return [each.worker_cpu_ms for each in self.samples if (each.contestant, each.in_flight) == (name, 64)]


WORDS = ("", "kept", "SIGKILL in its 2nd call")
"""Columns without numbers: the name, and the last ones."""


def table(result: Result) -> Table:
    """A row a contestant: medians of the rounds, and least to most."""
    shown = Table(title=f"A prompt, a tool call, two model calls; one worker on one core. {machine()}")
    for column in (
        "",
        "alone: p50, ms",
        "64 in flight: turns/s",
        "512: turns/s",
        "30 messages: turns/s",
        "worker's CPU a turn, ms",
        "x floor",
        "x ours",
        *WORDS[1:],
    ):
        shown.add_column(column, justify="left" if column in WORDS else "right")
    for name, keeps in result.keeps.items():
        if name in result.missing:
            shown.add_row(name, *[""] * 7, f"missing: {result.missing[name]}", "")
            continue
        shown.add_row(
            name,
            _spread(result.latencies(name), ".1f"),
            _spread(result.rates(name), ",.0f"),
            _spread(result.rates(name, in_flight=512), ",.0f"),
            _spread(result.grown.get(name, []), ",.0f"),
            _spread(result.worker_cpu(name), ".1f"),
            _ratio(result, name, FLOOR.name),
            _ratio(result, name, OURS.name),
            keeps,
            result.after_sigkill.get(name, ""),
        )
    return shown


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}-{max(values):{form}})"


def _ratio(result: Result, name: str, other: str) -> str:
    rates = result.rates(other)
    return f"{median(result.rates(name)) / median(rates):.2f}" if rates else ""
