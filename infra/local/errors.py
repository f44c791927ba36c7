"""Errors of the local launcher. Each says what was expected, what came and what to do about it.

All of them are about this machine or its settings, so a command that meets one prints the message as it is and
ends with `exit_code`. `code` is stable; `retryable` says whether the same start may succeed a little later.
"""

from __future__ import annotations

from typing import ClassVar


class LocalError(Exception):
    """Base of every error that the local launcher raises on purpose."""

    code: ClassVar[str] = "local_error"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 2


class LocalExtraMissing(LocalError):
    """A package of the `local` extra is not installed."""

    code = "local_extra_missing"

    def __init__(self, package: str) -> None:
        super().__init__(
            f"expected the package {package!r} for the local launcher, but it is not installed: "
            "install the extra with `uv sync --extra local` or `pip install 'turnlog[local]'`"
        )


class DataFolderUnusable(LocalError):
    """The data or the cache folder can't be made or written."""

    code = "data_folder_unusable"

    def __init__(self, folder: object, cause: OSError) -> None:
        super().__init__(
            f"expected a writable folder at {folder}, but got: {cause.strerror or cause}; "
            "set TURNLOG_DATA_DIR (or TURNLOG_CACHE_DIR for the cache) to a folder that this user may write"
        )


class AlreadyRunning(LocalError):
    """Another launcher holds this data folder."""

    code = "already_running"
    retryable = True

    def __init__(self, folder: object, holder: str) -> None:
        super().__init__(
            f"expected to be the only launcher on {folder}, but process {holder or 'unknown'} holds it: "
            "stop that one first, or set TURNLOG_DATA_DIR to another folder"
        )


class PortInUse(LocalError):
    """A program listens already on the port that was asked for."""

    code = "port_in_use"
    retryable = True

    def __init__(self, port: int, *, setting: str) -> None:
        super().__init__(
            f"expected port {port} on 127.0.0.1 to be free, but another program listens there: "
            f"stop that program, or set {setting} to another port"
        )


class JarUnavailable(LocalError):
    """A jar could not be fetched, or never matched the checksum in the lock file."""

    code = "jar_unavailable"
    retryable = True

    def __init__(self, coordinate: str, attempts: int, reason: str) -> None:
        super().__init__(
            f"expected to fetch {coordinate} from a Maven repository, but {attempts} attempts failed, the last with: "
            f"{reason}; check the network, or name a mirror in ~/.m2/settings.xml or in jgo's [repositories]"
        )


class LockFileInvalid(LocalError):
    """The list of jars that comes with the package can't be read."""

    code = "lock_file_invalid"

    def __init__(self, source: object, reason: str) -> None:
        super().__init__(
            f"expected a list of jars with coordinate, bytes and sha256 in {source}, but {reason}: "
            "reinstall the package"
        )


class BrokerFailed(LocalError):
    """The broker's process ended, or did not answer in time, while it was starting."""

    code = "broker_failed"
    retryable = True

    def __init__(self, what: str, *, log: object, tail: str) -> None:
        detail = f"; its last lines were:\n{tail}" if tail else ""
        super().__init__(f"expected Kafka to start, but {what}: see {log}{detail}")


class ModelFailed(LocalError):
    """The local model server ended, or did not answer in time, while it was starting."""

    code = "model_failed"
    retryable = True

    def __init__(self, what: str, *, log: object, tail: str) -> None:
        detail = f"; its last lines were:\n{tail}" if tail else ""
        super().__init__(f"expected the local model server to start, but {what}: see {log}{detail}")
