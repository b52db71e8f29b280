"""How the micro-batches of a step pass through pipeline stages, and when."""

from dataclasses import dataclass

from trimtab.core import checks
from trimtab.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The stages of a layout, as a step plan needs to know them."""

    pp: int
    vpp: int = 1
    """Chunks of a stage; more than 1: the interleaved schedule."""
    stage_layers: tuple[int, ...] = ()
    """Layers of every stage; empty: as even as can be."""
    output_layers: float = 0.0
    """How many layers take as long per token as the output matrix, which the last stage has."""
    send_bytes_per_s: float | None = None
    """Rate of one rank to the next stage; None: sending is hidden behind computing."""

    def __post_init__(self) -> None:
        checks.whole_number("pipeline.pp", self.pp)
        checks.whole_number("pipeline.vpp", self.vpp)
        checks.not_negative("pipeline.output_layers", self.output_layers)
        if self.send_bytes_per_s is not None:
            checks.positive("pipeline.send_bytes_per_s", self.send_bytes_per_s)
        for stage, layers in enumerate(self.stage_layers):
            checks.whole_number(f"pipeline.stage_layers[{stage}]", layers)
        if self.stage_layers and len(self.stage_layers) != self.pp:
            raise InputError(
                f"pipeline.stage_layers: expected one number for each of pp = {self.pp} "
                f"stages, got {len(self.stage_layers)}"
            )
        if self.vpp > 1 and (self.pp == 1 or len(set(self.stage_layers)) > 1):
            raise InputError(
                "pipeline.vpp: chunks are interleaved over equal stages of pp > 1 only, got "
                f"pp = {self.pp} and stage_layers {list(self.stage_layers)}; set vpp to 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchTimes:
    """What one micro-batch takes in every stage, shapes (pp,)."""

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    send_s: float
    """From a stage to the next, beside the computing."""
    tokens: float
    """Most tokens that one of its ranks holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """The timeline of a step plan, whose waves are the micro-batches in their order."""

    stages: Pipeline
    """With the layers of every stage."""
    micro_batches: tuple[MicroBatchTimes, ...]
    """By position, as the waves of the plan."""
    token_limits: tuple[float, ...]
    """Tokens that a rank of each stage may hold, its micro-batches in flight together."""
    busy_s: tuple[float, ...]
    """By stage."""
    peak_tokens: tuple[float, ...]
    """Most tokens that a rank of each stage holds at once, chunks counted as shares."""
    wave_cap: int
    """Most tokens a rank may hold of one wave; the certificate's token cap."""
    least_waves: int = 1
    """The certificate speaks of plans with at least so many waves: others are longer anyway."""
