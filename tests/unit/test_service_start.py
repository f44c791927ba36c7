"""How a process that runs a service waits for what is away when it starts."""

import signal
import subprocess
import sys

PROGRAM = """
import asyncio
from services.runtime import service
from services.runtime.errors import UnavailableError

service.START_RETRY_SECONDS = 0.01
reasons = ["no Kafka", "no Kafka", "no Kafka", "no topic", "no topic"]

class Patient:
    name = "patient"

    async def start(self):
        if reasons:
            raise UnavailableError(reasons.pop(0))

    async def stop(self):
        pass

asyncio.run(service.run_service(Patient))
"""


def test_a_start_that_waits_says_so_once_for_each_reason() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if "service_started" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    waits = [line for line in said if "service_waits" in line]
    assert [("no Kafka" in line, "no topic" in line) for line in waits] == [(True, False), (False, True)]
    assert not any("service_stopped" in line for line in said)
    assert rest.count("service_stopped") == 1
