from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.job import ScriptSpec
from trimtab.launch.ray.demand import fits, node_demand
from trimtab.launch.ray.scheduler import RayScheduler


@pytest.mark.parametrize(
    ("options", "demand"),
    [
        ({}, {"CPU": 2.0}),
        ({"needs_gpus": True}, {"GPU": 2.0}),
        ({"needs_gpus": True, "resource": "accelerator"}, {"accelerator": 2.0}),
    ],
)
def test_every_rank_takes_one(
    scheduler: RayScheduler,
    script_job: Callable[..., ScriptSpec],
    options: dict[str, object],
    demand: dict[str, float],
) -> None:
    request = scheduler.prepare(script_job(**options), layout=None, run_dir=Path("/runs/a"))
    assert node_demand(request) == demand


def test_all_that_is_asked_for_must_be_there() -> None:
    assert fits({"GPU": 2.0}, {"GPU": 2.0, "CPU": 1.0})
    assert not fits({"GPU": 2.0}, {"GPU": 1.0})
    assert not fits({"GPU": 2.0}, {})
