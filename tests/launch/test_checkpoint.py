"""Which checkpoints count as whole; saving and loading are tested end to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import MissingExtraError, TrimtabError
from trimtab.launch.remote import RemoteFolder
from trimtab.launch.runtime.checkpoint import choice_among
from trimtab.launch.runtime.checkpoint_files import (
    Found,
    Manifest,
    find,
    name_of,
    prune,
    step_of,
)


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
    assert find(checkpoint).fault is None
    assert step_of(checkpoint.name) == 20


def test_a_shortened_file_is_named_with_both_sizes(checkpoint: Path) -> None:
    (checkpoint / "__0_0.distcp").write_bytes(b"x" * 60)
    assert find(checkpoint).fault == "step-00000020/__0_0.distcp is truncated: 60 of 100 bytes"


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


def test_pruning_keeps_what_it_is_told_and_what_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("step-00000005", "step-00000010", ".step-00000012.partial", "step-5.bak"):
        (tmp_path / name).mkdir()
    prune(tmp_path, kept={"step-00000010"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-5.bak"]


def whole(step: int, save_id: str = "a") -> Found:
    manifest = Manifest(save_id=save_id, data="", files={})
    return Found(name=name_of(step), manifest=manifest, fault=None)


def broken(step: int) -> Found:
    return replace(whole(step), fault=f"{name_of(step)} is broken")


def by_name(*found: Found) -> dict[str, Found]:
    return {each.name: each for each in found}


def test_the_newest_that_all_nodes_have_is_loaded() -> None:
    node, other = by_name(whole(5), whole(10)), by_name(whole(5), broken(10))
    choice = choice_among([node, other], {})
    assert (choice.name, choice.fetch) == ("step-00000005", False)
    assert choice.passed_over == ("step-00000010 is broken",)


def test_two_that_were_saved_at_the_same_step_are_not_one() -> None:
    nodes = [by_name(whole(5), whole(10, "a")), by_name(whole(5), whole(10, "b"))]
    choice = choice_among(nodes, {})
    assert choice.name == "step-00000005"
    assert choice.passed_over == ("step-00000010 is not on every node",)


def test_what_the_address_has_whole_is_fetched_where_a_node_lacks_it() -> None:
    choice = choice_among([by_name(whole(10)), {}], by_name(whole(5), whole(10)))
    assert (choice.name, choice.fetch) == ("step-00000010", True)
    choice = choice_among([by_name(whole(10))] * 2, by_name(whole(10)))
    assert (choice.name, choice.fetch) == ("step-00000010", False)
    choice = choice_among([by_name(whole(10, "old"))], by_name(whole(10, "new")))
    assert (choice.name, choice.fetch) == ("step-00000010", True)


def test_what_all_nodes_have_newer_than_the_address_is_loaded() -> None:
    choice = choice_among([by_name(whole(10))] * 2, by_name(whole(5), broken(10)))
    assert (choice.name, choice.fetch) == ("step-00000010", False)


def test_where_none_is_whole_every_reason_is_told() -> None:
    choice = choice_among([by_name(broken(5))], by_name(broken(10)))
    assert choice.name is None
    assert choice.passed_over == ("step-00000010 is broken", "step-00000005 is broken")


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("nothing://bucket/x", "Protocol not known: nothing"),
        ("git://x", "git"),
    ],
)
def test_an_address_that_nothing_here_reaches_is_told(address: str, fault: str) -> None:
    with pytest.raises(TrimtabError) as caught:
        RemoteFolder.at(address)
    assert str(caught.value).startswith(f"checkpoint.address: {address}: ")
    assert fault in str(caught.value)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"checkpoint.address: .*s3fs"):
        RemoteFolder.at("s3://bucket/folder")
