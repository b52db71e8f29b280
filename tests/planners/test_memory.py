from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from trimtab.core.model import ModelSpec, MoeSpec
from trimtab.core.plan import Layout, StageMemory
from trimtab.planners.memory import (
    layer_activation_bytes,
    stage_memories,
    stage_parameters,
    state_bytes,
    worst_stages,
)

GptMaker = Callable[..., ModelSpec]


def memories(
    model: ModelSpec, layout: Layout, *, stages: Sequence[int] | None = None, micro: int = 64
) -> tuple[StageMemory, ...]:
    return stage_memories(
        model,
        layout,
        precision="bf16",
        tokens=2048.0,
        squares=2048.0**2,
        num_micro_batches=micro,
        capacity_bytes=80 * 2**30,
        stages=stages,
    )


def test_mixed_precision_adam_takes_18_bytes_and_fp32_16() -> None:
    mixed, single = state_bytes("bf16"), state_bytes("fp32")
    assert mixed.weights + mixed.gradients + mixed.optimizer == 18
    assert single.weights + single.gradients + single.optimizer == 16


@pytest.mark.parametrize(
    ("zero", "expected"),
    [(0, (2, 4, 12)), (1, (2, 4, 1.5)), (2, (2, 0.5, 1.5)), (3, (0.25, 0.5, 1.5))],
)
def test_each_zero_stage_shards_one_more_state(
    gpt: GptMaker, zero: int, expected: tuple[float, float, float]
) -> None:
    model = gpt(num_layers=4, hidden=256, num_heads=4)
    (stage,) = memories(model, Layout(dp=8, zero=zero))
    parameters = model.num_parameters
    found = (stage.weights_bytes, stage.gradients_bytes, stage.optimizer_bytes)
    assert found == pytest.approx([parameters * share for share in expected])


def test_the_stages_hold_all_parameters_and_a_tied_embedding_twice(gpt3: ModelSpec) -> None:
    layout = Layout(tp=1, pp=8)
    total = sum(stage_parameters(gpt3, layout, stage=stage)[0] for stage in range(8))
    assert total == gpt3.num_parameters + gpt3.vocab * gpt3.hidden


def test_experts_are_spread_over_ep(gpt: GptMaker) -> None:
    moe = MoeSpec(num_experts=8, experts_per_token=2, expert_ffn_hidden=1024)
    model = replace(gpt(num_layers=4, hidden=256, num_heads=4), moe=moe)
    dense, experts = stage_parameters(model, Layout(dp=8), stage=0)
    spread = stage_parameters(model, Layout(dp=8, ep=8), stage=0)
    assert spread == (dense, experts / 8)
    assert dense + experts == model.num_parameters


def test_the_first_stage_keeps_most_micro_batches(gpt3: ModelSpec) -> None:
    stages = memories(gpt3, Layout(tp=8, pp=8, sequence_parallel=True, recompute="selective"))
    kept = [stage.activations_bytes for stage in stages[:-1]]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == pytest.approx(8 / 7 * kept[1])


def test_fewer_micro_batches_than_stages_keep_less(gpt3: ModelSpec) -> None:
    layout = Layout(tp=8, pp=8, recompute="full")
    assert memories(gpt3, layout, micro=2)[0].activations_bytes < (
        memories(gpt3, layout, micro=8)[0].activations_bytes
    )


def test_interleaving_keeps_more(gpt3: ModelSpec) -> None:
    plain = memories(gpt3, Layout(tp=8, pp=8, recompute="selective"))[0]
    interleaved = memories(gpt3, Layout(tp=8, pp=8, vpp=3, recompute="selective"))[0]
    ratio = interleaved.activations_bytes / plain.activations_bytes
    assert ratio == pytest.approx(1 + 7 / 24)


def test_the_worst_stage_is_among_those_named(gpt: GptMaker) -> None:
    for num_layers in (8, 9, 10, 11, 13):
        model = gpt(num_layers=num_layers, hidden=512, num_heads=8)
        for recompute in ("none", "selective", "full"):
            layout = Layout(pp=4, recompute=recompute)
            worst = max(memories(model, layout), key=lambda stage: stage.total_bytes)
            few = memories(model, layout, stages=worst_stages(model, layout))
            assert max(stage.total_bytes for stage in few) == worst.total_bytes


@pytest.mark.parametrize("num_dense", [0, 1, 3, 5, 8])
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_layers_without_experts_need_less_and_the_worst_stage_is_still_named(
    gpt: GptMaker, num_dense: int, pp: int
) -> None:
    moe = MoeSpec(
        num_experts=16, experts_per_token=2, expert_ffn_hidden=512, num_dense_layers=num_dense
    )
    for num_layers in (16, 17, 19, 22):
        model = replace(gpt(num_layers=num_layers, hidden=512, num_heads=8), moe=moe)
        layout = Layout(pp=pp)
        worst = max(memories(model, layout), key=lambda stage: stage.total_bytes)
        few = memories(model, layout, stages=worst_stages(model, layout))
        assert max(stage.total_bytes for stage in few) == worst.total_bytes


def test_fp32_activations_take_twice_the_elements_but_the_same_masks(gpt3: ModelSpec) -> None:
    two, four = (
        layer_activation_bytes(
            gpt3,
            tokens=1.0,
            squares=0.0,
            tp=1,
            recompute="selective",
            sequence_parallel=False,
            element_bytes=element_bytes,
        )
        for element_bytes in (2, 4)
    )
    assert two == 34 * gpt3.hidden
    assert four == 66 * gpt3.hidden
