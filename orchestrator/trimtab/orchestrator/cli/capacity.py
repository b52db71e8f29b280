"""`trimtab capacity`: how many GPUs a training wants, and what it takes on them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimtab.core import checks
from trimtab.core.errors import InputError, shown
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.orchestrator.capacity import CapacityRow, Limits

_MOST_SIZES = 200
_UNITS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def capacity(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="Job file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A.B=C]...", help="Settings that win over the file."),
    ] = None,
    gpus: Annotated[
        str,
        typer.Option(
            "--gpus", help="Sizes: 64:4096 (doubling), 64:512:64 (in steps) or 64,96,128."
        ),
    ] = "64:1024",
    gpu_types: Annotated[
        str | None,
        typer.Option("--gpu-types", help="Devices, as h100,a100; default: the job's own."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", help="Of the whole training, as 15T; default: of its steps."),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            "--phase", help="FRACTION:TOKENS[:BATCH]: a part with its own context. Repeatable."
        ),
    ] = None,
    deadline: Annotated[str | None, typer.Option("--deadline", help="As 30d or 48h.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Needs --price.")] = None,
    price: Annotated[float | None, typer.Option("--price", help="Of a GPU-hour.")] = None,
    failures_per_gpu_day: Annotated[
        float | None,
        typer.Option("--failures-per-gpu-day", help="Default: Llama 3's, 4.7e-4; 0: none."),
    ] = None,
    checkpoint_s: Annotated[
        float, typer.Option("--checkpoint-s", help="How long training waits for one.")
    ] = 10.0,
    checkpoint_every: Annotated[
        str, typer.Option("--checkpoint-every", help="Seconds of training, or auto.")
    ] = "auto",
    restart_s: Annotated[
        float, typer.Option("--restart-s", help="From a failure until it trains again.")
    ] = 600.0,
    power_w: Annotated[
        float | None, typer.Option("--power-w", help="Of a GPU; default: its datasheet's.")
    ] = None,
    pue: Annotated[
        float, typer.Option("--pue", help="Power of the data center over the GPUs'.")
    ] = 1.2,
    rates: Annotated[
        Path | None,
        typer.Option("--rates", help="Rates of `trimtab calibrate`; default: those shipped."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with charts.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Forecast a whole training on several numbers and kinds of GPUs; starts nothing.

    Example: trimtab capacity configs/llama-3-70b.yaml --gpus 64:1024 --tokens 1T --price 2
    """
    from dataclasses import asdict

    from rich.progress import track

    from trimtab.orchestrator import api
    from trimtab.orchestrator.capacity import (
        Costs,
        Limits,
        answers,
        capacity_row,
        phases_of,
    )
    from trimtab.planners.goodput import LLAMA_3_FAILURES_PER_GPU_DAY, Reliability

    job = api.load_job(job_file, overrides or [])
    sizes = sizes_of(gpus)
    reliability = Reliability(
        failures_per_gpu_day=(
            LLAMA_3_FAILURES_PER_GPU_DAY
            if failures_per_gpu_day is None
            else failures_per_gpu_day
        ),
        checkpoint_s=checkpoint_s,
        restart_s=restart_s,
        checkpoint_every_s=(None if checkpoint_every == "auto" else _seconds(checkpoint_every)),
    )
    costs = Costs(price=price, power_w=power_w, pue=pue)
    limits = Limits(deadline_s=_duration(deadline), budget=_budget(budget, price=price))
    phases = phases_of(job, phase or [])
    num_tokens = (
        job.training.num_steps * job.training.global_batch_seqs * job.data.max_seq_tokens
        if tokens is None
        else _amount(tokens)
    )
    book = None if rates is None else api.load_rates(rates)
    devices = [None] if gpu_types is None else [word.strip() for word in gpu_types.split(",")]
    wanted = [(gpu, size) for gpu in devices for size in sizes]
    screen = console(stderr=True)
    steps = track(
        wanted, "planning", console=screen, transient=True, disable=not screen.is_terminal
    )
    rows = [
        capacity_row(
            job,
            gpu=gpu,
            num_gpus=size,
            num_tokens=num_tokens,
            phases=phases,
            reliability=reliability,
            costs=costs,
            rates=book,
        )
        for gpu, size in steps
    ]
    found = answers(rows, limits)
    if html is not None:
        from trimtab.orchestrator.capacity_page import page

        html.write_text(page(job.name, num_tokens, rows), encoding="utf-8")
    if json:
        document: dict[str, Any] = {
            "job": job.name,
            "num_tokens": num_tokens,
            "failures_per_gpu_day": reliability.failures_per_gpu_day,
            "rows": [asdict(row) | {"keeps_limits": limits.kept_by(row)} for row in rows],
            "answers": {
                name: {"gpu": row.gpu, "num_gpus": row.num_gpus} for name, row in found.items()
            },
        }
        print_json(document)
        return
    _show(console(), job.name, num_tokens, rows, limits=limits)
    for name, row in found.items():
        _say_answer(console(), name, row)
    if not found:
        console().print("no size keeps the limits", style="yellow")
    out = console(markup=False)
    out.print(
        f"failures: {reliability.failures_per_gpu_day:.2g} a GPU and day"
        + (" (Llama 3 405B, arXiv:2407.21783)" if failures_per_gpu_day is None else "")
        + f", {restart_s:g} s each; a checkpoint takes {checkpoint_s:g} s",
        style="dim",
    )
    if html is not None:
        out.print(f"charts: {html}")


