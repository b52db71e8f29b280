"""Reading the ends of log files, of any size and content."""

import os
from pathlib import Path
from typing import Final

from trimtab.launch.local import attempt_line

_LAST_WORDS_LINES: Final = 12
_LAST_WORDS_CHARS: Final = 2_000
_TAIL_BYTES: Final = 64 * 1024
_SECRET_NAMES: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SHORTEST_SECRET: Final = 8
"""A shorter value (`1`, `true`) would blot out innocent text."""


def last_words(path: Path, *, attempt: int | None = None, start: int = 0) -> str:
    """The last lines of a log, secrets blotted out; empty where there are none.

    Args:
        path: The log.
        attempt: Only what was written since this attempt began.
        start: Only what follows this many bytes.
    """
    text = _tail_bytes(path, start=start).decode(errors="replace")
    if attempt is not None:
        _, found, since = text.rpartition(attempt_line(attempt))
        text = since.partition("\n")[2] if found else text
    lines = text.rstrip().splitlines()[-_LAST_WORDS_LINES:]
    return without_secrets("\n".join(lines))[-_LAST_WORDS_CHARS:]


def without_secrets(text: str) -> str:
    """`text` with the value of every secret-looking environment variable blotted out."""
    for name, value in os.environ.items():
        is_secret = any(part in name.upper() for part in _SECRET_NAMES)
        if is_secret and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def _tail_bytes(path: Path, *, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read()
    except OSError:
        return b""
