"""What an audit has found."""

from typing import Literal

from pydantic import Field, computed_field

from schemas.base import Model

Problem = Literal["missing", "unexpected", "different", "unbalanced"]

LISTED = 100
"""Differences of a store that are named; the rest are counted."""


class Difference(Model):
    """`missing`: on the log and not in the store; `unexpected`: the other way round; `different`: not as on the log.

    `unbalanced`: a sum of usage that is not that of its rows.
    """

    problem: Problem
    record: str | None = None
    """topic[partition]@offset of the event that the store should reflect."""
    what: str
    """`message`, `thread`, `turn`, `call` or `usage`, and its id; of a sum its table and the time that it begins at."""
    tenant_id: str
    thread_id: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = f" at {self.record}" if self.record else ""
        thread = f" of thread {self.thread_id}" if self.thread_id else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.problem} {self.what}{thread} (tenant {self.tenant_id}){where}{detail}"


class Conflict(Model):
    """A fact of usage that the log has again with other values. The log is as it is: it is told, and no difference."""

    usage_id: str
    tenant_id: str
    kept: str
    """topic[partition]@offset of the values that count."""
    refused: str
    detail: str
    recorded: bool
    """Whether usage has it among its conflicts."""

    def __str__(self) -> str:
        noted = "" if self.recorded else ", which usage has not noted"
        return (
            f"conflict of usage {self.usage_id} (tenant {self.tenant_id}): {self.kept} counts, "
            f"{self.refused} is refused{noted}: {self.detail}"
        )


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
    conflicts: list[Conflict] = Field(default=[])
    """The first of them."""
    conflicting: int = 0

    @computed_field
    @property
    def equal(self) -> bool:
        return self.total == 0
