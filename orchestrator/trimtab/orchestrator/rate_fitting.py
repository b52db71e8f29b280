"""Rates fitted to a table of measured steps: general, then of device, engine and source.

Each level is fitted with the one above as its prior, so that few rows change little. Intervals
come from rows that a fit had not seen: those of the same fold, or of the same source, together.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from trimtab.core.errors import InputError
from trimtab.core.rates import (
    DEFAULT_STACK,
    MemoryRates,
    RateBook,
    Rates,
    Seen,
    StackRates,
    device_family,
)
from trimtab.core.units import GIB
from trimtab.orchestrator.measured import MeasuredRow
from trimtab.orchestrator.row_forecast import row_memory
from trimtab.planners.counts import StepCounts, stacked
from trimtab.planners.fitting import fit_rates, log_errors
from trimtab.planners.search import quantities

NUM_FOLDS = 8
_FEW = 12
"""Rows that a level needs for an interval of its own."""
_CONTRADICTION = 2.5
_NARROWEST_LOG = 0.03
"""Measurements of one layout differ by this much; no interval is narrower on either side."""

_GRADIENT_BYTES = {"megatron-deepspeed": 2}
"""DeepSpeed's optimizer for 16 bits keeps gradients in 16 bits; Megatron's keeps 32."""

Case = tuple[MeasuredRow, StepCounts]
Key = tuple[str, str, str]
"""Family, engine, source; empty: any."""


class Unseen(NamedTuple):
    """How far a forecast was off whose row had not been fitted."""

    source: str
    log_error: float
    """ln(measured / forecast)."""


Errors = dict[Key, dict[str, Unseen]]
"""By level and row."""
Tell = Callable[[str], None]


def fit_table(cases: Sequence[Case]) -> list[Case]:
    """The rows that rates are fitted to: whole training steps whose figures fit together."""
    return [
        (row, counts)
        for row, counts in cases
        if row.step_s is not None and row.task == "pretrain" and contradiction(row) is None
    ]


def contradiction(row: MeasuredRow) -> str | None:
    """Why a row's own figures do not fit together, if so: its time against its TFLOP/s.

    Sources count FLOPs in different ways, with recompute or without and causal attention whole
    or half: a factor of two is no contradiction.
    """
    if row.step_s is None or row.flop_per_s is None:
        return None
    flops = row.model.training_flops([row.seq_tokens]) * row.num_sequences
    ratio = flops / row.step_s / row.used.num_ranks / row.flop_per_s
    if 1 / _CONTRADICTION < ratio < _CONTRADICTION:
        return None
    stated, implied = row.flop_per_s / 1e12, ratio * row.flop_per_s / 1e12
    return (
        f"its {row.step_s:g} s a step mean {implied:.0f} TFLOP/s per GPU, but it says "
        f"{stated:.0f}"
    )


def fit_book(cases: Sequence[Case], *, evidence: str, tell: Tell) -> RateBook:
    """All levels of rates, with intervals.

    Args:
        cases: Rows, and their counts.
        evidence: What the rows are, for whoever reads the book.
        tell: Told what is being done.

    Raises:
        InputError: There are too few rows to fit to.
    """
    fitted = fit_table(cases)
    folds = {row.fold for row, _ in fitted}
    if len(fitted) < _FEW or len(folds) < 2:
        raise InputError(
            f"expected at least {_FEW} rows with step_time_s, of two models or numbers of "
            f"GPUs, got {len(fitted)} of {len(folds)}"
        )
    errors = cross_log_errors(fitted, tell=tell)
    tell("fitting all rows")
    book = with_intervals(fit_levels(fitted), errors)
    return dataclasses.replace(book, evidence=evidence)


def cross_log_errors(cases: Sequence[Case], *, tell: Tell) -> Errors:
    """How far fits were off that had not seen a row, by level.

    A source's own level is used for that source: its rows are forecast without their fold. All
    other levels are used for whoever has not been measured: without the row's whole source.
    """
    errors: Errors = {}
    for fold in range(NUM_FOLDS):
        tell(f"fitting without fold {fold + 1} of {NUM_FOLDS}")
        outside = [case for case in cases if fold_of(case[0]) == fold]
        _add_errors(errors, cases, outside, is_wanted=lambda key: bool(key[2]))
    for source in sorted({row.source for row, _ in cases}):
        tell(f"fitting without {source}")
        outside = [case for case in cases if case[0].source == source]
        _add_errors(errors, cases, outside, is_wanted=lambda key: not key[2])
    return errors


def _add_errors(
    errors: Errors,
    cases: Sequence[Case],
    outside: Sequence[Case],
    *,
    is_wanted: Callable[[Key], bool],
) -> None:
    """Of the rows `outside`, by a fit of all others; nothing where there are no others."""
    left_out = {row.row_id for row, _ in outside}
    inside = [case for case in cases if case[0].row_id not in left_out]
    if not outside or not inside:
        return
    book = fit_levels(inside)
    for key, members in _levels(outside).items():
        if is_wanted(key):
            logs = _errors(members, _entry(book, key).rates)
            for (row, _), error in zip(members, logs, strict=True):
                errors.setdefault(key, {})[row.row_id] = Unseen(row.source, float(error))


def with_intervals(book: RateBook, errors: Errors) -> RateBook:
    """The same rates, with the 80 % interval of errors that were not fitted.

    A level with few rows, or of one source that is not its own, takes the interval of the level
    above it, one source's network being a guess for another's.
    """
    entries = []
    for entry in book.entries:
        keys = _from_particular(_key(entry))
        enough = next((key for key in keys if _is_enough(key, errors)), ("", "", ""))
        unseen = list(errors.get(enough, {}).values())
        low_log, high_log = _quantiles(unseen) if unseen else (-0.25, 0.25)
        entries.append(
            dataclasses.replace(
                entry,
                low_log=min(low_log, -_NARROWEST_LOG),
                high_log=max(high_log, _NARROWEST_LOG),
            )
        )
    return dataclasses.replace(book, entries=tuple(entries))


def _is_enough(key: Key, errors: Errors) -> bool:
    unseen = errors.get(key, {})
    num_sources = len({each.source for each in unseen.values()})
    return len(unseen) >= _FEW and (bool(key[2]) or num_sources > 1)


def _quantiles(unseen: Sequence[Unseen]) -> tuple[float, float]:
    """A tenth and nine tenths; a source with many rows does not outweigh all others."""
    sizes = Counter(each.source for each in unseen)
    ordered = sorted(unseen, key=lambda each: each.log_error)
    weights = np.cumsum([sizes[each.source] ** -0.5 for each in ordered])
    at = np.searchsorted(weights, [0.1 * weights[-1], 0.9 * weights[-1]])
    return ordered[int(at[0])].log_error, ordered[int(at[1])].log_error


def fit_levels(cases: Sequence[Case]) -> RateBook:
    """The rates of every level, from general to particular; intervals are the default's."""
    levels = _levels(cases)
    weights = _fold_weights(cases)
    memory = {
        engine: fit_memory([row for row, _ in cases if row.engine == engine], engine=engine)
        for engine in {row.engine for row, _ in cases}
    }
    fitted: dict[Key, Rates] = {}
    entries = []
    for key in sorted(levels, key=lambda key: (sum(map(bool, key)), key)):
        parent = next(k for k in [*_from_particular(key)[1:], None] if k is None or k in fitted)
        prior = DEFAULT_STACK.rates if parent is None else fitted[parent]
        members = levels[key]
        counts = stacked([counts for _, counts in members])
        measured = [_step_s(row) for row, _ in members]
        fitted[key] = fit_rates(
            counts,
            measured,
            prior=prior,
            spread=1.0 if parent is None else 0.8,
            weights=_balanced(members, weights),
        )
        entries.append(_stack(key, members, fitted[key], memory.get(key[1], MemoryRates())))
    return RateBook(entries=tuple(entries))


