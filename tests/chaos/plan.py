"""What a run of chaos does, derived from one number: the prompts, the faults, their moments and victims. Pure.

What the machine makes of it differs from run to run; what is done to it does not.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Literal, TypeVar

T = TypeVar("T")

TENANTS = ("default", "acme", "globex")
PROMPTS_A_SECOND = 20
PROMPTS_A_THREAD = 7
QUIET_START, QUIET_END = 2.0, 2.0
"""Seconds without faults: some turns are open before the first, and the last hits open turns too."""

WORKER_SESSION_SECONDS = 2.0
"""The silence after which a worker's partitions go to others."""

MEMBERS = {
    "agents-1": "agents",
    "agents-2": "agents",
    "agents-3": "agents",
    "tools-1": "tools",
    "tools-2": "tools",
    "memory": "memory",
    "usage": "usage",
    "gateway": "gateway",
}
"""Processes of the installation, by name: the service that each runs."""

BROKER = "kafka"

MODEL = "model"
"""The scripted model's server. It is only killed: calls break and are made again."""

SECONDS_BETWEEN_FAULTS = {
    "agents": 15.0,
    "tools": 20.0,
    "memory": 24.0,
    "usage": 22.0,
    "gateway": 25.0,
    BROKER: 40.0,
    MODEL: 20.0,
}
"""Mean time between two faults of one victim."""

LONG_SECONDS, LONG_PACE = 600, 2
"""A run that is longer has so many times fewer prompts and faults a second. In a few minutes two cores may fall behind
with what processes cost that start again and again, and catch up afterwards; in an hour they would do nothing else, and
no turn would be under way when a fault strikes."""

OWNER_POINTS = {
    "takeover.before_fence": 2,
    "takeover.after_fence": 2,
    "takeover.after_offsets": 2,
    "takeover.after_restore": 2,
    "intake.after_consume": 25,
    "commit.before": 60,
    "commit.sending": 99,
    "commit.inside": 60,
    "commit.after": 60,
}
"""Failpoints of an owner, and the most hits after which one strikes."""

POINTS = {
    "agents": OWNER_POINTS,
    "tools": {"tools.before_result": 20, "tools.after_result": 20},
    "memory": {"projection.before_store": 30, "projection.after_store": 30},
    "usage": {"projection.before_store": 6, "projection.after_store": 6},
    "gateway": {},
}

Expected = Literal["completed", "failed", "rejected", "spoiled"]


@dataclass(frozen=True)
class Fault:
    """`kill` and `pause` come from outside. A `kill` may arm what starts next: it then dies or stops by itself."""

    at: float
    """Seconds from the beginning."""
    victim: str
    kind: Literal["kill", "pause"]
    seconds: float
    """How long it is dead or paused; also how long one that stops by itself stays so."""
    armed: str = ""
    """`TURNLOG_FAILPOINTS` of the next start."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and the moments at which it is sent again. Without an id of its own it is never sent again."""

    at: float
    tenant: str
    thread: str
    marker: str
    prompt_id: str | None
    agent: str
    content: str
    expected: Expected
    door: Literal["kafka", "http", "http-wait"]
    again: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cancel:
    """Ends the turn of a prompt, or all turns of the thread."""

    at: float
    tenant: str
    thread: str
    prompt_id: str | None


@dataclass(frozen=True)
class Plan:
    """Everything that is done, each list in the order of time."""

    seed: int
    seconds: float
    prompts: tuple[Prompt, ...]
    cancels: tuple[Cancel, ...]
    faults: tuple[Fault, ...]


def make_plan(seed: int, *, minutes: float) -> Plan:
    """The plan of a seed: the same for the same arguments, on any machine."""
    seconds = minutes * 60
    prompts = tuple(_prompts(Random(f"{seed}/prompts"), seconds))
    cancels = tuple(_cancels(Random(f"{seed}/cancels"), prompts, seconds))
    faults = tuple(_faults(Random(f"{seed}/faults"), seconds))
    return Plan(seed, seconds, prompts, cancels, faults)


