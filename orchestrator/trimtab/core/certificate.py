"""Why no step can be shorter than a bound: prices that anybody can multiply out.

`trimtab.planners.steps.bounds.certified_bound_s` states the argument and does the sum.
"""

from dataclasses import dataclass

from trimtab.core.profile import AttentionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveSplit:
    """One of two cases: at most so many waves take longer than a time, or at least so many."""

    longer_than_s: float
    """A wave's time without its fixed time."""
    at_most: int | None = None
    at_least: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPrice:
    """What a group of `degree` ranks and a kind pays for what it holds, in waves of a class."""

    wave_class: int
    degree: int
    token_s: float
    """Seconds a token."""
    work: float
    """Seconds a rank-second of work."""
    big_tokens_s: float
    """Seconds for a sequence of more than half the tokens that the group holds."""
    big_work_s: float
    """Seconds for a sequence of more than half the work that the longest wave of the class
    leaves the group time for."""
    attention: AttentionKind = "ulysses"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLeaf:
    """Prices for the plans that keep all of `splits`; left-out prices are zero."""

    splits: tuple[WaveSplit, ...]
    edges_s: tuple[float, ...]
    """Class k has the waves with `edges_s[k] < time <= edges_s[k + 1]`, fixed time left out."""
    wave_prices_s: tuple[float, ...]
    """Seconds that a wave longer than `edges_s[k]` is worth, for each k."""
    group_prices: tuple[GroupPrice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCertificate:
    """Leaves whose splits together leave out no plan that is shorter than a given one."""

    leaves: tuple[BoundLeaf, ...]
    shorter_than_s: float
    """The plans spoken of take less than this, without the fixed time of a step."""
    bucket_edges: tuple[int, ...]
    """The shortest length of each bucket that the prices were found with, longest first; they
    are used at the true lengths."""
