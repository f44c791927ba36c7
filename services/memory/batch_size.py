"""How many texts are embedded at once, and which of them is given up. Pure."""

from collections.abc import Sequence
from typing import Literal

Verdict = Literal["again", "fewer", "without"]
"""What to do after a failure: the same again, with fewer texts, or without this one, which is given up."""

Fault = Literal["refused", "broken", "busy"]
"""What a server has said: that a text is at fault, so that no second try is needed; nothing of use; or that it takes no
more for now, which is never a text's fault."""

FAILURES, FAILURES_ALONE = 2, 3
"""Of a batch, and of a text alone: any call may fail by chance, and what is given up is so for good."""

CALM = 16
"""So many calls go through before more texts than have failed are tried again."""


class BatchSize:
    """Finds by halves which text fails, or how many are too many, as long as the model takes other texts.

    Args:
        whole: most texts of a batch, which are tried unless that has failed.
    """

    def __init__(self, whole: int) -> None:
        self.texts = whole
        self._whole = whole
        self._most = whole
        self._calm = 0
        self._failures = 0
        self._alone = ("", 0)

    def went_through(self) -> None:
        self._failures = 0
        self._calm += 1
        if self._calm == CALM:
            self._calm, self._most = 0, min(2 * self._most, self._whole)
        self.texts = min(2 * self.texts, self._most)

    def failed(self, texts: Sequence[str], fault: Fault) -> Verdict:
        """Call it where the model takes another text, else the failure says nothing of these.

        Args:
            texts: names of those that were tried.
        """
        if len(texts) > 1:
            self._failures += 1
            if self._failures < FAILURES and fault != "refused":
                return "again"
            self.texts = self._most = len(texts) // 2
            self._failures = self._calm = 0
            return "fewer"
        if fault == "busy":
            return "again"
        before = self._alone[1] if self._alone[0] == texts[0] else 0
        self._alone = texts[0], before + 1
        if before + 1 < FAILURES_ALONE and fault != "refused":
            return "again"
        self._most = self._whole
        return "without"
