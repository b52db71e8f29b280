"""Memory against Korthikanti et al. (2022), arXiv:2205.05198, and the models' papers.

Formulas of the paper's table 2 hold exactly; parameter counts within 2 % of the rounded ones.
"""

import pytest

from trimtab.core.model import ModelSpec
from trimtab.core.plan import Recompute
from trimtab.planners.memory import layer_activation_bytes

TABLE_3 = [
    ("22B", 48, 6144, 64, 8, 4, 22),
    ("175B", 96, 12288, 96, 8, 1, 175),
    ("530B", 105, 20480, 128, 8, 1, 530),
    ("1T", 128, 25600, 160, 8, 1, 1000),
]
"""Name, layers, hidden, heads, tp, micro-batch, billions of parameters; s = 2048, v = 51200."""


def gpt(num_layers: int, hidden: int, num_heads: int) -> ModelSpec:
    return ModelSpec(
        name="gpt",
        num_layers=num_layers,
        hidden=hidden,
        ffn_hidden=4 * hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden // num_heads,
        vocab=51_200,
        max_seq_tokens=2048,
        positions="learned",
        tied_embeddings=True,
        biases=True,
    )


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "tp", "micro_batch", "billions"), TABLE_3
)
def test_parameter_counts_are_within_two_percent(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    tp: int,
    micro_batch: int,
    billions: float,
) -> None:
    assert gpt(layers, hidden, heads).num_parameters == pytest.approx(billions * 1e9, rel=0.02)


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "tp", "micro_batch", "billions"), TABLE_3
)
@pytest.mark.parametrize(
    ("recompute", "sequence_parallel"),
    [
        ("none", False),
        ("none", True),
        ("selective", False),
        ("selective", True),
        ("full", False),
    ],
)
def test_activations_of_a_layer_follow_table_2(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    tp: int,
    micro_batch: int,
    billions: float,
    recompute: Recompute,
    sequence_parallel: bool,
) -> None:
    s = 2048
    sbh = s * micro_batch * hidden
    scores = 5 * heads * s / hidden
    expected = {
        ("none", False): sbh * (10 + 24 / tp + scores / tp),
        ("none", True): sbh / tp * (34 + scores),
        ("selective", False): sbh * (10 + 24 / tp),
        ("selective", True): sbh / tp * 34,
        ("full", False): sbh * 2,
    }
    found = layer_activation_bytes(
        gpt(layers, hidden, heads),
        tokens=s * micro_batch,
        squares=s * s * micro_batch,
        tp=tp,
        recompute=recompute,
        sequence_parallel=sequence_parallel,
    )
    assert found == pytest.approx(expected[recompute, sequence_parallel], rel=1e-12)


def test_the_score_terms_of_gpt3_and_mt_nlg_come_out() -> None:
    """Section 5 of the paper: 5 a s / h is 80 for GPT-3 and 64 for MT-NLG, against 34."""
    for (layers, hidden, heads), expected in [((96, 12288, 96), 80), ((105, 20480, 128), 64)]:
        model = gpt(layers, hidden, heads)
        none, selective = (
            layer_activation_bytes(
                model,
                tokens=2048,
                squares=2048**2,
                tp=1,
                recompute=recompute,
                sequence_parallel=False,
            )
            for recompute in ("none", "selective")
        )
        assert (none - selective) / (2048 * hidden) == pytest.approx(expected)


def test_flexsp_activation_bytes_of_7b_are_within_six_percent() -> None:
    """FlexSP (arXiv:2412.01523) measured 4.48 MiB a token for GPT 7B with fused attention."""
    per_layer = layer_activation_bytes(
        gpt(32, 4096, 32),
        tokens=1.0,
        squares=0.0,
        tp=1,
        recompute="none",
        sequence_parallel=False,
    )
    assert 32 * per_layer == pytest.approx(4.48 * 2**20, rel=0.06)
