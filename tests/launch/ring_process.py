"""The ranks of a ring, which the ring tests start: attention and gradients as in one process.

    python ring_process.py NUM_RANKS PORT

Prints the largest difference of outputs and gradients, relative to the largest value, by case.
"""

import json
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch re-exports it

from trimtab.launch.runtime.attention import attend_documents
from trimtab.launch.runtime.clock import StepClock
from trimtab.launch.runtime.ring_attention import ring_attend, zigzag

CASES = {
    "one document": ((37,), 4, 4),
    "several documents": ((37, 5, 24, 1, 16), 4, 4),
    "grouped-query": ((29, 40, 3), 6, 2),
    "fewer tokens than ranks": ((1, 1), 3, 3),
    "heads that the ranks do not divide": ((50, 11), 5, 1),
}
"""Lengths, query heads, key-value heads."""


def errors(num_ranks: int, rank: int) -> dict[str, float]:
    found = {}
    for name, (lengths, heads, kv_heads) in CASES.items():
        generator = torch.Generator().manual_seed(11)
        whole = [
            torch.randn(sum(lengths), count, 8, generator=generator)
            for count in (heads, kv_heads, kv_heads, heads)
        ]
        expected = _expected(whole, lengths)
        cut = zigzag(lengths, degree=num_ranks, place=rank)
        starts = [sum(lengths[:at]) for at in range(len(lengths))]
        mine = torch.tensor(
            [starts[d] + at for d, begin, end in cut.pieces() for at in range(begin, end)],
            dtype=torch.int64,
        )
        padding = cut.num_tokens(rank) - len(mine)
        local = [torch.nn.functional.pad(x[mine], (0, 0, 0, 0, 0, padding)) for x in whole]
        inputs = [x.clone().requires_grad_() for x in local[:3]]
        assert dist.group.WORLD is not None
        out = ring_attend(*inputs, cut=cut, group=dist.group.WORLD, clock=StepClock())
        out.backward(local[3])
        worst = 0.0
        results = (out.detach(), *(x.grad for x in inputs))
        for result, full in zip(results, expected, strict=True):
            assert result is not None
            difference = (result[: len(mine)] - full[mine]).abs()
            worst = max([worst, *(difference / full.abs().max()).flatten().tolist()])
            assert not result[len(mine) :].any()
        found[name] = worst
    return found


def _expected(whole: list[torch.Tensor], lengths: tuple[int, ...]) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in whole[:3]]
    out = attend_documents(inputs[0], inputs[1], inputs[2], lengths)
    out.backward(whole[3])
    gradients = [x.grad for x in inputs if x.grad is not None]
    return [out.detach(), *gradients]


def run(num_ranks: int, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, num_ranks, rank == 0, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    gathered: list[dict[str, float]] = [{}] * num_ranks
    dist.all_gather_object(gathered, errors(num_ranks, rank))
    if rank == 0:
        print(json.dumps({name: max(each[name] for each in gathered) for name in CASES}))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    num_ranks, port = int(sys.argv[1]), int(sys.argv[2])
    children = []
    for rank in range(1, num_ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run(num_ranks, rank, port)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    run(num_ranks, 0, port)
    assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)


if __name__ == "__main__":
    main()
