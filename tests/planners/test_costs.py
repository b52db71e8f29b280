from collections.abc import Callable

import pytest

from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import StepProfile
from trimtab.planners.costs import (
    LayoutCosts,
    StepWork,
    analytic_profile,
    group_degrees,
    group_s,
    step_parts,
)
from trimtab.planners.placement import machine

GptMaker = Callable[..., ModelSpec]
ClusterMaker = Callable[..., ClusterSpec]


def test_a_group_of_one_pays_no_all_to_all(small_profile: StepProfile) -> None:
    assert group_s([10, 20], 1, profile=small_profile) == pytest.approx(5 + 5.0 + 3.0)


def test_a_wider_group_shares_work_and_pays_all_to_all(small_profile: StepProfile) -> None:
    expected = 5 + (5.0 + 3.0 + 30 / 20) / 2
    assert group_s([10, 20], 2, profile=small_profile) == pytest.approx(expected)


def test_an_empty_group_costs_the_fixed_time(small_profile: StepProfile) -> None:
    assert group_s([], 4, profile=small_profile) == 5.0


def test_a_degree_outside_the_profile_is_refused(small_profile: StepProfile) -> None:
    with pytest.raises(InfeasibleError, match="degree 3 is not in the profile"):
        group_s([10], 3, profile=small_profile)


def test_analytic_coefficients_come_near_those_measured_on_a100(
    gpt: GptMaker, a100s: ClusterMaker, flexsp_7b: StepProfile
) -> None:
    """Within a node; its NICs differ from FlexSP's."""
    model = gpt(num_layers=32, hidden=4096, num_heads=32)
    layout = Layout(dp=64, zero=3)
    profile = analytic_profile(model, a100s(num_nodes=8), layout, precision="bf16")
    assert profile.linear_s == pytest.approx(flexsp_7b.linear_s, rel=0.1)
    assert profile.quadratic_s == pytest.approx(flexsp_7b.quadratic_s, rel=0.1)
    assert profile.alltoall_bytes_per_token == pytest.approx(2 * 2**20)
    assert profile.bytes_per_s(8) == pytest.approx(flexsp_7b.bytes_per_s(8), rel=0.1)
    assert profile.evidence == "analytic"


def test_group_degrees_split_heads_and_ranks(gpt: GptMaker) -> None:
    model = gpt(num_layers=2, hidden=96, num_heads=12)
    assert group_degrees(model, Layout(dp=12)) == (1, 2, 3, 4, 6, 12)
    assert group_degrees(model, Layout(dp=4, tp=2)) == (1, 2)
    assert group_degrees(model, Layout(dp=3)) == (1, 3)


def test_the_token_cap_falls_as_the_model_states_grow(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=32, hidden=4096, num_heads=32)
    caps = [
        analytic_profile(
            model, a100s(num_nodes=8), Layout(dp=64, zero=zero), precision="bf16"
        ).token_cap
        for zero in (3, 2, 1)
    ]
    assert caps == sorted(caps, reverse=True)
    assert len(set(caps)) == 3


def test_states_that_fill_the_memory_leave_no_token(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=96, hidden=12_288, num_heads=96)
    with pytest.raises(
        InfeasibleError, match=r"dp8 needs 1\.2 TiB per GPU .* has 80\.0 GiB, .* short by 1\.1"
    ):
        analytic_profile(model, a100s(), Layout(dp=8), precision="bf16")


def test_a_device_of_unknown_peak_asks_for_calibration(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=2, hidden=64, num_heads=4)
    with pytest.raises(InputError, match=r"has no bf16 peak.*run `trimtab calibrate`"):
        analytic_profile(model, a100s(peak=None), Layout(dp=8), precision="bf16")


def uniform_costs(model: ModelSpec, cluster: ClusterSpec, layout: Layout) -> LayoutCosts:
    used = machine(cluster, layout.num_ranks, precision="bf16")
    return LayoutCosts(model=model, layout=layout, used=used, precision="bf16")


def seconds(costs: LayoutCosts, work: StepWork) -> dict[str, float]:
    return {part.name: part.seconds for part in step_parts(costs, work=work)}


def test_one_stage_has_no_bubble_and_more_micro_batches_shrink_it(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    cluster = a100s(num_nodes=2)
    few = StepWork(num_micro_batches=4, squares=1e8, degree_tokens=((1, 1e5),))
    many = StepWork(num_micro_batches=16, squares=1e8, degree_tokens=((1, 1e5),))
    one_stage = seconds(uniform_costs(model, cluster, Layout(dp=16)), few)
    assert one_stage["pipeline bubble"] == one_stage["pp communication"] == 0
    costs = uniform_costs(model, cluster, Layout(pp=4, dp=4))
    assert seconds(costs, few)["pipeline bubble"] > 3 * seconds(costs, many)["pipeline bubble"]


def test_full_recompute_costs_a_third_more_compute(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    work = StepWork(num_micro_batches=1, squares=1e8, degree_tokens=((1, 1e5),))
    none, full = (
        seconds(uniform_costs(model, a100s(), Layout(dp=8, recompute=recompute)), work)
        for recompute in ("none", "full")
    )
    assert full["compute"] == pytest.approx(none["compute"] * 4 / 3)
    assert full["attention"] == pytest.approx(none["attention"] * 4 / 3)


def test_compute_is_the_flops_over_the_rate(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    work = StepWork(num_micro_batches=1, squares=0.0, degree_tokens=((1, 1000.0),))
    parts = seconds(uniform_costs(model, a100s(), Layout(dp=8)), work)
    expected = 6 * model.matmul_parameters * 1000 / (0.65 * 312e12)
    assert parts["compute"] == pytest.approx(expected, rel=2e-3)  # biases are not multiplied
    assert parts["attention"] == 0


def test_zero_3_gathers_weights_for_every_micro_batch(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    one, three = (
        uniform_costs(model, a100s(num_nodes=2), Layout(dp=16, zero=zero)) for zero in (1, 3)
    )
    assert three.gather_s(4) == pytest.approx(8 * one.gather_s(4))
    assert three.reduction_s(4) == pytest.approx(4 * one.reduction_s(4))
    unsharded = uniform_costs(model, a100s(num_nodes=2), Layout(dp=16, zero=0))
    assert unsharded.gather_s(4) == 0
    assert unsharded.reduction_s(4) == pytest.approx(2 * one.reduction_s(4))
