from collections.abc import Callable

import pytest

from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import JobPlan, Layout
from trimtab.core.profile import StepProfile
from trimtab.planners.layouts import plan_job, plan_run
from trimtab.planners.steps.sequences import plan_step, uniform_step

GptMaker = Callable[..., ModelSpec]
ClusterMaker = Callable[..., ClusterSpec]


@pytest.fixture(scope="session")
def tiny(gpt: GptMaker) -> ModelSpec:
    made: ModelSpec = gpt(num_layers=2, hidden=64, num_heads=4)
    return made


def planned(
    model: ModelSpec,
    cluster: ClusterSpec,
    profile: StepProfile,
    *,
    lengths: tuple[int, ...] = (150, 90, 90, 20),
    fixed: Layout | dict[str, int] | None = None,
    token_cap: int | None = None,
) -> JobPlan:
    return plan_job(
        model,
        cluster,
        num_ranks=4,
        batch=BatchProfile(lengths=lengths),
        precision="fp32",
        profile=profile,
        token_cap=token_cap,
        fixed=fixed,
    )


def test_the_forecast_is_the_step_plan(
    tiny: ModelSpec, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    plan = planned(tiny, a100s(peak=None), small_profile)
    step = plan_step([150, 90, 90, 20], profile=small_profile, num_ranks=4, clock=lambda: 0.0)
    assert plan.forecast.step_s == pytest.approx(step.step_s)
    assert plan.forecast.step_s == sum(part.seconds for part in plan.forecast.parts)
    assert (plan.layout.dp, plan.layout.zero, plan.layout.recompute) == (4, 1, "none")
    assert plan.forecast.mfu is None
    assert plan.forecast.evidence == "profile 'round' (published)"


def test_degrees_that_do_not_divide_the_heads_are_left_out(
    gpt: GptMaker, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    model = gpt(num_layers=2, hidden=64, num_heads=2)
    with pytest.raises(InfeasibleError, match="the largest degree, 2, holds 2 x 100"):
        planned(model, a100s(), small_profile, lengths=(300, 20))


def test_a_token_cap_replaces_the_profiles(
    tiny: ModelSpec, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    with pytest.raises(InfeasibleError, match="holds 4 x 30 = 120 tokens"):
        planned(tiny, a100s(), small_profile, token_cap=30)


def test_pinned_data_degrees_are_kept(
    tiny: ModelSpec, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    plan = planned(tiny, a100s(), small_profile, fixed={"dp": 2, "cp": 2, "tp": 1, "pp": 1})
    assert (plan.layout.dp, plan.layout.cp) == (2, 2)
    with pytest.raises(InputError, match="layout: dp 3 x cp 1 is not num_ranks = 4"):
        planned(tiny, a100s(), small_profile, fixed={"dp": 3})


def test_other_degrees_are_not_what_the_profile_describes(
    tiny: ModelSpec, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    with pytest.raises(InputError, match=r"layout\.tp: the profile 'round' describes"):
        planned(tiny, a100s(), small_profile, fixed={"tp": 2})


def test_zero_is_raised_until_the_states_fit(
    gpt: GptMaker, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    model = gpt(num_layers=32, hidden=4096, num_heads=32)
    plan = planned(model, a100s(memory_bytes=48 * 2**30), small_profile)
    assert plan.layout.zero == 2
    large = gpt(num_layers=96, hidden=12_288, num_heads=96)
    with pytest.raises(InfeasibleError, match=r"token_cap of 100 needs .* short by "):
        planned(large, a100s(), small_profile)


def test_a_whole_layout_is_not_traded_for_one_that_fits(
    gpt: GptMaker, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    model = gpt(num_layers=32, hidden=4096, num_heads=32)
    cluster = a100s(memory_bytes=48 * 2**30)
    with pytest.raises(
        InfeasibleError, match=r"none recompute, .* use layout\.recompute full, "
    ):
        planned(model, cluster, small_profile, fixed=Layout(dp=4))
    sharded = Layout(dp=4, zero=2)
    assert planned(model, cluster, small_profile, fixed=sharded).layout == sharded


def test_the_forecast_of_a_run_is_the_step_its_ranks_plan(
    tiny: ModelSpec, a100s: ClusterMaker, small_profile: StepProfile
) -> None:
    lengths = (90, 90, 20)
    step = uniform_step(
        lengths, profile=small_profile, num_ranks=4, degree=4, clock=lambda: 0.0
    )
    layout = Layout(dp=4, recompute="full")
    plan = plan_run(
        tiny,
        a100s(peak=None),
        layout=layout,
        batch=BatchProfile(lengths=lengths),
        step=step,
        profile=small_profile,
        precision="fp32",
    )
    assert plan.layout == layout
    assert plan.forecast.step_s == pytest.approx(step.step_s)
    assert plan.placement.rank_nodes == ("a-0",) * 4
