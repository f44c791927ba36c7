"""`python -m tests.recall`: prints the figures; exit code 1 where both together find less than the better of the two.

`--misses` names what each way has not found among the first ten.
"""

import asyncio
import sys

from rich.console import Console
from rich.table import Table

from tests.recall.measure import KINDS, TOP, Quality, load, ranks


def main() -> int:
    console = Console()
    found = asyncio.run(ranks())
    messages, questions = load()
    qualities = {mode: Quality.of(places) for mode, places in found.items()}
    table = Table(
        "", title=f"{len(questions)} questions, {len(messages)} messages, wordllama: recall@{TOP}, nDCG@{TOP}"
    )
    for kind in (*KINDS, "all"):
        table.add_column(kind.replace("_", " "))
    for mode, places in found.items():
        of_kinds = [[at for at, each in zip(places, questions, strict=True) if each.kind == kind] for kind in KINDS]
        table.add_row(mode, *[f"{each.recall:.3f}  {each.ndcg:.3f}" for each in map(Quality.of, [*of_kinds, places])])
    console.print(table)
    if "--misses" in sys.argv:
        for number, question in enumerate(questions):
            missing = [mode for mode, places in found.items() if places[number] is None]
            if missing:
                console.print(f"{', '.join(missing)}: {question.text} -> {question.answered_by}")
    alone = [qualities["text"], qualities["vector"]]
    hybrid = qualities["hybrid"]
    worse = hybrid.recall < max(each.recall for each in alone) or hybrid.ndcg < max(each.ndcg for each in alone)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
