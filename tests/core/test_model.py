"""Parameter counts against published sizes."""

from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec, MoeSpec, mfu
from trimtab.orchestrator.config import load_model

MODELS = Path(__file__).parents[2] / "configs" / "models"

TINY = {
    "name": "tiny",
    "num_layers": 1,
    "hidden": 4,
    "ffn_hidden": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 2,
    "vocab": 10,
    "max_seq_tokens": 16,
}


def _tiny(**changes: object) -> ModelSpec:
    return ModelSpec(**{**TINY, **changes})  # type: ignore[arg-type]  # wrong ones are the point


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("mixtral-8x7b", 46_702_792_704),
    ],
)
def test_the_model_has_as_many_parameters_as_its_published_checkpoint(
    name: str, num_parameters: int
) -> None:
    assert load_model(MODELS / f"{name}.yaml").num_parameters == num_parameters


@pytest.mark.parametrize(("size", "billions"), [("7b", 6.65), ("13b", 12.84), ("30b", 32.24)])
def test_the_gpt_models_have_their_nominal_size(size: str, billions: float) -> None:
    model = load_model(MODELS / f"gpt-{size}.yaml")
    assert model.num_parameters == pytest.approx(billions * 1e9, rel=1e-3)


def test_the_demo_model_is_small_enough_for_a_laptop() -> None:
    assert 0.2e6 < load_model(MODELS / "demo.yaml").num_parameters < 2e6


def test_gpt2_small_has_the_parameters_of_its_checkpoint() -> None:
    gpt2 = ModelSpec(
        name="gpt2",
        num_layers=12,
        hidden=768,
        ffn_hidden=3072,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        vocab=50257,
        max_seq_tokens=1024,
        positions="learned",
        tied_embeddings=True,
        biases=True,
    )
    assert gpt2.num_parameters == 124_439_808


def test_qwen2_small_has_the_parameters_of_its_checkpoint() -> None:
    qwen2 = ModelSpec(
        name="qwen2-0.5b",
        num_layers=24,
        hidden=896,
        ffn_hidden=4864,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab=151936,
        max_seq_tokens=131072,
        gated_mlp=True,
        norm="rmsnorm",
        tied_embeddings=True,
        qkv_biases=True,
    )
    assert qwen2.num_parameters == 494_032_768


def test_a_token_of_mixtral_passes_through_two_of_eight_experts() -> None:
    mixtral = load_model(MODELS / "mixtral-8x7b.yaml")
    expert = 3 * 4096 * 14336
    router = 4096 * 8
    assert mixtral.active_mlp_parameters_per_layer == 2 * expert + router
    assert mixtral.mlp_parameters_per_layer == 8 * expert + router


def test_training_flops_are_six_per_parameter_and_twelve_per_square() -> None:
    model = _tiny()
    attention = 4 * (4 + 2 * 2) + 4 * 4
    mlp = 2 * 4 * 8
    per_token = 6 * (attention + mlp + 10 * 4)
    per_square = 12 * 1 * 2 * 2
    assert model.training_flops([3, 5]) == per_token * 8 + per_square * (9 + 25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "model.num_layers: expected a whole number >= 1, got 0"),
        ({"hidden": 4.0}, "model.hidden: expected a whole number >= 1, got 4.0"),
        ({"num_kv_heads": 3}, "expected a divisor of num_heads = 2, got 3"),
        ({"head_dim": 3}, "rope needs an even head_dim, got 3"),
        ({"norm": "layer"}, "did you mean 'layernorm'?"),
        ({"norm_eps": float("nan")}, "model.norm_eps: expected a finite number > 0, got nan"),
    ],
)
def test_a_wrong_shape_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        _tiny(**changes)
    assert message in str(caught.value)


def test_a_token_cannot_visit_more_experts_than_there_are() -> None:
    with pytest.raises(InputError, match="expected at most num_experts = 2, got 3"):
        MoeSpec(num_experts=2, experts_per_token=3, expert_ffn_hidden=8)


def test_mfu_is_model_flops_over_what_the_devices_could_do() -> None:
    assert mfu(6e12, seconds=2.0, peak_flop_per_s=10e12) == 0.3
    assert mfu(6e12, seconds=2.0, peak_flop_per_s=None) is None
    assert mfu(6e12, seconds=0.0, peak_flop_per_s=10e12) is None
