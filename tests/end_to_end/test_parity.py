"""The same steps by one process and by four ranks whose groups change every wave."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.core import serde
from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.job import DataSource, DataSpec, JobSpec, TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import SequenceGroup, StagePath, StepPlan, Wave
from trimtab.core.units import GIB

pytestmark = [pytest.mark.workers, pytest.mark.slow]

_STEPS = 20
_BATCH = 7
_GROUPINGS = (
    # Sequences 0-6 as (ranks, sequences), a wave a line.
    [[((0, 1), (0, 4)), ((2,), (1,)), ((3,), (2,))], [((0, 1, 2, 3), (3, 6, 5))]],
    [[((0,), (6,)), ((1,), (5,)), ((2, 3), (4, 0, 1))], [((1, 2), (2,)), ((3,), (3,))]],
    [[((0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6))]],
    [[((2, 3), (3, 0)), ((0, 1), (1, 2))], [((0,), (4, 6)), ((2,), (5,))]],
)

_RINGS = (
    # Rings of two, three and four ranks, and one beside Ulysses.
    [[((0, 1, 2), (0, 4, 3), "ring"), ((3,), (1,))], [((0, 1, 2, 3), (2, 6, 5), "ring")]],
    [[((0, 3), (6, 2), "ring"), ((1, 2), (1, 5))], [((1, 2, 3), (4, 0, 3), "ring")]],
    [[((0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6), "ring")]],
    [[((0, 1), (3, 0, 1), "ring"), ((2, 3), (2, 4), "ring")], [((0, 2, 3), (5, 6), "ring")]],
)


def _job(folder: Path, **model: Any) -> JobSpec:
    spec = {
        "name": "tiny", "num_layers": 2, "hidden": 32, "ffn_hidden": 64, "num_heads": 4,
        "num_kv_heads": 4, "head_dim": 8, "vocab": 259, "max_seq_tokens": 512, **model,
    }  # fmt: skip
    node = NodeSpec(
        name="here", count=1, gpus_per_node=4, island="here",
        gpu=GpuSpec(name="cpu", memory_bytes=GIB, memory_bytes_per_s=1e9),
        intra_node=Link(bytes_per_s=1e9, latency_s=1e-6),
        nics=(NicSpec(kind="loopback", count=1, bytes_per_s=1e9, latency_s=1e-6),),
    )  # fmt: skip
    return JobSpec(
        name="parity",
        model=ModelSpec(**spec),
        cluster=ClusterSpec(name="here", nodes=(node,)),
        num_ranks=1,
        data=DataSpec(
            sources=(DataSource(path=str(folder)),),
            max_seq_tokens=300,
            held_out_fraction=0.4,
        ),
        training=TrainingSpec(
            num_steps=_STEPS,
            global_batch_seqs=_BATCH,
            learning_rate=2e-3,
            precision="fp32",
            evaluate_every_steps=10,
            evaluation_seqs=_BATCH,
        ),
    )


def _plan(waves: list[Any]) -> StepPlan:
    return StepPlan(
        waves=tuple(
            Wave(
                groups=tuple(
                    SequenceGroup(ranks=ranks, sequences=sequences, attention=attention)
                    for ranks, sequences, *kind in groups
                    for attention in kind or ["ulysses"]
                )
            )
            for groups in waves
        ),
        paths=(StagePath(stages=(0,)),) * len(waves),
        step_s=1.0,
        lower_bound_s=1.0,
        method="heuristic",
        solve_s=0.0,
        reason="given by the test",
    )


def _changing_plans() -> list[StepPlan]:
    return [_plan(_GROUPINGS[step % len(_GROUPINGS)]) for step in range(_STEPS)]


def _ring_plans() -> list[StepPlan]:
    return [_plan(_RINGS[step % len(_RINGS)]) for step in range(_STEPS)]


def _one_process_plans() -> list[StepPlan]:
    return [_plan([[((0,), (index,))] for index in range(_BATCH)])] * _STEPS


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """One process that has imported everything; the ranks of all runs are forked from it."""

    process: subprocess.Popen[str]
    folder: Path

    def train(
        self,
        job: JobSpec,
        plans: list[StepPlan],
        *,
        num_ranks: int,
        fault: str | None = None,
    ) -> dict[str, Any]:
        out = Path(tempfile.mkdtemp(dir=self.folder))
        config = {
            "job": serde.to_document(job),
            "num_ranks": num_ranks,
            "plans": [serde.to_document(plan) for plan in plans],
            "out": str(out),
            "fault": fault,
        }
        (out / "config.json").write_text(json.dumps(config))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(out / "config.json", file=self.process.stdin, flush=True)
        went_well = self.process.stdout.readline() == "True\n"
        assert went_well, (self.folder / "stderr").read_text()[-2000:]
        results: dict[str, Any] = json.loads((out / "rank-0.json").read_text())
        results["gradients"] = torch.load(out / "gradients-0.pt")
        return results


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("runs")
    script = Path(__file__).with_name("train_rank.py")
    with (
        (folder / "stderr").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        yield Trainer(process=process, folder=folder)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    generator = torch.Generator().manual_seed(7)
    for index in range(40):
        length = int(torch.randint(3, 400, (), generator=generator))
        letters = torch.randint(97, 107, (length,), generator=generator)
        (folder / f"{index:02d}.txt").write_bytes(bytes(letters.tolist()))
    return folder


@pytest.fixture(scope="module")
def reference(documents: Path, trainer: Trainer) -> dict[str, Any]:
    return trainer.train(_job(documents), _one_process_plans(), num_ranks=1)


def _relative_error(found: dict[str, Any], expected: dict[str, Any]) -> float:
    worst = 0.0
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        worst = max(worst, float(error))
    return worst


def test_four_ranks_with_changing_groups_lose_what_one_process_loses(
    reference: dict[str, Any], documents: Path, trainer: Trainer
) -> None:
    four = trainer.train(_job(documents), _changing_plans(), num_ranks=4)

    differences = [abs(a - b) for a, b in zip(four["losses"], reference["losses"], strict=True)]
    gradient_error = _relative_error(four["gradients"], reference["gradients"])
    print(f"losses differ by at most {max(differences):.1e}, gradients by {gradient_error:.1e}")
    assert len(four["losses"]) == _STEPS
    assert four["losses"] == pytest.approx(reference["losses"], abs=1e-5)
    assert four["evaluations"] == pytest.approx(reference["evaluations"], abs=1e-5)
    assert gradient_error < 1e-5
    assert reference["losses"][-1] < reference["losses"][0] - 1.0


def test_rings_of_two_three_and_four_lose_what_one_process_loses(
    reference: dict[str, Any], documents: Path, trainer: Trainer
) -> None:
    four = trainer.train(_job(documents), _ring_plans(), num_ranks=4)

    assert four["losses"] == pytest.approx(reference["losses"], abs=1e-5)
    assert four["evaluations"] == pytest.approx(reference["evaluations"], abs=1e-5)
    assert _relative_error(four["gradients"], reference["gradients"]) < 1e-5


@pytest.mark.parametrize("fault", ["mask", "position", "weighting"])
def test_a_broken_mask_position_or_weighting_is_noticed(
    fault: str, reference: dict[str, Any], documents: Path, trainer: Trainer
) -> None:
    broken = trainer.train(_job(documents), _changing_plans(), num_ranks=4, fault=fault)

    assert abs(broken["losses"][-1] - reference["losses"][-1]) > 1e-4
    assert _relative_error(broken["gradients"], reference["gradients"]) > 1e-3


@pytest.mark.parametrize(
    "model",
    [
        {"num_kv_heads": 2, "gated_mlp": True, "norm": "rmsnorm"},
        {"positions": "learned", "biases": True, "tied_embeddings": True},
    ],
    ids=["grouped-query", "learned-positions"],
)
def test_other_models_agree_too(
    model: dict[str, Any], documents: Path, trainer: Trainer
) -> None:
    job = _job(documents, **model)
    one = trainer.train(job, _one_process_plans(), num_ranks=1)
    half = _STEPS // 2
    plans = [*_changing_plans()[:half], *_ring_plans()[half:]]
    rings_first = [*_ring_plans()[:1], *plans[1:]]  # whose gradients are compared
    four = trainer.train(job, rings_first, num_ranks=4)

    assert four["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert _relative_error(four["gradients"], one["gradients"]) < 1e-5


def test_the_parts_of_a_step_add_up(
    reference: dict[str, Any],
) -> None:
    for step in reference["steps"]:
        assert sum(step["parts"].values()) == pytest.approx(step["step_s"], rel=1e-9)
        assert step["parts"]["forward"] > 0
        assert step["parts"]["backward"] > 0
        assert sum(step["waves_s"]) <= step["step_s"]
