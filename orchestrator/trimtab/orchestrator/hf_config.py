"""A Hugging Face `config.json` as a model, or a refusal that names what is not supported.

Field names and defaults are those of the configuration classes in transformers 5. Dropout rates
are not read: Trimtab trains without dropout. A model that the worker cannot train but whose
cost is known is one to plan with (`ModelSpec.planned_only`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from trimtab.core import checks
from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.hugging_face import check_features, costless_differences
from trimtab.core.model import MlaSpec, ModelSpec, MoeSpec

_REFUSED = {
    "bert": "an encoder, which does not predict the next token",
    "gemma2": "every second layer has a sliding window",
    "gemma3_text": "five layers of six have a sliding window",
    "gpt_oss": "every second layer has a sliding window",
    "llama4_text": "its layers take turns with and without experts",
    "mamba": "a state-space model, without attention",
    "qwen3_next": "three layers of four have linear attention",
    "t5": "an encoder and a decoder, with relative position biases",
    "whisper": "an encoder and a decoder, of speech",
}
"""Well-known types that no `ModelSpec` describes, and why."""

_ONLY_PLANNED = {
    "deepseek_v2": "it has multi-head latent attention",
    "deepseek_v3": "it has multi-head latent attention",
    "gemma": "its norms and its embedding are scaled, and its MLP has GELU",
    "gpt_neox": "attention and MLP run side by side, and only a part of a head is rotated",
    "gptj": "attention and MLP run side by side, and only a part of a head is rotated",
    "opt": "its MLP has ReLU, and its positions are shifted by two",
    "qwen3": "its queries and keys are normalized",
    "qwen3_moe": "its queries and keys are normalized",
}
"""Types whose cost is known, but which the worker does not compute, and why."""


def is_hf_config(document: Mapping[str, Any]) -> bool:
    """Whether `document` is a Hugging Face configuration rather than a Trimtab model."""
    return "model_type" in document or "architectures" in document


def model_from_hf_config(document: Mapping[str, Any], *, name: str) -> ModelSpec:
    """The model a `config.json` describes.

    Raises:
        InputError: The model type, or a feature it asks for, is not supported; or a field is
            missing or wrong.
    """
    model_type = document.get("model_type")
    if model_type is None:
        raise InputError(f"model_type: missing; expected one of {', '.join(MODEL_TYPES)}")
    if reason := _REFUSED.get(model_type if isinstance(model_type, str) else ""):
        raise InputError(
            f"model_type: {model_type} is not supported: {reason}; supported are "
            f"{', '.join(MODEL_TYPES)}"
        )
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"model_type: {unknown_name_message('type', str(model_type), MODEL_TYPES)}"
        )
    return _READERS[model_type](document, name, model_type)


def _llama_like(document: Mapping[str, Any], name: str, model_type: str) -> ModelSpec:
    """Llama, Mistral, Mixtral, Qwen 2 and 3, Gemma: gated MLPs or experts, and rotation."""
    max_seq_tokens = _required(document, "max_position_embeddings")
    checks.whole_number("max_position_embeddings", max_seq_tokens)
    check_features(_plain(document, model_type), max_seq_tokens=max_seq_tokens)
    reasons = [_ONLY_PLANNED[model_type]] if model_type in _ONLY_PLANNED else []
    if model_type != "gemma":
        reasons += costless_differences(document)
    window = _window(document, max_seq_tokens) if model_type == "mistral" else None
    if window is not None:
        reasons.append(f"a token attends to a window of {window} tokens")
    _expect(document, "attention_bias", (False,), False)
    _expect(document, "mlp_bias", (False,), False)
    num_heads = _required(document, "num_attention_heads")
    hidden = _required(document, "hidden_size")
    return ModelSpec(
        name=name,
        num_layers=_required(document, "num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=_required(document, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_or_default(document, "num_key_value_heads", num_heads),
        head_dim=_head_dim(document, hidden=hidden, num_heads=num_heads),
        vocab=_required(document, "vocab_size"),
        max_seq_tokens=max_seq_tokens,
        gated_mlp=True,
        norm="rmsnorm",
        norm_eps=_or_default(document, "rms_norm_eps", 1e-6),
        positions="rope",
        rope_theta=_rope_theta(document),
        tied_embeddings=_or_default(document, "tie_word_embeddings", model_type == "gemma"),
        qkv_biases=model_type in ("qwen2", "qwen2_moe"),
        qk_norm=model_type in ("qwen3", "qwen3_moe"),
        moe=_experts(document, model_type),
        window=window,
        planned_only="; ".join(reasons),
        source=f"Hugging Face config.json, model_type {model_type}",
    )


def _window(document: Mapping[str, Any], max_seq_tokens: int) -> int | None:
    """None where it holds every sequence."""
    window: Any = document.get("sliding_window")
    if window is None:
        return None
    checks.whole_number("sliding_window", window)
    return int(window) if window < max_seq_tokens else None


def _plain(document: Mapping[str, Any], model_type: str) -> Mapping[str, Any]:
    """The document without what a model to plan with may ask for, where it is well-formed."""
    planned: dict[str, type] = {
        "rope_scaling": Mapping,
        "rope_parameters": Mapping,
        "hidden_act": str,
        "partial_rotary_factor": float,
    }
    if model_type == "mistral":
        planned["sliding_window"] = int
    return {
        key: value
        for key, value in document.items()
        if key not in planned or not isinstance(value, planned[key])
    }


def _experts(document: Mapping[str, Any], model_type: str) -> MoeSpec | None:
    """The gate of Qwen2's shared expert, one row a layer, is left out."""
    if model_type == "mixtral":
        return MoeSpec(
            num_experts=_required(document, "num_local_experts"),
            experts_per_token=_required(document, "num_experts_per_tok"),
            expert_ffn_hidden=_required(document, "intermediate_size"),
        )
    if model_type not in ("qwen2_moe", "qwen3_moe"):
        return None
    _expect(document, "decoder_sparse_step", (1,), 1)
    _expect(document, "mlp_only_layers", ([],), [])
    shared = "shared_expert_intermediate_size"
    return MoeSpec(
        num_experts=document.get("num_local_experts") or _required(document, "num_experts"),
        experts_per_token=_required(document, "num_experts_per_tok"),
        expert_ffn_hidden=_required(document, "moe_intermediate_size"),
        shared_ffn_hidden=_required(document, shared) if model_type == "qwen2_moe" else 0,
    )


