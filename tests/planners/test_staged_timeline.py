from collections.abc import Callable

import pytest

from trimtab.core.staged import StagedLayout
from trimtab.core.timeline import LaneTimeline
from trimtab.planners.staged.staged_schedule import Tables, draft_of, micro_batches, simulate
from trimtab.planners.staged.staged_timeline import staged_timeline

Case = Callable[..., StagedLayout]


def drawn(
    staged: StagedLayout,
    groups: list[tuple[int, tuple[int, ...], list[int]]],
    lengths: list[int],
) -> LaneTimeline:
    draft = draft_of(groups, lengths)
    _, times = simulate(draft, Tables(staged))
    return staged_timeline(micro_batches(draft, times), lengths, staged=staged)


def test_a_micro_batch_is_drawn_where_and_when_it_runs(staged_case: Case) -> None:
    # 5 s forward, a message of 10 bytes at 20 a second, 0.5 s on its way, and so back: see
    # test_staged_schedule
    found = drawn(staged_case(bytes_per_s=20.0, closing_s=7.0), [(1, (0, 1), [0])], [10])
    spans = sorted(
        (span for span in found.spans if span.kind != "reduce"), key=lambda span: span.start_s
    )
    assert found.lanes[:4] == (
        "stage 0 n0 0", "stage 0 n0 1", "stage 1 n1 0", "stage 1 n1 1",
    )  # fmt: skip
    assert [(found.lanes[span.lane], span.kind) for span in spans] == [
        ("stage 0 n0 0", "forward"),
        ("0 -> 1", "transfer"),
        ("stage 1 n1 0", "forward"),
        ("stage 1 n1 0", "backward"),
        ("1 -> 0", "transfer"),
        ("stage 0 n0 0", "backward"),
    ]
    starts_s = [0.0, 5.0, 6.0, 11.0, 21.0, 22.0]
    ends_s = [5.0, 5.5, 11.0, 21.0, 21.5, 32.0]
    assert [span.start_s for span in spans] == pytest.approx(starts_s)
    assert [span.end_s for span in spans] == pytest.approx(ends_s)
    assert found.end_s == pytest.approx(39.0)


def test_a_group_is_on_all_its_ranks_and_a_skip_on_its_first(staged_case: Case) -> None:
    staged = staged_case(
        [(0, 2, 1.0), (1, 2, 1.0), (2, 2, 1.0)],
        skip_fractions=(0.0, 0.5, 0.0), skip_tolerance=0.1,
    )  # fmt: skip
    found = drawn(staged, [(2, (0, -1, 2), [0])], [10])
    forward = {found.lanes[s.lane] for s in found.spans if s.kind == "forward"}
    assert forward == {f"stage {s} n{s} {r}" for s in (0, 2) for r in (0, 1)}
    (skip,) = (span for span in found.spans if span.kind == "skip")
    assert (found.lanes[skip.lane], skip.label) == ("stage 0 n0 0", "0 skips stage 1")
