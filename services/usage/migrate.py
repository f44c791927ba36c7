"""The numbered files of `migrations`, applied forward. `{slot}` in a statement: it is for both sets of tables."""

import importlib.resources
from typing import Any, get_args

from services.runtime.errors import ConfigurationError
from services.usage.blocks import complete
from services.usage.placement import TIMES, Placement
from services.usage.rollups import Slot

VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_version (version UInt32, applied_at DateTime DEFAULT now()) "
    "ENGINE = MergeTree ORDER BY version"
)

FIRST_WITH_NUMBERS = 2
"""The version since when blocks have numbers, and sums."""


def migrations() -> list[tuple[int, str]]:
    """Number and text of every migration, in order."""
    folder = importlib.resources.files("services.usage.migrations")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name.split("_")[0]), file.read_text()) for file in files]


def statements(text: str) -> list[str]:
    """The statements of a migration, each for every slot that it is for."""
    parts = filter(None, (part.strip() for part in text.split(";")))
    return [
        part.replace("{slot}", slot)
        for part in parts
        for slot in (get_args(Slot) if "{slot}" in part else get_args(Slot)[:1])
    ]


def migrate(client: Any, name: str, placement: Placement) -> None:
    """Applies what is not on record, each statement by itself, then records the file.

    A process that died in the middle begins with the same file again, and each file may be applied again.

    Args:
        name: of the place of the tables, for the error.
        placement: of tables that are made.

    Raises:
        ConfigurationError: The tables are of a later release.
    """
    _run(client, placement, VERSIONS)
    applied = {row[0] for row in client.query("SELECT version FROM schema_version").result_rows}
    known = migrations()
    newest = max(version for version, _ in known)
    if max(applied, default=0) > newest:
        raise ConfigurationError(
            f"the usage tables at {name} have version {max(applied)}, this release of Turnlog knows "
            f"{newest}: run the release that made them, or a later one"
        )
    if FIRST_WITH_NUMBERS in applied and newest not in applied:
        complete(client)
    for version, text in known:
        if version in applied:
            continue
        for statement in statements(text):
            _run(client, placement, statement)
        client.insert("schema_version", [[version]], column_names=["version"])


def place(client: Any, placement: Placement) -> None:
    """Moves tables to the storage that the settings name. Nothing is changed where it is so already."""
    for table, time in TIMES.items():
        for slot in get_args(Slot):
            as_it_is = client.query(
                "SELECT engine_full, storage_policy FROM system.tables "
                "WHERE database = currentDatabase() AND name = {name:String}",
                parameters={"name": placement.stored(f"{table}_{slot}")},
            ).first_item
            for statement in placement.storage(f"{table}_{slot}", time, as_it_is):
                client.command(statement)


def _run(client: Any, placement: Placement, statement: str) -> None:
    for placed in placement.placed(statement):
        client.command(placed)
