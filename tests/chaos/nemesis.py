"""Carries out the faults of a plan: each victim has its own one after the other, the victims all at once."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence

from tests.chaos.cluster import Cluster, Member
from tests.chaos.plan import BROKER, MODEL, Fault
from tests.support.waiting import until

FINDS_OUT_SECONDS = 60
"""For a worker that was paused to see that others went on without it."""

STARTS_SECONDS = 40
"""How long a fault waits for one that is armed to be at work, however slow the machine is at starting it."""

ARMED_SECONDS = 12
"""How long it waits then for the failpoint to strike."""

FOUND_OUT = re.compile(r"partition_fenced|partition_lost|partitions_assigned|reading_failed")


class Nemesis:
    """`run` returns when the last fault is over; nobody is armed any more then."""

    def __init__(self, cluster: Cluster, faults: Sequence[Fault]) -> None:
        self._cluster = cluster
        self._faults = faults
        self._watching: list[asyncio.Task[None]] = []
        self._missed: list[tuple[Member, str]] = []
        self._broker_strikes = 0
        self._broker_away = False

    async def run(self) -> None:
        began = time.monotonic()
        victims = {fault.victim for fault in self._faults}
        async with asyncio.TaskGroup() as lanes:
            for victim in victims:
                lanes.create_task(self._lane(began, [fault for fault in self._faults if fault.victim == victim]))
        await self._disarm()

    async def _disarm(self) -> None:
        """From now on nobody dies or stops any more. Fails if a worker that was paused never found out.

        One that has stopped by itself has nobody left who would wake it.
        """
        for task in self._watching:
            task.cancel()
        ends = await asyncio.gather(*self._watching, return_exceptions=True)
        for member in self._cluster.members.values():
            member.armed = ""
            if member.alive and (member.failpoint or member.stopped):
                member.kill(dead_seconds=0)
        for end in ends:
            if isinstance(end, AssertionError):
                raise end

    async def _lane(self, began: float, faults: Sequence[Fault]) -> None:
        for fault in faults:
            await asyncio.sleep(began + fault.at - time.monotonic())
            if fault.victim == BROKER:
                self._broker_strikes += 1
                self._broker_away = True
                await self._strike_broker(fault)
                self._broker_away = False
            elif fault.victim == MODEL:
                await self._cluster.kill_model()
                await asyncio.sleep(fault.seconds)
                await self._cluster.model.start()
            else:
                await self._strike(self._cluster.members[fault.victim], fault)
        if (member := self._cluster.members.get(faults[0].victim)) is not None:
            await self._until_free(member)
            await self._strike_what_missed(member, faults)

    async def _strike_what_missed(self, member: Member, faults: Sequence[Fault]) -> None:
        """Once more the faults whose failpoint had no time to strike, if no other of its name has struck since."""
        missed = [failpoint for victim, failpoint in self._missed if victim is member]
        for fault in (fault for fault in faults if fault.armed in missed):
            name = fault.armed.partition("=")[0]
            if not any(happened.startswith(f"{name} ") for happened in self._cluster.happened):
                await self._strike(member, fault)
                await self._until_free(member)

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

    async def _strike(self, member: Member, fault: Fault) -> None:
        await self._until_free(member)
        if fault.kind == "kill":
            member.kill(dead_seconds=fault.seconds, armed=fault.armed)
            if "=stop@" in fault.armed:
                self._watch(member, fault)
        elif not member.stopped:
            await self._pause(member, fault.seconds)

    async def _until_free(self, member: Member) -> None:
        """Until it runs, and what it is armed with has struck, or had its time to."""
        try:
            await until(
                lambda: not member.armed and (member.at_work or not member.failpoint),
                "it to start",
                seconds=STARTS_SECONDS,
            )
            await until(lambda: member.alive and not member.failpoint, "its failpoint", seconds=ARMED_SECONDS)
        except AssertionError:
            self._missed.append((member, member.failpoint))
        await until(lambda: member.alive, f"{member.name} to run")

    async def _pause(self, member: Member, seconds: float) -> None:
        """From outside, at any moment."""
        running = member.running
        assert running is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process.pid, signal.SIGSTOP)
            self._cluster.happened[f"pause {member.service}"] += 1
            await self._sleep_and_wake(member, seconds)

    def _watch(self, member: Member, fault: Fault) -> None:
        """For one that will stop by itself, at a point within its work."""

        async def watch() -> None:
            life = len(member.lives)
            while len(member.lives) == life or not member.stopped:
                await asyncio.sleep(0.05)
            self._cluster.happened[f"{fault.armed.partition('=')[0]} stopped {member.service}"] += 1
            member.failpoint = ""
            await self._sleep_and_wake(member, fault.seconds)

        self._watching.append(asyncio.create_task(watch()))

    async def _sleep_and_wake(self, member: Member, seconds: float) -> None:
        """Longer than its session: others have its work when it wakes, and it must find that out."""
        running = member.running
        assert running is not None
        strikes = self._broker_strikes
        await asyncio.sleep(seconds)
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
