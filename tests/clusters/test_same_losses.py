"""The demo in small batches here, on two nodes of a real Slurm and of a real Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from script_jobs import until

from trimtab.core.events import StepSummarized
from trimtab.core.job import JobState
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.config import load_job
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.submission import submit_job

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("slurm_cluster", "ray_cluster"),
]

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
STEPS = 4
PROFILE = {
    "model": "demo",
    "num_gpus": 4,
    "gpus_per_node": 4,
    "quadratic_ms": 1e-5,
    "linear_ms": 0.05,
    "fixed_ms": 5.0,
    "alltoall_mb_per_token": 0.004,
    "v_gb_per_s": {"2": 0.5, "4": 0.3},
    "token_cap": 1792,
}


def losses(scheduler: Literal["local", "slurm", "ray"], *, folder: Path) -> list[float]:
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    changes = [
        f"profile={folder / 'profile.json'}",
        f"training.num_steps={STEPS}",
        "training.global_batch_seqs=4",
        "training.evaluate_every_steps=0",
    ]
    job = load_job(DEMO, changes)
    if scheduler != "local":
        job = replace(job, num_nodes=2)
    run = submit_job(job, scheduler=scheduler, root=folder / "runs")
    until(lambda: observe(run).state.state.is_final)
    assert observe(run).state.state is JobState.SUCCEEDED, observe(run).state.reason
    with EventStore.open(run.events) as store:
        steps = [event for event in store.all() if isinstance(event, StepSummarized)]
    return [event.loss for event in steps]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses("local", folder=tmp_path_factory.mktemp("here"))


@pytest.mark.parametrize("scheduler", ["slurm", "ray"])
def test_the_demo_loses_the_same_wherever_it_runs(
    scheduler: Literal["slurm", "ray"], here: list[float], tmp_path: Path
) -> None:
    assert len(here) == STEPS
    assert here[-1] < here[0]
    assert losses(scheduler, folder=tmp_path) == pytest.approx(here, abs=1e-6)
