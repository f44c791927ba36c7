"""`turnlog topics`."""

from rich.console import Console
from rich.table import Table

from schemas.topics import ALL, HOUR_MS
from services.runtime.kafka import KafkaClients
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import TopicsReport, apply_topics, check_topics, partitions_of

console = Console(highlight=False)


async def apply() -> int:
    """Exit code 1 when a topic exists and is not as it should be."""
    settings = load_settings(RuntimeSettings)
    report = await apply_topics(KafkaClients(settings, client_id="turnlog-cli"), settings)
    console.print(f"created {len(report.created)}, found {len(report.existing)}")
    return _problems(report)


async def show() -> int:
    settings = load_settings(RuntimeSettings)
    table = Table("topic", "default type", "written by", "kept", "partitions")
    for topic in ALL:
        hours = f"{topic.retention_ms // HOUR_MS} h" if topic.retention_ms else "for ever"
        kept = "compacted" if topic.compacted else hours
        table.add_row(
            settings.topic(topic.name), topic.default_type, topic.writers, kept, str(partitions_of(topic, settings))
        )
    console.print(table)
    return _problems(await check_topics(KafkaClients(settings, client_id="turnlog-cli"), settings))


def _problems(report: TopicsReport) -> int:
    for problem in report.problems:
        console.print(problem, style="red")
    return 1 if report.problems else 0
