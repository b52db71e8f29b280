"""From what Slurm answers, in every version's form, to how a job stands."""

from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import JobHandle, JobState
from trimtab.launch.api import SchedulerView
from trimtab.launch.slurm.reasons import explained
from trimtab.launch.slurm.rows import JobRow, rows_of_json, rows_of_sacct, rows_of_squeue
from trimtab.launch.slurm.views import rows_of, state_of, view_of

DATA = Path(__file__).parents[2] / "data" / "slurm"


def read(name: str) -> str:
    return (DATA / name).read_text()


def view(rows: tuple[JobRow, ...], job_id: str) -> SchedulerView:
    own = rows_of(JobHandle(scheduler="slurm", job_id=job_id), rows)
    return view_of(own)


@pytest.fixture(params=["squeue_22_05.json", "squeue_22_05.txt"])
def recorded(request: pytest.FixtureRequest) -> tuple[JobRow, ...]:
    name: str = request.param
    read_rows = rows_of_json if name.endswith("json") else rows_of_squeue
    return read_rows(read(name))


def test_json_and_text_of_slurm_22_05_say_the_same(recorded: tuple[JobRow, ...]) -> None:
    assert {
        row.job_id: (row.states, row.reason, row.nodes, row.start_s) for row in recorded
    } == {
        "28": (("RUNNING",), "", "n[1-3]", 1795479790.0),
        "29": (("FAILED",), "NonZeroExitCode", "n4", 1795479790.0),
        "30": (("PENDING",), "Resources", "", 1795481590.0),
        "31": (("PENDING",), "JobHeldUser", "", None),
        "32_[0-3,7]": (("PENDING",), "BeginTime", "", 1795480388.0),
        "33": (("CANCELLED",), "BeginTime", "", 1795479792.0),
    }


def test_views_of_slurm_22_05(recorded: tuple[JobRow, ...]) -> None:
    assert view(recorded, "28") == SchedulerView(
        state=JobState.RUNNING, native_state="RUNNING", reason="", nodes=("n1", "n2", "n3")
    )
    assert view(recorded, "30") == SchedulerView(
        state=JobState.PENDING,
        native_state="PENDING",
        reason="Resources: it is next when enough nodes are free",
        expected_start_s=1795481590.0,
    )
    assert view(recorded, "29").reason == (
        "NonZeroExitCode: its script ended with an error; see its logs"
    )
    assert view(recorded, "33") == SchedulerView(
        state=JobState.CANCELLED, native_state="CANCELLED", reason=""
    )
    assert view(recorded, "32_7").state is JobState.PENDING
    assert rows_of(JobHandle(scheduler="slurm", job_id="32_4"), recorded) == ()
    assert rows_of(JobHandle(scheduler="slurm", job_id="3"), recorded) == ()


def test_views_of_slurm_23_02() -> None:
    rows = rows_of_json(read("squeue_23_02.json"))
    assert view(rows, "28").nodes == ("n1", "n2", "n3")
    assert view(rows, "31") == SchedulerView(
        state=JobState.PENDING,
        native_state="PENDING",
        reason="Priority: jobs of higher priority come first",
    )


def test_views_of_slurm_24_11() -> None:
    rows = rows_of_json(read("squeue_24_11.json"))
    assert view(rows, "28") == SchedulerView(
        state=JobState.RUNNING, native_state="RUNNING", reason="", nodes=("n1", "n2", "n3")
    )
    assert view(rows, "29").state is JobState.FAILED
    assert view(rows, "30").state is JobState.PENDING
    assert view(rows, "31").reason == (
        "ReqNodeNotAvail, UnavailableNodes:n[1-2]: a node that it names, or needs, is down, "
        "drained, reserved or in use"
    )
    assert view(rows, "35") == SchedulerView(
        state=JobState.RUNNING, native_state="COMPLETING", reason="", nodes=("n4",)
    )


def test_an_array_is_what_its_tasks_are() -> None:
    rows = rows_of_json(read("squeue_24_11.json"))
    assert view(rows, "32") == SchedulerView(
        state=JobState.RUNNING,
        native_state="RUNNING",
        reason="1 CANCELLED, 3 PENDING, 1 RUNNING",
        nodes=("n4",),
    )
    assert view(rows, "32_1").state is JobState.CANCELLED
    assert view(rows, "32_7").reason == (
        "JobArrayTaskLimit: as many tasks of its array run as were asked for"
    )


