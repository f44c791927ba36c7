"""What an audit has found."""

from typing import Literal

from pydantic import Field, computed_field

from schemas.base import Model

Problem = Literal["missing", "unexpected", "different"]

LISTED = 100
"""Differences of a store that are named; the rest are counted."""


class Difference(Model):
    """`missing`: on the log and not in the store; `unexpected`: the other way round; `different`: not as on the log."""

    problem: Problem
    record: str | None = None
    """topic[partition]@offset of the event that the store should reflect."""
    what: str
    """`message`, `thread`, `turn`, `call` or `usage`, and its id."""
    tenant_id: str
    thread_id: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = f" at {self.record}" if self.record else ""
        thread = f" of thread {self.thread_id}" if self.thread_id else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.problem} {self.what}{thread} (tenant {self.tenant_id}){where}{detail}"


class Findings(Model):
    """What one store was found to hold."""

    store: Literal["memory", "usage"]
    partitions: int = 0
    events: int = 0
    rejected: int = 0
    """Records that are no events; they are no part of any projection."""
    compared: int = 0
    total: int = 0
    """How many differences there are; `differences` has the first of them."""
    differences: list[Difference] = Field(default=[])

    @computed_field
    @property
    def equal(self) -> bool:
        return self.total == 0
