"""A timeline as bars in a terminal."""

import textwrap

from rich.text import Text

from trimtab.core.errors import printable
from trimtab.core.timeline import LaneTimeline, Span
from trimtab.core.units import duration_text
from trimtab.orchestrator.timeline_rows import COLOURS, kinds_of, spans_by_lane, summary

GLYPHS = {
    "forward": "▒",
    "backward": "█",
    "loss": "◆",
    "transfer": "─",
    "wait": "·",
    "skip": "x",
    "reduce": "▄",
}
"""Told apart without colours as well."""

_WIDEST_NAME = 24
_LEAST_BARS = 20


def timeline_lines(timeline: LaneTimeline, *, width: int, most_lanes: int) -> list[Text]:
    """Title, bars and legend, none wider than `width` columns.

    Where there are more than `most_lanes` lanes, neighbours share a line: a cell shows what
    most of their time in it is.
    """
    lanes = spans_by_lane(timeline)
    per_line = -(-len(lanes) // most_lanes)
    names = [
        _line_name(timeline.lanes[first : first + per_line])
        for first in range(0, len(lanes), per_line)
    ]
    name_width = min(_WIDEST_NAME, max(map(len, names)))
    columns = max(_LEAST_BARS, width - name_width - 1)
    lines = [Text(printable(timeline.title), style="bold"), Text(summary(timeline))]
    for number, name in enumerate(names):
        members = [
            span for lane in lanes[number * per_line : (number + 1) * per_line] for span in lane
        ]
        line = Text(f"{name[:name_width]:>{name_width}} ", style="dim")
        line.append_text(_bar(members, end_s=timeline.end_s, columns=columns))
        lines.append(line)
    lines += [_axis(timeline.end_s, indent=name_width + 1, columns=columns), _legend(timeline)]
    if per_line > 1:
        lines.append(
            Text(f"{per_line} of {len(lanes)} lanes a line; --html has them all", style="dim")
        )
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    note = textwrap.wrap(printable(timeline.note), width)
    return [*lines, *(Text(part, style="dim") for part in note)]


def _line_name(names: tuple[str, ...]) -> str:
    first, last = printable(names[0]), printable(names[-1])
    if first == last:
        return first
    return f"{first}-{last.rsplit(' ', 1)[-1]}"


def _bar(spans: list[Span], *, end_s: float, columns: int) -> Text:
    """One cell for each part of the time, with what fills most of it; a skip always shows."""
    cell_s = (end_s or 1.0) / columns
    cells: list[dict[str, float]] = [{} for _ in range(columns)]
    for span in spans:
        first = min(columns - 1, int(span.start_s / cell_s))
        last = min(columns - 1, int(span.end_s / cell_s))
        for column in range(first, last + 1):
            start_s = max(span.start_s, column * cell_s)
            seconds = min(span.end_s, (column + 1) * cell_s) - start_s
            if seconds > 0 or span.start_s == span.end_s:
                cells[column][span.kind] = cells[column].get(span.kind, 0.0) + seconds
    bar = Text()
    for cell in cells:
        kind = max(cell, key=lambda kind: (kind == "skip", _weight(kind, cell)), default=None)
        if kind is None:
            bar.append(" ")
        else:
            bar.append(GLYPHS[kind], style=COLOURS[kind])
    return bar


def _weight(kind: str, cell: dict[str, float]) -> float:
    """Computing shows where it is at least a third of what goes on beside it."""
    return cell[kind] / (3 if kind in ("transfer", "wait") else 1)


def _axis(end_s: float, *, indent: int, columns: int) -> Text:
    """Times below the bars: the start, quarters and the end."""
    axis = [" "] * (indent + columns)
    for quarter in range(5):
        label = duration_text(end_s * quarter / 4) if quarter else "0"
        at = indent + round(columns * quarter / 4)
        at = min(at, indent + columns - len(label))
        axis[at : at + len(label)] = label
    return Text("".join(axis), style="dim")


def _legend(timeline: LaneTimeline) -> Text:
    legend = Text()
    for kind in kinds_of(timeline):
        legend.append(f"{GLYPHS[kind] * 2} ", style=COLOURS[kind])
        legend.append(f"{kind}   ")
    return legend
