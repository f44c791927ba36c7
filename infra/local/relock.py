"""Write the lock file of a Kafka release: `python -m infra.local.relock 4.3.1`.

For whoever moves Turnlog to another release. It resolves Kafka's server and its log4j binding, fetches each jar and
writes coordinate, size and sha256; look at the difference before committing it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from infra.local.jars import JarLock, LockedJar, sha256_of
from infra.local.maven import MavenFetcher


def relock(release: str, target: Path) -> JarLock:
    """Resolve the release, write the lock to `target` and return it."""
    root = f"org.apache.kafka:kafka_2.13:{release}"
    fetcher = MavenFetcher()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        coordinates = fetcher.runtime_coordinates(root, workspace)
        # Kafka's archive adds the binding of slf4j to log4j beside its declared dependencies.
        log4j = next(name for name in coordinates if name.startswith("org.apache.logging.log4j:log4j-core:"))
        coordinates.append(re.sub("log4j-core", "log4j-slf4j-impl", log4j))
        jars = [_locked(name, fetcher.fetch(name, workspace)) for name in sorted(set(coordinates))]
    lock = JarLock(root=root, jars=tuple(jars))
    target.write_text(lock.model_dump_json(indent=1) + "\n")
    return lock


def _locked(coordinate: str, path: Path) -> LockedJar:
    return LockedJar(coordinate=coordinate, bytes=path.stat().st_size, sha256=sha256_of(path))


def main(argv: list[str]) -> int:
    """Command line entry; returns the exit code."""
    if len(argv) != 1:
        print("usage: python -m infra.local.relock RELEASE", file=sys.stderr)  # noqa: T201
        return 2
    target = Path(__file__).with_name(f"kafka-{argv[0]}.lock.json")
    lock = relock(argv[0], target)
    print(f"{target.name}: {len(lock.jars)} jars, {sum(jar.bytes for jar in lock.jars):,} bytes")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
