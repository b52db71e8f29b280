"""Run a command that is asked to end (SIGTERM) when the process that started it dies.

    python -I -S tether.py PARENT_PID COMMAND [ARGUMENT ...]

The kernel's parent-death signal survives `exec`, so the command takes this process's place:
same pid, no second process. A program of its own because the other way, Python code between
fork and exec (`preexec_fn`), can deadlock in a process that has threads. Linux only; elsewhere
the command runs untethered.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_NOT_STARTED = 127
"""Exit code of a command that cannot be started; a shell uses the same."""


def command(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` tied to this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def main() -> None:
    """Become the command, or end if the parent is already gone."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit("the process that started this one has died")
    try:
        os.execvp(command[0], command)  # noqa: S606  no shell is what we want
    except OSError as error:
        print(f"cannot start {command[0]!r}: {error.strerror}", file=sys.stderr)
        sys.exit(_NOT_STARTED)


if __name__ == "__main__":
    main()