def sizes_of(text: str) -> list[int]:
    """Numbers of GPUs: `64:512` doubles, `64:512:64` adds, `64,96` lists.

    Raises:
        InputError: It has another form, is empty, or has over 200 sizes.
    """
    wrong = InputError(
        f"--gpus: expected sizes as 64:4096, 64:512:64 or 64,96,128, got {shown(text)}"
    )
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        sizes = [int(word) for word in text.split(",")]
    elif re.fullmatch(r"\d{1,9}:\d{1,9}(:\d{1,9})?", text):
        first, last, *step = (int(word) for word in text.split(":"))
        if first < 1 or last < first or step == [0]:
            raise wrong
        if step and (last - first) // step[0] >= _MOST_SIZES:
            raise InputError(f"--gpus: expected at most {_MOST_SIZES} sizes, got {text!r}")
        sizes = list(range(first, last + 1, step[0])) if step else []
        while not step and first <= last:
            sizes.append(first)
            first *= 2
    else:
        raise wrong
    if min(sizes) < 1 or len(sizes) > _MOST_SIZES:
        raise wrong
    return sizes


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None or not float(found.group(1)):
        raise InputError(f"--deadline: expected a time as 48h, 30d or 6w, got {shown(text)}")
    return float(found.group(1)) * _UNITS[found.group(2)]


def _amount(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([kmbt]?)", text.casefold())
    if found is None or not float(found.group(1)):
        raise InputError(f"--tokens: expected a number as 300B or 15T, got {shown(text)}")
    return float(found.group(1)) * _SIZES.get(found.group(2), 1.0)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"--checkpoint-every: expected seconds or auto, got {shown(text)}"
        ) from error


def _budget(budget: float | None, *, price: float | None) -> float | None:
    if budget is None:
        return None
    checks.positive("--budget", budget)
    if price is None:
        raise InputError("--budget: needs the price of a GPU-hour; add --price 2.5")
    return budget


def _show(
    out: "Console",
    name: str,
    num_tokens: float,
    rows: "list[CapacityRow]",
    *,
    limits: "Limits",
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trimtab.core.units import count_text

    has_money = any(row.money is not None for row in rows)
    out.print(f"[bold]{escape(name)}[/bold]: {count_text(num_tokens)} tokens")
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ["GPUs", "layout", "step", "MFU", "goodput", "wall time", "80 %", "GPU-h"]
    heads += ["money"] if has_money else []
    for head in [*heads, "MWh"]:
        justify: Literal["left", "right"] = "left" if head == "layout" else "right"
        table.add_column(head, justify=justify, no_wrap=True)
    many = len({row.gpu for row in rows}) > 1
    for row in rows:
        size = f"{row.num_gpus} {row.gpu}" if many else str(row.num_gpus)
        if row.wall_s is None or row.step_s is None:
            table.add_row(size, "[yellow]none runs[/yellow]")
            continue
        interval = "-"
        if row.low_s is not None and row.high_s is not None:
            low, high = row.low_s / row.wall_s - 1, row.high_s / row.wall_s - 1
            interval = f"{low:+.0%} {high:+.0%}"
        table.add_row(
            size,
            "; ".join(row.layouts),
            f"{row.step_s:.3g} s",
            f"{row.mfu:.1%}",
            f"{row.goodput:.1%}",
            f"{row.wall_s / 86_400:,.1f} d",
            interval,
            count_text(row.gpu_hours or 0.0),
            *([count_text(row.money or 0.0)] if has_money else []),
            "-" if row.energy_kwh is None else count_text(row.energy_kwh / 1000),
            style="" if limits.kept_by(row) else "dim",
        )
    out.print(table)
    for row in rows:
        if row.reason is not None:
            out.print(
                f"[yellow]{row.num_gpus} {escape(row.gpu)}[/yellow]: {escape(row.reason)}"
            )


def _say_answer(out: "Console", name: str, row: "CapacityRow") -> None:
    from rich.markup import escape

    from trimtab.core.units import count_text, duration_text

    money = "" if row.money is None else f", {row.money:,.0f}"
    out.print(
        f"[bold]{name}[/bold]: {row.num_gpus} {escape(row.gpu)}, "
        f"{duration_text(row.wall_s or 0.0)}, {count_text(row.gpu_hours or 0.0)} GPU-hours"
        f"{money}"
    )
    if row.outside is not None:
        out.print(f"  outside calibration: {escape(row.outside)}", style="yellow")
