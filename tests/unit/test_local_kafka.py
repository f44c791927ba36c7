"""The parts of the local launcher that need no broker: the lock, the cache of jars, configuration, ports, errors."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from infra.local import broker_config, jars
from infra.local.broker_config import BrokerConfig, log4j_properties, new_cluster_id
from infra.local.errors import (
    AlreadyRunning,
    DataFolderUnusable,
    JarUnavailable,
    LocalError,
    LockFileInvalid,
    PortInUse,
)
from infra.local.folder_lock import FolderLock
from infra.local.jars import FetchFailed, JarCache, JarLock, LockedJar, cache_folder
from infra.local.kafka import LOCK_FILE, LocalKafka
from infra.local.maven import central_mirror
from infra.local.process import GuardedProcess, child_environment, free_ports, port_is_free

CONTENT = {"org.example:one:1.0": b"one", "org.example:two:2.0": b"two two"}


def lock_of(content: dict[str, bytes]) -> JarLock:
    return JarLock(
        root="org.example:one:1.0",
        jars=tuple(
            LockedJar(coordinate=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in content.items()
        ),
    )


class ScriptedFetcher:
    """Serves `content`; the first `bad[coordinate]` fetches of a jar bring other bytes of the same length."""

    def __init__(self, content: dict[str, bytes], *, bad: dict[str, int] | None = None) -> None:
        self.content = content
        self.bad = bad or {}
        self.fetched: list[str] = []
        self._lock = threading.Lock()

    def fetch(self, coordinate: str, folder: Path) -> Path:
        with self._lock:
            self.fetched.append(coordinate)
            is_bad = self.fetched.count(coordinate) <= self.bad.get(coordinate, 0)
        if coordinate not in self.content:
            raise FetchFailed("404")
        data = self.content[coordinate]
        path = folder / "download.jar"
        path.write_bytes(b"x" * len(data) if is_bad else data)
        return path


@pytest.fixture(autouse=True)
def no_waiting_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "_RETRY_AFTER_SECONDS", 0.0)


def test_the_lock_that_is_shipped_names_every_part_of_the_release_once() -> None:
    lock = JarLock.read(LOCK_FILE)
    assert lock.root == "org.apache.kafka:kafka_2.13:4.3.1"
    names = {jar.coordinate for jar in lock.jars}
    assert lock.root in names
    assert "org.apache.kafka:kafka-clients:4.3.1" in names
    assert {name.split(":")[2] for name in names if name.startswith("org.apache.kafka:")} == {"4.3.1"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Invalid JSON"),
        (json.dumps({"root": "a:b:1", "jars": []}), "jars"),
        (
            json.dumps({"root": "a:b:1", "jars": [{"coordinate": "a:b", "bytes": 1, "sha256": "0" * 64}]}),
            "coordinate",
        ),
        (
            json.dumps({"root": "a:b:1", "jars": [{"coordinate": "a:b:1", "bytes": 1, "sha256": "00"}]}),
            "sha256",
        ),
        (
            json.dumps({"root": "a:b:1", "jars": [{"coordinate": "a:b:1", "bytes": 1, "sha256": "0" * 64}] * 2}),
            "twice",
        ),
    ],
)
def test_a_damaged_lock_is_refused_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "kafka.lock.json"
    path.write_text(text)
    with pytest.raises(LockFileInvalid, match=complaint):
        JarLock.read(path)


async def test_jars_are_fetched_once_and_progress_counts_to_the_end(tmp_path: Path) -> None:
    fetcher, seen = ScriptedFetcher(CONTENT), list[tuple[int, int, str]]()
    cache = JarCache(tmp_path / "cache", fetcher=fetcher, on_progress=lambda *step: seen.append(step))
    paths = await cache.ensure(lock_of(CONTENT))
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert seen[0] == (0, 2, "")
    assert [done for done, _, _ in seen] == [0, 1, 2]

    seen.clear()
    assert await cache.ensure(lock_of(CONTENT)) == paths
    assert sorted(fetcher.fetched) == sorted(CONTENT)
    assert seen == []


async def test_a_jar_that_comes_damaged_is_fetched_again(tmp_path: Path) -> None:
    fetcher = ScriptedFetcher(CONTENT, bad={"org.example:two:2.0": 2})
    paths = await JarCache(tmp_path, fetcher=fetcher).ensure(lock_of(CONTENT))
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert fetcher.fetched.count("org.example:two:2.0") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one-1.0.jar", "two-2.0.jar"]


@pytest.mark.parametrize("damage", [b"on", b"0ne", b""])
async def test_a_jar_that_was_damaged_in_the_cache_is_replaced(tmp_path: Path, damage: bytes) -> None:
    fetcher = ScriptedFetcher(CONTENT)
    cache = JarCache(tmp_path, fetcher=fetcher)
    await cache.ensure(lock_of(CONTENT))
    (tmp_path / "one-1.0.jar").write_bytes(damage)
    await cache.ensure(lock_of(CONTENT))
    assert (tmp_path / "one-1.0.jar").read_bytes() == b"one"
    assert fetcher.fetched.count("org.example:two:2.0") == 1


async def test_a_jar_that_never_matches_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    fetcher = ScriptedFetcher(CONTENT, bad={"org.example:two:2.0": 1000})
    with pytest.raises(JarUnavailable, match=r"org\.example:two:2\.0.*expected sha256") as caught:
        await JarCache(tmp_path, fetcher=fetcher).ensure(lock_of(CONTENT))
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["one-1.0.jar"]


async def test_a_jar_that_no_repository_has_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(JarUnavailable, match="404"):
        await JarCache(tmp_path, fetcher=ScriptedFetcher({})).ensure(lock_of(CONTENT))


async def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderUnusable, match="TURNLOG_CACHE_DIR"):
        await JarCache(tmp_path / "file" / "cache", fetcher=ScriptedFetcher(CONTENT)).ensure(lock_of(CONTENT))


def test_the_cache_lies_in_the_data_folder_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNLOG_CACHE_DIR", raising=False)
    assert cache_folder(tmp_path, "kafka-1") == tmp_path / "cache" / "kafka-1"
    monkeypatch.setenv("TURNLOG_CACHE_DIR", "/elsewhere")
    assert cache_folder(tmp_path, "kafka-1") == Path("/elsewhere/kafka-1")


def rendered(config: BrokerConfig) -> dict[str, str]:
    return dict(line.split("=", 1) for line in config.server_properties().splitlines())


def test_the_broker_listens_on_the_loopback_address_alone() -> None:
    config = BrokerConfig(port=9092, controller_port=9093, log_dir=Path("/data"))
    properties = rendered(config)
    assert config.bootstrap == "127.0.0.1:9092"
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9092"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:9093"


def test_three_nodes_keep_three_copies_and_two_of_them_acknowledge() -> None:
    properties = rendered(
        BrokerConfig(port=9093, controller_port=9096, log_dir=Path("/data"), node_id=2, controllers=(9095, 9096, 9097))
    )
    assert properties["node.id"] == "2"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:9095,2@127.0.0.1:9096,3@127.0.0.1:9097"
    copies = {name: value for name, value in properties.items() if name.endswith("replication.factor")}
    assert set(copies.values()) == {"3"}
    insync = [value for name, value in properties.items() if name.endswith((".min.isr", "min.insync.replicas"))]
    assert set(insync) == {"2"}


def test_nothing_is_forgotten_by_the_broker_on_its_own() -> None:
    properties = rendered(BrokerConfig(port=1, controller_port=2, log_dir=Path("/data")))
    assert properties["log.retention.ms"] == "-1"
    assert int(properties["offsets.retention.minutes"]) > 60 * 24 * 365 * 100
    assert properties["auto.create.topics.enable"] == "false"


def test_a_folder_with_a_backslash_survives_the_properties_format() -> None:
    assert rendered(BrokerConfig(port=1, controller_port=2, log_dir=Path("/a\\b")))["log.dirs"] == "/a\\\\b"
    assert "fileName = /a\\\\b/server.log" in log4j_properties(Path("/a\\b/server.log"))


def test_a_cluster_id_never_begins_with_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    class FirstWithADash:
        drawn = iter([b"\xf8" + bytes(15), b"\x00" * 16])

        def __init__(self) -> None:
            self.bytes = next(self.drawn)

    monkeypatch.setattr(broker_config.uuid, "uuid4", FirstWithADash)
    assert new_cluster_id() == "A" * 22


async def test_a_port_in_use_is_one_clear_line_that_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not port_is_free(port)
        kafka = LocalKafka(data_dir=tmp_path, port=port, fetcher=ScriptedFetcher({}))
        with pytest.raises(PortInUse) as caught:
            await kafka.start()
    assert str(port) in str(caught.value)
    assert "TURNLOG_LOCAL_KAFKA_PORT" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert port_is_free(port)


async def test_a_data_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderUnusable, match="TURNLOG_DATA_DIR"):
        await LocalKafka(data_dir=tmp_path / "file", port=0, fetcher=ScriptedFetcher({})).start()


async def test_a_second_launcher_on_one_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "launcher.lock"
    first, second = FolderLock(path), FolderLock(path)
    await first.acquire(orphan_grace_seconds=0)
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        await second.acquire(orphan_grace_seconds=30)
    first.release()
    await second.acquire(orphan_grace_seconds=0)
    second.release()


async def test_what_a_dead_launcher_left_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "launcher.lock"
    left, new = FolderLock(path), FolderLock(path)
    await left.acquire(orphan_grace_seconds=0)
    path.write_text("999999999\n")  # above the largest process id of any Linux
    threading.Timer(0.2, left.release).start()
    await new.acquire(orphan_grace_seconds=30)
    assert path.read_text() == f"{os.getpid()}\n"
    new.release()


async def test_a_guarded_command_reports_its_output_and_its_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = GuardedProcess(["/bin/sh", "-c", "echo said; exit 7"], log=log, grace_seconds=1, env=child_environment())
    process.spawn()
    assert await process.wait() == 7
    assert process.tail() == "said"
    await process.stop()
    assert process.pid is None


async def test_a_guarded_command_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "trap '' TERM; while :; do read -r _ || sleep 0.1; done"]
    process = GuardedProcess(command, log=tmp_path / "log", grace_seconds=0.3, env=child_environment())
    pid = process.spawn()
    await process.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_child_sees_none_of_the_launchers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert "OPENAI_API_KEY" not in child_environment()


def test_a_mirror_of_mavens_settings_is_found(tmp_path: Path) -> None:
    settings = tmp_path / "settings.xml"
    settings.write_text(
        '<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors>'
        "<mirror><mirrorOf>other</mirrorOf><url>https://other.test/</url></mirror>"
        "<mirror><mirrorOf>*,!private</mirrorOf><url>https://mirror.test/maven/</url></mirror>"
        "</mirrors></settings>"
    )
    assert central_mirror(settings) == "https://mirror.test/maven"
    settings.write_text(
        "<settings><mirrors><mirror><mirrorOf>*,!central</mirrorOf><url>u</url></mirror></mirrors></settings>"
    )
    assert central_mirror(settings) is None
    assert central_mirror(tmp_path / "absent.xml") is None


def test_every_error_of_the_launcher_ends_a_command_with_code_2() -> None:
    kinds = LocalError.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert {kind.exit_code for kind in kinds} == {2}


def test_a_free_port_can_be_listened_on() -> None:
    assert port_is_free(free_ports())
