"""A micro-benchmark of the machine at hand: the operations that a training step consists of."""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from trimtab.core.cluster import Precision
from trimtab.core.device_speed import DeviceSpeed, SpeedKind, Timed

_TYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
_FEWEST_REPEATS, _MOST_REPEATS = 5, 50
_CPU_RANKS = 2
_FP8_SINCE = (8, 9)
"""Compute capability with FP8 tensor cores."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the operations are."""

    products: tuple[tuple[int, int, int], ...]
    """Rows, columns, inner length."""
    attention: tuple[tuple[int, int, int], ...]
    """Tokens of a sequence, heads, head_dim."""
    traffic_elements: int
    all_reduce_elements: tuple[int, ...]
    least_s: float
    """How long each is repeated."""


GPU_SIZES = Sizes(
    products=(
        (8192, 4096, 4096),
        (8192, 14_336, 4096),
        (8192, 4096, 14_336),
        (8192, 8192, 8192),
    ),
    attention=((4096, 32, 128), (8192, 32, 128)),
    traffic_elements=2**28,
    all_reduce_elements=(2**10, 2**26),
    least_s=0.3,
)
CPU_SIZES = Sizes(
    products=((512, 1024, 1024), (1024, 1024, 1024), (1024, 2048, 1024)),
    attention=((512, 8, 64), (1024, 8, 64)),
    traffic_elements=2**23,
    all_reduce_elements=(2**10, 2**20),
    least_s=0.2,
)