def _deepseek(document: Mapping[str, Any], name: str, model_type: str) -> ModelSpec:
    """Layers that predict further tokens (`num_nextn_predict_layers`) are not counted."""
    _expect(document, "attention_bias", (False,), False)
    _expect(document, "moe_layer_freq", (1,), 1)
    num_heads = _required(document, "num_attention_heads")
    rope_head_dim = _required(document, "qk_rope_head_dim")
    expert_ffn_hidden = _required(document, "moe_intermediate_size")
    num_shared = _or_default(document, "n_shared_experts", 0)
    for field in ("qk_rope_head_dim", "qk_nope_head_dim", "moe_intermediate_size"):
        checks.whole_number(field, _required(document, field))
    checks.whole_number("n_shared_experts", num_shared, at_least=0)
    return ModelSpec(
        name=name,
        num_layers=_required(document, "num_hidden_layers"),
        hidden=_required(document, "hidden_size"),
        ffn_hidden=_required(document, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_required(document, "qk_nope_head_dim") + rope_head_dim,
        vocab=_required(document, "vocab_size"),
        max_seq_tokens=_required(document, "max_position_embeddings"),
        gated_mlp=True,
        norm="rmsnorm",
        norm_eps=_or_default(document, "rms_norm_eps", 1e-6),
        positions="rope",
        rope_theta=_rope_theta(document),
        tied_embeddings=_or_default(document, "tie_word_embeddings", False),
        moe=MoeSpec(
            num_experts=_required(document, "n_routed_experts"),
            experts_per_token=_required(document, "num_experts_per_tok"),
            expert_ffn_hidden=expert_ffn_hidden,
            shared_ffn_hidden=num_shared * expert_ffn_hidden,
            num_dense_layers=_or_default(document, "first_k_dense_replace", 0),
        ),
        mla=MlaSpec(
            query_rank=_or_default(document, "q_lora_rank", 0),
            key_value_rank=_required(document, "kv_lora_rank"),
            rope_head_dim=rope_head_dim,
            value_head_dim=_required(document, "v_head_dim"),
        ),
        planned_only=_ONLY_PLANNED[model_type],
        source=f"Hugging Face config.json, model_type {model_type}",
    )


def _gpt2(document: Mapping[str, Any], name: str, model_type: str) -> ModelSpec:
    _expect(document, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    _expect(document, "scale_attn_weights", (True,), True)
    _expect(document, "scale_attn_by_inverse_layer_idx", (False,), False)
    _expect(document, "add_cross_attention", (False,), False)
    return _gpt_like(
        document,
        name,
        model_type,
        fields=_SHORT_NAMES,
        ffn_hidden=document.get("n_inner"),
        positions="learned",
        is_tied=True,
        has_biases=True,
    )


def _gptj(document: Mapping[str, Any], name: str, model_type: str) -> ModelSpec:
    """Its MLP's and output matrix's biases are left out, a second norm counted: 0.01 %."""
    return _gpt_like(
        document,
        name,
        model_type,
        fields=_SHORT_NAMES,
        ffn_hidden=document.get("n_inner"),
        positions="rope",
        is_tied=False,
        has_biases=False,
    )


def _gpt_neox(document: Mapping[str, Any], name: str, model_type: str) -> ModelSpec:
    return _gpt_like(
        document,
        name,
        model_type,
        fields=_LONG_NAMES,
        ffn_hidden=_required(document, "intermediate_size"),
        positions="rope",
        is_tied=False,
        has_biases=_or_default(document, "attention_bias", True),
    )


def _opt(document: Mapping[str, Any], name: str, model_type: str) -> ModelSpec:
    """Two positions more than sequences have tokens are left out."""
    _expect(document, "word_embed_proj_dim", (document.get("hidden_size"),), None)
    _expect(document, "do_layer_norm_before", (True,), True)
    return _gpt_like(
        document,
        name,
        model_type,
        fields=_LONG_NAMES,
        ffn_hidden=_required(document, "ffn_dim"),
        positions="learned",
        is_tied=True,
        has_biases=True,
    )


_SHORT_NAMES = ("n_layer", "n_embd", "n_head", "n_positions")
_LONG_NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
)


def _gpt_like(
    document: Mapping[str, Any],
    name: str,
    model_type: str,
    *,
    fields: tuple[str, str, str, str],
    ffn_hidden: Any,
    positions: Any,
    is_tied: bool,
    has_biases: bool,
) -> ModelSpec:
    """Layer norms, two matrices in the MLP; `fields` name layers, width, heads and length."""
    _expect(document, "quantization_config", (None,), None)
    num_layers, hidden, num_heads, max_seq_tokens = (
        _required(document, field) for field in fields
    )
    checks.whole_number(fields[1], hidden)
    return ModelSpec(
        name=name,
        num_layers=num_layers,
        hidden=hidden,
        ffn_hidden=4 * hidden if ffn_hidden is None else ffn_hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_head_dim(document, hidden=hidden, num_heads=num_heads),
        vocab=_required(document, "vocab_size"),
        max_seq_tokens=max_seq_tokens,
        norm="layernorm",
        norm_eps=_or_default(document, "layer_norm_epsilon", 1e-5),
        positions=positions,
        tied_embeddings=_or_default(document, "tie_word_embeddings", is_tied),
        biases=has_biases,
        planned_only=_ONLY_PLANNED.get(model_type, ""),
        source=f"Hugging Face config.json, model_type {model_type}",
    )


_Reader = Callable[[Mapping[str, Any], str, str], ModelSpec]
_READERS: dict[str, _Reader] = {
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gemma": _llama_like,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "llama": _llama_like,
    "mistral": _llama_like,
    "mixtral": _llama_like,
    "opt": _opt,
    "qwen2": _llama_like,
    "qwen2_moe": _llama_like,
    "qwen3": _llama_like,
    "qwen3_moe": _llama_like,
}
MODEL_TYPES = tuple(_READERS)


def _rope_theta(document: Mapping[str, Any]) -> Any:
    """The rotary base; transformers 5 writes it into `rope_parameters`."""
    parameters = document.get("rope_parameters") or {}
    return parameters.get("rope_theta", _or_default(document, "rope_theta", 10_000.0))


def _head_dim(document: Mapping[str, Any], *, hidden: Any, num_heads: Any) -> Any:
    given = document.get("head_dim")
    if given is not None:
        return given
    if not isinstance(hidden, int) or not isinstance(num_heads, int) or num_heads < 1:
        raise InputError(
            f"hidden size and heads: expected whole numbers, got {hidden!r} and {num_heads!r}"
        )
    if hidden % num_heads:
        raise InputError(
            f"hidden size: expected a multiple of the {num_heads} heads, got {hidden}"
        )
    return hidden // num_heads


def _expect(
    document: Mapping[str, Any], key: str, allowed: tuple[Any, ...], default: Any
) -> None:
    value = document.get(key, default)
    if value is not None and value not in allowed:
        raise InputError(f"{key}: expected {allowed[0]!r}, got {value!r}; it is not supported")


def _required(document: Mapping[str, Any], key: str) -> Any:
    value = document.get(key)
    if value is None:
        raise InputError(f"{key}: missing from the Hugging Face config.json")
    return value


def _or_default(document: Mapping[str, Any], key: str, default: Any) -> Any:
    value = document.get(key)
    return default if value is None else value
