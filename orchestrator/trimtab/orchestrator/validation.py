"""Forecasts of a table of measured steps, and how good they are."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError
from trimtab.core.rates import RateBook
from trimtab.orchestrator.file_text import read_text
from trimtab.orchestrator.measured import MeasuredRow, UnreadRow
from trimtab.orchestrator.rate_fitting import (
    NUM_FOLDS,
    Case,
    Tell,
    contradiction,
    cross_log_errors,
    fit_levels,
    fit_table,
    fold_of,
    with_intervals,
)
from trimtab.orchestrator.row_forecast import RowForecast, forecast_row, row_counts
from trimtab.planners.scoring import (
    LOST,
    ChoiceScore,
    Score,
    choice_score,
    score,
    spearman,
)

_OPTIONS = ("zero", "recompute", "micro_batch_seqs")
"""Choices whose effect is ranked among rows that differ in nothing else."""
_FEWEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Forecasts of a table and their scores."""

    forecasts: tuple[RowForecast, ...]
    unread: tuple[UnreadRow, ...]
    """Rows that no forecast could be made for; the score counts those with a time as lost."""
    contradictory: tuple[tuple[str, str], ...]
    """Row and reason, of rows whose own figures do not fit together; they are scored too."""
    tables: Mapping[str, Score]
    """Of step times, by table."""
    total: Score
    """Of step times; a row without a forecast counts as an error of 100 %."""
    flop_rates: Score | None
    """Of TFLOP/s per GPU, where no step time was measured."""
    memory: Score | None
    num_oom: int
    num_oom_flagged: int
    num_ran: int
    num_ran_flagged: int
    options: Mapping[str, float]
    """Median rank correlation among rows that differ only in this choice."""
    choices: ChoiceScore | None


def cases_of(
    rows: Sequence[MeasuredRow], unread: Sequence[UnreadRow]
) -> tuple[list[Case], list[UnreadRow]]:
    """The rows that can be counted, and all that cannot."""
    cases: list[Case] = []
    unable = list(unread)
    for row in rows:
        try:
            cases.append((row, row_counts(row)))
        except InputError as error:
            has_step_s = row.step_s is not None
            unable.append(
                UnreadRow(
                    row_id=row.row_id,
                    table=row.table,
                    reason=str(error),
                    has_step_s=has_step_s,
                )
            )
    return cases, unable


def forecasts_by(cases: Sequence[Case], book: RateBook) -> list[RowForecast]:
    """Every row by the same book."""
    return [forecast_row(row, counts, book) for row, counts in cases]


def cross_forecasts(cases: Sequence[Case], *, tell: Tell) -> list[RowForecast]:
    """Every row by rates that were fitted without its fold."""
    fitted = fit_table(cases)
    errors = cross_log_errors(fitted, tell=tell)
    forecasts = []
    for fold in range(NUM_FOLDS):
        tell(f"forecasting fold {fold + 1} of {NUM_FOLDS}")
        others = [case for case in fitted if fold_of(case[0]) != fold]
        held_out = [case for case in cases if fold_of(case[0]) == fold]
        if not held_out:
            continue
        if not others:
            raise InputError(
                "--cross: all rows are of one model on one number of GPUs; there is nothing "
                "to fit without them"
            )
        ids = {row.row_id for row, _ in held_out}
        kept = {
            key: {row_id: error for row_id, error in level.items() if row_id not in ids}
            for key, level in errors.items()
        }
        book = with_intervals(fit_levels(others), kept)
        forecasts += forecasts_by(held_out, book)
    return forecasts


def table_out_forecasts(cases: Sequence[Case], *, tell: Tell) -> list[RowForecast]:
    """Every row by rates that were fitted without its whole table."""
    fitted = fit_table(cases)
    forecasts = []
    for table in sorted({row.table for row, _ in cases}):
        tell(f"forecasting {table} from the other tables")
        others = [case for case in fitted if case[0].table != table]
        if not others:
            raise InputError("--table-out: the rows are all of one table")
        book = fit_levels(others)
        forecasts += forecasts_by([case for case in cases if case[0].table == table], book)
    return forecasts


