"""megatron-core's GPT model, DDP and distributed optimizer behind a small surface.

With `megatron`, the only module that speaks Megatron's long names.

Dimensions: t tokens of this rank, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from trimtab.core.cluster import Precision
from trimtab.core.job import TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.launch.runtime import megatron
from trimtab.launch.runtime.attention import GroupedAttention, GroupPacking, rotary_tables
from trimtab.launch.runtime.clock import StepClock
from trimtab.launch.runtime.ring_attention import ZigZag

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShare:
    """One rank's tokens of a packed sequence group (see `attention`)."""

    ids_t: torch.Tensor
    labels_t: torch.Tensor
    positions_t: torch.Tensor
    """Position of each token in its own document."""
    counts_t: torch.Tensor
    """1 for a token whose loss counts, 0 for padding."""
    num_tokens: int
    """How many of this rank's count."""
    document_lengths: tuple[int, ...]
    """Of the whole group."""
    group: dist.ProcessGroup | None
    degree: int
    cut: ZigZag | None = None
    """How a ring shares the documents; None for Ulysses."""


class MegatronEngine:
    """A model, its gradients and its optimizer on this rank."""

    def __init__(
        self, model: ModelSpec, layout: Layout, *, training: TrainingSpec, clock: StepClock
    ) -> None:
        """Build the model with weights that depend on `training.seed` only."""
        self.spec = model
        self.precision = training.precision
        self.module = build_model(
            model, layout, precision=training.precision, seed=training.seed
        )
        self.ddp = _distributed(self.module, precision=training.precision)
        self.optimizer = megatron.get_megatron_optimizer(
            _optimizer_config(training), [self.ddp]
        )
        self.scheduler = _scheduler(self.optimizer, training)
        self._clock = clock

    def loss_sum(self, share: GroupShare) -> torch.Tensor:
        """Sum of the token losses of this rank's share, in nats, as a scalar with a graph."""
        losses_1t = self.ddp(
            input_ids=share.ids_t[None],
            position_ids=share.positions_t[None],
            attention_mask=None,
            labels=share.labels_t[None],
            packed_seq_params=self._packing(share),
        )
        return (losses_1t[0].float() * share.counts_t).sum()

    def zero_gradients(self) -> None:
        """Forget the gradients of the step before."""
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()

    def sync_gradients(self) -> None:
        """Sum the gradients over all ranks, each keeping its shard."""
        megatron.finalize_model_grads([self.ddp], None)

    def step(self) -> float:
        """Clip, update the weights and the schedule; returns the global gradient norm.

        Raises:
            FloatingPointError: The gradients are not finite.
        """
        self.scheduler.step(increment=1)
        succeeded, norm, _ = self.optimizer.step()
        gradient_norm = float(norm)
        if not succeeded or not math.isfinite(gradient_norm):
            raise FloatingPointError(f"the gradient norm is {gradient_norm}")
        return gradient_norm

    def resume_schedule(self, finished_steps: int) -> None:
        """Put the learning-rate schedule where it stood after `finished_steps`."""
        self.scheduler.num_steps = finished_steps

    @property
    def learning_rate(self) -> float:
        """What the last `step` used."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _packing(self, share: GroupShare) -> GroupPacking:
        packing = GroupPacking(
            document_lengths=share.document_lengths,
            group=share.group,
            degree=share.degree,
            cut=share.cut,
            clock=self._clock,
        )
        if self.spec.positions == "rope":
            packing.cos_tD, packing.sin_tD = rotary_tables(
                share.positions_t, head_dim=self.spec.head_dim, theta=self.spec.rope_theta
            )
        return packing


def build_model(
    model: ModelSpec, layout: Layout, *, precision: Precision, seed: int = 0
) -> Any:
    """megatron-core's `GPTModel` with our attention core, on this rank's device.

    `torch.distributed` must be initialized. The weights depend on the seed alone, not on the
    number of ranks.
    What it cannot run, `launch.limits` refuses before any rank starts.
    """
    if not megatron.parallel_state.is_initialized():
        megatron.parallel_state.initialize_model_parallel()
    megatron.tensor_parallel.model_parallel_cuda_manual_seed(seed)
    torch.manual_seed(seed)
    spec = megatron.get_gpt_layer_local_spec(
        normalization="RMSNorm" if model.norm == "rmsnorm" else None
    )
    spec.submodules.self_attention.submodules.core_attention = GroupedAttention
    module = megatron.GPTModel(
        config=_transformer_config(model, layout, precision=precision),
        transformer_layer_spec=spec,
        vocab_size=model.vocab,
        max_sequence_length=model.max_seq_tokens,
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="learned_absolute" if model.positions == "learned" else "none",
    )
    return module.to(device())


def device() -> torch.device:
    """This rank's device."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _transformer_config(model: ModelSpec, layout: Layout, *, precision: Precision) -> Any:
    return megatron.TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn_hidden,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        gated_linear_unit=model.gated_mlp,
        activation_func=torch.nn.functional.silu if model.gated_mlp else _gelu,
        normalization="RMSNorm" if model.norm == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=model.biases,
        add_qkv_bias=model.qkv_biases,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=precision == "bf16",
        params_dtype=_DTYPES[precision],
        pipeline_dtype=_DTYPES[precision],
        recompute_granularity=None if layout.recompute == "none" else layout.recompute,
        recompute_method="uniform" if layout.recompute == "full" else None,
        recompute_num_layers=1 if layout.recompute == "full" else None,
        calculate_per_token_loss=True,  # gradients are summed; the loss is scaled beforehand
        use_cpu_initialization=True,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
    )


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _distributed(module: Any, *, precision: Precision) -> Any:
    wrapped = megatron.Float16Module(module.config, module) if precision == "bf16" else module
    ddp = megatron.DistributedDataParallel(
        module.config,
        megatron.DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=True
        ),
        wrapped,
    )
    ddp.broadcast_params()
    return ddp


def _optimizer_config(training: TrainingSpec) -> Any:
    return megatron.OptimizerConfig(
        optimizer="adam",
        lr=training.learning_rate,
        min_lr=training.min_learning_rate,
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        clip_grad=training.gradient_clip,
        bf16=training.precision == "bf16",
        params_dtype=_DTYPES[training.precision],
        use_distributed_optimizer=True,
    )


def _scheduler(optimizer: Any, training: TrainingSpec) -> Any:
    """The learning-rate schedule; a run may end within its warm-up."""
    return megatron.OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=training.learning_rate,
        min_lr=min(training.min_learning_rate, training.learning_rate),
        lr_warmup_steps=training.warmup_steps,
        lr_decay_steps=max(training.num_steps, training.warmup_steps + 1),
        lr_decay_style=training.decay,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=training.num_steps,
        wd_incr_style="constant",
    )
