"""Jars from Maven repositories, through jgo. The only module that knows jgo.

Repositories are the user's: those of jgo's own configuration (`[repositories]`, where `central` replaces the default
one), a mirror of all repositories or of `central` in Maven's `~/.m2/settings.xml`, and jgo's default otherwise. A jar
that Maven already keeps on this machine is copied from there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

from jgo.config import GlobalSettings
from jgo.maven import MavenContext, PythonResolver

from infra.local.jars import FetchFailed

_TIMEOUT_SECONDS = 20  # for the first byte and between two reads, not for a whole jar
_CENTRAL_BY_MIRROR_OF = ("*", "external:*", "central")


class MavenFetcher:
    """Fetches one file at a time from the user's Maven repositories; may be used from several threads."""

    def __init__(self, *, maven_settings: Path | None = None) -> None:
        settings = GlobalSettings.load()
        self._kept_by_maven = settings.repo_cache
        mirror = central_mirror(maven_settings or Path.home() / ".m2" / "settings.xml")
        self._remote_repos: dict[str, str] = ({"central": mirror} if mirror else {}) | settings.repositories
        self._copied: set[str] = set()

    def fetch(self, coordinate: str, folder: Path) -> Path:
        """Bring the jar of `group:artifact:version` below `folder`. Raises `FetchFailed`.

        The copy that Maven keeps is offered once only: if the caller comes again it was no good.
        """
        context = self._context(folder)
        # The `!` keeps jgo from reading the coordinate as a bill of materials.
        artifact = context.create_dependency(f"{coordinate}!").artifact
        target = folder / artifact.filename
        kept = self._kept_by_maven / artifact.component.path_prefix / artifact.filename
        if coordinate not in self._copied and kept.is_file():
            self._copied.add(coordinate)
            return Path(shutil.copyfile(kept, target))
        try:
            return artifact.resolve()
        # requests' errors are OSErrors; a repository without the file is a RuntimeError; a 429 without a number in
        # Retry-After is a ValueError.
        except (OSError, RuntimeError, ValueError) as error:
            raise FetchFailed(f"{type(error).__name__}: {error}") from error

    def runtime_coordinates(self, root: str, folder: Path) -> list[str]:
        """`group:artifact:version` of `root` and of all it needs at run time. For making a lock file."""
        context = self._context(folder)
        inputs, transitive = context.resolver.resolve([context.create_dependency(f"{root}!")])
        needed = [*inputs, *(dep for dep in transitive if dep.scope in ("compile", "runtime"))]
        return [f"{dep.groupId}:{dep.artifactId}:{dep.version}" for dep in needed]

    def _context(self, folder: Path) -> MavenContext:
        # None: jgo's own default repository
        return MavenContext(
            resolver=PythonResolver(),
            repo_cache=folder,
            remote_repos=self._remote_repos or None,
            timeout=_TIMEOUT_SECONDS,
        )


def central_mirror(settings_xml: Path) -> str | None:
    """The address that Maven's settings give for the central repository; None without such a mirror or file."""
    try:
        # The user's own file, as Maven reads it.
        root = ElementTree.parse(settings_xml).getroot()  # noqa: S314
    except (FileNotFoundError, ElementTree.ParseError):
        return None
    for mirror in root.iterfind(".//{*}mirror"):
        covers = {part.strip() for part in (mirror.findtext("{*}mirrorOf") or "").split(",")}
        if covers.intersection(_CENTRAL_BY_MIRROR_OF) and "!central" not in covers:
            url = (mirror.findtext("{*}url") or "").strip().rstrip("/")
            return url or None
    return None
