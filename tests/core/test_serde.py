import dataclasses
import itertools
import json
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core import events, serde
from trimtab.core.cluster import ClusterSpec, GpuSpec, IslandLink, Link, NicSpec, NodeSpec
from trimtab.core.errors import InputError
from trimtab.core.job import JobState, TrainingSpec
from trimtab.core.plan import Layout, SequenceGroup, StagePath, StepPlan, TimePart, Wave
from trimtab.core.profile import DegreeBandwidth, StepProfile

SIZES = st.integers(min_value=1, max_value=10**15)
RATES = st.floats(min_value=1e-9, max_value=1e18)
TIMES = st.floats(min_value=0, max_value=1e9)
NAMES = st.text(min_size=1, max_size=8)

LINKS = st.builds(Link, bytes_per_s=RATES, latency_s=TIMES)
GPUS = st.builds(GpuSpec, name=NAMES, memory_bytes=SIZES, memory_bytes_per_s=RATES)
NICS = st.builds(
    NicSpec,
    kind=st.sampled_from(["infiniband", "roce", "ethernet"]),
    count=SIZES,
    bytes_per_s=RATES,
    latency_s=TIMES,
)


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    nodes = tuple(
        NodeSpec(
            name=name,
            count=draw(SIZES),
            gpu=draw(GPUS),
            gpus_per_node=draw(SIZES),
            intra_node=draw(LINKS),
            nics=tuple(draw(st.lists(NICS, min_size=1, max_size=3))),
            island=name,
        )
        for name in names
    )
    links = tuple(
        IslandLink(islands=way, link=draw(LINKS), one_way=True)
        for pair in itertools.pairwise(names)
        for way in (pair, pair[::-1])
    )
    return ClusterSpec(name=draw(NAMES), nodes=nodes, links=links, source=draw(st.text()))


