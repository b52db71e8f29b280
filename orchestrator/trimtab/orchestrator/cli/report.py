"""`trimtab report` and `trimtab compare`: what runs did, in figures."""

from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.orchestrator.cli.output import JsonOption, console, print_json
from trimtab.orchestrator.cli.which_run import RUN_HELP, NewestRunArgument, named_or_newest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from trimtab.core.plan import TimePart
    from trimtab.orchestrator.report import Comparison, PlanSummary, RunReport, TimeSummary

_BAR_WIDTH = 24


def report(
    run: NewestRunArgument = None,
    json: JsonOption = False,
) -> None:
    """Summarize a run: losses, times, MFU, plans, goodput."""
    from trimtab.core import serde
    from trimtab.orchestrator.report import read_record, summarize

    summary = summarize(read_record(named_or_newest(run)))
    if json:
        print_json(serde.to_document(summary))
        return
    console().print(report_table(summary))


def compare(
    first: Annotated[str, typer.Argument(help=f"A run: {RUN_HELP}.")],
    second: Annotated[str, typer.Argument(help="The run to measure the first one against.")],
    json: JsonOption = False,
) -> None:
    """Compare two runs step by step: speed and losses, on the same batches."""
    from trimtab.core import serde
    from trimtab.orchestrator import report as reports
    from trimtab.orchestrator.runs_folder import find_run

    comparison = reports.compare(
        reports.read_record(find_run(first)), reports.read_record(find_run(second))
    )
    if json:
        print_json(serde.to_document(comparison))
        return
    console().print(comparison_table(comparison))


def report_table(report: "RunReport") -> "RenderableType":
    """One run as a table of two columns, its step parts drawn as bars."""
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{report.name}: {report.state}", style="bold")
    table = Table(title=title, title_justify="left", show_header=False)
    for name, text in report_lines(report):
        table.add_row(name, Text(text))
    if report.times is not None:
        for part in report.times.parts:
            table.add_row(f"  {part.name}", _bar(part, report.times))
    return table


def report_lines(report: "RunReport") -> list[tuple[str, str]]:
    """What a run did, as pairs of a name and a sentence."""
    lines = [
        ("Run", f"{report.handle}, {report.grouping} groups, {report.layout}"),
        ("Steps", _steps_text(report)),
        ("Loss", _loss_text(report)),
    ]
    if report.reason:
        lines.insert(1, ("Ended", report.reason))
    if report.plans is not None:
        lines += [("Forecast", _forecast_text(report.plans))]
        lines += [("Step plans", _plans_text(report.plans))]
        if report.plans.groups:
            lines += [("Groups", _groups_text(report.plans))]
    if report.goodput_fraction is not None:
        lines.append(("Goodput", f"{report.goodput_fraction:.0%} of the time since submission"))
    lines.append(("Run directory", report.run_dir))
    if report.times is not None:
        lines.append(("MFU", mfu_text(report.times)))
        lines.append(("Step time", _times_text(report.times)))
    return lines


