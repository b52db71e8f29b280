"""The model: its shape, its size in parameters, and the FLOPs that training it takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InputError

Norm = Literal["layernorm", "rmsnorm"]
NORMS: tuple[str, ...] = get_args(Norm)

Positions = Literal["rope", "learned"]
POSITIONS: tuple[str, ...] = get_args(Positions)

MFU_FORMULA = (
    "model FLOPs = 6 x matmul parameters x tokens + 12 x layers x heads x head_dim x sum(s^2); "
    "recompute not counted, causal attention counted whole (PaLM, arXiv:2204.02311, appendix B)"
)


def mfu(model_flops: float, *, seconds: float, peak_flop_per_s: float | None) -> float | None:
    """Model FLOPs utilization, counted as `MFU_FORMULA` says.

    Args:
        model_flops: Of all devices together.
        seconds: What they took.
        peak_flop_per_s: Sum of the devices' dense peaks; None where one is unknown.

    Returns:
        A ratio; None where the peak is unknown or no time has passed.
    """
    if not peak_flop_per_s or not seconds:
        return None
    return model_flops / (seconds * peak_flop_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """Experts in place of the MLP: each token visits `experts_per_token` of `num_experts`."""

    num_experts: int
    experts_per_token: int
    expert_ffn_hidden: int

    def __post_init__(self) -> None:
        checks.whole_number("moe.num_experts", self.num_experts)
        checks.whole_number("moe.experts_per_token", self.experts_per_token)
        checks.whole_number("moe.expert_ffn_hidden", self.expert_ffn_hidden)
        if self.experts_per_token > self.num_experts:
            raise InputError(
                f"moe.experts_per_token: expected at most num_experts = {self.num_experts}, "
                f"got {self.experts_per_token}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer. Sizes are in elements, lengths in tokens."""

    name: str
    num_layers: int
    hidden: int
    ffn_hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    max_seq_tokens: int
    gated_mlp: bool = False
    """SwiGLU (three matrices) instead of GELU (two)."""
    norm: Norm = "layernorm"
    norm_eps: float = 1e-5
    positions: Positions = "rope"
    rope_theta: float = 10_000.0
    tied_embeddings: bool = False
    biases: bool = False
    """A bias on every linear layer of the attention and the MLP (GPT-2)."""
    qkv_biases: bool = False
    """A bias on the query, key and value projections only (Qwen2)."""
    moe: MoeSpec | None = None
    source: str = ""
    """Where the shape comes from."""

    def __post_init__(self) -> None:
        checks.not_empty("model.name", self.name)
        for field in _SIZES:
            checks.whole_number(f"model.{field}", getattr(self, field))
        checks.one_of("model.norm", self.norm, NORMS)
        checks.positive("model.norm_eps", self.norm_eps)
        checks.one_of("model.positions", self.positions, POSITIONS)
        checks.positive("model.rope_theta", self.rope_theta)
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_kv_heads: expected a divisor of num_heads = {self.num_heads}, "
                f"got {self.num_kv_heads}"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise InputError(
                f"model.head_dim: rope needs an even head_dim, got {self.head_dim}"
            )

    @property
    def attention_parameters_per_layer(self) -> int:
        """Query, key, value and output projections, with biases where the model has them."""
        query = self.num_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        weights = self.hidden * (query + key_value) + query * self.hidden
        if self.biases:
            return weights + query + key_value + self.hidden
        return weights + (query + key_value if self.qkv_biases else 0)

    @property
    def mlp_parameters_per_layer(self) -> int:
        """The MLP, or all experts and the router."""
        if self.moe is None:
            return self._mlp_parameters(self.ffn_hidden)
        router = self.hidden * self.moe.num_experts
        return router + self.moe.num_experts * self._mlp_parameters(self.moe.expert_ffn_hidden)

    @property
    def active_mlp_parameters_per_layer(self) -> int:
        """What one token passes through: the MLP, or its experts and the router."""
        if self.moe is None:
            return self._mlp_parameters(self.ffn_hidden)
        router = self.hidden * self.moe.num_experts
        experts = self.moe.experts_per_token
        return router + experts * self._mlp_parameters(self.moe.expert_ffn_hidden)

    @property
    def norm_parameters_per_layer(self) -> int:
        return 2 * self.hidden * (2 if self.norm == "layernorm" else 1)

    @property
    def parameters_per_layer(self) -> int:
        return (
            self.attention_parameters_per_layer
            + self.mlp_parameters_per_layer
            + self.norm_parameters_per_layer
        )

    @property
    def embedding_parameters(self) -> int:
        """Token embedding and, where learned, position embedding; the head is apart."""
        learned = self.max_seq_tokens * self.hidden if self.positions == "learned" else 0
        return self.vocab * self.hidden + learned

    @property
    def head_parameters(self) -> int:
        """The final norm and, unless it is tied, the output matrix."""
        return self.norm_parameters_per_layer // 2 + (
            0 if self.tied_embeddings else self.vocab * self.hidden
        )

    @property
    def num_parameters(self) -> int:
        return (
            self.num_layers * self.parameters_per_layer
            + self.embedding_parameters
            + self.head_parameters
        )

    @property
    def matmul_parameters(self) -> int:
        """What one token is multiplied with: layers (active experts only), output matrix."""
        per_layer = self.attention_parameters_per_layer + self.active_mlp_parameters_per_layer
        return self.num_layers * per_layer + self.vocab * self.hidden

    def training_flops(self, lengths: Iterable[int]) -> float:
        """Model FLOPs of forward and backward over whole sequences of these lengths.

        `MFU_FORMULA` states the count: six per matmul parameter and token, and for attention
        two matrix products of 2 x s^2 x heads x head_dim FLOPs, three times (forward once,
        backward twice), the causal half not taken off.

        Source: Chowdhery et al. (2022), PaLM, arXiv:2204.02311, appendix B.
        """
        per_token = 6 * self.matmul_parameters
        per_square = 12 * self.num_layers * self.num_heads * self.head_dim
        return float(sum(per_token * s + per_square * s * s for s in lengths))

    def _mlp_parameters(self, ffn_hidden: int) -> int:
        matrices = 3 if self.gated_mlp else 2
        biases = (matrices - 1) * ffn_hidden + self.hidden if self.biases else 0
        return matrices * self.hidden * ffn_hidden + biases


_SIZES = (
    "num_layers",
    "hidden",
    "ffn_hidden",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab",
    "max_seq_tokens",
)
