"""W&B runs in a process of its own: it starts threads and services that outlive a test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"

EVENTS = """
from trimtab.core.events import Alert, EvaluationFinished, JobFinished, StepSummarized
from trimtab.core.job import JobState
events = [
    StepSummarized(time_s=1.0, step=1, loss=5.5, num_tokens=1000, model_flops=1e9, step_s=0.5,
                   gradient_norm=1.25, learning_rate=1e-3),
    EvaluationFinished(time_s=2.0, step=1, loss=5.25, num_tokens=100),
    Alert(time_s=3.0, severity="warning", message="late plan", step=1),
    JobFinished(time_s=4.0, state=JobState.SUCCEEDED, reason="done"),
]
"""


def run_python(
    code: str, *, folder: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "WANDB_API_KEY": KEY, "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_offline_runs_hold_what_was_logged_and_never_the_key(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra `monitor`")
    code = f"""{EVENTS}
from pathlib import Path
from trimtab.monitor.sinks import WandbSink
sink = WandbSink("trimtab-tests", "run-1", folder=Path("."))
assert sink.write(events) == ()
print(dict(sink._run.summary))
assert sink.close() == ()
"""
    result = run_python(code, folder=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    assert "'train/loss': 5.5" in result.stdout
    assert "'evaluation/loss': 5.25" in result.stdout
    assert "'speed/tokens_per_s': 2000" in result.stdout
    assert "'state': 'succeeded'" in result.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".wandb"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in result.stdout + result.stderr


@pytest.mark.slow
def test_a_failure_after_the_start_is_one_alert_and_then_silence(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra `monitor`")
    code = f"""{EVENTS}
from pathlib import Path
from trimtab.monitor.sinks import WandbSink
sink = WandbSink("trimtab-tests", "run-1", folder=Path("."))
sink._run.finish()
for alert in sink.write(events):
    print(alert.severity, alert.message)
assert sink.write(events) == ()
assert sink.close() == ()
"""
    result = run_python(code, folder=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("warning W&B failed and gets no more of this run: ")
    assert result.stdout.count("\n") == 1


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.modules["wandb"] = None
from trimtab.core.errors import MissingExtraError
from trimtab.monitor.sinks import WandbSink
try:
    WandbSink("p", "r", folder=Path("."))
except MissingExtraError as error:
    print(error)
"""
    result = run_python(code, folder=tmp_path)
    assert result.stdout == (
        "telemetry.wandb_project: needs the package wandb; pip install 'trimtab[monitor]'\n"
    )


@pytest.mark.slow
def test_a_key_that_is_refused_is_not_shown(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra `monitor`")
    code = """
from pathlib import Path
from trimtab.core.errors import InputError
from trimtab.monitor.sinks import WandbSink
try:
    WandbSink("p", "r", folder=Path("."))
except InputError as error:
    print(error)
"""
    result = run_python(code, folder=tmp_path, WANDB_API_KEY="too-short-key")
    assert result.stdout.startswith("telemetry.wandb_project: W&B does not start: ")
    assert "too-short-key" not in result.stdout + result.stderr
