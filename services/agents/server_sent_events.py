"""Server-sent events from the bytes of a response, however they are cut. Pure."""

from services.agents.failures import CallFailed

MOST_EVENT_BYTES = 8 * 1024 * 1024
"""Of one event. The longest answer that is taken fits, even as one event with each character as two JSON escapes."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Gives the data of each event. By the HTML standard (9.2.6), but for the stream's end: see `rest`.

    A line ends with LF, CR or CRLF and nothing else: a line separator of Unicode inside a JSON string ends none.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        """The beginning of a line whose end has not arrived."""
        self._data: list[bytes] = []
        """The data lines of an event whose end has not arrived."""
        self._size = 0
        """Bytes of the lines of `_data`."""
        self._after_cr = False
        self._first = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that a piece of the stream completes.

        Raises:
            CallFailed: an event has more than `MOST_EVENT_BYTES`.
        """
        if not piece:
            return []
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        lines = piece.splitlines()
        open_line = lines.pop() if lines and not piece.endswith((b"\n", b"\r")) else b""
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        self._line += open_line
        events = self._events(lines)
        if self._size + len(self._line) > MOST_EVENT_BYTES:
            raise CallFailed(
                "malformed_response", f"an event of the answer has more than {MOST_EVENT_BYTES} bytes", retryable=False
            )
        return events

    def rest(self) -> bytes | None:
        """What has arrived of an event without its end. The standard drops it; a hasty server leaves out the end."""
        self._events([bytes(self._line)] if self._line else [])
        return b"\n".join(self._data) if self._data else None

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        if self._first and lines:
            self._first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        for line in lines:
            if not line:
                if self._data:
                    events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                    self._data = []
                    self._size = 0
            elif line.startswith(b"data:") or line == b"data":
                self._data.append(line[6 if line.startswith(b"data: ") else 5 :])
                self._size += len(line)
        return events
