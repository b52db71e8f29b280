from pathlib import Path

import pytest

from trimtab.orchestrator.api import load_job
from trimtab.orchestrator.cli.main import main


def test_init_writes_a_job_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "project"
    assert main(["init", str(folder)]) == 0
    assert load_job(folder / "job.yaml").num_ranks == 4


def test_init_overwrites_only_when_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "job.yaml: exists already; --force overwrites it" in capsys.readouterr().err
    assert (tmp_path / "job.yaml").read_text() == "mine"
    assert not (tmp_path / "cluster.yaml").exists()
    assert main(["init", str(tmp_path), "--force"]) == 0
    assert load_job(tmp_path / "job.yaml").name == "my-job"


@pytest.mark.parametrize("option", ["--dry-run", "--dryrun"])
def test_a_dry_run_writes_nothing(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "new"), option]) == 0
    assert "would write" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file")]) == 2
    assert "expected a folder, got a file" in capsys.readouterr().err
