import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.launch.runtime.checkpoint_files import Manifest, find, find_all, prune, publish


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
    found = find(checkpoint)
    assert found.fault is None
    assert found.manifest is not None
    assert (found.manifest.data, found.manifest.num_bytes) == ("abc", 100)


def test_a_shortened_file_is_named_with_both_sizes(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").write_bytes(b"x" * 60)
    assert find(checkpoint).fault == (
        "step-00000020/__0_0.distcp is truncated: 60 of 100 bytes"
    )


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").unlink()
    assert find(checkpoint).fault == "step-00000020/__0_0.distcp is missing"


def test_a_checkpoint_without_a_list_is_not_used(checkpoint: Path) -> None:
    (checkpoint / "trimtab.json").unlink()
    assert find(checkpoint).fault == "step-00000020 has no trimtab.json"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1}', "\xff", '{"version": 1, "data": "", "files": null}'],
)
def test_a_list_that_cannot_be_read_is_a_fault(checkpoint: Path, text: str) -> None:
    (checkpoint / "trimtab.json").write_bytes(text.encode("latin-1"))
    assert find(checkpoint).fault == "step-00000020/trimtab.json cannot be read"


def test_another_version_is_named(checkpoint: Path) -> None:
    describe(checkpoint, version=9)
    assert find(checkpoint).fault == (
        "step-00000020 is of version 9, this Trimtab reads version 1"
    )


def test_what_is_published_is_found_as_it_was(tmp_path: Path) -> None:
    aside, final = tmp_path / ".step-00000007.partial", tmp_path / "step-00000007"
    for path in (aside, final):
        path.mkdir()
    (final / "of an abandoned course").touch()
    (aside / "__0_0.distcp").write_bytes(b"x" * 3)
    manifest = Manifest(save_id="9f", data="abc", files={"__0_0.distcp": 3})

    publish(aside, final, manifest=manifest)

    (found,) = find_all(tmp_path).values()
    assert (found.name, found.manifest, found.fault) == (final.name, manifest, None)
    assert sorted(path.name for path in final.iterdir()) == ["__0_0.distcp", "trimtab.json"]


def test_pruning_leaves_what_is_kept_and_what_is_not_ours(tmp_path: Path) -> None:
    for name in ("step-00000005", "step-00000010", ".step-00000012.partial", "step-5.bak"):
        (tmp_path / name).mkdir()

    prune(tmp_path, kept={"step-00000010"})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-5.bak"]
