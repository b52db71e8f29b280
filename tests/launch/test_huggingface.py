"""Against transformers itself: the same text gives the same loss and the same logits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.launch.runtime.huggingface import (
    export_hugging_face,
    export_weights,
    load_hugging_face,
    named_parameters,
)
from trimtab.launch.runtime.weight_names import hugging_face_shapes, to_megatron

PROCESS = Path(__file__).with_name("llama_process.py")

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


def in_process(doing: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROCESS), doing, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Checkpoints made by transformers, and its loss on the text with each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, in_process("make", folder)


@pytest.fixture
def checkpoint(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the Llama one, to be changed at will."""
    return shutil.copytree(made[0] / "llama", tmp_path / "theirs")


@pytest.fixture
def sharded(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return shutil.copytree(made[0] / "shards", tmp_path / "shards")


@pytest.mark.workers
def test_loss_and_export_equal_those_of_transformers(
    made: tuple[Path, dict[str, Any]],
) -> None:
    folder, their_losses = made
    our_losses = in_process("run", folder)
    assert our_losses.keys() == {"llama", "tied", "biases", "mistral", "qwen2"}
    for case, (before, after) in our_losses.items():
        assert abs(before - their_losses[case]) > 1e-3
        assert after == pytest.approx(their_losses[case], abs=1e-4)

    assert len(list((folder / "mistral-exported-in-shards").glob("model-*-of-*"))) > 2
    assert in_process("read", folder) == dict.fromkeys(
        (*(f"{case}-exported" for case in our_losses), "mistral-exported-in-shards"), 0.0
    )


class Bare(torch.nn.Module):
    """The parameters of a `GPTModel` without the model."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        state = {name: torch.zeros(shape) for name, shape in hugging_face_shapes(spec).items()}
        self._state = {
            name: torch.nn.Parameter(tensor)
            for name, tensor in to_megatron(state, spec).items()
        }

    def named_parameters(self, *_args: Any, **_options: Any) -> Any:
        return iter(self._state.items())


def load_error(folder: Path, spec: ModelSpec = MODEL) -> str:
    with pytest.raises(InputError) as caught:
        load_hugging_face(folder, Bare(spec), spec)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("checkpoint.start_from: ")
    return message


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_sharded_checkpoint_loads_as_the_single_file_does(
    checkpoint: Path, sharded: Path
) -> None:
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    one, several = Bare(MODEL), Bare(MODEL)

    load_hugging_face(checkpoint, one, MODEL)
    load_hugging_face(sharded, several, MODEL)

    pairs = zip(one.named_parameters(), several.named_parameters(), strict=True)
    assert all(torch.equal(left, right) for (_, left), (_, right) in pairs)


def test_a_truncated_file_is_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is truncated or no safetensors file" in load_error(checkpoint)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.unlink()
    assert f"{shard} is missing" in load_error(sharded)


def test_an_index_cannot_name_files_outside_its_folder(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../elsewhere.safetensors', which is outside" in load_error(checkpoint)


def test_pickled_weights_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "has neither model.safetensors nor" in load_error(checkpoint)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'} is not a folder" in load_error(tmp_path / "nowhere")


def edit_weights(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(
    checkpoint: Path, tmp_path: Path
) -> None:
    folders = [shutil.copytree(checkpoint, tmp_path / name) for name in "abcd"]
    edit_weights(folders[0], lambda state: state.pop("model.norm.weight"))
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(folders[1], lambda state: state.update({bias: torch.zeros(32)}))
    edit_weights(folders[2], lambda state: state.update({"model.norm.weight": torch.ones(31)}))
    packed = torch.ones(32, dtype=torch.int8)
    edit_weights(folders[3], lambda state: state.update({"model.norm.weight": packed}))

    assert "1 tensors are missing, such as model.norm.weight" in load_error(folders[0])
    assert f"no place for, {bias}" in load_error(folders[1])
    assert "model.norm.weight is [31], the model's is [32]" in load_error(folders[2])
    assert "model.norm.weight is of type I8" in load_error(folders[3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "hidden_size = 64, but the job's model has 32"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps = 1e-05, but the job's model has 1e-06"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: expected the model before",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "rope_parameters: expected no scaling of rotary positions, got 'llama3'",
        ),
        ({"rope_parameters": {"rope_theta": 10_000.0}}, "rope_theta = 10000.0, but"),
        ({"model_type": "gpt2"}, "model_type 'gpt2'; expected one of llama, mistral, qwen2"),
        (
            {"model_type": "mistral", "sliding_window": 64},
            "sliding_window: expected null or at least 128, got 64",
        ),
    ],
)
def test_another_model_is_refused_by_the_field_that_differs(
    fields: dict[str, Any], message: str, checkpoint: Path
) -> None:
    change_config(checkpoint, **fields)
    assert message in load_error(checkpoint)


def test_a_window_that_holds_every_sequence_changes_nothing(checkpoint: Path) -> None:
    change_config(checkpoint, model_type="mistral", sliding_window=128)
    bare = Bare(MODEL)
    load_hugging_face(checkpoint, bare, MODEL)
    assert float(dict(bare.named_parameters())["output_layer.weight"].detach().abs().sum()) > 0


def test_an_export_never_overwrites_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="exists and is not empty"):
        export_hugging_face(Bare(MODEL), MODEL, tmp_path / "full", tokenizer="byte")
    broken = named_parameters(Bare(MODEL)) | {"output_layer.weight": None}
    with pytest.raises(AttributeError):
        export_weights(broken, MODEL, tmp_path / "half", tokenizer="byte")  # type: ignore[arg-type]

    export_hugging_face(Bare(MODEL), MODEL, tmp_path / "empty", tokenizer="byte")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
