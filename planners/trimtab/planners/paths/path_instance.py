"""Instances and arrangements of stage paths as JSON documents.

The format is that of the SkipPipe cases (`tests/data/skippipe`), with a few fields more, all
optional: `memory` by node, `null` for a missing link, `wave_offset_s`, `shared_links`,
`gradient_bytes` and `without`.
"""

import math
from typing import Any

from trimtab.core import checks
from trimtab.core.errors import InputError, shown, unknown_name_message
from trimtab.core.stage_paths import MOST_NODES, PathInstance, SharedLink, StageOrder
from trimtab.planners.paths.path_fields import (
    LONGEST_S,
    check_gibps,
    check_latency_ms,
    check_time,
    entries,
    mapping,
    needed,
    number,
    positive_time,
    text,
    whole,
)

GIB = 2.0**30

_RATIO_SLACK = 1e-3
"""How far a skip ratio may be rounded: the published cases write 1/3 as 0.3333."""

_ORDER = ("max_swap_total_distance", "max_swap_distance", "max_swaps", "max_stage_jump")
_LARGEST_FACTOR = 100.0
_MOST_BYTES = 1e18
_MOST_MICRO_BATCHES = 100_000
_MOST = {
    "backward_factor": _LARGEST_FACTOR,
    "loss_factor": _LARGEST_FACTOR,
    "op_gap_s": LONGEST_S,
    "op_gap_first_s": LONGEST_S,
    "wave_offset_s": LONGEST_S,
    "gradient_bytes": _MOST_BYTES,
}
_SCALARS = {
    "backward_factor": "backward_factor",
    "loss_factor": "loss_factor",
    "op_gap_s": "gap_s",
    "op_gap_first_s": "origin_forward_gap_s",
    "wave_offset_s": "wave_offset_s",
    "gradient_bytes": "gradient_bytes",
}
_INPUTS = (
    "name", "n_nodes", "n_stages", "partition_sizes", "path_len", "skip_ratio", "memory",
    "microbatches_per_origin", "waves", "forward_s", "layers_per_stage",
    "samples_per_microbatch", "activation_bytes_per_sample", "compute_s_per_sample_per_layer",
    "latency_ms", "bandwidth_GiBps", "fixed_overhead_s", "delay_s", "shared_links", "without",
    *_ORDER, *_SCALARS,
)  # fmt: skip
_REMARKS = (
    "note", "locations", "network_table", "dp_factor", "seed", "ga_trials", "ga_population",
)  # fmt: skip
"""Fields of the published cases that say where they come from and decide nothing here."""


def instance_from_document(document: Any) -> PathInstance:
    """Read an instance.

    Raises:
        InputError: A field is missing, unknown, of another length or out of range.
    """
    fields = mapping("instance", document)
    known = (*_INPUTS, *_REMARKS)
    for name in fields:
        if name not in known:
            raise InputError(f"{shown(name)}: {unknown_name_message('key', name, known)}")
    num_nodes, num_stages = whole(fields, "n_nodes"), whole(fields, "n_stages")
    if num_nodes > MOST_NODES:
        raise InputError(f"n_nodes: at most {MOST_NODES} can be planned, got {num_nodes}")
    if num_stages > num_nodes:
        raise InputError(
            f"n_stages: expected at most one stage a node, {num_nodes}, got {num_stages}"
        )
    sizes = entries("partition_sizes", needed(fields, "partition_sizes"), num_stages)
    memory = _memory(needed(fields, "memory"), num_nodes)
    waves = whole(fields, "waves")
    delay_s = _delays(fields, num_nodes)
    path_len = _path_len(fields, num_stages)
    scalars = {
        field: number(name, fields[name], 0.0, _MOST[name])
        for name, field in _SCALARS.items()
        if name in fields
    }
    for name in ("layers_per_stage", "samples_per_microbatch"):
        if name in fields:
            whole(fields, name)
    reduces = bool(fields.get("gradient_bytes"))
    instance = PathInstance(
        name=text("name", fields.get("name", "instance")),
        partition_sizes=tuple(sizes),
        path_len=path_len,
        paths_per_origin=_paths_per_origin(fields, memory, waves),
        num_waves=waves,
        memory=memory,
        forward_s=_forwards(fields, num_nodes),
        delay_s=delay_s,
        order=StageOrder(**{name: fields[name] for name in _ORDER if name in fields}),
        shared_links=_shared_links(fields),
        latency_s=_scaled(fields, "latency_ms", num_nodes, 1e-3) if reduces else (),
        bytes_per_s=_scaled(fields, "bandwidth_GiBps", num_nodes, GIB) if reduces else (),
        without=_lost(fields, num_nodes),
        **scalars,
    )
    if instance.num_micro_batches > _MOST_MICRO_BATCHES:
        raise InputError(
            f"microbatches_per_origin: at most {_MOST_MICRO_BATCHES:,} micro-batches of all "
            f"origins can be planned, got {instance.num_micro_batches:,}"
        )
    return instance


