"""How good forecasts are, against measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of the rows of one kind that have a measured and a forecast value."""

    num_rows: int
    mape: float
    """Mean of |forecast / measured - 1|."""
    median_error: float
    spearman: float | None
    """Rank correlation; None for fewer than four rows."""
    coverage: float | None
    """Share of measured values within the 80 % interval; None without intervals."""


def score(
    measured: Sequence[float],
    forecast: Sequence[float],
    *,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> Score:
    """Score forecasts, each sequence of shape (n,), n >= 1."""
    truth, guess = np.asarray(measured, dtype=float), np.asarray(forecast, dtype=float)
    errors = np.abs(guess / truth - 1)
    coverage = None
    if intervals is not None:
        inside = [low <= x <= high for x, (low, high) in zip(truth, intervals, strict=True)]
        coverage = float(np.mean(inside))
    return Score(
        num_rows=len(truth),
        mape=float(errors.mean()),
        median_error=float(np.median(errors)),
        spearman=spearman(measured, forecast),
        coverage=coverage,
    )


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank.

    None for fewer than four pairs, or where one side does not vary.
    """
    if len(one) < 4:
        return None
    ranks = [_ranks(values) for values in (one, other)]
    if any(len(set(each)) == 1 for each in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    mean = {
        value: ordered.index(value) + (ordered.count(value) - 1) / 2 for value in set(values)
    }
    return [mean[value] for value in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceScore:
    """Of choosing the fastest layout of each group by its forecast."""

    num_groups: int
    mean_regret: float
    """How much longer the chosen layout's measured step is than the best one's, on average."""
    p90_regret: float
    best_chosen: float
    """Share of groups whose truly best layout was chosen."""


LOST = 1.0
"""Regret of a choice that ran out of memory, or of a group with nothing to choose."""


def choice_score(
    groups: Sequence[Mapping[str, tuple[float | None, float | None]]],
) -> ChoiceScore:
    """Score choices.

    Args:
        groups: Each with its layouts by name: measured seconds (None: ran out of memory) and
            forecast seconds (None: forecast to run out of memory, or not forecast).
    """
    regrets, hits = [], []
    for group in groups:
        measured = {name: truth for name, (truth, _) in group.items() if truth is not None}
        forecast = {name: guess for name, (_, guess) in group.items() if guess is not None}
        if not measured:
            continue
        best_s = min(measured.values())
        chosen = min(forecast, key=lambda name: forecast[name]) if forecast else None
        chosen_s = measured.get(chosen) if chosen is not None else None
        regrets.append(LOST if chosen_s is None else chosen_s / best_s - 1)
        hits.append(chosen_s == best_s)
    return ChoiceScore(
        num_groups=len(regrets),
        mean_regret=float(np.mean(regrets)),
        p90_regret=float(np.quantile(regrets, 0.9)),
        best_chosen=float(np.mean(hits)),
    )
