"""The table of topics: what is on each, who writes it, how long it is kept."""

import pytest

from schemas.json_schema import events_of
from schemas.topics import (
    ALL,
    DAY_MS,
    HOUR_MS,
    MAX_EVENT_BYTES,
    MAX_RECORD_BYTES,
    Topic,
    state_key,
    tool_queue,
)

FOREVER, COMPACTED = "forever", "compacted"
TABLE = [
    (
        "prompts",
        "prompt.submitted",
        "turn.cancel tool.approval human.reply thread.create thread.update thread.delete messages.append"
        " messages.delete",
        FOREVER,
    ),
    (
        "messages",
        "message.added",
        "message.deleted thread.created thread.updated thread.deleted turn.opened turn.waiting turn.closed"
        " prompt.dropped",
        FOREVER,
    ),
    ("tool-calls", "tool.called", "", 7 * DAY_MS),
    ("tool-results", "tool.returned", "tool.failed tool.progress", 7 * DAY_MS),
    ("completions", "turn.completed", "turn.failed turn.cancelled turn.rejected", FOREVER),
    ("usage", "usage.recorded", "", FOREVER),
    ("deltas", "text.delta", "reasoning.delta tool_args.delta stream.aborted", HOUR_MS),
    ("turns", "turn.state", "turn.queued", COMPACTED),
    ("agents", "agent.applied", "", COMPACTED),
    ("tools", "tool.applied", "", COMPACTED),
    ("prices", "price.applied", "", COMPACTED),
    ("budgets", "budget.applied", "budget.state budget.warned", COMPACTED),
    ("plans", "plan.applied", "subscription.applied", COMPACTED),
    ("invoices", "invoice.finalized", "credit_note.issued credit.granted", FOREVER),
    ("dead-letters", "record.rejected", "", 30 * DAY_MS),
]
BY_NAME = {topic.name: topic for topic in ALL}


def test_the_topics_are_those_of_the_table() -> None:
    assert [topic.name for topic in ALL] == [row[0] for row in TABLE]


@pytest.mark.parametrize(("name", "default", "others", "kept"), TABLE, ids=[row[0] for row in TABLE])
def test_a_topic_carries_its_types_and_is_kept_as_long_as_it_should(
    name: str, default: str, others: str, kept: str | int
) -> None:
    topic = BY_NAME[name]
    assert topic.default_type == default
    assert list(events_of(topic)) == [default, *others.split()]
    config = topic.config()
    if kept == COMPACTED:
        assert config["cleanup.policy"] == "compact"
        assert "retention.ms" not in config
    else:
        assert config["cleanup.policy"] == "delete"
        assert config["retention.ms"] == str(-1 if kept == FOREVER else kept)


def test_what_outsiders_may_write_is_open_to_them_and_nothing_else() -> None:
    assert {topic.name for topic in ALL if topic.incoming} == {
        "prompts",
        "tool-results",
        "agents",
        "tools",
        "prices",
        "budgets",
        "plans",
    }


def test_agents_write_their_results_in_a_transaction_and_deltas_outside() -> None:
    transactional = {topic.name for topic in ALL if "agents, in a transaction" in topic.writers}
    assert transactional == {"messages", "tool-calls", "completions", "usage", "turns"}
    assert BY_NAME["deltas"].writers == "agents, outside transactions"


def test_everything_about_a_thread_is_keyed_by_it() -> None:
    others = {topic.name: topic.keyed_by for topic in ALL if topic.keyed_by != "thread"}
    assert others == {
        "agents": "name",
        "tools": "name",
        "prices": "name",
        "budgets": "name",
        "plans": "name",
        "invoices": "tenant",
        "dead-letters": "source",
    }


@pytest.mark.parametrize("topic", ALL, ids=lambda topic: topic.name)
def test_a_topic_takes_a_record_that_carries_the_largest_event_in_base64(topic: Topic) -> None:
    assert int(topic.config()["max.message.bytes"]) == MAX_RECORD_BYTES
    assert MAX_EVENT_BYTES * 4 / 3 < MAX_RECORD_BYTES


def test_a_queue_of_a_tool_is_a_topic_of_its_own() -> None:
    assert tool_queue(None) == "tool-calls"
    assert tool_queue("gpu") == "tool-calls.gpu"


def test_threads_of_two_tenants_never_share_a_state_key() -> None:
    assert state_key("default", "t-1") == "t-1"
    assert state_key("acme", "t-1") == "acme/t-1"
    assert state_key("acme", "t-1") != state_key("acme2", "t-1")
