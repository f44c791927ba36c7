"""`python -m services.memory.qdrant_optimise FOLDER`: merges the segments of a shard and indexes its vectors.

A program of its own, since the engine holds the GIL for the minutes that it takes. The folder must be in use by nobody
else. A process that dies meanwhile may leave a shard that cannot be loaded: this is for one that can be thrown away.
"""

import os
import sys

import qdrant_edge as qdrant


def main() -> None:
    os.nice(19)
    shard = qdrant.EdgeShard.load(sys.argv[1])
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()
