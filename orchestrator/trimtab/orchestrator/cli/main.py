"""The `trimtab` command: registers every command and turns errors into one line and a code.

A command is a function whose typer annotations are its command line. It returns nothing when
all is well, or an exit code. Its module imports only light things at the top, so that
`trimtab --help` stays fast.
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from trimtab.core.errors import ExitCode, TrimtabError
from trimtab.orchestrator.cli import (
    calibrate,
    dashboard,
    demo,
    dev_cluster,
    doctor,
    export,
    init,
    jobs,
    logs,
    plan,
    plan_step,
    report,
    submit,
)

_PLAN = "Plan"
_RUN = "Run"
_WATCH = "Watch"
_SET_UP = "Set up"

app = typer.Typer(
    name="trimtab",
    help="Plan, launch and watch large-model training on real, uneven GPU clusters.",
    epilog="Exit codes: 0 fine, 1 the job failed, 2 wrong usage or input, 93 do not restart, "
    "102 no such run, 130 interrupted.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("init", rich_help_panel=_SET_UP)(init.init)
app.command("doctor", rich_help_panel=_SET_UP)(doctor.doctor)
app.command("calibrate", rich_help_panel=_SET_UP)(calibrate.calibrate)
app.command("demo", rich_help_panel=_SET_UP)(demo.demo)
app.command("plan", rich_help_panel=_PLAN)(plan.plan)
app.command("plan-step", rich_help_panel=_PLAN)(plan_step.plan_step)
app.command("submit", rich_help_panel=_RUN)(submit.submit)
app.command("cancel", rich_help_panel=_RUN)(jobs.cancel)
app.command("status", rich_help_panel=_WATCH)(jobs.status)
app.command("logs", rich_help_panel=_WATCH)(logs.logs)
app.command("list", rich_help_panel=_WATCH)(jobs.list_jobs)
app.command("dashboard", rich_help_panel=_WATCH)(dashboard.dashboard)
app.add_typer(dev_cluster.app, name="dev-cluster", rich_help_panel=_SET_UP)
app.command("export", rich_help_panel=_RUN)(export.export)
app.command("report", rich_help_panel=_WATCH)(report.report)
app.command("compare", rich_help_panel=_WATCH)(report.compare)


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
    arguments, script = _split(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    try:
        result = app(arguments, prog_name="trimtab", standalone_mode=False, obj=script)
    except TrimtabError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Missing argument 'RUN'"):
            message += " See `trimtab list`"
        return _fail(message, ExitCode.USAGE)
    except typer.Abort:
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
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    return int(exit_code)


if __name__ == "__main__":
    sys.exit(main())
