import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.core.errors import RunDirError
from trimtab.core.events import Alert, EvaluationFinished, RankProgressed, StepPlanned
from trimtab.core.plan import SequenceGroup, StagePath, StepPlan, Wave
from trimtab.monitor.store import EventStore


def progress(step: int, *, rank: int = 0) -> RankProgressed:
    return RankProgressed(time_s=1.0 + step, rank=rank, step=step, doing="forward")


def planned(step: int) -> StepPlanned:
    waves = (
        Wave(
            groups=(
                SequenceGroup(ranks=(0, 1), sequences=(0, 2)),
                SequenceGroup(ranks=(2,), sequences=(1,)),
            )
        ),
    )
    plan = StepPlan(
        waves=waves,
        paths=(StagePath(stages=(0,)),),
        step_s=0.5,
        lower_bound_s=0.4,
        method="heuristic",
        solve_s=0.01,
        reason="longest first",
    )
    return StepPlanned(time_s=2.0, step=step, plan=plan, lengths=(100, 20, 7))


def test_events_come_back_equal_and_in_order(tmp_path: Path) -> None:
    with EventStore.create(tmp_path / "events.db") as store:
        store.append([progress(1), planned(2)])
        store.append([Alert(time_s=9.0, severity="warning", message="late plan", step=2)])
        stored = store.read()
    assert [item.id for item in stored] == [1, 2, 3]
    assert [item.event for item in stored] == [
        progress(1),
        planned(2),
        Alert(time_s=9.0, severity="warning", message="late plan", step=2),
    ]


def test_reading_goes_on_after_an_id_and_keeps_to_kinds_and_limit(tmp_path: Path) -> None:
    with EventStore.create(tmp_path / "events.db") as store:
        store.append([progress(1), planned(1), progress(2), planned(2), progress(3)])
        assert [s.id for s in store.read(after=2)] == [3, 4, 5]
        assert [s.id for s in store.read(kinds=(StepPlanned,))] == [2, 4]
        assert [s.id for s in store.read(kinds=(StepPlanned, RankProgressed), limit=2)] == [
            1,
            2,
        ]


def test_rows_of_one_step_or_one_rank(tmp_path: Path) -> None:
    with EventStore.create(tmp_path / "events.db") as store:
        store.append([progress(1, rank=0), progress(1, rank=1), progress(2, rank=1)])
        assert [row.id for row in store.rows(step=1)] == [1, 2]
        assert [row.id for row in store.rows(rank=1)] == [2, 3]
        (row,) = store.rows(step=2, rank=1, kinds=(RankProgressed,))
    assert row.kind == "RankProgressed"
    assert row.fields["doing"] == "forward"


def test_latest_is_the_newest_of_its_kind(tmp_path: Path) -> None:
    with EventStore.create(tmp_path / "events.db") as store:
        store.append([progress(1), progress(2), planned(2)])
        assert store.latest(RankProgressed) == progress(2)
        assert store.latest(EvaluationFinished) is None
        assert store.last_id() == 3


def test_an_empty_store_reads_as_empty(tmp_path: Path) -> None:
    with EventStore.create(tmp_path / "events.db") as store:
        assert store.read() == []
        assert store.last_id() == 0


def test_a_reader_sees_what_the_writer_adds_after_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with EventStore.create(path) as writer, EventStore.open(path) as reader:
        assert reader.read() == []
        writer.append([progress(7)])
        assert [s.event for s in reader.read()] == [progress(7)]


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    EventStore.create(path).close()
    with EventStore.open(path) as reader, pytest.raises(RunDirError, match="cannot write"):
        reader.append([progress(1)])


def test_a_resumed_run_appends_to_its_store(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with EventStore.create(path) as store:
        store.append([progress(1)])
    with EventStore.open(path, read_only=False) as store:
        store.append([progress(2)])
        assert [s.id for s in store.read()] == [1, 2]


def test_append_adds_all_or_none(tmp_path: Path) -> None:
    with EventStore.create(tmp_path / "events.db") as store:
        with pytest.raises(AttributeError):
            store.append([progress(1), None])  # type: ignore[list-item]  # on purpose
        assert store.read() == []


def test_a_store_of_another_version_is_refused_naming_both(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    EventStore.create(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(RunDirError, match=r"version 1, the file has version 7"):
        EventStore.open(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    path.write_text("hello, I am a text file and not a database at all\n" * 40)
    with pytest.raises(RunDirError, match="file is not a database"):
        EventStore.open(path)


def test_a_missing_store_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with pytest.raises(RunDirError, match="there is no such file"):
        EventStore.open(path, read_only=False)
    assert list(tmp_path.iterdir()) == []


def test_create_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    EventStore.create(path).close()
    with pytest.raises(RunDirError, match="there is one"):
        EventStore.create(path)


WRITER = """
import sys
from pathlib import Path
from trimtab.core.events import RankProgressed
from trimtab.monitor.store import EventStore

store = EventStore.create(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    store.append([RankProgressed(time_s=0.0, rank=r, step=step, doing="data") for r in (0, 1)])
    print(step, flush=True)
"""


def test_every_committed_event_survives_kill_9_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout as lines:
        reported = [next(lines) for _ in range(200)]
        with EventStore.open(path) as live:
            assert len(live.rows()) >= 400
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        reported.extend(line for line in lines if line.endswith("\n"))
    committed = int(reported[-1])
    with EventStore.open(path) as store:
        steps = [row.step for row in store.rows(limit=1_000_000)]
    assert steps[: 2 * committed] == [s for s in range(1, committed + 1) for _ in (0, 1)]
    assert len(steps) % 2 == 0


def test_a_shared_store_keeps_no_memory_that_machines_would_have_to_share(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.db"
    with EventStore.create(path, shared=True) as writer, EventStore.open(path) as reader:
        writer.append([Alert(time_s=1.0, severity="info", message="hello")])
        assert [stored.event.time_s for stored in reader.read()] == [1.0]
        assert [file.name for file in tmp_path.iterdir()] == ["events.db"]
