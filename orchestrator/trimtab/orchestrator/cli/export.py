"""`trimtab export`: a run's weights for others to load."""

import os
from pathlib import Path
from typing import Annotated

import typer

from trimtab.core.errors import InputError, MissingExtraError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json
from trimtab.orchestrator.cli.which_run import RunArgument


def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(help="Where to write; must be new or empty.")],
    json: JsonOption = False,
) -> None:
    """Write a run's newest checkpoint as a Hugging Face folder (Llama-type safetensors)."""
    from trimtab.orchestrator.runs_folder import find_run

    found = find_run(run)
    job, _ = found.request().training
    _check_target(folder)
    try:
        from trimtab.launch.runtime.export import export_newest
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"export needs the package {error.name}: pip install 'trimtab[train]'"
        ) from error
    try:
        exported = export_newest(job, found.checkpoints, folder)
    except OSError as error:
        raise InputError(f"cannot export to {folder}: {error}") from error
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


def _check_target(folder: Path) -> None:
    """Refuse before the weights are loaded what could not be written after that."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: expected a new or empty folder, but it is a file")
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: expected a new or empty folder, but it holds files")
        place = folder.absolute().parent
        while not place.exists():
            place = place.parent
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: expected a folder that can be written, but {place} is not")
