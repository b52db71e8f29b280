"""`trimtab` as it is typed, on a real slurmctld with four slurmd."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.launch.slurm.commands import output_of
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.runs_folder import find_run, newest_run

pytestmark = pytest.mark.usefixtures("slurm_cluster")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the runs, of which none is left in the queue."""
    root = tmp_path / "runs"
    monkeypatch.setenv("TRIMTAB_RUNS_DIR", str(root))
    monkeypatch.chdir(tmp_path)
    yield root
    for handle in (root / ".handles").glob("slurm-*"):
        output_of(["scancel", "--quiet", handle.name.removeprefix("slurm-")])


def submit(*arguments: str) -> int:
    return main(["submit", "-s", "slurm", *arguments])


def python(text: str) -> list[str]:
    Path("train.py").write_text(text)
    return ["--", sys.executable, "train.py"]


def queued() -> set[str]:
    return set(output_of(["squeue", "--noheader", "--format=%i"]).split())


def test_slurm_holds_the_script_that_a_dry_run_prints(capsys: Capture) -> None:
    asked = ["-N", "2", "--time", "5:00", "--comment", "$(touch pwned) \"a\" 'b'"]
    script = python("import time; time.sleep(600)")
    assert submit(*asked, "--dry-run", *script) == 0
    printed = capsys.readouterr().out
    assert submit(*asked, *script) == 0
    run = newest_run()
    job_id = run.handle.job_id
    held = output_of(["scontrol", "write", "batch_script", job_id, "-"])
    assert held.rstrip("\n") == run.request().submission.rstrip("\n")
    assert held.splitlines() == _named(printed, run.job_id).splitlines()
    assert not list(Path.cwd().rglob("pwned"))
    assert main(["cancel", str(run.handle), "--wait"]) == 0


def _named(script: str, run_id: str) -> str:
    """A dry run's script for the run that was submitted some moments later."""
    (earlier,) = set(re.findall(r"\d{8}-\d{6}-train", script))
    return script.replace(earlier, run_id)


def test_a_waiting_job_has_slurms_own_reason_and_leaves_the_queue(capsys: Capture) -> None:
    script = python("import time; open('begun', 'w').close(); time.sleep(600)")
    assert submit("-N", "4", "--name", "holder", *script) == 0
    holder = newest_run()
    while not Path("begun").exists():
        time.sleep(0.1)
    after = f"afterok:{holder.handle.job_id}"
    assert submit("-N", "4", "--name", "waiter", "--dependency", after, *script) == 0
    waiter = newest_run()
    capsys.readouterr()
    assert main(["status", waiter.job_id, "--json"]) == 101
    document = json.loads(capsys.readouterr().out)
    assert (document["state"], document["scheduler_state"]) == ("pending", "PENDING")
    assert "Dependency" in document["reason"]
    assert main(["cancel", str(waiter.handle), "--wait"]) == 0
    assert f"cancelling {waiter.handle}: it leaves the queue" in capsys.readouterr().out
    assert main(["status", str(waiter.handle)]) == 103
    assert main(["cancel", str(holder.handle), "--wait"]) == 0
    assert main(["logs", "--controller", str(holder.handle)]) == 103
    assert "attempt 1: 4 ranks on n1, n2, n3, n4" in capsys.readouterr().out


def test_each_task_of_an_array_is_a_run_of_its_own(capsys: Capture) -> None:
    script = python("import os; print('task', os.environ['SLURM_ARRAY_TASK_ID'])")
    assert submit("--array", "3-5", "--wait", *script) == 0
    run = newest_run()
    array = run.handle.job_id.partition("_")[0]
    for task in (3, 4, 5):
        capsys.readouterr()
        assert main(["logs", f"slurm://{array}_{task}"]) == 0
        assert f"task {task}\n" in capsys.readouterr().out
    assert main(["status", f"slurm://{array}"]) == 2
    assert "is an array of 3 jobs" in capsys.readouterr().err


def test_a_failed_run_goes_on_under_a_new_handle(capsys: Capture) -> None:
    script = python("import os; raise SystemExit(not os.path.exists('let-me'))")
    assert submit("--wait", "--max-restarts", "0", *script) == 1
    run = newest_run()
    first = run.handle
    Path("let-me").touch()
    assert main(["submit", "--resume", str(first), "--wait", "slurm.time=5:00"]) == 0
    assert run.handle != first
    assert find_run(str(first)) == find_run(str(run.handle)) == run
    assert "#SBATCH --time=5:00\n" in run.request().submission
    assert observe(run).state.attempt == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--partition", "mian"],
            "slurm.partition: unknown partition 'mian'; did you mean 'main'",
        ),
        (["-N", "5"], "num_nodes: 5 ranks ask for 5 nodes"),
        (["--gpus-per-node", "9"], "num_nodes: 9 ranks ask for 1 node with 9 GPUs each, but"),
        (["--nodelist", "n9"], "the cluster refuses the job: Invalid node name specified"),
    ],
)
def test_what_the_cluster_cannot_run_is_one_line_and_nothing_is_queued(
    arguments: list[str], message: str, runs: Path, capsys: Capture
) -> None:
    before = queued()
    assert submit(*arguments, *python("pass")) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert queued() <= before
    assert not runs.exists()


def test_doctor_tells_version_and_partitions(capsys: Capture) -> None:
    main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    (slurm,) = [finding for finding in findings if finding["check"] == "Slurm"]
    assert slurm["level"] == "ok"
    assert "partitions main (4 nodes)" in slurm["found"]
