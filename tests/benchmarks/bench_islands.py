"""Placement over islands: our plan, its bound, and what simpler rules make of the same job.

    python tests/benchmarks/bench_islands.py [MODEL ...]

For every mixed cluster file and every model of `configs/models` named (GPT 7B and 30B if none
is): the forecast step of the best layout and placement, how far it may be above the best
possible, the best step of Megatron's order with even stages and of Holmes's rule over all
layouts, and the CPU seconds of planning. Steps are forecasts, not measurements.
"""

import sys
import time
from pathlib import Path

from trimtab.core.batch import BatchProfile
from trimtab.orchestrator.config import load_cluster, load_model
from trimtab.orchestrator.rate_books import stacks_of
from trimtab.planners.islands.island_layouts import island_job
from trimtab.planners.islands.island_plan import Placed, plan_islands

ROOT = Path(__file__).parents[2]
CLUSTERS = (
    "holmes-ib-roce",
    "holmes-mix",
    "a100-h100",
    "two-regions",
    "ib-ethernet",
    "three-regions",
)
GLOBAL_BATCH, TOKENS = 512, 2048


def main(models: list[str]) -> None:
    """Print one line for each cluster and model."""
    for name in models:
        model = load_model(ROOT / "configs" / "models" / f"{name}.yaml")
        for cluster_name in CLUSTERS:
            cluster = load_cluster(ROOT / "clusters" / f"{cluster_name}.yaml")
            start_s = time.process_time()
            islands = island_job(
                model,
                cluster,
                num_ranks=cluster.num_gpus,
                batch=BatchProfile(lengths=(TOKENS,) * GLOBAL_BATCH),
                precision="bf16",
                stacks=stacks_of(cluster),
                pinned={},
            )
            plan = plan_islands(islands)
            took_s = time.process_time() - start_s
            step_s = plan.best.step.step_s
            gap = step_s / plan.bound_s - 1
            print(
                f"{name:10} {cluster_name:15} {step_s:7.3f} s  gap {gap:5.1%}"
                f"  Megatron {_gain(plan.megatron, step_s)}"
                f"  Holmes {_gain(plan.holmes, step_s)}"
                f"  {plan.num_layouts} layouts {took_s:.1f} s CPU  {plan.best.layout} "
                f"{plan.best.step.stage_layers} "
                f"{[host.pools for host in plan.best.step.hosts]}",
                flush=True,
            )


def _gain(rule: Placed | None, step_s: float) -> str:
    return "      -" if rule is None else f"{rule.step.step_s / step_s - 1:+7.1%}"


if __name__ == "__main__":
    main(sys.argv[1:] or ["gpt-7b", "gpt-30b"])
