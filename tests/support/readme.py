"""What the README says to type, and the files that it shows."""

import re

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
FILES = {
    match[1]: text for kind, text in BLOCKS if kind != "sh" and (match := re.match(r"# (\S+)\n", text)) is not None
}

RUNS_UNTIL_STOPPED = {
    "uv run turnlog tail t-1 --from-start": "turn.completed",
    "TURNLOG_TOOLS_MODULES=shop_tools.py uv run turnlog run tools": "service_started",
    "uv run turnlog run agents": "partition_taken",
}
"""Commands that go on until Ctrl-C, and a word that shows them at work."""

OF_ANOTHER_TEST = {
    "make run": "the fixture",
    "make test": "this",
    "OPENAI_API_KEY=sk-... make run": "test_a_key_makes_it_openai",
    "uv run turnlog up --workers 2": "test_workers_join_and_leave_without_a_lost_or_doubled_turn",
}
