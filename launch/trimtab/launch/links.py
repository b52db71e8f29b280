"""Where agents connect to: one connection an agent, each read by a thread of its own."""

import contextlib
import hmac
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.launch import wire

_TOKEN_TIMEOUT_S: Final = 10.0
_MAX_TOKEN_LINE_BYTES: Final = 4_096
_SEND_TIMEOUT_S: Final = 10
"""How long an agent that does not read may hold up the controller."""


@dataclass(slots=True, eq=False)
class AgentLink:
    """One agent's connection."""

    connection: socket.socket
    hello: wire.AgentHello
    seen_s: float
    """When it was last heard of (monotonic clock)."""

    def send(self, message: wire.ToAgent) -> None:
        """Send; OSError where the agent is gone, or does not read."""
        self.connection.sendall(wire.line(message))

    def cut(self) -> None:
        """End the connection; the agent takes that for the end of the controller."""
        _disconnect(self.connection)


class AgentServer:
    """Listens on `host`; who does not present the token first is disconnected."""

    def __init__(self, host: str, *, token: str) -> None:
        self._token = token
        self._inbox: queue.SimpleQueue[tuple[AgentLink, wire.FromAgent | None]] = (
            queue.SimpleQueue()
        )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family, backlog=4096)
        threading.Thread(target=self._accept, name="agents", daemon=True).start()

    @property
    def address(self) -> str:
        """`host:port`."""
        host, port = self._server.getsockname()[:2]
        return f"{host}:{port}"

    def received(self) -> Iterator[tuple[AgentLink, wire.FromAgent | None]]:
        """What has arrived, by whom; None: the connection has ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def close(self) -> None:
        """Listen no more; connections that there are stay."""
        _disconnect(self._server)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                threading.Thread(
                    target=self._receive, args=(connection,), name="agent", daemon=True
                ).start()

    def _receive(self, connection: socket.socket) -> None:
        """Read one connection to its end; nonsense ends it."""
        connection.settimeout(_TOKEN_TIMEOUT_S)
        link: AgentLink | None = None
        with (
            contextlib.suppress(OSError, InputError, UnicodeDecodeError),
            connection.makefile("rb") as stream,
        ):
            is_ours = self._is_token(stream.readline(_MAX_TOKEN_LINE_BYTES))
            connection.settimeout(None)
            _limit_sending(connection)
            while is_ours and (text := stream.readline(wire.MAX_LINE_BYTES)):
                message: wire.FromAgent = serde.from_json(wire.FromAgent, text.decode())  # type: ignore[arg-type]  # a union
                if isinstance(message, wire.AgentHello):
                    link = AgentLink(connection, message, time.monotonic())
                if link is None:
                    break
                self._inbox.put((link, message))
        if link is None:
            _disconnect(connection)
        else:
            self._inbox.put((link, None))

    def _is_token(self, text: bytes) -> bool:
        try:
            token = json.loads(text)["token"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        if not isinstance(token, str):
            return False
        return hmac.compare_digest(token.encode(errors="replace"), self._token.encode())


def _limit_sending(connection: socket.socket) -> None:
    """Have sends fail after a while; what is received may be waited for without limit."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit = struct.pack("ll", _SEND_TIMEOUT_S, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _disconnect(connection: socket.socket) -> None:
    """Close a socket; the thread that waits for it, which keeps it open, is woken."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
