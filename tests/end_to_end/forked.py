"""Ranks forked from one process that has imported everything, which takes longest."""

import os
import sys
import traceback
from collections.abc import Callable


def run_ranks(num_ranks: int, main: Callable[[int], None]) -> bool:
    """Run `main(rank)` in a process of its own for each rank; whether none has failed."""
    pids = []
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            _end_with(rank, main)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return not any(codes)


def _end_with(rank: int, main: Callable[[int], None]) -> None:
    code = 1
    try:
        main(rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
