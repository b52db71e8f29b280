"""Llama-type weights under Hugging Face's names and under megatron-core's.

Megatron keeps query, key and value in one matrix, by key-value group: the queries of a group's
heads, its key, its value, then the next group. Gate and up projection lie one after the other.
Everything else has another name only. Rotary positions turn the same halves in both.

Source: `get_query_key_value_tensors` in megatron/core/transformer/attention.py, `MLP.forward`
in megatron/core/transformer/mlp.py (megatron-core 0.16.1, local layer spec) and
`modeling_llama.py`, `modeling_qwen2.py` of transformers 5.
"""

from collections.abc import Mapping

import torch

from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec

Shape = tuple[int, ...]


def refuse_unlike_llama(model: ModelSpec, *, doing: str) -> None:
    """Raise unless `model` has a Llama-type counterpart; `doing` begins the message.

    Raises:
        InputError: A feature of the model has no Llama-type counterpart.
    """
    needed = {
        "model.norm": (model.norm, "rmsnorm"),
        "model.gated_mlp": (model.gated_mlp, True),
        "model.positions": (model.positions, "rope"),
        "model.moe": (model.moe, None),
    }
    for field, (given, expected) in needed.items():
        if given != expected:
            raise InputError(
                f"{doing}: a Llama-type checkpoint needs {field} = {expected}, got {given}"
            )


def hugging_face_names(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """For every megatron-core parameter, the Hugging Face tensors it is made of, in order."""
    names: dict[str, tuple[str, ...]] = {
        "embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
        "decoder.final_layernorm.weight": ("model.norm.weight",),
    }
    for layer in range(model.num_layers):
        names |= _layer_names(model, layer)
    if not model.tied_embeddings:
        names["output_layer.weight"] = ("lm_head.weight",)
    return names


def hugging_face_shapes(model: ModelSpec) -> dict[str, Shape]:
    """Shape of every Hugging Face tensor of the model."""
    shapes = {
        "model.embed_tokens.weight": (model.vocab, model.hidden),
        "model.norm.weight": (model.hidden,),
        "lm_head.weight": (model.vocab, model.hidden),
    }
    query, key = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    of_layer = {
        "input_layernorm": (model.hidden,),
        "post_attention_layernorm": (model.hidden,),
        "self_attn.q_proj": (query, model.hidden),
        "self_attn.k_proj": (key, model.hidden),
        "self_attn.v_proj": (key, model.hidden),
        "self_attn.o_proj": (model.hidden, query),
        "mlp.gate_proj": (model.ffn_hidden, model.hidden),
        "mlp.up_proj": (model.ffn_hidden, model.hidden),
        "mlp.down_proj": (model.hidden, model.ffn_hidden),
    }
    for parts in hugging_face_names(model).values():
        for name in parts:
            if name not in shapes:
                _, _, _, rest = name.split(".", 3)
                module, kind = rest.rsplit(".", 1)
                shape = of_layer[module]
                shapes[name] = shape if kind == "weight" else shape[:1]
    if model.tied_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def merge(parts: tuple[torch.Tensor, ...], model: ModelSpec) -> torch.Tensor:
    """One megatron-core parameter from its tensors: one; gate and up; or query, key, value."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return torch.cat(parts)
    groups = [_by_group(part, model) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 1)


def split(
    parameter: torch.Tensor, num_parts: int, *, model: ModelSpec
) -> tuple[torch.Tensor, ...]:
    """The inverse of `merge`; the parts may be views."""
    if num_parts < 3:
        return parameter.chunk(num_parts)
    groups = _by_group(parameter, model)
    query = model.num_heads // model.num_kv_heads * model.head_dim
    parts = torch.split(groups, [query, model.head_dim, model.head_dim], dim=1)
    return tuple(part.flatten(0, 1) for part in parts)


def to_megatron(state: Mapping[str, torch.Tensor], model: ModelSpec) -> dict[str, torch.Tensor]:
    """A Hugging Face state as megatron-core's `GPTModel` names and lays it out."""
    return {
        name: merge(tuple(state[part] for part in parts), model)
        for name, parts in hugging_face_names(model).items()
    }


def to_hugging_face(
    state: Mapping[str, torch.Tensor], model: ModelSpec
) -> dict[str, torch.Tensor]:
    """The inverse of `to_megatron`."""
    return {
        part: tensor
        for name, parts in hugging_face_names(model).items()
        for part, tensor in zip(parts, split(state[name], len(parts), model=model), strict=True)
    }


def _by_group(tensor: torch.Tensor, model: ModelSpec) -> torch.Tensor:
    return tensor.reshape(model.num_kv_heads, -1, *tensor.shape[1:])


def _layer_names(model: ModelSpec, layer: int) -> dict[str, tuple[str, ...]]:
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    query_key_value = tuple(f"{theirs}.self_attn.{x}_proj" for x in "qkv")
    gate_up = tuple(f"{theirs}.mlp.{x}_proj" for x in ("gate", "up"))
    names: dict[str, tuple[str, ...]] = {
        f"{ours}.input_layernorm.weight": (f"{theirs}.input_layernorm.weight",),
        f"{ours}.pre_mlp_layernorm.weight": (f"{theirs}.post_attention_layernorm.weight",),
    }
    linear: dict[str, tuple[tuple[str, ...], bool]] = {
        f"{ours}.self_attention.linear_qkv": (
            query_key_value,
            model.biases or model.qkv_biases,
        ),
        f"{ours}.self_attention.linear_proj": ((f"{theirs}.self_attn.o_proj",), model.biases),
        f"{ours}.mlp.linear_fc1": (gate_up, model.biases),
        f"{ours}.mlp.linear_fc2": ((f"{theirs}.mlp.down_proj",), model.biases),
    }
    for module, (parts, has_bias) in linear.items():
        for kind in ("weight", "bias") if has_bias else ("weight",):
            names[f"{module}.{kind}"] = tuple(f"{part}.{kind}" for part in parts)
    return names
