"""Unit constants, and quantities as people read them.

Inside Trimtab everything is seconds, bytes, tokens and FLOPs. GB is 1e9 bytes (links, traffic),
GiB is 2**30 (memory).
"""

from typing import Final

MB: Final = 1_000_000
GB: Final = 1_000_000_000
GIB: Final = 2**30
GBIT: Final = 125_000_000
"""Bytes in a gigabit."""
TFLOP: Final = 1_000_000_000_000
MS: Final = 1e-3
US: Final = 1e-6


def duration_text(seconds: float) -> str:
    """A duration in the unit that suits it: `850 us`, `12.3 ms`, `3 min 20 s`, `2.5 h`."""
    if seconds < MS:
        return f"{seconds / US:.0f} us"
    if seconds < 1:
        return f"{seconds / MS:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3_600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds < 48 * 3_600:
        return f"{seconds / 3_600:.1f} h"
    return f"{seconds / 86_400:.1f} d"


def memory_text(num_bytes: float) -> str:
    """Memory in binary units: `512 B`, `3.2 MiB`, `79.6 GiB`."""
    name, size = memory_unit(num_bytes)
    return f"{num_bytes:.0f} B" if size == 1 else f"{num_bytes / size:.1f} {name}"


def memory_unit(num_bytes: float) -> tuple[str, int]:
    """The largest binary unit in which `num_bytes` is at least one, and its bytes."""
    for name, size in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(num_bytes) >= size:
            return name, size
    return "B", 1


def counted(number: int, noun: str) -> str:
    """A number of things: `1 wave`, `2 waves`."""
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}" + ("" if number == 1 else plural)


def count_text(count: float) -> str:
    """A count in short scale: `950`, `12.5 k`, `7.0 B`."""
    for name, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:.3g}"


def flop_rate_text(flop_per_s: float) -> str:
    """A compute rate: `312 TFLOP/s`, `45.1 GFLOP/s`."""
    if flop_per_s >= TFLOP:
        return f"{flop_per_s / TFLOP:.3g} TFLOP/s"
    return f"{flop_per_s / 1e9:.3g} GFLOP/s"
