"""Measured training steps from a table (CSV), as jobs that a forecast can be made for.

The columns are those of published collections of measurements: model shape, device and network,
batch, degrees, software, and what was measured. A blank column is what the software of the row
does when nothing is said; each such rule stands beside the column it fills. What was measured
is never used to fill a column.
"""

import csv
import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.cluster import Link, Precision
from trimtab.core.devices import device
from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, Recompute
from trimtab.core.units import GB
from trimtab.orchestrator.public_models import public_model
from trimtab.planners.memory import stage_memories
from trimtab.planners.placement import Machine

COLUMNS = (
    "row_id", "model", "n_layers", "hidden", "ffn_hidden", "n_heads", "n_kv_heads", "vocab",
    "seq_len", "gpu", "gpus_per_node", "n_gpus", "interconnect", "gbs_seqs", "mbs_seqs", "tp",
    "pp", "cp", "ep", "vpp", "zero_or_fsdp", "recompute", "precision", "framework",
    "step_time_s", "tflops_per_gpu", "mem_gb_per_gpu", "oom",
)  # fmt: skip
"""What is read; a table may lack all but row_id, gpu, n_gpus, seq_len and gbs_seqs."""

_NEEDED = ("row_id", "gpu", "n_gpus", "seq_len", "gbs_seqs")
_DOMAIN_GPUS = 72
"""GPUs of an NVL72 rack, which NVLink joins as a node's."""
_LATENCY_S = 5e-6
_MOST_CHUNKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRow:
    """One measured run: the job as far as it is stated, and what came out."""

    row_id: str
    table: str
    source: str
    engine: str
    task: str
    model: ModelSpec
    layout: Layout
    recompute_stated: bool
    zero_stated: bool
    precision_stated: bool
    """Not, where it may be one of two: `BF16/FP16`."""
    used: Machine
    precision: Precision
    num_sequences: int
    num_micro_batches: float
    seq_tokens: int
    step_s: float | None
    flop_per_s: float | None
    """Of one GPU, as the source counts it."""
    memory_bytes: float | None
    """Of the fullest GPU; None where the authors computed it."""
    oom: bool | None
    """Whether it ran out of memory; None: not measured."""
    fold: tuple[str, ...]
    """Rows of one fold are of one model on one number of GPUs in one table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadRow:
    """A row that no forecast can be made for."""

    row_id: str
    table: str
    reason: str
    has_step_s: bool


def read_measured(path: Path) -> tuple[list[MeasuredRow], list[UnreadRow]]:
    """The rows of a table, and those that do not say enough.

    Raises:
        InputError: The file cannot be read, is no table, or lacks a column that is needed.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, strict=True)
            header = table.fieldnames or ()
            lines = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: expected a table (CSV) of measured steps: {error}"
        ) from error
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise InputError(
            f"{path}: expected the columns {', '.join(_NEEDED)}; no {missing[0]!r}"
        )
    rows: list[MeasuredRow] = []
    unread: list[UnreadRow] = []
    for number, line in enumerate(lines, start=2):
        fields = {name: (value or "").strip() for name, value in line.items() if name}
        row_id = fields["row_id"] or f"line {number}"
        try:
            rows.append(_row(fields, row_id=row_id))
        except InputError as error:
            unread.append(
                UnreadRow(
                    row_id=row_id,
                    table=fields.get("table", ""),
                    reason=str(error),
                    has_step_s=bool(fields.get("step_time_s")),
                )
            )
    return rows, unread


