"""What every drawing of a timeline shares: colours, rows, and how much is drawn."""

from collections.abc import Sequence

from trimtab.core.timeline import LaneTimeline, Span
from trimtab.core.units import duration_text

COLOURS = {
    "forward": "#4c8ed9",
    "backward": "#2f9e78",
    "loss": "#d9a441",
    "transfer": "#9a7fd1",
    "wait": "#e3e6ea",
    "skip": "#d96a5b",
    "reduce": "#6b7683",
}
"""By kind; `wait` is the quietest, so that idle time shows as a hole."""

_ROUNDING = 1e-9
_BUSY = ("forward", "backward", "loss")


def lane_rows(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans of one lane in as few rows as their overlaps allow, transfers below the others.

    Rounding is no overlap.
    """
    slack_s = _ROUNDING * max((span.end_s for span in spans), default=0.0)
    sent = [span for span in spans if span.kind == "transfer"]
    others = [span for span in spans if span.kind != "transfer"]
    return [*_rows(others, slack_s=slack_s), *_rows(sent, slack_s=slack_s)]


def _rows(spans: Sequence[Span], *, slack_s: float) -> list[list[Span]]:
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.start_s, -span.end_s)):
        for row in rows:
            if span.start_s >= row[-1].end_s - slack_s:
                row.append(span)
                break
        else:
            rows.append([span])
    return rows


def spans_by_lane(timeline: LaneTimeline) -> list[list[Span]]:
    """Spans of every lane, in their order."""
    lanes: list[list[Span]] = [[] for _ in timeline.lanes]
    for span in timeline.spans:
        lanes[span.lane].append(span)
    return lanes


def kinds_of(timeline: LaneTimeline) -> list[str]:
    """The kinds that occur, in the order of the legend."""
    found = {span.kind for span in timeline.spans}
    return [kind for kind in COLOURS if kind in found]


def summary(timeline: LaneTimeline) -> str:
    """How long it takes, and what the lanes that compute do meanwhile."""
    end_s = timeline.end_s
    seconds: dict[str, float] = dict.fromkeys(COLOURS, 0.0)
    computing = {span.lane for span in timeline.spans if span.kind in _BUSY}
    for span in timeline.spans:
        if span.lane in computing:
            seconds[span.kind] += span.end_s - span.start_s
    whole_s = end_s * max(1, len(computing))
    shares = [
        f"{kind} {seconds[kind] / whole_s:.0%}" for kind in COLOURS if whole_s and seconds[kind]
    ]
    return f"{duration_text(end_s)}: {', '.join(shares)}" if shares else duration_text(end_s)
