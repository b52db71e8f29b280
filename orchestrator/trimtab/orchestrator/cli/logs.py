"""`trimtab logs`: what the ranks of a run have printed."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from trimtab.orchestrator.cli.which_run import NewestRunArgument, named_or_newest

if TYPE_CHECKING:
    from trimtab.orchestrator.rundir import RunDir

_POLL_S: Final = 0.2


def logs(
    handle: NewestRunArgument = None,
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", help="Only this rank's log.")
    ] = None,
    controller: Annotated[
        bool, typer.Option("--controller", help="The controller's log instead.")
    ] = False,
    agents: Annotated[
        bool, typer.Option("--agents", help="What the agents on the nodes say instead.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            "--tail",
            "-n",
            min=0,
            help="Only the last N lines of each log.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
) -> int:
    """Print what the ranks have written; the exit code tells the job's state, as in status."""
    from trimtab.core.errors import InputError
    from trimtab.orchestrator.cli.states import status_code
    from trimtab.orchestrator.observation import observe

    run = named_or_newest(handle)
    paths = _paths_of_ranks(run, rank) if not (controller or agents) else {}
    if rank is not None and not paths:
        raise InputError("--rank: leave it out with --controller and --agents")
    readers: dict[str, _Reader] = {}
    while True:
        state = observe(run).state.state
        is_last = state.is_final or not follow
        paths |= _paths_of_owners(run, controller=controller, agents=agents)
        for name, path in paths.items():
            reader = readers.setdefault(name, _Reader(name, path, tail=tail))
            reader.print_new(with_header=len(paths) > 1, whole_lines=not is_last)
        if is_last:
            return status_code(state)
        time.sleep(_POLL_S)


def _paths_of_ranks(run: "RunDir", rank: int | None) -> dict[str, Path]:
    """Logs of all ranks there ever were, or of one."""
    from trimtab.core.errors import InputError

    num_ranks = run.request().num_ranks  # a restart on fewer nodes may have fewer
    if rank is None:
        return {f"rank {number}": run.rank_log(number) for number in range(num_ranks)}
    if not 0 <= rank < num_ranks:
        raise InputError(f"--rank: the job has ranks 0 to {num_ranks - 1}, got {rank}")
    return {f"rank {rank}": run.rank_log(rank)}


def _paths_of_owners(run: "RunDir", *, controller: bool, agents: bool) -> dict[str, Path]:
    """Logs of the controllers, one for each Slurm job of the run, and of the agents."""
    paths = {path.name: path for path in run.controller_logs} if controller else {}
    return paths | ({run.agents_log.name: run.agents_log} if agents else {})


class _Reader:
    """Prints what is new in one log."""

    def __init__(self, name: str, path: Path, *, tail: int | None) -> None:
        self._name = name
        self._path = path
        self._tail = tail
        self._offset = 0

    def print_new(self, *, with_header: bool, whole_lines: bool) -> None:
        """Print what was written since the last call, under the log's name if asked.

        Args:
            with_header: Put the log's name above it.
            whole_lines: Keep a line that has no end yet for the next call.
        """
        try:
            with self._path.open("rb") as file:
                text = self._read(file, whole_lines=whole_lines)
        except FileNotFoundError:
            return
        if not text:
            return
        if with_header:
            sys.stdout.write(f"==> {self._name} <==\n")
        sys.stdout.write(text)
        sys.stdout.flush()

    def _read(self, file: BinaryIO, *, whole_lines: bool) -> str:
        file.seek(self._offset)
        data = file.read()
        if whole_lines:
            data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        lines = data.decode(errors="replace").splitlines(keepends=True)
        if self._tail is not None:
            lines = lines[-self._tail :] if self._tail else []
            self._tail = None
        return "".join(lines)
