"""The `trimtab` command: registers every command and turns errors into one line and a code.

A command is a function whose typer annotations are its command line. It returns nothing when
all is well, or an exit code. Its module imports only light things at the top, so that
`trimtab --help` stays fast.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer

from trimtab.core.errors import ExitCode, TrimtabError, printable

_SET_UP: Final = "Set up"
_PLAN: Final = "Plan"
_RUN: Final = "Run"
_WATCH: Final = "Watch"

_COMMANDS: Final = {
    "init": (_SET_UP, "init:init"),
    "doctor": (_SET_UP, "doctor:doctor"),
    "calibrate": (_SET_UP, "calibrate:calibrate"),
    "demo": (_SET_UP, "demo:demo"),
    "dev-cluster": (_SET_UP, "dev_cluster:app"),
    "topology": (_SET_UP, "topology:topology"),
    "plan": (_PLAN, "plan:plan"),
    "explain": (_PLAN, "explain:explain"),
    "capacity": (_PLAN, "capacity:capacity"),
    "validate": (_PLAN, "validate:validate"),
    "plan-step": (_PLAN, "plan_step:plan_step"),
    "timeline": (_PLAN, "timeline:timeline"),
    "plan-paths": (_PLAN, "plan_paths:plan_paths"),
    "submit": (_RUN, "submit:submit"),
    "cancel": (_RUN, "jobs:cancel"),
    "export": (_RUN, "export:export"),
    "status": (_WATCH, "jobs:status"),
    "logs": (_WATCH, "logs:logs"),
    "list": (_WATCH, "jobs:list_jobs"),
    "dashboard": (_WATCH, "dashboard:dashboard"),
    "report": (_WATCH, "report:report"),
    "compare": (_WATCH, "report:compare"),
}
"""Panel of the help, and module and function in this package."""


def make_app(only: str | None = None) -> typer.Typer:
    """The command line, or as much of it as one command needs.

    typer takes a tenth of a second to read the options of all.
    """
    app = typer.Typer(
        name="trimtab",
        help="Plan, launch and watch large-model training on real, uneven GPU clusters.",
        epilog="Exit codes: 0 fine, 1 the job failed, 2 wrong usage or input, 93 do not "
        "restart, 100 to 103 of status and logs, 130 interrupted.",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, (panel, place) in _COMMANDS.items():
        if only in (None, name):
            module, _, function = place.partition(":")
            command = getattr(importlib.import_module(f"{__package__}.{module}"), function)
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=panel)
            else:
                app.command(name, rich_help_panel=panel)(_interruptible(command))
    return app


def _interruptible(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """The command, ending in `typer.Abort` when interrupted: typer itself says nothing."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> int | None:
        try:
            return command(*args, **options)
        except KeyboardInterrupt as error:
            raise typer.Abort from error

    return run


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"trimtab {importlib.metadata.version('trimtab')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the process's exit code.

    A `TrimtabError` or wrong usage prints one line to stderr. Any other exception is a bug of
    ours and keeps its traceback.
    """
    arguments, script = _split(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    try:
        app = make_app(arguments[0] if arguments[0] in _COMMANDS else None)
        result = app(arguments, prog_name="trimtab", standalone_mode=False, obj=script)
    except TrimtabError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Missing argument 'RUN'"):
            message += " See `trimtab list`"
        return _fail(message, ExitCode.USAGE)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    return int(result or ExitCode.OK)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The command line of `submit` without the script's, which follows `--`; and that.

    click forgets where `--` stood, and would take what follows for job files.
    """
    if arguments[0] != "submit" or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return int(exit_code)


if __name__ == "__main__":
    sys.exit(main())
