"""Rates from a micro-benchmark: what the device at hand reaches of its datasheet.

What was measured replaces those constants of the rates known for its kind; the others stay.
"""

import dataclasses
import statistics
from dataclasses import dataclass

from trimtab.core.cluster import GpuSpec, PeakRate, Precision
from trimtab.core.device_speed import DeviceSpeed, Timed
from trimtab.core.devices import device
from trimtab.core.errors import InputError
from trimtab.core.rates import RateBook, StackRates, device_family

_WIDER_LOG = 0.15
"""A step has more than its operations: intervals are this much wider than of measured steps."""
_MOST_EFFICIENCY = 0.92


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """What `trimtab calibrate --device` finds out."""

    gpu: GpuSpec
    """The datasheet's, or, of a device that has none here, the best that was measured."""
    is_datasheet: bool
    book: RateBook


def device_rates(speed: DeviceSpeed, *, known: RateBook) -> DeviceRates:
    """The rates of a device.

    Args:
        speed: Of its operations.
        known: Where the constants come from that were not measured.
    """
    gpu, is_datasheet, link_bytes_per_s = _datasheet(speed)
    base = known.find(gpu.name)
    measured = _measured(speed, gpu, link_bytes_per_s=link_bytes_per_s)
    names = ", ".join(measured)
    entry = StackRates(
        name=f"{speed.name}, measured by operations",
        family=device_family(gpu.name),
        engine="",
        source="",
        rates=dataclasses.replace(base.rates, **measured),
        memory=base.memory,
        low_log=base.low_log - _WIDER_LOG,
        high_log=base.high_log + _WIDER_LOG,
        num_rows=0,
        median_error=0.0,
    )
    spread = statistics.median(each.spread for each in speed.timed)
    evidence = (
        f"micro-benchmark of {len(speed.timed)} operations (median spread {spread:.0%}): "
        f"{names}; the other constants are those of {base.name}"
    )
    skipped = "".join(f"; {reason}" for reason in speed.skipped)
    return DeviceRates(
        gpu=gpu,
        is_datasheet=is_datasheet,
        book=RateBook(entries=(entry,), evidence=evidence + skipped),
    )


def _datasheet(speed: DeviceSpeed) -> tuple[GpuSpec, bool, float | None]:
    """The device's datasheet and its link; else the best measured counts as the peak."""
    try:
        found = device(speed.name)
    except InputError:
        precisions: dict[Precision, float] = {}
        for each in speed.of("product"):
            best = precisions.get(each.precision, 0.0)
            precisions[each.precision] = max(best, each.rate)
        traffic = max(each.rate for each in speed.of("traffic"))
        gpu = GpuSpec(
            name=speed.name,
            memory_bytes=speed.memory_bytes,
            memory_bytes_per_s=traffic,
            peaks=tuple(
                PeakRate(precision=precision, flop_per_s=rate)
                for precision, rate in precisions.items()
            ),
        )
        return gpu, False, None
    return found.spec, True, found.fast_link_bytes_per_s


def _measured(
    speed: DeviceSpeed, gpu: GpuSpec, *, link_bytes_per_s: float | None
) -> dict[str, float]:
    """The constants of `Rates` that follow from the operations."""
    wide: Precision = "bf16" if gpu.peak_flop_per_s("bf16") else "fp32"
    constants = {
        "matmul_efficiency": _share(speed.of("product", wide), gpu, wide),
        "attention_efficiency": _share(speed.of("attention", wide), gpu, wide),
        "elementwise_factor": gpu.memory_bytes_per_s
        / statistics.median(each.rate for each in speed.of("traffic", wide)),
        "launch_s": statistics.median(each.seconds for each in speed.of("layer")),
    }
    if speed.of("product", "fp8"):
        constants["fp8_efficiency"] = _share(speed.of("product", "fp8"), gpu, "fp8")
    reduces = sorted(speed.of("all-reduce"), key=lambda each: each.amount)
    if len(reduces) > 1:
        constants["tp_latency_s"] = reduces[0].seconds
        if link_bytes_per_s is not None:
            constants["tp_factor"] = link_bytes_per_s / reduces[-1].rate
    return constants


def _share(timed: list[Timed], gpu: GpuSpec, precision: Precision) -> float:
    """The median rate over the peak."""
    peak = gpu.peak_flop_per_s(precision)
    assert peak is not None
    return min(_MOST_EFFICIENCY, statistics.median(each.rate for each in timed) / peak)


def fragment(gpu: GpuSpec) -> str:
    """The `gpu` of a node in a cluster file."""
    peaks = ", ".join(f"{each.precision}: {each.flop_per_s / 1e12:.4g}" for each in gpu.peaks)
    return (
        "    gpu:\n"
        f"      name: {gpu.name}\n"
        f"      memory_gib: {gpu.memory_bytes / 2**30:.3g}\n"
        f"      memory_gb_per_s: {gpu.memory_bytes_per_s / 1e9:.4g}\n"
        f"      peak_tflop_per_s: {{{peaks}}}\n"
    )
