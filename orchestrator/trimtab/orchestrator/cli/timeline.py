"""`trimtab timeline`: who does what when in a plan, drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import InputError, printable
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.core.timeline import LaneTimeline


def timeline(
    plan: Annotated[
        Path, typer.Argument(help="What plan-step --json or plan-paths --json printed.")
    ],
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Write the picture there.", dir_okay=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page that needs nothing else.", dir_okay=False),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="Write a trace for ui.perfetto.dev or chrome://tracing.",
            dir_okay=False,
        ),
    ] = None,
    lanes: Annotated[
        int, typer.Option("--lanes", help="Lines of bars in the terminal at most.")
    ] = 40,
    json: JsonOption = False,
) -> None:
    """Draw who does what when: forward and backward passes, transfers, waiting, skips."""
    from trimtab.core import serde
    from trimtab.orchestrator.file_text import read_text
    from trimtab.orchestrator.timeline_page import page_text, svg_text
    from trimtab.orchestrator.timeline_text import timeline_lines
    from trimtab.orchestrator.timeline_trace import trace_text
    from trimtab.orchestrator.timelines import timeline_from_json

    if lanes < 1:
        raise InputError(f"--lanes: expected a whole number >= 1, got {lanes}")
    text = read_text(plan)
    try:
        drawn = timeline_from_json(text)
    except InputError as error:
        raise InputError(f"{plan}: {error}") from error
    for path, text_of in ((svg, svg_text), (html, page_text), (trace, trace_text)):
        if path is not None:
            _write(path, drawn, text_of)
    if json:
        print_json(serde.to_document(drawn))
        return
    out = console()
    for line in timeline_lines(drawn, width=out.width, most_lanes=lanes):
        out.print(line, no_wrap=True, crop=True)
    for path in (svg, html, trace):
        if path is not None:
            out.print(f"wrote {printable(str(path))}", markup=False)


def _write(path: Path, drawn: "LaneTimeline", text_of: "Callable[[LaneTimeline], str]") -> None:
    try:
        path.write_text(text_of(drawn), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written, {error.strerror}") from error
