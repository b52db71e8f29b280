"""Submitting to a real slurmctld with four slurmd, looking at jobs there and ending them.

The keeper is a small program that says what it was given, and which signals it gets.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from script_jobs import until

from trimtab.core.errors import InputError
from trimtab.core.job import JobHandle, JobState, ScriptSpec
from trimtab.core.scheduling import SlurmOptions
from trimtab.launch.api import SchedulerView
from trimtab.launch.slurm import queue
from trimtab.launch.slurm.restd import SlurmRestd
from trimtab.launch.slurm.rows import JobRow, rows_of_json
from trimtab.launch.slurm.scheduler import SlurmScheduler
from trimtab.launch.slurm.script import array_member
from trimtab.launch.slurm.views import view_of

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm_cluster")]

KEEPER = """
import json, os, signal, subprocess, sys, time
print(json.dumps(sys.argv[1:]), flush=True)
print("secret", os.environ.get("WANDB_API_KEY"), flush=True)
def leave(*_):
    print("asked to end", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR2, lambda *_: print("warned", flush=True))
if os.environ.get("KEEPER_DOES") == "srun":
    srun = sys.argv[sys.argv.index("srun"):]
    sys.exit(subprocess.run([*srun, "--nodes=2", "--ntasks=2", "printenv", "SLURMD_NODENAME",
                             "CUDA_VISIBLE_DEVICES", "WANDB_API_KEY"]).returncode)
sys.exit(int(os.environ["KEEPER_DOES"])) if "KEEPER_DOES" in os.environ else None
while True:
    time.sleep(0.05)
