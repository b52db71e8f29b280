"""`trimtab init`: a commented job file and cluster file to start from."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.output import DryRunOption

TEMPLATES = ("job.yaml", "cluster.yaml")


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to put the files.")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write a commented job file and cluster file to start from."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, got a file")
    targets = [folder / name for name in TEMPLATES]
    existing = [target for target in targets if target.exists()]
    if existing and not force:
        raise InputError(f"{existing[0]}: exists already; --force overwrites it")
    for target in targets:
        if not dry_run:
            write_template(target.name, target)
        typer.echo(f"{'would write' if dry_run else 'wrote'} {target}")
    if not dry_run:
        _print_next(folder)


def _print_next(folder: Path) -> None:
    job, profile = folder / "job.yaml", folder / "profile.json"
    typer.echo("next:")
    typer.echo(f"  trimtab calibrate {job} --out {profile}")
    typer.echo(f"  trimtab plan {job} profile={profile}")
    typer.echo(f"  trimtab submit {job} profile={profile}")


def write_template(name: str, target: Path) -> None:
    """Copy one template of the package to `target`.

    Raises:
        InputError: The folder or the file cannot be written.
    """
    text = resources.files("trimtab.orchestrator").joinpath("templates", name).read_text()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
