from collections.abc import Callable

import pytest

from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import StepProfile
from trimtab.core.rates import Rates
from trimtab.planners.costs import (
    StepWork,
    analytic_profile,
    group_s,
    price,
    step_s,
    work_counts,
)
from trimtab.planners.exchanges import group_degrees
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


RATES = Rates()


def parts(
    model: ModelSpec,
    cluster: ClusterSpec,
    layout: Layout,
    *,
    micro: int = 1,
    tokens: float = 1e5,
    squares: float = 1e8,
    rates: Rates = RATES,
) -> dict[str, float]:
    used = machine(cluster, layout.num_ranks, precision="bf16")
    work = StepWork(num_micro_batches=micro, squares=squares, degree_tokens=((1, tokens),))
    counts = work_counts(model, layout, used, precision="bf16", work=work)
    return {name: float(seconds) for name, seconds in price(counts, rates).items()}


def test_one_stage_has_no_bubble_and_more_micro_batches_shrink_it(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    cluster = a100s(num_nodes=2)
    one_stage = parts(model, cluster, Layout(dp=16), micro=4)
    assert one_stage["pipeline bubble"] == one_stage["pp communication"] == 0
    four = Layout(pp=4, dp=4)
    few, many = (parts(model, cluster, four, micro=micro) for micro in (4, 16))
    assert few["pipeline bubble"] > 3 * many["pipeline bubble"]


def test_chunks_divide_the_bubble(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    one, two = (
        parts(model, a100s(num_nodes=2), Layout(pp=4, dp=4, vpp=vpp), micro=4) for vpp in (1, 2)
    )
    assert two["pipeline bubble"] == pytest.approx(one["pipeline bubble"] / 2)


def test_full_recompute_costs_a_third_more_products(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    none, full = (
        parts(model, a100s(), Layout(dp=8, recompute=recompute))
        for recompute in ("none", "full")
    )
    for name in ("matrix products", "attention", "norms and activations"):
        assert full[name] == pytest.approx(none[name] * 4 / 3)


def test_large_products_take_their_flops_over_the_rate(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=8, hidden=16_384, num_heads=128)
    found = parts(model, a100s(), Layout(dp=8), tokens=65_536.0, squares=0.0)
    layers = model.matmul_parameters - model.vocab * model.hidden
    expected = 6 * layers * 65_536 / (RATES.matmul_efficiency * 312e12)
    assert found["matrix products"] == pytest.approx(expected, rel=0.03)


def test_attention_that_keeps_scores_is_slower(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    fused, unfused = (
        parts(model, a100s(), Layout(dp=8, fused_attention=is_fused), squares=2e8)["attention"]
        for is_fused in (True, False)
    )
    assert unfused > 2 * fused


def test_launching_kernels_is_hidden_behind_long_ones(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    short = parts(model, a100s(), Layout(dp=8), tokens=128.0, squares=1e4)
    assert sum(short.values()) > 8 * 3 * RATES.launch_s
    assert short["kernel launches"] > short["matrix products"]
    long = parts(model, a100s(), Layout(dp=8), tokens=1e6, squares=1e10)
    assert long["kernel launches"] < 0.01 * long["matrix products"]


def test_zero_3_gathers_weights_for_every_micro_batch(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=8, hidden=8192, num_heads=64)
    one, three = (
        parts(model, a100s(num_nodes=8), Layout(dp=64, zero=zero), micro=64, tokens=6.4e4)
        for zero in (1, 3)
    )
    assert three["dp communication"] > 10 * one["dp communication"]


def test_the_parts_add_up_to_the_step(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    layout = Layout(tp=2, pp=2, dp=4)
    used = machine(a100s(num_nodes=2), 16, precision="bf16")
    work = StepWork(num_micro_batches=8, squares=1e8, degree_tokens=((1, 1e5),))
    counts = work_counts(model, layout, used, precision="bf16", work=work)
    assert sum(price(counts, RATES).values()) == pytest.approx(step_s(counts, RATES))


def test_a_slower_device_takes_longer_in_every_part(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=8)
    layout = Layout(tp=2, pp=2, dp=4)
    slow = Rates(matmul_efficiency=0.3, attention_efficiency=0.1, tp_factor=2.0)
    usual = parts(model, a100s(num_nodes=2), layout, micro=4)
    slower = parts(model, a100s(num_nodes=2), layout, micro=4, rates=slow)
    for name in ("matrix products", "attention", "tp communication", "pipeline bubble"):
        assert slower[name] > usual[name]