def comparison_table(comparison: "Comparison") -> "RenderableType":
    """Two runs side by side, and their ratio in words."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("", *_labels(comparison)):
        table.add_column(name, overflow="fold")
    for label, first, second in _side_by_side(comparison):
        table.add_row(label, Text(first), Text(second))
    return Group(table, *map(Text, comparison_sentences(comparison)))


def comparison_sentences(comparison: "Comparison") -> list[str]:
    """How much faster the first run is, and whether both are the same training."""
    if comparison.first.run_dir == comparison.second.run_dir:
        return ["Both are the same run."]
    sentences = []
    if comparison.same_batches:
        sentences.append(f"Same batches in all {comparison.num_common_steps} common steps.")
    else:
        sentences.append(
            f"The batches differ, or their plans are missing, in some of the "
            f"{comparison.num_common_steps} common steps: the ratios are not like for like."
        )
    if comparison.speedup_ratio is not None:
        name, other = _labels(comparison)
        sentences.append(
            f"{name} is {comparison.speedup_ratio:.2f} times as fast as {other}: the median "
            f"ratio of step times; {comparison.total_ratio:.2f} times over all of them; faster "
            f"in {comparison.faster_steps} of {comparison.measured_steps} steps."
        )
    if comparison.max_loss_difference is not None:
        sentences.append(
            f"Losses differ by at most {comparison.max_loss_difference:.1e} nats in any step."
        )
    return sentences


def mfu_text(times: "TimeSummary") -> str:
    """The MFU with what it rests on, or why it is blank."""
    if times.mfu is None:
        return f"blank: {times.mfu_note}"
    return f"{times.mfu:.1%} ({times.mfu_note})"


def _labels(comparison: "Comparison") -> tuple[str, str]:
    """What tells the two runs apart."""
    first, second = comparison.first, comparison.second
    if first.grouping != second.grouping:
        return first.grouping, second.grouping
    return first.handle, second.handle


def _steps_text(report: "RunReport") -> str:
    from trimtab.core.units import counted

    ranks = counted(report.num_ranks, "rank")
    text = f"{report.num_steps} of {report.num_steps_asked} on {ranks}"
    if report.num_attempts > 1:
        text += f", in {report.num_attempts} attempts"
    if report.checkpoints:
        text += f"; checkpoints at {', '.join(map(str, report.checkpoints[-8:]))}"
    return text


def _loss_text(report: "RunReport") -> str:
    loss = report.loss
    if loss.first is None or loss.last is None:
        return "none yet"
    text = f"{loss.first:.4f} -> {loss.last:.4f} nats"
    if loss.held_out_last is not None:
        text += f"; held out {loss.held_out_first:.4f} -> {loss.held_out_last:.4f}"
    return text


def _times_text(times: "TimeSummary") -> str:
    from trimtab.core.units import count_text, duration_text

    text = (
        f"median {duration_text(times.median_step_s)}, p90 {duration_text(times.p90_step_s)}, "
        f"{count_text(times.tokens_per_s)} tokens/s over {times.num_steps} steps"
    )
    if times.num_warmup_steps:
        text += f" ({times.num_warmup_steps} warm-up steps left out)"
    return text


def _forecast_text(plans: "PlanSummary") -> str:
    from trimtab.core.units import duration_text

    text = f"{duration_text(plans.forecast_step_s)} a step before the start"
    if plans.forecast_ratio is not None:
        text += f", {plans.forecast_ratio:.2f} of what was measured"
    if plans.step_error_fraction is not None:
        text += f"; step plans were off by {plans.step_error_fraction:.0%} (median)"
    return text


def _plans_text(plans: "PlanSummary") -> str:
    from trimtab.core.units import duration_text

    text = (
        f"{plans.mixed_fraction:.0%} with groups of mixed degrees, "
        f"{plans.waves_per_step:.1f} waves a step, solved in "
        f"{duration_text(plans.median_solve_s)} (median)"
    )
    if plans.num_fallbacks:
        text += f"; {plans.num_fallbacks} came late and fell back"
    return text


def _groups_text(plans: "PlanSummary") -> str:
    """How groups were predicted, by degree: `degree 1 0.98 of measured, off by 4% (310)`."""
    from trimtab.core.units import counted

    words = {"ulysses": "degree", "ring": "ring of"}
    each = "; ".join(
        f"{words[group.attention]} {group.degree}: {group.ratio:.2f} of measured, off by "
        f"{group.error_fraction:.0%} (median of {group.num_groups})"
        for group in plans.groups
    )
    if plans.num_refinements:
        each += f"; coefficients refined {counted(plans.num_refinements, 'time')}"
    return each


def _side_by_side(comparison: "Comparison") -> list[tuple[str, str, str]]:
    first, second = _figures(comparison.first), _figures(comparison.second)
    return [(name, first[name], second[name]) for name in first if name in second]


def _figures(report: "RunReport") -> dict[str, str]:
    from trimtab.core.units import count_text, duration_text

    figures = {"Run": report.handle, "Steps": _steps_text(report), "Loss": _loss_text(report)}
    if (times := report.times) is not None:
        figures["Median step"] = duration_text(times.median_step_s)
        figures["P90 step"] = duration_text(times.p90_step_s)
        figures["Tokens/s"] = count_text(times.tokens_per_s)
        figures["MFU"] = "blank" if times.mfu is None else f"{times.mfu:.1%}"
    if (plans := report.plans) is not None:
        figures["Mixed degrees"] = f"{plans.mixed_fraction:.0%} of the steps"
        figures["Waves a step"] = f"{plans.waves_per_step:.1f}"
    return figures


def _bar(part: "TimePart", times: "TimeSummary") -> str:
    from trimtab.core.units import duration_text

    total_s = sum(each.seconds for each in times.parts)
    share = part.seconds / total_s if total_s else 0.0
    bar = "█" * round(share * _BAR_WIDTH)
    return f"{bar:<{_BAR_WIDTH}} {share:4.0%}  {duration_text(part.seconds)}"
