"""Process groups for sequence groups, each made once, bound to its network, and kept."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import torch
import torch.distributed as dist

from trimtab.core.communicators import CommunicatorSettings, RankNetwork, settings_of
from trimtab.core.errors import JobFailedError
from trimtab.core.plan import StepPlan

_GLOO_INTERFACE: Final = "GLOO_SOCKET_IFNAME"
_SHOWN_RANKS: Final = 4


class GroupCache:
    """The communicators of every set of ranks that a plan has used so far.

    Making a communicator is collective over all ranks, so every rank must call `prepare` with
    the same plans in the same order.
    """

    def __init__(
        self, group_ranks: Sequence[int], *, networks: Sequence[RankNetwork] = ()
    ) -> None:
        """Make it.

        Args:
            group_ranks: `group_ranks[i]` is the global rank that plans call `i`.
            networks: What all ranks reach each other with; none: each finds its own way.
        """
        self._global = tuple(group_ranks)
        self._networks = tuple(networks)
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def prepare(self, plan: StepPlan) -> None:
        """Make the communicators that `plan` needs and that do not exist yet."""
        for ranks in _rank_sets(plan):
            if len(ranks) > 1 and ranks not in self._groups:
                members = [self._global[rank] for rank in ranks]
                settings = settings_of(members, self._networks) if self._networks else None
                self._groups[ranks] = make_group(members, settings)

    def get(self, ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
        """The communicator of a prepared set of ranks; None for a group of one."""
        return self._groups[ranks] if len(ranks) > 1 else None


def make_group(
    ranks: Sequence[int], settings: CommunicatorSettings | None
) -> dist.ProcessGroup:
    """A process group whose communicator exists, and is bound to its network, on return.

    NCCL makes a communicator, and reads what it is to use, at the first collective of a group:
    so there is one at once, of a single number. gloo reads the interface when a group is made.

    Args:
        ranks: Global ranks; every rank of the job calls this, members and others.
        settings: What to bind it to; None: nothing.
    """
    if settings is None:
        return dist.new_group(list(ranks))
    on_gpu = torch.cuda.is_available()
    with _gloo_interface(settings.interface):
        try:
            group = dist.new_group(
                list(ranks), pg_options=_nccl_options(settings) if on_gpu else None
            )
            if dist.get_rank() in ranks:
                first = torch.zeros(1, device="cuda" if on_gpu else "cpu")
                dist.all_reduce(first, group=group)
        except RuntimeError as error:  # gloo's or NCCL's
            said = str(error).strip().partition("\n")[0]
            raise JobFailedError(
                f"the communicator of the ranks {_ranks_text(ranks)} cannot be made over "
                f"{settings.transport} ({settings.reason}): {said}; see the nics of the "
                "cluster file"
            ) from error
    return group


def _ranks_text(ranks: Sequence[int]) -> str:
    """The first few ranks of a group."""
    shown = ", ".join(map(str, ranks[:_SHOWN_RANKS]))
    return shown + (f", ... ({len(ranks)})" if len(ranks) > _SHOWN_RANKS else "")


def _nccl_options(settings: CommunicatorSettings) -> object:
    """NCCL's options of one communicator.

    Source: ncclConfig_t.netName, NVIDIA NCCL user guide; set in the same way by Megatron-core
    0.16, parallel_state.get_nccl_options.
    """
    options = dist.ProcessGroupNCCL.Options()
    options.config.net_name = settings.transport  # type: ignore[attr-defined]  # torch's stub
    return options


@contextlib.contextmanager
def _gloo_interface(interface: str | None) -> Iterator[None]:
    """Have gloo use an interface for the groups made inside; None: as it is."""
    if interface is None:
        yield
        return
    before = os.environ.get(_GLOO_INTERFACE)
    os.environ[_GLOO_INTERFACE] = interface
    try:
        yield
    finally:
        if before is None:
            del os.environ[_GLOO_INTERFACE]
        else:
            os.environ[_GLOO_INTERFACE] = before


def _rank_sets(plan: StepPlan) -> Iterable[tuple[int, ...]]:
    for wave in plan.waves:
        for group in wave.groups:
            yield group.ranks
