"""Who does what when: spans of time on named lanes, whatever planned or measured them.

A step plan, a pipeline and a schedule of stage paths all become a `LaneTimeline`, and whatever
draws one needs to know nothing else. As JSON it is `serde.to_document(timeline)`; another
document may carry that under its key `timeline`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InputError

SpanKind = Literal["forward", "backward", "loss", "transfer", "wait", "skip", "reduce"]
SPAN_KINDS: tuple[str, ...] = get_args(SpanKind)
"""`skip` is a stage that a micro-batch leaves out, `reduce` the exchange of gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one lane does from `start_s` to `end_s`."""

    lane: int
    """Index into the timeline's lanes."""
    kind: SpanKind
    label: str
    """Which micro-batch, sequences or nodes; one line."""
    start_s: float
    end_s: float
    """Equal to `start_s` for what takes no time, such as a skipped stage."""

    def __post_init__(self) -> None:
        checks.whole_number("span.lane", self.lane, at_least=0)
        checks.one_of("span.kind", self.kind, SPAN_KINDS)
        checks.not_negative("span.start_s", self.start_s)
        checks.not_negative("span.end_s", self.end_s)
        if self.end_s < self.start_s:
            raise InputError(
                f"span.end_s: expected at least start_s = {self.start_s}, got {self.end_s}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTimeline:
    """What every lane does during a step, from second 0 on.

    Spans of one lane may overlap: a transfer beside computing.
    """

    title: str
    lanes: tuple[str, ...]
    """Names of ranks, stages, nodes or links, in the order in which they are drawn."""
    spans: tuple[Span, ...]
    note: str = ""
    """What the reader must know: simulated or measured, and by what."""

    def __post_init__(self) -> None:
        checks.not_empty("timeline.lanes", self.lanes)
        checks.not_empty("timeline.spans", self.spans)
        for index, span in enumerate(self.spans):
            if span.lane >= len(self.lanes):
                raise InputError(
                    f"timeline.spans[{index}].lane: expected less than the {len(self.lanes)} "
                    f"lanes, got {span.lane}"
                )

    @property
    def end_s(self) -> float:
        """When the last span ends."""
        return max(span.end_s for span in self.spans)