def _row(fields: Mapping[str, str], *, row_id: str) -> MeasuredRow:
    text = _Fields(fields)
    engine = _engine(text)
    model = _model(text)
    num_gpus = text.whole("n_gpus")
    num_sequences, seq_tokens = text.whole("gbs_seqs"), text.whole("seq_len")
    precision = _precision(text)
    layout = _layout(text, model, engine=engine, num_gpus=num_gpus)
    used = _machine(text, num_gpus=num_gpus)
    rank_seqs = max(1, num_sequences // layout.dp)
    if text.get("mbs_seqs") or layout.pp > 1:
        micro = min(text.whole("mbs_seqs", 1), rank_seqs)
    else:
        micro = _filling_micro_batch(
            model, layout, used, precision=precision, seq_tokens=seq_tokens, most=rank_seqs
        )
    layout = dataclasses.replace(layout, micro_batch_seqs=micro)
    modelled = "model" in text.get("mem_kind")
    memory_gb = text.number("mem_gb_per_gpu")
    tflops = text.number("tflops_per_gpu")
    return MeasuredRow(
        row_id=row_id,
        table=text.get("table"),
        source=text.get("source_key") or text.get("table"),
        engine=engine,
        task=text.get("task") or "pretrain",
        model=model,
        layout=layout,
        recompute_stated=bool(text.get("recompute")),
        zero_stated=bool(text.get("zero_or_fsdp")),
        precision_stated="/" not in text.get("precision"),
        used=used,
        precision=precision,
        num_sequences=num_sequences,
        num_micro_batches=max(1.0, num_sequences / (layout.dp * micro)),
        seq_tokens=seq_tokens,
        step_s=text.number("step_time_s"),
        flop_per_s=None if tflops is None or tflops < 0 else tflops * 1e12,
        memory_bytes=None if memory_gb is None or modelled else memory_gb * 1e9,
        oom=None if modelled else _oom(text),
        fold=tuple(text.get(name) for name in ("table", "n_layers", "hidden", "n_gpus")),
    )


class _Fields:
    """The fields of a row, read with one line for whatever is wrong."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def get(self, name: str) -> str:
        return self._fields.get(name, "")

    def number(self, name: str) -> float | None:
        """None where the column is blank."""
        text = self.get(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{name}: expected a number, got {text!r}")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.number(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise InputError(f"{name}: blank; a forecast needs it")
        if value < 1 or value != int(value):
            raise InputError(f"{name}: expected a whole number >= 1, got {self.get(name)!r}")
        return int(value)


def _engine(text: _Fields) -> str:
    """The family of the software, by its name and its year."""
    name = text.get("framework").casefold()
    if "deepspeed" in name and "megatron" in name:
        return "megatron-deepspeed"
    if any(word in name for word in ("nemo", "megatron-core", "bridge", "mcore")):
        return "megatron-core"
    if "megatron" in name:
        is_recent = not text.get("gpu").startswith(("A100", "V100"))
        return "megatron-core" if is_recent else "megatron-lm"
    if any(word in name for word in ("jax", "maxtext", "paxml")):
        return "jax"
    if any(
        word in name for word in ("fsdp", "torchtitan", "deepspeed", "pytorch", "accelerate")
    ):
        return "fsdp"
    return ""


def _model(text: _Fields) -> ModelSpec:
    """The shape stated, else that of the public model of this name."""
    name = text.get("model") or "model"
    known = public_model(name)
    if not (text.get("n_layers") and text.get("hidden")):
        if known is None:
            raise InputError(f"model: no shape is stated, and {name!r} is not a known model")
        if text.get("n_layers"):
            return dataclasses.replace(known, num_layers=text.whole("n_layers"))
        return known
    hidden = text.whole("hidden")
    num_heads = text.whole("n_heads", _usual_heads(hidden))
    if hidden % num_heads:
        raise InputError(f"n_heads: {num_heads} does not divide hidden = {hidden}")
    if known is not None and known.moe is not None:
        return dataclasses.replace(known, num_layers=text.whole("n_layers"))
    ffn_hidden = text.whole("ffn_hidden", 4 * hidden)
    return ModelSpec(
        name=name,
        num_layers=text.whole("n_layers"),
        hidden=hidden,
        ffn_hidden=ffn_hidden,
        num_heads=num_heads,
        num_kv_heads=text.whole("n_kv_heads", num_heads),
        head_dim=hidden // num_heads,
        vocab=text.whole("vocab", 51_200),
        max_seq_tokens=text.whole("seq_len"),
        gated_mlp=ffn_hidden != 4 * hidden and ffn_hidden != hidden,
    )


def _usual_heads(hidden: int) -> int:
    """Heads of about 128, a power of two of them."""
    heads = 1 << max(0, round(math.log2(hidden / 128)))
    while hidden % heads:
        heads //= 2
    return heads


def _layout(text: _Fields, model: ModelSpec, *, engine: str, num_gpus: int) -> Layout:
    """Degrees as stated; one that does not go into the GPUs is a slip and counts as 1."""
    degrees: dict[str, Any] = {name: text.whole(name, 1) for name in ("tp", "pp", "cp", "ep")}
    for name in ("ep", "cp", "pp", "tp"):
        product = degrees["tp"] * degrees["pp"] * degrees["cp"]
        if name != "ep" and product > num_gpus:
            degrees[name] = 1
    if degrees["pp"] > model.num_layers:
        degrees["pp"] = 1
    inner = degrees["tp"] * degrees["pp"] * degrees["cp"]
    recompute = _recompute(text)
    zero = _zero(text, engine=engine)
    return Layout(
        **degrees,
        dp=max(1, num_gpus // inner),
        vpp=_chunks(text, model, pp=degrees["pp"], engine=engine),
        recompute=recompute,
        zero=zero,
        sequence_parallel=degrees["tp"] > 1
        and (engine == "megatron-core" or "sequence-parallel" in text.get("recompute")),
        fused_attention=engine not in ("megatron-lm", "megatron-deepspeed"),
    )


def _filling_micro_batch(
    model: ModelSpec,
    layout: Layout,
    used: Machine,
    *,
    precision: Precision,
    seq_tokens: int,
    most: int,
) -> int:
    """Where it is not said and no pipeline asks for small ones: the largest that fits."""
    fitting = 1
    for micro in (size for size in range(2, most + 1) if most % size == 0):
        tokens = micro * seq_tokens / layout.cp
        (stage,) = stage_memories(
            model,
            layout,
            precision=precision,
            tokens=tokens,
            squares=tokens * seq_tokens,
            num_micro_batches=1,
            capacity_bytes=used.gpu.memory_bytes,
        )
        if stage.verdict != "fits":
            break
        fitting = micro
    return fitting


def _chunks(text: _Fields, model: ModelSpec, *, pp: int, engine: str) -> int:
    """NeMo's recipes interleave whatever can be; where it is not said, as finely as they do."""
    if pp == 1:
        return 1
    if text.get("vpp"):
        return text.whole("vpp")
    if engine != "megatron-core" or model.num_layers % pp:
        return 1
    layers = model.num_layers // pp
    return max(chunks for chunks in range(1, _MOST_CHUNKS + 1) if layers % chunks == 0)


def _recompute(text: _Fields) -> Recompute:
    stated = text.get("recompute").casefold()
    if stated.startswith("full"):
        return "full"
    if stated.startswith("sel"):
        return "selective"
    counts_recompute = text.get("tflops_kind").startswith("hardware")
    return "full" if not stated and counts_recompute else "none"


def _zero(text: _Fields, *, engine: str) -> int:
    stated = text.get("zero_or_fsdp").casefold()
    stage = re.search(r"zero-?(\d)", stated)
    if stage:
        return min(3, int(stage.group(1)))
    if "grad_op" in stated:
        return 2
    if "shard" in stated or "fsdp" in stated:
        return 3
    return 1 if "distributed" in stated or engine in ("megatron-core", "jax") else 0


def _precision(text: _Fields) -> Precision:
    stated = text.get("precision").upper()
    if "FP4" in stated:
        return "fp4"
    if "FP8" in stated:
        return "fp8"
    if stated in ("FP32", "TF32"):
        return "fp32" if stated == "FP32" else "tf32"
    return "fp16" if text.get("gpu").startswith("V100") else "bf16"


def _oom(text: _Fields) -> bool | None:
    stated = text.get("oom").casefold()
    if stated in ("1", "true", "yes", "1.0"):
        return True
    return False if stated or text.get("step_time_s") else None


def _machine(text: _Fields, *, num_gpus: int) -> Machine:
    """The device's datasheet and the network as stated, else that of its usual server."""
    gpu = device(text.get("gpu"))
    stated = text.get("interconnect")
    per_node = text.whole("gpus_per_node", 8)
    nic_bytes_per_s = gpu.usual_nic_bytes_per_s
    total = _node_bits_per_s(stated)
    if total is not None:
        nic_bytes_per_s = total / 8 / per_node
    if "NVL72" in stated:
        per_node = _DOMAIN_GPUS
    return Machine(
        gpu=gpu.spec,
        num_ranks=num_gpus,
        gpus_per_node=per_node,
        intra_node=Link(bytes_per_s=gpu.fast_link_bytes_per_s, latency_s=_LATENCY_S),
        nic_per_gpu=Link(bytes_per_s=nic_bytes_per_s, latency_s=_LATENCY_S),
        island_ends=(),
        between_islands=None,
    )


def _node_bits_per_s(stated: str) -> float | None:
    """What the NICs of a node carry together, where the text says so.

    >>> _node_bits_per_s("Jean Zay: NVLink + 4x Omni-Path 100G per node") / GB
    400.0
    >>> _node_bits_per_s("1600 Gb/s per node RoCE") / GB
    1600.0
    """
    several = re.search(r"(\d+)\s*x\s*[A-Za-z -]*(\d+)\s*G", stated)
    if several:
        return int(several.group(1)) * int(several.group(2)) * GB
    whole = re.search(r"(\d+)\s*Gb/s (?:per node|inter-node)", stated)
    return int(whole.group(1)) * GB if whole else None
