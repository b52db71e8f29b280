"""A rank's events on their way to the collector, off the training path."""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.core.events import Alert, AnyEvent, RankProgressed

_HEARTBEAT_S = 1.0
_CLOSING_S = 5.0
_MAX_WAITING_EVENTS = 100_000


class Telemetry(Protocol):
    """Where a rank reports; both calls return at once."""

    def emit(self, event: AnyEvent) -> None:
        """Report an event."""

    def progress(self, step: int, doing: Callable[[], str]) -> None:
        """Say what heartbeats shall report: the step, and a look at what is under way."""


class TelemetrySender:
    """Sends events over TCP from a thread of its own, and a heartbeat every second.

    Training never waits for it: when the collector cannot be reached, events are dropped.
    """

    def __init__(self, address: str, *, token: str, rank: int) -> None:
        """Connect to the collector at `address` (`host:port`)."""
        host, _, port = address.rpartition(":")
        self._rank = rank
        self._step = 0
        self._doing: Callable[[], str] = lambda: "starting"
        self._events: queue.Queue[AnyEvent | None] = queue.Queue(_MAX_WAITING_EVENTS)
        self._socket = socket.create_connection((host, int(port)), timeout=10.0)
        self._socket.sendall(json.dumps({"token": token}).encode() + b"\n")
        self._thread = threading.Thread(target=self._send, name="telemetry", daemon=True)
        self._thread.start()

    def emit(self, event: AnyEvent) -> None:
        """Queue an event."""
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(event)

    def progress(self, step: int, doing: Callable[[], str]) -> None:
        """Report this step, and what `doing` answers, with every heartbeat from now on."""
        self._step, self._doing = step, doing

    def close(self) -> None:
        """Send what is queued, for ten seconds at most, and stop."""
        with contextlib.suppress(queue.Full):
            self._events.put(None, timeout=_CLOSING_S)
        self._thread.join(timeout=_CLOSING_S)
        self._socket.close()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            self._send_event(self._heartbeat())
            due_s = time.monotonic() + _HEARTBEAT_S
            while True:
                try:
                    event = self._events.get(timeout=max(0.0, due_s - time.monotonic()))
                except queue.Empty:
                    event = self._heartbeat()
                    due_s = time.monotonic() + _HEARTBEAT_S
                if event is None:
                    return
                self._send_event(event)

    def _heartbeat(self) -> RankProgressed:
        return RankProgressed(
            time_s=time.time(), rank=self._rank, step=self._step, doing=self._doing()
        )

    def _send_event(self, event: AnyEvent) -> None:
        try:
            line = serde.to_json(event)
        except InputError as error:
            message = f"an event of kind {type(event).__name__} could not be sent: {error}"
            line = serde.to_json(
                Alert(time_s=time.time(), severity="warning", message=message, rank=self._rank)
            )
        self._socket.sendall(line.encode() + b"\n")
