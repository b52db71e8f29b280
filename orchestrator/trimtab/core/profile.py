"""What a sequence group costs on given GPUs: the few coefficients a step plan rests on."""

from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InfeasibleError, InputError

ProfileEvidence = Literal["published", "measured", "analytic"]
PROFILE_EVIDENCE: tuple[str, ...] = get_args(ProfileEvidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreeBandwidth:
    """All-to-all bandwidth of one rank in a group of `degree` ranks."""

    degree: int
    bytes_per_s: float

    def __post_init__(self) -> None:
        checks.whole_number("v_gb_per_s degree", self.degree, at_least=2)
        checks.positive(f"v_gb_per_s[{self.degree}]", self.bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Coefficients of a group's time and memory; lengths `s` are in tokens.

        time(group of degree d) = fixed_s + sum_s (quadratic_s s^2 + linear_s s) / d
                                          + sum_s alltoall_bytes_per_token s / (d v_d)
        tokens(group) <= d * token_cap

    The all-to-all term is zero for d = 1. A degree that is neither 1 nor in `bandwidths` is not
    available.

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
        degrees = [entry.degree for entry in self.bandwidths]
        if sorted(set(degrees)) != degrees:
            raise InputError(f"v_gb_per_s: expected each degree once, ascending, got {degrees}")

    @property
    def degrees(self) -> tuple[int, ...]:
        """Every available degree, ascending, 1 included."""
        return (1, *(entry.degree for entry in self.bandwidths))

    def bytes_per_s(self, degree: int) -> float:
        """All-to-all bandwidth of one rank at `degree`; infinite for a group of one."""
        if degree == 1:
            return float("inf")
        for entry in self.bandwidths:
            if entry.degree == degree:
                return entry.bytes_per_s
        raise InfeasibleError(
            f"degree {degree} is not in the profile {self.name!r}; it has {list(self.degrees)}"
        )
