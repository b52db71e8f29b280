import dataclasses
import math
from typing import Any

import pytest

from trimtab.core.errors import InputError
from trimtab.core.pipeline import Pipeline
from trimtab.core.plan import SequenceGroup, Wave
from trimtab.core.profile import DegreeBandwidth, GroupOption, RingCosts, StepProfile
from trimtab.planners.attention_costs import sharing_costs
from trimtab.planners.costs import group_s
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.steps.packing import OpenGroup

PROFILE = StepProfile(
    name="round", num_gpus=4, gpus_per_node=4, quadratic_s=0.0, linear_s=0.1, fixed_s=6.0,
    alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=100, num_layers=12, hidden=50,
)  # fmt: skip


def group(tokens: int) -> OpenGroup:
    return OpenGroup(degree=1, work=0.1 * tokens, tokens=tokens, parts=[(0, 1)])


def test_a_stage_takes_its_share_of_the_layers_a_third_of_it_forward() -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=2, stage_layers=(4, 8)))
    times = costs.times([group(60), group(30)])
    # 6 + 0.1 x 60 = 12 s over 12 layers
    assert times.forward_s == pytest.approx((4 / 3, 8 / 3))
    assert times.backward_s == pytest.approx((8 / 3, 16 / 3))
    assert times.tokens == 60


def test_the_output_matrix_is_the_last_stages_and_grows_with_tokens_alone() -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=2, output_layers=4.0))
    times = costs.times([group(80)])
    # fixed 6 s by layers; 8 s for tokens: 6 of 16 to the first stage, 10 to the last
    assert sum(times.forward_s) + sum(times.backward_s) == pytest.approx(14.0)
    assert times.forward_s == pytest.approx((2.0, 8 / 3))


def test_stages_add_up_to_the_whole_for_any_group(flexsp_7b: StepProfile) -> None:
    costs = StageCosts(flexsp_7b, Pipeline(pp=4, output_layers=1.5))
    for degree in (1, 8):
        stages = [costs.stage_profile(stage, token_cap=9_000) for stage in range(4)]
        parts = [group_s([7_000, 900], degree, profile=profile) for profile in stages]
        assert sum(parts) == pytest.approx(group_s([7_000, 900], degree, profile=flexsp_7b))


RINGS = dataclasses.replace(
    PROFILE,
    quadratic_s=0.001,
    alltoall_bytes_per_token=2.0,
    bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=10.0, latency_s=0.6),),
    ring=RingCosts(
        quadratic_s=0.002,
        bytes_per_token=3.0,
        bandwidths=(
            DegreeBandwidth(degree=2, bytes_per_s=10.0, latency_s=1.2),
            DegreeBandwidth(degree=3, bytes_per_s=10.0),
        ),
        overlap_fraction=0.5,
    ),
)


@pytest.mark.parametrize("option", RINGS.options)
def test_a_ring_and_its_latency_are_shared_out_over_the_stages_too(option: GroupOption) -> None:
    costs = StageCosts(RINGS, Pipeline(pp=3, stage_layers=(2, 4, 6), output_layers=1.5))
    work = sharing_costs(option, profile=RINGS).group_work([60, 20])
    times = costs.times([OpenGroup(option.degree, option.attention, work, 80)])
    for stage in range(3):
        profile = costs.stage_profile(stage, token_cap=100)
        own_s = group_s([60, 20], option.degree, profile=profile, attention=option.attention)
        assert times.forward_s[stage] + times.backward_s[stage] == pytest.approx(own_s)


def test_groups_of_a_wave_that_leave_one_node_together_share_its_way_out() -> None:
    # 60 tokens at degree 2: 6 s fixed, 0.6 s latency, (6 + 3.6) / 2 s, and 12 s / 2 exchanged
    costs = StageCosts(RINGS, Pipeline(pp=2))
    for ranks, exchanged_s in (((0, 1), 6.0), ((1, 4), 12.0)):
        groups = (
            SequenceGroup(ranks=ranks, sequences=(0,)),
            SequenceGroup(ranks=(3, 5), sequences=(1,)),
        )
        times = costs.placed_times(Wave(groups=groups), [60, 1])
        both_s = sum(times.forward_s) + sum(times.backward_s)
        assert both_s == pytest.approx(6.0 + 0.6 + 4.8 + exchanged_s)
        assert times.tokens == 30


def test_a_stage_with_fewer_layers_holds_more_tokens() -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=2, stage_layers=(4, 8)))
    assert costs.limits == pytest.approx((300.0, 150.0))
    # stage 0 holds two micro-batches of 150, stage 1 one of 150
    assert (costs.even_cap, costs.wave_cap) == (150, 150)


def test_even_stages_hold_as_much_of_every_micro_batch_as_one_stage_did() -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=4))
    assert (costs.even_cap, costs.wave_cap) == (100, 400)


def test_interleaving_holds_less() -> None:
    # the first rank holds 1 + (pp - 1) / (pp vpp) = 1.25 times as much
    costs = StageCosts(PROFILE, Pipeline(pp=2, vpp=2))
    assert (costs.even_cap, costs.wave_cap) == (80, 80)


def test_sending_takes_two_bytes_of_every_hidden_element() -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=2, send_bytes_per_s=1_000.0))
    assert costs.times([group(30)]).send_s == pytest.approx(30 * 50 * 2 / 1_000)


@pytest.mark.parametrize(
    ("pipeline", "named"),
    [
        (Pipeline(pp=2, stage_layers=(5, 5)), "pipeline.stage_layers: expected 12 layers"),
        (Pipeline(pp=13), "pipeline.pp: 13 stages"),
        (Pipeline(pp=4, vpp=2), "pipeline.vpp: pp x vpp = 8 does not divide the 12 layers"),
    ],
)
def test_stages_that_do_not_suit_the_profile_are_refused(
    pipeline: Pipeline, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        StageCosts(PROFILE, pipeline)


def test_sending_needs_the_hidden_size() -> None:
    unknown = dataclasses.replace(PROFILE, hidden=0)
    with pytest.raises(InputError, match=r"profile\.hidden"):
        StageCosts(unknown, Pipeline(pp=2, send_bytes_per_s=1.0))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"pp": 0}, r"pipeline\.pp"),
        ({"pp": 1.5}, r"pipeline\.pp"),
        ({"pp": 2, "vpp": 0}, r"pipeline\.vpp"),
        ({"pp": 1, "vpp": 2}, r"pipeline\.vpp"),
        ({"pp": 2, "vpp": 2, "stage_layers": (4, 8)}, r"pipeline\.vpp"),
        ({"pp": 2, "stage_layers": (4,)}, r"pipeline\.stage_layers"),
        ({"pp": 2, "stage_layers": (12, 0)}, r"pipeline\.stage_layers\[1\]"),
        ({"pp": 2, "output_layers": math.nan}, r"pipeline\.output_layers"),
        ({"pp": 2, "output_layers": -1.0}, r"pipeline\.output_layers"),
        ({"pp": 2, "send_bytes_per_s": 0.0}, r"pipeline\.send_bytes_per_s"),
        ({"pp": 2, "send_bytes_per_s": math.inf}, r"pipeline\.send_bytes_per_s"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused_by_field(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        Pipeline(**fields)


def test_a_profile_without_layers_has_equal_stages() -> None:
    unknown = dataclasses.replace(PROFILE, num_layers=0)
    assert StageCosts(unknown, Pipeline(pp=3)).layer_shares == pytest.approx((1 / 3,) * 3)
