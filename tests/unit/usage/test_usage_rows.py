"""What an event is in the table, and which events it has no room for."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.envelope import RecordRejectedError
from schemas.usage import EXAMPLES, UsageRecorded
from services.usage.migrate import migrations, statements
from services.usage.rows import EVENT_COLUMNS, SENT_AS, columns_of, row_of
from services.usage.store import Bounds


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert [version for version, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_every_field_of_an_event_has_a_column_but_its_type_and_metadata() -> None:
    assert {*EVENT_COLUMNS} == UsageRecorded.model_fields.keys() - {"type", "metadata"}
    created, *altered = [text for _, file in migrations() for text in statements(file) if " usage_events_a\n" in text]
    columns = re.findall(r"^    (\w+) [A-Z]", created, re.MULTILINE)
    columns += [name for text in altered for name in re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", text)]
    assert {*columns} == {*SENT_AS}
    assert len(columns) == len({*columns})


def test_a_row_has_the_event_its_offset_and_its_block() -> None:
    (event,) = EXAMPLES
    first, second = zip(
        *columns_of(Bounds(3, 70, 75), 8, [(70, row_of(event, 0)), (75, row_of(event, 0))]), strict=True
    )
    expected = {name: getattr(event, name) for name in EVENT_COLUMNS} | {"occurred_at": 1_767_268_802_000_000}
    assert dict(zip(EVENT_COLUMNS, first, strict=False)) == expected
    assert first[-5:] == (3, 70, 70, 75, 8)
    assert second[-5:] == (3, 75, 70, 75, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", 2**32),
        ("attempt", -1),
        ("input_tokens", 10**12 + 1),
        ("output_tokens", 10**400),
        ("cached_input_tokens", 2**64),
        ("reasoning_tokens", 2**63),
        ("images", 10**6 + 1),
        ("latency_ms", -1),
        ("first_token_ms", -5),
    ],
)
def test_a_number_that_no_row_can_hold_is_rejected_by_name(field: str, value: Any) -> None:
    event = UsageRecorded.model_validate(EXAMPLES[0].model_dump() | {field: value})
    with pytest.raises(RecordRejectedError, match=rf"{field}: expected 0 to \d+, got {str(value)[:40]}") as caught:
        row_of(event, 0)
    assert caught.value.reason == "not_an_event"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("time", [datetime(1969, 12, 31, 23, tzinfo=UTC), datetime(2106, 1, 1, tzinfo=UTC)])
def test_a_time_that_no_row_can_hold_is_rejected(time: datetime) -> None:
    with pytest.raises(RecordRejectedError, match="occurred_at: expected a time from 1970 to 2105"):
        row_of(EXAMPLES[0].model_copy(update={"occurred_at": time}), 0)


def test_an_event_at_the_limits_passes() -> None:
    row_of(EXAMPLES[0], 0)
    row_of(
        EXAMPLES[0].model_copy(
            update={
                "step": 2**32 - 1,
                "input_tokens": 10**12,
                "first_token_ms": None,
                "occurred_at": datetime(2106, 1, 1, tzinfo=UTC) - timedelta(microseconds=1),
            }
        ),
        0,
    )


WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)
WRITTEN_MS = int(WRITTEN.timestamp() * 1000)


def test_a_time_in_the_future_is_rejected_by_the_time_of_its_record() -> None:
    """Not by the clock: a rebuild years later decides the same."""
    latest = EXAMPLES[0].model_copy(update={"occurred_at": WRITTEN + timedelta(hours=1)})
    row_of(latest, WRITTEN_MS)
    later = latest.model_copy(update={"occurred_at": latest.occurred_at + timedelta(microseconds=1)})
    with pytest.raises(RecordRejectedError, match="at most an hour after its record of 2026-01-01T00:00:00") as caught:
        row_of(later, WRITTEN_MS)
    assert caught.value.reason == "not_an_event"


@pytest.mark.parametrize("timestamp_ms", [-1, 0])
def test_a_record_without_a_time_says_nothing_about_the_future(timestamp_ms: int) -> None:
    row_of(EXAMPLES[0], timestamp_ms)


def test_late_usage_is_taken_however_late_it_is() -> None:
    row_of(EXAMPLES[0].model_copy(update={"occurred_at": WRITTEN - timedelta(days=10_000)}), WRITTEN_MS)
