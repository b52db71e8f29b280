import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout
from trimtab.orchestrator.config import load_cluster, load_job, load_model, load_profile

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "configs").glob("*.yaml"))
CLUSTERS = sorted((ROOT / "clusters").glob("*.yaml"))
MODELS = sorted((ROOT / "configs" / "models").glob("*.yaml"))
PROFILES = sorted((ROOT / "configs" / "profiles").glob("*.json"))

CLUSTER: dict[str, Any] = {
    "name": "two-nodes",
    "nodes": [
        {
            "name": "node",
            "count": 2,
            "gpus_per_node": 8,
            "gpu": {
                "name": "A100",
                "memory_gib": 40,
                "memory_gb_per_s": 1555,
                "peak_tflop_per_s": {"bf16": 312},
            },
            "intra_node": {"gb_per_s": 300, "latency_us": 3},
            "nics": [{"kind": "infiniband", "count": 4, "gbit_per_s": 200, "latency_us": 5}],
        }
    ],
}
MODEL: dict[str, Any] = {
    "name": "tiny",
    "num_layers": 2,
    "hidden": 64,
    "ffn_hidden": 128,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 16,
    "vocab": 259,
    "max_seq_tokens": 512,
}
JOB: dict[str, Any] = {
    "name": "job",
    "model": "model.yaml",
    "cluster": "cluster.yaml",
    "data": {"sources": [{"path": "texts"}]},
    "training": {"num_steps": 10, "global_batch_seqs": 8},
}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job file whose model and cluster are files beside it."""
    _write(tmp_path / "cluster.yaml", CLUSTER)
    _write(tmp_path / "model.yaml", MODEL)
    return _write(tmp_path / "job.yaml", JOB)


def _write(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def _refusal(job_file: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_job(job_file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_we_ship_loads_and_survives_json(path: Path) -> None:
    job = load_job(path)
    assert serde.from_json(JobSpec, serde.to_json(job)) == job


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_cluster_we_ship_names_its_source(path: Path) -> None:
    assert len(load_cluster(path).source) > 20


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_we_ship_names_its_source(path: Path) -> None:
    assert len(load_model(path).source) > 20


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_we_ship_names_its_source(path: Path) -> None:
    profile = load_profile(path)
    assert profile.evidence == "published"
    assert "arXiv:2412.01523" in profile.source


def test_datasheet_units_become_bytes_and_seconds(job_file: Path) -> None:
    node = load_job(job_file).cluster.nodes[0]
    assert node.gpu.memory_bytes == 42_949_672_960
    assert node.gpu.memory_bytes_per_s == 1.555e12
    assert node.gpu.peak_flop_per_s("bf16") == 3.12e14
    assert node.gpu.peak_flop_per_s("fp8") is None
    assert node.intra_node.bytes_per_s == 3e11
    assert node.intra_node.latency_s == pytest.approx(3e-6)
    assert node.nics[0].bytes_per_s == 2.5e10
    assert node.nics[0].latency_s == pytest.approx(5e-6)


def test_the_islands_of_the_holmes_mix_meet_over_ethernet() -> None:
    cluster = load_cluster(ROOT / "clusters" / "holmes-mix.yaml")
    assert cluster.islands == ("infiniband", "roce", "ethernet")
    assert {link.link.bytes_per_s for link in cluster.links} == {6.25e9}


def test_a_job_uses_the_whole_cluster_unless_it_says_less(job_file: Path) -> None:
    assert load_job(job_file).num_ranks == 16
    assert load_job(job_file, ["num_ranks=4"]).num_ranks == 4


def test_sections_may_stand_in_the_job_file_itself(tmp_path: Path, job_file: Path) -> None:
    inline = _write(tmp_path / "inline.yaml", {**JOB, "model": MODEL, "cluster": CLUSTER})
    assert load_job(inline) == load_job(job_file)


def test_paths_are_relative_to_the_job_file(tmp_path: Path, job_file: Path) -> None:
    data = {
        "sources": [{"path": "texts"}, {"path": "stdlib:"}],
        "tokenizer": "t/tokenizer.json",
    }
    _write(job_file, {**JOB, "data": data, "checkpoint": {"start_from": "hf"}})
    job = load_job(job_file)
    assert [source.path for source in job.data.sources] == [str(tmp_path / "texts"), "stdlib:"]
    assert job.data.tokenizer == str(tmp_path / "t" / "tokenizer.json")
    assert job.checkpoint.start_from == str(tmp_path / "hf")


def test_paths_of_overrides_are_relative_to_the_working_directory(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    _write(work / "other.yaml", {**MODEL, "num_layers": 5})
    monkeypatch.chdir(work)
    job = load_job(job_file, ["model=other.yaml", "data.sources[0].path=here"])
    assert job.model.num_layers == 5
    assert job.data.sources[0].path == str(work / "here")


def test_overrides_win_and_are_typed_as_in_yaml(job_file: Path) -> None:
    overrides = [
        "training.learning_rate=1e-4",
        "training.num_steps=20",
        "model.tied_embeddings=true",
        "model.name=new",
        "telemetry.wandb_project=null",
        "cluster.nodes[0].nics[0].gbit_per_s=400",
    ]
    job = load_job(job_file, overrides)
    assert job.training.learning_rate == 1e-4
    assert job.training.num_steps == 20
    assert job.model.tied_embeddings is True
    assert job.model.name == "new"
    assert job.telemetry.wandb_project is None
    assert job.cluster.nodes[0].nics[0].bytes_per_s == 5e10


def test_a_missing_dp_is_what_the_other_degrees_leave(job_file: Path) -> None:
    assert load_job(job_file, ["layout.tp=2", "layout.pp=2"]).layout == Layout(tp=2, pp=2, dp=4)
    assert load_job(job_file, ["layout.tp=2", "layout=null"]).layout is None


def test_a_layout_that_does_not_fill_the_ranks_is_refused(job_file: Path) -> None:
    message = _refusal(job_file, "layout.tp=2", "layout.dp=2")
    assert "layout: tp2 pp1 dp2 uses 4 ranks, but num_ranks = 16" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.num_steps=3", "unknown key 'trainig'; did you mean 'training'?"),
        (
            "training.num_step=3",
            "training.num_step: unknown key 'num_step'; did you mean 'num_s",
        ),
        ("training.num_steps=3.5", "training.num_steps: expected a whole number, got 3.5"),
        ("training.num_steps=many", "training.num_steps: expected a whole number, got 'many'"),
        ("training.num_steps=true", "training.num_steps: expected a whole number, got True"),
        ("training.num_steps=-3", "training.num_steps: expected a whole number >= 1, got -3"),
        ("training.num_steps=", "training.num_steps: expected a whole number, got None"),
        ("training.decay=cosin", "unknown value 'cosin'; did you mean 'cosine'?"),
        ("name=''", "name: expected some text, got none"),
        ("data.held_out_fraction=1", "data.held_out_fraction: expected a number >= 0 and < 1"),
        ("data.sources[0].weight=-1", "data.sources[0].weight: expected a finite number > 0"),
        (
            f"training.num_steps={10**399}",
            "training.num_steps: expected a whole number >= 1 and < 2**63, got "
            "1000000000000000000000000000000000000000... (400 characters)",
        ),
        ("training=3", "training: expected a mapping, got 3"),
        ("name.x=3", "name"),
        ("num_ranks=17", "num_ranks: the cluster 'two-nodes' has 16 devices, got 17"),
        ("num_ranks=two", "num_ranks: expected a whole number >= 1, got 'two'"),
        ("model=nowhere.yaml", "nowhere.yaml: no such file"),
        ("model=3", "model: expected a path or a mapping, got 3"),
        ("training.num_steps", "expected the form key.path=value, got 'training.num_steps'"),
        ("=3", "expected the form key.path=value, got '=3'"),
        ("cluster.nodes[7].count=1", "the list has no such entry"),
        ("telemetry.wandb_project=${oc.env:HOME}", "interpolation is not supported"),
        ("training.num_steps=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(
    job_file: Path, override: str, message: str
) -> None:
    assert message in _refusal(job_file, override)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "nics[0].gbit_per_s",
            ".nan",
            "cluster.nodes[0].nics[0].gbit_per_s: expected a finite number > 0, got nan",
        ),
        ("nics[0].gbit_per_s", ".inf", "gbit_per_s: expected a finite number > 0, got inf"),
        ("nics[0].gbit_per_s", "-200", "gbit_per_s: expected a finite number > 0, got -200"),
        ("nics[0].gbit_per_s", "fast", "gbit_per_s: expected a number, got 'fast'"),
        ("nics[0].latency_us", "-1", "latency_us: expected a finite number >= 0, got -1"),
        ("nics[0].count", "0", "nics[0].count: expected a whole number >= 1, got 0"),
        ("nics[0].kind", "ib", "nics[0].kind: unknown value 'ib'"),
        ("nics", "[]", "nodes[0].nics: expected at least one entry, got none"),
        (
            "intra_node.gb_per_s",
            "0",
            "intra_node.gb_per_s: expected a finite number > 0, got 0",
        ),
        ("gpu.memory_gib", "-40", "gpu.memory_gib: expected a finite number > 0, got -40"),
        ("gpu.memory_gib", ".nan", "gpu.memory_gib: expected a finite number > 0, got nan"),
        ("gpu.memory_gb", "40", "unknown key 'memory_gb'; did you mean 'memory_gib'?"),
        (
            "gpu.peak_tflop_per_s.bf16",
            ".inf",
            "peak_tflop_per_s.bf16: expected a finite number",
        ),
        ("gpu.peak_tflop_per_s.bf17", "1", "unknown value 'bf17'; did you mean 'bf16'?"),
        ("gpu.peak_tflops_per_s", "{}", "did you mean 'peak_tflop_per_s'?"),
        ("gpus", "{}", "nodes[0].gpus: unknown key 'gpus'; did you mean 'gpu'?"),
        ("gpus_per_node", "1.5", "nodes[0].gpus_per_node: expected a whole number, got 1.5"),
    ],
)
def test_a_wrong_figure_is_refused_in_the_unit_and_at_the_place_it_was_written(
    job_file: Path, key: str, value: str, message: str
) -> None:
    assert message in _refusal(job_file, f"cluster.nodes[0].{key}={value}")


def test_a_wrong_figure_in_a_cluster_file_names_the_file(tmp_path: Path) -> None:
    document = yaml.safe_load(yaml.safe_dump(CLUSTER))
    document["nodes"][0]["nics"][0]["gbit_per_s"] = float("nan")
    path = _write(tmp_path / "broken.yaml", document)
    with pytest.raises(InputError) as caught:
        load_cluster(path)
    assert str(caught.value) == (
        f"{path}: nodes[0].nics[0].gbit_per_s: expected a finite number > 0, got nan"
    )


@pytest.mark.parametrize("key", ["name", "model", "cluster", "data", "training"])
def test_a_missing_section_is_named(job_file: Path, key: str) -> None:
    _write(job_file, {name: value for name, value in JOB.items() if name != key})
    assert f"{key}: missing" in _refusal(job_file)


@pytest.mark.parametrize("key", ["name", "gpus_per_node", "gpu", "intra_node", "nics"])
def test_a_missing_field_of_a_node_is_named(tmp_path: Path, key: str) -> None:
    node = {name: value for name, value in CLUSTER["nodes"][0].items() if name != key}
    path = _write(tmp_path / "cluster.yaml", {**CLUSTER, "nodes": [node]})
    with pytest.raises(InputError, match=rf"nodes\[0\]\.{key}: missing"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a mapping of keys to values, got nothing"),
        (b"# only a comment\n", "got nothing"),
        (b"- 1\n- 2\n", "got a list"),
        (b"name: a\nname: b\n", "line 2: not valid YAML: found duplicate key name"),
        (b"name: a\nnodes: [1\n", "not valid YAML"),
        (b"name: a\n  nodes: 1\n", "line 2: not valid YAML"),
        (b"name: \xff\n", "expected UTF-8 text, got byte 0xff at offset 6"),
        (b"name: ${oc.env:HOME}\n", "name: interpolation is not supported"),
        (b"name: ${nodes\n", "not valid YAML"),
        (b"just text\n", "unknown key 'just text'"),
        (b"name: a\nnodes: 3\n", "nodes: expected a list, got 3"),
        (b"name: a\nnodes: []\n", "cluster.nodes: expected at least one entry"),
        (b"1: a\n", "unknown key '1'"),
        (b"name: a\nnodess: []\n", "nodess: unknown key 'nodess'; did you mean 'nodes'?"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_cluster(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_cluster(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="expected a file, got a folder; name a file"):
        load_cluster(tmp_path)


def test_no_environment_variable_reaches_a_job(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    _write(job_file, {**JOB, "telemetry": {"wandb_project": "${oc.env:WANDB_API_KEY}"}})
    message = _refusal(job_file)
    assert "telemetry.wandb_project: interpolation is not supported" in message
    assert "s3cret" not in message


def test_an_empty_section_means_its_defaults(job_file: Path) -> None:
    _write(job_file, {**JOB, "telemetry": None})
    assert load_job(job_file).telemetry.silent_rank_s == 60.0


def test_a_model_of_hugging_face_may_stand_in_for_ours(job_file: Path) -> None:
    folder = job_file.parent / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,'
        '"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,'
        '"max_position_embeddings": 256}'
    )
    by_file = load_job(job_file, [f"model={folder}/config.json"]).model
    by_folder = load_job(job_file, [f"model={folder}"]).model
    assert by_file == by_folder == load_model(folder)
    assert by_file.name == "my-llama"
    assert (by_file.head_dim, by_file.num_kv_heads) == (16, 4)


def test_a_broken_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama",\n oops}')
    with pytest.raises(InputError, match=r"config\.json, line 2: not valid JSON"):
        load_model(path)


@pytest.mark.parametrize("text", ['{"hidden_size": ' + "9" * 5_000 + "}", "[" * 100_000])
def test_json_that_python_cannot_hold_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        load_model(path)


def test_a_job_may_bring_a_profile(job_file: Path) -> None:
    profile = load_profile(PROFILES[0])
    its_model = [f"model.hidden={profile.hidden}", f"model.num_layers={profile.num_layers}"]
    assert load_job(job_file, [f"profile={PROFILES[0]}", *its_model]).profile == profile
    bad = _refusal(job_file, f"profile={PROFILES[0]}", "profile.linear_ms=-1")
    assert "profile: linear_ms: expected a finite number > 0" in bad


def test_a_profile_of_a_model_of_another_size_is_refused(job_file: Path) -> None:
    profile = ROOT / "configs" / "profiles" / "flexsp_7b_a100.json"
    assert (
        "profile: '7b' was measured for hidden = 4096, but the model 'tiny' has 64"
        in _refusal(job_file, f"profile={profile}")
    )
    assert "num_layers = 32, but the model 'tiny' has 2" in _refusal(
        job_file, f"profile={profile}", "model.hidden=4096"
    )


def test_a_wrong_config_json_is_named(job_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "hf" / "config.json"
    config.parent.mkdir()
    _write(job_file, {**JOB, "model": "hf"})
    for content, message in (
        (
            "{}",
            "model_type: missing; expected a Hugging Face config.json of one of deepseek_v2, ",
        ),
        ('{"architectures": ["X"]}', "model_type: missing; expected one of deepseek_v2, "),
        ('{"model_type": "llama"}', "max_position_embeddings: missing"),
    ):
        config.write_text(content)
        assert f"model: {config}: {message}" in _refusal(job_file)
    config.write_text("{}")
    with pytest.raises(InputError, match=r"config\.json: model_type: missing"):
        load_model(config)


def test_what_an_override_replaces_is_not_read(job_file: Path, tmp_path: Path) -> None:
    _write(job_file, {**JOB, "model": "gone.yaml"})
    model = f"model={tmp_path / 'model.yaml'}"
    assert load_job(job_file, [model, "model.hidden=128"]).model.hidden == 128
    assert "gone.yaml: no such file" in _refusal(job_file, "model.hidden=128", model)


def test_the_template_is_the_demo_on_another_cluster() -> None:
    templates = ROOT / "orchestrator" / "trimtab" / "orchestrator" / "templates"
    job = load_job(templates / "job.yaml")
    assert job.num_ranks == 4
    assert dataclasses.replace(job.model, name="demo").num_parameters == 824_832
