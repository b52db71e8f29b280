"""A timeline as a picture (SVG), and as a page that holds it and needs nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from trimtab.core.timeline import LaneTimeline, Span
from trimtab.core.units import duration_text
from trimtab.orchestrator.timeline_rows import (
    COLOURS,
    kinds_of,
    lane_rows,
    spans_by_lane,
    summary,
)

_WIDTH, _RIGHT, _TOP, _BOTTOM = 1400, 24, 74, 34
_LEFT, _LETTER = 40, 6.6
"""Room beside the lanes: for a name of no letters, and for each letter of the longest."""
_LONGEST_NAME = 34
_TALLEST, _SHORTEST, _MOST_HEIGHT = 26.0, 3.0, 1800.0
"""Heights of a lane, and of all together where lanes need not be shorter than the shortest."""
_NAMED_FROM = 14.0
"""Bars so tall have names inside."""
_GAP_FROM = 6.0
"""Bars so tall are set apart by a line."""
_LEAST_LABEL = 12.0
"""Names stand beside lanes that are so far apart."""
_MOST_SPANS = 60_000
"""More spans are drawn merged: short neighbours of one kind become one."""
_TICKS = 8

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-size:16px;font-weight:600}"
    ".q{fill:#6b7683}.b{fill:#fff;font-size:11px;pointer-events:none}rect.s:hover{stroke:#111;stroke-width:1.5}"
)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body{{margin:16px;font:13px system-ui,sans-serif;background:#fff;color:#24292f}}
#scroll{{overflow-x:auto}}
#what{{position:sticky;bottom:0;background:#fff;border-top:1px solid #d0d7de;padding:8px 0;
min-height:1.4em}}
label{{color:#6b7683}}
</style>
<label>width <input id="zoom" type="range" min="1" max="20" value="1"></label>
<div id="scroll">{svg}</div>
<div id="what">Point at a bar to see what it is.</div>
<script>
const svg = document.querySelector("svg"), what = document.getElementById("what");
svg.addEventListener("mouseover", (event) => {{
  const title = event.target.querySelector("title");
  if (title) what.textContent = title.textContent;
}});
svg.setAttribute("preserveAspectRatio", "none");
document.getElementById("zoom").addEventListener("input", (event) => {{
  svg.setAttribute("width", {width} * event.target.value);
}});
</script>
</html>
"""


def page_text(timeline: LaneTimeline) -> str:
    """The page: the picture, what the bar under the pointer is, and a slider for its width."""
    return _PAGE.format(title=escape(timeline.title), svg=svg_text(timeline), width=_WIDTH)


def svg_text(timeline: LaneTimeline) -> str:
    """The picture; every bar has a title that browsers show under the pointer."""
    rows = [lane_rows(spans) or [[]] for spans in spans_by_lane(timeline)]
    num_rows = sum(map(len, rows))
    row_height = max(_SHORTEST, min(_TALLEST, _MOST_HEIGHT / num_rows))
    height = _TOP + num_rows * row_height + _BOTTOM
    longest = min(_LONGEST_NAME, max(map(len, timeline.lanes)))
    left = _LEFT + _LETTER * longest
    scale = (_WIDTH - left - _RIGHT) / (timeline.end_s or 1.0)
    is_merged = len(timeline.spans) > _MOST_SPANS
    note = timeline.note
    if is_merged:
        note = f"{note} Bars narrower than a pixel are drawn together.".strip()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}" role="img">',
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text class="t" x="12" y="22">{escape(timeline.title)}</text>',
        f'<text class="q" x="12" y="40">{escape(summary(timeline))}. {escape(note)}</text>',
        *_legend(timeline),
        *_axis(timeline.end_s, left=left, scale=scale, bottom=height - _BOTTOM),
    ]
    parts += _names(timeline.lanes, rows, left=left, row_height=row_height)
    drawn = [
        (name, list(_merged(row, least_s=1 / scale)) if is_merged else row)
        for name, lane in zip(timeline.lanes, rows, strict=True)
        for row in lane
    ]
    parts += [
        _bar(
            block, x=left + block.span.start_s * scale, y=_TOP + block.first * row_height,
            scale=scale, height=block.num_rows * row_height,
        )
        for block in _blocks(drawn)
    ]  # fmt: skip
    parts += _separators(rows, row_height=row_height)
    parts.append("</svg>")
    return "\n".join(parts)


def _separators(rows: Sequence[Sequence[object]], *, row_height: float) -> Iterator[str]:
    """Lines between lanes where some have several rows."""
    if max(map(len, rows)) == 1:
        return
    y, right = float(_TOP), _WIDTH - _RIGHT
    for lane in rows[:-1]:
        y += len(lane) * row_height
        yield f'<line x1="12" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8c959f"/>'


