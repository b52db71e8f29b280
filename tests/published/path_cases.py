"""What the tests of stage paths share: the published cases and small instances."""

import json
import math
import random
from pathlib import Path
from typing import Any

from trimtab.core.stage_paths import PathInstance, PathSchedule
from trimtab.planners.paths.path_instance import (
    instance_from_document,
    partitions_from_document,
)
from trimtab.planners.paths.path_starts import Partitions

CASES = Path(__file__).parents[1] / "data" / "skippipe"


def document(name: str, kind: str = "instance") -> Any:
    return json.loads((CASES / f"{name}.{kind}.json").read_text())


def case(name: str) -> PathInstance:
    return instance_from_document(document(name))


def arrangement(name: str) -> Partitions:
    return partitions_from_document(document(name, "upstream"), case(name))


def schedule_of(instance: PathInstance, partitions: Any, paths: Any) -> PathSchedule:
    kept = tuple(map(tuple, paths))
    return PathSchedule(
        partitions=tuple(map(tuple, partitions)),
        paths=kept,
        release_s=instance.release_s(kept),
    )


def small_instance(seed: int = 0, **changes: Any) -> PathInstance:
    """Two origins and a node in each of two stages, which half of the paths skip."""
    generator = random.Random(seed)
    nodes = range(4)
    fields: dict[str, Any] = {
        "name": "small", "partition_sizes": (2, 1, 1), "path_len": 2, "paths_per_origin": 2,
        "num_waves": 2, "memory": (2,) * 4,
        "forward_s": tuple(generator.uniform(1, 2) for _ in nodes),
        "delay_s": tuple(
            tuple(0.0 if i == j else generator.uniform(0.4, 3) for j in nodes) for i in nodes
        ),
    }  # fmt: skip
    return PathInstance(**fields | changes)


def line_instance(num_nodes: int = 2, **changes: Any) -> PathInstance:
    """One origin and a node for every other stage: forward 2 s, delays 1 s."""
    nodes = range(num_nodes)
    fields: dict[str, Any] = {
        "name": "line", "partition_sizes": (1,) * num_nodes, "path_len": num_nodes,
        "paths_per_origin": 1, "num_waves": 1, "memory": (3,) * num_nodes,
        "forward_s": (2.0,) * num_nodes,
        "delay_s": tuple(tuple(float(i != j) for j in nodes) for i in nodes),
    }  # fmt: skip
    return PathInstance(**fields | changes)


class Ticks:
    """A clock that advances by a hundredth of a second whenever it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.reads / 100


NO_LINK = math.inf
