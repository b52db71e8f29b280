import math
from collections.abc import Callable
from typing import Any

import pytest
from path_cases import CASES, document

from trimtab.core.errors import InputError
from trimtab.planners.paths.path_instance import (
    instance_document,
    instance_from_document,
    partitions_from_document,
)

INSTANCES = sorted(
    path.name.removesuffix(".instance.json") for path in CASES.glob("*.instance.json")
)


@pytest.mark.parametrize("name", INSTANCES)
def test_published_instances_survive_a_round_trip(name: str) -> None:
    instance = instance_from_document(document(name))
    assert instance_from_document(instance_document(instance)) == instance


def test_shared_links_losses_and_missing_links_survive_a_round_trip() -> None:
    fields = document("n06_s4_skip50")
    fields["delay_s"][0][1] = None
    fields["shared_links"] = [{"pairs": [[0, 1], [2, 1]], "capacity_GiBps": 0.5}]
    fields["memory"] = [3, 3, 3, 3, 3, 4]
    fields["gradient_bytes"] = 1e9
    instance = instance_from_document(fields)
    assert instance.delay_s[0][1] == math.inf
    # 8 samples of 4 MiB over half a GiB a second
    assert instance.shared_links[0].transfer_s == 8 * 4 / 512
    again = instance_from_document(instance_document(instance))
    assert again.shared_links == instance.shared_links
    assert again.memory == (3, 3, 3, 3, 3, 4)
    assert again.closing_s((0, 1)) == pytest.approx(instance.closing_s((0, 1)))


def test_delays_follow_from_latency_and_bandwidth() -> None:
    fields = document("n06_s4_skip50")
    given = instance_from_document(fields).delay_s
    del fields["delay_s"]
    derived = instance_from_document(fields).delay_s
    assert [s for row in derived for s in row] == pytest.approx(
        [s for row in given for s in row]
    )


def _with(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.__setitem__(name, value)


def _entry(name: str, i: int, j: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields[name][i].__setitem__(j, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("skip_ratio", 0.4), "the nearest that can be met is 0.5"),
        (_with("skip_ratio", 1.0), "skip_ratio: expected a number >= 0 and < 1"),
        (_with("skip_ratio", math.nan), "skip_ratio: expected a number"),
        (_with("path_len", 3), "path_len: a skip ratio of 0.5 means 2 of 4 stages, got 3"),
        (_with("memory", 0), "memory: too small for one micro-batch"),
        (_with("memory", [3, 3, 3, 3, 3, 0]), r"memory\[5\]: too small for one micro-batch"),
        (_with("memory", [3] * 5), "memory: expected 6 entries, got 5"),
        (_with("memory", 1.5), "memory: expected a whole number >= 1, got 1.5"),
        (_with("n_stages", 7), "n_stages: expected at most one stage a node, 6, got 7"),
        (_with("n_nodes", True), "n_nodes: expected a whole number >= 1, got True"),
        (_with("n_nodes", 10**7), "n_nodes: at most 1000 can be planned"),
        (_with("partition_sizes", [3, 1, 1]), "partition_sizes: expected 4 entries, got 3"),
        (_with("partition_sizes", [3, 1, 1, 2]), "a sum of 6, got 7"),
        (_with("partition_sizes", [4, 1, 1, 0]), r"partition_sizes\[3\]: expected a whole"),
        (_with("microbatches_per_origin", 7), "expected a multiple of waves = 2, got 7"),
        (_with("waves", -1), "waves: expected a whole number >= 1, got -1"),
        (_with("forward_s", [1.0]), "forward_s: expected 6 entries, got 1"),
        (_with("forward_s", [0.0] * 6), r"forward_s\[0\]: expected a finite number > 0"),
        (_with("backward_factor", -1), "backward_factor: expected a finite number >= 0"),
        (_with("op_gap_s", math.inf), "gap_s: expected a finite number >= 0, got inf"),
        (_with("max_swaps", -1), "max_swaps: expected a whole number >= 0"),
        (_with("delay_s", [[0.0] * 6] * 5), "delay_s: expected 6 entries, got 5"),
        (_with("delay_s", 3), "delay_s: expected a list, got 3"),
        (_entry("delay_s", 1, 2, -0.5), r"delay_s\[1\]\[2\]: expected a finite number >= 0"),
        (_entry("delay_s", 1, 2, math.nan), r"delay_s\[1\]\[2\]: expected a finite number"),
        (_entry("bandwidth_GiBps", 0, 3, 0), r"bandwidth_GiBps\[0\]\[3\]: .* > 0, got 0"),
        (_with("without", [9]), "without: expected nodes from 0 to 5, got 9"),
        (_with("name", ""), "name: expected some text"),
        (_with("forwards_s", []), "did you mean 'forward_s'"),
        (_with("shared_links", [{"pairs": [[0, 9]], "transfer_s": 1}]), "nodes from 0 to 5"),
        (_with("shared_links", [{"pairs": [[0]], "transfer_s": 1}]), "expected 2 entries"),
        (_with("shared_links", [{"pairs": [], "speed": 1}]), "unknown key 'speed'"),
    ],
)
def test_wrong_fields_are_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    fields = document("n06_s4_skip50")
    change(fields)
    with pytest.raises(InputError, match=message):
        instance_from_document(fields)


@pytest.mark.parametrize("name", ["n_nodes", "partition_sizes", "memory", "waves"])
def test_missing_fields_are_named(name: str) -> None:
    fields = document("n06_s4_skip50")
    del fields[name]
    with pytest.raises(InputError, match=f"{name}: missing"):
        instance_from_document(fields)


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        ([[0, 1, 2], [3], [4], [4]], r"partitions\[3\]: node 4 is in stage 2 already"),
        ([[0, 1, 2], [3], [4]], "partitions: expected 4 entries, got 3"),
        ([[0, 1], [3], [4], [5]], r"partitions\[0\]: expected 3 entries, got 2"),
        ([[0, 1, 2], [3], [4], [6]], "expected nodes from 0 to 5, got 6"),
        ([[0, 1, 2], [3], [4], [-1]], "expected a whole number >= 0, got -1"),
        ([[0, 1, 2], [3], [4], ["5"]], "expected a whole number >= 0, got '5'"),
        ("012345", "partitions: expected a list"),
    ],
)
def test_wrong_arrangements_are_named(partitions: Any, message: str) -> None:
    instance = instance_from_document(document("n06_s4_skip50"))
    with pytest.raises(InputError, match=message):
        partitions_from_document({"partitions": partitions}, instance)


@pytest.mark.parametrize("fields", [[], 3, None, "text", {"paths": []}])
def test_what_holds_no_arrangement_is_refused(fields: Any) -> None:
    instance = instance_from_document(document("n06_s4_skip50"))
    with pytest.raises(InputError, match="partitions"):
        partitions_from_document(fields, instance)
