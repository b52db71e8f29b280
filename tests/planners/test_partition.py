"""Layers by the speed of stages."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.planners.islands.partition import balanced_layers, holmes_layers


def test_holmes_gives_the_last_stage_the_rest() -> None:
    assert holmes_layers((1.0, 1.0, 1.0), 10) == (3, 3, 4)
    assert holmes_layers((3.0, 1.0), 8) == (6, 2)
    assert holmes_layers((197, 160), 48, alpha=0.95) == (25, 23)


def test_holmes_leaves_no_stage_empty() -> None:
    with pytest.raises(InputError, match=r"gives the layers \[0, 4\]"):
        holmes_layers((0.1, 1.0), 4)


def test_a_stage_with_the_output_matrix_has_fewer_layers() -> None:
    assert balanced_layers((1.0, 1.0), (0.0, 2.0), num_layers=10, most=(10, 10)) == (6, 4)


def test_memory_limits_a_fast_stage() -> None:
    assert balanced_layers((1.0, 9.0), (0.0, 0.0), num_layers=10, most=(7, 10)) == (7, 3)


def test_layers_without_room_are_refused() -> None:
    with pytest.raises(
        InfeasibleError, match=r"have room for 7 of 8 layers, by stage \[4, 3\]"
    ):
        balanced_layers((1.0, 1.0), (0.0, 0.0), num_layers=8, most=(4, 3))
    with pytest.raises(InfeasibleError, match="3 stages have room"):
        balanced_layers((1.0,) * 3, (0.0,) * 3, num_layers=2, most=(2, 2, 2))


@settings(max_examples=60, deadline=None)
@given(
    layer_s=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=3),
    head_s=st.floats(0.0, 5.0),
    num_layers=st.integers(3, 9),
)
def test_the_slowest_stage_is_as_fast_as_can_be(
    layer_s: list[float], head_s: float, num_layers: int
) -> None:
    extra = [0.0] * (len(layer_s) - 1) + [head_s]

    def slowest(layers: tuple[int, ...]) -> float:
        return max(
            n * each + more for n, each, more in zip(layers, layer_s, extra, strict=True)
        )

    found = balanced_layers(
        layer_s, extra, num_layers=num_layers, most=[num_layers] * len(layer_s)
    )
    every = itertools.product(range(1, num_layers + 1), repeat=len(layer_s))
    best = min(slowest(layers) for layers in every if sum(layers) == num_layers)
    assert slowest(found) == pytest.approx(best)
