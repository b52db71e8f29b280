"""An engine's state in a directory, as megatron-core's distributed checkpoint."""

from pathlib import Path
from typing import Any

import torch

from trimtab.core.errors import TrimtabError
from trimtab.launch.runtime import megatron
from trimtab.launch.runtime.engine_megatron import MegatronEngine

SHARDING = "fully_reshardable"
"""megatron-core's name for an optimizer state that any number of ranks can load: rank 0 of a
data-parallel group gathers and writes it."""


def write_state(engine: MegatronEngine, folder: Path) -> None:
    """Write model and optimizer into an empty directory; collective over all ranks.

    Every rank writes its own files; rank 0 also those that name all of them.
    """
    strategy = megatron.dist_checkpointing.serialization.get_default_save_sharded_strategy()
    strategy.thread_count = 1
    megatron.dist_checkpointing.save(_state(engine, loading=False), str(folder), strategy)


@torch.no_grad()
def read_state(engine: MegatronEngine, folder: Path) -> None:
    """Load model and optimizer, whatever number of ranks has written them; collective.

    Raises:
        TrimtabError: They are of another model.
    """
    for optimizer in _torch_optimizers(engine):
        _allocate_states(optimizer)
    try:
        state = megatron.dist_checkpointing.load(_state(engine, loading=True), str(folder))
    except megatron.dist_checkpointing.core.CheckpointingException as error:
        reason = str(error).splitlines()[0]
        raise TrimtabError(
            f"checkpoint {folder}: it does not fit this job: {reason}"
        ) from error
    engine.module.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])
    for optimizer in _torch_optimizers(engine):
        _unshare_steps(optimizer)


def _state(engine: MegatronEngine, *, loading: bool) -> dict[str, Any]:
    metadata = {"distrib_optim_sharding_type": SHARDING}
    model = engine.module.sharded_state_dict(metadata=metadata)
    optimizer = engine.optimizer.sharded_state_dict(
        model, is_loading=loading, metadata=metadata
    )
    return {"model": model, "optimizer": optimizer}


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
