"""How soon a job notices a fault, decides and trains on; and that it trains the same.

    python tests/benchmarks/bench_recovery.py local|slurm|ray --profile P
                                              [--cases kill-rank,...] [--warm --settle-s S]
                                              [--json]

Runs one job with real ranks, harms it case after case while it trains, and lets it finish. The
job runs on a Slurm or Ray that must be up (`trimtab dev-cluster slurm start`; SLURM_CONF or
RAY_ADDRESS say where). Then the same job runs here, undisturbed, and the losses are compared.

    kill-rank        SIGKILL to a rank
    stop-rank        SIGSTOP to a rank
    kill-controller  SIGKILL to the job's controller
    kill-node        SIGKILL to the slurmd or raylet of a node that the controller is not on
    kill-own-node    SIGKILL to the slurmd of the controller's node (Slurm)
    make-room        SIGUSR2 to the batch script, as Slurm sends before the time limit (Slurm)

Seconds run from the fault to the line in the run's events that says what was decided, and to
the end of the first step after it.
"""

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

from trimtab.core.events import (
    Alert,
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    Event,
    NodeLost,
    RankStarted,
    RunResumed,
    StepSummarized,
)
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.cli.main import make_app
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.runs_folder import find_run

CASES = {
    "local": ("kill-rank", "stop-rank", "kill-controller"),
    "slurm": (
        "kill-rank",
        "stop-rank",
        "kill-controller",
        "kill-node",
        "kill-own-node",
        "make-room",
    ),
    "ray": ("kill-rank", "stop-rank", "kill-controller", "kill-node"),
}
STEPS_BETWEEN = 12
"""Steps after a resume before the next fault: at least one new checkpoint lies between."""
JOB = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = (
    "num_ranks=2",
    "layout.dp=2",
    "data.max_seq_tokens=256",
    "step_planning.token_cap=512",
    "training.global_batch_seqs=4",
    "training.evaluate_every_steps=0",
    "checkpoint.every_steps=5",
)
CLUSTER_FOLDER: list[str] = []
"""`--folder` of the development cluster, where it is not the default one."""
_POLL_S = 0.02

E = TypeVar("E", bound=Event)
_PATIENCE_S = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """What one fault led to."""

    case: str
    noticed_s: float
    """From the fault to the first line about it."""
    decided_s: float
    """From the fault to the decision; a new controller's start, where that was killed."""
    first_step_s: float
    nodes_before: tuple[str, ...]
    nodes_after: tuple[str, ...]
    bad_node: str | None
    """The node the fault was on."""
    resumed_from: int
    decision: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scheduler", choices=sorted(CASES))
    parser.add_argument("--cases", help="comma-separated; default: all")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--spares", type=int, default=0, help="spare nodes in the allocation")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--profile", type=Path, required=True, help="`trimtab calibrate`'s")
    parser.add_argument("--warm", action="store_true", help="with warm spares")
    parser.add_argument(
        "--settle-s",
        type=float,
        default=0.0,
        help="training before each fault, at least: warm spares import for a while",
    )
    parser.add_argument("--folder", help="of the development cluster")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.folder:
        CLUSTER_FOLDER.extend(["--folder", options.folder])
    cases = options.cases.split(",") if options.cases else CASES[options.scheduler]
    run = submit(options)
    recoveries = [harm(run, case, settle_s=options.settle_s) for case in cases]
    code = trimtab("status", run.job_id, wait=True)
    worst = worst_difference(run, options)
    if options.json:
        print(
            json.dumps(
                {
                    "status": code,
                    "worst_loss_difference": worst,
                    "recoveries": [dataclasses.asdict(each) for each in recoveries],
                }
            )
        )
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores; {run.handle}")
    for each in recoveries:
        print(
            f"{each.case:<16} noticed {each.noticed_s:5.1f} s, decided {each.decided_s:5.1f} s,"
            f" first step {each.first_step_s:5.1f} s after the fault, from step "
            f"{each.resumed_from}, {' '.join(each.nodes_before)} -> "
            f"{' '.join(each.nodes_after)}; {each.decision}"
        )
    print(f"status {code}; losses differ from an undisturbed run's by at most {worst:.1e}")


