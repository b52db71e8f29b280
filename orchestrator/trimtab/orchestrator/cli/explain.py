"""`trimtab explain`: why this layout and not that."""

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import InputError, placed
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.orchestrator.explanation import Explanation

_SHOWN = 4


def explain(
    plan_file: Annotated[
        Path,
        typer.Argument(metavar="PLAN", help="What `plan JOB --json` printed, or a job file."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A.B=C]...", help="Settings that win over a job file."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say why a plan chose its layout: what the others gain and lose, and what rules them out.

    Example: trimtab plan configs/llama-3-8b.yaml --json > plan.json; trimtab explain plan.json
    """
    from dataclasses import asdict

    from trimtab.orchestrator import api, explanation, plan_json
    from trimtab.orchestrator.file_text import read_text

    if plan_file.suffix == ".json":
        if overrides:
            raise InputError("a plan has no settings to change; name the job file instead")
        with placed(plan_file):
            try:
                document = json_text.loads(read_text(plan_file))
            except ValueError as error:
                raise InputError(f"expected a JSON document: {error}") from error
            found = explanation.explain(document)
    else:
        job = api.load_job(plan_file, overrides or [])
        note = api.planning_batch(job).note
        document = plan_json.plan_document(job, api.plan(job), batch_note=note)
        found = explanation.explain(document)
    if json:
        print_json(asdict(found))
        return
    _show(console(markup=False), found)


def _show(out: "Console", found: "Explanation") -> None:
    from trimtab.core.units import duration_text

    out.print(f"{found.layout}: {duration_text(found.step_s)} a step", style="bold")
    out.print(found.reason)
    out.print(
        f"{found.largest_part} is most of it, {found.largest_fraction:.0%}; GPUs that compute "
        f"a tenth faster would save {found.faster_compute_fraction:.1%}, links a tenth faster "
        f"{found.faster_network_fraction:.1%} at most"
    )
    for other in found.alternatives:
        out.print()
        out.print(
            f"not {other.layout}: {duration_text(abs(other.slower_s))} "
            f"({other.slower_fraction:+.1%}) a step",
            style="bold",
        )
        for each in other.differences[:_SHOWN]:
            word = "loses" if each.seconds > 0 else "gains"
            out.print(f"  {word} {duration_text(abs(each.seconds))} in {each.part}")
    for constraint in found.constraints:
        out.print()
        count = constraint.num_layouts
        out.print(f"ruled out by {constraint.name}: {count} choices of degrees", style="bold")
        out.print(f"  nearest {constraint.nearest}: {constraint.reason}")
