"""A checkpoint as files: whole or absent, for it is listed in a manifest that comes last.

`step-00000020/` holds megatron-core's distributed checkpoint, which any number of ranks can
load, and `trimtab.json`, the sizes of all its files. It is looked at in the same way in a run's
directory and at an address.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError

MANIFEST: Final = "trimtab.json"
_VERSION: Final = 1
_NAME: Final = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint consists of."""

    save_id: str
    """Differs between two that were saved at the same step."""
    data: str
    """Fingerprint of the corpus it was trained on."""
    files: Mapping[str, int]
    """Bytes of every file but this one, whichever node has written it."""

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())

    def to_json(self) -> str:
        """The text of `trimtab.json`."""
        return json.dumps(
            {
                "version": _VERSION,
                "id": self.save_id,
                "data": self.data,
                "files": dict(self.files),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint's directory, whole or not."""

    name: str
    manifest: Manifest | None
    """None: it has none that can be used."""
    fault: str | None
    """Why it cannot be used, or None if it is whole."""


def name_of(step: int) -> str:
    """The directory of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The step in a checkpoint directory's name."""
    return int(name.removeprefix("step-"))


def is_name(name: str) -> bool:
    """Whether a directory of this name is a checkpoint's."""
    return _NAME.fullmatch(name) is not None


def examined(name: str, *, text: bytes | None, sizes: Mapping[str, int]) -> Found:
    """What there is of a checkpoint.

    Args:
        name: Its directory's.
        text: Of its manifest; None: it has none.
        sizes: Bytes of the files that are there.
    """
    try:
        manifest = _parsed(name, text)
    except InputError as error:
        return Found(name=name, manifest=None, fault=str(error))
    for file, size in manifest.files.items():
        found = sizes.get(file)
        if found is None:
            fault = f"{name}/{file} is missing"
            return Found(name=name, manifest=manifest, fault=fault)
        if found != size:
            fault = f"{name}/{file} is truncated: {found} of {size} bytes"
            return Found(name=name, manifest=manifest, fault=fault)
    return Found(name=name, manifest=manifest, fault=None)


def find(path: Path) -> Found:
    """What there is of the checkpoint in a directory."""
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        text = None
    return examined(path.name, text=text, sizes=sizes_in(path))


def find_all(root: Path) -> dict[str, Found]:
    """All checkpoints in a folder by name, oldest first."""
    names = [path.name for path in root.glob("step-*") if is_name(path.name)]
    return {name: find(root / name) for name in sorted(names, key=step_of)}


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of every file of a checkpoint but its manifest, by its path from there."""
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def publish(aside: Path, final: Path, *, manifest: Manifest) -> None:
    """Give a checkpoint that was written aside its manifest, then its name."""
    with (aside / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(manifest.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)


def prune(root: Path, *, kept: Collection[str]) -> None:
    """Remove all checkpoints but `kept`, and what interrupted saves have left."""
    for path in (*root.glob("step-*"), *root.glob(".step-*.partial")):
        if path.name not in kept and (path.name.startswith(".") or is_name(path.name)):
            shutil.rmtree(path)


def _parsed(name: str, text: bytes | None) -> Manifest:
    if text is None:
        raise InputError(f"{name} has no {MANIFEST}")
    try:
        document = json.loads(text)
        version = document["version"]
        if version == _VERSION:
            return Manifest(
                save_id=str(document.get("id", "")),
                data=str(document["data"]),
                files=dict(document["files"]),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}/{MANIFEST} cannot be read") from error
    raise InputError(f"{name} is of version {version}, this Trimtab reads version {_VERSION}")
