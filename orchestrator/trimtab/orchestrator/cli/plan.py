"""`trimtab plan`: the layout of a job, its forecast, and what was ruled out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trimtab.core import checks
from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trimtab.core.job import JobSpec
    from trimtab.core.plan import Forecast, JobPlan, StageMemory

_SHOWN_STAGES = 8
_SHOWN_ALTERNATIVES = 5
_SHOWN_REJECTED = 8
_MEMORY_COLUMNS = {
    "weights_bytes": "weights",
    "gradients_bytes": "grads",
    "optimizer_bytes": "optim",
    "activations_bytes": "activ",
    "workspace_bytes": "work",
    "total_bytes": "total",
    "capacity_bytes": "of",
}
_VERDICT_STYLES = {"fits": "green", "tight": "yellow", "oom": "red"}


def plan(
    job_file: Annotated[
        Path, typer.Argument(metavar="JOB", help="Job file (YAML).", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A.B=C]...", help="Settings that win over the file.", show_default=False
        ),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(
            "--lengths",
            "-l",
            help="Document lengths to plan for, one number a line. "
            "Default: every sequence is data.max_seq_tokens long.",
        ),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            "--fix",
            metavar="FIELD=VALUE",
            help="Keep a field of the layout, e.g. tp=8 or schedule=zb-h1; the planner chooses "
            "the rest, whatever the job's layout. Repeatable.",
        ),
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option("--rates", help="Rates of `trimtab calibrate`; default: those shipped."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Of a GPU-hour, in your currency.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Choose the layout of a job and forecast its step; starts nothing.

    Example: trimtab plan configs/llama-3-8b.yaml training.global_batch_seqs=512 --fix tp=2
    """
    from trimtab.orchestrator import api, plan_json

    if price is not None:
        checks.not_negative("--price", price)
    job = api.load_job(job_file, overrides or [])
    document_lengths = None if lengths is None else api.load_lengths(lengths)
    batch = api.planning_batch(job, document_lengths)
    job_plan = api.plan(
        job,
        lengths=document_lengths,
        fixed=_fixed(fix),
        rates=None if rates is None else api.load_rates(rates),
    )
    if json:
        print_json(plan_json.plan_document(job, job_plan, batch_note=batch.note))
        return
    show_plan(console(), job, job_plan, batch_note=batch.note, price=price)