@dataclass(slots=True)
class _Block:
    """One span, or equal ones in rows below one another: the ranks of a group."""

    span: Span
    first: int
    num_rows: int
    first_lane: str
    last_lane: str


def _blocks(rows: Sequence[tuple[str, Sequence[Span]]]) -> list[_Block]:
    blocks: list[_Block] = []
    above: dict[tuple[str, str, float, float], _Block] = {}
    for number, (lane, row) in enumerate(rows):
        here: dict[tuple[str, str, float, float], _Block] = {}
        for span in row:
            key = (span.kind, span.label, span.start_s, span.end_s)
            block = above.get(key)
            if block is None or block.last_lane == lane:
                block = _Block(span, number, 0, lane, lane)
                blocks.append(block)
            block.num_rows, block.last_lane = block.num_rows + 1, lane
            here[key] = block
        above = here
    return blocks


def _names(
    lanes: Sequence[str], rows: Sequence[Sequence[object]], *, left: float, row_height: float
) -> Iterator[str]:
    """Names beside the lanes, as many as have room."""
    y, free_from = float(_TOP), 0.0
    for name, lane in zip(lanes, rows, strict=True):
        if y >= free_from:
            shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
            yield (
                f'<text x="{left - 8:.1f}" y="{y + row_height / 2 + 4:.1f}" text-anchor="end">'
                f"{escape(shown)}</text>"
            )
            free_from = y + _LEAST_LABEL
        y += len(lane) * row_height


def _bar(block: _Block, *, x: float, y: float, scale: float, height: float) -> str:
    span = block.span
    seconds = span.end_s - span.start_s
    is_tall = height > _GAP_FROM
    width = seconds * scale
    shown_width = max(
        0.1 if span.kind == "wait" else 1.0, width - min(0.5, width / 4) * is_tall
    )
    lanes = block.first_lane
    if block.num_rows > 1:
        lanes = f"{lanes} to {block.last_lane}"
    title = (
        f"{lanes}: {span.kind}, {span.label}; {duration_text(span.start_s)} to "
        f"{duration_text(span.end_s)} ({duration_text(seconds)})"
    )
    return (
        f'<rect class="s" x="{x:.2f}" y="{y:.2f}" width="{shown_width:.2f}" '
        f'height="{height - is_tall:.2f}" fill="{COLOURS[span.kind]}">'
        f"<title>{escape(title)}</title></rect>"
        + _name_inside(span, x=x, y=y, width=width, height=height)
    )


def _name_inside(span: Span, *, x: float, y: float, width: float, height: float) -> str:
    """The label up to its colon, or its last word, where there is room for it."""
    name = span.label.partition(":")[0]
    if span.kind == "wait" or height < _NAMED_FROM:
        return ""
    for text in (name, name.rpartition(" ")[2]):
        if width >= _LETTER * len(text) + 4:
            return (
                f'<text class="b" x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}" '
                f'text-anchor="middle">{escape(text)}</text>'
            )
    return ""


def _merged(row: Sequence[Span], *, least_s: float) -> Iterator[Span]:
    """Neighbours of one kind that are each shorter than `least_s`, as one."""
    kept: list[Span] = []
    for span in row:
        if span.end_s - span.start_s >= least_s:
            yield from _as_one(kept)
            kept = []
            yield span
            continue
        if kept and (span.kind != kept[0].kind or span.end_s - kept[0].start_s > 2 * least_s):
            yield from _as_one(kept)
            kept = []
        kept.append(span)
    yield from _as_one(kept)


def _as_one(spans: Sequence[Span]) -> Iterator[Span]:
    if not spans:
        return
    first, last = spans[0], spans[-1]
    label = first.label if len(spans) == 1 else f"{len(spans)} short ones: {first.label} ..."
    yield Span(
        lane=first.lane, kind=first.kind, label=label, start_s=first.start_s, end_s=last.end_s
    )


def _legend(timeline: LaneTimeline) -> list[str]:
    parts = []
    for index, kind in enumerate(kinds_of(timeline)):
        x = 12 + 92 * index
        parts.append(
            f'<rect x="{x}" y="49" width="12" height="12" fill="{COLOURS[kind]}"/>'
            f'<text x="{x + 17}" y="59">{kind}</text>'
        )
    return parts


def _axis(end_s: float, *, left: float, scale: float, bottom: float) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        seconds = end_s * tick / _TICKS
        x = left + seconds * scale
        label = duration_text(seconds) if tick else "0"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{bottom + 4:.1f}" '
            'stroke="#c9d1d9" stroke-dasharray="2 3"/>'
            f'<text class="q" x="{x:.1f}" y="{bottom + 20:.1f}" '
            f'text-anchor="middle">{label}</text>'
        )
    return parts
