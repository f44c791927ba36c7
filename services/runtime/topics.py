"""Creates the topics that `schemas.topics` declares and checks those that exist."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from schemas.topics import ALL, TOOL_CALLS, Topic, tool_queue
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.kafka import AIOKafkaAdminClient, KafkaClients, KafkaError, NewTopic
from services.runtime.settings import RuntimeSettings

TOPIC_ALREADY_EXISTS = 36
CREATION_SECONDS = 30


@dataclass(frozen=True)
class TopicsReport:
    """What was there and what was made. `problems` says in words which topics are not as they should be."""

    created: list[str]
    existing: list[str]
    problems: list[str]


def partitions_of(topic: Topic, settings: RuntimeSettings) -> int:
    """Topics keyed by thread have the same number of partitions; registries and dead letters keep one order."""
    return settings.partitions if topic.keyed_by == "thread" else 1


async def apply_topics(clients: KafkaClients, settings: RuntimeSettings) -> TopicsReport:
    """Creates what is missing, changes nothing that exists, and returns when every broker knows of it."""
    return await _apply(clients, settings, {settings.topic(topic.name): topic for topic in ALL})


async def ensure_queue(clients: KafkaClients, settings: RuntimeSettings, queue: str) -> None:
    """Creates `tool-calls.<queue>` where it is missing; with as many partitions as `tool-calls` has."""
    await _apply(clients, settings, {settings.topic(tool_queue(queue)): TOOL_CALLS})


async def check_topics(clients: KafkaClients, settings: RuntimeSettings) -> TopicsReport:
    """What `apply_topics` would find, without creating anything: missing topics are among the problems."""
    async with _admin(clients, settings) as admin:
        found = await _describe(admin)
    wanted = {settings.topic(topic.name): topic for topic in ALL}
    missing = [f"{name}: does not exist" for name in wanted if name not in found]
    return TopicsReport(created=[], existing=[*found.keys() & wanted], problems=missing + _problems(wanted, found))


async def _apply(clients: KafkaClients, settings: RuntimeSettings, wanted: dict[str, Topic]) -> TopicsReport:
    async with _admin(clients, settings) as admin:
        found = await _describe(admin)
        missing = {name: topic for name, topic in wanted.items() if name not in found}
        if missing:
            await _create(admin, missing, settings, found)
    return TopicsReport(created=[*missing], existing=[*found.keys() & wanted], problems=_problems(wanted, found))


async def _create(
    admin: AIOKafkaAdminClient, missing: dict[str, Topic], settings: RuntimeSettings, found: dict[str, int]
) -> None:
    sibling = found.get(settings.topic(TOOL_CALLS.name))
    response = await admin.create_topics(
        [
            NewTopic(
                name=name,
                num_partitions=sibling if topic is TOOL_CALLS and sibling else partitions_of(topic, settings),
                replication_factor=settings.replication,
                topic_configs=dict(topic.config()),
            )
            for name, topic in missing.items()
        ]
    )
    outcomes: list[dict[str, Any]] = response.to_object()["topic_errors"]
    for outcome in outcomes:
        if outcome["error_code"] not in (0, TOPIC_ALREADY_EXISTS):
            raise ConfigurationError(
                f"Kafka would not create topic {outcome['topic']}: "
                f"error {outcome['error_code']} {outcome.get('error_message') or ''}"
            )
    async with asyncio.timeout(CREATION_SECONDS):
        while not missing.keys() <= (await _describe(admin)).keys():  # noqa: ASYNC110 - Kafka tells nobody
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _admin(clients: KafkaClients, settings: RuntimeSettings) -> AsyncGenerator[AIOKafkaAdminClient]:
    """Raises UnavailableError when no Kafka answers."""
    admin = clients.admin()
    try:
        try:
            await admin.start()
        except (KafkaError, OSError) as error:
            raise UnavailableError(
                f"no Kafka answers at {settings.bootstrap}: start `turnlog up` or set TURNLOG_KAFKA_BOOTSTRAP"
            ) from error
        yield admin
    finally:
        await admin.close()


async def _describe(admin: AIOKafkaAdminClient) -> dict[str, int]:
    described: list[dict[str, Any]] = await admin.describe_topics()
    return {each["topic"]: len(each["partitions"]) for each in described if each["error_code"] == 0}


def _problems(wanted: dict[str, Topic], found: dict[str, int]) -> list[str]:
    keyed = {found[name] for name, topic in wanted.items() if topic.keyed_by == "thread" and name in found}
    problems: list[str] = []
    if len(keyed) > 1:
        counts = ", ".join(f"{name} {found[name]}" for name in wanted if name in found)
        problems.append(f"topics keyed by thread need the same number of partitions: {counts}")
    problems += [
        f"{name}: expected 1 partition, found {found[name]}"
        for name, topic in wanted.items()
        if topic.keyed_by != "thread" and found.get(name, 1) != 1
    ]
    return problems


async def require_topic(clients: KafkaClients, settings: RuntimeSettings, topic: Topic) -> None:
    """Raises UnavailableError while a topic is missing.

    A consumer of one that is missing asks for it ten times a second, with a line in the log each time.
    """
    if await _partitions(clients, settings, topic) is None:
        raise UnavailableError(_missing(settings, topic))


async def count_partitions(clients: KafkaClients, settings: RuntimeSettings, topic: Topic) -> int:
    """How many partitions a topic has. Raises ConfigurationError when it is missing, UnavailableError without Kafka."""
    count = await _partitions(clients, settings, topic)
    if count is None:
        raise ConfigurationError(_missing(settings, topic))
    return count


async def _partitions(clients: KafkaClients, settings: RuntimeSettings, topic: Topic) -> int | None:
    async with _admin(clients, settings) as admin:
        return (await _describe(admin)).get(settings.topic(topic.name))


def _missing(settings: RuntimeSettings, topic: Topic) -> str:
    return f"topic {settings.topic(topic.name)} does not exist: run `turnlog topics apply`"
