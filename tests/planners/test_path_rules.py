import pytest
from path_cases import schedule_of, small_instance

from trimtab.core.errors import InputError
from trimtab.core.stage_paths import StageOrder
from trimtab.planners.paths.path_rules import broken_rules, num_swaps, refuse_broken

STAGES = [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ((0, 1, 2, 3), None),
        ((0, 2, 1, 3), None),
        ((0, 4, 8), None),
        ((0, 5), "advances 5 stages at once, not 4"),
        ((0, 3, 1), "swaps over 2 stages, not 1"),
        ((0, 2, 1, 4, 3, 6, 5), "has 3 swaps, not 2"),
        ((0, 1, 1), "visits a stage twice"),
        ((0, 1, 0), "visits a stage twice"),
    ],
)
def test_the_published_order_of_stages(stages: tuple[int, ...], problem: str | None) -> None:
    assert StageOrder().problem(stages) == problem


def test_swaps_are_limited_in_all_too() -> None:
    order = StageOrder(max_swap_total_distance=1)
    assert order.problem((0, 2, 1, 4, 3)) == "swaps over 2 stages in all, not 1"


def _broken(instance: object, paths: list[tuple[int, ...]]) -> list[str]:
    schedule = schedule_of(instance, STAGES, paths)  # type: ignore[arg-type]
    return [one.rule for one in broken_rules(instance, schedule)]  # type: ignore[arg-type]


def test_half_of_the_stages_may_be_skipped_and_no_more() -> None:
    half = small_instance(partition_sizes=(1, 1, 1, 1), path_len=2, paths_per_origin=3)
    assert _broken(half, [(0, 1), (0, 2), (0, 3)]) == []
    most = small_instance(partition_sizes=(1, 1, 1, 1), path_len=1, paths_per_origin=3)
    assert _broken(most, [(0,), (0,), (0,)]) == ["skips"]


def test_all_stages_are_used_equally() -> None:
    instance = small_instance(partition_sizes=(1, 1, 1, 1), path_len=2, paths_per_origin=3)
    assert _broken(instance, [(0, 1), (0, 1), (0, 3)]) == ["equal-use"]


def test_swaps_beyond_the_published_ones_are_broken() -> None:
    instance = small_instance(
        partition_sizes=(1, 1, 1, 1), path_len=3, paths_per_origin=3,
        order=StageOrder(max_swap_distance=2),
    )  # fmt: skip
    assert _broken(instance, [(0, 3, 1), (0, 1, 2), (0, 2, 3)]) == ["swaps"]


def test_broken_rules_pass_only_where_they_are_allowed() -> None:
    instance = small_instance(partition_sizes=(1, 1, 1, 1), path_len=1, paths_per_origin=3)
    schedule = schedule_of(instance, STAGES, [(0,)] * 3)
    broken = broken_rules(instance, schedule)
    refuse_broken(broken, allowed=("skips",))
    with pytest.raises(InputError, match=r"75% of the stages .* --allow skips"):
        refuse_broken(broken, allowed=("swaps",))


def test_swaps_are_counted() -> None:
    instance = small_instance(partition_sizes=(1, 1, 1, 1), path_len=3, paths_per_origin=2)
    schedule = schedule_of(instance, STAGES, [(0, 2, 1), (0, 1, 3)])
    assert num_swaps(schedule) == 1
