import dataclasses

import pytest

from trimtab.core.pipeline import Pipeline
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.planners.pipelines.micro_batches import MicroBatches
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.steps.sequences import plan_step

TINY = StepProfile(
    name="tiny", num_gpus=4, gpus_per_node=4, quadratic_s=0.01, linear_s=0.1, fixed_s=1.0,
    alltoall_bytes_per_token=1.0, bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=20.0),),
    token_cap=100,
)  # fmt: skip
LENGTHS = [90, 60, 60, 40, 30, 20, 10, 10, 5, 5, 5, 5]


def micro_batches(pipeline: Pipeline) -> MicroBatches:
    return MicroBatches(LENGTHS, costs=StageCosts(TINY, pipeline), num_ranks=4)


@pytest.mark.parametrize("pipeline", [Pipeline(pp=3), Pipeline(pp=3, vpp=2)])
def test_plans_of_many_sizes_hold_every_sequence_once(pipeline: Pipeline) -> None:
    plans = [*micro_batches(pipeline).of_degrees([1, 2])]
    sizes = {plan.num_waves for plan in plans}
    assert all(size % 3 == 0 for size in sizes) if pipeline.vpp > 1 else len(sizes) > 1
    for plan in plans:
        groups = [group for wave in plan.packing for group in wave]
        counts = [0] * len(plan.batch_costs.sizes)
        for group in groups:
            assert group.tokens <= group.degree * plan.batch_costs.token_cap
            for size, count in group.parts:
                counts[size] += count
        assert tuple(counts) == plan.batch_costs.counts


def test_a_finished_plan_takes_what_its_search_said() -> None:
    made = micro_batches(Pipeline(pp=3))
    for plan in made.of_degrees([1, 2]):
        before_s = plan.step_s
        plan.improve(trials=30)
        plan.improve_order(trials=10)
        assert plan.step_s <= before_s
        assert made.finished(plan, method="search").step_s <= plan.step_s * (1 + 1e-9)


def test_balanced_groups_are_of_one_degree_in_whole_rounds() -> None:
    found = micro_batches(Pipeline(pp=3, vpp=2)).balanced(2)
    assert found is not None
    assert len(found.waves) % 3 == 0
    assert {group.degree for wave in found.waves for group in wave.groups} == {2}


def test_the_waves_of_one_stage_take_as_long_over_all_stages_together() -> None:
    plan = plan_step(LENGTHS, profile=TINY, num_ranks=4, clock=lambda: 0.0)
    found = micro_batches(Pipeline(pp=3)).candidate(plan.waves, method="heuristic")
    seconds = [sum(each.forward_s) + sum(each.backward_s) for each in found.times]
    assert sum(seconds) == pytest.approx(plan.step_s)
    assert sorted(found.order) == list(range(len(plan.waves)))
    assert plan.step_s / 3 < found.step_s <= plan.step_s


def test_small_batches_are_not_packed_for_more_tokens_than_they_have() -> None:
    roomy = dataclasses.replace(TINY, token_cap=10_000)
    made = MicroBatches([5, 4, 3], costs=StageCosts(roomy, Pipeline(pp=4)), num_ranks=4)
    caps = {plan.batch_costs.token_cap for plan in made.of_degrees([1])}
    # the longest alone, or with an even share of the 12 tokens on 4 ranks; not 10,000
    assert caps == {5, 8}
