"""`trimtab calibrate` short of its measurement, which `test_demo` runs."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.orchestrator.calibrate import Calibration
from trimtab.orchestrator.cli.calibrate import _show
from trimtab.orchestrator.cli.main import main

Capture = pytest.CaptureFixture[str]

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


def test_a_profile_that_could_not_be_written_is_refused_before_measuring(
    tmp_path: Path, runs: Path, capsys: Capture
) -> None:
    for out in (tmp_path / "no" / "such" / "profile.json", tmp_path):
        assert main(["calibrate", DEMO, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert f"--out: expected a file that can be written, got {out}" in error
    assert not runs.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_of_others_is_refused_too(tmp_path: Path, capsys: Capture) -> None:
    tmp_path.chmod(0o500)
    assert main(["calibrate", DEMO, "--out", str(tmp_path / "profile.json")]) == 2
    assert "--out: expected a file that can be written" in capsys.readouterr().err


def test_a_dry_run_prints_the_probing_request_and_changes_nothing(
    tmp_path: Path, runs: Path, capsys: Capture
) -> None:
    out = tmp_path / "profile.json"
    assert main(["calibrate", DEMO, "--out", str(out), "--dry-run"]) == 0
    request = json.loads(capsys.readouterr().out)
    assert request["job"]["step_planning"]["grouping"] == "probe"
    assert not runs.exists()
    assert not out.exists()


def test_a_name_with_brackets_is_shown_as_it_is() -> None:
    profile = StepProfile(
        name="a[/b]",
        num_gpus=2,
        gpus_per_node=2,
        quadratic_s=1e-9,
        linear_s=1e-6,
        fixed_s=1e-3,
        alltoall_bytes_per_token=100.0,
        bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=1e9),),
        token_cap=4_096,
    )
    screen = Console(file=io.StringIO(), width=96, markup=False)
    result = Calibration(profile=profile, num_samples=3, median_error_fraction=0.1)
    _show(result, screen)
    _show(replace(result, profile=replace(profile, name="[bold]x")), screen)
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    assert "a[/b]: 3 groups measured" in text
    assert "[bold]x: 3 groups measured" in text