def finite_or_none(seconds: float) -> float | None:
    """As JSON writes a delay: null where there is no link."""
    return seconds if math.isfinite(seconds) else None


def instance_document(instance: PathInstance) -> dict[str, Any]:
    """The instance as a document that `instance_from_document` reads."""
    document: dict[str, Any] = {
        "name": instance.name,
        "n_nodes": instance.num_nodes,
        "n_stages": instance.num_stages,
        "partition_sizes": list(instance.partition_sizes),
        "path_len": instance.path_len,
        "skip_ratio": instance.skip_fraction,
        "memory": list(instance.memory),
        "microbatches_per_origin": instance.paths_per_origin * instance.num_waves,
        "waves": instance.num_waves,
        "forward_s": list(instance.forward_s),
        "delay_s": [[finite_or_none(s) for s in row] for row in instance.delay_s],
    }
    document |= {name: getattr(instance, field) for name, field in _SCALARS.items()}
    document |= {name: getattr(instance.order, name) for name in _ORDER}
    if instance.shared_links:
        document["shared_links"] = [
            {"pairs": [list(pair) for pair in link.pairs], "transfer_s": link.transfer_s}
            for link in instance.shared_links
        ]
    if instance.gradient_bytes:
        document["latency_ms"] = [
            [finite_or_none(s * 1e3) for s in row] for row in instance.latency_s
        ]
        document["bandwidth_GiBps"] = [
            [finite_or_none(s / GIB) for s in row] for row in instance.bytes_per_s
        ]
    if instance.without:
        document["without"] = list(instance.without)
    return document


def partitions_from_document(
    document: Any, instance: PathInstance
) -> tuple[tuple[int, ...], ...]:
    """The nodes of each stage, from `{"partitions": [[node, ...] per stage]}`.

    The document may also hold that under `arrangement`, as the published results do.

    Raises:
        InputError: Stages overlap, miss a node or have another size than the instance's.
    """
    fields = mapping("partitions", document)
    if "partitions" not in fields and "arrangement" in fields:
        fields = mapping("arrangement", fields["arrangement"])
    stages = entries("partitions", needed(fields, "partitions"), instance.num_stages)
    place: dict[int, int] = {}
    for s, nodes in enumerate(stages):
        for node in entries(f"partitions[{s}]", nodes, instance.partition_sizes[s]):
            checks.whole_number(f"partitions[{s}]", node, at_least=0)
            if node >= instance.num_nodes:
                raise InputError(
                    f"partitions[{s}]: expected nodes from 0 to {instance.num_nodes - 1}, "
                    f"got {node}"
                )
            if node in instance.without:
                raise InputError(f"partitions[{s}]: node {node} is one of the lost ones")
            if node in place:
                raise InputError(
                    f"partitions[{s}]: node {node} is in stage {place[node]} already; "
                    "a node serves one stage"
                )
            place[node] = s
    return tuple(tuple(nodes) for nodes in stages)


