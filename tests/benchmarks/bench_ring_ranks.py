"""What attention of one layer costs on real gloo ranks: a ring beside Ulysses.

    python tests/benchmarks/bench_ring_ranks.py

Forward and backward of 1,024 packed tokens with heads of 64 in fp32. The figures are CPU
milliseconds of all ranks together, medians of rounds in which both kinds take turns: what
is computed and copied, not what is waited for, so that other work on the machine matters less.
Prints a Markdown table.
"""

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch re-exports it

from trimtab.launch.runtime.attention import GroupedAttention, GroupPacking
from trimtab.launch.runtime.clock import StepClock
from trimtab.launch.runtime.ring_attention import zigzag

_NUM_TOKENS = 1_024
_HEAD_DIM = 64
_ROUNDS = 5
_CASES = {
    "1 document, 12 heads": ((_NUM_TOKENS,), 12, 12),
    "1 document, 12 heads, 2 kv": ((_NUM_TOKENS,), 12, 2),
    "16 documents, 12 heads": ((_NUM_TOKENS // 16,) * 16, 12, 12),
    "16 documents, 12 heads, 2 kv": ((_NUM_TOKENS // 16,) * 16, 12, 2),
}


def attention_of(
    lengths: tuple[int, ...],
    heads: int,
    kv_heads: int,
    *,
    is_ring: bool,
    rank: int,
    degree: int,
) -> Callable[[], None]:
    """One layer's attention of this rank, forward and backward."""
    cut = zigzag(lengths, degree=degree, place=rank) if is_ring else None
    num_tokens = cut.num_tokens(rank) if cut else -(-sum(lengths) // degree)
    tensors = [
        torch.randn(num_tokens, count, _HEAD_DIM, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]
    grad = torch.randn(num_tokens, heads * _HEAD_DIM)
    packing = GroupPacking(
        document_lengths=lengths, group=dist.group.WORLD, degree=degree, cut=cut,
        clock=StepClock(),
    )  # fmt: skip

    def run() -> None:
        out = GroupedAttention.forward(
            GroupedAttention.__new__(GroupedAttention), *tensors, packed_seq_params=packing
        )
        out.backward(grad)

    return run


def measure(rank: int, degree: int, port: int) -> dict[str, list[float]]:
    """CPU seconds of this rank by case and kind, a round each."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, degree, rank == 0, timedelta(seconds=300))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=degree)
    found: dict[str, list[float]] = {}
    for name, (lengths, heads, kv_heads) in _CASES.items():
        runs = {
            kind: attention_of(
                lengths, heads, kv_heads, is_ring=kind == "ring", rank=rank, degree=degree
            )
            for kind in ("ulysses", "ring")
        }
        for round_ in range(_ROUNDS + 1):
            for kind, run in runs.items():
                dist.barrier()
                began_s = time.process_time()
                run()
                if round_:
                    found.setdefault(f"{name}/{kind}", []).append(time.process_time() - began_s)
    dist.barrier()
    dist.destroy_process_group()
    return found


def run_ranks(degree: int, folder: Path) -> dict[str, float]:
    """CPU seconds of all ranks together: the median round."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = []
    for rank in range(degree):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                times = measure(rank, degree, port)
                (folder / f"{degree}-{rank}.json").write_text(json.dumps(times))
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit("a rank has failed")
    ranks = [json.loads((folder / f"{degree}-{r}.json").read_text()) for r in range(degree)]
    return {
        key: statistics.median(map(sum, zip(*(times[key] for times in ranks), strict=True)))
        for key in ranks[0]
    }


def main() -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    print("| documents and heads | degree | Ulysses | ring | ring / Ulysses |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for degree in (2, 3, 4):
            times = run_ranks(degree, Path(folder))
            for name in _CASES:
                ulysses_s, ring_s = times[f"{name}/ulysses"], times[f"{name}/ring"]
                print(
                    f"| {name} | {degree} | {1e3 * ulysses_s:.0f} ms | {1e3 * ring_s:.0f} ms "
                    f"| {ring_s / ulysses_s:.2f} |"
                )


if __name__ == "__main__":
    main()
