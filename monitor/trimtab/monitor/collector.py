"""Receives the events that ranks send over TCP.

The wire is newline-delimited JSON: the first line is `{"token": "..."}`, every other line one
event as `core.serde.to_json` writes it. Whoever sends anything else is disconnected, and an
`Alert` says so.
"""

import contextlib
import hmac
import json
import queue
import socket
import socketserver
import threading
import time
from typing import Any, Final

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.core.events import Alert, AnyEvent
from trimtab.monitor.store import read_event

MAX_LINE_BYTES: Final = 4 * 2**20
"""A plan of 8,192 sequences takes about 0.15 MiB."""
_MAX_TOKEN_LINE_BYTES = 4_096
_TOKEN_TIMEOUT_S = 10.0
"""How long a new connection may take to present its token."""
_CLOSE_TIMEOUT_S = 2.0
"""How long `close` reads on what ranks that still live are sending."""
_LARGEST_INTEGER = 2**63 - 1
"""SQLite's."""


class Collector:
    """A TCP server on threads of its own; `drain` hands over what has arrived.

    Args:
        token: The secret every connection presents first.
        host: Where to listen; loopback unless ranks run on other machines.
    """

    def __init__(self, token: str, host: str = "127.0.0.1") -> None:
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._server = _Server((host, 0), _Connection)
        self._server.token = token.encode()
        self._server.events = self._events
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="collector",
            daemon=True,
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """Where ranks connect to, as `host:port`."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def drain(self) -> list[AnyEvent]:
        """The events that have arrived since the last call, in the order of arrival."""
        events: list[AnyEvent] = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return events

    def close(self) -> None:
        """Stop listening and read what is still under way; `drain` once more afterwards."""
        self._server.shutdown()
        self._thread.join()
        self._server.finish_connections(_CLOSE_TIMEOUT_S)
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 1_024  # all ranks of a large job may connect in the same moment
    token: bytes
    events: queue.SimpleQueue[AnyEvent]

    def __init__(self, address: tuple[str, int], handler: type["_Connection"]) -> None:
        super().__init__(address, handler)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._none_waits = False

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_timeout(self) -> None:
        self._none_waits = True

    def finish_connections(self, timeout_s: float) -> None:
        """Let open connections run to their end; cut those that have none."""
        self.timeout = 0
        while not self._none_waits:
            self.handle_request()
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            connections = dict(self._open)
        for thread in connections.values():
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for connection, thread in connections.items():
            with contextlib.suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


class _Connection(socketserver.StreamRequestHandler):
    """One rank's connection: ends at the first line that is not what it should be."""

    server: _Server

    def handle(self) -> None:
        try:
            self._receive()
        except _RefusedError as refusal:
            self._alert(f"{refusal}; the connection was closed")
        except TimeoutError:
            self._alert(f"it presented no token within {_TOKEN_TIMEOUT_S:.0f} s; it was closed")
        except OSError:
            return  # a rank that went away is no error: its exit is told by the launcher

    def _receive(self) -> None:
        self.connection.settimeout(_TOKEN_TIMEOUT_S)
        first = self._read_line(_MAX_TOKEN_LINE_BYTES)
        if not first:
            return
        if not hmac.compare_digest(_token_of(first), self.server.token):
            raise _RefusedError("it presented a wrong token")
        self.connection.settimeout(None)
        while line := self._read_line(MAX_LINE_BYTES):
            self.server.events.put(_event_of(line))

    def _read_line(self, most_bytes: int) -> bytes:
        """One whole line without its end, or nothing where the rank has disconnected."""
        line = self.rfile.readline(most_bytes + 1)
        if line.endswith(b"\n"):
            return line[:-1]
        if len(line) > most_bytes:
            raise _RefusedError(f"it sent a line of more than {most_bytes} bytes")
        return b""

    def _alert(self, message: str) -> None:
        host, port = self.client_address[:2]
        self.server.events.put(
            Alert(
                time_s=time.time(),
                severity="warning",
                message=f"collector: connection from {host}:{port}: {message}",
            )
        )


class _RefusedError(Exception):
    """Why a connection is not listened to any more."""


def _token_of(line: bytes) -> bytes:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _RefusedError("its first line is not a token") from error
    token = document.get("token") if isinstance(document, dict) else None
    if not isinstance(token, str):
        raise _RefusedError("its first line is not a token")
    return token.encode(errors="replace")


def _event_of(line: bytes) -> AnyEvent:
    try:
        event = read_event(line.decode())
        serde.to_json(event)  # JSON readers let 1e999 and NaN in; the store cannot keep them
    except InputError as error:
        raise _RefusedError(f"it sent a line that is not an event: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedError("it sent a line that is not JSON") from error
    for field in ("rank", "step"):
        value = getattr(event, field, None)
        if value is not None and not 0 <= value <= _LARGEST_INTEGER:
            raise _RefusedError(f"it sent an event with {field} = {str(value)[:24]}")
    return event
