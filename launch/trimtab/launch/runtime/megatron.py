"""The door to megatron-core: shimmed where there is no CUDA, and the names we use of it."""

import logging
import queue
import sys
import warnings
from typing import Any

from trimtab.launch.runtime import cpu_shim

cpu_shim.apply()
# What it warns of is that Transformer Engine and Apex are absent, which is our choice.
warnings.filterwarnings("ignore", module=r"megatron\.")
warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"torch\.distributed\.checkpoint"
)

# Its inference contexts import wandb where it is installed; that takes half a second.
_hides_wandb = sys.modules.setdefault("wandb", None) is None  # type: ignore[arg-type]
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module, MegatronModule

if _hides_wandb:
    del sys.modules["wandb"]
cpu_shim.apply_after_import()
logging.getLogger("megatron").setLevel(logging.ERROR)

__all__ = [
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "Float16Module",
    "GPTModel",
    "MegatronModule",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "PackedSeqParams",
    "TransformerConfig",
    "dist_checkpointing",
    "finalize_model_grads",
    "get_gpt_layer_local_spec",
    "get_megatron_optimizer",
    "parallel_state",
    "tensor_parallel",
]


def _write_here(
    transforms: list[Any], _use_msc: bool, _rank: int, buckets: list[Any], answers: Any
) -> None:
    """Write a rank's buckets in this process: megatron-core's writer, without its processes.

    megatron-core forks one process for each bucket and starts another that holds their results.
    A rank waits forever for a forked one that fails before it answers, and the other outlives a
    rank that is killed. Saves are awaited here, so neither is needed.
    """
    write = filesystem_async.FileSystemWriterAsync.write_preloaded_data
    written: dict[int, Any] = {}
    for index, bucket in enumerate(buckets):
        results: queue.Queue[tuple[int, Any]] = queue.Queue()
        unfinished: queue.Queue[int] = queue.Queue()
        unfinished.put(index)
        write(transforms, index, bucket, results, unfinished, use_fsync=True)
        _, outcome = results.get_nowait()
        if isinstance(outcome, Exception):
            answers.put(outcome)
            return
        written[index] = outcome
    answers.put(written)


filesystem_async._results_queue = queue.Queue()
filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(
    _write_here
)
