"""`trimtab validate`: forecasts of measured steps, and how good they are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.orchestrator.validation import Validation
    from trimtab.planners.scoring import Score

_SHOWN_UNREAD = 8


def validate(
    measured: Annotated[
        Path, typer.Argument(metavar="MEASURED.csv", help="Table of measured steps.")
    ],
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            help="Table of group_id, row_id, step_time_s: score the choice of the fastest "
            "layout in each group.",
        ),
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option("--rates", help="Rates of `trimtab calibrate`; default: those shipped."),
    ] = None,
    cross: Annotated[
        bool,
        typer.Option(
            "--cross",
            help="Fit rates to this table itself, each row forecast without those of the same "
            "model and number of GPUs.",
        ),
    ] = False,
    table_out: Annotated[
        bool,
        typer.Option("--table-out", help="The same, each table forecast without itself."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Forecast every row of a table of measured steps, and score the forecasts.

    Example: trimtab validate measured_steps.csv --groups plan_choice_groups.csv --cross
    """
    from dataclasses import asdict

    from trimtab.orchestrator import rate_books, validation
    from trimtab.orchestrator.measured import read_measured

    if sum((cross, table_out, rates is not None)) > 1:
        raise InputError("expected one of --rates, --cross and --table-out")
    choice_groups = None if groups is None else validation.read_groups(groups)
    cases, unread = validation.cases_of(*read_measured(measured))
    if cross or table_out:
        make = validation.cross_forecasts if cross else validation.table_out_forecasts
        with console(stderr=True).status("fitting") as status:
            forecasts = make(cases, tell=status.update)
    else:
        book = rate_books.shipped_book() if rates is None else rate_books.load_book(rates)
        forecasts = validation.forecasts_by(cases, book)
    result = validation.validate(forecasts, unread, groups=choice_groups)
    if json:
        summary = {
            name: value
            for name, value in asdict(result).items()
            if name not in ("forecasts", "unread")
        }
        summary["unread"] = [asdict(row) for row in result.unread]
        rows = validation.rows_document(result.forecasts)
        print_json({"rows": rows, "summary": summary})
        return
    _show(console(), result)


def _show(out: "Console", result: "Validation") -> None:
    from rich.table import Table

    table = Table(title="Step times", title_justify="left")
    for name in ("table", "rows", "MAPE", "median", "Spearman", "in 80 % interval"):
        table.add_column(name, justify="left" if name == "table" else "right")
    for name, score in sorted(result.tables.items()):
        table.add_row(name or "-", *_cells(score))
    table.add_section()
    table.add_row("all, the unforecast as 100 %", *_cells(result.total), style="bold")
    out.print(table)
    if result.flop_rates is not None:
        out.print(
            f"TFLOP/s per GPU of rows without a time: {_percent(result.flop_rates.mape)} "
            f"on {result.flop_rates.num_rows} rows"
        )
    if result.memory is not None:
        out.print(
            f"memory of the fullest rank: {_percent(result.memory.mape)} on "
            f"{result.memory.num_rows} rows"
        )
    out.print(
        f"out of memory: {result.num_oom_flagged} of {result.num_oom} flagged; of those that "
        f"ran {result.num_ran_flagged} of {result.num_ran}"
    )
    for option, rank in result.options.items():
        out.print(f"rows that differ only in {option}: Spearman {rank:.2f}")
    if result.choices is not None:
        choices = result.choices
        out.print(
            f"choice in {choices.num_groups} groups: mean regret "
            f"{_percent(choices.mean_regret)}, p90 {_percent(choices.p90_regret)}, truly best "
            f"{_percent(choices.best_chosen)}"
        )
    for row_id, reason in result.contradictory:
        out.print(f"row {row_id} contradicts itself: {reason}", style="yellow", markup=False)
    for row in result.unread[:_SHOWN_UNREAD]:
        out.print(f"row {row.row_id}: {row.reason}", style="yellow", markup=False)
    if len(result.unread) > _SHOWN_UNREAD:
        num_more = len(result.unread) - _SHOWN_UNREAD
        out.print(f"and {num_more} more rows without a forecast; --json lists them")


def _cells(score: "Score") -> tuple[str, ...]:
    rank = "-" if score.spearman is None else f"{score.spearman:.3f}"
    covered = "-" if score.coverage is None else _percent(score.coverage)
    return (
        str(score.num_rows),
        _percent(score.mape),
        _percent(score.median_error),
        rank,
        covered,
    )


def _percent(value: float) -> str:
    return f"{value:.1%}"
