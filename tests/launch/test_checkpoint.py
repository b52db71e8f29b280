"""Which checkpoints count as whole; saving and loading are tested end to end."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.launch.runtime.checkpoint import fault, prune, step_of


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000020"
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"x" * 100)
    describe(path)
    return path


def describe(path: Path, **changes: Any) -> None:
    manifest = {"version": 1, "data": "abc", "files": {"__0_0.distcp": 100}, **changes}
    (path / "trimtab.json").write_text(json.dumps(manifest))


def test_a_checkpoint_that_matches_its_list_is_whole(checkpoint: Path) -> None:
    assert fault(checkpoint) is None
    assert step_of(checkpoint) == 20


def test_a_shortened_file_is_named_with_both_sizes(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").write_bytes(b"x" * 60)
    assert fault(checkpoint) == "step-00000020/__0_0.distcp is truncated: 60 of 100 bytes"


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").unlink()
    assert fault(checkpoint) == "step-00000020/__0_0.distcp is missing"


def test_a_checkpoint_without_a_list_is_not_used(checkpoint: Path) -> None:
    (checkpoint / "trimtab.json").unlink()
    assert fault(checkpoint) == "step-00000020 has no trimtab.json"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1}', "\xff", '{"version": 1, "data": "", "files": null}'],
)
def test_a_list_that_cannot_be_read_is_a_fault(checkpoint: Path, text: str) -> None:
    (checkpoint / "trimtab.json").write_bytes(text.encode("latin-1"))
    assert fault(checkpoint) == "step-00000020/trimtab.json cannot be read"


def test_another_version_is_named(checkpoint: Path) -> None:
    describe(checkpoint, version=9)
    assert fault(checkpoint) == ("step-00000020 is of version 9, this Trimtab reads version 1")


def test_pruning_keeps_whole_ones_and_drops_a_course_that_was_left(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        path = tmp_path / f"step-{step:08d}"
        path.mkdir()
        (path / "__0_0.distcp").write_bytes(b"x" * 100)
        describe(path)
    (tmp_path / "step-00000010" / "__0_0.distcp").write_bytes(b"x")
    (tmp_path / ".step-00000012.partial").mkdir()
    (tmp_path / "step-00000020.bak").mkdir()

    prune(tmp_path, newest=15, keep=2)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000005",
        "step-00000015",
        "step-00000020.bak",
    ]
