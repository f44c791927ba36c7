"""How often Python's collector looks for cycles."""

import gc

THRESHOLDS = (200_000, 20, 20)
"""The first is more than a full block of usage is made of, which so comes and goes without a look at it."""


def collect_rarely() -> None:
    """Call it once a service has started.

    What it has imported stays for its life and is not looked through any more. Of what comes and goes little is a
    cycle: at Python's own thresholds looking for those took a tenth of a projection's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
