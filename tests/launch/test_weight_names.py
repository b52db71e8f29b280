import pytest
import torch

from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.launch.runtime.weight_names import (
    hugging_face_shapes,
    refuse_unlike_llama,
    to_hugging_face,
    to_megatron,
)


def model(**changes: object) -> ModelSpec:
    fields: dict[str, object] = {
        "name": "tiny",
        "num_layers": 2,
        "hidden": 24,
        "ffn_hidden": 40,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 4,
        "vocab": 64,
        "max_seq_tokens": 128,
        "gated_mlp": True,
        "norm": "rmsnorm",
    }
    return ModelSpec(**(fields | changes))  # type: ignore[arg-type]  # a test's shorthand


def random_state(spec: ModelSpec) -> dict[str, torch.Tensor]:
    shapes = hugging_face_shapes(spec)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_embeddings": True},
        {"biases": True},
        {"qkv_biases": True},
        {"num_kv_heads": 6},
    ],
)
def test_the_way_to_megatron_and_back_changes_nothing(changes: dict[str, object]) -> None:
    spec = model(**changes)
    state = random_state(spec)

    back = to_hugging_face(to_megatron(state, spec), spec)

    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_queries_keys_and_values_lie_group_by_group() -> None:
    spec = model()  # 2 groups of 3 query heads of 4 elements
    state = random_state(spec)
    prefix = "model.layers.1.self_attn"
    query, key, value = (state[f"{prefix}.{x}_proj.weight"] for x in "qkv")

    merged = to_megatron(state, spec)["decoder.layers.1.self_attention.linear_qkv.weight"]

    expected = [query[:12], key[:4], value[:4], query[12:], key[4:], value[4:]]
    assert torch.equal(merged, torch.cat(expected))


def test_gate_comes_before_up() -> None:
    spec = model()
    state = random_state(spec)

    merged = to_megatron(state, spec)["decoder.layers.0.mlp.linear_fc1.weight"]

    assert torch.equal(merged[:40], state["model.layers.0.mlp.gate_proj.weight"])
    assert torch.equal(merged[40:], state["model.layers.0.mlp.up_proj.weight"])


def test_shapes_add_up_to_the_parameters_of_the_model() -> None:
    for changes in ({}, {"tied_embeddings": True}, {"biases": True}, {"qkv_biases": True}):
        spec = model(**changes)
        total = sum(torch.Size(shape).numel() for shape in hugging_face_shapes(spec).values())
        assert total == spec.num_parameters


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"norm": "layernorm"}, "model.norm = rmsnorm, got layernorm"),
        ({"gated_mlp": False}, "model.gated_mlp = True, got False"),
        ({"positions": "learned"}, "model.positions = rope, got learned"),
    ],
)
def test_a_model_unlike_llama_is_refused_by_name(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InputError, match=field):
        refuse_unlike_llama(model(**changes), doing="export")
