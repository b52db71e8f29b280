"""Layers of the stages of a pipeline by the speed of each, and Holmes's rule beside it."""

import math
from collections.abc import Sequence

from trimtab.core.errors import InfeasibleError, InputError


def holmes_layers(
    speeds: Sequence[float], num_layers: int, *, alpha: float = 1.0
) -> tuple[int, ...]:
    """Holmes's self-adapting partition, a baseline: in proportion to speed, the rest last.

        N_i = floor(alpha * S_i / sum(S) * N) for every stage but the last

    It knows neither the output matrix nor memory.

    Args:
        speeds: Of every stage, in whatever unit.
        num_layers: Of the model.
        alpha: Holmes's correction.

    Raises:
        InputError: A stage would be left without a layer.

    Source: arXiv:2312.03549, section on the self-adapting pipeline partition. With the
    measured 197 and 160 TFLOP/s it gives both released layouts.

    >>> holmes_layers((197, 160), 48), holmes_layers((197, 160), 30)
    ((26, 22), (16, 14))
    """
    total = math.fsum(speeds)
    first = [math.floor(alpha * speed / total * num_layers) for speed in speeds[:-1]]
    layers = (*first, num_layers - sum(first))
    if min(layers) < 1:
        raise InputError(
            f"layout.pp: Holmes's rule gives the layers {list(layers)} to stages of speeds "
            f"{list(speeds)}; use fewer stages"
        )
    return layers


def balanced_layers(
    layer_s: Sequence[float],
    extra_s: Sequence[float],
    *,
    num_layers: int,
    most: Sequence[int],
) -> tuple[int, ...]:
    """Whole layers such that the slowest stage is as fast as can be.

    Exact: a stage that may take T has room for floor((T - extra) / layer) layers, and the
    least T at which all layers have room is among the times of whole numbers of layers.

    Args:
        layer_s: Of one layer, by stage.
        extra_s: Of what a stage has besides: the output matrix of the last one.
        num_layers: Of the model.
        most: Layers that a stage's memory has room for, at least 1.

    Raises:
        InfeasibleError: The stages together have no room for all layers.
    """
    stages = range(len(layer_s))
    if sum(most) < num_layers or min(most) < 1 or len(layer_s) > num_layers:
        raise InfeasibleError(
            f"memory: {len(layer_s)} stages have room for {sum(most)} of {num_layers} layers, "
            f"by stage {list(most)}; use more stages, GPUs or recompute"
        )
    layers = [1] * len(layer_s)
    for _ in range(num_layers - len(layer_s)):
        chosen = min(
            (stage for stage in stages if layers[stage] < most[stage]),
            key=lambda stage: (extra_s[stage] + (layers[stage] + 1) * layer_s[stage], stage),
        )
        layers[chosen] += 1
    return tuple(layers)