def _fixed(settings: list[str] | None) -> dict[str, int | str] | None:
    if not settings:
        return None
    fixed: dict[str, int | str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if not name or not value:
            raise InputError(f"--fix: expected FIELD=VALUE, e.g. tp=8, got {setting!r}")
        fixed[name] = int(value) if value.isdecimal() else value
    return fixed


def show_plan(
    out: "Console",
    job: "JobSpec",
    job_plan: "JobPlan",
    *,
    batch_note: str,
    price: float | None = None,
) -> None:
    """Print a plan as tables."""
    from rich.markup import escape

    from trimtab.core.units import count_text, counted

    gpus = f"{job.cluster.num_gpus} x {', '.join(job.cluster.gpu_names)}"
    out.print(
        f"[bold]{escape(job.name)}[/bold]: {escape(job.model.name)}, "
        f"{count_text(job.model.num_parameters)} parameters, on {job.num_ranks} of "
        f"{escape(gpus)} ({escape(job.cluster.name)})"
    )
    out.print(f"batch: {batch_note}", style="dim", markup=False)
    layout = job_plan.layout
    zero = "" if layout.zero > 1 else f"zero {layout.zero}, "
    out.print(
        f"\n[bold]layout {layout}[/bold]  {zero}recompute {layout.recompute}, "
        f"{counted(layout.micro_batch_seqs, 'sequence')} a micro-batch"
        + (", sequence parallel" if layout.sequence_parallel else "")
    )
    out.print(job_plan.reason, markup=False)
    _show_islands(out, job_plan)
    _show_forecast(out, job_plan.forecast)
    _show_cost(out, job, job_plan.forecast, price=price)
    out.print()
    out.print(_memory_table(job_plan))
    if job_plan.alternatives:
        out.print()
        out.print(_alternatives_table(job_plan))
    _show_rejected(out, job_plan)


def _show_islands(out: "Console", job_plan: "JobPlan") -> None:
    """Stages by island, what simpler rules would take, and which networks groups use."""
    from collections import Counter

    from rich.markup import escape

    from trimtab.core.errors import printable
    from trimtab.core.units import duration_text

    islands = job_plan.islands
    if islands is None:
        return
    table = _table("Stages", "stage", "island", "layers >", "ranks >", "micro-batch >")
    for stage in islands.stages:
        table.add_row(
            str(stage.stage),
            escape(printable(" + ".join(stage.islands))),
            str(stage.num_layers),
            str(stage.num_ranks),
            duration_text(stage.micro_batch_s),
        )
    out.print()
    out.print(table)
    step_s = job_plan.forecast.step_s
    bound = duration_text(islands.lower_bound_s)
    gap = islands.gap_fraction(step_s)
    out.print(f"no plan takes less than {bound}: this one is within {gap:.1%}")
    for baseline in islands.baselines:
        tight = ", memory tight" if baseline.is_tight else ""
        out.print(
            f"{baseline.name}: {duration_text(baseline.step_s)} at best "
            f"({baseline.step_s / step_s - 1:+.1%}; {baseline.layout}{tight})",
            markup=False,
        )
    counts = Counter(
        (settings.group.split(" ")[0], settings.transport)
        for settings in job_plan.communicators
    )
    groups = (f"{count} {name} over {via}" for (name, via), count in counts.items())
    out.print(f"communicators: {', '.join(groups) or 'none'}; --json has each", markup=False)


def _show_forecast(out: "Console", forecast: "Forecast") -> None:
    from rich.markup import escape

    from trimtab.core.units import count_text, duration_text
    from trimtab.orchestrator.plan_json import mfu_note

    table = _table("Step forecast", "part", "time >", "share >")
    for part in forecast.parts:
        if not part.seconds:
            continue
        share = part.seconds / forecast.step_s
        table.add_row(part.name, duration_text(part.seconds), f"{share:.1%}")
    table.add_section()
    table.add_row("step", duration_text(forecast.step_s), "100.0%", style="bold")
    if forecast.low_s is not None and forecast.high_s is not None:
        interval = f"{duration_text(forecast.low_s)} to {duration_text(forecast.high_s)}"
        table.add_row("80 % interval", interval, "", style="dim")
    out.print()
    out.print(table)
    out.print()
    per_gpu = forecast.tokens_per_s / forecast.num_ranks
    out.print(
        f"{count_text(forecast.num_tokens)} tokens a step, "
        f"[bold]{count_text(forecast.tokens_per_s)} tokens/s[/bold], "
        f"{count_text(per_gpu)} tokens/s/GPU, bubble {forecast.bubble_fraction:.1%}, "
        f"constants: {escape(forecast.evidence)}"
    )
    if forecast.outside is not None:
        out.print(f"outside calibration: {escape(forecast.outside)}", style="yellow")
    out.print(f"MFU [bold]{_mfu_text(forecast)}[/bold]")
    out.print(mfu_note(forecast), style="dim")


def _mfu_text(forecast: "Forecast") -> str:
    from trimtab.core.units import flop_rate_text

    if forecast.mfu is None or forecast.peak_flop_per_s is None:
        return "-"
    peak = flop_rate_text(forecast.peak_flop_per_s)
    text = f"{forecast.mfu:.1%} of the dense {forecast.precision} peak, {peak} a GPU"
    return text + (f"; HFU {forecast.hfu:.1%}" if forecast.recomputed_flops else "")


def _show_cost(
    out: "Console", job: "JobSpec", forecast: "Forecast", *, price: float | None
) -> None:
    from trimtab.core.units import count_text, duration_text

    seconds = forecast.step_s * job.training.num_steps
    gpu_hours = seconds * forecast.num_ranks / 3600
    money = "" if price is None else f", {gpu_hours * price:,.0f} at {price:g} a GPU-hour"
    out.print(
        f"{job.training.num_steps} steps: {duration_text(seconds)}, "
        f"{count_text(gpu_hours)} GPU-hours{money}, without faults and restarts"
    )


def _memory_table(job_plan: "JobPlan") -> "Table":
    from trimtab.core.units import counted, memory_unit

    stages = job_plan.forecast.memory
    unit, unit_bytes = memory_unit(max(stage.total_bytes for stage in stages))
    title = f"Memory of the fullest rank of each stage, in {unit}"
    headings = (f"{heading} >" for heading in _MEMORY_COLUMNS.values())
    table = _table(title, "stage", "layers >", *headings, "verdict")
    fullest = sorted(stages, key=lambda stage: stage.total_bytes)[-_SHOWN_STAGES:]
    for stage in sorted(fullest, key=lambda stage: stage.stage):
        table.add_row(
            str(stage.stage),
            str(job_plan.placement.stage_layers[stage.stage]),
            *(f"{getattr(stage, name) / unit_bytes:.1f}" for name in _MEMORY_COLUMNS),
            _verdict_text(stage),
        )
    if len(stages) > _SHOWN_STAGES:
        table.caption = (
            f"... and {counted(len(stages) - _SHOWN_STAGES, 'stage')} with less; --json has all"
        )
    return table


def _verdict_text(stage: "StageMemory | Forecast") -> str:
    style = _VERDICT_STYLES[stage.verdict]
    return f"[{style}]{stage.verdict}[/{style}]"


def _alternatives_table(job_plan: "JobPlan") -> "Table":
    from trimtab.core.units import duration_text

    table = _table("Next best layouts", "layout", "step >", "slower >", "MFU >", "memory")
    best_s = job_plan.forecast.step_s
    for entry in job_plan.alternatives[:_SHOWN_ALTERNATIVES]:
        forecast = entry.forecast
        table.add_row(
            str(entry.layout),
            duration_text(forecast.step_s),
            f"{forecast.step_s / best_s - 1:+.1%}",
            "-" if forecast.mfu is None else f"{forecast.mfu:.1%}",
            _verdict_text(forecast),
        )
    return table


def _show_rejected(out: "Console", job_plan: "JobPlan") -> None:
    out.print()
    if not job_plan.rejected:
        out.print("nothing ruled out", style="dim")
        return
    from rich.markup import escape

    table = _table("Ruled out", "layout", "reason")
    for rejected in job_plan.rejected[:_SHOWN_REJECTED]:
        table.add_row(str(rejected.layout), escape(rejected.reason))
    rest = len(job_plan.rejected) - _SHOWN_REJECTED
    if rest > 0:
        table.caption = f"... and {rest} more; --json has them all"
    out.print(table)


def _table(title: str, *columns: str) -> "Table":
    """A plain table; a column whose name ends in `>` is right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        name, separator, _ = column.partition(" >")
        wraps = name == "reason"
        justify: Literal["left", "right"] = "right" if separator else "left"
        table.add_column(name, justify=justify, no_wrap=not wraps)
    return table
