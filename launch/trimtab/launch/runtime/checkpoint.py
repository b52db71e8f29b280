"""Saving and loading on many ranks, on nodes that share their files and on nodes that do not.

    every rank writes its files aside -> all learn of all files -> they go to the address, too
    -> each folder gets the manifest and its name; at the address, the manifest comes last

Where nodes share nothing, a node's directory holds the manifest of all files but only its own
ranks' files: a start on it fetches the others.
"""

import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import JobSpec
from trimtab.launch.remote import RemoteFolder
from trimtab.launch.runtime import checkpoint_files as files
from trimtab.launch.runtime.agreement import from_rank_0, gathered, problem_of, sharing_of
from trimtab.launch.runtime.checkpoint_files import Found, Manifest
from trimtab.launch.runtime.checkpoint_remote import RemoteCheckpoints
from trimtab.launch.runtime.checkpoint_state import read_state, write_state
from trimtab.launch.runtime.engine_megatron import MegatronEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint on disk."""

    step: int
    path: Path
    num_bytes: int
    problem: str | None
    """What is not as it should be at the address."""
    is_whole: bool
    """Whether a run can go on from it, here or from the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """What `load_latest` found."""

    step: int
    """Steps finished before it was written; 0: nothing was found."""
    path: Path | None
    data: str
    """Fingerprint of the corpus it was trained on."""
    passed_over: tuple[str, ...]
    """Why newer checkpoints were not used, one line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which checkpoint to load."""

    name: str | None
    """None: none is whole."""
    manifest: Manifest | None
    fetch: bool
    """Whether nodes lack files that the address has."""
    passed_over: tuple[str, ...]


