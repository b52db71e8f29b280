"""Run by test_huggingface.py, each way in a process of its own: transformers' side or ours.

Apart because megatron-core's shim for CPUs changes torch for the whole process.
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.core.job import TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, SequenceGroup

TEXT = b'"""Reads a caf\xc3\xa9 twice."""\n\nimport io\n\n\ndef twice(x):\n    return x * 2\n'
IDS = np.array([256, *TEXT, 257], dtype=np.int64)

MODEL = ModelSpec(
    name="tiny",
    num_layers=2,
    hidden=32,
    ffn_hidden=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab=259,
    max_seq_tokens=128,
    gated_mlp=True,
    norm="rmsnorm",
    norm_eps=1e-6,
    rope_theta=500_000.0,
)

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {"tied_embeddings": True}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, {"biases": True}),
    "qwen2": ("Qwen2", {}, {"qkv_biases": True}),
    "mistral": ("Mistral", {"sliding_window": None}, {}),
}
"""Name of the case: transformers' classes, fields of their configuration, fields of ours."""


def ours_of(case: str) -> ModelSpec:
    """The case's model in our words."""
    return dataclasses.replace(MODEL, **CASES[case][2])


def make(folder: Path) -> dict[str, Any]:
    """Make a checkpoint of each case with transformers; tell its loss on the text."""
    losses = {}
    for case in CASES:
        module = _their_model(case)
        module.save_pretrained(folder / case)
        losses[case] = _their_loss(module)
        np.save(folder / f"{case}.npy", _logits(module))
        if case == "llama":
            module.save_pretrained(folder / "shards", max_shard_size="10KB")
    return losses


def read(folder: Path) -> dict[str, Any]:
    """Load every exported folder with transformers; tell how far its logits are off."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    off = {}
    for exported in sorted(folder.glob("*-exported*")):
        module = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager")
        theirs = np.load(folder / f"{exported.name.split('-')[0]}.npy")
        off[exported.name] = float(np.abs(_logits(module.eval()) - theirs).max())
        assert module.config.eos_token_id == 257
        tokenizer = AutoTokenizer.from_pretrained(exported)
        assert tokenizer(TEXT.decode()).input_ids == IDS[:-1].tolist()
        assert tokenizer.decode(IDS, skip_special_tokens=True) == TEXT.decode()
    return off


def run(folder: Path) -> dict[str, Any]:
    """Load every case into our engine, tell its loss before and after, and export it."""
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1
    )
    from trimtab.launch.runtime import huggingface

    losses = {}
    for case in CASES:
        model = ours_of(case)
        engine = _engine(model)
        before = _our_loss(engine)
        huggingface.load_hugging_face(folder / case, engine.ddp, model)
        losses[case] = [before, _our_loss(engine)]
        exported = folder / f"{case}-exported"
        huggingface.export_hugging_face(engine.module, model, exported, tokenizer="byte")
    huggingface._SHARD_BYTES = 30_000
    exported = folder / f"{case}-exported-in-shards"
    huggingface.export_hugging_face(engine.ddp, model, exported, tokenizer="byte")
    torch.distributed.destroy_process_group()
    return losses


class _OneText:
    def ids(self, _index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return IDS


def _their_model(case: str) -> Any:
    import transformers

    name, changes, _ = CASES[case]
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 259,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    config = getattr(transformers, f"{name}Config")(**(fields | changes))
    torch.manual_seed(7)
    module = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():  # biases and norms start as constants, which would hide a mix-up
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@torch.no_grad()
def _their_loss(module: Any) -> float:
    ids = torch.from_numpy(IDS)[None]
    return float(module(input_ids=ids, labels=ids).loss)


@torch.no_grad()
def _logits(module: Any) -> np.ndarray[Any, Any]:
    answer: np.ndarray[Any, Any] = module(input_ids=torch.from_numpy(IDS)[None]).logits.numpy()
    return answer


def _engine(model: ModelSpec) -> Any:
    from trimtab.launch.runtime.clock import StepClock
    from trimtab.launch.runtime.engine_megatron import MegatronEngine

    training = TrainingSpec(num_steps=2, global_batch_seqs=1, precision="fp32")
    return MegatronEngine(model, Layout(), training=training, clock=StepClock())


@torch.no_grad()
def _our_loss(engine: Any) -> float:
    from trimtab.launch.runtime.packing import pack_share

    group = SequenceGroup(ranks=(0,), sequences=(0,))
    texts: Any = _OneText()
    share = pack_share(group, None, rank=0, sequences=texts, batch=np.zeros(1, dtype=np.int64))
    return float(engine.loss_sum(share)) / (len(IDS) - 1)


if __name__ == "__main__":
    answer = {"make": make, "read": read, "run": run}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(answer))
