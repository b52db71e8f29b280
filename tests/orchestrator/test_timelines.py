import copy
import json
from typing import Any

import pytest

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.core.timeline import LaneTimeline, Span
from trimtab.orchestrator.timelines import timeline_from_json


def group(ranks: list[int], *, time_ms: float) -> dict[str, Any]:
    return {
        "degree": len(ranks), "ranks": ranks, "sequences": [0], "tokens": 9, "time_ms": time_ms
    }  # fmt: skip


WAVES: dict[str, Any] = {
    "waves": [
        {"time_ms": 30.0, "groups": [group([0, 1], time_ms=30.0), group([2], time_ms=12.0)]},
        {"time_ms": 6.0, "groups": [group([2], time_ms=6.0)]},
    ],
    "step_ms": 40.0,
    "step_fixed_ms": 4.0,
    "num_gpus": 3,
    "pipeline": None,
}

MICRO = {"forward_ms": [1.0, 1.0], "backward_ms": [2.0, 2.0], "send_ms": 0.0, "tokens": 9.0}
PIPELINE: dict[str, Any] = {
    **WAVES,
    "step_ms": 13.0,
    "num_gpus": 6,
    "pipeline": {
        "pp": 2, "vpp": 1, "micro_batches": [MICRO, MICRO], "token_limits": [18.0, 18.0]
    },
}  # fmt: skip


def spans_of(document: dict[str, Any], lane: int) -> list[tuple[str, float, float]]:
    timeline = timeline_from_json(json.dumps(document))
    return [
        (span.kind, round(1e3 * span.start_s, 6), round(1e3 * span.end_s, 6))
        for span in timeline.spans
        if span.lane == lane
    ]


def test_ranks_wait_for_the_slowest_group_of_their_wave() -> None:
    assert spans_of(WAVES, 0) == [
        ("forward", 0, 10), ("backward", 10, 30), ("wait", 30, 36), ("reduce", 36, 40)
    ]  # fmt: skip
    assert spans_of(WAVES, 2) == [
        ("forward", 0, 4), ("backward", 4, 12), ("wait", 12, 30),
        ("forward", 30, 32), ("backward", 32, 36), ("reduce", 36, 40),
    ]  # fmt: skip


def test_stages_do_one_forward_one_backward() -> None:
    # F1 F2 | B1 B2 on the first stage, which gets B1 back at 4 ms
    assert sorted(spans_of(PIPELINE, 0), key=lambda span: span[1]) == [
        ("forward", 0, 1), ("forward", 1, 2), ("wait", 2, 4), ("backward", 4, 6),
        ("wait", 6, 7), ("backward", 7, 9), ("reduce", 9, 13),
    ]  # fmt: skip
    assert timeline_from_json(json.dumps(PIPELINE)).lanes == ("stage 0", "stage 1")


def test_what_is_sent_has_lanes_of_its_own() -> None:
    document = copy.deepcopy(PIPELINE)
    for micro in document["pipeline"]["micro_batches"]:
        micro["send_ms"] = 0.5
    timeline = timeline_from_json(json.dumps(document))
    assert timeline.lanes == ("stage 0", "stage 1", "stage 0 sends", "stage 1 sends")
    assert spans_of(document, 2) == [("transfer", 1, 1.5), ("transfer", 2, 2.5)]
    assert [kind for kind, _, _ in spans_of(document, 3)] == ["transfer", "transfer"]


def test_another_plan_brings_its_own_timeline() -> None:
    own = LaneTimeline(
        title="paths", lanes=("node a",),
        spans=(Span(lane=0, kind="skip", label="stage 2", start_s=1.0, end_s=1.0),),
    )  # fmt: skip
    assert timeline_from_json(serde.to_json(own)) == own
    carrying = {"paths": [], "iteration_s": 1.0, "timeline": serde.to_document(own)}
    assert timeline_from_json(json.dumps(carrying)) == own


def changed(document: dict[str, Any], path: str, value: Any) -> str:
    changed = copy.deepcopy(document)
    place: Any = changed
    *parents, name = path.split(".")
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    if value is KeyError:
        del place[name]
    else:
        place[int(name) if name.isdigit() else name] = value
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("document", "path", "value", "named"),
    [
        (WAVES, "num_gpus", 0, "num_gpus: expected a whole number >= 1"),
        (WAVES, "num_gpus", 10**9, "num_gpus: at most"),
        (WAVES, "num_gpus", 2, r"waves\[0\]\.groups\[1\]\.ranks: expected ranks below"),
        (WAVES, "waves", [], "waves: expected a list"),
        (WAVES, "waves.0", 7, r"waves\[0\]: expected an object"),
        (WAVES, "waves.1.time_ms", "soon", r"waves\[1\]\.time_ms: expected a finite number"),
        (WAVES, "waves.1.time_ms", -1, r"waves\[1\]\.time_ms"),
        (WAVES, "waves.1.time_ms", float("nan"), r"waves\[1\]\.time_ms"),
        (WAVES, "waves.1.groups.0.ranks", ["x"], r"waves\[1\]\.groups\[0\]\.ranks"),
        (WAVES, "waves.1.groups.0.tokens", KeyError, r"groups\[0\]\.tokens: missing"),
        (WAVES, "step_fixed_ms", True, "step_fixed_ms"),
        (PIPELINE, "pipeline.pp", 1, r"pipeline\.pp: expected a whole number >= 2"),
        (PIPELINE, "pipeline.vpp", 0, r"pipeline\.vpp"),
        (PIPELINE, "pipeline.vpp", 10**8, r"pipeline\.pp: at most"),
        (PIPELINE, "pipeline.micro_batches", [MICRO], r"pipeline\.micro_batches: expected one"),
        (PIPELINE, "pipeline.micro_batches.0.tokens", 19, r"more tokens than token_limits"),
        (PIPELINE, "pipeline.micro_batches.0.forward_ms", [1], "expected 2 numbers, got 1"),
        (PIPELINE, "pipeline.token_limits", [1.0], "expected 2 numbers, got 1"),
    ],
)
def test_a_broken_document_is_refused_by_field(
    document: dict[str, Any], path: str, value: Any, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        timeline_from_json(changed(document, path, value))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected the JSON of a plan"),
        ('{"waves": [', "expected the JSON of a plan"),
        ("[]", "expected a JSON object"),
        ("{}", "an object with nothing in it"),
        ('{"layout": 1}', "an object with layout"),
        ('{"timeline": 3}', "expected a JSON object"),
        ("[" * 100_000, "expected the JSON of a plan"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        timeline_from_json(text)


def test_interleaving_with_a_wrong_number_is_refused() -> None:
    document = copy.deepcopy(PIPELINE)
    document["pipeline"] |= {"vpp": 2, "micro_batches": [MICRO] * 3}
    document["waves"] *= 2
    del document["waves"][3]
    with pytest.raises(InputError, match="a multiple of pp = 2, got 3"):
        timeline_from_json(json.dumps(document))