def test_views_of_what_slurmdbd_remembers() -> None:
    rows = rows_of_sacct(read("sacct_22_05.txt"))
    states = {row.job_id: (state_of(row), row.nodes) for row in rows}
    assert states == {
        "23": (JobState.SUCCEEDED, "n[1-2]"),
        "28": (JobState.CANCELLED, "n[1-3]"),
        "29": (JobState.FAILED, "n4"),
        "36": (JobState.SUCCEEDED, "n1"),
        "38": (JobState.FAILED, "n3"),
        "39_0": (JobState.SUCCEEDED, "n4"),
        "39_1": (JobState.SUCCEEDED, "n1"),
        "40_[5-6]": (JobState.CANCELLED, ""),
    }
    assert view(rows, "39") == SchedulerView(
        state=JobState.SUCCEEDED, native_state="COMPLETED", reason="2 COMPLETED"
    )


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (("PENDING",), JobState.PENDING),
        (("CONFIGURING",), JobState.PENDING),
        (("RUNNING", "CONFIGURING"), JobState.PENDING),
        (("RUNNING",), JobState.RUNNING),
        (("SUSPENDED",), JobState.RUNNING),
        (("STOPPED",), JobState.RUNNING),
        (("COMPLETING",), JobState.RUNNING),
        (("FAILED", "COMPLETING"), JobState.RUNNING),
        (("NODE_FAIL", "REQUEUED", "COMPLETING"), JobState.PENDING),
        (("REQUEUED",), JobState.PENDING),
        (("REQUEUE_HOLD",), JobState.PENDING),
        (("SPECIAL_EXIT",), JobState.PENDING),
        (("COMPLETED",), JobState.SUCCEEDED),
        (("CANCELLED",), JobState.CANCELLED),
        (("FAILED",), JobState.FAILED),
        (("NODE_FAIL",), JobState.FAILED),
        (("PREEMPTED",), JobState.FAILED),
        (("TIMEOUT",), JobState.FAILED),
        (("OUT_OF_MEMORY",), JobState.FAILED),
        (("BOOT_FAIL",), JobState.FAILED),
        (("DEADLINE",), JobState.FAILED),
        (("REVOKED",), JobState.FAILED),
        (("A_STATE_OF_TOMORROW",), JobState.RUNNING),
    ],
)
def test_every_state_of_slurm(states: tuple[str, ...], state: JobState) -> None:
    assert state_of(JobRow(job_id="1", states=states)) is state


def test_why_a_job_has_ended_is_told() -> None:
    lost = view_of([JobRow(job_id="1", states=("NODE_FAIL",), reason="None", nodes="n1")])
    assert (lost.native_state, lost.reason) == ("NODE_FAIL", "NODE_FAIL: a node of it failed")
    back = view_of([JobRow(job_id="1", states=("PENDING", "REQUEUED"), reason="BeginTime")])
    assert back.reason.startswith("BeginTime: its earliest start has not come, or it was put")


def test_reasons_are_explained() -> None:
    assert explained("Dependency") == "Dependency: another job must end first"
    assert explained("QOSMaxGRESPerUser") == (
        "QOSMaxGRESPerUser: the QoS allows no more GRES per user; wait, or ask for less"
    )
    assert explained("AssocGrpCpuLimit") == (
        "AssocGrpCpuLimit: the account allows no more Cpu for all its jobs together; wait, or "
        "ask for less"
    )
    assert explained("MaxNodePerAccount") == (
        "MaxNodePerAccount: the QoS allows no more Node per account; wait, or ask for less"
    )
    assert explained("QOSMinGRES") == ("QOSMinGRES: the QoS is for jobs that ask for more GRES")
    assert explained("SomethingNew") == "SomethingNew"
    assert explained("") == ""


def test_an_answer_with_errors_is_told_in_slurms_words() -> None:
    text = '{"jobs": [], "errors": [{"description": "no access", "error": "x"}]}'
    with pytest.raises(InputError, match=r"^slurm: no access: x$"):
        rows_of_json(text)
    for text in ("", "[]", "{}", "null", "<html>"):
        with pytest.raises(InputError, match=r"^slurm: an answer about jobs cannot be read: "):
            rows_of_json(text)