def fold_of(row: MeasuredRow) -> int:
    """The same fold for all rows of one model on one number of GPUs in one table."""
    digest = hashlib.sha256("|".join(row.fold).encode()).hexdigest()
    return int(digest, 16) % NUM_FOLDS


def fit_memory(rows: Sequence[MeasuredRow], *, engine: str) -> MemoryRates:
    """What an engine keeps in memory besides, where enough rows have it measured.

    The median error of the rows is made small, with a mild pull towards usual values.
    """
    gradient_bytes = _GRADIENT_BYTES.get(engine, 4)
    measured = [row for row in rows if row.memory_bytes is not None and row.oom is False]
    if len(measured) < _FEW:
        return MemoryRates(gradient_bytes=gradient_bytes)
    plain = MemoryRates(gradient_bytes=gradient_bytes, workspace_bytes=1.0)
    stages = [row_memory(row, plain) for row in measured]
    truth = np.array([row.memory_bytes for row in measured], dtype=float)
    activations = np.array([stage.activations_bytes for stage in stages], dtype=float)
    rest = np.array([stage.total_bytes for stage in stages]) - activations

    def misfit(factor: float, workspace_gib: int) -> float:
        forecast = rest + factor * activations + workspace_gib * GIB
        pull = ((factor - 1.2) / 0.15) ** 2 + ((workspace_gib - 6) / 4) ** 2
        return float(np.median(np.abs(forecast / truth - 1))) + 0.02 * pull

    factor, workspace_gib = min(
        itertools.product(np.arange(1, 1.55, 0.05).round(2).tolist(), range(1, 13)),
        key=lambda choice: misfit(*choice),
    )
    return MemoryRates(
        gradient_bytes=gradient_bytes,
        activation_factor=factor,
        workspace_bytes=float(workspace_gib * GIB),
    )


