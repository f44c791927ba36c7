"""From when on usage is kept."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from services.usage.retention import Retention


@pytest.mark.parametrize(
    ("months", "now", "kept_from"),
    [
        (1, "2026-03-31T23:59:59", "2026-02-01"),
        (1, "2026-01-01T00:00:00", "2025-12-01"),
        (12, "2026-12-31T12:00:00", "2025-12-01"),
        (25, "2026-02-15T12:00:00", "2024-01-01"),
        (100_000, "2026-02-15T12:00:00", "1970-01-01"),
    ],
)
def test_whole_months_before_the_running_one_are_kept(months: int, now: str, kept_from: str) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert Retention(months).kept_from(at) == datetime.fromisoformat(kept_from).replace(tzinfo=UTC)


def test_months_are_of_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert Retention(1).kept_from(datetime(2026, 3, 1, 8, tzinfo=tokyo)) == datetime(2026, 1, 1, tzinfo=UTC)


def test_without_a_number_everything_is_kept() -> None:
    assert Retention().kept_from(datetime(2026, 3, 1, tzinfo=UTC)) is None