"""
SCHEDULER = SlurmScheduler(rank_argv=(), keeper_argv=(sys.executable, "-c", KEEPER))
HOSTILE = "-a\n#SBATCH --account=root\ntouch bad; $(touch bad) '\""
HOSTILE_FOLDER = "a 'b' \"c\" $(touch bad) %j # & ;"
UNWRITABLE_FOLDER = "line\nbreak back\\slash"

Submit = Callable[..., tuple[JobHandle, Path]]


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """`submit(folder=..., nodes=2, time="10")`: a job whose ranks never start."""
    handles: list[JobHandle] = []

    def go(
        *, name: str = HOSTILE, folder: str = HOSTILE_FOLDER, nodes: int = 1, **options: Any
    ) -> tuple[JobHandle, Path]:
        run_dir = tmp_path / folder / "20261120-161500-a"
        job = script(name=name, nodes=nodes, **options)
        request = SCHEDULER.prepare(job, layout=None, run_dir=run_dir)
        members = [array_member(request, index).run_dir for index in range(3)]
        for path in [str(run_dir), *members]:
            (Path(path) / "logs").mkdir(parents=True, exist_ok=True)
        SCHEDULER.check(request)
        handles.append(SCHEDULER.submit(request, lock_fd=None))
        return handles[-1], run_dir

    yield go
    for handle in handles:
        subprocess.run(["scancel", handle.job_id], check=False)
    for handle in handles:
        until(lambda handle=handle: not has_processes(handle))  # type: ignore[misc]  # bound
    assert not list(tmp_path.rglob("bad"))


def script(*, name: str = "a", nodes: int = 1, **options: Any) -> ScriptSpec:
    return ScriptSpec(
        name=name,
        argv=("true",),
        folder="/",
        num_ranks=2 * nodes,
        num_nodes=nodes,
        slurm=SlurmOptions(**options),
    )


def gpu_script(*, num_ranks: int, nodes: int, **options: Any) -> ScriptSpec:
    return ScriptSpec(
        name="gpus",
        argv=("true",),
        folder="/",
        num_ranks=num_ranks,
        num_nodes=nodes,
        needs_gpus=True,
        slurm=SlurmOptions(**options),
    )


def view(handle: JobHandle) -> SchedulerView:
    return SCHEDULER.views([handle])[handle]


def has_state(handle: JobHandle, state: JobState) -> bool:
    return view(handle).state is state


def has_processes(handle: JobHandle) -> bool:
    return bool(
        subprocess.run(
            ["squeue", "--noheader", "--format=%i", f"--jobs={handle.job_id}"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    )


def log(run_dir: Path) -> str:
    return "".join(path.read_text() for path in (run_dir / "logs").glob("slurm-*.out"))


def refusal(job: ScriptSpec, folder: Path) -> str:
    request = SCHEDULER.prepare(job, layout=None, run_dir=folder / "20261120-161500-a")
    with pytest.raises(InputError) as refused:
        SCHEDULER.check(request)
    return str(refused.value)


@pytest.mark.parametrize("folder", [HOSTILE_FOLDER, UNWRITABLE_FOLDER])
def test_the_keeper_starts_with_what_was_prepared_and_nothing_else(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "inherited")
    handle, run_dir = submit(folder=folder)
    until(lambda: "secret" in log(run_dir))
    said = log(run_dir).splitlines()
    assert json.loads(said[0])[:3] == [str(run_dir), "--", "srun"]
    assert said[1] == "secret inherited"
    running = view(handle)
    assert (running.state, running.native_state) == (JobState.RUNNING, "RUNNING")
    assert len(running.nodes) == 1
    SCHEDULER.cancel(handle, at_once=False)
    until(lambda: has_state(handle, JobState.SUCCEEDED))
    assert "asked to end" in log(run_dir)


def test_an_agent_gets_all_gpus_of_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPER_DOES", "srun")
    monkeypatch.setenv("WANDB_API_KEY", "inherited")
    run_dir = tmp_path / "run"
    (run_dir / "logs").mkdir(parents=True)
    job = gpu_script(num_ranks=16, nodes=2, args=("cpus-per-task=2",), time="10")
    request = SCHEDULER.prepare(job, layout=None, run_dir=run_dir)
    SCHEDULER.check(request)
    handle = SCHEDULER.submit(request, lock_fd=None)
    until(lambda: view(handle).state.is_final)
    assert has_state(handle, JobState.SUCCEEDED), log(run_dir)
    lines = log(run_dir).splitlines()
    assert lines.count("0,1,2,3,4,5,6,7") == 2
    assert lines.count("inherited") == 2


def test_a_waiting_job_says_why_and_is_cancelled_at_once(submit: Submit) -> None:
    handle, run_dir = submit(args=("hold",))
    until(lambda: view(handle).reason)
    assert view(handle) == SchedulerView(
        state=JobState.PENDING,
        native_state="PENDING",
        reason="JobHeldUser: it is held; `scontrol release` lets it go",
    )
    SCHEDULER.cancel(handle, at_once=False)
    until(lambda: has_state(handle, JobState.CANCELLED))
    assert log(run_dir) == ""


def test_a_waiting_job_says_when_it_is_expected_to_start(submit: Submit) -> None:
    before_s = time.time()
    handle, _ = submit(args=("begin=now+1hour",))
    until(lambda: view(handle).expected_start_s)
    expected_s = view(handle).expected_start_s
    assert expected_s is not None
    assert before_s + 3_500 < expected_s < time.time() + 3_700
    assert view(handle).reason.startswith("BeginTime: its earliest start has not come")


def test_cancelling_at_once_asks_nobody(submit: Submit) -> None:
    handle, run_dir = submit()
    until(lambda: "secret" in log(run_dir))
    SCHEDULER.cancel(handle, at_once=True)
    until(lambda: has_state(handle, JobState.CANCELLED))
    assert view(handle).reason == ""


def test_options_reach_slurm_unharmed(submit: Submit) -> None:
    comment = "a \\ b \"c\" 'd' $(touch bad) # é, %j"
    handle, _ = submit(args=("hold",), comment=comment)
    said = subprocess.run(
        ["squeue", "--noheader", "--format=%k|%j|", f"--jobs={handle.job_id}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == f"{comment}|a-SBATCH-account-root-touch-bad-touch-bad|"


def test_slurm_warns_the_keeper_before_the_time_limit(submit: Submit) -> None:
    """Slurm looks at time limits once a minute, so it may be early, and here it is at once."""
    handle, run_dir = submit(time="2", signal="B:USR2@60")
    until(lambda: "secret" in log(run_dir))
    subprocess.run(["scancel", "--batch", "--signal=USR2", handle.job_id], check=True)
    until(lambda: "warned" in log(run_dir))
    assert has_state(handle, JobState.RUNNING)


def test_a_failed_keeper_is_a_failed_job(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPER_DOES", "93")
    handle, _ = submit()
    until(lambda: has_state(handle, JobState.FAILED))
    assert view(handle).reason == (
        "NonZeroExitCode: its script ended with an error; see its logs"
    )


def test_the_tasks_of_an_array_run_in_their_own_directories(submit: Submit) -> None:
    handle, run_dir = submit(array="0-2%2")
    first, last = Path(f"{run_dir}-0"), Path(f"{run_dir}-2")
    until(lambda: "secret" in log(first))
    until(lambda: view(handle).reason.startswith("1 PENDING, 2 RUNNING"))
    assert json.loads(log(first).splitlines()[0])[0] == str(first)
    task = JobHandle(scheduler="slurm", job_id=f"{handle.job_id}_2")
    assert view(task).state is JobState.PENDING
    SCHEDULER.cancel(task, at_once=False)
    until(lambda: view(task).state is JobState.CANCELLED)
    assert log(last) == ""
    SCHEDULER.cancel(handle, at_once=False)
    until(lambda: view(handle).state.is_final)
    assert "asked to end" in log(first)


def test_many_jobs_are_one_question(submit: Submit) -> None:
    handles = [submit(args=("hold",))[0] for _ in range(3)]
    unknown = JobHandle(scheduler="slurm", job_id="4000000")
    views = SCHEDULER.views([*handles, unknown])
    assert set(views) == set(handles)
    assert {one.state for one in views.values()} == {JobState.PENDING}
    assert SCHEDULER.views([unknown]) == {}
    assert SCHEDULER.views([]) == {}
    with pytest.raises(InputError, match=r"^slurm://4000000: Slurm knows no such job"):
        SCHEDULER.cancel(unknown, at_once=True)


def test_json_and_text_say_the_same(submit: Submit) -> None:
    held = submit(args=("hold",))[0]
    array = submit(array="0-1", args=("hold",))[0]
    ids = (held.job_id, array.job_id)
    until(lambda: all(row.reason for row in queue.text_rows(ids)))
    assert of(queue.json_rows(ids), ids) == of(queue.text_rows(ids), ids)


def test_slurmrestd_says_the_same(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = submit(args=("hold",))[0]
    until(lambda: view(handle).reason)
    address, stop = start_slurmrestd(tmp_path)
    try:
        rows = rows_of_json(SlurmRestd(address).jobs())
        ids = (handle.job_id,)
        assert of(rows, ids) == of(queue.text_rows(ids), ids)
        expected = view(handle)
        monkeypatch.setenv("SLURMRESTD", address)
        other = SlurmScheduler(rank_argv=(), keeper_argv=())
        assert other.views([handle]) == {handle: expected}
    finally:
        stop()


def test_a_partition_that_does_not_exist(tmp_path: Path) -> None:
    message = refusal(script(partition="mian"), tmp_path)
    assert message == "slurm.partition: unknown partition 'mian'; did you mean 'main'?"


def test_more_gpus_than_the_partition_has(tmp_path: Path) -> None:
    message = refusal(gpu_script(num_ranks=80, nodes=10, args=("exclusive",)), tmp_path)
    assert message == (
        "num_nodes: 80 ranks ask for 10 nodes with 8 GPUs each, but the partition 'main' has "
        "4 with 8 GPUs"
    )


def test_gpus_without_cores_are_refused(tmp_path: Path) -> None:
    message = refusal(gpu_script(num_ranks=8, nodes=1), tmp_path)
    assert message.startswith("slurm.args: say how many cores the 8 ranks of a node need")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reservation": "none"}, "Requested reservation is invalid"),
        ({"constraint": "none"}, "Invalid feature specification"),
        ({"nodelist": "nowhere"}, "Invalid node name specified"),
        ({"args": ("no-such-option=1",)}, "unrecognized option '--no-such-option=1'"),
        ({"array": "0-5000"}, "Invalid job array specification"),
    ],
)
def test_a_refusal_is_told_in_slurms_own_words(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    message = refusal(script(**options), tmp_path)
    assert message.startswith("slurm: the cluster refuses the job: ")
    assert words in message
    assert "\n" not in message


def test_a_refusal_at_submission_is_told_as_well(tmp_path: Path) -> None:
    job = script(partition="nowhere")
    request = SCHEDULER.prepare(job, layout=None, run_dir=tmp_path / "run")
    with pytest.raises(InputError) as refused:
        SCHEDULER.submit(request, lock_fd=None)
    assert str(refused.value) == (
        "slurm: the cluster refuses the job: invalid partition specified: nowhere; Invalid "
        "partition name specified"
    )


@pytest.mark.usefixtures("slurm_with_accounting")
def test_an_account_that_the_cluster_refuses(tmp_path: Path) -> None:
    assert refusal(script(account="nobody"), tmp_path).startswith(
        "slurm: the cluster refuses the job: Invalid account or account/partition combination "
        "specified; set slurm.account"
    )
    assert refusal(script(qos="none"), tmp_path).startswith(
        "slurm: the cluster refuses the job: Invalid qos specification; set slurm.qos"
    )


def test_without_slurmdbd_nothing_is_remembered(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPER_DOES", "0")
    handle, _ = submit()
    until(lambda: has_state(handle, JobState.SUCCEEDED))
    assert queue.remembered_rows((handle.job_id,)) == ()


@pytest.mark.usefixtures("slurm_with_accounting")
def test_what_slurmctld_forgot_is_remembered_by_slurmdbd(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPER_DOES", "0")
    handle, _ = submit()
    until(lambda: has_state(handle, JobState.SUCCEEDED))
    until(lambda: queue.remembered_rows((handle.job_id,)))
    remembered = view_of(queue.remembered_rows((handle.job_id,)))
    assert (remembered.state, remembered.native_state) == (JobState.SUCCEEDED, "COMPLETED")


def test_nodes_that_are_down_only_make_a_job_wait(submit: Submit) -> None:
    names = node_names()
    set_state(names, "down")
    try:
        handle, _ = submit(nodes=2)
        assert has_state(handle, JobState.PENDING)
        SCHEDULER.cancel(handle, at_once=False)
    finally:
        set_state(names, "resume")


def test_a_controller_that_is_away_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(os.environ["SLURM_CONF"]).read_text().splitlines()
    lines = [line for line in config if not line.startswith("SlurmctldPort")]
    away = tmp_path / "slurm.conf"
    away.write_text("\n".join([*lines, "SlurmctldPort=1", "MessageTimeout=2", ""]))
    monkeypatch.setenv("SLURM_CONF", str(away))
    handle = JobHandle(scheduler="slurm", job_id="1")
    with pytest.raises(InputError, match=r"^slurm: the cluster cannot be reached: squeue: "):
        SCHEDULER.views([handle])
    message = refusal(script(), tmp_path)
    assert message.startswith("slurm: the cluster cannot be reached: sinfo: ")


def of(rows: tuple[JobRow, ...], ids: tuple[str, ...]) -> list[JobRow]:
    return sorted((row for row in rows if row.first_id in ids), key=lambda row: row.job_id)


def node_names() -> list[str]:
    said = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%N"],
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(set(said.stdout.split()))


def set_state(names: list[str], state: str) -> None:
    argv = ["scontrol", "update", f"nodename={','.join(names)}", f"state={state}"]
    subprocess.run([*argv, "reason=a test"], check=True)


def start_slurmrestd(folder: Path) -> tuple[str, Callable[[], None]]:
    """Slurm's web service on a socket: as another user, since root is refused."""
    place = folder / "rest"
    place.mkdir()
    for path in (place, *place.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o711)
    place.chmod(0o777)
    socket = place / "sock"
    argv = ["slurmrestd", "-s", "v0.0.38", "-a", "rest_auth/local", f"unix:{socket}"]
    user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    process = subprocess.Popen(
        argv,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        extra_groups=[] if user else None,
        **user,  # type: ignore[call-overload]  # who runs it
    )
    until(socket.exists)

    def stop() -> None:
        process.terminate()
        process.wait(timeout=30)

    return f"unix:{socket}", stop
