"""`trimtab submit` as a user types it: dry runs, scripts that really run, wrong usage."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core import serde
from trimtab.core.job import Request, ScriptSpec
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.runs_folder import newest_run

Capture = pytest.CaptureFixture[str]

PRINTS_TORCHRUN = """
import json, os
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
         "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
print(json.dumps({name: os.environ[name] for name in names}))
"""
MEETS_THE_OTHERS = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print("the sum is", int(total))
dist.destroy_process_group()
"""
FAILS_ONCE = """
import os, sys
sys.exit(int(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1"))
"""
HOSTILE = "a b; $(touch pwned) 'quoted' \"twice\""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`script(text)`: a Python file in the working directory."""
    monkeypatch.chdir(tmp_path)

    def script(text: str) -> Path:
        path = tmp_path / "my train.py"
        path.write_text(text)
        return path

    return script


def submit(*arguments: str) -> int:
    return main(["submit", *arguments])


def python(path: Path, *arguments: str) -> list[str]:
    return ["--", sys.executable, str(path), *arguments]


def test_a_dry_run_for_slurm_prints_the_script_and_as_json_the_request(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a dry run asks no cluster
    monkeypatch.chdir(tmp_path)
    options = ["-s", "slurm", "-N", "2", "-A", "abc", "--time", "1:00:00", "--dry-run"]
    assert submit(*options, "--", "python", "x.py", "--time", "7") == 0
    text = capsys.readouterr().out
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=x\n#SBATCH --nodes=2\n")
    assert "#SBATCH --account=abc\n" in text
    assert "#SBATCH --time=1:00:00\n" in text
    assert submit(*options, "--json", "--", "python", "x.py", "--time", "7") == 0
    request = serde.from_json(Request, capsys.readouterr().out)
    assert isinstance(request.job, ScriptSpec)
    assert request.argv == ("python", "x.py", "--time", "7")
    assert (request.num_ranks, request.num_nodes) == (2, 2)
    assert request.submission.startswith("#!/bin/bash\n")
    assert not runs.exists()


def test_a_dry_run_of_an_array_is_the_one_script_of_all_tasks(
    runs: Path, capsys: Capture
) -> None:
    asked = ["-s", "slurm", "--array", "0-7%2", "--dry-run", "--", "python", "x.py"]
    assert submit(*asked) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-7%2\n" in text
    assert '"${SLURM_ARRAY_TASK_ID}"' in text
    assert not runs.exists()


def test_a_script_finds_torchruns_variables(
    script: Callable[[str], Path], runs: Path, capsys: Capture
) -> None:
    train = script(PRINTS_TORCHRUN)
    assert submit("--wait", "--ranks-per-node", "2", *python(train)) == 0
    assert "succeeded: every rank of the script has ended" in capsys.readouterr().out
    assert main(["logs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (json.loads(line) for line in lines if line.startswith("{"))
    port = first["MASTER_PORT"]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"TORCHELASTIC_RESTART_COUNT": "0"}
    assert first == common | {"RANK": "0", "LOCAL_RANK": "0"}
    assert second == common | {"RANK": "1", "LOCAL_RANK": "1"}
    assert 1024 <= int(port) <= 65_535
    assert newest_run().state().name == "my train"


@pytest.mark.workers
def test_ranks_of_a_script_meet_as_under_torchrun(
    script: Callable[[str], Path], runs: Path, capsys: Capture
) -> None:
    train = script(MEETS_THE_OTHERS)
    assert submit("--wait", "--ranks-per-node", "2", *python(train)) == 0
    assert main(["logs"]) == 0
    assert capsys.readouterr().out.count("the sum is 3") == 2


def test_a_scripts_arguments_reach_it_as_they_are(
    script: Callable[[str], Path], runs: Path, capsys: Capture, tmp_path: Path
) -> None:
    train = script("import sys; print(sys.argv[1:])")
    assert submit("--wait", *python(train, HOSTILE, "--wait", "--", "a.b=c")) == 0
    assert main(["logs"]) == 0
    assert str([HOSTILE, "--wait", "--", "a.b=c"]) in capsys.readouterr().out
    assert not list(tmp_path.rglob("pwned"))


def test_a_script_that_fails_once_is_started_again(
    script: Callable[[str], Path], runs: Path, capsys: Capture
) -> None:
    train = script(FAILS_ONCE)
    assert submit("--wait", "--ranks-per-node", "2", *python(train)) == 0
    assert main(["status", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])["attempts"]
    assert first["decision"].startswith("starting again")
    assert second["decision"] == "the job has succeeded"


def test_a_failed_script_exits_with_1_and_runs_again_when_resumed(
    script: Callable[[str], Path], runs: Path, capsys: Capture
) -> None:
    train = script("import os; raise SystemExit(not os.path.exists('let-me'))")
    assert submit("--wait", "--max-restarts", "0", *python(train)) == 1
    assert "rank 0 failed with exit code 1" in capsys.readouterr().out
    train.with_name("let-me").touch()
    assert submit("--resume", newest_run().job_id, "--wait") == 0
    assert newest_run().state().attempt == 2
    capsys.readouterr()
    assert submit("--resume", newest_run().job_id) == 2
    message = "has succeeded; to run its script again, submit it anew"
    assert message in capsys.readouterr().err


def test_a_script_has_no_report_and_no_weights(
    script: Callable[[str], Path], runs: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert submit("--wait", *python(script("pass"))) == 0
    run_id = newest_run().job_id
    capsys.readouterr()
    for command in (["report"], ["compare", run_id, run_id], ["export", run_id, "new"]):
        assert main(command) == 2
        assert "runs a script of its own, whose steps Trimtab does" in capsys.readouterr().err


def test_following_a_script_says_that_it_runs_and_how_it_ended(
    script: Callable[[str], Path], runs: Path, capsys: Capture
) -> None:
    assert submit("--follow", *python(script("print('here')"))) == 0
    text = capsys.readouterr().out
    assert "running\n" in text
    assert "every rank of the script has ended" in text


def test_ctrl_c_while_waiting_leaves_the_job_running(
    script: Callable[[str], Path], runs: Path, tmp_path: Path
) -> None:
    train = script("import time; open('begun', 'w').close(); time.sleep(600)")
    program = (  # a shell may have started the tests with SIGINT ignored
        "import signal, sys; from trimtab.orchestrator.cli.main import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "submit", "--wait", *python(train)]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate()
    assert waiting.returncode == 130
    assert errors.decode() == "detached; what was submitted goes on\n"
    run_id = newest_run().job_id
    assert main(["status", run_id]) == 101
    assert main(["cancel", run_id, "--wait"]) == 0
    assert main(["status", run_id]) == 103


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "slurm", "--time", "0"], "slurm.time: expected more than no time, got '0'"),
        (["-s", "slurm", "--time", "soon"], "slurm.time: expected minutes, minutes:seconds"),
        (["-s", "slurm"], "slurm: this machine has no command sinfo; submit from a login"),
        (["-s", "slurm", "--slurm-arg", "time=10"], "time has a place of its own: set slurm.t"),
        (["-s", "slurm", "--array", "3-1"], "slurm.array: expected rising indices"),
        (["-s", "ray"], "ray.address: none given; expected the cluster's dashboard"),
        (["-s", "ray", "--address", "http://127.0.0.1:9"], "no Ray Jobs API answers at http:"),
        (["-s", "slurn"], "--scheduler: unknown value 'slurn'; did you mean 'slurm'"),
        (["--time", "1"], "--time: an option of -s slurm, but the job goes to local"),
        (["-N", "2"], "num_nodes: this machine is one node, got 2"),
        (["--ranks-per-node", "0"], "--ranks-per-node: expected a whole number >= 1, got 0"),
        (["-s", "slurm", "-N", "0"], "--nodes: expected a whole number >= 1, got 0"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_2_before_anything_is_written(
    arguments: list[str],
    message: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert submit(*arguments, "--", sys.executable, "-c", "pass") == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not os.path.lexists(runs)


def test_a_run_goes_on_where_it_was(
    script: Callable[[str], Path], runs: Path, capsys: Capture
) -> None:
    assert submit("--wait", "--max-restarts", "0", *python(script("raise SystemExit(1)"))) == 1
    run_id = newest_run().job_id
    capsys.readouterr()
    assert submit("--resume", run_id, "-s", "slurm") == 2
    assert f"local://{run_id} goes on where it was, with -s local" in capsys.readouterr().err
    assert submit("--resume", run_id, "--max-restarts", "3") == 2
    assert "--resume: a run goes on with what it was submitted with" in capsys.readouterr().err
