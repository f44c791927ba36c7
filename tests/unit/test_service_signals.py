"""How a process that runs a service takes Ctrl-C: once in peace, twice at once."""

import os
import signal
import subprocess
import sys
import time

from services.runtime.service import ONE_SIGNAL_SECONDS

PROGRAM = """
import asyncio, sys
from services.runtime.service import run_service

class Slow:
    name = "slow"

    async def start(self):
        print("started", flush=True)

    async def stop(self):
        print("stopping", flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        print("stopped", flush=True)

asyncio.run(run_service(Slow))
"""


def started(*, stops_in: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(stops_in)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until_says(process, "started")
    return process


def until_says(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert any(word in line for line in process.stdout)


def test_a_signal_that_arrives_several_times_lets_the_service_stop_in_peace() -> None:
    with started(stops_in=ONE_SIGNAL_SECONDS / 2) as process:
        os.kill(process.pid, signal.SIGINT)
        until_says(process, "stopping")
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)

        output, errors = process.communicate(timeout=30)

    assert "stopped" in output
    assert process.returncode == 0, errors


def test_a_second_one_ends_the_process_at_once() -> None:
    with started(stops_in=600) as process:
        os.kill(process.pid, signal.SIGINT)
        until_says(process, "stopping")
        while process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.05)

        output, errors = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert "stopped" not in output
    assert "Traceback" not in errors
