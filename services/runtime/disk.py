"""Room on a disk, asked for before a write. Engines in this process map files: where the disk is full they do not get
an error, the kernel ends the process (SIGBUS)."""

import shutil
from pathlib import Path

from services.runtime.errors import UnavailableError

MEGABYTE = 1024**2

RESERVE_MEGABYTES = 128
"""Left free: more than an engine takes for one batch, its log and a merge, or for an empty shard, which are 57 MiB."""


def require_room(folder: Path, more: int = 0) -> None:
    """Raises UnavailableError while the disk of `folder` has less free than the reserve and `more` bytes.

    The log waits then.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written: {error.strerror}") from error
    wanted = RESERVE_MEGABYTES * MEGABYTE + more
    if free < wanted:
        raise UnavailableError(f"the disk of {folder} has less than {wanted // MEGABYTE} MiB free: make room")
