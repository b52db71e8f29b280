from collections.abc import Callable

import pytest

from trimtab.core.staged import MicroBatch, StagedLayout, StageVisit
from trimtab.planners.staged.staged_check import checked_step_s
from trimtab.planners.staged.staged_schedule import Tables, draft_of, micro_batches, simulate

Case = Callable[..., StagedLayout]


def test_one_micro_batch_goes_through_both_stages_and_back(staged_case: Case) -> None:
    # 10 tokens, degree 1: 3 + 0.02 * 100 + 10 = 15 s a stage, 5 forward and 10 backward; a
    # message takes 0.5 + 10 / 1000 s: 5 + 0.51 + 5 + 10 + 0.51 + 10
    staged = staged_case()
    step_s, _ = simulate(draft_of([(1, (0, 1), [0])], [10]), Tables(staged))
    assert step_s == pytest.approx(31.02)


def test_the_step_ends_with_the_last_stage_to_close(staged_case: Case) -> None:
    staged = staged_case(closing_s=7.0)
    step_s, _ = simulate(draft_of([(1, (0, 1), [0])], [10]), Tables(staged))
    assert step_s == pytest.approx(38.02)


def test_a_wider_group_computes_faster(staged_case: Case) -> None:
    # degree 2: 3 + (2 + 1.1 * 10) / 2 = 9.5 s a stage
    step_s, _ = simulate(draft_of([(2, (0, 1), [0])], [10]), Tables(staged_case()))
    assert step_s == pytest.approx(2 * 9.5 + 1.02)


def test_ranks_work_side_by_side_and_one_after_the_other(staged_case: Case) -> None:
    tables = Tables(staged_case([(0, 2, 1.0)]))
    two, _ = simulate(draft_of([(1, (0,), [0]), (1, (0,), [1])], [10, 10]), tables)
    three, _ = simulate(draft_of([(1, (0,), [i]) for i in range(3)], [10] * 3), tables)
    assert [two, three] == pytest.approx([15.0, 30.0])


def test_a_forward_waits_for_memory(staged_case: Case) -> None:
    # one rank a stage that holds 15 tokens: the second forward waits for the first backward
    tables = Tables(staged_case([(0, 1, 1.0), (1, 1, 1.0)], token_cap=15))
    draft = draft_of([(1, (0, 1), [0]), (1, (0, 1), [1])], [10, 10])
    step_s, times = simulate(draft, tables)
    assert times.forward_start_s[2] == pytest.approx(31.02)
    assert step_s == pytest.approx(2 * 31.02)


def test_a_micro_batch_that_fits_no_memory_never_ends(staged_case: Case) -> None:
    tables = Tables(staged_case(token_cap=5))
    assert simulate(draft_of([(1, (0, 1), [0])], [10]), tables)[0] == float("inf")


def test_messages_queue_for_their_channel(staged_case: Case) -> None:
    # 1 byte a second: the two forwards end together at 5 s, their messages of 10 bytes keep
    # the channel for 10 s each, so the second is there 0.5 + 10 s after 15 s
    tables = Tables(staged_case(bytes_per_s=1.0))
    _, times = simulate(draft_of([(1, (0, 1), [0]), (1, (0, 1), [1])], [10, 10]), tables)
    assert times.forward_start_s[1] == pytest.approx(15.5)
    assert times.forward_start_s[3] == pytest.approx(25.5)


def test_a_wide_group_keeps_its_block_from_ones_that_end_later(staged_case: Case) -> None:
    # ranks 0 and 1 are busy for 5 and 10 s of forward; the group of 2 comes next, and the
    # narrow one, 5 s of forward, may begin on rank 0 at 5 s as it ends when rank 1 does
    tables = Tables(staged_case([(0, 2, 1.0), (1, 4, 1.0)]))
    lengths = [10, 22, 10, 10]
    groups = [(1, (0, 1), [0]), (1, (0, 1), [1]), (2, (0, 1), [2]), (1, (0, 1), [3])]
    _, times = simulate(draft_of(groups, lengths), tables)
    long_s = (3 + 0.02 * 22**2 + 22) / 3
    assert times.forward_start_s[6] == pytest.approx(5.0)
    assert times.forward_start_s[4] >= long_s - 1e-9


def test_the_checker_finds_the_simulated_step(staged_case: Case) -> None:
    staged = staged_case([(0, 2, 1.0), (1, 2, 2.0)], closing_s=1.0)
    lengths = [30, 20, 10, 5, 5]
    groups = [(2, (0, 1), [0]), (1, (0, 1), [1, 3]), (1, (0, 1), [2, 4])]
    draft = draft_of(groups, lengths)
    step_s, times = simulate(draft, Tables(staged))
    plan = micro_batches(draft, times)
    assert checked_step_s(plan, lengths, staged=staged) == pytest.approx(step_s)


@pytest.mark.parametrize(
    ("visits", "rule"),
    [
        ([(0, 0, 0.0, 26.02), (1, 0, 5.51, 10.51)], "in order"),
        ([(0, 0, 0.0, 21.02), (1, 0, 5.3, 10.51)], "a message before it is used"),
        ([(0, 0, 0.0, 21.02)], "first and last stage"),
        ([(0, 2, 0.0, 21.02), (1, 0, 5.51, 10.51)], "ranks of the replica"),
    ],
)
def test_the_checker_names_the_broken_rule(
    visits: list[tuple[int, int, float, float]], rule: str, staged_case: Case
) -> None:
    if rule == "in order":
        visits = [(0, 0, 0.0, 20.0), (1, 0, 5.51, 10.51)]
    one = MicroBatch(
        degree=1,
        sequences=(0,),
        visits=tuple(
            StageVisit(replica=v, first_rank=r, forward_start_s=f, backward_start_s=b)
            for v, r, f, b in visits
        ),
    )
    with pytest.raises(AssertionError, match=rule):
        checked_step_s([one], [10], staged=staged_case())


def test_the_checker_misses_no_sequence(staged_case: Case) -> None:
    staged = staged_case()
    draft = draft_of([(1, (0, 1), [0])], [10])
    plan = micro_batches(draft, simulate(draft, Tables(staged))[1])
    with pytest.raises(AssertionError, match="every sequence once"):
        checked_step_s(plan, [10, 10], staged=staged)
