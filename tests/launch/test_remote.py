"""Folders at addresses, on the file system and on a host that is not there."""

from pathlib import Path

import pytest

from trimtab.core.errors import InputError, JobFailedError, MissingExtraError
from trimtab.launch.remote import RemoteFolder
from trimtab.launch.runtime.checkpoint_files import MANIFEST, Manifest
from trimtab.launch.runtime.checkpoint_remote import RemoteCheckpoints


@pytest.fixture
def folder(tmp_path: Path) -> RemoteFolder:
    remote = RemoteFolder.at(f"file://{tmp_path}/a folder's $(name)") / "run"
    remote.make()
    return remote


def test_what_is_uploaded_is_listed_and_comes_back(
    folder: RemoteFolder, tmp_path: Path
) -> None:
    (tmp_path / "here").write_bytes(b"12345")
    inner = folder / "step-00000002"
    inner.make()
    inner.upload(tmp_path / "here", "__0_0.distcp")
    inner.write("trimtab.json", b"{}")

    assert folder.sizes() == {
        "step-00000002/__0_0.distcp": 5,
        "step-00000002/trimtab.json": 2,
    }
    assert inner.read("trimtab.json") == b"{}"
    inner.download("__0_0.distcp", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"12345"
    folder.remove("step-00000002")
    folder.remove("step-00000002")
    assert folder.sizes() == {}


def test_making_a_folder_twice_is_no_error_and_a_missing_one_is_empty(
    folder: RemoteFolder,
) -> None:
    folder.make()
    assert (folder / "not there").sizes() == {}


def test_a_folder_in_a_place_that_is_not_there_is_taken_for_a_typing_error(
    tmp_path: Path,
) -> None:
    remote = RemoteFolder.at(f"file://{tmp_path}/shred/checkpoints") / "run"
    with pytest.raises(JobFailedError, match=r"shred/checkpoints/run cannot be made: File"):
        remote.make()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_names_the_place_in_one_line(folder: RemoteFolder) -> None:
    with pytest.raises(JobFailedError) as caught:
        folder.read("trimtab.json")
    line = str(caught.value)
    assert line.startswith(f"{folder.address}/trimtab.json cannot be read: FileNotFoundError")
    assert "\n" not in line


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(InputError, match=r"^checkpoint\.address: s4://bucket: .*s4"):
        RemoteFolder.at("s4://bucket")


def test_the_package_that_an_address_needs_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"oss://bucket/folder: .*ossfs") as caught:
        RemoteFolder.at("oss://bucket/folder")
    assert "\n" not in str(caught.value)


def manifest(**files: int) -> Manifest:
    return Manifest(save_id="one", data="abc", files=files)


def test_at_an_address_a_checkpoint_is_whole_or_told_why_not(folder: RemoteFolder) -> None:
    for step, size in (("step-00000002", 3), ("step-00000004", 2), ("step-00000006", 3)):
        (folder / step).make()
        (folder / step).write("a", b"1" * size)
        if step != "step-00000006":
            (folder / step).write(MANIFEST, manifest(a=3).to_json().encode())
    folder.write("a note", b"")

    found = RemoteCheckpoints(folder).find_all()

    assert {name: each.fault for name, each in found.items()} == {
        "step-00000002": None,
        "step-00000004": "step-00000004/a is truncated: 2 of 3 bytes",
        "step-00000006": "step-00000006 has no trimtab.json",
    }


def test_pruning_an_address_leaves_other_files(folder: RemoteFolder) -> None:
    for name in ("step-00000002", "step-00000004"):
        (folder / name).make()
        (folder / name).write("a", b"1")
    folder.write("a note", b"")
    there = RemoteCheckpoints(folder)

    there.prune(there.find_all(), kept={"step-00000004"})

    assert set(folder.sizes()) == {"a note", "step-00000004/a"}