def schedule_parts(document: Any, instance: PathInstance) -> Any:
    """Partitions, paths and release times, from a plan's document.

    Raises:
        InputError: They are missing or of the wrong kind.
    """
    fields = mapping("plan", document)
    partitions = partitions_from_document(fields, instance)
    paths = entries("paths", needed(fields, "paths"), None)
    for a, path in enumerate(paths):
        checks.not_empty(f"paths[{a}]", entries(f"paths[{a}]", path, None))
        for node in path:
            checks.whole_number(f"paths[{a}]", node, at_least=0)
            if node >= instance.num_nodes:
                raise InputError(
                    f"paths[{a}]: expected nodes from 0 to {instance.num_nodes - 1}, got {node}"
                )
    release_s = entries("release_s", needed(fields, "release_s"), len(paths))
    for a, time_s in enumerate(release_s):
        checks.not_negative(f"release_s[{a}]", time_s)
    return partitions, tuple(tuple(path) for path in paths), tuple(map(float, release_s))


def nearest_path_len(skip_ratio: float, num_stages: int) -> int:
    """Stages a micro-batch visits at the skip ratio nearest to this one that can be met."""
    return min(num_stages, max(1, round((1 - skip_ratio) * num_stages)))


def _path_len(fields: dict[str, Any], num_stages: int) -> int:
    ratio = fields.get("skip_ratio")
    if ratio is None:
        return whole(fields, "path_len")
    checks.fraction_below_one("skip_ratio", ratio)
    nearest = nearest_path_len(ratio, num_stages)
    if abs(1 - nearest / num_stages - ratio) > _RATIO_SLACK:
        raise InputError(
            f"skip_ratio: {ratio:g} of {num_stages} stages is no whole number of stages; "
            f"the nearest that can be met is {1 - nearest / num_stages:.4g}"
        )
    if "path_len" in fields and whole(fields, "path_len") != nearest:
        raise InputError(
            f"path_len: a skip ratio of {ratio:g} means {nearest} of {num_stages} stages, "
            f"got {fields['path_len']}"
        )
    return nearest


def _paths_per_origin(fields: dict[str, Any], memory: tuple[int, ...], waves: int) -> int:
    if "microbatches_per_origin" not in fields:
        return min(memory)
    number = whole(fields, "microbatches_per_origin")
    if number % waves:
        raise InputError(
            f"microbatches_per_origin: expected a multiple of waves = {waves}, got {number}"
        )
    return number // waves


def _memory(value: Any, num_nodes: int) -> tuple[int, ...]:
    per_node = (
        entries("memory", value, num_nodes) if isinstance(value, list) else [value] * num_nodes
    )
    for node, held in enumerate(per_node):
        field = f"memory[{node}]" if isinstance(value, list) else "memory"
        if held == 0 and held is not False:
            raise InputError(
                f"{field}: too small for one micro-batch; expected a whole number >= 1, got 0"
            )
        checks.whole_number(field, held)
    return tuple(per_node)


def _forwards(fields: dict[str, Any], num_nodes: int) -> tuple[float, ...]:
    if "forward_s" in fields:
        times_s = entries("forward_s", fields["forward_s"], num_nodes)
        return tuple(
            positive_time(f"forward_s[{node}]", time_s) for node, time_s in enumerate(times_s)
        )
    field = "compute_s_per_sample_per_layer"
    per_layer_s = entries(field, needed(fields, field), num_nodes)
    number = whole(fields, "layers_per_stage") * whole(fields, "samples_per_microbatch")
    return tuple(
        positive_time(f"{field}[{node}] of a stage", number * positive_time(field, time_s))
        for node, time_s in enumerate(per_layer_s)
    )


def _delays(fields: dict[str, Any], num_nodes: int) -> tuple[tuple[float, ...], ...]:
    for field, check in (
        ("latency_ms", check_latency_ms),
        ("bandwidth_GiBps", check_gibps),
    ):
        if field in fields:
            _matrix(field, fields[field], num_nodes, check)
    _check_same_links(fields)
    if "delay_s" in fields:
        return _matrix("delay_s", fields["delay_s"], num_nodes, check_time)
    latency_s = _scaled(fields, "latency_ms", num_nodes, 1e-3)
    bytes_per_s = _scaled(fields, "bandwidth_GiBps", num_nodes, GIB)
    overhead_s = fields.get("fixed_overhead_s", 0.0)
    check_time("fixed_overhead_s", overhead_s)
    num_bytes = needed(fields, "activation_bytes_per_sample")
    checks.positive("activation_bytes_per_sample", num_bytes)
    num_bytes *= whole(fields, "samples_per_microbatch")
    number("activation_bytes_per_sample of a micro-batch", num_bytes, 0.0, _MOST_BYTES)
    nodes = range(num_nodes)
    return tuple(
        tuple(
            0.0 if i == j else latency_s[i][j] + num_bytes / bytes_per_s[i][j] + overhead_s
            for j in nodes
        )
        for i in nodes
    )


