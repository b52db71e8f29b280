"""The checkpoints of a run at an address: every rank carries a part, the manifest is last."""

import secrets
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import torch.distributed as dist

from trimtab.core.errors import InputError, JobFailedError
from trimtab.launch.remote import RemoteFolder
from trimtab.launch.runtime.agreement import from_rank_0, problem_of
from trimtab.launch.runtime.checkpoint_files import (
    MANIFEST,
    Found,
    Manifest,
    examined,
    is_name,
    step_of,
)

_PROBE: Final = ".reached-by-rank-"


class RemoteCheckpoints:
    """Checkpoints in a remote folder that belongs to one run.

    `check`, `upload` and `fetch` are collective over all ranks; what they return is why it
    went wrong on the first rank where it did, or None.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self.folder = folder

    def check(self, *, is_first_on_node: bool) -> None:
        """Every node finds there what rank 0 has written, and can write itself.

        Raises:
            InputError: One does not, or cannot.
        """
        rank = dist.get_rank()
        mark = from_rank_0(secrets.token_hex(8)).encode()
        own = f"{_PROBE}{rank}"
        problem = (
            problem_of(partial(self._begin, mark) if rank == 0 else None)
            or problem_of(partial(self._compare, mark) if is_first_on_node else None)
            or problem_of(partial(self.folder.write, own, mark) if is_first_on_node else None)
            or problem_of(partial(self.folder.remove, own) if is_first_on_node else None)
        )
        if problem is not None:
            raise InputError(
                f"checkpoint.address: {problem}; name a place that all nodes can write to"
            )

    def upload(
        self, local: Path, name: str, manifest: Manifest, *, mine: Collection[str]
    ) -> str | None:
        """Put a checkpoint there, replacing one of this name.

        Args:
            local: The directory with (at least) this rank's part of its files.
            name: The checkpoint's.
            manifest: Of the whole.
            mine: Files that this rank is to carry.
        """
        rank, folder = dist.get_rank(), self.folder / name

        def begin() -> None:
            self._remove(name)
            folder.make()

        def carry() -> None:
            for file in mine:
                folder.upload(local / file, file)

        def publish() -> None:
            folder.write(MANIFEST, manifest.to_json().encode())

        return (
            problem_of(begin if rank == 0 else None)
            or problem_of(carry)
            or problem_of(publish if rank == 0 else None)
        )

    def fetch(self, name: str, local: Path, *, mine: Collection[str]) -> str | None:
        """Copy the files `mine` of a checkpoint into a directory."""

        def carry() -> None:
            for file in mine:
                (self.folder / name).download(file, local / file)

        return problem_of(carry)

    def find_all(self) -> dict[str, Found]:
        """All checkpoints there by name, oldest first; asked by one rank."""
        files: dict[str, dict[str, int]] = {}
        for path, size in self.folder.sizes().items():
            name, _, file = path.partition("/")
            if is_name(name):
                files.setdefault(name, {})[file] = size
        return {name: self._examined(name, files[name]) for name in sorted(files, key=step_of)}

    def prune(self, found: Collection[str], *, kept: Collection[str]) -> None:
        """Remove those of `found` that are not `kept`; by one rank."""
        for name in found:
            if name not in kept:
                self._remove(name)

    def _examined(self, name: str, sizes: Mapping[str, int]) -> Found:
        text = (self.folder / name).read(MANIFEST) if MANIFEST in sizes else None
        return examined(name, text=text, sizes=sizes)

    def _remove(self, name: str) -> None:
        """The manifest goes first: what is left of an interrupted removal is not whole."""
        self.folder.remove(f"{name}/{MANIFEST}")
        self.folder.remove(name)

    def _begin(self, mark: bytes) -> None:
        self.folder.make()
        self.folder.write(f"{_PROBE}0", mark)

    def _compare(self, mark: bytes) -> None:
        if self.folder.read(f"{_PROBE}0") != mark:
            raise JobFailedError(f"{self.folder.address} is another place than rank 0's")
