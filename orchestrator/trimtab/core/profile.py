"""What a sequence group costs on given GPUs: the few coefficients a step plan rests on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InfeasibleError, InputError

ProfileEvidence = Literal["published", "measured", "analytic"]
PROFILE_EVIDENCE: tuple[str, ...] = get_args(ProfileEvidence)

AttentionKind = Literal["ulysses", "ring"]
ATTENTION_KINDS: tuple[str, ...] = get_args(AttentionKind)
"""How ranks share attention: heads, by all-to-alls, or key-value blocks that go round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOption:
    """One way to run a group; a group of one exchanges nothing and counts as `ulysses`."""

    degree: int
    attention: AttentionKind = "ulysses"


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreeBandwidth:
    """What one rank of a group of `degree` ranks sends its part of attention over."""

    degree: int
    bytes_per_s: float
    latency_s: float = 0.0
    """Seconds that a wave's messages take besides their bytes, over all layers."""

    def __post_init__(self) -> None:
        checks.whole_number("v_gb_per_s degree", self.degree, at_least=2)
        checks.positive(f"v_gb_per_s[{self.degree}]", self.bytes_per_s)
        checks.not_negative(f"latency_ms[{self.degree}]", self.latency_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingCosts:
    """What ring attention costs where key-value blocks go round the d ranks of a group.

        time(group of degree d) = fixed_s + latency_s(d) + sum_s [quadratic_s s^2 + linear_s s
            + max(0, (d - 1) bytes_per_token s / v_d - overlap_fraction quadratic_s s^2)] / d

    Each of d - 1 hops moves a rank's s / d tokens to its neighbour, while the block that came
    before is attended to. The zig-zag cut gives every rank the same part of the causal square.

    Source: ring attention, arXiv:2310.01889; DistFlashAttn, arXiv:2310.03294, sections 3.1-3.3.
    """

    quadratic_s: float
    """Seconds per token^2 of attention in blocks, forward and backward."""
    bytes_per_token: float
    """Bytes a hop moves for one token over all layers: keys and values, and their gradients."""
    bandwidths: tuple[DegreeBandwidth, ...]
    overlap_fraction: float
    """Part of the attention behind which the transfer of the next block is hidden."""

    def __post_init__(self) -> None:
        checks.not_negative("ring.quadratic_ms", self.quadratic_s)
        checks.not_negative("ring.mb_per_token", self.bytes_per_token)
        checks.fraction("ring.overlap", self.overlap_fraction)
        checks.not_empty("ring.v_gb_per_s", self.bandwidths)
        _check_ascending("ring.v_gb_per_s", self.bandwidths)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Coefficients of a group's time and memory; lengths `s` are in tokens.

        time(group of degree d) = fixed_s + sum_s (quadratic_s s^2 + linear_s s) / d
                                + latency_s(d) + sum_s alltoall_bytes_per_token s / (d v_d)
        tokens(group) <= d * token_cap

    The last two terms are zero for d = 1. With `ring`, groups of its degrees may run ring
    attention instead (`RingCosts`). A degree that is neither 1 nor in either's bandwidths is
    not available.

    Source: FlexSP, arXiv:2412.01523, section 4.
    """

    name: str
    num_gpus: int
    gpus_per_node: int
    quadratic_s: float
    """Seconds per token^2: attention scores, forward and backward."""
    linear_s: float
    """Seconds per token: everything that grows with the tokens."""
    fixed_s: float
    """Seconds per wave, whatever it holds."""
    alltoall_bytes_per_token: float
    """Bytes one token moves over all layers, forward and backward."""
    bandwidths: tuple[DegreeBandwidth, ...]
    token_cap: int
    """Most tokens one rank holds in a wave."""
    step_fixed_s: float = 0.0
    """Seconds per step outside the waves: gradient sync and optimizer."""
    evidence: ProfileEvidence = "published"
    source: str = ""
    hidden: int = 0
    """Hidden size of the model it was measured for; 0: unknown."""
    num_layers: int = 0
    """Layers of the model it was measured for; 0: unknown."""
    ring: RingCosts | None = None
    """None: Ulysses is the only attention kind."""

    def __post_init__(self) -> None:
        checks.not_empty("profile.name", self.name)
        checks.whole_number("num_gpus", self.num_gpus)
        checks.whole_number("gpus_per_node", self.gpus_per_node)
        checks.not_negative("quadratic_ms", self.quadratic_s)
        checks.positive("linear_ms", self.linear_s)
        checks.not_negative("fixed_ms", self.fixed_s)
        checks.not_negative("step_fixed_ms", self.step_fixed_s)
        checks.not_negative("alltoall_mb_per_token", self.alltoall_bytes_per_token)
        checks.whole_number("token_cap", self.token_cap)
        checks.whole_number("hidden", self.hidden, at_least=0)
        checks.whole_number("num_layers", self.num_layers, at_least=0)
        checks.one_of("evidence", self.evidence, PROFILE_EVIDENCE)
        _check_ascending("v_gb_per_s", self.bandwidths)

    @property
    def options(self) -> tuple[GroupOption, ...]:
        """Every available degree and kind, ascending by degree, a group of one first."""
        ring = self.ring.bandwidths if self.ring else ()
        options = [
            *(GroupOption(degree=entry.degree) for entry in self.bandwidths),
            *(GroupOption(degree=entry.degree, attention="ring") for entry in ring),
        ]
        return (GroupOption(degree=1), *sorted(options, key=lambda option: option.degree))

    @property
    def degrees(self) -> tuple[int, ...]:
        """Every available degree, ascending, 1 included."""
        return tuple(dict.fromkeys(option.degree for option in self.options))

    def exchange(self, degree: int, attention: AttentionKind = "ulysses") -> DegreeBandwidth:
        """What a rank of a group of `degree` >= 2 sends over.

        Raises:
            InfeasibleError: The profile has no such degree of this kind.
        """
        entries = self.bandwidths
        if attention == "ring":
            entries = self.ring.bandwidths if self.ring else ()
        for entry in entries:
            if entry.degree == degree:
                return entry
        known = [1, *(entry.degree for entry in entries)]
        raise InfeasibleError(
            f"degree {degree} is not in the profile {self.name!r}; for {attention} it has "
            f"{known}"
        )

    def bytes_per_s(self, degree: int, attention: AttentionKind = "ulysses") -> float:
        """Bandwidth of one rank at `degree`; infinite for a group of one."""
        if degree == 1:
            return float("inf")
        return self.exchange(degree, attention).bytes_per_s

    def for_heads(self, num_heads: int) -> "StepProfile":
        """Without the Ulysses degrees that do not divide `num_heads`; a ring takes any."""
        dividing = tuple(e for e in self.bandwidths if num_heads % e.degree == 0)
        return replace(self, bandwidths=dividing)


def _check_ascending(field: str, bandwidths: Sequence[DegreeBandwidth]) -> None:
    degrees = [entry.degree for entry in bandwidths]
    if sorted(set(degrees)) != degrees:
        raise InputError(f"{field}: expected each degree once, ascending, got {degrees}")