class Checkpoints:
    """The checkpoints of a run; every method, and making it, is collective over all ranks."""

    def __init__(self, root: Path, *, remote: RemoteFolder | None, first_on_node: int) -> None:
        """Find out which ranks share `root`.

        Args:
            root: The folder of the run's checkpoints, as this node sees it.
            remote: A folder for this run's checkpoints that all nodes reach.
            first_on_node: The first rank of this node.
        """
        self._root = root
        self._remote = None if remote is None else RemoteCheckpoints(remote)
        self._sharing = sharing_of(root, first_on_node=first_on_node)
        self._is_first_on_node = dist.get_rank() == first_on_node

    def check_usable(self) -> None:
        """Have every node say now what would keep a checkpoint from being whole.

        Raises:
            InputError: Nodes share no folder and there is no address, or a node does not reach
                it, may not write there or finds another place under its name.
        """
        if self._remote is not None:
            self._remote.check(is_first_on_node=self._is_first_on_node)
        elif not self._sharing.by_all:
            rank = self._sharing.strangers[0]
            raise InputError(
                f"checkpoint.address: nodes do not share {self._root}: rank {rank} does not "
                "see rank 0's files there, so no checkpoint would be whole; set "
                "checkpoint.address to a place that all nodes reach, such as "
                "s3://bucket/folder, or put the runs on a file system that they share "
                "(TRIMTAB_RUNS_DIR)"
            )

    def save(
        self, engine: MegatronEngine, *, step: int, keep: int, data: str
    ) -> SavedCheckpoint:
        """Write the state after `step`.

        Args:
            engine: Whose state.
            step: Number of steps finished.
            keep: How many checkpoints to keep; older ones are removed.
            data: The corpus's fingerprint, for a resume to notice that documents have changed.
        """
        name = files.name_of(step)
        aside = self._root / f".{name}.partial"
        if self._sharing.owns:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        write_state(engine, aside)
        here, everywhere = self._listed(aside)
        manifest = Manifest(
            save_id=from_rank_0(secrets.token_hex(8)), data=data, files=everywhere
        )
        problem = None
        if self._remote is not None:
            problem = self._remote.upload(aside, name, manifest, mine=self._my_part(here))
        if self._sharing.owns:
            files.publish(aside, self._root / name, manifest=manifest)
        dist.barrier()
        is_whole = self._sharing.by_all or (self._remote is not None and problem is None)
        problem = problem or self._prune(name, keep=keep)
        return SavedCheckpoint(
            step=step,
            path=self._root / name,
            num_bytes=manifest.num_bytes,
            problem=problem,
            is_whole=is_whole,
        )

    def load_latest(self, engine: MegatronEngine) -> LoadedCheckpoint:
        """Load the newest whole checkpoint into `engine`, from the address where need be.

        Raises:
            InputError: There are checkpoints, and none of them is whole.
            JobFailedError: The address cannot be read.
        """
        choice = self._choose()
        if choice.name is None or choice.manifest is None:
            if choice.passed_over:
                reasons = "; ".join(choice.passed_over)
                raise InputError(f"checkpoints: none in {self._root} is whole: {reasons}")
            return LoadedCheckpoint(step=0, path=None, data="", passed_over=())
        if choice.fetch:
            self._fetch(choice.name, choice.manifest)
        path, step = self._root / choice.name, files.step_of(choice.name)
        read_state(engine, path)
        engine.resume_schedule(step)
        return LoadedCheckpoint(
            step=step, path=path, data=choice.manifest.data, passed_over=choice.passed_over
        )

    def _listed(self, aside: Path) -> tuple[dict[str, int], dict[str, int]]:
        """Files in this rank's folder, and those of all folders.

        Every node lists: a network file system may show a node late what others have written.
        """
        listings = gathered(files.sizes_in(aside) if self._is_first_on_node else {})
        mine = self._sharing.members
        return _merged(listings[rank] for rank in mine), _merged(listings)

    def _my_part(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that fall to this rank among those that share its folder."""
        members = self._sharing.members
        return sorted(names)[members.index(dist.get_rank()) :: len(members)]

    def _choose(self) -> Choice:
        local = gathered(files.find_all(self._root) if self._sharing.owns else None)
        remote: dict[str, Found] = {}
        if self._remote is not None:
            look = self._remote.find_all
            problem = problem_of(
                (lambda: remote.update(look())) if dist.get_rank() == 0 else None
            )
            if problem is not None:
                raise JobFailedError(f"checkpoint.address: {problem}")
        return choice_among(
            [found for found in local if found is not None], from_rank_0(remote)
        )

    def _fetch(self, name: str, manifest: Manifest) -> None:
        """Complete the checkpoint in this rank's folder with the files that it lacks."""
        assert self._remote is not None
        final, aside = self._root / name, self._root / f".{name}.partial"
        if self._sharing.owns:
            shutil.rmtree(aside, ignore_errors=True)
            found = files.find(final).manifest
            if found is not None and found.save_id == manifest.save_id:
                final.rename(aside)
            aside.mkdir(parents=True, exist_ok=True)
        listings = gathered(files.sizes_in(aside) if self._sharing.owns else {})
        here = listings[self._sharing.members[0]]
        missing = [file for file, size in manifest.files.items() if here.get(file) != size]
        problem = self._remote.fetch(name, aside, mine=self._my_part(missing))

        def publish() -> None:
            files.publish(aside, final, manifest=manifest)
            if fault := files.find(final).fault:
                raise JobFailedError(fault)

        problem = problem or problem_of(publish if self._sharing.owns else None)
        if problem is not None:
            raise JobFailedError(f"checkpoint.address: {problem}")

    def _prune(self, name: str, *, keep: int) -> str | None:
        """Remove old checkpoints, here and at the address; why that failed there, if it did."""
        kept = {name}

        def choose() -> None:
            kept.update(_newest(files.find_all(self._root), name=name, keep=keep))
            if self._remote is not None:
                found = self._remote.find_all()
                kept_there = _newest(found, name=name, keep=keep)
                kept.update(kept_there)
                self._remote.prune(found, kept=kept_there)

        problem = problem_of(choose if dist.get_rank() == 0 else None)
        kept = from_rank_0(kept)
        if self._sharing.owns:
            files.prune(self._root, kept=kept)
        dist.barrier()
        return problem


def checkpoints_of(job: JobSpec, run_dir: Path, *, first_on_node: int) -> Checkpoints:
    """Those of a run of `job`, which keeps them in its directory and at the job's address.

    Raises:
        InputError: The address has no form that fsspec knows.
        MissingExtraError: A package for it is missing.
    """
    address = job.checkpoint.address
    return Checkpoints(
        run_dir / "checkpoints",
        remote=None if address is None else RemoteFolder.at(address) / run_dir.name,
        first_on_node=first_on_node,
    )


def choice_among(local: Sequence[Mapping[str, Found]], remote: Mapping[str, Found]) -> Choice:
    """The newest checkpoint that every node has, or can fetch.

    Args:
        local: What is in each of the nodes' folders.
        remote: What is at the address.
    """
    passed_over: list[str] = []
    names = {*remote, *(name for found in local for name in found)}
    for name in sorted(names, key=files.step_of, reverse=True):
        near = [found.get(name) for found in local]
        manifests = [_whole(found) for found in near]
        ids = {None if each is None else each.save_id for each in manifests}
        far = _whole(remote.get(name))
        manifest = far or (manifests[0] if len(ids) == 1 else None)
        if manifest is not None:
            return Choice(
                name=name,
                manifest=manifest,
                fetch=ids != {manifest.save_id},
                passed_over=tuple(passed_over),
            )
        faults = [found.fault for found in (*near, remote.get(name)) if found is not None]
        passed_over.append(next(filter(None, faults), f"{name} is not on every node"))
    return Choice(name=None, manifest=None, fetch=False, passed_over=tuple(passed_over))


def _whole(found: Found | None) -> Manifest | None:
    """The manifest of a whole checkpoint."""
    return None if found is None or found.fault is not None else found.manifest


def _newest(found: Mapping[str, Found], *, name: str, keep: int) -> list[str]:
    """The `keep` newest whole ones up to `name`, oldest first.

    Those of later steps are of a course that a resume has left.
    """
    last = files.step_of(name)
    whole = [each for each, what in found.items() if _whole(what) or each == name]
    return [each for each in whole if files.step_of(each) <= last][-keep:]


def _merged(listings: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sizes of files by name; of a file that a node still sees short, the larger."""
    merged: dict[str, int] = {}
    for listing in listings:
        for file, size in listing.items():
            merged[file] = max(size, merged.get(file, 0))
    return merged
