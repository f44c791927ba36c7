"""Ours and every peer in one run, in turns, so that what else the machine does meets all of them."""

import asyncio
from collections.abc import Sequence

from rich.console import Console

from tests.bench import pinning, postgres
from tests.bench.bench_installation import scripted_model
from tests.bench.comparison_result import Result, Sample, table
from tests.bench.contestants import ENTRIES, FLOOR, OURS, Contestant, Entry, Unavailable
from tests.bench.processor_time import own_cpu_seconds
from tests.bench.sigkill import after_sigkill
from tests.bench.turns import middle_rate

WARM_UP = 200

AT_ONCE_SECONDS = 4
"""About as long a contestant works with many turns in flight: one that is slow is given fewer of them."""

TABLE_COLUMNS = 160
"""Of text, also where there is no terminal, as in CI: narrower it can't be read."""

KILLED_AT_ONCE = 3
"""Contestants at a time; what is tried then is no matter of speed."""


async def compare(*, rounds: int, entries: Sequence[Entry] = ENTRIES) -> Result:
    """Speed, and then what a SIGKILL does. Prints the table."""
    postgres.install()
    result = await measure_speed(entries, rounds=rounds, alone=200)
    some = asyncio.Semaphore(KILLED_AT_ONCE)

    async def kill(entry: Entry) -> None:
        async with some:
            _progress(f"{entry.name}: SIGKILL")
            result.after_sigkill[entry.name] = await after_sigkill(entry)

    await asyncio.gather(*(kill(each) for each in entries if each.killed and each.name not in result.missing))
    _show(result)
    return result


async def quick() -> Result:
    """Ours beside the floor, in under two minutes, with nothing that the tests don't need. Fails if one doesn't run."""
    result = await measure_speed((OURS, FLOOR), rounds=1, alone=50)
    assert not result.missing, result.missing
    _show(result)
    return result


async def measure_speed(entries: Sequence[Entry], *, rounds: int, alone: int) -> Result:
    """`alone`: turns one after the other."""
    result = Result(keeps={each.name: each.keeps for each in entries})
    with pinning.one_core_left():
        async with scripted_model() as url:
            for number in range(rounds):
                for entry in entries:
                    if entry.name in result.missing:
                        continue
                    _progress(f"{entry.name}: round {number + 1} of {rounds}")
                    try:
                        async with entry.start(url) as contestant:
                            result.versions[entry.name] = contestant.versions
                            result.samples += await _samples(contestant, entry.name, number, alone=alone)
                            if entry.threads:
                                rate = middle_rate(await contestant.grow())
                                result.grown.setdefault(entry.name, []).append(rate)
                    except (Unavailable, TimeoutError) as why:
                        result.missing[entry.name] = str(why) or "it took too long"
    return result


async def _samples(contestant: Contestant, name: str, number: int, *, alone: int) -> list[Sample]:
    _, elapsed = await contestant.turns(WARM_UP, in_flight=64)
    many = max(WARM_UP, round(WARM_UP / elapsed * AT_ONCE_SECONDS))
    samples: list[Sample] = []
    worker = await contestant.worker_pid()
    for in_flight, count in ((1, alone), (64, many), (512, max(512, many))):
        spent = own_cpu_seconds(worker)
        seconds, elapsed = await contestant.turns(count, in_flight=in_flight)
        cpu = own_cpu_seconds(worker) - spent
        samples.append(Sample.of(name, number, in_flight, seconds, elapsed, cpu))
    return samples


def _show(result: Result) -> None:
    console = Console()
    Console(width=max(console.width, TABLE_COLUMNS)).print(table(result))


def _progress(what: str) -> None:
    Console(stderr=True).print(what, highlight=False)