def _check_same_links(fields: dict[str, Any]) -> None:
    """Raise where a link is missing in one of the two tables only."""
    tables = [fields.get(name) for name in ("latency_ms", "bandwidth_GiBps")]
    if None in tables:
        return
    for i, rows in enumerate(zip(*tables, strict=True)):
        for j, (latency_ms, gibps) in enumerate(zip(*rows, strict=True)):
            if i != j and (latency_ms is None) != (gibps is None):
                raise InputError(
                    f"latency_ms[{i}][{j}], bandwidth_GiBps[{i}][{j}]: one is null; a link "
                    "that is missing is null in both"
                )


def _scaled(
    fields: dict[str, Any], field: str, num_nodes: int, factor: float
) -> tuple[tuple[float, ...], ...]:
    rows = _matrix(field, needed(fields, field), num_nodes, checks.not_negative)
    return tuple(tuple(factor * value for value in row) for row in rows)


def _matrix(
    field: str, value: Any, num_nodes: int, check: Any
) -> tuple[tuple[float, ...], ...]:
    rows = []
    for i, row in enumerate(entries(field, value, num_nodes)):
        delays = entries(f"{field}[{i}]", row, num_nodes)
        for j, entry in enumerate(delays):
            if entry is not None and i != j:
                check(f"{field}[{i}][{j}]", entry)
        rows.append(
            tuple(
                0.0 if i == j else math.inf if entry is None else float(entry)
                for j, entry in enumerate(delays)
            )
        )
    return tuple(rows)


def _shared_links(fields: dict[str, Any]) -> tuple[SharedLink, ...]:
    links = []
    for k, value in enumerate(entries("shared_links", fields.get("shared_links", []), None)):
        field = f"shared_links[{k}]"
        link = mapping(field, value)
        for name in link:
            known = ("pairs", "transfer_s", "capacity_GiBps")
            if name not in known:
                raise InputError(f"{field}.{name}: {unknown_name_message('key', name, known)}")
        pairs = [
            entries(f"{field}.pairs[{p}]", pair, 2)
            for p, pair in enumerate(entries(f"{field}.pairs", needed(link, "pairs"), None))
        ]
        for pair in pairs:
            for node in pair:
                checks.whole_number(f"{field}.pairs", node, at_least=0)
        links.append(
            SharedLink(
                pairs=tuple((pair[0], pair[1]) for pair in pairs),
                transfer_s=_transfer_s(field, link, fields),
            )
        )
    return tuple(links)


def _transfer_s(field: str, link: dict[str, Any], fields: dict[str, Any]) -> float:
    if "transfer_s" in link:
        return number(f"{field}.transfer_s", link["transfer_s"], 0.0, LONGEST_S)
    capacity = needed(link, "capacity_GiBps")
    check_gibps(f"{field}.capacity_GiBps", capacity)
    num_bytes = needed(fields, "activation_bytes_per_sample")
    checks.positive("activation_bytes_per_sample", num_bytes)
    return float(num_bytes * whole(fields, "samples_per_microbatch") / (capacity * GIB))


def _lost(fields: dict[str, Any], num_nodes: int) -> tuple[int, ...]:
    lost = entries("without", fields.get("without", []), None)
    for node in lost:
        checks.whole_number("without", node, at_least=0)
        if node >= num_nodes:
            raise InputError(f"without: expected nodes from 0 to {num_nodes - 1}, got {node}")
    return tuple(sorted(set(lost)))
