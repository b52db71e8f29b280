import pytest

from trimtab.planners.scoring import choice_score, score, spearman


def test_errors_are_relative_to_what_was_measured() -> None:
    found = score([1.0, 2.0, 4.0], [1.1, 2.0, 2.0])
    assert found.mape == pytest.approx((0.1 + 0 + 0.5) / 3)
    assert found.median_error == pytest.approx(0.1)
    assert found.coverage is None
    assert found.spearman is None  # three rows


def test_coverage_counts_the_measured_within_their_intervals() -> None:
    found = score([1.0, 2.0], [1.0, 1.0], intervals=[(0.9, 1.1), (0.9, 1.1)])
    assert found.coverage == 0.5


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 45], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 1, 2, 2], [5, 6, 7, 8], 0.8944),  # ties share their mean rank
        ([1, 1, 1, 1], [1, 2, 3, 4], None),
        ([1, 2, 3], [1, 2, 3], None),
    ],
)
def test_rank_correlation(one: list[float], other: list[float], expected: float | None) -> None:
    found = spearman(one, other)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-4))


def test_a_choice_is_judged_by_what_was_measured() -> None:
    right = {"a": (1.0, 5.0), "b": (2.0, 6.0)}
    wrong = {"a": (1.0, 6.0), "b": (1.5, 5.0)}
    ran_out = {"a": (1.0, 6.0), "b": (None, 5.0)}
    avoided = {"a": (1.0, 6.0), "b": (None, None)}
    found = choice_score([right, wrong, ran_out, avoided])
    assert found.num_groups == 4
    assert found.mean_regret == pytest.approx((0 + 0.5 + 1.0 + 0) / 4)
    assert found.best_chosen == 0.5


def test_a_group_in_which_nothing_ran_counts_for_nothing() -> None:
    assert choice_score([{"a": (None, 1.0)}, {"a": (1.0, 1.0)}]).num_groups == 1
