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
    shared_ffn_hidden: int = 0
    """Of the expert that every token visits besides; 0: there is none."""
    num_dense_layers: int = 0
    """The first layers, which have an MLP of `ffn_hidden` instead."""

    def __post_init__(self) -> None:
        checks.whole_number("moe.num_experts", self.num_experts)
        checks.whole_number("moe.experts_per_token", self.experts_per_token)
        checks.whole_number("moe.expert_ffn_hidden", self.expert_ffn_hidden)
        if self.experts_per_token > self.num_experts:
            raise InputError(
                f"moe.experts_per_token: expected at most num_experts = {self.num_experts}, "
                f"got {self.experts_per_token}"
            )
        checks.whole_number("moe.shared_ffn_hidden", self.shared_ffn_hidden, at_least=0)
        checks.whole_number("moe.num_dense_layers", self.num_dense_layers, at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention: queries, keys and values come from narrow ones.

    `ModelSpec.head_dim` is that of queries and keys, `rope_head_dim` included.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    query_rank: int
    """0: queries are projected at once."""
    key_value_rank: int
    rope_head_dim: int
    """Of the part of a key that all heads share."""
    value_head_dim: int

    def __post_init__(self) -> None:
        checks.whole_number("mla.query_rank", self.query_rank, at_least=0)
        checks.whole_number("mla.key_value_rank", self.key_value_rank)
        checks.whole_number("mla.rope_head_dim", self.rope_head_dim)
        checks.whole_number("mla.value_head_dim", self.value_head_dim)


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
    qk_norm: bool = False
    """A norm of every head's queries, and of its keys (Qwen3)."""
    moe: MoeSpec | None = None
    mla: MlaSpec | None = None
    window: int | None = None
    """Tokens that one token attends to at most (Mistral 7B); None: all before it."""
    planned_only: str = ""
    """What the worker does not compute, so that the model is planned but not trained."""
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
        if self.window is not None:
            checks.whole_number("model.window", self.window)
        if self.moe is not None and self.moe.num_dense_layers >= self.num_layers:
            raise InputError(
                f"moe.num_dense_layers: expected fewer than num_layers = {self.num_layers}, "
                f"got {self.moe.num_dense_layers}"
            )
        if self.mla is not None and self.mla.rope_head_dim >= self.head_dim:
            raise InputError(
                f"mla.rope_head_dim: expected less than head_dim = {self.head_dim}, "
                f"got {self.mla.rope_head_dim}"
            )

    @property
    def attention_parameters_per_layer(self) -> int:
        """Query, key, value and output projections, with biases where the model has them."""
        if self.mla is not None:
            return self._latent_parameters(self.mla)
        query = self.num_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        weights = self.hidden * (query + key_value) + query * self.hidden
        if self.biases:
            return weights + query + key_value + self.hidden
        return weights + (query + key_value if self.qkv_biases else 0)

    @property
    def attention_elements(self) -> int:
        """Of a token's queries, keys, values and attention outputs, all heads together."""
        value_dim = self.head_dim if self.mla is None else self.mla.value_head_dim
        return (self.num_heads + self.num_kv_heads) * (self.head_dim + value_dim)

    @property
    def score_flops(self) -> int:
        """Of a layer, for a pair of tokens, forward: query times key, and score times value."""
        value_dim = self.head_dim if self.mla is None else self.mla.value_head_dim
        return 2 * self.num_heads * (self.head_dim + value_dim)

    @property
    def num_dense_layers(self) -> int:
        """Layers with an MLP and no experts."""
        return self.num_layers if self.moe is None else self.moe.num_dense_layers

    @property
    def dense_mlp_parameters(self) -> int:
        """The MLP of a layer without experts."""
        return self._mlp_parameters(self.ffn_hidden)

    @property
    def mlp_parameters_per_layer(self) -> int:
        """The MLP, or all experts and the router, of a layer that has them."""
        if self.moe is None:
            return self.dense_mlp_parameters
        experts = self.moe.num_experts * self._mlp_parameters(self.moe.expert_ffn_hidden)
        return self.unsplit_expert_parameters + experts

    @property
    def unsplit_expert_parameters(self) -> int:
        """The router and the shared expert of a layer, which every rank of ep has."""
        if self.moe is None:
            return 0
        shared = self.moe.shared_ffn_hidden
        router = self.hidden * self.moe.num_experts
        return router + (self._mlp_parameters(shared) if shared else 0)

    @property
    def active_mlp_parameters_per_layer(self) -> float:
        """What one token passes through: the MLP, or its experts and the router; on average."""
        if self.moe is None:
            return self.dense_mlp_parameters
        experts = self.moe.experts_per_token * self._mlp_parameters(self.moe.expert_ffn_hidden)
        with_experts = self.unsplit_expert_parameters + experts
        share = self.moe.num_dense_layers / self.num_layers
        return with_experts + share * (self.dense_mlp_parameters - with_experts)

    @property
    def norm_parameters_per_layer(self) -> int:
        """Before attention and MLP, and where there are any, of queries and keys."""
        per_norm = 2 if self.norm == "layernorm" else 1
        return per_norm * (2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0))

    @property
    def embedding_parameters(self) -> int:
        """Token embedding and, where learned, position embedding; the head is apart."""
        learned = self.max_seq_tokens * self.hidden if self.positions == "learned" else 0
        return self.vocab * self.hidden + learned

    @property
    def head_parameters(self) -> int:
        """The final norm and, unless it is tied, the output matrix."""
        norm = self.hidden * (2 if self.norm == "layernorm" else 1)
        return norm + (0 if self.tied_embeddings else self.vocab * self.hidden)

    @property
    def num_parameters(self) -> int:
        per_layer = self.attention_parameters_per_layer + self.norm_parameters_per_layer
        dense = self.num_dense_layers
        return (
            self.num_layers * per_layer
            + dense * self.dense_mlp_parameters
            + (self.num_layers - dense) * self.mlp_parameters_per_layer
            + self.embedding_parameters
            + self.head_parameters
        )

    @property
    def matmul_parameters(self) -> float:
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
        per_square = 3 * self.num_layers * self.score_flops
        return float(
            sum(per_token * s + per_square * self.attended_squares(s) for s in lengths)
        )

    def attended_squares(self, length: int) -> int:
        """Pairs of tokens of a sequence, of which causal attention computes half.

        All s^2; with a window w shorter than s, 2 w s - w^2, twice the pairs that it leaves.
        """
        if self.window is None or length <= self.window:
            return length * length
        return 2 * self.window * length - self.window**2

    def _latent_parameters(self, mla: MlaSpec) -> int:
        """Projections down and up again, and the norms between."""
        queries = self.num_heads * self.head_dim
        from_hidden = self.hidden * queries
        if mla.query_rank:
            from_hidden = mla.query_rank * (self.hidden + 1 + queries)
        narrow = self.hidden * (mla.key_value_rank + mla.rope_head_dim) + mla.key_value_rank
        wide = self.head_dim - mla.rope_head_dim + mla.value_head_dim
        up = mla.key_value_rank * self.num_heads * wide
        return from_hidden + narrow + up + self.num_heads * mla.value_head_dim * self.hidden

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
