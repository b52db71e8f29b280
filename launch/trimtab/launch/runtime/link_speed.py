"""Times the ways between ranks: `python -m trimtab.launch.runtime.link_speed POOLS`.

Every rank runs it, started as `torchrun` would; POOLS is JSON, the pools of the ranks in turn.
Of every kind of pair some are timed at once: within a node neighbours, between nodes and
islands each rank with the one of its place on the other side. Rank 0 prints the result as one
line that begins with `RESULT_MARK`.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import torch
import torch.distributed as dist

from trimtab.core import serde
from trimtab.core.link_speed import LinkSpeeds, PairKind, PairSpeed, RankPool

RESULT_MARK: Final = "TRIMTAB_LINKS "
_WARM_UPS, _PINGS, _SENDS = 5, 50, 7
_MESSAGE_BYTES = {"gloo": 8 * 2**20, "nccl": 64 * 2**20}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairClass:
    """Pairs of ranks that are timed at once."""

    kind: PairKind
    source: str
    target: str
    pairs: tuple[tuple[int, int], ...]
    """Sender and receiver, no rank twice."""


def pair_classes(pools: Sequence[RankPool]) -> Iterator[PairClass]:
    """What is to be timed, in the order in which all ranks do it."""
    starts = [0, *itertools.accumulate(pool.num_ranks for pool in pools)]
    for pool, start in zip(pools, starts[:-1], strict=True):
        size = pool.ranks_per_node
        if size > 1:
            neighbours = tuple((start + i, start + i + 1) for i in range(0, size - 1, 2))
            yield PairClass(kind="node", source=pool.name, target=pool.name, pairs=neighbours)
        if pool.num_nodes > 1:
            across = tuple((start + i, start + size + i) for i in range(size))
            yield PairClass(kind="island", source=pool.name, target=pool.name, pairs=across)
    islands: dict[str, list[int]] = {}
    for pool, start in zip(pools, starts[:-1], strict=True):
        islands.setdefault(pool.island, []).extend(range(start, start + pool.num_ranks))
    for source, target in itertools.permutations(islands, 2):
        pairs = tuple(zip(islands[source], islands[target], strict=False))
        yield PairClass(kind="between", source=source, target=target, pairs=pairs)


def measure_links(pools: Sequence[RankPool], *, device: torch.device) -> LinkSpeeds:
    """Time all classes; collective over all ranks, every one of which gets the result."""
    backend = str(dist.get_backend())
    num_bytes = _MESSAGE_BYTES[backend]
    speeds = []
    for each in pair_classes(pools):
        dist.barrier()
        own = _timed(each, num_bytes=num_bytes, device=device)
        found: list[tuple[float, float] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, own)
        timed = [entry for entry in found if entry is not None]
        latency_s = median(latency for latency, _ in timed)
        slowest_s = max(seconds for _, seconds in timed)
        speeds.append(
            PairSpeed(
                kind=each.kind,
                source=each.source,
                target=each.target,
                latency_s=latency_s,
                bytes_per_s=len(each.pairs) * num_bytes / slowest_s,
                num_pairs=len(each.pairs),
            )
        )
    return LinkSpeeds(
        pairs=tuple(speeds),
        backend=backend,
        num_ranks=dist.get_world_size(),
        message_bytes=num_bytes,
    )


def _timed(
    each: PairClass, *, num_bytes: int, device: torch.device
) -> tuple[float, float] | None:
    """Latency and seconds of a large message, by its sender; None: this rank sends none."""
    rank = dist.get_rank()
    mine = [pair for pair in each.pairs if rank in pair]
    if not mine:
        return None
    ((sender, receiver),) = mine
    peer, is_sender = (receiver, True) if rank == sender else (sender, False)
    small = torch.zeros(1, dtype=torch.float64, device=device)
    large = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    pings = [_there_and_back(small, small, peer, is_sender) for _ in range(_WARM_UPS + _PINGS)]
    sends = [_there_and_back(large, small, peer, is_sender) for _ in range(2 + _SENDS)]
    if not is_sender:
        return None
    quickest = sorted(pings[_WARM_UPS:])[: _PINGS // 4]
    latency_s = quickest[-1] / 2  # a quarter was faster: the rest waited for a processor
    return latency_s, max(median(sends[2:]) - latency_s, 1e-9)


def _there_and_back(
    message: torch.Tensor, answer: torch.Tensor, peer: int, is_sender: bool
) -> float:
    """Seconds from the sending of a message to its answer."""
    start_s = time.perf_counter()
    if is_sender:
        dist.send(message, peer)
        dist.recv(answer, peer)
    else:
        dist.recv(message, peer)
        dist.send(answer, peer)
    if message.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start_s


def main() -> None:
    """Measure, as the rank that the environment describes."""
    pools = [serde.from_fields(RankPool, fields) for fields in json.loads(sys.argv[1])]
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() > local_rank
    device = torch.device(f"cuda:{local_rank}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    speeds = measure_links(pools, device=device)
    if dist.get_rank() == 0:
        print(RESULT_MARK + serde.to_json(speeds), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
