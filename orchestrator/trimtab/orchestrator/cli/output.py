"""Where commands write: JSON and tables to stdout, and errors elsewhere."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of tables.")
]

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", "--dryrun", help="Say what would be done, and do nothing."),
]


def console(*, stderr: bool = False, markup: bool = True) -> "Console":
    """The terminal; plain and unwrapped to 96 columns where the output is not a terminal.

    Args:
        stderr: Write to standard error, where standard output is kept for JSON.
        markup: Read `[bold]` and the like; off where a user's text is printed.
    """
    from rich.console import Console

    out = Console(highlight=False, stderr=stderr, markup=markup)
    if not out.is_terminal:
        out.width = max(out.width, 96)
    return out


def print_json(document: dict[str, Any]) -> None:
    """One JSON document in one line on stdout; NaN and infinities are our bug."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")
