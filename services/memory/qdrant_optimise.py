"""`python -m services.memory.qdrant_optimise FOLDER PARENT`: merges the segments of a shard and indexes its vectors.

A program of its own, since the engine holds the GIL for the minutes that it takes. The folder must be in use by nobody
else. A process that dies meanwhile may leave a shard that cannot be loaded: this is for one that can be thrown away.
"""

import ctypes
import os
import signal
import sys

import qdrant_edge as qdrant

PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`."""


def main() -> None:
    folder, parent = sys.argv[1], int(sys.argv[2])
    _end_with(parent)
    os.nice(19)
    shard = qdrant.EdgeShard.load(folder)
    shard.optimize()
    shard.flush()
    shard.close()


def _end_with(parent: int) -> None:
    """Nobody writes into a folder that a new start removes. Only Linux can end a process that holds the GIL so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("whoever has started this is gone")


if __name__ == "__main__":
    main()
