"""A Hugging Face `config.json` as a model, or a refusal that names what is not supported.

Field names and defaults are those of the configuration classes in transformers 5
(`LlamaConfig`, `MistralConfig`, `MixtralConfig`, `Qwen2Config`, `GPT2Config`). Dropout rates
are not read: Trimtab trains without dropout.
"""

from collections.abc import Mapping
from typing import Any

from trimtab.core import checks
from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.hugging_face import check_features
from trimtab.core.model import ModelSpec, MoeSpec

MODEL_TYPES = ("gpt2", "llama", "mistral", "mixtral", "qwen2")

_REFUSED = {
    "bert": "an encoder, which does not predict the next token",
    "deepseek_v2": "it has multi-head latent attention",
    "deepseek_v3": "it has multi-head latent attention",
    "gemma": "its norms and its embedding are scaled in a way of their own",
    "gpt_neox": "attention and MLP run side by side, and only a part of a head is rotated",
    "gptj": "attention and MLP run side by side, and only a part of a head is rotated",
    "mamba": "a state-space model, without attention",
    "opt": "its MLP has ReLU, and its positions are shifted by two",
    "qwen2_moe": "it has experts that every token visits",
    "qwen3": "its queries and keys are normalized",
    "qwen3_moe": "its queries and keys are normalized",
    "t5": "an encoder and a decoder, with relative position biases",
    "whisper": "an encoder and a decoder, of speech",
}
"""Well-known types that no `ModelSpec` describes, and why."""


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
    if model_type == "gpt2":
        return _gpt2(document, name=name)
    return _llama_like(document, name=name, model_type=model_type)


def _llama_like(document: Mapping[str, Any], *, name: str, model_type: str) -> ModelSpec:
    max_seq_tokens = _required(document, "max_position_embeddings")
    checks.whole_number("max_position_embeddings", max_seq_tokens)
    check_features(document, max_seq_tokens=max_seq_tokens)
    _expect(document, "attention_bias", (False,), False)
    _expect(document, "mlp_bias", (False,), False)
    num_heads = _required(document, "num_attention_heads")
    hidden = _required(document, "hidden_size")
    ffn_hidden = _required(document, "intermediate_size")
    moe = None
    if model_type == "mixtral":
        moe = MoeSpec(
            num_experts=_required(document, "num_local_experts"),
            experts_per_token=_required(document, "num_experts_per_tok"),
            expert_ffn_hidden=ffn_hidden,
        )
    return ModelSpec(
        name=name,
        num_layers=_required(document, "num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=ffn_hidden,
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
        tied_embeddings=_or_default(document, "tie_word_embeddings", False),
        qkv_biases=model_type == "qwen2",
        moe=moe,
        source=f"Hugging Face config.json, model_type {model_type}",
    )


def _gpt2(document: Mapping[str, Any], *, name: str) -> ModelSpec:
    _expect(document, "quantization_config", (None,), None)
    _expect(document, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    _expect(document, "scale_attn_weights", (True,), True)
    _expect(document, "scale_attn_by_inverse_layer_idx", (False,), False)
    _expect(document, "add_cross_attention", (False,), False)
    num_heads = _required(document, "n_head")
    hidden = _required(document, "n_embd")
    return ModelSpec(
        name=name,
        num_layers=_required(document, "n_layer"),
        hidden=hidden,
        ffn_hidden=_or_default(document, "n_inner", 4 * hidden),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_head_dim(document, hidden=hidden, num_heads=num_heads),
        vocab=_required(document, "vocab_size"),
        max_seq_tokens=_required(document, "n_positions"),
        norm="layernorm",
        norm_eps=_or_default(document, "layer_norm_epsilon", 1e-5),
        positions="learned",
        tied_embeddings=_or_default(document, "tie_word_embeddings", True),
        biases=True,
        source="Hugging Face config.json, model_type gpt2",
    )


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
