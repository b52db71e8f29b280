"""`trimtab calibrate`: measure what sequence groups cost on this machine."""

import json as json_text
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.output import DryRunOption, JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.core.device_speed import DeviceSpeed
    from trimtab.core.job import JobSpec
    from trimtab.orchestrator.calibrate import Calibration


def calibrate(
    job: Annotated[
        Path | None,
        typer.Argument(
            help="Job file to measure, or a table (FILE.csv) of measured steps to fit; not "
            "with --from-run."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the job file.", metavar="[a.b=c]...")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write the profile, or the rates.")
    ] = Path("profile.json"),
    from_run: Annotated[
        str | None, typer.Option(help="Fit a run that has trained already; starts nothing.")
    ] = None,
    device: Annotated[
        bool,
        typer.Option(
            "--device", help="Time the operations of a step on this machine's device."
        ),
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Measure step coefficients by a short run of a job, and write them as a profile.

    To a table of measured steps (see `trimtab validate`) it fits what devices and software
    reach of the datasheet, for `trimtab plan --rates`; nothing is run. With --device a
    micro-benchmark of the GPU (or CPU) at hand gives such rates in seconds.

    With --dry-run the request of that run is printed, as by `submit`, and nothing is changed.
    """
    from trimtab.orchestrator import calibrate as calibration
    from trimtab.orchestrator.cli.progress import INTERRUPTED
    from trimtab.orchestrator.config import load_job
    from trimtab.orchestrator.runs_folder import find_run, runs_root
    from trimtab.orchestrator.submission import prepare_job
    from trimtab.planners.calibration import profile_document

    if [job is not None, from_run is not None, device].count(True) != 1:
        raise InputError("expected a job file, --from-run RUN or --device, one of them")
    _check_writable(out)
    if device:
        measure_device_rates(out, json=json)
        return 0
    if job is not None and job.suffix == ".csv":
        fit_table(job, out=out, json=json)
        return 0
    screen = console(stderr=json, markup=False)
    if job is None:
        assert from_run is not None
        result = calibration.fit_run(find_run(from_run))
    else:
        spec = load_job(job, overrides or ())
        if dry_run:
            sys.stdout.write(prepare_job(calibration.probing_job(spec)).text)
            return 0
        try:
            result = measure(spec, root=runs_root(), screen=screen)
        except KeyboardInterrupt:
            return INTERRUPTED
    document = profile_document(result.profile)
    out.write_text(json_text.dumps(document, indent=1) + "\n", encoding="utf-8")
    _show(result, screen)
    screen.print(f"written to {out}; use it with: profile={out}", soft_wrap=True)
    if json:
        print_json(document)
    return 0


def fit_table(table: Path, *, out: Path, json: bool) -> None:
    """Fit rates to a table of measured steps, and write them."""
    from trimtab.core import serde
    from trimtab.orchestrator.measured import read_measured
    from trimtab.orchestrator.rate_fitting import fit_book
    from trimtab.orchestrator.validation import cases_of

    cases, unread = cases_of(*read_measured(table))
    screen = console(stderr=json, markup=False)
    with console(stderr=True).status("fitting") as status:
        book = fit_book(
            cases, evidence=f"{len(cases)} rows of {table.name}", tell=status.update
        )
    out.write_text(serde.to_json(book, indent=1) + "\n", encoding="utf-8")
    for entry in book.entries:
        low, high = entry.interval(1.0)
        screen.print(
            f"{entry.name}: {entry.num_rows} rows, median error {entry.median_error:.1%}, "
            f"80 % of unseen rows within {low - 1:+.0%} to {high - 1:+.0%}"
        )
    screen.print(f"{len(unread)} rows could not be read")
    screen.print(f"written to {out}; use it with: trimtab plan --rates {out}", soft_wrap=True)
    if json:
        print_json(serde.to_document(book))


def measure_device_rates(out: Path, *, json: bool) -> None:
    """Time the device at hand, and write its rates.

    Raises:
        InputError: PyTorch is not installed.
    """
    from trimtab.core import serde
    from trimtab.orchestrator.device_rates import device_rates, fragment
    from trimtab.orchestrator.rate_books import shipped_book

    try:
        from trimtab.launch.runtime.device_speed import measure_device
    except ModuleNotFoundError as error:
        raise InputError(
            f"--device: expected PyTorch to measure with, but {error.name} is not installed; "
            "pip install 'trimtab[train]'"
        ) from error
    screen = console(stderr=json, markup=False)
    with console(stderr=True).status("measuring") as status:
        speed = measure_device(tell=status.update)
    found = device_rates(speed, known=shipped_book())
    out.write_text(serde.to_json(found.book, indent=1) + "\n", encoding="utf-8")
    _show_speed(speed, screen)
    screen.print(found.book.evidence, soft_wrap=True)
    if not found.is_datasheet:
        screen.print(
            f"no datasheet of {speed.name!r} is known here, so the best that was measured is "
            "its peak; say so in the cluster file:\n" + fragment(found.gpu),
            soft_wrap=True,
        )
    screen.print(f"written to {out}; use it with: trimtab plan --rates {out}", soft_wrap=True)
    if json:
        print_json(serde.to_document(found.book))


def measure(job: "JobSpec", *, root: Path, screen: "Console") -> "Calibration":
    """Run the probing job of `job`, shown on `screen`, and fit it.

    Raises:
        JobFailedError: The probing run failed.
        InputError: The job cannot be run or measured.
        KeyboardInterrupt: The user interrupted; the run has been asked to end.
    """
    from trimtab.orchestrator.calibrate import fit_run, probing_job
    from trimtab.orchestrator.cli import progress

    run = progress.run_and_follow(
        probing_job(job), root=root, console=screen, interrupted="stopped; nothing measured"
    )
    return fit_run(run)


def _check_writable(out: Path) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    place = out if out.exists() else out.absolute().parent
    if out.is_dir() or not os.access(place, os.W_OK):
        raise InputError(
            f"--out: expected a file that can be written, got {out}; its folder must exist"
        )


def _show(result: "Calibration", screen: "Console") -> None:
    from rich.table import Table

    from trimtab.core.units import GB, MS, duration_text

    profile = result.profile
    table = Table(
        title=f"{profile.name}: {result.num_samples} groups measured", title_justify="left"
    )
    table.add_column("coefficient")
    table.add_column("value", justify="right")
    table.add_row("per token", duration_text(profile.linear_s))
    table.add_row("per token²", f"{profile.quadratic_s / MS:.3g} ms")
    table.add_row("per wave", duration_text(profile.fixed_s))
    table.add_row("per step", duration_text(profile.step_fixed_s))
    for entry in profile.bandwidths:
        table.add_row(f"all-to-all over {entry.degree}", f"{entry.bytes_per_s / GB:.3g} GB/s")
    if profile.ring is not None:
        ring = profile.ring
        table.add_row("per token² in a ring", f"{ring.quadratic_s / MS:.3g} ms")
        table.add_row("of it hides transfers", f"{ring.overlap_fraction:.0%}")
        for entry in ring.bandwidths:
            rate = f"{entry.bytes_per_s / GB:.3g} GB/s"
            table.add_row(f"ring of {entry.degree}", rate)
    table.add_row("median error of a group", f"{result.median_error_fraction:.1%}")
    screen.print(table)


def _show_speed(speed: "DeviceSpeed", screen: "Console") -> None:
    from rich.table import Table

    from trimtab.core.units import GB, duration_text

    table = Table(title=f"{speed.name} x {speed.num_devices}", title_justify="left")
    for heading in ("operation", "precision", "of"):
        table.add_column(heading)
    table.add_column("time", justify="right")
    table.add_column("rate", justify="right")
    for each in speed.timed:
        rate = f"{each.rate / GB:.3g} GB/s"
        if each.kind in ("product", "attention"):
            rate = f"{each.rate / 1e12:.3g} TFLOP/s"
        if each.kind == "layer":
            rate = ""
        table.add_row(each.kind, each.precision, each.what, duration_text(each.seconds), rate)
    screen.print(table)
