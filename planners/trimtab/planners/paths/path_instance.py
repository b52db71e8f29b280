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

GIB = 2.0**30

_RATIO_SLACK = 1e-3
"""How far a skip ratio may be rounded: the published cases write 1/3 as 0.3333."""

_ORDER = ("max_swap_total_distance", "max_swap_distance", "max_swaps", "max_stage_jump")
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
    fields = _object("instance", document)
    known = (*_INPUTS, *_REMARKS)
    for name in fields:
        if name not in known:
            raise InputError(f"{shown(name)}: {unknown_name_message('key', name, known)}")
    num_nodes, num_stages = _whole(fields, "n_nodes"), _whole(fields, "n_stages")
    if num_nodes > MOST_NODES:
        raise InputError(f"n_nodes: at most {MOST_NODES} can be planned, got {num_nodes}")
    if num_stages > num_nodes:
        raise InputError(
            f"n_stages: expected at most one stage a node, {num_nodes}, got {num_stages}"
        )
    sizes = _list("partition_sizes", _needed(fields, "partition_sizes"), num_stages)
    memory = _memory(_needed(fields, "memory"), num_nodes)
    waves = _whole(fields, "waves")
    delay_s = _delays(fields, num_nodes)
    path_len = _path_len(fields, num_stages)
    scalars = {field: fields[name] for name, field in _SCALARS.items() if name in fields}
    reduces = bool(fields.get("gradient_bytes"))
    return PathInstance(
        name=_text("name", fields.get("name", "instance")),
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
        "delay_s": [[None if s == math.inf else s for s in row] for row in instance.delay_s],
    }
    document |= {name: getattr(instance, field) for name, field in _SCALARS.items()}
    document |= {name: getattr(instance.order, name) for name in _ORDER}
    if instance.shared_links:
        document["shared_links"] = [
            {"pairs": [list(pair) for pair in link.pairs], "transfer_s": link.transfer_s}
            for link in instance.shared_links
        ]
    if instance.gradient_bytes:
        document["latency_ms"] = [[s * 1e3 for s in row] for row in instance.latency_s]
        document["bandwidth_GiBps"] = [[s / GIB for s in row] for row in instance.bytes_per_s]
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
    fields = _object("partitions", document)
    if "partitions" not in fields and "arrangement" in fields:
        fields = _object("arrangement", fields["arrangement"])
    stages = _list("partitions", _needed(fields, "partitions"), instance.num_stages)
    place: dict[int, int] = {}
    for s, nodes in enumerate(stages):
        for node in _list(f"partitions[{s}]", nodes, instance.partition_sizes[s]):
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
    fields = _object("plan", document)
    partitions = partitions_from_document(fields, instance)
    paths = _list("paths", _needed(fields, "paths"), None)
    for a, path in enumerate(paths):
        for node in _list(f"paths[{a}]", path, None):
            checks.whole_number(f"paths[{a}]", node, at_least=0)
    release_s = _list("release_s", _needed(fields, "release_s"), len(paths))
    for a, time_s in enumerate(release_s):
        checks.not_negative(f"release_s[{a}]", time_s)
    return partitions, tuple(tuple(path) for path in paths), tuple(map(float, release_s))


def nearest_path_len(skip_ratio: float, num_stages: int) -> int:
    """Stages a micro-batch visits at the skip ratio nearest to this one that can be met."""
    return min(num_stages, max(1, round((1 - skip_ratio) * num_stages)))


def _path_len(fields: dict[str, Any], num_stages: int) -> int:
    ratio = fields.get("skip_ratio")
    if ratio is None:
        return _whole(fields, "path_len")
    checks.fraction_below_one("skip_ratio", ratio)
    nearest = nearest_path_len(ratio, num_stages)
    if abs(1 - nearest / num_stages - ratio) > _RATIO_SLACK:
        raise InputError(
            f"skip_ratio: {ratio:g} of {num_stages} stages is no whole number of stages; "
            f"the nearest that can be met is {1 - nearest / num_stages:.4g}"
        )
    if "path_len" in fields and _whole(fields, "path_len") != nearest:
        raise InputError(
            f"path_len: a skip ratio of {ratio:g} means {nearest} of {num_stages} stages, "
            f"got {fields['path_len']}"
        )
    return nearest


def _paths_per_origin(fields: dict[str, Any], memory: tuple[int, ...], waves: int) -> int:
    if "microbatches_per_origin" not in fields:
        return min(memory)
    number = _whole(fields, "microbatches_per_origin")
    if number % waves:
        raise InputError(
            f"microbatches_per_origin: expected a multiple of waves = {waves}, got {number}"
        )
    return number // waves