def submit(options: argparse.Namespace) -> RunDir:
    """Start the job to be harmed."""
    argv = ["submit", "-s", options.scheduler, str(JOB), *SMALL, f"profile={options.profile}"]
    argv += [f"training.num_steps={options.steps}", "restart.max_restarts=3"]
    if options.scheduler != "local":
        argv += ["--nodes", str(options.nodes)]
    if options.spares:
        argv += ["--spare-nodes", str(options.spares)]
    if options.warm:
        argv += ["--warm-spares"]
    return find_run(json.loads(output([*argv, "--json"]))["run_dir"])


def harm(run: RunDir, case: str, *, settle_s: float) -> Recovery:
    """Bring a fault about in the middle of training, and wait for the first step after it."""
    wait_for_step(run)
    time.sleep(settle_s)
    attempt = latest(run, AttemptStarted).attempt
    before = latest(run, AttemptStarted)
    bad_node, harmed_s = fault(run, case, attempt)
    resumed = wait_for(
        run, StepSummarized, lambda event: starts_after(run, attempt, event.time_s)
    )
    with EventStore.open(run.events) as store:
        told = [event for event in store.all() if event.time_s >= harmed_s]
    after = next(event for event in told if isinstance(event, AttemptStarted))
    ended = [event for event in told if isinstance(event, AttemptEnded)]
    signs = [
        event.time_s
        for event in told
        if isinstance(event, AttemptEnded | AttemptStarted | NodeLost)
        or (isinstance(event, Alert) and event.severity != "info")
    ]
    decided_s = ended[0].time_s if ended else after.time_s
    return Recovery(
        case=case,
        noticed_s=min(signs) - harmed_s,
        decided_s=decided_s - harmed_s,
        first_step_s=resumed.time_s - harmed_s,
        nodes_before=before.nodes,
        nodes_after=after.nodes,
        bad_node=bad_node,
        resumed_from=max(
            (event.step for event in told if isinstance(event, RunResumed)), default=0
        ),
        decision=ended[0].decision if ended else "a new controller started again",
    )


def fault(run: RunDir, case: str, attempt: int) -> tuple[str | None, float]:
    """Do the harm; the node it is done to, and when (just before it)."""
    nodes = latest(run, AttemptStarted).nodes
    pids = rank_pids(run, attempt)
    harmed_s = time.time()
    match case:
        case "kill-rank":
            os.kill(pids[max(pids)], signal.SIGKILL)
        case "stop-rank":
            os.kill(pids[max(pids)], signal.SIGSTOP)
        case "kill-controller":
            controller = run.state().controller
            assert controller is not None
            os.kill(controller.pid, signal.SIGKILL)
            return None, harmed_s
        case "kill-node":
            bad_node = next(node for node in nodes if node != own_node(run))
            return bad_node, kill_node(run, bad_node)
        case "kill-own-node":
            bad_node = own_node(run)
            return bad_node, kill_node(run, bad_node)
        case "make-room":
            make_room(run, attempt)
            return None, harmed_s
    return nodes[-1], harmed_s


def make_room(run: RunDir, attempt: int) -> None:
    """Signal the job as Slurm does, then have it started again without the usual wait."""
    job_id = run.handle.job_id
    subprocess.run(["scancel", "--batch", "--signal=USR2", job_id], check=True)
    wait_for(run, AttemptEnded, lambda event: event.attempt == attempt)
    start_now(run, job_id)


def start_now(run: RunDir, job_id: str) -> None:
    """Spare a requeued job Slurm's two minutes of waiting; a successor needs no help."""
    requeued = ["scontrol", "update", f"JobId={job_id}", "StartTime=now"]
    while run.handle.job_id == job_id:
        if subprocess.run(requeued, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.5)


def own_node(run: RunDir) -> str:
    """The node that the job's controller runs on: the batch host, or Ray's head."""
    if run.request().scheduler == "ray":
        shown = json.loads(output(["dev-cluster", "ray", "status", "--json", *CLUSTER_FOLDER]))
        return str(next(name for name, state in shown["nodes"].items() if state == "head"))
    job_id = run.handle.job_id
    host = subprocess.run(
        ["squeue", "-h", "-j", job_id, "-o", "%B"], capture_output=True, text=True, check=True
    )
    return host.stdout.strip()


