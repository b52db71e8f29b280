import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from trimtab.core import serde
from trimtab.core.events import Alert, AnyEvent, RankProgressed, StepPlanned
from trimtab.core.plan import SequenceGroup, StagePath, StepPlan, Wave
from trimtab.monitor.collector import MAX_LINE_BYTES, Collector

TOKEN = "secret-of-this-attempt"
HEARTBEAT = RankProgressed(time_s=1.0, rank=3, step=2, doing="forward")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector(TOKEN)
    yield collector
    collector.close()


def connect(collector: Collector) -> socket.socket:
    host, _, port = collector.address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(10)
    return connection


def send(collector: Collector, *lines: bytes) -> None:
    with connect(collector) as connection:
        connection.sendall(b"".join(line + b"\n" for line in lines))


def token_line(token: str = TOKEN) -> bytes:
    return json.dumps({"token": token}).encode()


def event_line(event: AnyEvent) -> bytes:
    return serde.to_json(event).encode()


def drained(collector: Collector, *, count: int) -> list[AnyEvent]:
    """The first `count` events; the whole test's time limit bounds the wait."""
    events: list[AnyEvent] = []
    while len(events) < count:
        events.extend(collector.drain())
        time.sleep(0.005)
    return events


def refusal(collector: Collector) -> str:
    (alert,) = drained(collector, count=1)
    assert isinstance(alert, Alert)
    assert alert.severity == "warning"
    return alert.message


def test_it_listens_on_loopback_only(collector: Collector) -> None:
    assert collector.address.startswith("127.0.0.1:")


def test_events_of_a_rank_with_the_token_arrive_in_order(collector: Collector) -> None:
    second = RankProgressed(time_s=2.0, rank=3, step=2, doing="backward")
    send(collector, token_line(), event_line(HEARTBEAT), event_line(second))
    assert drained(collector, count=2) == [HEARTBEAT, second]


def test_a_disconnecting_rank_is_no_error_even_in_the_middle_of_a_line(
    collector: Collector,
) -> None:
    with connect(collector) as connection:
        connection.sendall(token_line() + b"\n" + event_line(HEARTBEAT) + b'\n{"schema": 1')
    collector.close()
    assert collector.drain() == [HEARTBEAT]


def test_a_plan_of_8192_sequences_passes(collector: Collector) -> None:
    groups = tuple(
        SequenceGroup(ranks=(rank,), sequences=tuple(range(rank, 8_192, 64)))
        for rank in range(64)
    )
    plan = StepPlan(
        waves=(Wave(groups=groups),),
        paths=(StagePath(stages=(0,)),),
        step_s=1.0,
        lower_bound_s=1.0,
        method="heuristic",
        solve_s=0.1,
        reason="test",
    )
    event = StepPlanned(time_s=1.0, step=1, plan=plan, lengths=(1_048_576,) * 8_192)
    send(collector, token_line(), event_line(event))
    assert drained(collector, count=1) == [event]


@pytest.mark.parametrize("first", [token_line("wrong"), token_line("sécret")])
def test_a_wrong_token_is_refused_and_nothing_after_it_is_read(
    collector: Collector, first: bytes
) -> None:
    with connect(collector) as connection:
        connection.sendall(first + b"\n" + event_line(HEARTBEAT) + b"\n")
        assert "wrong token" in refusal(collector)
        with contextlib.suppress(ConnectionResetError):  # closed with our event still unread
            assert connection.recv(1) == b""
    assert collector.drain() == []


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1", b"[]", b'{"token": 1}', b"[" * 4_000])
def test_a_first_line_that_is_no_token_is_refused(collector: Collector, first: bytes) -> None:
    send(collector, first)
    assert "not a token" in refusal(collector)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "not an event: expected a JSON document"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "expected a JSON document"),
        (b"9" * 5_000, "expected a JSON document"),
        (b'{"schema": 1, "type": "RankVanished", "time_s": 1.0}', "unknown type"),
        (b'{"schema": 2, "type": "RankProgressed"}', "reads version 1"),
        (event_line(HEARTBEAT).replace(b'"forward"', b"17"), "doing: expected text"),
        (event_line(HEARTBEAT).replace(b": 1.0", b": 1e999"), "expected a finite number"),
        (event_line(HEARTBEAT).replace(b": 1.0", b": NaN"), "expected a finite number"),
        (event_line(HEARTBEAT).replace(b'"rank": 3', b'"rank": -1'), "rank = -1"),
        (event_line(HEARTBEAT).replace(b'"step": 2', b'"step": 1' + b"0" * 19), "step = 1"),
    ],
)
def test_garbage_closes_the_connection_with_an_alert(
    collector: Collector, line: bytes, words: str
) -> None:
    send(collector, token_line(), line)
    assert words in refusal(collector)


def test_an_oversize_line_closes_the_connection_with_an_alert(collector: Collector) -> None:
    with connect(collector) as connection:
        connection.sendall(token_line() + b"\n")
        with contextlib.suppress(ConnectionError):  # it was closed while we were still sending
            connection.sendall(b"x" * (MAX_LINE_BYTES + 2))
        assert "more than 4194304 bytes" in refusal(collector)


def test_other_ranks_go_on_after_one_sent_garbage(collector: Collector) -> None:
    with connect(collector) as good:
        good.sendall(token_line() + b"\n")
        send(collector, token_line(), b"garbage")
        assert "not an event" in refusal(collector)
        good.sendall(event_line(HEARTBEAT) + b"\n")
        assert drained(collector, count=1) == [HEARTBEAT]


def test_close_reads_what_was_under_way_and_cuts_who_stays_connected() -> None:
    collector = Collector(TOKEN)
    with connect(collector) as connection:
        connection.sendall(token_line() + b"\n" + event_line(HEARTBEAT) + b"\n")
        drained(collector, count=1)
        connection.sendall(event_line(HEARTBEAT) + b"\n")
        collector.close()
        assert collector.drain() == [HEARTBEAT]
        assert connection.recv(1) == b""
