from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec, MoeSpec
from trimtab.core.plan import JobPlan, Layout
from trimtab.planners.layouts import plan_job

GptMaker = Callable[..., ModelSpec]
ClusterMaker = Callable[..., ClusterSpec]


def planned(
    model: ModelSpec,
    cluster: ClusterSpec,
    *,
    num_ranks: int,
    lengths: tuple[int, ...] = (2048,) * 128,
    token_cap: int | None = None,
    fixed: Layout | Mapping[str, int | str] | None = None,
) -> JobPlan:
    return plan_job(
        model,
        cluster,
        num_ranks=num_ranks,
        batch=BatchProfile(lengths=lengths),
        precision="bf16",
        token_cap=token_cap,
        fixed=fixed,
    )


@pytest.fixture(scope="session")
def gpt_7b(gpt: GptMaker) -> ModelSpec:
    made: ModelSpec = gpt(num_layers=32, hidden=4096, num_heads=32)
    return made


def check_job_plan(plan: JobPlan, *, num_ranks: int) -> None:
    candidates = [(plan.layout, plan.forecast)]
    candidates += [(other.layout, other.forecast) for other in plan.alternatives]
    for layout, forecast in candidates:
        assert layout.num_ranks == num_ranks
        assert forecast.step_s == sum(part.seconds for part in forecast.parts)
        assert forecast.verdict != "oom"
        assert len(forecast.memory) == layout.pp
        assert forecast.mfu is not None
        assert 0 < forecast.mfu < 1
    assert len(plan.placement.rank_nodes) == num_ranks
    assert len(plan.placement.stage_layers) == plan.layout.pp
    assert len(plan.alternatives) <= 5
    assert len(plan.rejected) <= 50


def test_a_small_model_uses_data_parallelism_alone(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=24, hidden=1024, num_heads=16)
    plan = planned(model, a100s(), num_ranks=8)
    check_job_plan(plan, num_ranks=8)
    assert (plan.layout.tp, plan.layout.pp, plan.layout.dp) == (1, 1, 8)
    assert plan.forecast.evidence == "default rates"


def test_a_large_model_is_split_within_the_node_and_over_stages(
    gpt3: ModelSpec, a100s: ClusterMaker
) -> None:
    plan = planned(gpt3, a100s(num_nodes=8), num_ranks=64)
    check_job_plan(plan, num_ranks=64)
    assert 1 < plan.layout.tp <= 8
    assert plan.layout.pp > 1
    assert plan.layout.sequence_parallel
    assert plan.rejected
    assert "short by" in plan.rejected[0].reason


