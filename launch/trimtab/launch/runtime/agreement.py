"""What ranks find out together: who shares a folder, and whether all have succeeded."""

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from trimtab.core.errors import TrimtabError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSharing:
    """Which ranks see the same files under a path that all of them use."""

    owners: tuple[int, ...]
    """For every rank, the first one of those that share with it: it makes and renames there."""

    @property
    def owns(self) -> bool:
        """Whether this rank is the first of those that share its folder."""
        return self.owners[dist.get_rank()] == dist.get_rank()

    @property
    def by_all(self) -> bool:
        return set(self.owners) == {0}

    @property
    def strangers(self) -> tuple[int, ...]:
        """Ranks that do not see what rank 0 sees."""
        return tuple(rank for rank, owner in enumerate(self.owners) if owner)

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that share this one's folder, ascending."""
        mine = self.owners[dist.get_rank()]
        return tuple(rank for rank, owner in enumerate(self.owners) if owner == mine)


def sharing_of(folder: Path, *, first_on_node: int) -> FolderSharing:
    """Find out who shares `folder`, which is made where it is missing; collective.

    Nodes share with rank 0's or with nobody: nothing else occurs between nodes of one job.

    Args:
        folder: The same path on every node.
        first_on_node: The first rank of this node.
    """
    mark = f".seen-{secrets.token_hex(8)}"
    folder.mkdir(parents=True, exist_ok=True)
    if dist.get_rank() == 0:
        (folder / mark).touch()
    mark = from_rank_0(mark)
    owners = gathered(0 if (folder / mark).exists() else first_on_node)
    if dist.get_rank() == 0:
        (folder / mark).unlink()
    return FolderSharing(owners=tuple(owners))


def gathered(value: T) -> list[T]:
    """What every rank has given, by rank; collective."""
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(value: T) -> T:
    """What rank 0 has given; collective."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def problem_of(act: Callable[[], object] | None) -> str | None:
    """Do something, on some ranks; the first rank's problem with it, or None; collective.

    Args:
        act: What this rank does; None: nothing.
    """
    problem = None
    if act is not None:
        try:
            act()
        except (TrimtabError, OSError) as error:
            problem = f"rank {dist.get_rank()} on {socket.gethostname()}: {error}"
    return next((found for found in gathered(problem) if found is not None), None)
