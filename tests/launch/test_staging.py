import io
import tarfile
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.launch import staging


def names(folder: Path, *, without: Path) -> list[str]:
    return [file.name for file in staging.folder_files(folder, without=without)]


def test_a_folder_goes_along_without_secrets_caches_and_runs(tmp_path: Path) -> None:
    for name in ("train.py", "sub/more.py", ".env", ".git/config", "__pycache__/a.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "events.db").write_text("")
    assert names(tmp_path, without=runs) == ["train.py", "sub/more.py"]


def test_a_folder_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_MOST_FOLDER_BYTES", 10)
    (tmp_path / "data").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="submit from a folder of its code alone"):
        names(tmp_path, without=tmp_path / "runs")


def test_archives_are_the_same_every_time_and_keep_what_may_be_run(tmp_path: Path) -> None:
    files = [
        staging.StagedFile(name="a b/run.sh", content=b"#!/bin/sh\n", is_executable=True),
        staging.StagedFile(name="plain", content=b"x"),
    ]
    packed = staging.tar_of(files)
    assert packed == staging.tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert [(entry.name, entry.mode) for entry in tar] == [
            ("a b/run.sh", 0o755),
            ("plain", 0o644),
        ]