def _levels(cases: Sequence[Case]) -> dict[Key, list[Case]]:
    """Rows by every level that they belong to."""
    levels: dict[Key, list[Case]] = {}
    for case in cases:
        row = case[0]
        particular = (device_family(row.used.gpu.name), row.engine, row.source)
        for key in dict.fromkeys(_from_particular(particular)):
            levels.setdefault(key, []).append(case)
    return levels


def _from_particular(key: Key) -> list[Key]:
    """A level and those above it, the most particular first."""
    family, engine, source = key
    above = [(family, engine, source), (family, engine, ""), ("", engine, ""), (family, "", "")]
    return [*above, ("", "", "")]


def _entry(book: RateBook, key: Key) -> StackRates:
    """The nearest entry at or above a level."""
    found = {_key(entry): entry for entry in book.entries}
    return next(found[above] for above in _from_particular(key) if above in found)


def _key(entry: StackRates) -> Key:
    return entry.family, entry.engine, entry.source


def _stack(key: Key, members: Sequence[Case], rates: Rates, memory: MemoryRates) -> StackRates:
    family, engine, source = key
    name = " ".join(part for part in (family, engine) if part) or "any device and engine"
    errors = np.abs(np.expm1(-_errors(members, rates)))
    return dataclasses.replace(
        DEFAULT_STACK,
        name=f"{name}: {source}" if source else name,
        family=family,
        engine=engine,
        source=source,
        rates=rates,
        memory=memory,
        num_rows=len(members),
        median_error=float(np.median(errors)),
        seen=_seen([row for row, _ in members]),
    )


def _seen(rows: Sequence[MeasuredRow]) -> tuple[Seen, ...]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in quantities(row.model, row.layout, longest=row.seq_tokens).items():
            values.setdefault(name, []).append(value)
    return tuple(
        Seen(quantity=name, low=min(each), high=max(each)) for name, each in values.items()
    )


def _errors(
    members: Sequence[Case], rates: Rates
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    counts = [counts for _, counts in members]
    return log_errors(counts, [_step_s(row) for row, _ in members], rates=rates)


def _fold_weights(cases: Sequence[Case]) -> dict[tuple[str, ...], float]:
    """Many rows of one model on one machine tell less than as many of different ones."""
    sizes = Counter(row.fold for row, _ in cases)
    return {fold: size**-0.5 for fold, size in sizes.items()}


def _balanced(members: Sequence[Case], weights: dict[tuple[str, ...], float]) -> list[float]:
    """Weights of rows, such that no source outweighs all others."""
    raw = [weights[row.fold] for row, _ in members]
    totals: Counter[str] = Counter()
    for (row, _), weight in zip(members, raw, strict=True):
        totals[row.source] += weight  # type: ignore[assignment]  # a Counter of floats
    return [
        6 * weight * min(1.0, 10 / totals[row.source]) ** 0.5
        for (row, _), weight in zip(members, raw, strict=True)
    ]


def _step_s(row: MeasuredRow) -> float:
    assert row.step_s is not None
    return row.step_s
