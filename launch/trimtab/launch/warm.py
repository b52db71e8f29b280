"""Spare processes that have imported what a rank needs, and wait to become one.

An agent starts spares while ranks run, and hands an order to one instead of starting a rank:

    spare = Spare(warm_argv, environment=..., held_fds=...)     # any time before
    process = spare.hand_over(order)    # None: it could not; start the rank cold
    if process is not None:
        ranks.adopt(order, process)

The spare (`rank.py --warm`) imports, calls `await_order`, and goes on as a rank that was
started with that order would. It ends, without a word, when its agent does or calls `end`.

Standard input of a spare is a Unix socket. One message comes over it, a line of JSON, and with
it the rendezvous store's socket where the order has one: a process that runs already cannot
inherit it. The whole environment goes that way too, secrets included, and is in no file.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from trimtab.launch import tether
from trimtab.launch.processes import RankOrder, begin_log
from trimtab.launch.rank_environment import STORE_FD_VARIABLE

WARM_FLAG: Final = "--warm"
"""The last argument of a spare's command line: that of a rank, and this."""

_HAND_OVER_S: Final = 5.0
"""A spare takes its order in no time, or waits in the socket's buffer while it imports."""
_CHUNK_BYTES: Final = 2**16


class Spare:
    """A process that waits to become a rank, seen by its agent."""

    def __init__(
        self, argv: Sequence[str], *, environment: Mapping[str, str], held_fds: Sequence[int]
    ) -> None:
        """Start it, from the agent's main thread: it is tied to the thread that starts it.

        Args:
            argv: The command line of a rank, without `WARM_FLAG`.
            environment: What is read while importing: `OMP_NUM_THREADS`, `CUDA_VISIBLE_DEVICES`
                and the like. `hand_over` replaces it all.
            held_fds: Locks that it holds open from now on, as a rank does.

        Raises:
            OSError: It could not be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                tether.command((*argv, WARM_FLAG)),
                env=environment,
                stdin=theirs.fileno(),
                process_group=0,
                pass_fds=held_fds,
            )
        ours.settimeout(_HAND_OVER_S)
        self._socket = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def hand_over(self, order: RankOrder) -> "subprocess.Popen[bytes] | None":
        """Have it carry out `order`, whose `argv` it was started with.

        Of `order.inherited_fds` only the one that `TRIMTAB_STORE_FD` names is passed on; the
        others it holds already.

        Returns:
            Its process, or None where it has ended or does not take the order: then it is gone.
        """
        store = order.environment.get(STORE_FD_VARIABLE)
        message = {
            "environment": dict(order.environment),
            "folder": str(order.folder),
            "log": str(order.log),
        }
        line = json.dumps(message).encode() + b"\n"
        begin_log(order)
        try:
            sent = socket.send_fds(self._socket, [line], [] if store is None else [int(store)])
            if sent < len(line):  # the spare has closed its end once it has all
                self._socket.sendall(line[sent:])
        except OSError:
            self.end()
            return None
        self._socket.close()
        return self._process

    def end(self) -> None:
        """End it at once."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def await_order() -> bool:
    """Wait for an order; this process then has its environment, folder, log and socket.

    Returns:
        False where there will be none: the agent has ended, or needs no spare any more.
    """
    order, fds = _receive()
    if order is None:
        return False
    environment = order["environment"]
    if fds:
        environment[STORE_FD_VARIABLE] = str(fds[0])
    _redirect(os.devnull, os.O_RDONLY, onto=(0,))
    _redirect(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, onto=(1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(order["folder"])
    return True


def _receive() -> tuple[dict[str, Any] | None, list[int]]:
    with socket.socket(fileno=os.dup(0)) as connection:
        data, fds, _, _ = socket.recv_fds(connection, _CHUNK_BYTES, 1)
        while not data.endswith(b"\n"):
            more = connection.recv(_CHUNK_BYTES)
            if not more:
                return None, fds
            data += more
    return json.loads(data), fds


def _redirect(path: str, flags: int, *, onto: Sequence[int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    opened = os.open(path, flags, 0o666)
    for descriptor in onto:
        os.dup2(opened, descriptor)
    os.close(opened)
