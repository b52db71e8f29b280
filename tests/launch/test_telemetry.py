"""A rank's sender against the real collector's wire, read from a plain socket."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from trimtab.core.events import Alert, RankProgressed
from trimtab.launch.runtime.telemetry import TelemetrySender
from trimtab.monitor.store import read_event


class Listener:
    """Accepts one sender and keeps its lines."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        connection, _ = self._server.accept()
        with connection, connection.makefile() as stream:
            for line in stream:
                self.lines.append(line)

    def wait(self) -> list[str]:
        self._thread.join(timeout=20)
        self._server.close()
        return self.lines


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.wait()


def alert(number: int) -> Alert:
    return Alert(time_s=float(number), severity="info", message=f"event {number}")


def test_the_token_comes_first_then_every_event_in_order(listener: Listener) -> None:
    sender = TelemetrySender(listener.address, token="word", rank=3)
    for number in range(500):
        sender.emit(alert(number))
    sender.close()

    first, *rest = listener.wait()
    assert json.loads(first) == {"token": "word"}
    events = [read_event(line) for line in rest]
    assert [event for event in events if isinstance(event, Alert)] == [
        alert(number) for number in range(500)
    ]


def test_a_heartbeat_tells_step_and_what_is_under_way(listener: Listener) -> None:
    sender = TelemetrySender(listener.address, token="word", rank=3)
    while len(listener.lines) < 2:  # the token and the first
        time.sleep(0.02)
    sender.progress(7, lambda: "backward")
    while len(listener.lines) < 3:
        time.sleep(0.02)
    sender.close()

    first, second = (read_event(line) for line in listener.wait()[1:3])
    assert isinstance(first, RankProgressed)
    assert isinstance(second, RankProgressed)
    assert (first.rank, first.step, first.doing) == (3, 0, "starting")
    assert (second.rank, second.step, second.doing) == (3, 7, "backward")


def test_a_collector_that_went_away_does_not_stop_the_rank(listener: Listener) -> None:
    sender = TelemetrySender(listener.address, token="word", rank=0)
    sender._socket.shutdown(socket.SHUT_RDWR)
    for number in range(100):
        sender.emit(alert(number))
    sender.close()