def _memory(value: Any, num_nodes: int) -> tuple[int, ...]:
    per_node = (
        _list("memory", value, num_nodes) if isinstance(value, list) else [value] * num_nodes
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
        times_s = _list("forward_s", fields["forward_s"], num_nodes)
        for node, time_s in enumerate(times_s):
            checks.positive(f"forward_s[{node}]", time_s)
        return tuple(map(float, times_s))
    field = "compute_s_per_sample_per_layer"
    per_layer_s = _list(field, _needed(fields, field), num_nodes)
    for node, time_s in enumerate(per_layer_s):
        checks.positive(f"{field}[{node}]", time_s)
    number = _whole(fields, "layers_per_stage") * _whole(fields, "samples_per_microbatch")
    return tuple(time_s * number for time_s in per_layer_s)


def _delays(fields: dict[str, Any], num_nodes: int) -> tuple[tuple[float, ...], ...]:
    for field, check in (
        ("latency_ms", checks.not_negative),
        ("bandwidth_GiBps", checks.positive),
    ):
        if field in fields:
            _matrix(field, fields[field], num_nodes, check)
    if "delay_s" in fields:
        return _matrix("delay_s", fields["delay_s"], num_nodes, checks.not_negative)
    latency_s = _scaled(fields, "latency_ms", num_nodes, 1e-3)
    bytes_per_s = _scaled(fields, "bandwidth_GiBps", num_nodes, GIB)
    overhead_s = fields.get("fixed_overhead_s", 0.0)
    checks.not_negative("fixed_overhead_s", overhead_s)
    num_bytes = _needed(fields, "activation_bytes_per_sample")
    checks.positive("activation_bytes_per_sample", num_bytes)
    num_bytes *= _whole(fields, "samples_per_microbatch")
    nodes = range(num_nodes)
    return tuple(
        tuple(
            0.0 if i == j else latency_s[i][j] + num_bytes / bytes_per_s[i][j] + overhead_s
            for j in nodes
        )
        for i in nodes
    )


def _scaled(
    fields: dict[str, Any], field: str, num_nodes: int, factor: float
) -> tuple[tuple[float, ...], ...]:
    rows = _matrix(field, _needed(fields, field), num_nodes, checks.not_negative)
    return tuple(tuple(factor * value for value in row) for row in rows)


def _matrix(
    field: str, value: Any, num_nodes: int, check: Any
) -> tuple[tuple[float, ...], ...]:
    rows = []
    for i, row in enumerate(_list(field, value, num_nodes)):
        entries = _list(f"{field}[{i}]", row, num_nodes)
        for j, entry in enumerate(entries):
            if entry is not None and i != j:
                check(f"{field}[{i}][{j}]", entry)
        rows.append(
            tuple(
                0.0 if i == j else math.inf if entry is None else float(entry)
                for j, entry in enumerate(entries)
            )
        )
    return tuple(rows)


def _shared_links(fields: dict[str, Any]) -> tuple[SharedLink, ...]:
    links = []
    for k, value in enumerate(_list("shared_links", fields.get("shared_links", []), None)):
        field = f"shared_links[{k}]"
        link = _object(field, value)
        for name in link:
            known = ("pairs", "transfer_s", "capacity_GiBps")
            if name not in known:
                raise InputError(f"{field}.{name}: {unknown_name_message('key', name, known)}")
        pairs = [
            _list(f"{field}.pairs[{p}]", pair, 2)
            for p, pair in enumerate(_list(f"{field}.pairs", _needed(link, "pairs"), None))
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
        checks.not_negative(f"{field}.transfer_s", link["transfer_s"])
        return float(link["transfer_s"])
    capacity = _needed(link, "capacity_GiBps")
    checks.positive(f"{field}.capacity_GiBps", capacity)
    num_bytes = _needed(fields, "activation_bytes_per_sample")
    checks.positive("activation_bytes_per_sample", num_bytes)
    return float(num_bytes * _whole(fields, "samples_per_microbatch") / (capacity * GIB))


def _lost(fields: dict[str, Any], num_nodes: int) -> tuple[int, ...]:
    lost = _list("without", fields.get("without", []), None)
    for node in lost:
        checks.whole_number("without", node, at_least=0)
        if node >= num_nodes:
            raise InputError(f"without: expected nodes from 0 to {num_nodes - 1}, got {node}")
    return tuple(sorted(set(lost)))


def _needed(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise InputError(f"{name}: missing")
    return fields[name]


def _whole(fields: dict[str, Any], name: str) -> int:
    value = _needed(fields, name)
    checks.whole_number(name, value)
    return int(value)


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{field}: expected some text, got {shown(value)}")
    return value


def _object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{field}: expected an object, got {shown(value)}")
    return value


def _list(field: str, value: Any, length: int | None) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{field}: expected a list, got {shown(value)}")
    if length is not None and len(value) != length:
        raise InputError(f"{field}: expected {length} entries, got {len(value)}")
    return value
