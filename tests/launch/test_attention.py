"""The attention core in one process, against attention written out in full."""

import pytest
import torch

from trimtab.launch.runtime.attention import attend_documents, rotary_tables, rotate


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    """Softmax attention with a mask: causal, and within a document."""
    heads, kv_heads, size = query.size(1), key.size(1), query.size(2)
    key = key.repeat_interleave(heads // kv_heads, dim=1)
    value = value.repeat_interleave(heads // kv_heads, dim=1)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    allowed = (document[:, None] == document) & (place[:, None] >= place)
    scores = torch.einsum("qhd,khd->hqk", query, key) / size**0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_documents_attend_to_themselves_and_not_ahead(kv_heads: int) -> None:
    torch.manual_seed(3)
    lengths = (5, 1, 9)
    query = torch.randn(15, 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, 15, kv_heads, 8, dtype=torch.float64)
    found = attend_documents(query, key, value, lengths)
    torch.testing.assert_close(found, written_out(query, key, value, lengths))


def test_padding_comes_out_as_zero_and_changes_nothing() -> None:
    torch.manual_seed(4)
    query, key, value = torch.randn(3, 10, 2, 4)
    found = attend_documents(query, key, value, (3, 4))
    assert torch.count_nonzero(found[7:]) == 0
    exact = attend_documents(query[:7], key[:7], value[:7], (3, 4))
    torch.testing.assert_close(found[:7], exact)


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(5)
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        tables = rotary_tables(
            torch.tensor([query_position, key_position]), head_dim=8, theta=10_000.0
        )
        cos, sin = (table.double() for table in tables)
        turned_query = rotate(query, cos[:1], sin[:1])
        turned_key = rotate(key, cos[1:], sin[1:])
        return (turned_query * turned_key).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), rtol=1e-5, atol=1e-6)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_position_zero_is_not_turned() -> None:
    x = torch.randn(1, 2, 8)
    cos, sin = rotary_tables(torch.tensor([0]), head_dim=8, theta=10_000.0)
    torch.testing.assert_close(rotate(x, cos, sin), x)
