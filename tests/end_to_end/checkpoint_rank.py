"""Ranks of several short runs in turn, each with nodes and an address of its own.

    python checkpoint_rank.py CONFIG.json

Writes what came of each run to `OUT/rank-N.json`. A rank is one process for all runs.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else every rank imports it in its first step
from forked import run_ranks
from train_rank import GivenPlans, Recorder

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.errors import TrimtabError
from trimtab.core.events import Alert, AnyEvent, CheckpointSaved, RunResumed, StepSummarized
from trimtab.core.job import CheckpointSpec, DataSource, DataSpec, JobSpec, TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, SequenceGroup, StagePath, StepPlan, Wave
from trimtab.core.units import GIB
from trimtab.launch.runtime import checkpoint_state, megatron, worker
from trimtab.launch.runtime.context import RankContext

BATCH = 6
STATE: Any = checkpoint_state


class Saboteur(Recorder):
    """Keeps the events, and puts a file where the run's folder at the address was."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self._folder = folder

    def emit(self, event: AnyEvent) -> None:
        super().emit(event)
        if isinstance(event, StepSummarized) and event.step == 1 and self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder.write_text("no folder any more")


def job_of(run: dict[str, Any], documents: str) -> JobSpec:
    node = NodeSpec(
        name="here", count=1, gpus_per_node=4, island="here",
        gpu=GpuSpec(name="cpu", memory_bytes=GIB, memory_bytes_per_s=1e9),
        intra_node=Link(bytes_per_s=1e9, latency_s=1e-6),
        nics=(NicSpec(kind="loopback", count=1, bytes_per_s=1e9, latency_s=1e-6),),
    )  # fmt: skip
    model = ModelSpec(
        name="tiny", num_layers=2, hidden=32, ffn_hidden=64, num_heads=4, num_kv_heads=4,
        head_dim=8, vocab=259, max_seq_tokens=512,
    )  # fmt: skip
    return JobSpec(
        name="checkpoints",
        model=model,
        cluster=ClusterSpec(name="here", nodes=(node,)),
        num_ranks=len(run["folders"]),
        data=DataSpec(sources=(DataSource(path=documents),), max_seq_tokens=300),
        training=TrainingSpec(
            num_steps=run["num_steps"],
            global_batch_seqs=BATCH,
            learning_rate=2e-3,
            decay="constant",
            precision="fp32",
        ),
        checkpoint=CheckpointSpec(every_steps=2, keep=2, address=run["address"]),
    )


def plan_for(num_ranks: int) -> StepPlan:
    """Every rank takes its share of the batch's sequences, in a group of its own."""
    groups = tuple(
        SequenceGroup(ranks=(rank,), sequences=tuple(range(rank, BATCH, num_ranks)))
        for rank in range(num_ranks)
    )
    return StepPlan(
        waves=(Wave(groups=groups),),
        paths=(StagePath(stages=(0,)),),
        step_s=1.0,
        lower_bound_s=1.0,
        method="heuristic",
        solve_s=0.0,
        reason="given by the test",
    )


def train(run: dict[str, Any], *, rank: int, documents: str) -> dict[str, Any]:
    folders = [Path(folder) for folder in run["folders"]]
    if rank == 0 and run["copy_of"] is not None:
        shutil.copytree(run["copy_of"], folders[0])
    # Ranks of one folder are ranks of one node.
    local_rank = folders[:rank].count(folders[rank])
    sabotaged = run["sabotaged"] if rank == 0 else None
    recorder = Saboteur(None if sabotaged is None else Path(sabotaged))
    STATE.SHARDING = run["sharding"]
    error = None
    try:
        worker.run_rank(
            job_of(run, documents),
            Layout(dp=len(folders)),
            context=RankContext(
                rank=rank,
                world_size=len(folders),
                local_rank=local_rank,
                rendezvous=f"tcp://127.0.0.1:{run['port']}",
                store_fd=run["store_fd"] if rank == 0 else None,
            ),
            run_dir=folders[rank],
            plans=GivenPlans([plan_for(len(folders))] * 100) if rank == 0 else None,
            telemetry=recorder,
            stop_asked=lambda: False,
        )
    except TrimtabError as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        megatron.parallel_state.destroy_model_parallel()
    events = recorder.events
    return {
        "error": error,
        "losses": {e.step: e.loss for e in events if isinstance(e, StepSummarized)},
        "resumed": [e.step for e in events if isinstance(e, RunResumed)],
        "saved": [e.step for e in events if isinstance(e, CheckpointSaved)],
        "alerts": [e.message for e in events if isinstance(e, Alert)],
        "files": {
            str(file.relative_to(folders[rank])): file.stat().st_ino
            for file in sorted(folders[rank].glob("checkpoints/**/*"))
            if file.is_file()
        },
    }


def train_all(config: dict[str, Any], rank: int) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, run in config["runs"].items():
        if rank < len(run["folders"]):
            print(f"--- {name}", file=sys.stderr, flush=True)
            results[name] = train(run, rank=rank, documents=config["documents"])
    (Path(config["out"]) / f"rank-{rank}.json").write_text(json.dumps(results))


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(not run_ranks(config["num_ranks"], lambda rank: train_all(config, rank)))


if __name__ == "__main__":
    main()
