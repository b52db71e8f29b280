import itertools
import random

import pytest
from path_cases import arrangement, case, small_instance

from trimtab.planners.compiled import floats, zero_floats, zero_ints
from trimtab.planners.paths.chain_kernels import least_end_s
from trimtab.planners.paths.path_bounds import OriginTimes, PathBounds

Chain = list[tuple[float, float, float]]
"""Run, pause and least time after, of each operation."""


def _least_end_s(chains: list[Chain], heads: list[float], *, most_visits: int = 10**6) -> float:
    depth = sum(map(len, chains)) + 1
    steps = [step for chain in chains for step in chain]
    runs, pauses, lags = (floats(step[i] for step in steps) for i in range(3))
    end_s = least_end_s(
        len(chains[0]), runs, pauses, lags, floats(heads), 1e9, most_visits,
        zero_ints(len(chains) * depth), zero_floats(len(chains) * depth), zero_floats(depth),
        zero_ints(depth),
    )  # fmt: skip
    return float(end_s)


def _tried_s(chains: list[Chain], heads: list[float]) -> float:
    """The least end over every order."""
    names = [k for k, chain in enumerate(chains) for _ in chain]
    best_s = 1e9
    for order in set(itertools.permutations(names)):
        free_s, at, ready_s = 0.0, [0] * len(chains), list(heads)
        for k in order:
            run_s, pause_s, lag_s = chains[k][at[k]]
            end_s = max(free_s, ready_s[k]) + run_s
            free_s, ready_s[k] = end_s + pause_s, end_s + lag_s
            at[k] += 1
        best_s = min(best_s, max(ready_s))
    return best_s


@pytest.mark.parametrize("seed", range(8))
def test_the_least_end_is_that_of_the_best_order(seed: int) -> None:
    draw = random.Random(seed).uniform
    chains = [[(draw(1, 3), draw(0, 0.3), draw(0, 5)) for _ in range(3)] for _ in range(2)]
    chains += [[(draw(1, 3), draw(0, 0.3), draw(0, 5)) for _ in range(3)]] if seed % 2 else []
    heads = [draw(0, 2) for _ in chains]
    assert _least_end_s(chains, heads) == pytest.approx(_tried_s(chains, heads))


@pytest.mark.parametrize("most_visits", [1, 3, 10, 30])
def test_a_search_cut_short_gives_a_lower_bound(most_visits: int) -> None:
    chains: list[Chain] = [[(2.0, 0.1, 3.0), (1.0, 0.1, 0.0)] for _ in range(3)]
    least_s = _least_end_s(chains, [0.0] * 3)
    assert _least_end_s(chains, [0.0] * 3, most_visits=most_visits) <= least_s


def test_paths_of_an_origin_wait_for_one_another() -> None:
    times = OriginTimes(small_instance(forward_s=(1.0,) * 4, num_waves=1), 0)
    # forwards 0-1 and 1.09-2.09, 5 s away each, backwards of 1.5 s from 6 and from 7.63
    assert times.end_s((7.5, 7.5)) == pytest.approx(9.13)
    assert times.end_s((7.5, 2.5)) == pytest.approx(7.5)


def test_longer_paths_never_end_sooner() -> None:
    times = OriginTimes(small_instance(), 0)
    ends_s = [times.end_s((10.0 + extra, 10.0)) for extra in (0.0, 0.5, 1.0, 3.0, 9.0)]
    assert ends_s == sorted(ends_s)


def test_caps_are_the_longest_paths_that_end_in_time() -> None:
    times = OriginTimes(small_instance(), 0)
    one_s, both_s = times.caps_s(8.0, 30.0)
    assert times.end_s((one_s - 1e-4, 8.0)) <= 30.0 < times.end_s((one_s + 1e-4, 8.0))
    assert times.end_s((both_s - 1e-4,) * 2) <= 30.0 < times.end_s((both_s + 1e-4,) * 2)
    assert times.caps_s(8.0, 15.0) == []


@pytest.mark.parametrize(
    ("name", "best_s", "best_gap"),
    [("n06_s4_skip50", 49.2379, 0.08), ("n09_s4_skip25", 58.7839, 0.08)],
)
def test_free_stages_have_a_certified_gap(name: str, best_s: float, best_gap: float) -> None:
    bounds = PathBounds(case(name), fixed=None, step_s=best_s)
    found = bounds.covering(30.0, is_whole=False, is_over=lambda: False, time_limit_s=9.0)
    assert found is not None
    assert best_s / (1 + best_gap) <= found.seconds <= best_s


def test_whole_paths_bound_no_worse_than_fractions() -> None:
    name = "n06_s4_skip50"
    bounds = PathBounds(case(name), fixed=None, step_s=49.2379)
    whole, fractions = (
        bounds.covering(40.0, is_whole=is_whole, is_over=lambda: False, time_limit_s=9.0)
        for is_whole in (True, False)
    )
    assert whole is not None
    assert fractions is not None
    assert fractions.seconds - 0.05 <= whole.seconds <= 49.2379


def test_a_bound_never_exceeds_a_schedule_of_a_fixed_arrangement() -> None:
    # 61.3233 s is reached by a schedule
    name = "n12_s5_skip40"
    bounds = PathBounds(case(name), fixed=arrangement(name), step_s=61.5)
    for is_whole in (False, True):
        found = bounds.covering(
            50.0, is_whole=is_whole, is_over=lambda: False, time_limit_s=9.0
        )
        assert found is not None
        assert 58.0 <= found.seconds <= 61.3233
