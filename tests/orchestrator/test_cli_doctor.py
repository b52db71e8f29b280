import json
from pathlib import Path

import pytest

from trimtab.orchestrator.cli.main import main


def test_this_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    checks = {finding["check"] for finding in document["findings"]}
    assert {"python", "base packages", "extra train", "run directories", "Slurm"} <= checks


def test_run_directories_that_cannot_be_written_fail_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("TRIMTAB_RUNS_DIR", str(blocked / "runs"))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "fail  run directories" in text
    assert "TRIMTAB_RUNS_DIR" in text
