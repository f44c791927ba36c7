"""Errors of the runtime. Each says whether trying again helps, and what to do."""


class TurnlogError(Exception):
    """Base of all errors that Turnlog raises on purpose. `retryable`: the same call may succeed later."""

    code = "error"
    retryable = False


class ConfigurationError(TurnlogError):
    """A setting, a port or a folder that cannot work. The command line prints it in one line and exits with 2."""

    code = "configuration"


class UnavailableError(TurnlogError):
    """Something that a service depends on does not answer now."""

    code = "unavailable"
    retryable = True


class BehindError(UnavailableError):
    """A projection has not reached the offset that a read asked for."""

    code = "behind"


class PartitionLostError(TurnlogError):
    """This worker no longer owns the partition: what it had not committed is left to the next owner."""

    code = "partition_lost"
