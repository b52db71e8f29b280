"""The same plans with numba and without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.planners.compiled import IS_COMPILED

_PLAN = """
import json, sys
if sys.argv[2] == "plain":
    sys.modules["numba"] = None  # importing it fails, as where it is not installed
from pathlib import Path
from trimtab.planners import compiled
from trimtab.planners.calibration import profile_from_document
from trimtab.planners.steps.packing import BatchCosts, PackingSearch
from trimtab.core.pipeline import Pipeline
from trimtab.planners.pipelines.pipelined import pipelined_step
from trimtab.planners.steps.sequences import plan_step

assert compiled.IS_COMPILED == (sys.argv[2] == "compiled")
profile = profile_from_document(json.loads(Path(sys.argv[1]).read_text()))
lengths = [60_000, 20_000, 9_000, 7_000, *range(300, 3_300, 50)]
plan = plan_step(lengths, profile=profile, num_ranks=16, clock=lambda: 0.0)
costs = BatchCosts(lengths, profile=profile, degrees=(1, 2, 4, 8, 16))
search = PackingSearch(costs, num_ranks=16)
(waves,) = search.builds(1)
search.improve(waves, trials=200)
steps = [
    pipelined_step(
        lengths[3:30], profile=profile, pipeline=Pipeline(pp=2, vpp=vpp), num_ranks=4,
        clock=lambda: 0.0,
    )
    for vpp in (1, 2)
]
groups = [
    [group.ranks, group.sequences]
    for step in (plan, *steps)
    for wave in step.waves
    for group in wave.groups
]
print(json.dumps([groups, plan.step_s, waves.seconds, *(step.step_s for step in steps)]))
"""
PROFILE = Path(__file__).parents[1] / "data" / "profiles" / "flexsp_7b_a100.json"


@pytest.mark.skipif(
    not IS_COMPILED, reason="numba is not installed: there is nothing to compare"
)
def test_plans_are_the_same_without_numba() -> None:
    compiled, plain = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _PLAN, str(PROFILE), kind],
                check=True, capture_output=True, text=True,
            ).stdout
        )
        for kind in ("compiled", "plain")
    )  # fmt: skip
    assert compiled[0] == plain[0]
    assert compiled[1:] == pytest.approx(plain[1:])
