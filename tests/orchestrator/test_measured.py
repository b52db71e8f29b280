"""Tables of measured steps: what their columns mean, and what is said of bad ones."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.orchestrator.measured import MeasuredRow, UnreadRow, read_measured

SAMPLE = Path(__file__).parents[1] / "data" / "perf" / "measured_steps.csv"
ROW = {
    "row_id": "1", "table": "t", "model": "GPT-22B", "n_layers": "48", "hidden": "6144",
    "ffn_hidden": "24576", "n_heads": "64", "n_kv_heads": "64", "vocab": "51200",
    "seq_len": "2048", "gpu": "A100-80GB", "gpus_per_node": "8", "n_gpus": "16",
    "interconnect": "", "gbs_seqs": "64", "mbs_seqs": "4", "tp": "8", "pp": "2", "cp": "",
    "ep": "", "vpp": "", "zero_or_fsdp": "", "recompute": "full", "precision": "BF16",
    "framework": "Megatron-LM", "step_time_s": "3.5", "tflops_per_gpu": "", "tflops_kind": "",
    "mem_gb_per_gpu": "", "mem_kind": "", "oom": "", "task": "pretrain", "source_key": "s",
}  # fmt: skip

Read = Callable[..., tuple[list[MeasuredRow], list[UnreadRow]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(gpu="H100-80GB")`: a table of the row above with these columns changed."""

    def go(**changes: str) -> tuple[list[MeasuredRow], list[UnreadRow]]:
        row = ROW | changes
        path = tmp_path / "table.csv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(row))
            table.writeheader()
            table.writerow(row)
        return read_measured(path)

    return go


def one(found: tuple[list[MeasuredRow], list[UnreadRow]]) -> MeasuredRow:
    (row,), unread = found
    assert unread == []
    return row


def test_a_row_as_it_stands(read: Read) -> None:
    row = one(read())
    assert str(row.layout) == "tp8 pp2 dp1"
    assert row.layout.recompute == "full"
    assert row.num_micro_batches == 16
    assert row.engine == "megatron-lm"
    assert not row.layout.fused_attention
    assert row.used.gpu.name == "A100-80GB"
    assert row.step_s == 3.5
    assert row.oom is False


@pytest.mark.parametrize(
    ("framework", "gpu", "engine"),
    [
        ("Megatron-DeepSpeed", "A100-80GB", "megatron-deepspeed"),
        ("NeMo/Megatron-Core", "H100-80GB", "megatron-core"),
        ("Megatron-LM", "H100-80GB", "megatron-core"),
        ("Composer/FSDP", "A100-40GB", "fsdp"),
        ("MaxText (JAX)", "H100-80GB", "jax"),
        ("something else", "H100-80GB", ""),
    ],
)
def test_the_engine_is_told_by_the_framework(
    read: Read, framework: str, gpu: str, engine: str
) -> None:
    assert one(read(framework=framework, gpu=gpu)).engine == engine


@pytest.mark.parametrize(
    ("stated", "per_gpu_gb"),
    [
        ("4x Omni-Path 100G per node", 6.25),
        ("1600 Gb/s per node RoCE", 25.0),
        ("800 Gb/s inter-node, 150 GB/s intra", 12.5),
        ("not stated", 25.0),
    ],
)
def test_the_network_is_read_where_it_is_stated(
    read: Read, stated: str, per_gpu_gb: float
) -> None:
    used = one(read(interconnect=stated)).used
    assert used.nic_per_gpu.bytes_per_s == pytest.approx(per_gpu_gb * 1e9)


def test_a_rack_of_nvl72_is_one_domain(read: Read) -> None:
    row = one(read(gpu="GB200", gpus_per_node="4", interconnect="NVL72 domain"))
    assert row.used.gpus_per_node == 72


def test_a_known_model_needs_no_shape(read: Read) -> None:
    blank = dict.fromkeys(("n_layers", "hidden", "ffn_hidden", "n_heads", "n_kv_heads"), "")
    row = one(read(model="Qwen3_30B_a3B", **blank))
    assert row.model.num_parameters == pytest.approx(30.5e9, rel=0.01)
    assert one(read(model="Grok-1-314B-proxy2L", **blank)).model.num_layers == 2
    dense = one(read(model="39B", **blank)).model
    assert dense.num_parameters == pytest.approx(39e9, rel=0.05)


def test_memory_that_the_authors_computed_is_no_measurement(read: Read) -> None:
    row = one(read(mem_gb_per_gpu="90", oom="1", mem_kind="modelled by authors"))
    assert row.memory_bytes is None
    assert row.oom is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_gpus": "many"}, "n_gpus: expected a number, got 'many'"),
        ({"n_gpus": "nan"}, "n_gpus: expected a number, got 'nan'"),
        ({"gbs_seqs": ""}, "gbs_seqs: blank; a forecast needs it"),
        ({"tp": "0"}, "tp: expected a whole number >= 1, got '0'"),
        ({"tp": "-2"}, "tp: expected a whole number >= 1, got '-2'"),
        ({"gpu": "Z9000"}, "gpu: unknown device 'Z9000'; known: V100-32GB"),
        ({"n_heads": "7"}, "n_heads: 7 does not divide hidden = 6144"),
        (
            {"model": "mystery", "n_layers": "", "hidden": ""},
            "model: no shape is stated, and 'mystery' is not a known model",
        ),
    ],
)
def test_a_row_that_says_too_little_is_told_and_the_rest_is_read(
    read: Read, changes: dict[str, str], reason: str
) -> None:
    rows, (unread,) = read(**changes)
    assert rows == []
    assert unread.reason.startswith(reason)
    assert unread.has_step_s


def test_a_file_that_is_no_such_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(InputError, match="expected a table"):
        read_measured(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no 'row_id'"):
        read_measured(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected a table"):
        read_measured(path)


def test_published_rows_are_read() -> None:
    rows, unread = read_measured(SAMPLE)
    assert len(rows) == 68
    assert unread == []
