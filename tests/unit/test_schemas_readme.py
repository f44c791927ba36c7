"""The README of the contract says what the code says."""

import re
from pathlib import Path

from schemas.asyncapi import kept
from schemas.json_schema import events_of
from schemas.topics import ALL, MAX_EVENT_BYTES, Topic

FOLDER = Path(__file__).parents[2] / "schemas"
README = (FOLDER / "README.md").read_text()
KEYS = {"thread": "`thread_id`", "name": "`name@version`", "tenant": "`tenant_id`", "source": "the consumer"}


def row(topic: Topic) -> str:
    others = ", ".join(f"`{name}`" for name in events_of(topic) if name != topic.default_type)
    cells = [f"`{topic.name}`", f"`{topic.default_type}`", others, KEYS[topic.keyed_by], kept(topic), topic.writers]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def test_the_table_of_topics_is_that_of_the_code() -> None:
    block = README.partition("<!-- topics: held by a test -->\n")[2].partition("<!-- /topics -->")[0]
    assert block.splitlines()[2:] == [row(topic) for topic in ALL], "\n" + "\n".join(row(topic) for topic in ALL)


def test_every_module_is_in_the_table_of_files() -> None:
    named = set(re.findall(r"`(\w+\.py)`", README))
    assert {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"} == named


def test_the_size_limit_and_the_open_topics_are_those_of_the_code() -> None:
    assert f"{MAX_EVENT_BYTES} bytes" in README
    incoming = ", ".join(f"`{topic.name}`" for topic in ALL if topic.incoming)
    assert f"- `incoming` ({incoming})" in README
