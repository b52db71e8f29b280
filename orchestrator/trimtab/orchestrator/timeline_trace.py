"""A timeline as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Source: the Trace Event Format, JSON object form: complete events `X` with `ts` and `dur` in
microseconds, instant events `i` of scope `t`, and metadata `M` that names threads.
"""

import json
from typing import Any

from trimtab.core.timeline import LaneTimeline
from trimtab.orchestrator.timeline_rows import lane_rows, spans_by_lane

_US = 1e6
_PROCESS = 1


def trace_text(timeline: LaneTimeline) -> str:
    """The trace as JSON; spans of a lane that overlap are on threads of their own."""
    events = [_named("process_name", 0, timeline.title)]
    thread = 0
    for name, spans in zip(timeline.lanes, spans_by_lane(timeline), strict=True):
        for number, row in enumerate(lane_rows(spans)):
            thread += 1
            events.append(
                _named("thread_name", thread, f"{name} ({number + 1})" if number else name)
            )
            events.append(
                {
                    "ph": "M", "name": "thread_sort_index", "pid": _PROCESS, "tid": thread,
                    "args": {"sort_index": thread},
                }
            )  # fmt: skip
            for span in row:
                event: dict[str, Any] = {
                    "name": span.kind, "cat": span.kind, "pid": _PROCESS, "tid": thread,
                    "ts": span.start_s * _US, "args": {"what": span.label},
                }  # fmt: skip
                if span.end_s > span.start_s:
                    event |= {"ph": "X", "dur": (span.end_s - span.start_s) * _US}
                else:
                    event |= {"ph": "i", "s": "t"}
                events.append(event)
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"note": timeline.note},
    }
    return json.dumps(document, allow_nan=False)


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {
        "ph": "M", "name": what, "pid": _PROCESS, "tid": thread, "args": {"name": name}
    }  # fmt: skip
