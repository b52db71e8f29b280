"""`trimtab export`: a run's weights for others to load."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.core.errors import MissingExtraError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json


def export(
    run: Annotated[str, typer.Argument(help="Handle, id or directory of a run.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; must be new or empty.")],
    json: JsonOption = False,
) -> None:
    """Write a run's newest checkpoint as a Hugging Face folder (Llama-type safetensors)."""
    from trimtab.orchestrator.rundir import find_run

    found = find_run(run)
    job = found.request().job
    try:
        from trimtab.launch.runtime.export import export_newest
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"export needs the package {error.name}: pip install 'trimtab[train]'"
        ) from error
    exported = export_newest(job, found.checkpoints, folder)
    if json:
        print_json(
            {
                "run": str(found.handle),
                "step": exported.step,
                "folder": str(folder),
                "passed_over": list(exported.passed_over),
            }
        )
        return
    out = console()
    for reason in exported.passed_over:
        out.print(f"passed over: {reason}", soft_wrap=True, markup=False)
    out.print(
        f"{found.handle} after step {exported.step}: written to {folder}",
        soft_wrap=True,
        markup=False,
    )