@st.composite
def step_plans(draw: st.DrawFn) -> StepPlan:
    num_waves = draw(st.integers(1, 4))
    waves = tuple(
        Wave(
            groups=tuple(
                SequenceGroup(ranks=(2 * number, 2 * number + 1), sequences=(draw(SIZES),))
                for number in range(draw(st.integers(1, 4)))
            )
        )
        for _ in range(num_waves)
    )
    return StepPlan(
        waves=waves,
        paths=(StagePath(stages=(0, 1)),) * num_waves,
        step_s=draw(TIMES),
        lower_bound_s=draw(TIMES),
        method=draw(st.sampled_from(["heuristic", "uniform", "fallback"])),
        solve_s=draw(TIMES),
        reason=draw(st.text()),
    )


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field type of the events, plans aside."""
    if hint is StepPlan:
        return step_plans()
    if hint in (int, float, str, bool):
        finite = st.floats(allow_nan=False, allow_infinity=False)
        scalars: dict[Any, st.SearchStrategy[Any]] = {
            int: st.integers(),
            float: finite,
            str: st.text(),
            bool: st.booleans(),
        }
        return scalars[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal or hint is JobState:
        return st.sampled_from(arguments or list(JobState))
    if origin is tuple:
        return st.lists(_values(arguments[0]), max_size=3).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(
            *(st.none() if part is types.NoneType else _values(part) for part in arguments)
        )
    if hint is StepProfile:
        return st.builds(
            StepProfile,
            name=NAMES,
            num_gpus=SIZES,
            gpus_per_node=SIZES,
            quadratic_s=TIMES,
            linear_s=RATES,
            fixed_s=TIMES,
            alltoall_bytes_per_token=TIMES,
            bandwidths=st.builds(
                DegreeBandwidth, degree=st.integers(2, 64), bytes_per_s=RATES
            ).map(lambda entry: (entry,)),
            token_cap=SIZES,
        )
    if hint is TimePart:
        return st.builds(TimePart, name=NAMES, seconds=TIMES)
    raise AssertionError(f"no strategy for {hint}")


def _events() -> st.SearchStrategy[events.AnyEvent]:
    kinds = typing.get_args(events.AnyEvent)
    built = []
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
        built.append(st.builds(kind, **{name: _values(hint) for name, hint in fields.items()}))
    return st.one_of(*built)


@given(clusters())
def test_a_cluster_survives_json(cluster: ClusterSpec) -> None:
    assert serde.from_json(ClusterSpec, serde.to_json(cluster)) == cluster


@given(step_plans())
def test_a_step_plan_survives_json(plan: StepPlan) -> None:
    assert serde.from_json(StepPlan, serde.to_json(plan)) == plan


@settings(max_examples=300)
@given(_events())
def test_every_event_survives_json_and_keeps_its_type(event: events.AnyEvent) -> None:
    union: Any = events.AnyEvent
    read = serde.from_json(union, serde.to_json(event))
    assert read == event
    assert type(read) is type(event)


def test_a_document_carries_version_and_type() -> None:
    document = serde.to_document(Layout(tp=2, dp=4))
    assert document["schema"] == 1
    assert document["type"] == "Layout"
    assert json.loads(serde.to_json(Layout(tp=2, dp=4))) == document


def _layout_document(**changes: Any) -> dict[str, Any]:
    return {**serde.to_document(Layout()), **changes}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            _layout_document(schema=2),
            "schema: this Trimtab reads version 1, the document has 2",
        ),
        (_layout_document(tpp=2), "tpp: unknown key 'tpp'; did you mean 'tp'?"),
        (_layout_document(tp="2"), "tp: expected a whole number, got '2'"),
        (_layout_document(tp=2.0), "tp: expected a whole number, got 2.0"),
        (_layout_document(tp=True), "tp: expected a whole number, got True"),
        (_layout_document(tp=0), "layout.tp: expected a whole number >= 1, got 0"),
        (_layout_document(recompute="ful"), "did you mean 'full'?"),
        (_layout_document(type="Layouts"), "unknown type 'Layouts'; did you mean 'Layout'?"),
        ([], "expected a JSON object, got list"),
    ],
)
def test_a_wrong_document_is_refused_with_its_field(document: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        serde.from_document(Layout, document)
    assert message in str(caught.value)


def test_a_missing_field_is_named_with_its_path() -> None:
    document = serde.to_document(
        StepPlan(
            waves=(Wave(groups=(SequenceGroup(ranks=(0,), sequences=(0,)),)),),
            paths=(StagePath(stages=(0,)),),
            step_s=1.0,
            lower_bound_s=1.0,
            method="heuristic",
            solve_s=0.0,
            reason="",
        )
    )
    del document["waves"][0]["groups"][0]["ranks"]
    with pytest.raises(InputError, match=r"waves\[0\]\.groups\[0\]\.ranks: missing"):
        serde.from_document(StepPlan, document)


def test_infinity_is_never_written() -> None:
    with pytest.raises(InputError, match="bytes_per_s"):
        serde.to_json(_RawLink(bytes_per_s=float("inf")))


@pytest.mark.parametrize("text", ["{", "9" * 5_000, "[" * 100_000])
def test_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a JSON document"):
        serde.from_json(Layout, text)


def test_a_whole_number_beyond_every_float_is_refused() -> None:
    fields = {"num_steps": 1, "global_batch_seqs": 1, "learning_rate": 10**400}
    with pytest.raises(InputError, match=r"^training\.learning_rate: expected a finite number"):
        serde.from_fields(TrainingSpec, fields, path="training")


def test_a_section_reads_without_version_and_type() -> None:
    assert serde.from_fields(Layout, {"tp": 2}, path="layout") == Layout(tp=2)
    with pytest.raises(InputError, match=r"layout\.tpp: unknown key"):
        serde.from_fields(Layout, {"tpp": 2}, path="layout")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _RawLink:
    bytes_per_s: float
