"""What a development cluster pretends to be, kept in `cluster.json` of its folder.

The file also says that the folder is ours: only such a folder is started in, or removed.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from trimtab.core import checks, serde
from trimtab.core.errors import InputError, TrimtabError
from trimtab.launch import locks

Kind = Literal["slurm", "ray"]

_FILE: Final = "cluster.json"
_LOCK: Final = "lock"
_LOCK_WAIT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a cluster, as its scheduler sees it."""

    kind: Kind
    num_nodes: int = 4
    gpus_per_node: int = 8
    """Fake ones: the scheduler hands them out, nothing computes on them."""
    cpus_per_node: int = 16
    """Also made up: all nodes share this machine's cores."""
    accounting: bool = False
    """Slurm: with slurmdbd and its database."""

    def __post_init__(self) -> None:
        checks.whole_number("--nodes", self.num_nodes)
        checks.whole_number("--gpus", self.gpus_per_node, at_least=0)
        checks.whole_number("--cpus", self.cpus_per_node)


def made_shape(folder: Path) -> Shape | None:
    """The shape of the cluster in `folder`; None where there is none.

    Raises:
        InputError: What it says cannot be read.
    """
    path = folder / _FILE
    try:
        return serde.from_json(Shape, path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, TrimtabError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; remove the folder") from error


@contextlib.contextmanager
def at_work(folder: Path, kind: Kind) -> Iterator[None]:
    """Keep other commands from the cluster in `folder` meanwhile.

    Raises:
        InputError: There is no cluster of this kind, or another command does not end.
    """
    made = made_shape(folder)
    if made is None or made.kind != kind:
        other = "none" if made is None else f"a {made.kind} cluster"
        raise InputError(
            f"--folder: expected a {kind} cluster in {folder}, found {other}; "
            f"`trimtab dev-cluster {kind} start` makes one"
        )
    with (folder / _LOCK).open("a") as lock:
        if not locks.try_lock(lock.fileno(), wait_s=_LOCK_WAIT_S):
            raise InputError(f"--folder: another command is at work in {folder}; wait for it")
        yield


def claim(folder: Path, shape: Shape) -> None:
    """Make `folder` the place of a cluster, or find that it is.

    Raises:
        InputError: It holds something else, or a cluster of another shape.
    """
    made = made_shape(folder)
    if made == shape:
        return
    if made is not None:
        raise InputError(
            f"--folder: {folder} holds a cluster made as {_words(made)}, not {_words(shape)}; "
            f"stop that first: trimtab dev-cluster {made.kind} stop"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(
                f"--folder: expected an empty folder or none, got {folder}; name another"
            )
        (folder / _FILE).write_text(serde.to_json(shape) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--folder: {folder} cannot be made: {error.strerror}") from error


def remove(folder: Path) -> None:
    """Remove a cluster's folder once nothing of it runs; `cluster.json` last."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _FILE:
            path.unlink(missing_ok=True)
    (folder / _FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _words(shape: Shape) -> str:
    accounting = ", accounting" if shape.accounting else ""
    return (
        f"{shape.kind} ({shape.num_nodes} nodes, {shape.gpus_per_node} GPUs and "
        f"{shape.cpus_per_node} CPUs each{accounting})"
    )
