"""Rate books: the one that comes with Trimtab, and those in files."""

import functools
from importlib import resources
from pathlib import Path

from trimtab.core import serde
from trimtab.core.errors import placed
from trimtab.core.rates import RateBook
from trimtab.orchestrator.file_text import read_text


@functools.cache
def shipped_book() -> RateBook:
    """What `trimtab calibrate` has fitted to the published measurements named in it."""
    data = resources.files("trimtab.orchestrator").joinpath("data", "rates.json")
    return serde.from_json(RateBook, data.read_text(encoding="utf-8"))


def load_book(path: Path) -> RateBook:
    """A book that `trimtab calibrate FILE.csv` has written.

    Raises:
        InputError: The file cannot be read, or is no rate book.
    """
    text = read_text(path)
    with placed(str(path)):
        return serde.from_json(RateBook, text)
