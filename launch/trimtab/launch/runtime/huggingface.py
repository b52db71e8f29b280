"""Starts from a Hugging Face folder of Llama-type weights, and writes one.

Llama, Mistral and Qwen2 as far as `ModelSpec` says the same. Weights are read and written one
parameter at a time, so that a second copy of the model is never in memory.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trimtab.core.errors import InputError
from trimtab.core.hugging_face import check_features
from trimtab.core.model import ModelSpec
from trimtab.launch.runtime.tokenization import save_tokenizer
from trimtab.launch.runtime.weight_names import (
    hugging_face_names,
    hugging_face_shapes,
    merge,
    refuse_unlike_llama,
    split,
)

MODEL_TYPES = ("llama", "mistral", "qwen2")

_FIELD = "checkpoint.start_from"
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_SHARD_BYTES = 4 * 2**30


@torch.no_grad()
def load_hugging_face(folder: Path, module: torch.nn.Module, model: ModelSpec) -> None:
    """Fill a `GPTModel` of this `model` with the weights of a folder.

    An optimizer that keeps its own copy of the weights must be made, or told to reload them,
    after this.

    Raises:
        InputError: The folder is missing or broken, or holds another model; nothing is changed
            then, unless a file is damaged inside.
    """
    refuse_unlike_llama(model, doing=_FIELD)
    _check_config(folder, model)
    parameters = named_parameters(module)
    names = hugging_face_names(model)
    assert parameters.keys() == names.keys(), parameters.keys() ^ names.keys()
    with ExitStack() as stack:
        tensors = _Tensors(folder, stack)
        tensors.check(hugging_face_shapes(model))
        for name, parts in names.items():
            merged = merge(tuple(tensors.read(part) for part in parts), model)
            assert parameters[name].shape == merged.shape
            parameters[name].copy_(merged)


def export_hugging_face(
    module: torch.nn.Module,
    model: ModelSpec,
    folder: Path,
    *,
    tokenizer: str,
) -> None:
    """Write a whole `GPTModel` as a folder that transformers loads; see `export_weights`."""
    export_weights(named_parameters(module), model, folder, tokenizer=tokenizer)


@torch.no_grad()
def export_weights(
    parameters: Mapping[str, torch.Tensor],
    model: ModelSpec,
    folder: Path,
    *,
    tokenizer: str,
) -> None:
    """Write weights, configuration and tokenizer; the folder appears whole or not at all.

    Args:
        parameters: By megatron-core's names, whole (not sharded).
        model: What the parameters are of.
        folder: To be made; may exist if it is empty.
        tokenizer: The job's `data.tokenizer`, written beside the weights.

    Raises:
        InputError: The model has no Llama-type counterpart, the folder holds something, or the
            tokenizer is not there any more.
    """
    refuse_unlike_llama(model, doing="export")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"export: {folder} exists and is not empty; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        dtype = next(iter(parameters.values())).dtype
        bos, eos = save_tokenizer(tokenizer, made)
        config = _config(model, dtype=dtype) | {"bos_token_id": bos, "eos_token_id": eos}
        _write_json(made / "config.json", config)
        _write_weights(parameters, model, made)
        made.chmod(0o755)
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def named_parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by megatron-core's names, of the model inside DDP and `Float16Module`."""
    inner: Any = module
    while isinstance(getattr(inner, "module", None), torch.nn.Module):
        inner = inner.module
    return dict(inner.named_parameters())


class _Tensors:
    """The tensors of a folder, in one file or several, opened but not read."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        files = {path: stack.enter_context(_open(path)) for path in _weight_files(folder)}
        self._file_of = {name: path for path, file in files.items() for name in file.keys()}  # noqa: SIM118  not a dict
        self._files = files

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise unless exactly these tensors are there, in these shapes."""
        missing = [name for name in shapes if name not in self._file_of]
        if missing:
            raise self._error(f"{len(missing)} tensors are missing, such as {missing[0]}")
        extra = sorted(name for name in self._file_of if not _is_known(name, shapes))
        if extra:
            raise self._error(f"{len(extra)} tensors the model has no place for, {extra[0]}")
        for name, expected in shapes.items():
            part = self._files[self._file_of[name]].get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if shape != expected:
                raise self._error(f"{name} is {list(shape)}, the model's is {list(expected)}")
            if dtype not in ("F64", "F32", "F16", "BF16"):
                raise self._error(f"{name} is of type {dtype}; expected F32, F16 or BF16")

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[self._file_of[name]].get_tensor(name)
        return tensor

    def _error(self, what: str) -> InputError:
        return InputError(f"{_FIELD}: {self._folder}: {what}; name a folder of the same model")


