import math
from typing import Any

import pytest

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.core.timeline import LaneTimeline, Span


def span(**fields: Any) -> Span:
    usual: dict[str, Any] = {
        "lane": 0,
        "kind": "forward",
        "label": "",
        "start_s": 0,
        "end_s": 1,
    }
    return Span(**(usual | fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lane": -1}, "span.lane"),
        ({"lane": 0.5}, "span.lane"),
        ({"kind": "froward"}, "span.kind"),
        ({"start_s": -1.0}, "span.start_s"),
        ({"end_s": math.nan}, "span.end_s"),
        ({"end_s": math.inf}, "span.end_s"),
        ({"start_s": 2.0}, "span.end_s"),
    ],
)
def test_a_span_that_cannot_be_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        span(**fields)


@pytest.mark.parametrize(
    ("lanes", "spans", "named"),
    [
        ((), (span(),), "timeline.lanes"),
        (("a",), (), "timeline.spans"),
        (("a",), (span(), span(lane=1)), r"timeline.spans\[1\].lane"),
    ],
)
def test_a_timeline_needs_lanes_and_spans_on_them(
    lanes: tuple[str, ...], spans: tuple[Span, ...], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        LaneTimeline(title="t", lanes=lanes, spans=spans)


def test_a_timeline_survives_json() -> None:
    timeline = LaneTimeline(
        title="<script>", lanes=("node 0", "node 1"), note="simulated",
        spans=(span(end_s=2.5), span(lane=1, kind="skip", start_s=3.0, end_s=3.0)),
    )  # fmt: skip
    assert timeline.end_s == 3.0
    assert serde.from_json(LaneTimeline, serde.to_json(timeline)) == timeline
