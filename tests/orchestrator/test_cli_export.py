"""`trimtab export` short of the weights, which the end-to-end tests write."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.job import JobState
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.submission import PreparedJob

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(prepare: Callable[..., PreparedJob]) -> RunDir:
    prepared = prepare()
    state = RunState(
        name="small",
        num_ranks=3,
        state=JobState.SUCCEEDED,
        reason="all steps are done",
        attempt=1,
        submitted_s=0.0,
    )
    return RunDir.create(prepared.request, plan=prepared.plan, state=state)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("full", "full: expected a new or empty folder, but it holds files"),
        ("file", "file: expected a new or empty folder, but it is a file"),
        ("file/below", "below: expected a folder that can be written, but"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_anything_is_loaded(
    target: str, message: str, run: RunDir, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    assert main(["export", str(run.path), str(tmp_path / target)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_of_others_is_refused_too(
    run: RunDir, tmp_path: Path, capsys: Capture
) -> None:
    others = tmp_path / "others"
    others.mkdir(mode=0o500)
    assert main(["export", str(run.path), str(others / "new")]) == 2
    assert "expected a folder that can be written" in capsys.readouterr().err
