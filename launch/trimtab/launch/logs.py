"""Where ranks write, and reading the ends of logs of any size and content."""

import codecs
import os
from pathlib import Path
from typing import Final

_LAST_WORDS_LINES: Final = 12
_LAST_WORDS_CHARS: Final = 2_000
_TAIL_BYTES: Final = 64 * 1024
_SECRET_NAMES: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SHORTEST_SECRET: Final = 8
"""A shorter value (`1`, `true`) would blot out innocent text."""


def rank_log(run_dir: Path, rank: int) -> Path:
    """Where a rank's output goes: `logs/rank-0003.log`."""
    return run_dir / "logs" / f"rank-{rank:04d}.log"


def attempt_line(attempt: int) -> str:
    """How the part of a rank's log that belongs to an attempt begins."""
    return f"--- attempt {attempt}:"


class LogTail:
    """What is new in a log since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = path.stat().st_size if path.exists() else 0

    def read_new(self) -> str:
        """At most `_TAIL_BYTES` of new text; empty where there is none."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_TAIL_BYTES)
        except OSError:
            return ""
        self._offset += len(data)
        return self._decoder.decode(data)  # a character cut in two is kept for the next look


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
