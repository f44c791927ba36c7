"""What a bench prints."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str


def show(title: str, figures: Sequence[Figure]) -> None:
    table = Table("", "", "", title=title, show_header=False)
    for figure in figures:
        table.add_row(figure.name, f"{figure.value:,.1f}", figure.unit)
    Console().print(table)


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
