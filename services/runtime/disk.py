"""Room on a disk, asked for before a write. Engines in this process map files: where the disk is full they do not get
an error, the kernel ends the process (SIGBUS)."""

import shutil
from pathlib import Path

from services.runtime.errors import UnavailableError

RESERVE_MEGABYTES = 128
"""Left free: more than an engine takes for one batch, its log and a merge."""


def require_room(folder: Path) -> None:
    """Raises UnavailableError while the disk of `folder` has less than the reserve free; the log waits then."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written: {error.strerror}") from error
    if free < RESERVE_MEGABYTES * 1024**2:
        raise UnavailableError(f"the disk of {folder} has less than {RESERVE_MEGABYTES} MiB free: make room")
