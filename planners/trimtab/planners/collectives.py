"""Times of collective operations on one kind of link, by the latency-bandwidth model.

Every time is of one operation with nothing else on the link. Sizes are in bytes per rank.

Source: Thakur, Rabenseifner & Gropp (2005), "Optimization of collective communication
operations in MPICH": ring algorithms; the pairwise exchange for all-to-all.
"""

from trimtab.core.cluster import Link


def all_gather_s(num_bytes: float, num_ranks: int, *, link: Link) -> float:
    """Ring all-gather: `num_ranks - 1` hops of a `num_ranks`-th.

    Args:
        num_bytes: What each rank ends with.
        num_ranks: Ring size, >= 1.
        link: Slowest link of the ring.
    """
    return (num_ranks - 1) * send_s(num_bytes / num_ranks, link=link)


def reduce_scatter_s(num_bytes: float, num_ranks: int, *, link: Link) -> float:
    """Ring reduce-scatter of `num_bytes` that each rank starts with; as an all-gather."""
    return all_gather_s(num_bytes, num_ranks, link=link)


def all_reduce_s(num_bytes: float, num_ranks: int, *, link: Link) -> float:
    """Ring all-reduce: a reduce-scatter, then an all-gather."""
    return 2 * all_gather_s(num_bytes, num_ranks, link=link)


def all_to_all_s(num_bytes: float, num_ranks: int, *, link: Link) -> float:
    """Pairwise exchange: each rank sends a `num_ranks`-th of its bytes to every other."""
    return (num_ranks - 1) * send_s(num_bytes / num_ranks, link=link)


def send_s(num_bytes: float, *, link: Link) -> float:
    """One message from one rank to another."""
    return link.latency_s + num_bytes / link.bytes_per_s