def _is_known(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Old Llama folders hold rotary tables; tied ones may repeat the embedding as the head."""
    repeated_head = name == "lm_head.weight" and "lm_head.weight" not in shapes
    return name in shapes or repeated_head or name.endswith(".rotary_emb.inv_freq")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    index = folder / _INDEX_FILE
    if not index.is_file():
        raise InputError(
            f"{_FIELD}: {folder} has neither {_SINGLE_FILE} nor {_INDEX_FILE}; download the "
            "safetensors files of the model"
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{_FIELD}: {index} has no weight_map; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{_FIELD}: {index} names {name!r}, which is outside the folder")
        if not (folder / name).is_file():
            raise InputError(f"{_FIELD}: {folder / name} is missing; download it again")
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{_FIELD}: {path} is truncated or no safetensors file ({error}); download it again"
        ) from error


def _check_config(folder: Path, model: ModelSpec) -> None:
    """Raise unless `config.json` describes `model`.

    Defaults of absent fields are those of `LlamaConfig` in transformers 5.
    """
    if not folder.is_dir():
        raise InputError(
            f"{_FIELD}: {folder} is not a folder; expected a downloaded Hugging Face model"
        )
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise InputError(
            f"{_FIELD}: {folder} has model_type {config.get('model_type')!r}; expected one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    check_features(
        config,
        max_seq_tokens=model.max_seq_tokens,
        source=f"{_FIELD}: {folder / 'config.json'}: ",
    )
    for field, given, ours in _compared(config, model):
        if given != ours:
            raise InputError(
                f"{_FIELD}: {folder / 'config.json'} has {field} = {given}, but the job's "
                f"model has {ours}; describe the same model"
            )


def _compared(config: Mapping[str, Any], model: ModelSpec) -> Iterator[tuple[str, Any, Any]]:
    """Field, its value in the folder, its value in the job."""
    heads = config.get("num_attention_heads")
    rope = config.get("rope_parameters") or {}
    yield "num_hidden_layers", config.get("num_hidden_layers"), model.num_layers
    yield "hidden_size", config.get("hidden_size"), model.hidden
    yield "intermediate_size", config.get("intermediate_size"), model.ffn_hidden
    yield "num_attention_heads", heads, model.num_heads
    yield "num_key_value_heads", config.get("num_key_value_heads") or heads, model.num_kv_heads
    default_head_dim = model.hidden // model.num_heads
    yield "head_dim", config.get("head_dim") or default_head_dim, model.head_dim
    yield "vocab_size", config.get("vocab_size"), model.vocab
    yield "rms_norm_eps", config.get("rms_norm_eps", 1e-6), model.norm_eps
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    yield "rope_theta", theta, model.rope_theta
    yield "tie_word_embeddings", config.get("tie_word_embeddings", False), model.tied_embeddings


def _config(model: ModelSpec, *, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json`, with the field names that transformers 4 and 5 both read."""
    model_type = "qwen2" if model.qkv_biases and not model.biases else "llama"
    class_name = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[model_type]
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn_hidden,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_seq_tokens,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": model.biases,
        "mlp_bias": model.biases,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _write_weights(
    parameters: Mapping[str, torch.Tensor], model: ModelSpec, folder: Path
) -> None:
    """One file, or several of about `_SHARD_BYTES` with an index, named as usual."""
    shards: list[list[str]] = [[]]
    size = 0
    names = hugging_face_names(model)
    for name in names:
        num_bytes = parameters[name].nbytes
        if shards[-1] and size + num_bytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file_name = _SINGLE_FILE if len(shards) == 1 else several
        state = {
            part: tensor.contiguous().cpu()
            for name in shard
            for part, tensor in zip(
                names[name],
                split(parameters[name], len(names[name]), model=model),
                strict=True,
            )
        }
        save_file(state, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(state, file_name)
    if len(shards) > 1:
        total = sum(parameters[name].nbytes for name in names)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / _INDEX_FILE, index)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{_FIELD}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{_FIELD}: {path} is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{_FIELD}: {path} is not a JSON object")
    return document


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
