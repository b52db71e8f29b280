"""`trimtab topology`: drawings, JSON, measuring, and what is refused."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.link_speed import LinkSpeeds, PairSpeed
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.config import cluster_text, load_cluster
from trimtab.orchestrator.link_measuring import measured_cluster, rank_pools

ROOT = Path(__file__).parents[2]
MIXED = ROOT / "clusters" / "three-regions.yaml"
NODE = """
  - name: {name}
    count: {count}
    gpus_per_node: {gpus}
    island: {island}
    gpu: {{name: CPU process, memory_gib: 1, memory_gb_per_s: 10}}
    intra_node: {{gb_per_s: 2, latency_us: 50}}
    nics: [{{kind: ethernet, gbit_per_s: {rate}, latency_us: 50}}]
"""
LINK = "links: [{{islands: [{a}, {b}], gb_per_s: {rate}, latency_us: 60}}]\n"


def cluster_file(
    path: Path,
    *,
    islands: str = "ab",
    count: int = 1,
    gpus: int = 2,
    rate: float = 10,
    links: str = LINK.format(a="a", b="b", rate=1),
) -> Path:
    nodes = "".join(
        NODE.format(name=f"n{index}", island=island, count=count, gpus=gpus, rate=rate)
        for index, island in enumerate(islands)
    )
    path.write_text(f"name: small\nsource: made up\nnodes:{nodes}{links}")
    return path


def test_the_terminal_shows_islands_nodes_and_links(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", str(MIXED)]) == 0
    out = capsys.readouterr().out
    assert "three-regions: 64 GPUs in 3 islands" in out
    assert "8 x InfiniBand 400 Gbit/s, 5 us" in out
    assert "■■■■■■■■ h-0" in out
    assert "north ◀─▶ middle   25 GB/s, 2 ms each way" in out
    assert "middle ──▶ south   2.5 GB/s, 8 ms" in out


def test_json_has_every_way_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", str(MIXED), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_gpus"] == 64
    assert [island["num_gpus"] for island in document["islands"]] == [16, 32, 16]
    ways = {(way["source"], way["target"]): way["bytes_per_s"] for way in document["ways"]}
    assert ways["middle", "south"] == 2.5e9
    assert ways["south", "middle"] == 1.25e9
    assert len(ways) == 4


def test_the_drawings_are_whole_and_escape_names(tmp_path: Path) -> None:
    text = MIXED.read_text().replace("north", '"<b>&no[rth]"')
    hostile = tmp_path / "c.yaml"
    hostile.write_text(text)
    page, svg = tmp_path / "t.html", tmp_path / "t.svg"
    assert main(["topology", str(hostile), "--html", str(page), "--svg", str(svg)]) == 0
    drawing = ElementTree.fromstring(svg.read_text())
    texts = [each.text for each in drawing.iter() if each.tag.endswith("text")]
    assert {"<b>&no[rth]", "middle", "south", "l-1", "2.5 GB/s, 8 ms"} <= set(texts)
    squares = [each for each in drawing.iter() if each.get("rx") == "3"]
    assert len(squares) == 64
    assert "<b>" not in page.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("a, b", "a, c"), "unknown value 'c'"),
        (
            lambda text: text.replace("gb_per_s: 1,", "gb_per_s: 0,"),
            "links[0].gb_per_s: expected a finite number > 0, got 0",
        ),
        (
            lambda text: text.replace("island: b", "island: [a, b]"),
            "nodes[1].island: expected one island, got ['a', 'b']; islands do not overlap",
        ),
        (
            lambda text: text.replace("latency_us: 60", "latency_us: 60, one_way: true"),
            "no way leads from the island 'b' to 'a'",
        ),
        (
            lambda text: text.replace("latency_us: 60", "latency_us: .nan"),
            "links[0].latency_us: expected a finite number >= 0",
        ),
        (lambda text: text.replace("links:", "likns:"), "likns: unknown key"),
        (lambda _: "", "expected a mapping of keys to values, got nothing"),
        (lambda _: "3", "c.yaml: expected a mapping of keys to values, got '3'"),
        (
            lambda text: text.replace("memory_gib: 1", "memory_gib: 1e308"),
            "nodes[0].gpu.memory_gib: expected a number from 1e-06 to 1e+09, got 1e+308",
        ),
        (
            lambda text: text.replace("gb_per_s: 1,", "gb_per_s: 5e-324,"),
            "links[0].gb_per_s: expected a number from 1e-06 to 1e+09",
        ),
        (
            lambda text: text.replace("gpus_per_node: 2", "gpus_per_node: 1000000"),
            "nodes: at most 1,000,000 GPUs can be planned, got 2,000,000",
        ),
        (
            lambda text: text.replace("island: a", 'island: "\\e[31m"'),
            "unknown value 'a'; expected one of \N{REPLACEMENT CHARACTER}[31m, b",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    message: str,
) -> None:
    path = cluster_file(tmp_path / "c.yaml")
    path.write_text(change(path.read_text()))
    assert main(["topology", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_drawings_hold_no_control_characters(tmp_path: Path) -> None:
    path = cluster_file(tmp_path / "c.yaml")
    path.write_text(path.read_text().replace("name: small", 'name: "small\\e[31m"'))
    page, svg = tmp_path / "t.html", tmp_path / "t.svg"
    assert main(["topology", str(path), "--html", str(page), "--svg", str(svg)]) == 0
    drawing = ElementTree.fromstring(svg.read_text())
    assert drawing.get("aria-label") == "small\N{REPLACEMENT CHARACTER}[31m"
    assert "\x1b" not in page.read_text()


@pytest.mark.parametrize("option", ["--out", "--html", "--svg"])
def test_the_cluster_file_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    path = cluster_file(tmp_path / "c.yaml")
    before = path.read_text()
    assert main(["topology", str(path), "--measure", "--out", "m", option, str(path)]) == 2
    assert "is the cluster file too; name another file" in capsys.readouterr().err
    assert path.read_text() == before


def test_an_earlier_measurement_stays_where_measuring_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "runs").write_text("a file where the folder of runs should be")
    path, out = cluster_file(tmp_path / "c.yaml"), tmp_path / "measured.yaml"
    out.write_text("an earlier measurement")
    assert main(["topology", str(path), "--measure", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert out.read_text() == "an earlier measurement"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "same", "--svg", "same"], "--svg: same is the file of --html too"),
        (["--out", "x.yaml"], "--out: expected --measure beside it"),
        (["--measure"], "--out: expected the file for the measured cluster"),
        (["--measure", "--ranks-per-node", "3"], "the nodes 'n0' have 2 GPUs, got 3"),
        (["--measure", "-s", "nosuch"], "--scheduler: unknown value 'nosuch'"),
        (["--html", "/nosuch/t.html"], "/nosuch/t.html: expected a file that can be written"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = cluster_file(tmp_path / "c.yaml")
    assert main(["topology", str(path), *options]) == 2
    assert message in capsys.readouterr().err


def test_one_rank_has_nobody_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cluster_file(tmp_path / "c.yaml", islands="a", gpus=1, links="")
    assert main(["topology", str(path), "--measure", "--dry-run"]) == 2
    assert "has one rank to measure with" in capsys.readouterr().err


def test_a_cluster_survives_being_written(tmp_path: Path) -> None:
    for path in sorted((ROOT / "clusters").glob("*.yaml")):
        cluster = load_cluster(path)
        again = tmp_path / path.name
        again.write_text(cluster_text(cluster))
        assert load_cluster(again) == cluster


def test_measurements_take_the_place_of_the_file(tmp_path: Path) -> None:
    cluster = load_cluster(cluster_file(tmp_path / "c.yaml", count=2))

    def pair(kind: str, source: str, target: str, rate: float, pairs: int) -> PairSpeed:
        return PairSpeed(
            kind=kind,  # type: ignore[arg-type]  # as the test says
            source=source,
            target=target,
            latency_s=1e-5,
            bytes_per_s=rate,
            num_pairs=pairs,
        )

    speeds = LinkSpeeds(
        pairs=(
            pair("node", "n0", "n0", 8e9, 2),
            pair("island", "n0", "n0", 3e9, 2),
            pair("between", "a", "b", 0.5e9, 4),
            pair("between", "b", "a", 0.25e9, 4),
        ),
        backend="gloo",
        num_ranks=8,
        message_bytes=2**23,
    )
    found = measured_cluster(cluster, speeds, when="2026-11-27")
    first, second = found.nodes
    assert first.intra_node.bytes_per_s == 4e9
    assert first.nics[0].bytes_per_s == 3e9
    assert second == cluster.nodes[1]
    assert found.way("a", "b").bytes_per_s == 0.5e9
    assert found.way("b", "a").bytes_per_s == 0.25e9
    assert found.source.startswith("made up. Measured by trimtab topology --measure 2026-11-27")


def test_every_node_gives_as_many_ranks(tmp_path: Path) -> None:
    cluster = load_cluster(cluster_file(tmp_path / "c.yaml", count=3, gpus=4))
    pools = rank_pools(cluster, ranks_per_node=2)
    assert [(pool.num_nodes, pool.num_ranks) for pool in pools] == [(3, 6), (3, 6)]


@pytest.mark.workers
def test_links_are_measured_on_real_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_RUNS_DIR", str(tmp_path / "runs"))
    path, out = cluster_file(tmp_path / "c.yaml"), tmp_path / "measured.yaml"
    assert main(["topology", str(path), "--measure", "--out", str(out), "--json"]) == 0
    measured = load_cluster(out)
    assert "gloo, 4 ranks: links in nodes, links between islands" in measured.source
    assert measured.way("a", "b").bytes_per_s > 1e6
    assert measured.nodes[0].intra_node != load_cluster(path).nodes[0].intra_node
    assert json.loads(capsys.readouterr().out)["ways"][0]["bytes_per_s"] > 1e6
