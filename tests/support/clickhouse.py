"""A stand-in for a ClickHouse server: chDB's engine behind as much of ClickHouse's HTTP interface as a client needs.

It answers what the engine answers, so SQL, types and errors are ClickHouse's own. Of a cluster it shows tables that ask
all shards: `CLUSTER` has two, itself and one that is away and gets no rows. Replication it does not show.
Run as a process of its own, since a process has one engine: `python -m tests.support.clickhouse PORT FOLDER PASSWORD`.
"""

import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame

ROOT = Path(__file__).parents[2]
START_SECONDS = 60

TRANSPORT = {"query", "database", "query_id", "session_id", "wait_end_of_query", "client_protocol_version", "compress"}
TRANSPORT |= {"send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression"}

CLUSTER = "main"

CONFIGURATION = f"""
<clickhouse>
    <tcp_port>9000</tcp_port>
    <remote_servers><{CLUSTER}>
        <shard><replica><host>127.0.0.1</host><port>9000</port></replica></shard>
        <shard><weight>0</weight><replica><host>127.0.0.1</host><port>1</port></replica></shard>
    </{CLUSTER}></remote_servers>
</clickhouse>
"""
"""The engine listens nowhere: a host of its own address and port is itself."""

ALONE = (
    (re.compile(rf" ON CLUSTER `{CLUSTER}`".encode()), b""),
    (re.compile(rb"ENGINE = Replicated(\w+)(?:\('/clickhouse/[^)]*\))?"), rb"ENGINE = \1"),
    (re.compile(rb"(?<!non_)replicated_deduplication_window"), b"non_replicated_deduplication_window"),
)
"""What a statement is where there are no other nodes to agree with."""

INSERT = re.compile(rb"(INSERT INTO [^\n]*?)\s+FORMAT\s+Native\n?", re.IGNORECASE)


class Engine:
    """One connection, one query at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "configuration.xml"
        configuration.write_text(CONFIGURATION)
        self._connection = chdb.connect(f"{folder}?config-file={configuration}")
        self._connection.query("SET skip_unavailable_shards = 1")
        self._lock = threading.Lock()

    def run(self, statement: bytes, asked: dict[str, str]) -> bytes:
        if not INSERT.match(statement):
            for written, done in ALONE:
                statement = written.sub(done, statement)
        parameters = {name[6:]: value for name, value in asked.items() if name.startswith("param_")}
        settings = {k: v for k, v in asked.items() if k not in TRANSPORT and not k.startswith("param_")}
        clause = ", ".join(f"{name} = '{value}'" for name, value in settings.items())
        with self._lock, tempfile.NamedTemporaryFile(suffix=".native") as file:
            self._connection.query(f"USE `{asked.get('database') or 'default'}`", "TabSeparated")
            if insert := INSERT.match(statement):
                file.write(statement[insert.end() :])
                file.flush()
                settings_clause = f" SETTINGS {clause}" if clause else ""
                text = f"{insert[1].decode()} FROM INFILE '{file.name}'{settings_clause} FORMAT Native"
            else:
                text = statement.decode() + (
                    f"\nSETTINGS {clause}" if settings and statement.lstrip().startswith(b"SELECT") else ""
                )
            return self._connection.query(text, "TabSeparated", params=parameters).bytes() or b""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, of which the second one would wait for 40 ms
    engine: Engine
    password: str

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        asked = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        statement = self._body()
        if self.headers.get_content_type() == "multipart/form-data":
            fields = self._form(statement)
            statement = fields.pop("query").encode()
            asked |= fields
        if "query" in asked:
            statement = asked["query"].encode() + b"\n" + statement
        user, _, password = (
            b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode().partition(":")
        )
        if password != self.password:
            self._answer(
                403, f"Code: 516. DB::Exception: {user}: Authentication failed. (AUTHENTICATION_FAILED)".encode()
            )
            return
        try:
            self._answer(200, self.engine.run(statement, asked))
        except RuntimeError as error:
            self._answer(500, str(error)[max(0, str(error).find("Code: ")) :].encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _unpacked(body) if self.headers.get("Content-Encoding") == "lz4" else body

    def _form(self, body: bytes) -> dict[str, str]:
        """How a client sends parameters that are too long for a URL."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
        return {
            str(part.get_param("name", header="content-disposition")): bytes(part.get_payload(decode=True)).decode()
            for part in parts
        }

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-ClickHouse-Timezone", "UTC")
        if status != 200 and (code := re.match(rb"Code: (\d+)", body)):
            self.send_header("X-ClickHouse-Exception-Code", code[1].decode())
        elif status == 200:
            self.send_header("X-ClickHouse-Format", "TabSeparated")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests say what went wrong."""


def _unpacked(body: bytes) -> bytes:
    """Of every frame: a client sends one for so many rows."""
    parts: list[bytes] = []
    while body:
        frame = lz4.frame.LZ4FrameDecompressor()
        parts.append(frame.decompress(body))
        body = frame.unused_data or b""
    return b"".join(parts)


class ClickHouseServer:
    """A server on a folder and a port, which may be killed and started again."""

    def __init__(self, folder: Path, *, port: int, password: str = "secret") -> None:
        self.url = f"http://default:{password}@127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "tests.support.clickhouse", str(port), str(folder), password]
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen(self._command, cwd=ROOT)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process.poll() is None, "the stand-in for ClickHouse ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            assert time.monotonic() < deadline, "the stand-in for ClickHouse does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def main() -> None:
    port, folder, password = sys.argv[1:]
    Handler.engine = Engine(Path(folder))
    Handler.password = password
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