def validate(
    forecasts: Sequence[RowForecast],
    unread: Sequence[UnreadRow],
    *,
    groups: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Validation:
    """Score forecasts of measured rows.

    Args:
        forecasts: One for each row that can be forecast.
        unread: The rows that cannot.
        groups: Measured seconds by group and row (None: ran out of memory), to choose in.

    Raises:
        InputError: Nothing can be forecast.
    """
    timed = [each for each in forecasts if each.row.step_s is not None]
    if not forecasts:
        first = unread[0].reason if unread else "the table is empty"
        raise InputError(f"no row can be forecast: {first}")
    tables: dict[str, list[RowForecast]] = {}
    for each in timed:
        tables.setdefault(each.row.table, []).append(each)
    ran = [each for each in forecasts if each.row.oom is False]
    oom = [each for each in forecasts if each.row.oom]
    return Validation(
        forecasts=tuple(forecasts),
        unread=tuple(unread),
        contradictory=tuple(
            (each.row.row_id, reason)
            for each in forecasts
            if (reason := contradiction(each.row)) is not None
        ),
        tables={name: _time_score(each) for name, each in tables.items()},
        total=_with_lost(_time_score(timed), sum(row.has_step_s for row in unread)),
        flop_rates=_score_of(
            [each for each in forecasts if each.row.step_s is None],
            lambda each: each.row.flop_per_s,
            lambda each: each.flop_per_s,
        ),
        memory=_score_of(
            [each for each in forecasts if each.row.oom is not True],
            lambda each: each.row.memory_bytes,
            lambda each: each.memory_bytes,
        ),
        num_oom=len(oom),
        num_oom_flagged=sum(each.oom for each in oom),
        num_ran=len(ran),
        num_ran_flagged=sum(each.oom for each in ran),
        options=_option_ranks(timed),
        choices=None if groups is None else _choices(forecasts, groups),
    )


def read_groups(path: Path) -> dict[str, dict[str, float | None]]:
    """Groups of layouts to choose in: columns group_id, row_id, step_time_s (blank: ran out).

    Raises:
        InputError: The file cannot be read or lacks a column.
    """
    table = csv.DictReader(read_text(path).splitlines())
    header = table.fieldnames or ()
    for name in ("group_id", "row_id", "step_time_s"):
        if name not in header:
            raise InputError(f"{path}: expected the columns group_id, row_id and step_time_s")
    groups: dict[str, dict[str, float | None]] = {}
    for number, line in enumerate(table, start=2):
        seconds = line["step_time_s"]
        try:
            value = float(seconds) if seconds else None
        except ValueError as error:
            raise InputError(f"{path}, line {number}: step_time_s: {seconds!r}") from error
        groups.setdefault(line["group_id"], {})[line["row_id"]] = value
    return groups


def rows_document(forecasts: Sequence[RowForecast]) -> list[dict[str, Any]]:
    """What `validate --json` prints of every row."""
    return [
        {
            "row_id": each.row.row_id,
            "predicted_step_s": each.step_s,
            "low_s": each.low_s,
            "high_s": each.high_s,
            "predicted_tflops": each.flop_per_s / 1e12,
            "predicted_memory_gb": each.memory_bytes / 1e9,
            "oom": each.oom,
            "in_calibration": each.outside is None,
        }
        for each in forecasts
    ]


def _time_score(forecasts: Sequence[RowForecast]) -> Score:
    measured = [each.row.step_s for each in forecasts if each.row.step_s is not None]
    return score(
        measured,
        [each.step_s for each in forecasts],
        intervals=[(each.low_s, each.high_s) for each in forecasts],
    )


def _with_lost(of_rows: Score, num_lost: int) -> Score:
    """The score with rows that could not be forecast, each an error of 100 %."""
    count = of_rows.num_rows + num_lost
    return Score(
        num_rows=count,
        mape=(of_rows.mape * of_rows.num_rows + LOST * num_lost) / count,
        median_error=of_rows.median_error,
        spearman=of_rows.spearman,
        coverage=of_rows.coverage,
    )


def _score_of(
    forecasts: Sequence[RowForecast],
    measured: Callable[[RowForecast], float | None],
    forecast: Callable[[RowForecast], float],
) -> Score | None:
    pairs = [
        (truth, forecast(each))
        for each in forecasts
        if (truth := measured(each)) is not None and truth > 0
    ]
    return score([t for t, _ in pairs], [f for _, f in pairs]) if pairs else None


def _option_ranks(forecasts: Sequence[RowForecast]) -> dict[str, float]:
    """How well rows are ranked that differ in one choice only, as a median over such sets."""
    ranks: dict[str, float] = {}
    for option in _OPTIONS:
        alike: dict[object, list[RowForecast]] = {}
        for each in forecasts:
            alike.setdefault(_all_but(each.row, option), []).append(each)
        found = [
            rank
            for rows in alike.values()
            if len(rows) >= _FEWEST
            and (rank := spearman([_step_s(r) for r in rows], [r.step_s for r in rows]))
            is not None
        ]
        if found:
            ranks[option] = sorted(found)[len(found) // 2]
    return ranks


def _all_but(row: MeasuredRow, option: str) -> object:
    layout = {
        name: getattr(row.layout, name)
        for name in row.layout.__dataclass_fields__
        if name != option
    }
    machine = row.used.gpu.name, row.used.num_ranks, row.used.nic_per_gpu
    workload = row.num_sequences, row.seq_tokens, row.precision, row.source, row.task
    shape = row.model.num_layers, row.model.hidden, row.model.num_heads, row.model.vocab
    return (*layout.items(), *machine, *workload, *shape)


def _choices(
    forecasts: Sequence[RowForecast], groups: Mapping[str, Mapping[str, float | None]]
) -> ChoiceScore:
    by_row = {each.row.row_id: each for each in forecasts}

    def guess(row_id: str) -> float | None:
        found = by_row.get(row_id)
        return None if found is None or found.oom else found.step_s

    return choice_score(
        [
            {row_id: (measured, guess(row_id)) for row_id, measured in group.items()}
            for group in groups.values()
        ]
    )


def _step_s(forecast: RowForecast) -> float:
    assert forecast.row.step_s is not None
    return forecast.row.step_s
