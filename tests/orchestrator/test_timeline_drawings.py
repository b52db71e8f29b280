"""The terminal's bars, the picture, the page and the trace of one timeline."""

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest

from trimtab.core.timeline import LaneTimeline, Span, SpanKind
from trimtab.orchestrator.timeline_page import page_text, svg_text
from trimtab.orchestrator.timeline_rows import lane_rows, summary
from trimtab.orchestrator.timeline_text import timeline_lines
from trimtab.orchestrator.timeline_trace import trace_text

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title><script>alert("1")</script>\x1b[2J & [red]x[/red]'


def span(lane: int, kind: SpanKind, start_s: float, end_s: float, label: str = "m") -> Span:
    return Span(lane=lane, kind=kind, label=label, start_s=start_s, end_s=end_s)


TWO = LaneTimeline(
    title="two lanes", lanes=("a", "b"), note="simulated",
    spans=(
        span(0, "forward", 0, 10, "micro-batch 1: all"), span(0, "backward", 10, 40),
        span(1, "wait", 0, 20), span(1, "forward", 20, 30), span(1, "transfer", 25, 35),
        span(1, "skip", 40, 40),
    ),
)  # fmt: skip


def test_a_bar_is_as_long_as_its_time() -> None:
    lines = [line.plain for line in timeline_lines(TWO, width=42, most_lanes=10)]
    assert lines[0] == "two lanes"
    assert lines[2] == "a ▒▒▒▒▒▒▒▒▒▒██████████████████████████████"
    assert lines[3] == "b ····················▒▒▒▒▒▒▒▒▒▒─────    x"
    assert lines[-1] == "simulated"
    assert summary(TWO) == "40 s: forward 25%, backward 38%, transfer 12%, wait 25%"


def test_more_lanes_than_lines_share_them_and_it_is_said() -> None:
    lanes = tuple(f"rank {number}" for number in range(256))
    spans = tuple(span(lane, "forward", 0, 1) for lane in range(256))
    timeline = LaneTimeline(title="t", lanes=lanes, spans=spans)
    lines = [line.plain for line in timeline_lines(timeline, width=60, most_lanes=16)]
    bars = [line for line in lines if "▒▒▒▒▒▒▒▒▒▒" in line]
    assert len(bars) == 16
    assert bars[1].startswith("  rank 16-31 ")
    assert "16 of 256 lanes a line; --html has them all" in lines
    assert max(map(len, lines)) <= 60


def test_spans_that_overlap_get_rows_of_their_own_and_rounding_is_no_overlap() -> None:
    first, second = span(0, "forward", 0, 1), span(0, "transfer", 0.5, 2)
    third = span(0, "backward", 1 - 1e-12, 3)
    assert lane_rows([third, first, second]) == [[first, third], [second]]


def test_the_picture_has_a_bar_and_a_title_for_every_span() -> None:
    root = ElementTree.fromstring(svg_text(TWO))
    bars = {
        bar.findtext(f"{SVG}title"): bar for bar in root.iter(f"{SVG}rect") if bar.get("class")
    }
    assert len(bars) == 6
    forward = bars["a: forward, micro-batch 1: all; 0 us to 10 s (10 s)"]
    backward = bars["a: backward, m; 10 s to 40 s (30 s)"]
    ratio = float(backward.get("width", 0)) / float(forward.get("width", 0))
    assert ratio == pytest.approx(3, rel=0.01)
    assert "micro-batch 1" in [text.text for text in root.iter(f"{SVG}text")]


def test_ranks_of_a_group_are_one_block() -> None:
    groups = ("g1", "g1", "g2")
    spans = tuple(span(lane, "forward", 0, 1, label) for lane, label in enumerate(groups))
    timeline = LaneTimeline(title="t", lanes=("r0", "r1", "r2"), spans=spans)
    root = ElementTree.fromstring(svg_text(timeline))
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert [title.partition(",")[0] for title in titles] == ["r0 to r1: forward", "r2: forward"]


def test_very_many_spans_are_drawn_together_with_a_note() -> None:
    spans = tuple(span(0, "forward", at, at + 1, f"m{at}") for at in range(70_000))
    text = svg_text(LaneTimeline(title="t", lanes=("a",), spans=spans))
    assert text.count("<rect class") < 1_500
    assert "Bars narrower than a pixel are drawn together" in text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.addresses = 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += sum(name in ("src", "href") for name, _ in attrs)


def test_hostile_names_stay_text() -> None:
    timeline = LaneTimeline(
        title=HOSTILE, lanes=(HOSTILE,), spans=(span(0, "wait", 0, 1, HOSTILE),), note=HOSTILE
    )
    page = page_text(timeline)
    tags = _Tags()
    tags.feed(page)
    assert (tags.scripts, tags.addresses) == (1, 0)  # our own, and nothing from elsewhere
    printed = "\n".join(
        line.plain for line in timeline_lines(timeline, width=200, most_lanes=1)
    )
    assert "\x1b" not in printed
    assert "[red]x[/red]" in printed
    names = [
        event["args"]["name"]
        for event in events_of(timeline)
        if event["ph"] == "M" and "name" in event["args"]
    ]
    assert names == [HOSTILE, HOSTILE]


def events_of(timeline: LaneTimeline) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(trace_text(timeline))["traceEvents"]
    return events


def test_the_trace_has_complete_events_in_microseconds_on_named_threads() -> None:
    events = events_of(TWO)
    threads = {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    assert threads == {1: "a", 2: "b", 3: "b (2)"}
    complete = [event for event in events if event["ph"] == "X"]
    assert {(e["name"], e["ts"], e["dur"], e["tid"]) for e in complete} == {
        ("forward", 0.0, 10e6, 1), ("backward", 10e6, 30e6, 1), ("wait", 0.0, 20e6, 2),
        ("forward", 20e6, 10e6, 2), ("transfer", 25e6, 10e6, 3),
    }  # fmt: skip
    (instant,) = [event for event in events if event["ph"] == "i"]
    assert (instant["name"], instant["ts"], instant["s"]) == ("skip", 40e6, "t")
