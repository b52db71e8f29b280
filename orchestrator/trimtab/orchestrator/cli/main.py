"""The `trimtab` command: registers every command and turns errors into one line and a code.

A command is a function whose typer annotations are its command line. It returns nothing when
all is well, or an exit code. Its module imports only light things at the top, so that
`trimtab --help` stays fast.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from trimtab.core.errors import ExitCode, TrimtabError

_PLAN = "Plan"
_RUN = "Run"
_WATCH = "Watch"
_SET_UP = "Set up"

app = typer.Typer(
    name="trimtab",
    help="Plan, launch and watch large-model training on real, uneven GPU clusters.",
    epilog="Exit codes: 0 fine, 1 the job failed, 2 wrong usage or input, 93 do not restart.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS = (
    ("init", "init", "init", _SET_UP),
    ("doctor", "doctor", "doctor", _SET_UP),
    ("calibrate", "calibrate", "calibrate", _SET_UP),
    ("demo", "demo", "demo", _SET_UP),
    ("plan", "plan", "plan", _PLAN),
    ("plan_step", "plan_step", "plan-step", _PLAN),
    ("jobs", "submit", "submit", _RUN),
    ("jobs", "cancel", "cancel", _RUN),
    ("jobs", "status", "status", _WATCH),
    ("jobs", "logs", "logs", _WATCH),
    ("jobs", "list_jobs", "list", _WATCH),
    ("dashboard", "dashboard", "dashboard", _WATCH),
    ("report", "report", "report", _WATCH),
    ("report", "compare", "compare", _WATCH),
)


def _register() -> None:
    for module_name, function, name, panel in _COMMANDS:
        try:
            module = importlib.import_module(f"trimtab.orchestrator.cli.{module_name}")
            app.command(name=name, rich_help_panel=panel)(getattr(module, function))
        except (ImportError, AttributeError):
            continue


_register()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trimtab {importlib.metadata.version('trimtab')}")
        raise typer.Exit


@app.callback()
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
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        result = app(arguments, prog_name="trimtab", standalone_mode=False)
    except TrimtabError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(error.format_message(), ExitCode.USAGE)
    except typer.Abort:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    return int(result or ExitCode.OK)


def _fail(message: str, exit_code: int) -> int:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    return int(exit_code)


if __name__ == "__main__":
    sys.exit(main())
