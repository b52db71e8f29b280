"""Slurm's short form of many names: `n[1-3,07],login`, `rack[1-2]n[01-16]`.

`scontrol show hostnames` expands one list a call; a queue holds hundreds. The packages for it
have licences of another kind than ours (python-hostlist: GPL, ClusterShell: LGPL).
"""

import itertools
import re
from collections.abc import Iterator
from typing import Final

from trimtab.core.errors import InputError, shown

_PARTS: Final = re.compile(r"[^,\[\]\s]*(?:\[[^\[\]]*\][^,\[\]\s]*)*")
_BRACKETS: Final = re.compile(r"\[([^\[\]]*)\]")
_RANGE: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_MOST_NAMES: Final = 1_000_000


def expanded(text: str) -> tuple[str, ...]:
    """The names of a host list in its own order; nothing of an empty list.

    >>> expanded("n[1-2,08-09],login")
    ('n1', 'n2', 'n08', 'n09', 'login')

    Raises:
        InputError: It is no host list.
    """
    names: list[str] = []
    position = 0
    while position < len(text):
        match = _PARTS.match(text, position)
        end = position if match is None else match.end()
        if match is None or end == position or (end < len(text) and text[end] != ","):
            raise _error(text)
        names.extend(_names(match[0], text))
        position = end + 1
    if text.endswith(",") or len(names) > _MOST_NAMES:
        raise _error(text)
    return tuple(names)


def _names(part: str, text: str) -> Iterator[str]:
    """The names of one entry: every way through its brackets, the last one fastest."""
    pieces = _BRACKETS.split(part)
    choices = [
        [piece] if index % 2 == 0 else _numbers(piece, text)
        for index, piece in enumerate(pieces)
    ]
    return ("".join(way) for way in itertools.product(*choices))


def _numbers(inside: str, text: str) -> list[str]:
    numbers: list[str] = []
    for piece in inside.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise _error(text)
        first, last = match[1], match[2] or match[1]
        if not 0 <= int(last) - int(first) < _MOST_NAMES:
            raise _error(text)
        # Slurm keeps the leading zeros of the first number.
        numbers.extend(
            f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)
        )
    return numbers


def _error(text: str) -> InputError:
    return InputError(f"host list: expected a form like n[1-3],login, got {shown(text)}")
