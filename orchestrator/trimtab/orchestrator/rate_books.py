"""Rate books: the one that comes with Trimtab, and those in files."""

import functools
from importlib import resources
from pathlib import Path

from trimtab.core import serde
from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import placed
from trimtab.core.rates import RateBook, StackRates
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


def stack_of(cluster: ClusterSpec, *, rates: RateBook | None = None) -> StackRates:
    """The rates of the cluster's slowest device under the engine that Trimtab drives."""
    slowest = min(
        (node.gpu for node in cluster.nodes),
        key=lambda gpu: max((peak.flop_per_s for peak in gpu.peaks), default=0.0),
    )
    return (rates or shipped_book()).find(slowest.name, engine="megatron-core")


def stacks_of(cluster: ClusterSpec, *, rates: RateBook | None = None) -> dict[str, StackRates]:
    """The rates of every kind of device of the cluster, by its name, under the same engine."""
    book = rates or shipped_book()
    return {name: book.find(name, engine="megatron-core") for name in cluster.gpu_names}
