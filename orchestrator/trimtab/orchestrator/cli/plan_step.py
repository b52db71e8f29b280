"""`trimtab plan-step`: the groups of one step, from lengths and a profile or a job."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text

    from trimtab.core.plan import StepPlan, Wave
    from trimtab.core.profile import StepProfile

_MOST_GPUS = 1_000_000
_DRAWN_WAVES = 12
_RANKS_A_LINE = 64
_MOST_DRAWN_RANKS = 512
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green")


def plan_step(
    lengths: Annotated[
        Path,
        typer.Option("--lengths", "-l", help="Tokens of every sequence, one number a line."),
    ],
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Step coefficients, JSON in ms and GB/s."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", "-n", help="GPUs, of all stages together.")
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", "-c", help="Uneven machines to plan stages and paths over."),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option("--job", "-j", help="The job whose step it is, with --cluster."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", metavar="START:END", help="Plan these lines of the file only (0-based)."
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit",
            help="Seconds to improve the first plan and its bound; 0 takes the first plan.",
        ),
    ] = 1.0,
    pp: Annotated[
        int, typer.Option("--pp", help="Pipeline stages; groups are formed in each alike.")
    ] = 1,
    vpp: Annotated[
        int, typer.Option("--vpp", help="Chunks of a stage; over 1: interleaved.")
    ] = 1,
    json: JsonOption = False,
) -> None:
    """Plan one step: which GPUs share which sequences.

    With --profile and --gpus, wave by wave on equal GPUs; lengths are used as given: none is
    padded, split or dropped. With --cluster and --job, which nodes serve which stage, too, and
    which replicas each group goes through; documents that are too long are split, truncated or
    dropped as the job says. Times are wall seconds after imports and compilation.
    """
    if not 0 <= time_limit < math.inf:
        raise InputError(f"--time-limit: expected seconds >= 0, got {time_limit}")
    start, end = _line_range(batch)
    if (profile or gpus is not None) and (cluster or job):
        raise InputError(
            "plan-step: expected either --profile and --gpus or --cluster and --job, got both"
        )
    if (cluster or job) and (pp, vpp) != (1, 1):
        raise InputError(
            "--pp, --vpp: stages of equal GPUs alone; with --cluster and --job leave them out "
            "and set layout.pp in the job"
        )
    if cluster and job:
        from trimtab.orchestrator.cli.joint_step import plan_joint

        plan_joint(
            cluster, job, lengths=lengths, start=start, end=end, time_limit_s=time_limit,
            json=json,
        )  # fmt: skip
        return
    if profile is None or gpus is None:
        raise InputError(
            "plan-step: expected --profile and --gpus, or --cluster and --job, got "
            f"{_given(profile=profile, gpus=gpus, cluster=cluster, job=job)}"
        )
    _plan_waves(
        profile, gpus, lengths=lengths, start=start, end=end, pp=pp, vpp=vpp,
        time_limit_s=time_limit, json=json,
    )  # fmt: skip


def _plan_waves(
    profile: Path,
    gpus: int,
    *,
    lengths: Path,
    start: int,
    end: int | None,
    pp: int,
    vpp: int,
    time_limit_s: float,
    json: bool,
) -> None:
    """Plan a step on equal GPUs, and print it."""
    from trimtab.core.pipeline import Pipeline
    from trimtab.orchestrator import api, plan_json

    for name, number in (("gpus", gpus), ("pp", pp), ("vpp", vpp)):
        if number < 1:
            raise InputError(f"--{name}: expected a whole number >= 1, got {number}")
    if gpus > _MOST_GPUS:
        raise InputError(f"--gpus: at most {_MOST_GPUS:,} can be planned, got {gpus}")
    if gpus % pp:
        raise InputError(f"--pp: expected a divisor of --gpus {gpus}, got {pp}")
    pipeline = Pipeline(pp=pp, vpp=vpp)
    num_ranks = gpus // pp
    coefficients = api.load_profile(profile)
    batch_lengths = api.load_lengths(lengths, start=start, end=end)
    try:
        step_plan = api.plan_step(
            batch_lengths, profile=coefficients, num_ranks=num_ranks, pipeline=pipeline,
            time_limit_s=time_limit_s,
        )  # fmt: skip
    except InfeasibleError as error:
        index = batch_lengths.index(max(batch_lengths))
        reason = str(error).removeprefix(f"lengths[{index}]: ")
        raise InfeasibleError(f"{lengths}, line {start + index + 1}: {reason}") from error
    uniform = api.best_uniform_step(
        batch_lengths, profile=coefficients, num_ranks=num_ranks, pipeline=pipeline
    )
    if json:
        print_json(
            plan_json.step_plan_document(
                step_plan,
                lengths=batch_lengths,
                profile=coefficients,
                num_ranks=gpus,  # of all stages
                first_line=start,
                uniform=uniform,
            )
        )
        return
    _show(
        console(), step_plan, lengths=batch_lengths, profile=coefficients,
        num_ranks=num_ranks, uniform=uniform,
    )  # fmt: skip


def _given(**options: object) -> str:
    return ", ".join(f"--{name}" for name, value in options.items() if value) or "neither"


def _line_range(batch: str | None) -> tuple[int, int | None]:
    if batch is None:
        return 0, None
    start, separator, end = batch.partition(":")
    if not (separator and start.isdecimal() and end.isdecimal() and int(start) < int(end)):
        raise InputError(f"--batch: expected START:END with 0 <= START < END, got {batch!r}")
    return int(start), int(end)


def _show(
    out: "Console",
    step_plan: "StepPlan",
    *,
    lengths: "Sequence[int]",
    profile: "StepProfile",
    num_ranks: int,
    uniform: "StepPlan | None",
) -> None:
    from rich.markup import escape

    from trimtab.core.units import counted, duration_text

    out.print(
        f"[bold]{counted(len(lengths), 'sequence')}[/bold], "
        f"{sum(lengths):,} tokens, longest {max(lengths):,}, on "
        f"{counted(num_ranks, 'GPU')}{_stages_text(step_plan)} with profile "
        f"{escape(profile.name)} "
        f"({profile.evidence}, {profile.token_cap:,} tokens a GPU)"
    )
    out.print(
        f"[bold]step {duration_text(step_plan.step_s)}[/bold], at most "
        f"{step_plan.gap_fraction:.1%} over the best possible "
        f"(bound {duration_text(step_plan.lower_bound_s)}); "
        f"{counted(len(step_plan.waves), 'wave')}; "
        f"{step_plan.method}, solved in {duration_text(step_plan.solve_s)}"
    )
    if step_plan.first_step_s is not None and step_plan.first_plan_s is not None:
        out.print(
            f"first plan after {duration_text(step_plan.first_plan_s)}: "
            f"step {duration_text(step_plan.first_step_s)}, "
            f"{step_plan.first_step_s / step_plan.step_s - 1:.1%} longer"
        )
    if uniform is not None:
        out.print(
            f"best uniform degree {uniform.degrees[0]}: step {duration_text(uniform.step_s)}, "
            f"{uniform.step_s / step_plan.step_s:.2f} times as long"
        )
    colours = {
        degree: _COLOURS[index % len(_COLOURS)]
        for index, degree in enumerate(step_plan.degrees)
    }
    for number, wave in enumerate(step_plan.waves[:_DRAWN_WAVES], start=1):
        _show_wave(
            out, wave, number=number, lengths=lengths, profile=profile, num_ranks=num_ranks,
            colours=colours,
        )  # fmt: skip
    if len(step_plan.waves) > _DRAWN_WAVES:
        rest = len(step_plan.waves) - _DRAWN_WAVES
        out.print(f"... and {counted(rest, 'more wave')}; --json has them all")


def _stages_text(step_plan: "StepPlan") -> str:
    if step_plan.pipeline is None:
        return ""
    stages = step_plan.pipeline.stages
    chunks = f" of {stages.vpp} chunks" if stages.vpp > 1 else ""
    return f" in each of {stages.pp} stages{chunks}"


def _show_wave(
    out: "Console",
    wave: "Wave",
    *,
    number: int,
    lengths: "Sequence[int]",
    profile: "StepProfile",
    num_ranks: int,
    colours: dict[int, str],
) -> None:
    from trimtab.core.units import counted, duration_text
    from trimtab.planners.steps.rank_blocks import placed_seconds

    seconds = placed_seconds(wave, lengths, profile=profile)
    busy = sum(t * group.degree for t, group in zip(seconds, wave.groups, strict=True))
    counts = Counter((group.degree, group.attention) for group in wave.groups)
    words = {"ulysses": "degree", "ring": "ring of"}
    groups = "  ".join(
        f"[{colours[degree]}]{counts[degree, kind]} x {words[kind]} {degree}"
        f"[/{colours[degree]}]"
        for degree, kind in sorted(counts, reverse=True)
    )
    sequences = counted(sum(len(group.sequences) for group in wave.groups), "sequence")
    out.print()
    out.print(
        f"[bold]wave {number}[/bold]  {duration_text(max(seconds))}  "
        f"{sequences}  {busy / max(seconds) / num_ranks:.0%} busy  {groups}"
    )
    if num_ranks <= _MOST_DRAWN_RANKS:
        for line in _rank_lines(wave, num_ranks=num_ranks, colours=colours):
            out.print(line)


def _rank_lines(wave: "Wave", *, num_ranks: int, colours: dict[int, str]) -> list["Text"]:
    """One cell a rank; each run of a group's ranks is blocks that end in a half block."""
    from rich.text import Text

    cells = [("·", "dim")] * num_ranks
    for group in wave.groups:
        for rank in group.ranks:
            last = rank + 1 not in group.ranks
            cells[rank] = ("▌" if last else "█", colours[group.degree])
    lines = []
    for first in range(0, num_ranks, _RANKS_A_LINE):
        line = Text(f"{first:>5} ", style="dim")
        for cell, style in cells[first : first + _RANKS_A_LINE]:
            line.append(cell, style=style)
        lines.append(line)
    return lines
