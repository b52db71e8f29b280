"""A rank without a model: joins the collector, walks through its steps, ends as it is told.

    rank_program.py BEHAVIOUR RUN_DIR

BEHAVIOUR is `RANK:WHAT:STEP`, what that rank does in that step of the first attempt, or
`RANK:WHAT:STEP:ATTEMPTS`, of as many attempts; the others go on, and fail as gloo's peers do
once a rank has died. `-` is a rank that simply finishes.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from trimtab.core import serde
from trimtab.core.events import (
    AnyEvent,
    CheckpointSaved,
    RankProgressed,
    RankStarted,
    RunResumed,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.job import Request
from trimtab.core.plan import SequenceGroup, StagePath, StepPlan, TimePart, Wave

STEP_S = 0.05
ATTEMPT = int(os.environ["TRIMTAB_ATTEMPT"])
RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
stop_asked = False


def on_stop(_number: int, _frame: FrameType | None) -> None:
    global stop_asked
    stop_asked = True


class Wire:
    def __init__(self) -> None:
        host, _, port = os.environ["TRIMTAB_COLLECTOR"].rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        token = os.environ["TRIMTAB_COLLECTOR_TOKEN"]
        self.socket.sendall(f'{{"token": "{token}"}}\n'.encode())

    def send(self, event: AnyEvent) -> None:
        with contextlib.suppress(OSError):  # the controller may have been killed
            self.socket.sendall(serde.to_json(event).encode() + b"\n")


def plan() -> StepPlan:
    pair = SequenceGroup(ranks=tuple(range(WORLD_SIZE)), sequences=(0,))
    singles = tuple(SequenceGroup(ranks=(r,), sequences=(r + 1,)) for r in range(WORLD_SIZE))
    return StepPlan(
        waves=(Wave(groups=(pair,)), Wave(groups=singles)),
        paths=(StagePath(stages=(0,)), StagePath(stages=(0,))),
        step_s=STEP_S,
        lower_bound_s=STEP_S,
        method="heuristic",
        solve_s=0.001,
        reason="",
    )


def send_step(wire: Wire, step: int) -> None:
    now = time.time()
    wire.send(
        StepFinished(
            time_s=now,
            step=step,
            rank=RANK,
            step_s=STEP_S,
            parts=(TimePart(name="forward", seconds=STEP_S),),
            num_tokens=100,
        )
    )
    if RANK == 0:
        wire.send(
            StepSummarized(
                time_s=now,
                step=step,
                loss=5.0 - 0.1 * step,
                num_tokens=100 * WORLD_SIZE,
                model_flops=1e6,
                step_s=STEP_S,
                gradient_norm=1.0,
                learning_rate=1e-3,
            )
        )


def save(wire: Wire, run_dir: Path, step: int) -> None:
    path = run_dir / "checkpoints" / f"step-{step}"
    if RANK == 0:
        path.write_text(str(step))
        wire.send(
            CheckpointSaved(
                time_s=time.time(), step=step, path=str(path), seconds=0.01, num_bytes=1
            )
        )


def meet(wire: Wire, run_dir: Path, step: int) -> None:
    """Wait until every rank has come as far, as a collective would; fail as gloo does."""
    meeting = run_dir / f"meeting-{ATTEMPT}-{step}"
    meeting.mkdir(exist_ok=True)
    (meeting / str(RANK)).touch()
    while len(list(meeting.iterdir())) < WORLD_SIZE:
        if (run_dir / f"tombstone-{ATTEMPT}").exists():
            time.sleep(0.2)
            raise RuntimeError("[gloo/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]")
        if stop_asked:
            return
        wire.send(RankProgressed(time_s=time.time(), rank=RANK, step=step, doing="waiting"))
        time.sleep(0.05)


def misbehave(what: str, run_dir: Path, *, wire: Wire, step: int) -> None:
    tombstone = run_dir / f"tombstone-{ATTEMPT}"
    print("about to misbehave", flush=True)
    if what == "kill":
        tombstone.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        tombstone.touch()
        raise ValueError(f"boom, and the key is {os.environ.get('WANDB_API_KEY')}")
    if what == "exit":
        sys.exit(0)
    if what == "child":
        child = subprocess.Popen(["sleep", "600"])
        (run_dir / "child.pid").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("exit"):
        tombstone.touch()
        print("error: data.sources: expected files, got an empty folder", flush=True)
        sys.exit(int(what.removeprefix("exit")))
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "hang":
        time.sleep(600)
    linger(what, wire=wire, step=step)


def linger(what: str, *, wire: Wire, step: int) -> None:
    """Stay in the step; the last that is sent meanwhile says so."""
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wire.send(RankProgressed(time_s=time.time(), rank=RANK, step=step, doing="lingering"))
    if what == "deaf":
        time.sleep(600)
    while not stop_asked:
        time.sleep(0.02)


def main() -> None:
    behaviour, run_dir = sys.argv[1], Path(sys.argv[2])
    request = serde.from_json(Request, Path(os.environ["TRIMTAB_REQUEST"]).read_text())
    job, _ = request.training
    num_steps = job.training.num_steps
    who, what, when, attempts = [*behaviour.split(":"), "", "", "", "1"][:4]
    is_me = who in ("all", str(RANK)) and int(attempts or 1) >= ATTEMPT
    signal.signal(signal.SIGTERM, on_stop)
    wire = Wire()
    wire.send(
        RankStarted(
            time_s=time.time(),
            rank=RANK,
            host="here",
            pid=os.getpid(),
            device="cpu",
            peak_flop_per_s=None,
            peak_note="unknown",
        )
    )
    saved = [int(p.name.removeprefix("step-")) for p in (run_dir / "checkpoints").iterdir()]
    first = max(saved, default=0) + 1
    meet(wire, run_dir, 0)
    if saved and RANK == 0:
        wire.send(RunResumed(time_s=time.time(), step=first - 1, path="checkpoints"))
    for step in range(first, num_steps + 1):
        now = time.time()
        if RANK == 0:
            wire.send(StepPlanned(time_s=now, step=step, plan=plan(), lengths=(10,) * 5))
        wire.send(RankProgressed(time_s=now, rank=RANK, step=step, doing="forward"))
        if is_me and str(step) == when:
            misbehave(what, run_dir, wire=wire, step=step)
        time.sleep(STEP_S)
        meet(wire, run_dir, step)
        send_step(wire, step)
        if stop_asked:
            save(wire, run_dir, step)
            return
        if step % 2 == 0:
            save(wire, run_dir, step)


main()
