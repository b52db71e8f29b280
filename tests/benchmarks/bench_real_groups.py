"""Planned groups against one degree for all: real training on four CPU ranks.

    python tests/benchmarks/bench_real_groups.py [--gbit G] [--steps N] [--set a.b=c ...]
                                                 [--json]

Measures the machine, then trains `configs/demo.yaml` twice on the same batches: with step
plans, and with the smallest degree that holds every document. The token cap is the job file's,
for which the longest documents need all four ranks. With `--gbit` all of it runs in a network
namespace of its own (Linux, root), whose loopback carries so many Gbit/s for all ranks
together: ranks of one machine talk through memory, which no cluster does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOB = Path(__file__).parents[2] / "configs" / "demo.yaml"
PLANNED = ("step_planning.time_limit_s=0.05", "step_planning.refine_every_steps=10")
UNIFORM = ("step_planning.grouping=uniform", "step_planning.uniform_degree=4")
_BURST = "256kb"
"""What the throttle lets through at once; a loopback packet is at most 64 KiB."""


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder, _network(arguments.gbit) as prefix:
        measured = _measure(arguments, Path(folder), prefix=prefix)
    print(json.dumps(measured, indent=1) if arguments.json else _text(measured))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gbit", type=float, help="Gbit/s of the ranks' network")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", nargs="*", default=[], metavar="a.b=c", help="job overrides")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@contextmanager
def _network(gbit: float | None) -> Iterator[list[str]]:
    """A namespace with a throttled loopback; yields how a command begins that runs in it."""
    if gbit is None:
        yield []
        return
    name = f"trimtab-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    throttle = f"rate {round(1000 * gbit)}mbit burst {_BURST} latency 100ms".split()
    _run(["ip", "netns", "add", name])
    try:
        _run([*inside, "ip", "link", "set", "lo", "up"])
        _run([*inside, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", *throttle])
        yield inside
    finally:
        _run(["ip", "netns", "delete", name])


def _measure(
    arguments: argparse.Namespace, folder: Path, *, prefix: list[str]
) -> dict[str, Any]:
    profile = folder / "profile.json"
    settings = [*arguments.set, f"training.num_steps={arguments.steps}"]

    def trimtab(*words: str) -> str:
        command = [*prefix, sys.executable, "-m", "trimtab.orchestrator.cli.main", *words]
        return _run(command, runs=folder / "runs")

    def trained(name: str, grouping: tuple[str, ...]) -> str:
        job = [str(JOB), f"profile={profile}", f"name={name}", *settings, *grouping]
        submitted = trimtab("submit", "-s", "local", *job, "--wait", "--json")
        return str(json.loads(submitted)["handle"])

    trimtab("calibrate", str(JOB), "--out", str(profile), *arguments.set)
    planned, uniform = trained("planned", PLANNED), trained("uniform", UNIFORM)
    return {
        "gbit_per_s": arguments.gbit,
        "profile": json.loads(profile.read_text()),
        "compare": json.loads(trimtab("compare", planned, uniform, "--json")),
        "planned": json.loads(trimtab("report", planned, "--json")),
    }


def _run(command: list[str], *, runs: Path | None = None) -> str:
    environment = None if runs is None else {**os.environ, "TRIMTAB_RUNS_DIR": str(runs)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _text(measured: dict[str, Any]) -> str:
    compared, groups = measured["compare"], measured["planned"]["plans"]["groups"]
    lines = [
        f"planned over degree 4, {compared['measured_steps']} steps: "
        f"{compared['speedup_ratio']:.2f} times as fast (median of the steps' ratios), "
        f"{compared['total_ratio']:.2f} over all of them",
        f"losses differ by at most {compared['max_loss_difference']:.1e} nats",
        *(
            f"{group['attention']} of {group['degree']}: predicted is {group['ratio']:.2f} of "
            f"measured, off by {group['error_fraction']:.0%} "
            f"(median of {group['num_groups']} groups)"
            for group in groups
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
