"""Datasheets of GPUs, for jobs and measurements that only name their device.

Peaks are dense. Links are one direction of one GPU; memory is what CUDA reports, a little less
than the name says; NICs are a GPU's share of what its servers usually have. Sources: NVIDIA's
datasheets of V100, A100, H100, H200, H20, L40S, GeForce RTX 3090 and 4090, DGX B200 and B300,
GB200 and GB300 NVL72, AMD's of MI300X; A800 and H800 are A100 and H100 with slower links.
"""

import re
from dataclasses import dataclass

from trimtab.core.cluster import GpuSpec, PeakRate, Precision
from trimtab.core.errors import InputError
from trimtab.core.units import GB, GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU and the network that it usually comes with."""

    spec: GpuSpec
    fast_link_bytes_per_s: float
    """NVLink, of one GPU in one direction."""
    usual_nic_bytes_per_s: float
    """A GPU's share of its server's NICs."""
    power_w: float
    """Most that one GPU draws."""


def _device(
    name: str,
    *,
    memory_gib: float,
    memory_gb_per_s: float,
    num_sms: int,
    tflop_per_s: dict[Precision, float],
    link_gb_per_s: float,
    nic_gbit_per_s: float,
    power_w: float,
) -> Device:
    return Device(
        spec=GpuSpec(
            name=name,
            memory_bytes=int(memory_gib * GIB),
            memory_bytes_per_s=memory_gb_per_s * GB,
            num_sms=num_sms,
            peaks=tuple(
                PeakRate(precision=precision, flop_per_s=peak * 1e12)
                for precision, peak in tflop_per_s.items()
            ),
        ),
        fast_link_bytes_per_s=link_gb_per_s * GB,
        usual_nic_bytes_per_s=nic_gbit_per_s / 8 * GB,
        power_w=power_w,
    )


_AMPERE: dict[Precision, float] = {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312}
_HOPPER: dict[Precision, float] = {
    "fp32": 67, "tf32": 494.5, "bf16": 989, "fp16": 989, "fp8": 1979,
}  # fmt: skip
_B200: dict[Precision, float] = {
    "fp32": 75, "tf32": 1125, "bf16": 2250, "fp16": 2250, "fp8": 4500, "fp4": 9000,
}  # fmt: skip
_GB200: dict[Precision, float] = {
    "fp32": 80, "tf32": 1250, "bf16": 2500, "fp16": 2500, "fp8": 5000, "fp4": 10_000,
}  # fmt: skip

DEVICES = (
    _device(
        "V100-32GB", memory_gib=31.7, memory_gb_per_s=900, num_sms=80,
        tflop_per_s={"fp32": 15.7, "fp16": 125}, link_gb_per_s=150, nic_gbit_per_s=50,
        power_w=300,
    ),
    _device(
        "A100-40GB", memory_gib=39.6, memory_gb_per_s=1555, num_sms=108, tflop_per_s=_AMPERE,
        link_gb_per_s=300, nic_gbit_per_s=200, power_w=400,
    ),
    _device(
        "A100-80GB", memory_gib=79.2, memory_gb_per_s=2039, num_sms=108, tflop_per_s=_AMPERE,
        link_gb_per_s=300, nic_gbit_per_s=200, power_w=400,
    ),
    _device(
        "H100-80GB", memory_gib=79.6, memory_gb_per_s=3350, num_sms=132, tflop_per_s=_HOPPER,
        link_gb_per_s=450, nic_gbit_per_s=400, power_w=700,
    ),
    _device(
        "H200-141GB", memory_gib=139.8, memory_gb_per_s=4800, num_sms=132,
        tflop_per_s=_HOPPER, link_gb_per_s=450, nic_gbit_per_s=400, power_w=700,
    ),
    _device(
        "B200", memory_gib=178, memory_gb_per_s=8000, num_sms=148, tflop_per_s=_B200,
        link_gb_per_s=900, nic_gbit_per_s=400, power_w=1000,
    ),
    _device(
        "GB200", memory_gib=184, memory_gb_per_s=8000, num_sms=148, tflop_per_s=_GB200,
        link_gb_per_s=900, nic_gbit_per_s=400, power_w=1200,
    ),
    _device(
        "B300", memory_gib=267, memory_gb_per_s=8000, num_sms=148,
        tflop_per_s=_B200 | {"fp4": 13_500}, link_gb_per_s=900, nic_gbit_per_s=800,
        power_w=1100,
    ),
    _device(
        "GB300", memory_gib=275, memory_gb_per_s=8000, num_sms=148,
        tflop_per_s=_GB200 | {"fp4": 15_000}, link_gb_per_s=900, nic_gbit_per_s=800,
        power_w=1400,
    ),
    _device(
        "A800-80GB", memory_gib=79.2, memory_gb_per_s=2039, num_sms=108, tflop_per_s=_AMPERE,
        link_gb_per_s=200, nic_gbit_per_s=200, power_w=400,
    ),
    _device(
        "H800-80GB", memory_gib=79.6, memory_gb_per_s=3350, num_sms=132, tflop_per_s=_HOPPER,
        link_gb_per_s=200, nic_gbit_per_s=400, power_w=700,
    ),
    _device(
        "H20-96GB", memory_gib=95, memory_gb_per_s=4000, num_sms=78,
        tflop_per_s={"bf16": 148, "fp16": 148, "fp8": 296}, link_gb_per_s=450,
        nic_gbit_per_s=400, power_w=400,
    ),
    _device(
        "L40S-48GB", memory_gib=44.5, memory_gb_per_s=864, num_sms=142,
        tflop_per_s={"bf16": 362, "fp16": 362, "fp8": 733}, link_gb_per_s=25,
        nic_gbit_per_s=100, power_w=350,
    ),
    _device(
        "RTX4090-24GB", memory_gib=23.6, memory_gb_per_s=1008, num_sms=128,
        tflop_per_s={"bf16": 165, "fp16": 165, "fp8": 330}, link_gb_per_s=25,
        nic_gbit_per_s=25, power_w=450,
    ),
    _device(
        "RTX3090-24GB", memory_gib=23.6, memory_gb_per_s=936, num_sms=82,
        tflop_per_s={"bf16": 71, "fp16": 71}, link_gb_per_s=25, nic_gbit_per_s=25,
        power_w=350,
    ),
    _device(
        "MI300X-192GB", memory_gib=191, memory_gb_per_s=5300, num_sms=304,
        tflop_per_s={"bf16": 1307, "fp16": 1307, "fp8": 2615}, link_gb_per_s=448,
        nic_gbit_per_s=400, power_w=750,
    ),
)  # fmt: skip


def device(name: str) -> Device:
    """The device of a name, however it is spelled: `a100`, `NVIDIA H100 80GB HBM3`.

    Of several memory sizes the one named, else the largest.

    Raises:
        InputError: No device is known by that name; says which are.
    """
    plain = name.casefold()
    kinds = {each: each.spec.name.split("-")[0].casefold() for each in DEVICES}
    matching = [kind for kind in kinds.values() if _named(kind, plain)]
    longest = max(matching, key=len, default="")
    fitting = [each for each, kind in kinds.items() if kind == longest]
    exact = [each for each in fitting if each.spec.name.casefold().split("-")[-1] in plain]
    found = exact or fitting
    if not found:
        known = ", ".join(each.spec.name for each in DEVICES)
        raise InputError(f"gpu: unknown device {name!r}; known: {known}")
    return max(found, key=lambda each: each.spec.memory_bytes)


def _named(kind: str, name: str) -> bool:
    """Whether a name holds a kind, `rtx4090` also as `RTX 4090`, and no longer number."""
    parts = re.findall(r"[a-z]+|\d+", kind)
    return re.search(r"[^a-z0-9]*".join(parts) + r"(?!\d)", name) is not None
