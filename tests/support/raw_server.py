"""A server that answers every HTTP request with given bytes, in given pieces, whether or not they are HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Connection:
    """One that a client has made, with the requests that have come over it."""

    writer: asyncio.StreamWriter
    requests: list[bytes] = field(default_factory=list[bytes])
    """Request lines and headers."""
    bodies: list[bytes] = field(default_factory=list[bytes])
    closed: bool = False
    """Whether the client has left."""

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)  # so that pieces are read one by one


@dataclass
class RawServer:
    """Where it listens, and who came."""

    port: int
    connections: list[Connection]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[bytes]:
        return [request for connection in self.connections for request in connection.requests]


Answer = Callable[[Connection], Awaitable[bool | None]]
"""Sends the answer to the last request of a connection. True keeps the connection for another one."""


@asynccontextmanager
async def raw_server(answer: Answer) -> AsyncIterator[RawServer]:
    connections: list[Connection] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        connections.append(connection)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                connection.requests.append(head)
                connection.bodies.append(await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0))
                if not await answer(connection):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            connection.closed = True
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield RawServer(server.sockets[0].getsockname()[1], connections)
    finally:
        server.close()
        for connection in connections:
            connection.writer.close()
        await server.wait_closed()


def answering(*pieces: bytes) -> Answer:
    """The same pieces for every request; then the connection is closed."""

    async def answer(connection: Connection) -> None:
        await connection.send(*pieces)

    return answer


def head(status: int = 200, *headers: str, content_type: str = "text/event-stream") -> bytes:
    """Status line and headers; without a length the body ends with the connection."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def whole(status: int, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    return head(status, f"Content-Length: {len(body)}", *headers, content_type=content_type) + body


def chunked(pieces: Iterable[bytes], *, ended: bool = True) -> list[bytes]:
    """Pieces in HTTP's chunked coding, whose end tells a whole body from one that was cut."""
    coded = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces if piece]
    return [*coded, b"0\r\n\r\n"] if ended else coded
