"""The door to megatron-core: shimmed where there is no CUDA, and the names we use of it."""

import logging
import warnings

from trimtab.launch.runtime import cpu_shim

cpu_shim.apply()
# What it warns of is that Transformer Engine and Apex are absent, which is our choice.
warnings.filterwarnings("ignore", module=r"megatron\.")

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
    "filesystem_async",
    "finalize_model_grads",
    "get_gpt_layer_local_spec",
    "get_megatron_optimizer",
    "parallel_state",
    "tensor_parallel",
]
