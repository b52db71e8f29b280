"""Which run a command is about: the one it names, or the newest where it names none."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from trimtab.orchestrator.rundir import RunDir

RUN_HELP: Final = "local://ID, an id, the beginning of one, or a run directory"

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=f"{RUN_HELP}.")]

NewestRunArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help=f"{RUN_HELP}; the newest if none is given.")
]


def named_or_newest(text: str | None) -> "RunDir":
    """The run of a handle, or the newest one, which is said on standard error.

    Raises:
        NoSuchRunError: There is none.
        InputError: The beginning of an id fits several.
        RunDirError: It is damaged, or of another version.
    """
    from trimtab.orchestrator.runs_folder import find_run, newest_run

    if text is not None:
        return find_run(text)
    run = newest_run()
    typer.echo(f"the newest run: {run.handle}", err=True)
    return run
