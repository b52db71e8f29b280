"""Shapes of public models, for tables that name a model and give no shape.

Sources: the models' own `config.json` and reports. Those marked `approximate` are no plain
transformers; theirs is one with as many parameters and as many of them active.
"""

import dataclasses
import re
from typing import Final

from trimtab.core.model import ModelSpec, MoeSpec


def _model(
    name: str, *, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int,
    head_dim: int = 128, experts: int = 0, active: int = 0, gated: bool = True,
    source: str = "config.json",
) -> ModelSpec:  # fmt: skip
    moe = None
    if experts:
        moe = MoeSpec(num_experts=experts, experts_per_token=active, expert_ffn_hidden=ffn)
    return ModelSpec(
        name=name, num_layers=layers, hidden=hidden, ffn_hidden=ffn, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, vocab=vocab, max_seq_tokens=8192,
        gated_mlp=gated, norm="rmsnorm", moe=moe, source=source,
    )  # fmt: skip


_MODELS: Final = (
    _model(
        "grok-1", layers=64, hidden=6144, heads=48, kv_heads=8, ffn=32_768, vocab=131_072,
        experts=8, active=2, source="xai-org/grok-1 run.py",
    ),
    _model(
        "qwen3-30b-a3b", layers=48, hidden=2048, heads=32, kv_heads=4, ffn=768,
        vocab=151_936, experts=128, active=8,
    ),
    _model(
        "qwen3-235b-a22b", layers=94, hidden=4096, heads=64, kv_heads=4, ffn=1536,
        vocab=151_936, experts=128, active=8,
    ),
    _model(
        "qwen3-next-80b-a3b", layers=48, hidden=2048, heads=16, kv_heads=2, head_dim=256,
        ffn=512, vocab=151_936, experts=512, active=11,
        source="approximate: three layers of four have linear attention",
    ),
    _model(
        "deepseek-v3", layers=61, hidden=7168, heads=128, kv_heads=8, ffn=2048,
        vocab=129_280, experts=256, active=9,
        source="approximate: latent attention counted as grouped-query attention",
    ),
    _model(
        "kimi-k2", layers=61, hidden=7168, heads=64, kv_heads=8, ffn=2048, vocab=163_840,
        experts=384, active=9,
        source="approximate: latent attention counted as grouped-query attention",
    ),
    _model(
        "gpt-oss-120b", layers=36, hidden=2880, heads=64, kv_heads=8, head_dim=64, ffn=2880,
        vocab=201_088, experts=128, active=4,
    ),
    _model(
        "gpt-oss-20b", layers=24, hidden=2880, heads=64, kv_heads=8, head_dim=64, ffn=2880,
        vocab=201_088, experts=32, active=4,
    ),
    _model(
        "mixtral-8x7b", layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14_336,
        vocab=32_000, experts=8, active=2,
    ),
    _model(
        "mixtral-8x22b", layers=56, hidden=6144, heads=48, kv_heads=8, ffn=16_384,
        vocab=32_768, experts=8, active=2,
    ),
    _model(
        "llama4-maverick", layers=48, hidden=5120, heads=40, kv_heads=8, ffn=8192,
        vocab=202_048, experts=64, active=2,
        source="approximate: every second layer is dense; spread over all",
    ),
    _model(
        "nemotron-3-super", layers=48, hidden=4096, heads=32, kv_heads=2, ffn=3280,
        vocab=131_072, experts=91, active=8, gated=False,
        source="approximate: a hybrid of Mamba and attention, 120e9 parameters, 12e9 active",
    ),
    _model(
        "nemotron-3-nano", layers=40, hidden=2688, heads=32, kv_heads=2, ffn=1856,
        vocab=131_072, experts=70, active=5, gated=False,
        source="approximate: a hybrid of Mamba and attention, 31e9 parameters, 3.5e9 active",
    ),
    _model(
        "nemotron-3-5-lightning", layers=40, hidden=2688, heads=32, kv_heads=2, ffn=1856,
        vocab=131_072, experts=70, active=5, gated=False,
        source="approximate: taken for one like nemotron-3-nano",
    ),
)  # fmt: skip

_ASPECT: Final = 128
"""Hidden size per layer of GPT-like models (Kaplan et al. 2020, arXiv:2001.08361, figure 5)."""


def public_model(name: str) -> ModelSpec | None:
    """The model of this name, whatever its case and punctuation; None: it is not known.

    `...-proxy21L` is the model cut to 21 layers. A name that says a size and no more, `39B`, is
    a dense GPT of about that many parameters.
    """
    plain = _plain(name)
    found = next((m for m in _MODELS if plain.startswith(_plain(m.name))), None)
    if found is None:
        return _gpt_of_size(name)
    cut = re.search(r"proxy(\d+)l", plain)
    return dataclasses.replace(found, num_layers=int(cut.group(1))) if cut else found


def _gpt_of_size(name: str) -> ModelSpec | None:
    size = re.search(r"(\d+(?:\.\d+)?)b\b", name.casefold())
    if size is None or not 0.1 <= float(size.group(1)) <= 10_000:
        return None
    parameters = float(size.group(1)) * 1e9
    hidden = max(256, round((parameters * _ASPECT / 12) ** (1 / 3) / 256) * 256)
    return ModelSpec(
        name=name,
        num_layers=max(1, round(parameters / (12 * hidden**2))),
        hidden=hidden,
        ffn_hidden=4 * hidden,
        num_heads=hidden // 128,
        num_kv_heads=hidden // 128,
        head_dim=128,
        vocab=51_200,
        max_seq_tokens=8192,
        source="approximate: a dense GPT of this many parameters",
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
