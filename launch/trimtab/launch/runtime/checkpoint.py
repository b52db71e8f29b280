"""Checkpoints that are whole or absent: written aside, listed in a manifest, then named.

`checkpoints/step-00000020/` holds megatron-core's distributed checkpoint, which any number of
ranks can load, and `trimtab.json`, the sizes of all its files. A directory whose files do not
match its manifest is not used; the one before it is.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trimtab.core.errors import InputError, TrimtabError
from trimtab.launch.runtime import megatron
from trimtab.launch.runtime.engine_megatron import MegatronEngine

_MANIFEST = "trimtab.json"
_VERSION = 1
_NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint on disk."""

    step: int
    path: Path
    num_bytes: int


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


def save(
    engine: MegatronEngine, root: Path, *, step: int, keep: int, data: str
) -> SavedCheckpoint:
    """Write the state after `step`; collective over all ranks.

    Args:
        engine: Whose state.
        root: The folder of the checkpoints.
        step: Number of steps finished.
        keep: How many checkpoints to keep; older ones are removed.
        data: The corpus's fingerprint, for a resume to notice that documents have changed.
    """
    final = root / f"step-{step:08d}"
    aside = root / f".{final.name}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    strategy = megatron.dist_checkpointing.serialization.get_default_save_sharded_strategy()
    strategy.thread_count = 1
    megatron.dist_checkpointing.save(_state(engine, loading=False), str(aside), strategy)
    dist.barrier()
    num_bytes = _publish(aside, final, data=data) if dist.get_rank() == 0 else 0
    if dist.get_rank() == 0:
        prune(root, newest=step, keep=keep)
    dist.barrier()
    return SavedCheckpoint(step=step, path=final, num_bytes=num_bytes)


def load_latest(engine: MegatronEngine, root: Path) -> LoadedCheckpoint:
    """Load the newest whole checkpoint into `engine`; collective over all ranks.

    Raises:
        InputError: There are checkpoints, and none of them is whole.
    """
    answer: list[Any] = [_newest_whole(root) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer)
    path, passed_over = answer[0]
    if path is None:
        if passed_over:
            raise InputError(f"checkpoints: none in {root} is whole: {'; '.join(passed_over)}")
        return LoadedCheckpoint(step=0, path=None, data="", passed_over=())
    step = step_of(path)
    _load(engine, path)
    engine.resume_schedule(step)
    data = _read_manifest(path)["data"]
    return LoadedCheckpoint(step=step, path=path, data=data, passed_over=passed_over)


def fault(path: Path) -> str | None:
    """Why the checkpoint at `path` cannot be used, or None if it is whole."""
    try:
        manifest = _read_manifest(path)
        version, files = manifest["version"], dict(manifest["files"])
        manifest["data"]
    except FileNotFoundError:
        return f"{path.name} has no {_MANIFEST}"
    except (KeyError, TypeError, ValueError):
        return f"{path.name}/{_MANIFEST} cannot be read"
    if version != _VERSION:
        return f"{path.name} is of version {version}, this Trimtab reads version {_VERSION}"
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            return f"{path.name}/{name} is missing"
        if file.stat().st_size != size:
            found = file.stat().st_size
            return f"{path.name}/{name} is truncated: {found} of {size} bytes"
    return None


def step_of(path: Path) -> int:
    """The step in a checkpoint directory's name."""
    return int(path.name.removeprefix("step-"))


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _state(engine: MegatronEngine, *, loading: bool) -> dict[str, Any]:
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    model = engine.module.sharded_state_dict(metadata=metadata)
    optimizer = engine.optimizer.sharded_state_dict(
        model, is_loading=loading, metadata=metadata
    )
    return {"model": model, "optimizer": optimizer}


def _load(engine: MegatronEngine, path: Path) -> None:
    for optimizer in _torch_optimizers(engine):
        _allocate_states(optimizer)
    try:
        state = megatron.dist_checkpointing.load(_state(engine, loading=True), str(path))
    except megatron.dist_checkpointing.core.CheckpointingException as error:
        reason = str(error).splitlines()[0]
        raise TrimtabError(f"checkpoint {path}: it does not fit this job: {reason}") from error
    engine.module.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])
    for optimizer in _torch_optimizers(engine):
        _unshare_steps(optimizer)


def _torch_optimizers(engine: MegatronEngine) -> list[torch.optim.Optimizer]:
    return [chained.optimizer for chained in engine.optimizer.chained_optimizers]


def _allocate_states(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW its state before the first step: megatron-core 0.16 loads only into one."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _unshare_steps(optimizer: torch.optim.Optimizer) -> None:
    """megatron-core loads one `step` tensor for all parameters, which each would count up."""
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def _newest_whole(root: Path) -> tuple[Path | None, tuple[str, ...]]:
    passed_over: list[str] = []
    for path in reversed(_checkpoints(root)):
        reason = fault(path)
        if reason is None:
            return path, tuple(passed_over)
        passed_over.append(reason)
    return None, tuple(passed_over)


def _publish(aside: Path, final: Path, *, data: str) -> int:
    files = {
        str(file.relative_to(aside)): file.stat().st_size
        for file in sorted(aside.rglob("*"))
        if file.is_file()
    }
    manifest = aside / _MANIFEST
    with manifest.open("w", encoding="utf-8") as stream:
        json.dump({"version": _VERSION, "data": data, "files": files}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    return sum(files.values())


def _checkpoints(root: Path) -> list[Path]:
    """The checkpoint directories, oldest first."""
    return sorted(path for path in root.glob("step-*") if _NAME.fullmatch(path.name))


def prune(root: Path, *, newest: int, keep: int) -> None:
    """Keep the newest `keep` whole checkpoints up to the one just written.

    Those of later steps are of a course that a resume has left; broken ones and remains of
    interrupted saves are of no use.
    """
    whole = [path for path in _checkpoints(root) if fault(path) is None]
    kept = [path for path in whole if step_of(path) <= newest][-keep:]
    for path in (*_checkpoints(root), *root.glob(".step-*.partial")):
        if path not in kept:
            shutil.rmtree(path)
