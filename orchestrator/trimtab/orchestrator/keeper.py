"""The process that keeps a job's controller alive: starts it, and again when it is killed.

    python -P -m trimtab.orchestrator.keeper RUN_DIR [--lock FD] [-- STEP_PREFIX ...]

It does nothing else, so that nothing else can end it. SIGTERM (cancel) and SIGUSR2 (make room:
the time limit is near, or the scheduler wants the nodes back) are passed on to the controller.
What follows `--` is passed on too: the command that starts processes on the job's nodes.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from trimtab.core.errors import ExitCode

MAX_KILLS: Final = 5
"""How often a controller is started again before the job is given up."""

PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Signals that are the controller's business."""
_LONGEST_PAUSE_S: Final = 30.0


class Keeper:
    """Runs `argv` until it ends by itself."""

    def __init__(self, argv: Sequence[str], *, held_fds: Sequence[int] = ()) -> None:
        self._argv = argv
        self._held_fds = held_fds
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: list[int] = []
        """Signals that came: the next controller must know what was asked of the last."""

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Hand a signal to the controller; safe in a signal handler."""
        self._asked.append(number)
        if self._process is not None:
            self._process.send_signal(number)

    def run(self) -> int:
        """The controller's own exit code, once it has one."""
        for kills in range(MAX_KILLS + 1):
            code = self._start().wait()
            if code >= 0:
                return code
            if kills < MAX_KILLS:
                pause_s = min(_LONGEST_PAUSE_S, 2.0**kills - 1.0)
                what = f"the controller was killed by signal {-code}"
                print(f"{what}; it is started again in {pause_s:.0f} s", flush=True)
                time.sleep(pause_s)
        print(f"the controller was killed {MAX_KILLS + 1} times: given up", flush=True)
        return int(ExitCode.JOB_FAILED)

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the controller with our signals blocked: it lets them in when it can act."""
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        try:
            self._process = subprocess.Popen(self._argv, pass_fds=tuple(self._held_fds))
            for number in self._asked:
                self._process.send_signal(number)
            return self._process
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    held = [int(argv[argv.index("--lock") + 1])] if "--lock" in argv[:3] else []
    command = [sys.executable, "-P", "-m", "trimtab.orchestrator.controller", *argv]
    keeper = Keeper(command, held_fds=held)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in PASSED_ON:
        signal.signal(number, keeper.pass_on)
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
