"""Named points at which a test lets a process die or stop. Nothing is armed unless `TURNLOG_FAILPOINTS` says so."""

import os
import signal
from collections import Counter
from typing import Literal, get_args

from services.runtime.errors import ConfigurationError

Failpoint = Literal[
    "takeover.before_fence",
    "takeover.after_fence",
    "takeover.after_offsets",
    "takeover.after_restore",
    "intake.after_consume",
    "commit.before",
    "commit.sending",
    "commit.inside",
    "commit.after",
    "projection.before_store",
    "projection.after_store",
    "embeddings.before_store",
    "embeddings.after_store",
    "rebuild.after_batch",
    "rebuild.before_switch",
    "rebuild.after_switch",
    "budgets.before_write",
    "budgets.after_write",
    "invoice.before_commit",
    "invoice.after_commit",
    "tools.before_result",
    "tools.after_result",
]

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Failpoints:
    """Parses `name=kill@3,other=stop@1`: at the third hit of `name` the process gets SIGKILL."""

    def __init__(self, text: str = "") -> None:
        self._armed: dict[str, tuple[signal.Signals, int]] = {}
        self._hits: Counter[str] = Counter()
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, action = item.partition("=")
            kind, _, count = action.partition("@")
            if name not in get_args(Failpoint) or kind not in _SIGNALS or not (count or "1").isdigit():
                raise ConfigurationError(
                    f"TURNLOG_FAILPOINTS: expected NAME=kill@N or NAME=stop@N with a name of "
                    f"{', '.join(get_args(Failpoint))}; got {item!r}"
                )
            self._armed[name] = (_SIGNALS[kind], int(count or "1"))

    def hit(self, name: Failpoint) -> None:
        if not self._armed:
            return
        self._hits[name] += 1
        armed = self._armed.get(name)
        if armed is not None and armed[1] == self._hits[name]:
            os.kill(os.getpid(), armed[0])