def measure_device(*, tell: Tell, sizes: Sizes | None = None) -> DeviceSpeed:
    """Time products, attention, memory traffic, launches and, among several, an all-reduce.

    The first GPU is measured, or else the CPU with the threads that one rank of it would have.

    Args:
        tell: Told what is being measured.
        sizes: Of the operations; None: those of the kind of device.
    """
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda:0" if is_gpu else "cpu")
    sizes = sizes or (GPU_SIZES if is_gpu else CPU_SIZES)
    timed: list[Timed] = []
    skipped: list[str] = []
    threads = torch.get_num_threads()
    if not is_gpu:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for precision in _TYPES:
                tell(f"matrix products and attention in {precision}")
                timed += _products(device, precision, sizes)
                timed += _attention(device, precision, sizes)
                timed.append(_traffic(device, precision, sizes))
            tell("fp8 products")
            timed += _fp8_products(device, sizes, skipped=skipped)
            tell("kernel launches")
            timed.append(_layer(device, sizes))
    finally:
        torch.set_num_threads(threads)
    num_devices = torch.cuda.device_count() if is_gpu else 1
    num_ranks = num_devices if is_gpu else min(_CPU_RANKS, os.cpu_count() or 1)
    if num_ranks > 1:
        tell(f"all-reduces among {num_ranks} ranks")
        timed += _all_reduces(num_ranks, is_gpu=is_gpu, sizes=sizes)
    else:
        skipped.append("all-reduce: there is one device")
    if is_gpu:
        properties = torch.cuda.get_device_properties(device)
        name, memory_bytes = properties.name, properties.total_memory
    else:
        name, memory_bytes = (
            "CPU process",
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
    return DeviceSpeed(
        name=name,
        memory_bytes=memory_bytes,
        num_devices=num_devices,
        timed=tuple(timed),
        skipped=tuple(skipped),
    )


def _products(device: torch.device, precision: Precision, sizes: Sizes) -> Iterator[Timed]:
    for rows, columns, inner in sizes.products:
        left = torch.randn(rows, inner, device=device, dtype=_TYPES[precision])
        right = torch.randn(columns, inner, device=device, dtype=_TYPES[precision])
        yield _timed(
            "product",
            partial(functional.linear, left, right),
            what=f"{rows} x {columns} x {inner}",
            precision=precision,
            amount=2 * rows * columns * inner,
            device=device,
            least_s=sizes.least_s,
        )


def _fp8_products(device: torch.device, sizes: Sizes, *, skipped: list[str]) -> Iterator[Timed]:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _FP8_SINCE:
        skipped.append("fp8 products: the device has no FP8 tensor cores")
        return
    one = torch.ones((), device=device)
    for rows, columns, inner in sizes.products:
        left = torch.randn(rows, inner, device=device).to(torch.float8_e4m3fn)
        right = torch.randn(columns, inner, device=device).to(torch.float8_e4m3fn).t()
        yield _timed(
            "product",
            partial(
                torch._scaled_mm,
                left,
                right,
                scale_a=one,
                scale_b=one,
                out_dtype=torch.bfloat16,
            ),
            what=f"{rows} x {columns} x {inner}",
            precision="fp8",
            amount=2 * rows * columns * inner,
            device=device,
            least_s=sizes.least_s,
        )


def _attention(device: torch.device, precision: Precision, sizes: Sizes) -> Iterator[Timed]:
    for tokens, heads, head_dim in sizes.attention:
        query, key, value = torch.randn(
            3, 1, heads, tokens, head_dim, device=device, dtype=_TYPES[precision]
        )
        yield _timed(
            "attention",
            partial(functional.scaled_dot_product_attention, query, key, value, is_causal=True),
            what=f"{tokens} tokens, {heads} heads of {head_dim}",
            precision=precision,
            amount=4 * heads * head_dim * tokens**2 / 2,
            device=device,
            least_s=sizes.least_s,
        )


def _traffic(device: torch.device, precision: Precision, sizes: Sizes) -> Timed:
    """Two tensors read and one written."""
    one, other = torch.ones(2, sizes.traffic_elements, device=device, dtype=_TYPES[precision])
    result = torch.empty_like(one)
    return _timed(
        "traffic",
        lambda: torch.add(one, other, out=result),
        what=f"sum of {sizes.traffic_elements} elements",
        precision=precision,
        amount=3 * one.nbytes,
        device=device,
        least_s=sizes.least_s,
    )


def _layer(device: torch.device, sizes: Sizes) -> Timed:
    """A transformer layer too small for its arithmetic to matter: its kernels' launches."""
    layer = torch.nn.TransformerEncoderLayer(
        64, 4, 128, dropout=0.1, batch_first=True, norm_first=True, device=device
    )
    layer.train()
    tokens = torch.randn(1, 8, 64, device=device)
    return _timed(
        "layer",
        lambda: layer(tokens),
        what="a layer of hidden 64 over 8 tokens",
        precision="fp32",
        amount=1,
        device=device,
        least_s=sizes.least_s,
    )


def _all_reduces(num_ranks: int, *, is_gpu: bool, sizes: Sizes) -> list[Timed]:
    """Between processes of this machine: NCCL, or gloo over loopback."""
    with tempfile.TemporaryDirectory() as folder:
        store, results = Path(folder) / "store", Path(folder) / "seconds"
        spawn(
            _reduce_in_rank,
            args=(num_ranks, is_gpu, sizes, str(store), str(results)),
            nprocs=num_ranks,
        )
        lines = results.read_text(encoding="utf-8").splitlines()
    timed = []
    for elements, line in zip(sizes.all_reduce_elements, lines, strict=True):
        seconds, spread = map(float, line.split())
        timed.append(
            Timed(
                kind="all-reduce",
                what=f"{elements} elements among {num_ranks} ranks",
                precision="fp32",
                amount=2 * (num_ranks - 1) / num_ranks * 4 * elements,
                seconds=seconds,
                spread=spread,
            )
        )
    return timed


def _reduce_in_rank(
    rank: int, num_ranks: int, is_gpu: bool, sizes: Sizes, store: str, results: str
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "nccl" if is_gpu else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=num_ranks,
    )
    device = torch.device(f"cuda:{rank}" if is_gpu else "cpu")
    lines = []
    for elements in sizes.all_reduce_elements:
        tensor = torch.ones(elements, device=device)

        def run(tensor: torch.Tensor = tensor) -> None:
            torch.distributed.all_reduce(tensor)
            tensor.fill_(1.0)

        samples = [_once(run, device) for _ in range(2 * _FEWEST_REPEATS)]
        lines.append("{} {}".format(*_summary(samples[_FEWEST_REPEATS:])))
    if rank == 0:
        Path(results).write_text("\n".join(lines), encoding="utf-8")
    torch.distributed.destroy_process_group()


def _timed(
    kind: SpeedKind,
    run: Callable[[], object],
    *,
    what: str,
    precision: Precision,
    amount: float,
    device: torch.device,
    least_s: float,
) -> Timed:
    for _ in range(2):
        _once(run, device)
    samples: list[float] = []
    while len(samples) < _FEWEST_REPEATS or (
        sum(samples) < least_s and len(samples) < _MOST_REPEATS
    ):
        samples.append(_once(run, device))
    seconds, spread = _summary(samples)
    return Timed(
        kind=kind,
        what=what,
        precision=precision,
        amount=amount,
        seconds=seconds,
        spread=spread,
    )


def _once(run: Callable[[], object], device: torch.device) -> float:
    start_s = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start_s


def _summary(samples: list[float]) -> tuple[float, float]:
    """Median, and the distance of the quartiles over it."""
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    return max(median, math.ulp(1.0)), (high - low) / max(median, math.ulp(1.0))
