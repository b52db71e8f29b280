"""`trimtab demo`: the whole path on this machine, from measuring it to comparing runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import ExitCode
from trimtab.orchestrator.cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.core.job import JobSpec
    from trimtab.orchestrator.demo import DemoForecast
    from trimtab.orchestrator.report import Comparison

_INTERRUPTED = 130
_STOPPED = "stopped; nothing compared"


def demo(
    steps: Annotated[int, typer.Option(help="Steps of each of the two runs.")] = 40,
    ranks: Annotated[int, typer.Option(help="Processes to train on.")] = 4,
    runs_dir: Annotated[
        Path | None,
        typer.Option(help="Where the runs are kept; by default as for all runs."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Plan, train and compare on this machine: planned groups against one degree for all.

    A model of a million parameters learns Python from the sources of the standard library,
    twice on the same batches. Takes some minutes and no GPU.
    """
    from rich.console import Console

    from trimtab.core import serde
    from trimtab.orchestrator.demo import demo_job
    from trimtab.orchestrator.runs_folder import runs_root

    out = Console(stderr=json, highlight=False, markup=False)
    root = (runs_dir or runs_root()).absolute()
    try:
        comparison = _run(demo_job(num_steps=steps, num_ranks=ranks), root=root, out=out)
    except KeyboardInterrupt:
        return _INTERRUPTED
    if json:
        print_json(serde.to_document(comparison))
    return ExitCode.OK


def _run(job: "JobSpec", *, root: Path, out: "Console") -> "Comparison":
    from trimtab.orchestrator import demo, preflight, report
    from trimtab.orchestrator.cli import progress
    from trimtab.orchestrator.cli.calibrate import measure

    _heading(out, 1, "Measure what sequence groups cost on this machine")
    calibration = measure(job, root=root, screen=out)
    out.print(
        f"fitted to {calibration.num_samples} groups, off by "
        f"{calibration.median_error_fraction:.0%} (median)"
    )

    _heading(out, 2, "Plan: the batches are known, so every step can be forecast")
    job = replace(job, profile=calibration.profile)
    batches = preflight.step_lengths(job)
    longest = max(max(lengths) for lengths in batches)
    uniform = demo.uniform_job(job, longest_tokens=longest)
    forecast = demo.forecast(job, uniform=uniform, batches=batches)
    for line in _forecast_lines(forecast):
        out.print(line, soft_wrap=True)

    _heading(out, 3, "Train with planned groups")
    planned_run = progress.run_and_follow(job, root=root, console=out, interrupted=_STOPPED)
    _heading(out, 4, "Train on the same batches, every group of one degree")
    uniform_run = progress.run_and_follow(uniform, root=root, console=out, interrupted=_STOPPED)

    _heading(out, 5, "Compare")
    comparison = report.compare(
        report.read_record(planned_run), report.read_record(uniform_run)
    )
    _show_summary(out, comparison, forecast=forecast)
    return comparison


def _heading(out: "Console", number: int, text: str) -> None:
    out.print(f"\n[{number}/5] {text}", style="bold cyan")


def _forecast_lines(forecast: "DemoForecast") -> Iterator[str]:
    from trimtab.core.units import count_text, duration_text

    yield (
        f"{forecast.num_steps} steps of {forecast.num_sequences} sequences, "
        f"{forecast.shortest_tokens} to {forecast.longest_tokens} tokens long (median "
        f"{forecast.median_tokens}), {count_text(forecast.tokens_per_step)} tokens a step"
    )
    yield f"the first step's groups: {forecast.first_step}"
    yield (
        f"planned groups: {duration_text(forecast.planned_step_s)} a step (median), mixed "
        f"degrees in {forecast.mixed_fraction:.0%} of the steps"
    )
    yield (
        f"groups of {forecast.uniform_degree}, the least that hold every sequence: "
        f"{duration_text(forecast.uniform_step_s)} a step, {forecast.ratio:.2f} times as long"
    )


def _show_summary(
    out: "Console", comparison: "Comparison", *, forecast: "DemoForecast"
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, text in _summary(comparison, forecast=forecast):
        table.add_row(name, Text(text, overflow="fold"))
    out.print(table)


def _summary(
    comparison: "Comparison", *, forecast: "DemoForecast"
) -> Iterator[tuple[str, str]]:
    from trimtab.orchestrator.cli import report as lines

    planned, uniform = comparison.first, comparison.second
    yield "Planned / uniform", _ratio_text(comparison, forecast=forecast)
    if (note := _cores_note(planned.num_ranks)) is not None:
        yield "", note
    yield "Same training", _sameness_text(comparison)
    for name, text in lines.report_lines(planned):
        if name in ("Forecast", "Step plans", "Step time", "MFU", "Loss"):
            yield name, text
    yield "Planned run", planned.run_dir
    yield "Uniform run", uniform.run_dir
    first, second = Path(planned.run_dir).name, Path(uniform.run_dir).name
    yield "Next", f"trimtab dashboard {first}\ntrimtab compare {first} {second}"


def _cores_note(num_ranks: int) -> str | None:
    """Why the ratio says little here, where ranks have no core each."""
    from trimtab.launch.processes import usable_cores

    num_cores = usable_cores()
    if num_ranks <= num_cores:
        return None
    return (
        f"{num_ranks} ranks share {num_cores} cores and talk through memory: a rank that waits "
        "lends its core to the others, which hides most of what planned groups save"
    )


def _ratio_text(comparison: "Comparison", *, forecast: "DemoForecast") -> str:
    if comparison.speedup_ratio is None:
        return "no step was measured in both runs"
    return (
        f"{comparison.speedup_ratio:.2f} times as fast (median of like steps; forecast "
        f"{forecast.ratio:.2f}), faster in {comparison.faster_steps} of "
        f"{comparison.measured_steps} steps"
    )


def _sameness_text(comparison: "Comparison") -> str:
    batches = "the same batches" if comparison.same_batches else "OTHER BATCHES"
    return f"{batches}; losses differ by at most {comparison.max_loss_difference:.1e} nats"
