"""What `turnlog audit` prints."""

import json

from rich.console import Console

from services.cli.audit.memory import audit_memory
from services.cli.audit.report import Findings
from services.cli.audit.usage import audit_usage
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False, soft_wrap=True)


async def run(*, as_json: bool) -> int:
    """Exit code 1 when something differs."""
    settings = load_settings(RuntimeSettings)
    findings = [await audit_memory(settings), await audit_usage(settings)]
    if as_json:
        document = {"equal": all(each.equal for each in findings), "stores": [each.model_dump() for each in findings]}
        console.print(json.dumps(document, indent=2), markup=False)
    else:
        for each in findings:
            _show(each)
    return 0 if all(each.equal for each in findings) else 1


def _show(findings: Findings) -> None:
    for difference in findings.differences:
        console.print(f"{findings.store}: {difference}", markup=False)
    if findings.total > len(findings.differences):
        console.print(f"{findings.store}: and {findings.total - len(findings.differences):,} more")
    for conflict in findings.conflicts:
        console.print(f"{findings.store}: {conflict}", markup=False)
    if findings.conflicting > len(findings.conflicts):
        console.print(f"{findings.store}: and {findings.conflicting - len(findings.conflicts):,} more conflicts")
    what = "documents" if findings.store == "memory" else "facts"
    verdict = "equal to the log" if findings.equal else f"{findings.total:,} differ from the log"
    console.print(
        f"{findings.store}: {verdict} ({findings.compared:,} {what} compared, {findings.events:,} events of "
        f"{findings.partitions} partitions)"
    )
    if findings.rejected:
        console.print(f"{findings.store}: {findings.rejected:,} records are no events: see `turnlog dead-letters list`")
    if not findings.equal:
        console.print(f"{findings.store}: `turnlog rebuild {findings.store}` makes it equal")
