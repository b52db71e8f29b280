import pytest

from trimtab.core.pipeline import Pipeline
from trimtab.core.profile import StepProfile
from trimtab.planners.pipelines.pipeline_bound import PipelineBound
from trimtab.planners.pipelines.stages import StageCosts

PROFILE = StepProfile(
    name="round", num_gpus=2, gpus_per_node=2, quadratic_s=0.0, linear_s=1.0, fixed_s=2.0,
    alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=10,
)  # fmt: skip


def bound(lengths: list[int], pipeline: Pipeline) -> PipelineBound:
    return PipelineBound(lengths, costs=StageCosts(PROFILE, pipeline), num_ranks=2, degrees=[1])


def test_the_last_stage_works_for_all_and_waits_for_the_shortest() -> None:
    # one wave of 20 tokens a rank fits: 2 s and 24 / 2 tokens, half of it in the last stage;
    # before and after it the shortest micro-batch, 2 + 4 s, passes the first stage
    found = bound([4, 4, 8, 8], Pipeline(pp=2))
    assert found.fill_s == pytest.approx(3.0)
    assert found.waves_s == pytest.approx(7.0 + 3.0)


def test_the_longest_sequence_passes_all_stages() -> None:
    assert bound([18, 1], Pipeline(pp=2)).waves_s == pytest.approx(20.0)


def test_few_large_micro_batches_wait_for_memory() -> None:
    # 36 tokens on two ranks. In one wave, 18 a rank, a stage that holds 20 is kept for
    # (2 x 18 + 18 x 18) / 20 = 18 s; in two for (36 + 162) / 20 = 9.9 s, but they take
    # (4 + 18) / 2 s and the fill of (2 + 6) / 2 s
    found = bound([6] * 6, Pipeline(pp=2))
    assert found.waves_s == pytest.approx(15.0)


def test_interleaving_needs_a_micro_batch_for_every_stage() -> None:
    # two waves of 2 s and 6 tokens a rank in all: (4 + 6) / 2, and half the fill of 4 s / 2
    assert bound([4, 4, 4], Pipeline(pp=2, vpp=2)).waves_s == pytest.approx(5.0 + 1.5)


def test_a_uniform_degree_has_a_bound_of_its_own() -> None:
    found = bound([4, 4, 8, 8], Pipeline(pp=2))
    assert found.uniform_s(1) == pytest.approx(10.0)


def test_out_of_time_the_bound_is_at_least_the_first_one() -> None:
    found = bound([4, 4, 8, 8], Pipeline(pp=2))
    late = found.certified(20.0, [12.0], is_over=lambda: True, is_late=lambda: True)
    assert found.waves_s <= late.waves_s <= 20.0
    more = found.certified(20.0, [12.0], is_over=lambda: False, is_late=lambda: False)
    assert late.waves_s <= more.waves_s <= 20.0
