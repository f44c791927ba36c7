"""Carries out the faults of a plan: each victim has its own one after the other, the victims all at once."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence
from itertools import zip_longest

from tests.chaos.cluster import STARTED, Cluster, Member
from tests.chaos.plan import BROKER, MODEL, Fault
from tests.support.installation import Running
from tests.support.waiting import until

FINDS_OUT_SECONDS = 60
"""For a worker that was paused to see that others went on without it."""

STARTS_SECONDS = 40
"""How long a fault waits for one that is armed to be at work, however slow the machine is at starting it."""

ARMED_SECONDS = 12
"""How long it waits then for the failpoint to strike."""

TAKEN_OVER_SECONDS = 30
"""How long a paused worker waits at most for others to have its partitions, which makes a zombie of it: on a slow
machine that takes longer than the fault lasts."""

ASSIGNED = re.compile(r"partitions_assigned +partitions=\[([\d, ]*)\]")

TAKEN = re.compile(r"partition_taken .*\bpartition=(\d+)")

FOUND_OUT = re.compile(r"partition_fenced|partition_lost|partitions_assigned|reading_failed")


class Nemesis:
    """`run` returns when the last fault is over; nobody is armed any more then."""

    def __init__(self, cluster: Cluster, faults: Sequence[Fault]) -> None:
        self._cluster = cluster
        self._faults = faults
        self._broker_strikes = 0
        self._broker_away = False

    async def run(self) -> None:
        """Fails if a worker that was paused never found out."""
        began = time.monotonic()
        victims = {fault.victim for fault in self._faults}
        async with asyncio.TaskGroup() as lanes:
            for victim in victims:
                lanes.create_task(self._lane(began, [fault for fault in self._faults if fault.victim == victim]))

    async def _lane(self, began: float, faults: Sequence[Fault]) -> None:
        """One fault after the other, then once more those whose failpoint had no time to strike.

        These only if no other failpoint of their name has struck since.
        """
        missed: list[Fault] = []
        for fault, following in zip_longest(faults, faults[1:]):
            await asyncio.sleep(began + fault.at - time.monotonic())
            if not await self._carry_out(fault, until_time=began + following.at if following else 0):
                missed.append(fault)
        for fault in missed:
            name = fault.armed.partition("=")[0]
            if not any(happened.startswith(f"{name} ") for happened in self._cluster.happened):
                await self._carry_out(fault)

    async def _carry_out(self, fault: Fault, *, until_time: float = 0) -> bool:
        """Whether it has happened when it is over. What is armed may strike until then."""
        cluster = self._cluster
        if fault.victim == BROKER:
            self._broker_strikes += 1
            self._broker_away = True
            await self._strike_broker(fault)
            self._broker_away = False
            return True
        if fault.victim == MODEL:
            await cluster.kill_model()
            await asyncio.sleep(fault.seconds)
            await cluster.model.start()
            return True
        member = cluster.members[fault.victim]
        await until(lambda: member.alive, f"{member.name} to run")
        if fault.kind == "pause":
            await self._pause(member, fault.seconds)
            return True
        life = len(member.lives)
        member.kill(dead_seconds=fault.seconds, armed=fault.armed)
        return not fault.armed or await self._await_failpoint(member, life, fault, until_time)

    async def _strike_broker(self, fault: Fault) -> None:
        cluster = self._cluster
        if fault.kind == "kill":
            cluster.kill_broker()
            await asyncio.sleep(fault.seconds)
            await cluster.start_broker()
            return
        assert cluster.kafka.pid is not None
        os.kill(cluster.kafka.pid, signal.SIGSTOP)
        cluster.happened["pause kafka"] += 1
        await asyncio.sleep(fault.seconds)
        os.kill(cluster.kafka.pid, signal.SIGCONT)

    async def _await_failpoint(self, member: Member, life: int, fault: Fault, until_time: float) -> bool:
        """Whether the failpoint of a life has struck. If not, that life is ended: the next one is not armed."""
        await until(lambda: len(member.lives) > life, f"{member.name} to start again")
        armed = member.lives[life]

        def over() -> bool:
            return armed.stopped or armed.process.returncode is not None

        with contextlib.suppress(AssertionError):
            await until(lambda: over() or STARTED in armed.output, "it to start", seconds=STARTS_SECONDS)
            seconds = max(ARMED_SECONDS, until_time - time.monotonic())
            await until(over, "its failpoint", seconds=seconds)
        if armed.stopped:
            self._cluster.happened[f"{fault.armed.partition('=')[0]} stopped {member.service}"] += 1
            await self._sleep_and_wake(member, fault.seconds)
            return True
        if armed.process.returncode is not None:
            return armed.process.returncode == -signal.SIGKILL
        member.kill(dead_seconds=0)
        return False

    async def _pause(self, member: Member, seconds: float) -> None:
        """From outside, at any moment."""
        running = member.running
        assert running is not None
        try:
            os.kill(running.process.pid, signal.SIGSTOP)
        except ProcessLookupError:  # It has died meanwhile: its next life is paused.
            await until(lambda: member.running is not running, f"{member.name} to start again")
            await self._pause(member, seconds)
        else:
            self._cluster.happened[f"pause {member.service}"] += 1
            await self._sleep_and_wake(member, seconds)

    async def _until_taken_over(self, member: Member, running: Running, before: set[tuple[str, int, int]]) -> None:
        own = {int(each) for each in (ASSIGNED.findall(running.output) or [""])[-1].split(", ") if each}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKEN_OVER_SECONDS):
                while own - {partition for _, _, partition in self._taken_by_others(member) - before}:
                    await asyncio.sleep(0.2)

    def _taken_by_others(self, member: Member) -> set[tuple[str, int, int]]:
        """Where the others of its kind have said that they took a partition: in which output, at what place, which."""
        others = [each for each in self._cluster.members.values() if each.service == member.service]
        lives = [life for other in others if other is not member for life in other.lives[-2:]]
        return {
            (life.output_file.name, said.start(), int(said[1]))
            for life in lives
            for said in TAKEN.finditer(life.output)
        }

    async def _sleep_and_wake(self, member: Member, seconds: float) -> None:
        """Longer than its session: others have its work when it wakes, and it must find that out."""
        running = member.running
        assert running is not None
        strikes = self._broker_strikes
        taken_before = self._taken_by_others(member)
        await asyncio.sleep(seconds)
        if member.service == "agents":
            await self._until_taken_over(member, running, taken_before)
        if running.process.returncode is not None:
            return
        said = len(running.output)
        running.wake()
        if member.service != "agents" or self._broker_strikes != strikes or self._broker_away:
            return  # a broker that was away itself gives everybody a new session
        self._cluster.happened["zombie"] += 1
        await until(
            lambda: running.process.returncode is not None or FOUND_OUT.search(running.output[said:]) is not None,
            f"{member.name}, which was paused, to see that it is not alone:\n{running.output[said:]}",
            seconds=FINDS_OUT_SECONDS,
        )
