"""Months, as invoices count them. Pure."""

from datetime import UTC, datetime

from schemas.plans import Period


def starts_at(period: Period) -> datetime:
    """The first moment of the month, in UTC."""
    year, month = (int(part) for part in period.split("-"))
    return datetime(year, month, 1, tzinfo=UTC)


def ends_at(period: Period) -> datetime:
    """The first moment after the month."""
    start = starts_at(period)
    return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)


def period_of(time: datetime) -> Period:
    """The month of a time."""
    return time.astimezone(UTC).strftime("%Y-%m")
