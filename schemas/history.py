"""Reads published schemas: those in the working tree, and those that git has of an earlier revision."""

import json
import subprocess
from pathlib import Path
from typing import cast

from schemas.json_schema import JsonSchema

FOLDER = "schemas/json"
MAIN_BRANCHES = ("origin/main", "main")


class NoHistoryError(Exception):
    """There are no earlier schemas to be had; the message says why."""


def working_schemas(root: Path) -> dict[str, JsonSchema]:
    """The schemas in the working tree at `root`, by event type."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / FOLDER).glob("*.json"))}


def committed_schemas(root: Path, revision: str) -> dict[str, JsonSchema]:
    """The schemas of `revision`, by event type.

    Raises:
        NoHistoryError: no git, no such revision, or it has no schemas.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    names = _git(root, "ls-tree", "--name-only", commit, f"./{FOLDER}/").split()
    schemas = {
        Path(name).stem: cast("JsonSchema", json.loads(_git(root, "show", f"{commit}:./{name}")))
        for name in names
        if name.endswith(".json")
    }
    if not schemas:
        raise NoHistoryError(f"{revision} has no {FOLDER}")
    return schemas


def default_revision(root: Path) -> str:
    """The commit whose schemas the working tree is to be held against.

    On a branch, where it left the main one; else the last commit while there are changes that are not committed; else
    the commit before the last, so that a change is looked at once more after it was committed.

    Raises:
        NoHistoryError: no git, or no commit.
    """
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    for branch in MAIN_BRANCHES:
        try:
            base = _git(root, "merge-base", branch, "HEAD")
        except NoHistoryError:
            continue
        if base != head:
            return base[:12]
    changed = _git(root, "status", "--porcelain", "--", f"./{FOLDER}")
    return "HEAD" if changed else "HEAD~1"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["git", *arguments],  # noqa: S607 - git is where PATH says
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise NoHistoryError("git is not installed") from error
    if done.returncode != 0:
        said = done.stderr.strip().partition("\n")[0]
        raise NoHistoryError(said or f"git has no {arguments[-1].removesuffix('^{commit}')}")
    return done.stdout.strip()