def _prompts(random: Random, seconds: float) -> list[Prompt]:
    count = round(seconds * PROMPTS_A_SECOND / _pace(seconds))
    threads = [f"t-{number}" for number in range(max(1, count // PROMPTS_A_THREAD))]
    moments = sorted(random.uniform(0, seconds) for _ in range(count))
    prompts: list[Prompt] = []
    crowd: list[tuple[str, str]] = []
    for number, at in enumerate(moments):
        # Tenants use the same names for their threads. Now and then several prompts reach one thread at once.
        if not crowd:
            where = random.choice(TENANTS), random.choice(threads)
            crowd = [where] * (random.randint(2, 5) if random.random() < 0.1 else 1)
        tenant, thread = crowd.pop()
        prompts.append(_prompt(random, number, at, tenant, thread, seconds))
    return prompts


def _prompt(random: Random, number: int, at: float, tenant: str, thread: str, seconds: float) -> Prompt:
    marker = f"#{number}"
    kind = _weighted(random, {"plain": 88, "careful": 5, "failing": 3, "rejected": 2, "spoiled": 2})
    agent = {"careful": "careful", "rejected": "nobody"}.get(kind, "assistant")
    expected: Expected = {"failing": "failed", "rejected": "rejected", "spoiled": "spoiled"}.get(kind, "completed")
    named = random.random() < 0.9 and kind != "spoiled"
    door = _weighted(random, {"kafka": 85, "http": 11, "http-wait": 4}) if named and kind != "spoiled" else "kafka"
    again: tuple[float, ...] = ()
    if named and random.random() < 0.15:
        delays = [random.choice((0.0, 0.05, 1.0, seconds / 3)) for _ in range(random.randint(1, 3))]
        again = tuple(sorted(min(seconds, at + delay) for delay in delays))
    return Prompt(
        at=at,
        tenant=tenant,
        thread=thread,
        marker=marker,
        prompt_id=f"p-{number}" if named else None,
        agent=agent,
        content=_script(random, number, marker, kind),
        expected=expected,
        door=door,
        again=again,
    )


def _script(random: Random, number: int, marker: str, kind: str) -> str:
    """What the scripted model is to do, after a marker that makes the text one of its kind."""
    steps: list[str] = []
    for step in range(_weighted(random, {0: 25, 1: 45, 2: 22, 3: 8})):
        calls: list[str] = []
        for index in range(_weighted(random, {1: 75, 2: 17, 3: 8})):
            name = _weighted(random, {"note": 70, "wait": 15, "fail": 15})
            if kind == "careful" and step == index == 0:
                name = "pay"
            key = f"{number}-{step}-{index}"
            calls.append(f"[[tool {name} {json.dumps({'key': key, 'seconds': round(random.uniform(0, 0.15), 3)})}]]")
        steps.append(_thinking(random) + "".join(calls))
    last = _thinking(random)
    if kind == "failing":
        last = f"[[status {random.choice((400, 401, 404))} 99]]"
    return marker + "[[then]]".join([*steps, last])


def _thinking(random: Random) -> str:
    """How long a step takes and how its first attempts fail."""
    think = f"[[think {random.choice((0, 0.02, 0.1, 0.3)):g}]]"
    slow = "[[slow 0.01]]" if random.random() < 0.1 else ""
    trouble = _weighted(random, {"": 90, "[[status 500 1]]": 3, "[[status 429 1 retry-after=0]]": 3, "[[cut 1]]": 4})
    return think + slow + trouble


def _cancels(random: Random, prompts: Sequence[Prompt], seconds: float) -> list[Cancel]:
    cancels = [
        Cancel(
            at=min(seconds, prompt.at + random.choice((0.0, 0.1, 0.5))),
            tenant=prompt.tenant,
            thread=prompt.thread,
            prompt_id=prompt.prompt_id if random.random() < 0.7 else None,
        )
        for prompt in prompts
        if prompt.prompt_id is not None and prompt.expected != "spoiled" and random.random() < 0.05
    ]
    return sorted(cancels, key=lambda cancel: cancel.at)


def _faults(random: Random, seconds: float) -> list[Fault]:
    faults: list[Fault] = []
    for service in (*dict.fromkeys(MEMBERS.values()), BROKER, MODEL):
        victims = [name for name, of in MEMBERS.items() if of == service] or [service]
        between = SECONDS_BETWEEN_FAULTS[service] / len(victims) * _pace(seconds)
        deck, victim = _deck(random, service), cycle(victims)
        at = QUIET_START + random.uniform(0, between / 2)
        while at < seconds - QUIET_END:
            kind, lasts, armed = next(deck)
            faults.append(Fault(round(at, 3), next(victim), kind, round(lasts, 3), armed))
            at += random.uniform(0.8, 1.2) * between
    return sorted(faults, key=lambda fault: fault.at)


def _deck(random: Random, service: str) -> Iterator[tuple[Literal["kill", "pause"], float, str]]:
    """Every kind of fault of a service, in random order, again and again: a run of some length leaves out none."""
    while True:
        zombie = WORKER_SESSION_SECONDS + 1
        cards: list[tuple[Literal["kill", "pause"], float, str]] = [
            ("kill", random.uniform(0, 1.5), ""),
            ("pause", random.uniform(zombie, zombie + 2), ""),
        ]
        if service == MODEL:
            cards = cards[:1]
        if service == "agents":
            for point in ("commit.before", "commit.sending", "commit.inside"):
                cards.append(("kill", random.uniform(zombie, zombie + 2), f"{point}=stop@{random.randint(1, 40)}"))
        cards += [
            ("kill", random.uniform(0, 1), f"{point}=kill@{random.randint(1, most)}")
            for point, most in POINTS.get(service, {}).items()
        ]
        random.shuffle(cards)
        yield from cards


def _pace(seconds: float) -> int:
    return LONG_PACE if seconds > LONG_SECONDS else 1


def _weighted(random: Random, weights: dict[T, int]) -> T:
    return random.choices(list(weights), list(weights.values()))[0]
