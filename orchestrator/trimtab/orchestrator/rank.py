"""What an agent starts for every rank: `python -m trimtab.orchestrator.rank RUN_DIR [--warm]`.

Torch is imported by functions only: the signal handler and the planning process come first.
With `--warm` it imports first, and then waits to become a rank (`launch/warm.py`).
"""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trimtab.core import serde
from trimtab.core.communicators import network_of
from trimtab.core.errors import ExitCode, TrimtabError
from trimtab.core.events import Alert
from trimtab.core.job import Request
from trimtab.launch.interfaces import network_environment
from trimtab.launch.rank_environment import STORE_FD_VARIABLE
from trimtab.launch.warm import WARM_FLAG, await_order

if TYPE_CHECKING:
    from trimtab.launch.runtime.telemetry import Telemetry

_IMPORT_NICENESS = 10
_PARENT_POLL_S = 1.0
_ORPHAN_GRACE_S = 120.0
"""How long a rank may take to save and end after its controller has died."""


class StopSignal:
    """Whether SIGTERM has come; the rank stops after its step, at a second one now."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self.received:
            os._exit(ExitCode.JOB_FAILED)
        self.received = True


def end_with_parent() -> None:
    """End this process some time after the one that started it, even from a hung collective.

    The kernel sends SIGTERM when the parent dies, and the rank then stops after its step. Code
    that never returns to Python never sees that signal.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(ExitCode.JOB_FAILED)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main() -> ExitCode:
    """Run one rank to its end, at once or when it is ordered."""
    run_dir = Path(sys.argv[1])
    warnings.filterwarnings("ignore", module=r"torch\.")
    if sys.argv[2:] == [WARM_FLAG]:
        _import_all()
        if not await_order():
            return ExitCode.OK
    return run(run_dir)


def run(run_dir: Path) -> ExitCode:
    """Run the rank that the environment describes."""
    rank = int(os.environ["RANK"])
    stop = StopSignal()
    end_with_parent()
    from trimtab.launch.runtime.telemetry import TelemetrySender

    request = serde.from_json(
        Request, Path(os.environ["TRIMTAB_REQUEST"]).read_text(encoding="utf-8")
    )
    telemetry = TelemetrySender(
        os.environ["TRIMTAB_COLLECTOR"], token=os.environ["TRIMTAB_COLLECTOR_TOKEN"], rank=rank
    )
    try:
        _run(request, rank=rank, run_dir=run_dir, telemetry=telemetry, stop=stop)
    except TrimtabError as error:
        print(f"error: {error}", file=sys.stderr)
        telemetry.emit(
            Alert(time_s=time.time(), severity="critical", message=str(error), rank=rank)
        )
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return ExitCode.JOB_FAILED
    finally:
        telemetry.close()
    return ExitCode.OK


def _run(
    request: Request, *, rank: int, run_dir: Path, telemetry: "Telemetry", stop: StopSignal
) -> None:
    job, layout = request.training
    if request.networks:
        os.environ.update(network_environment(network_of(rank, request.networks)))
    plans = None
    if rank == 0:  # the others import no planner
        from trimtab.orchestrator.plan_ahead import PlanAhead
        from trimtab.orchestrator.step_planning import step_planner

        planner = step_planner(job, layout)
        plans = PlanAhead(planner, deadline_s=job.step_planning.deadline_s)
    from trimtab.launch.runtime.context import RankContext
    from trimtab.launch.runtime.worker import run_rank

    try:
        run_rank(
            job,
            layout,
            context=RankContext(
                rank=rank,
                world_size=int(os.environ["WORLD_SIZE"]),
                local_rank=int(os.environ["LOCAL_RANK"]),
                rendezvous=os.environ["TRIMTAB_RENDEZVOUS"],
                store_fd=int(fd) if (fd := os.environ.get(STORE_FD_VARIABLE)) else None,
                networks=request.networks,
            ),
            run_dir=run_dir,
            plans=plans,
            telemetry=telemetry,
            stop_asked=lambda: stop.received,
        )
    finally:
        if plans is not None:
            plans.close()


def _import_all() -> None:
    """Import what takes a rank most of its start, with little of the training ranks' time.

    In a thread of its own: priority is a thread's, and only root may raise it again.
    """

    def imports() -> None:
        os.nice(_IMPORT_NICENESS)  # of this thread alone, on Linux
        import trimtab.launch.runtime.worker  # kept by the interpreter
        import trimtab.orchestrator.plan_ahead  # noqa: F401  in case it becomes rank 0

    importer = threading.Thread(target=imports, name="imports")
    importer.start()
    importer.join()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may outlive a peer that was killed
