"""What a device and its software reach of the datasheet: the constants of the cost model.

A `Rates` has one constant for each thing that slows a step, each with a meaning, fitted to
measured steps (`trimtab.planners.fitting`); `trimtab calibrate FILE.csv` does it for yours.
"""

import dataclasses
import math
import re
from dataclasses import dataclass

from trimtab.core import checks
from trimtab.core.errors import InputError

ENGINES = ("megatron-core", "megatron-lm", "megatron-deepspeed", "fsdp", "jax")
"""Families of training software that differ in kernels and overlap.

`megatron-lm` and `megatron-deepspeed` are of 2021 and 2022: their attention keeps the scores.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The constants; a factor says how many times the datasheet's time a thing takes."""

    matmul_efficiency: float = 0.77
    """Share of the 16-bit peak that a large matrix product reaches."""
    fp8_efficiency: float = 0.65
    """Share of the FP8 peak."""
    fp4_efficiency: float = 0.40
    """Share of the FP4 peak."""
    idle_factor: float = 0.3
    """Multiprocessors idle in the last wave of a product's tiles, as counted."""
    attention_efficiency: float = 0.5
    """Share of the 16-bit peak that fused attention reaches, the causal half counted."""
    unfused_attention_efficiency: float = 0.40
    """The same of batched products whose scores go through memory, the whole square counted."""
    traffic_factor: float = 1.0
    """Memory traffic of matrix products that the arithmetic does not hide."""
    elementwise_factor: float = 1.7
    """Memory traffic of norms, activations, dropout, residuals and attention scores."""
    launch_s: float = 8e-4
    """Host time to launch the kernels of one pass through one layer."""
    tp_factor: float = 0.3
    """Tensor-parallel traffic that is not hidden, at the rate it reaches."""
    tp_latency_s: float = 1e-5
    """Of one such operation, for each doubling of the ranks."""
    cp_factor: float = 0.3
    """Passing keys and values around the cp ranks."""
    ep_factor: float = 0.5
    """Tokens to their experts and back."""
    pp_factor: float = 0.6
    """Activations and gradients between stages."""
    pp_latency_s: float = 2e-5
    """Of one message between stages."""
    dp_factor: float = 1.2
    """Gradients and weights among the data-parallel ranks, once a step."""
    dp_latency_s: float = 2e-3
    """Of one such exchange, for each doubling of the ranks."""
    dp_hidden: float = 0.5
    """Share of the last micro-batch's backward pass that hides that exchange."""
    gather_factor: float = 3.0
    """Weights and gradients of ZeRO-3, every micro-batch, side by side with the arithmetic."""
    expert_factor: float = 1.25
    """Matrix products of experts, uneven and small, against dense ones."""
    expert_launch_factor: float = 2.0
    """Kernels of a layer with experts (routing, sorting, one product each) to a dense one's."""
    unaligned_factor: float = 5.0
    """Attention whose head_dim is not a multiple of 8, which tensor cores need."""
    step_s: float = 0.01
    """Of every step: data, logging, the loss scale."""
    scale_slowdown: float = 0.01
    """How much slower each doubling of the ranks beyond 8 is: waiting for the slowest."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            checks.positive(f"rates.{field.name}", getattr(self, field.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRates:
    """What an engine keeps in memory beyond the tensors that are counted."""

    gradient_bytes: int = 4
    """Of a parameter's gradient in mixed precision: 4, or 2 where they stay in 16 bits."""
    activation_factor: float = 1.0
    """Memory taken for activations over their bytes: the caching allocator wastes some."""
    workspace_bytes: float = 2.0 * 2**30
    """CUDA context, communication buffers and library workspaces."""

    def __post_init__(self) -> None:
        checks.whole_number("rates.gradient_bytes", self.gradient_bytes)
        checks.positive("rates.activation_factor", self.activation_factor)
        checks.positive("rates.workspace_bytes", self.workspace_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The span of one quantity in the rows that constants were fitted to."""

    quantity: str
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRates:
    """The rates of one kind of device under one engine, and what they rest on."""

    name: str
    """`A100 megatron-lm`, or of one source: `A100 megatron-deepspeed: bigscience-176B`."""
    family: str
    """Of the device, see `device_family`; empty: any."""
    engine: str
    """One of `ENGINES`; empty: any."""
    source: str
    """Whose measurements, as their table names them; empty: of all."""
    rates: Rates
    memory: MemoryRates = MemoryRates()
    low_log: float
    """ln(measured / forecast) of rows not fitted: a tenth is below this."""
    high_log: float
    """A tenth is above this; the two span an 80 % interval."""
    num_rows: int
    median_error: float
    """Of the rows fitted, as a fraction."""
    seen: tuple[Seen, ...] = ()

    def __post_init__(self) -> None:
        if not -5 < self.low_log <= self.high_log < 5:
            raise InputError(
                f"{self.name}: expected low_log <= high_log within -5 to 5, "
                f"got {self.low_log} and {self.high_log}"
            )

    def interval(self, step_s: float) -> tuple[float, float]:
        """The 80 % interval around a forecast."""
        return step_s * math.exp(self.low_log), step_s * math.exp(self.high_log)

    def outside(self, quantities: dict[str, float]) -> str | None:
        """Which quantity is beyond twice what was seen, or below half of it; None: none is."""
        for span in self.seen:
            value = quantities.get(span.quantity)
            if value is not None and not span.low / 2 <= value <= span.high * 2:
                return (
                    f"{span.quantity} {value:g} is far from the {span.low:g} to {span.high:g} "
                    f"that {self.name} was fitted to"
                )
        return None


DEFAULT_STACK = StackRates(
    name="default rates",
    family="",
    engine="",
    source="",
    rates=Rates(),
    low_log=-0.25,
    high_log=0.25,
    num_rows=0,
    median_error=0.0,
)
"""Where nothing measured is at hand; the interval is an assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateBook:
    """All rates that are known, from the most particular to the most general."""

    entries: tuple[StackRates, ...]
    evidence: str = ""
    """What they were fitted to."""

    def __post_init__(self) -> None:
        checks.not_empty("rates.entries", self.entries)

    def find(self, gpu_name: str, *, engine: str = "", source: str = "") -> StackRates:
        """The most particular entry that a job on this device may use.

        A source's own constants hold its own network and are used for no other's job.
        """
        family = device_family(gpu_name)
        if not any(entry.family == family for entry in self.entries):
            family = _KIN.get(family, family)

        def closeness(entry: StackRates) -> tuple[bool, bool, bool]:
            return entry.source != "", entry.engine != "", entry.family != ""

        fitting = [
            entry
            for entry in self.entries
            if entry.family in ("", family)
            and entry.engine in ("", engine)
            and entry.source in ("", source)
        ]
        if not fitting:
            raise InputError(
                f"rates: none for the device {gpu_name!r}; run `trimtab calibrate`"
            )
        return max(fitting, key=closeness)


_KIN = {"H200": "H100", "GH200": "H100", "H800": "H100", "H20": "H100", "A800": "A100"}
"""Devices with the chip of another: they reach the same share of their own datasheet."""


def device_family(gpu_name: str) -> str:
    """The kind of a GPU, by its name: `NVIDIA A100 SXM4 40GB` is an `A100`.

    >>> device_family("H100-80GB"), device_family("NVIDIA GB200"), device_family("cpu")
    ('H100', 'GB200', 'cpu')
    """
    found = re.search(r"[A-Za-z]*\d+[A-Za-z]*", gpu_name.upper())
    return found.group() if found else gpu_name
