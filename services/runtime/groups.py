"""Consumer groups, one a service. The topic prefix is put before each: two installations can share a cluster."""

import hashlib
import socket
from pathlib import Path

DEFINITIONS_GROUP = "turnlog-definitions"
AGENTS_GROUP = "turnlog-agents"
TOOLS_GROUP = "turnlog-tools"
MEMORY_GROUP = "turnlog-memory"
USAGE_GROUP = "turnlog-usage"


def instance_of(folder: Path) -> str:
    """The static member that a process is in its group while it has a folder open, which one at a time has.

    Whoever opens the folder next takes the place of one that was killed, and need not wait until Kafka gives that up.
    """
    return hashlib.sha256(f"{socket.gethostname()}:{folder.resolve()}".encode()).hexdigest()[:16]
