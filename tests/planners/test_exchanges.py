from collections.abc import Callable
from dataclasses import replace

import pytest

from trimtab.core.cluster import ClusterSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.planners.costs import analytic_profile, memory_token_cap
from trimtab.planners.exchanges import (
    alltoall_bytes_per_token,
    ring_buffer_bytes,
    ring_costs,
    ulysses_bandwidths,
    useful_degrees,
)
from trimtab.planners.placement import machine

GptMaker = Callable[..., ModelSpec]
ClusterMaker = Callable[..., ClusterSpec]


@pytest.mark.parametrize(
    ("num_ranks", "degrees"),
    [(1, (1,)), (3, (1, 2, 3)), (6, (1, 2, 3, 4, 6)), (11, (1, 2, 3, 4, 6, 8, 11))],
)
def test_useful_degrees_grow_by_at_most_a_half_and_take_all_ranks(
    num_ranks: int, degrees: tuple[int, ...]
) -> None:
    assert useful_degrees(num_ranks) == degrees


@pytest.fixture
def grouped(gpt: GptMaker) -> ModelSpec:
    """Two layers, twelve heads of eight, four key-value heads."""
    return replace(gpt(num_layers=2, hidden=96, num_heads=12), num_kv_heads=4)


def test_key_value_heads_are_copied_where_a_degree_does_not_divide_them(
    grouped: ModelSpec,
) -> None:
    """Twelve query and four key-value heads of eight, twice: 3 copies make 12 of the 4."""
    plain = alltoall_bytes_per_token(grouped, Layout(dp=12), precision="bf16")
    assert plain == 2 * 2 * 2 * (12 + 4) * 16
    copied = alltoall_bytes_per_token(grouped, Layout(dp=12), precision="bf16", degree=6)
    assert copied == 2 * 2 * 2 * (12 + 12) * 16


def test_what_copies_add_is_taken_off_the_bandwidth(
    grouped: ModelSpec, gpt: GptMaker, a100s: ClusterMaker
) -> None:
    used = machine(a100s(), 8, precision="bf16")
    many = replace(grouped, num_kv_heads=12)
    few, all_heads = (
        {
            each.degree: each.bytes_per_s
            for each in ulysses_bandwidths(model, Layout(dp=8), used, precision="bf16")
        }
        for model in (grouped, many)
    )
    assert list(few) == [2, 3, 4, 6]
    assert few[4] == all_heads[4]
    assert few[6] == pytest.approx(all_heads[6] * 16 / 24)


def test_a_ring_moves_keys_and_values_twice_and_their_gradients_once(
    grouped: ModelSpec, a100s: ClusterMaker
) -> None:
    """Over two ranks: one hop forward, one backward, and the gradients two hops in fp32."""
    used = machine(a100s(), 8, precision="bf16")
    ring = ring_costs(grouped, Layout(dp=8), used, precision="bf16", quadratic_s=1.0)
    assert ring is not None
    kv = 2 * 4 * 8
    assert ring.bytes_per_token == 2 * kv * (2 + 2 + 4)
    assert [entry.degree for entry in ring.bandwidths] == [2, 3, 4, 6, 8]
    two = ring.bandwidths[0]
    sent_s = 2 * kv * (2 + 2 + 2 * 4) / (0.7 * 300e9)
    assert ring.bytes_per_token / two.bytes_per_s == pytest.approx(sent_s)
    assert two.latency_s == pytest.approx(2 * (2 + 2) * 3e-6)


def test_a_ring_across_nodes_goes_at_the_pace_of_one_nic(
    grouped: ModelSpec, a100s: ClusterMaker
) -> None:
    used = machine(a100s(num_nodes=2), 16, precision="bf16")
    ring = ring_costs(grouped, Layout(dp=16), used, precision="bf16", quadratic_s=1.0)
    assert ring is not None
    rate = {entry.degree: entry.bytes_per_s for entry in ring.bandwidths}
    assert rate[16] / rate[8] == pytest.approx(25 / 300, rel=0.05)


def test_one_rank_makes_no_ring(grouped: ModelSpec, a100s: ClusterMaker) -> None:
    used = machine(a100s(), 1, precision="bf16")
    assert ring_costs(grouped, Layout(), used, precision="bf16", quadratic_s=1.0) is None


def test_the_blocks_of_a_ring_take_their_part_of_the_token_cap(
    grouped: ModelSpec, a100s: ClusterMaker
) -> None:
    layout = Layout(dp=8)
    assert ring_buffer_bytes(grouped, layout, precision="bf16") == 2 * (2 + 4) * 2 * 4 * 8
    used = machine(a100s(), 8, precision="bf16")
    cap = memory_token_cap(grouped, layout, used, precision="bf16")
    profile = analytic_profile(grouped, a100s(), layout, precision="bf16")
    assert 0.9 * cap < profile.token_cap < cap