def kill_node(run: RunDir, node: str) -> float:
    """As `trimtab dev-cluster` does it: kill -9 of the node's daemon; when it began."""
    argv = ["dev-cluster", run.request().scheduler, "kill-node", node, *CLUSTER_FOLDER]
    app = make_app("dev-cluster")
    began_s = time.time()
    app(argv, standalone_mode=False)  # in this process: a new one would take seconds to start
    return began_s


def wait_for_step(run: RunDir) -> int:
    """Until the newest attempt has trained for a while; its number."""
    while True:
        started, last = latest(run, AttemptStarted), latest(run, StepSummarized)
        first = next(
            (
                event.step
                for event in all_events(run, StepSummarized)
                if event.time_s >= started.time_s
            ),
            None,
        )
        saved = latest(run, CheckpointSaved)
        is_saved = saved.time_s > started.time_s
        if first is not None and last.step - first >= STEPS_BETWEEN and is_saved:
            return started.attempt
        time.sleep(_POLL_S * 10)


def starts_after(run: RunDir, attempt: int, time_s: float) -> bool:
    """Whether a moment lies in an attempt after `attempt`."""
    started = latest(run, AttemptStarted)
    return started.attempt > attempt and time_s >= started.time_s


def rank_pids(run: RunDir, attempt: int) -> dict[int, int]:
    started = next(
        event for event in all_events(run, AttemptStarted) if event.attempt == attempt
    )
    return {
        event.rank: event.pid
        for event in all_events(run, RankStarted)
        if event.time_s >= started.time_s
    }


def wait_for(run: RunDir, kind: type[E], is_it: Callable[[E], bool]) -> E:
    """The first event of a kind that fits."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        for event in all_events(run, kind):
            if is_it(event):
                return event
        time.sleep(_POLL_S)
    raise SystemExit(f"{run.path}: no {kind.__name__} within {_PATIENCE_S:.0f} s")


def latest(run: RunDir, kind: type[E]) -> E:
    """The newest event of a kind, waited for."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        if run.events.exists():
            with EventStore.open(run.events) as store:
                event = store.latest(kind)
            if event is not None:
                return event
        time.sleep(_POLL_S)
    raise SystemExit(f"{run.path}: no {kind.__name__} within {_PATIENCE_S:.0f} s")


def all_events(run: RunDir, kind: type[E]) -> Iterator[E]:
    with EventStore.open(run.events) as store:
        yield from cast(Iterator[E], store.all(kinds=(kind,)))


def worst_difference(run: RunDir, options: argparse.Namespace) -> float:
    """Largest difference of a step's loss from that of an undisturbed run on this machine."""
    steps = options.steps
    argv = ["submit", "-s", "local", str(JOB), *SMALL, f"profile={options.profile}"]
    argv += [f"training.num_steps={steps}"]
    undisturbed = find_run(json.loads(output([*argv, "--wait", "--json"]))["run_dir"])
    ours, theirs = losses(run), losses(undisturbed)
    assert len(ours) >= 0.9 * steps, "steps trained while no controller listened are not told"
    assert max(ours) == max(theirs) == steps
    return max(abs(ours[step] - theirs[step]) for step in ours)


def losses(run: RunDir) -> dict[int, float]:
    """The loss of every step, by the last attempt that ran it."""
    return {event.step: event.loss for event in all_events(run, StepSummarized)}


def trimtab(*argv: str, wait: bool = False) -> int:
    """Exit code of a command; with `wait`, once it is not 101 (unfinished) any more."""
    while True:
        command = [sys.executable, "-m", "trimtab.orchestrator.cli.main", *argv]
        code = subprocess.run(command, capture_output=True, check=False).returncode
        if not wait or code != 101:
            return code
        time.sleep(1.0)


def output(argv: list[str]) -> str:
    """What a command prints; it must succeed."""
    command = [sys.executable, "-m", "trimtab.orchestrator.cli.main", *argv]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"trimtab {' '.join(argv)}: exit {ended.returncode}")
    return ended.stdout


if __name__ == "__main__":
    main()
