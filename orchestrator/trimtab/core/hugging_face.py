"""What a Hugging Face `config.json` may ask for that no `ModelSpec` can say."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trimtab.core.errors import InputError


def check_features(config: Mapping[str, Any], *, max_seq_tokens: int, source: str = "") -> None:
    """Raise where a Llama-type model would compute something else than Trimtab's does.

    A sliding window changes nothing where it holds every sequence. Field names and defaults are
    those of `LlamaConfig`, `MistralConfig` and `Qwen2Config` in transformers 5, which writes
    `rope_parameters`; before, it was `rope_scaling`.

    Args:
        config: The document.
        max_seq_tokens: The longest sequence of the model.
        source: What messages begin with.

    Raises:
        InputError: A feature is not supported.
    """
    for problem in (
        *_cheap_problems(config),
        *_problems([_window(config, max_seq_tokens=max_seq_tokens), _quantization(config)]),
    ):
        raise InputError(f"{source}{problem}; Trimtab's model does not compute that")


def costless_differences(config: Mapping[str, Any]) -> list[str]:
    """What else than Trimtab's model one would compute, at the same cost: to plan with."""
    return list(_cheap_problems(config))


def _cheap_problems(config: Mapping[str, Any]) -> Iterator[str]:
    return _problems(
        [
            *_rope(config, "rope_scaling"),
            *_rope(config, "rope_parameters"),
            _one_of(config, "hidden_act", ("silu", "swish")),
            _one_of(config, "partial_rotary_factor", (1.0,)),
        ]
    )


def _problems(features: "Iterable[_Feature]") -> Iterator[str]:
    for field, expected, given, fine in features:
        if not fine:
            yield f"{field}: expected {expected}, got {given!r}"


_Feature = tuple[str, str, Any, bool]
"""Field, what is expected, what is given, and whether that is fine."""


def _one_of(config: Mapping[str, Any], field: str, allowed: tuple[Any, ...]) -> _Feature:
    given = config.get(field)
    return field, repr(allowed[0]), given, given is None or given in allowed


def _rope(config: Mapping[str, Any], field: str) -> list[_Feature]:
    values = config.get(field) or {}
    if not isinstance(values, Mapping):
        return [(field, "an object or null", values, False)]
    kind = values.get("rope_type", values.get("type", "default"))
    return [(field, "no scaling of rotary positions", kind, kind == "default")]


def _window(config: Mapping[str, Any], *, max_seq_tokens: int) -> _Feature:
    uses_window = config.get("use_sliding_window", config.get("model_type") != "qwen2")
    window = config.get("sliding_window") if uses_window else None
    fine = window is None or (isinstance(window, int) and window >= max_seq_tokens)
    return "sliding_window", f"null or at least {max_seq_tokens}", window, fine


def _quantization(config: Mapping[str, Any]) -> _Feature:
    given = config.get("quantization_config")
    return "quantization_config", "the model before it was quantized", given, not given
