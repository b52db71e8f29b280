import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trimtab.launch.runtime.block_attention import attend_block, block_gradients, merge_block
from trimtab.launch.runtime.ring_attention import zigzag


def test_a_rank_holds_a_chunk_from_each_end_of_a_document() -> None:
    cut = zigzag((12,), degree=3, place=1)
    assert cut.chunks == ((2, 2, 2, 2, 2, 2),)
    assert list(cut.pieces()) == [(0, 2, 4), (0, 8, 10)]


def test_what_does_not_divide_goes_to_the_ranks_in_turn() -> None:
    cut = zigzag((5, 6, 1), degree=2, place=0)
    assert cut.chunks == ((2, 1, 1, 1), (2, 2, 1, 1), (0, 1, 0, 0))
    assert [cut.num_tokens(rank) for rank in (0, 1)] == [6, 6]


@pytest.mark.parametrize("degree", [2, 3, 4, 6])
@pytest.mark.parametrize(
    "lengths", [(1,), (7, 1, 1, 1, 19), (64,) * 5, (1,) * 11, (100, 3, 41)]
)
def test_no_rank_holds_more_than_its_even_share(degree: int, lengths: tuple[int, ...]) -> None:
    cuts = [zigzag(lengths, degree=degree, place=place) for place in range(degree)]
    tokens = [sum(end - begin for _, begin, end in cut.pieces()) for cut in cuts]
    assert sum(tokens) == sum(lengths)
    assert max(tokens) == -(-sum(lengths) // degree)
    places = [(d, at) for cut in cuts for d, b, e in cut.pieces() for at in range(b, e)]
    assert sorted(places) == [(d, at) for d, s in enumerate(lengths) for at in range(s)]


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_merged_blocks_are_attention_to_all_of_them(kv_heads: int) -> None:
    torch.manual_seed(2)
    query, grad = torch.randn(2, 9, 6, 8)
    key, value = torch.randn(2, 14, kv_heads, 8)
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    spread = [x.repeat_interleave(6 // kv_heads, dim=1) for x in inputs[1:]]
    scores = torch.einsum("qhd,khd->hqk", inputs[0], spread[0]) / 8**0.5
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), spread[1])
    expected.backward(grad)

    out, lse = attend_block(query, key[:5], value[:5], causal=False)
    out, lse = out.contiguous(), lse.contiguous()
    other, other_lse = attend_block(query, key[5:], value[5:], causal=False)
    merge_block(out, lse, with_sHD=other, lse=other_lse)
    torch.testing.assert_close(out, expected.detach())
    parts = [
        block_gradients(
            grad, query, key[each], value[each], out_sHD=out, lse_sH=lse, causal=False
        )
        for each in (slice(5), slice(5, None))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], inputs[0].grad)
    for at in (1, 2):
        torch.testing.assert_close(torch.cat([part[at] for part in parts]), inputs[at].grad)


@pytest.mark.workers
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_ring_attends_as_one_process_does(num_ranks: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("ring_process.py"))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", script, str(num_ranks), str(port)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    errors = json.loads(ended.stdout)
    assert len(errors) == 5
    assert max(errors.values()) < 1e-5
