"""What a micro-benchmark measured of the machine at hand (`trimtab calibrate --device`)."""

from dataclasses import dataclass
from typing import Literal

from trimtab.core import checks
from trimtab.core.cluster import Precision

SpeedKind = Literal["product", "attention", "traffic", "layer", "all-reduce"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One operation, timed."""

    kind: SpeedKind
    what: str
    """Its sizes, for people."""
    precision: Precision
    amount: float
    """FLOPs of products and attention (the causal half), bytes of traffic and all-reduces that
    a rank sends, passes of a layer."""
    seconds: float
    """Median of the repeats."""
    spread: float
    """Between the quartiles of the repeats, over the median."""

    def __post_init__(self) -> None:
        checks.positive(f"{self.kind}.amount", self.amount)
        checks.positive(f"{self.kind}.seconds", self.seconds)

    @property
    def rate(self) -> float:
        """Amount in a second."""
        return self.amount / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpeed:
    """All that was measured of one device, and of several of them together."""

    name: str
    """As the driver names it; `CPU process` where there is no accelerator."""
    memory_bytes: int
    num_devices: int
    timed: tuple[Timed, ...]
    skipped: tuple[str, ...]
    """What was not measured, and why."""

    def of(self, kind: SpeedKind, precision: Precision | None = None) -> list[Timed]:
        return [
            each
            for each in self.timed
            if each.kind == kind and precision in (None, each.precision)
        ]