def test_alternatives_are_slower_and_differ_in_their_degrees(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    plan = planned(gpt_7b, a100s(num_nodes=2), num_ranks=16)
    times = [plan.forecast.step_s, *(other.forecast.step_s for other in plan.alternatives)]
    assert times == sorted(times)
    names = [str(plan.layout), *(str(other.layout) for other in plan.alternatives)]
    assert len(plan.alternatives) == 5
    assert len({name.split(" vpp")[0] for name in names}) == 6


def test_pinned_degrees_are_kept(gpt_7b: ModelSpec, a100s: ClusterMaker) -> None:
    fixed = {"tp": 4, "pp": 2, "dp": 2, "zero": 1, "micro_batch_seqs": 2}
    plan = planned(gpt_7b, a100s(num_nodes=2), num_ranks=16, fixed=fixed)
    assert {name: getattr(plan.layout, name) for name in fixed} == fixed
    assert plan.alternatives == ()


def test_layers_that_do_not_divide_are_spread(gpt: GptMaker, a100s: ClusterMaker) -> None:
    model = gpt(num_layers=30, hidden=2048, num_heads=16)
    plan = planned(model, a100s(), num_ranks=8, fixed={"pp": 4})
    assert plan.placement.stage_layers in ((7, 8, 8, 7), (8, 8, 8, 6))


def test_a_large_output_matrix_relieves_the_last_stage(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = replace(gpt(num_layers=32, hidden=2048, num_heads=16), vocab=250_000)
    relieved = planned(model, a100s(), num_ranks=8, fixed={"pp": 4})
    layers = relieved.placement.stage_layers
    assert sum(layers) == 32
    assert layers[-1] < min(layers[:-1])
    even = replace(relieved.layout, stage_layers=(8, 8, 8, 8))
    given = planned(model, a100s(), num_ranks=8, fixed=even)
    assert relieved.forecast.step_s < given.forecast.step_s


def test_weight_gradients_fill_the_bubble(gpt_7b: ModelSpec, a100s: ClusterMaker) -> None:
    degrees: dict[str, int | str] = {
        "pp": 4,
        "tp": 2,
        "micro_batch_seqs": 1,
        "vpp": 1,
        "recompute": "full",
    }
    plans = {
        schedule: planned(gpt_7b, a100s(), num_ranks=8, fixed={**degrees, "schedule": schedule})
        for schedule in ("1f1b", "zb-h1", "zb-h2", "dualpipe")
    }
    bubbles = {name: plan.forecast.bubble_fraction for name, plan in plans.items()}
    assert bubbles["zb-h2"] < bubbles["zb-h1"] < bubbles["1f1b"]
    assert bubbles["dualpipe"] < bubbles["1f1b"]
    held = {name: plan.forecast.memory[0].activations_bytes for name, plan in plans.items()}
    assert held["zb-h1"] == held["1f1b"] < held["zb-h2"]
    weights = {name: plan.forecast.memory[0].weights_bytes for name, plan in plans.items()}
    assert weights["dualpipe"] > 1.9 * weights["1f1b"]


def test_layouts_with_too_few_micro_batches_for_the_schedule_are_left_out(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    plan = planned(
        gpt_7b,
        a100s(),
        num_ranks=8,
        lengths=(2048,) * 16,
        fixed={"schedule": "dualpipe", "pp": 2},
    )
    layouts = [plan.layout, *(other.layout for other in plan.alternatives)]
    assert all(16 // (each.dp * each.micro_batch_seqs) >= 4 for each in layouts)
    few: dict[str, int | str] = {
        "schedule": "dualpipe", "pp": 2, "dp": 4, "micro_batch_seqs": 2,
    }  # fmt: skip
    with pytest.raises(InputError, match="schedule: dualpipe needs at least 2 pp = 4"):
        planned(gpt_7b, a100s(), num_ranks=8, lengths=(2048,) * 16, fixed=few)


def test_an_offloaded_optimizer_takes_time_instead_of_memory(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    layout = Layout(dp=8, recompute="full")
    kept = planned(gpt_7b, a100s(), num_ranks=8, fixed=layout)
    offloaded = planned(
        gpt_7b, a100s(), num_ranks=8, fixed=replace(layout, offload="optimizer")
    )
    assert offloaded.forecast.memory[0].optimizer_bytes == 0
    assert offloaded.forecast.memory[0].total_bytes < kept.forecast.memory[0].total_bytes
    assert offloaded.forecast.step_s > kept.forecast.step_s


def test_experts_are_spread_when_the_model_has_them(gpt: GptMaker, a100s: ClusterMaker) -> None:
    moe = MoeSpec(num_experts=8, experts_per_token=2, expert_ffn_hidden=14_336)
    model = replace(gpt(num_layers=32, hidden=4096, num_heads=32), moe=moe)
    plan = planned(model, a100s(num_nodes=4), num_ranks=32)
    check_job_plan(plan, num_ranks=32)
    assert plan.layout.ep > 1


def test_varied_lengths_go_into_waves(gpt_7b: ModelSpec, a100s: ClusterMaker) -> None:
    lengths = (60_000, 30_000, *(500 + 7 * i for i in range(300)))
    plan = planned(gpt_7b, a100s(num_nodes=4), num_ranks=32, lengths=lengths)
    check_job_plan(plan, num_ranks=32)
    assert plan.layout.cp == 1
    assert plan.forecast.num_tokens == sum(lengths)


def test_a_thousand_gpus_are_planned_with_few_rejections(
    gpt3: ModelSpec, a100s: ClusterMaker
) -> None:
    lengths = (2048,) * 1536
    plan = planned(gpt3, a100s(num_nodes=128), num_ranks=1024, lengths=lengths)
    check_job_plan(plan, num_ranks=1024)


def test_a_model_too_large_says_what_is_short_and_what_is_enough(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=96, hidden=12_288, num_heads=96)
    with pytest.raises(InfeasibleError) as caught:
        planned(model, a100s(), num_ranks=8)
    message = str(caught.value)
    assert message.startswith("memory: gpt needs ")
    assert "per GPU at tp" in message
    assert "the A100 has 80.0 GiB: short by " in message
    assert "use at least " in message
    enough = int(message.split("use at least ")[1].split()[0])
    bigger = planned(model, a100s(num_nodes=enough // 8), num_ranks=enough)
    check_job_plan(bigger, num_ranks=enough)


def test_a_batch_that_does_not_divide_gets_the_nearest_that_do(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    with pytest.raises(
        InputError,
        match="dp 8 x micro_batch_seqs 1 does not divide 100 sequences; "
        "the nearest that fit are 96, 104",
    ):
        planned(
            gpt_7b,
            a100s(num_nodes=2),
            num_ranks=16,
            lengths=(2048,) * 100,
            fixed={"dp": 8, "micro_batch_seqs": 1},
        )


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"tq": 2}, "layout: unknown field 'tq'"),
        ({"schedule": "gpipe"}, r"layout\.schedule: unknown value 'gpipe'"),
        ({"schedule": "zb-h1", "vpp": 2, "pp": 2}, r"layout\.vpp: only the schedule 1f1b"),
        ({"tp": 0}, r"layout\.tp: expected a whole number >= 1, got 0"),
        ({"tp": 3}, r"layout\.tp: 3 does not divide num_ranks = 16"),
        ({"tp": 16}, r"layout\.tp: 16 does not divide num_heads = 40"),
        ({"tp": 2, "dp": 16}, "layout: no layout of num_ranks = 16 has tp 2, dp 16"),
        ({"ep": 2}, r"layout\.ep: the model 'gpt' has no experts, got 2"),
        ({"pp": 16}, r"layout\.pp: 16 stages are more than the model's 4 layers"),
        ({"vpp": 2, "pp": 1}, "layout: no layout of num_ranks = 16 has vpp 2, pp 1"),
    ],
)
def test_pins_that_cannot_be_are_refused(
    gpt: GptMaker, a100s: ClusterMaker, fixed: dict[str, int], message: str
) -> None:
    model = gpt(num_layers=4, hidden=5120, num_heads=40)
    with pytest.raises(InputError, match=message):
        planned(model, a100s(num_nodes=2), num_ranks=16, fixed=fixed)


def test_a_whole_layout_is_forecast_as_it_stands(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    full = Layout(tp=8, recompute="full", zero=0)
    plan = planned(gpt_7b, a100s(), num_ranks=8, fixed=full)
    assert plan.layout == full
    assert plan.reason.startswith("the layout given")
    none = planned(gpt_7b, a100s(), num_ranks=8, fixed=replace(full, recompute="none"))
    parallel = planned(
        gpt_7b, a100s(), num_ranks=8, fixed=replace(full, sequence_parallel=True)
    )
    kept = [p.forecast.memory[0].activations_bytes for p in (none, plan, parallel)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3


def test_a_whole_layout_that_does_not_fit_is_refused_though_another_would(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    layout = Layout(tp=2, dp=4, micro_batch_seqs=16)
    message = r"with none recompute .* short by [\d.]+ GiB; it fits with layout.recompute"
    with pytest.raises(InfeasibleError, match=message):
        planned(gpt_7b, a100s(), num_ranks=8, fixed=layout)
    cluster = a100s(memory_bytes=48 * 2**30)
    with pytest.raises(InfeasibleError, match="another layout fits on these GPUs"):
        planned(gpt_7b, cluster, num_ranks=8, fixed=Layout(dp=8, zero=0))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(dp=4), "layout: tp1 pp1 dp4 uses 4 ranks, but num_ranks = 8"),
        (Layout(tp=8), r"layout\.tp: 8 does not divide num_heads = 12"),
        (Layout(dp=8, ep=2), r"layout\.ep: the model 'gpt' has no experts, got 2"),
        (Layout(dp=4, pp=2, vpp=3), r"layout\.vpp: 3 chunks a stage need"),
        (Layout(dp=8, micro_batch_seqs=3), "dp 8 x micro_batch_seqs 3 does not divide 128"),
    ],
)
def test_a_whole_layout_that_cannot_be_is_refused(
    gpt: GptMaker, a100s: ClusterMaker, layout: Layout, message: str
) -> None:
    model = gpt(num_layers=4, hidden=1536, num_heads=12)
    with pytest.raises(InputError, match=message):
        planned(model, a100s(), num_ranks=8, fixed=layout)


def test_experts_are_spread_over_a_divisor_of_the_data_ranks(a100s: ClusterMaker) -> None:
    model = ModelSpec(
        name="experts",
        num_layers=4,
        hidden=512,
        ffn_hidden=1024,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        vocab=1024,
        max_seq_tokens=2048,
        moe=MoeSpec(num_experts=8, experts_per_token=2, expert_ffn_hidden=1024),
    )
    plan = planned(model, a100s(num_nodes=3), num_ranks=24, fixed={"tp": 2})
    for layout in (plan.layout, *(other.layout for other in plan.alternatives)):
        assert layout.group_ranks % layout.ep == 0
    with pytest.raises(InputError, match="no layout of num_ranks = 24 has tp 2, ep 8"):
        planned(model, a100s(num_nodes=3), num_ranks=24, fixed={"tp": 2, "ep": 8})


def test_a_device_of_unknown_peak_asks_for_calibration(
    gpt: GptMaker, a100s: ClusterMaker
) -> None:
    model = gpt(num_layers=2, hidden=64, num_heads=4)
    for lengths in ((64,) * 8, (64, 32, 16)):
        with pytest.raises(InputError, match="run `trimtab calibrate`"):
            planned(model, a100s(peak=None), num_ranks=8, lengths=lengths)
    capped = Layout(dp=8)
    with pytest.raises(InputError, match="run `trimtab calibrate`"):
        planned(model, a100s(peak=None), num_ranks=8, token_cap=10, fixed=capped)


def test_a_sequence_longer_than_any_group_is_refused(
    gpt_7b: ModelSpec, a100s: ClusterMaker
) -> None:
    with pytest.raises(InputError, match="the longest sequence, 9000 tokens, fits in no group"):
        planned(gpt_7b, a100s(), num_ranks=8, lengths=(9000, 10), token_cap=1000)


@settings(deadline=None, max_examples=25)
@given(
    num_nodes=st.sampled_from([1, 2, 3, 6]),
    num_layers=st.integers(min_value=1, max_value=40),
    heads=st.sampled_from([4, 6, 8, 16]),
    lengths=st.one_of(
        st.lists(st.integers(min_value=1, max_value=4000), min_size=1, max_size=50),
        st.builds(lambda n, s: [s] * n, st.integers(1, 64), st.integers(1, 4096)),
    ),
)
def test_any_small_job_is_planned_or_its_batch_does_not_divide(
    gpt: GptMaker,
    a100s: ClusterMaker,
    num_nodes: int,
    num_layers: int,
    heads: int,
    lengths: list[int],
) -> None:
    model = gpt(num_layers=num_layers, hidden=128 * heads, num_heads=heads)
    num_ranks = 8 * num_nodes
    try:
        plan = planned(
            model, a100s(num_nodes=num_nodes), num_ranks=num_ranks, lengths=tuple(lengths)
        )
    except InputError:
        equal = len(set(lengths)) == 1
        event(f"refused, equal lengths: {equal}")
        assert equal
    else:
        check_job_plan(plan, num_ranks=num_ranks)
