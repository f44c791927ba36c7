"""Which prompts were taken in before: the recent ones in memory, older ones asked of the projection."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.http import SeenPrompt

GENERATION = 10_000

PromptKey = tuple[str, str, str]
"""Tenant, thread and prompt id."""


@dataclass(slots=True)
class RecentPrompts:
    """The last 10,000 to 20,000 prompts of a partition, in two generations.

    `asks_since` is the journal offset that the projection must have reached before it can be asked for a prompt that
    is older than both generations.
    """

    asks_since: int = 0
    _young: set[PromptKey] = field(default_factory=set[PromptKey])
    _old: set[PromptKey] = field(default_factory=set[PromptKey])
    _young_since: int = 0

    def __contains__(self, prompt: PromptKey) -> bool:
        return prompt in self._young or prompt in self._old

    def add(self, prompt: PromptKey, journal_end: int) -> None:
        """Remembers a prompt; `journal_end` is how far the journal had been written by then at least."""
        self._young.add(prompt)
        if len(self._young) >= GENERATION:
            self.asks_since = self._young_since
            self._old, self._young = self._young, set()
            self._young_since = journal_end

    def fill(self, prompts: Iterable[PromptKey], journal_end: int) -> None:
        """What a new owner found on the log."""
        self._old = set(prompts)
        self._young_since = self.asks_since = journal_end


def seen_prompt(prompt: PromptKey) -> SeenPrompt:
    tenant_id, thread_id, prompt_id = prompt
    return SeenPrompt(tenant_id=tenant_id, thread_id=thread_id, prompt_id=prompt_id)
