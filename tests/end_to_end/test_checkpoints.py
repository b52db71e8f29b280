"""Real ranks save and resume: on fewer of them, on nodes that share nothing, at an address."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.workers, pytest.mark.slow]

NUM_RANKS = 4
STEPS = [str(step) for step in range(1, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Any]:
    """What each rank has to tell of each run, `runs[NAME][RANK]`."""
    documents = folder / "documents"
    documents.mkdir()
    for index in range(30):
        text = "".join(f"line {n} of document {index}\n" for n in range(1 + index * 7 % 11))
        (documents / f"{index:02d}.txt").write_text(text)
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for name in wanted(folder)
        }
        config = {
            "documents": str(documents),
            "out": str(folder),
            "num_ranks": NUM_RANKS,
            "runs": {
                name: {
                    "port": stores[name].getsockname()[1],
                    "store_fd": stores[name].fileno(),
                    **run,
                }
                for name, run in wanted(folder).items()
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        ended = train(folder, stores)
    assert ended.returncode == 0, (folder / "stderr").read_text()[-5000:]
    told = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]
    return {name: [each[name] for each in told if name in each] for name in wanted(folder)}


def train(
    folder: Path, stores: dict[str, socket.socket]
) -> "subprocess.CompletedProcess[bytes]":
    script = Path(__file__).with_name("checkpoint_rank.py")
    with (folder / "stderr").open("w") as log:
        return subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(folder / "config.json")],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[store.fileno() for store in stores.values()],
            timeout=240,
            check=False,
        )


def wanted(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs in their order; a folder for each rank, as its node calls the run directory."""
    remote = f"file://{folder}/remote"
    a, b, c, d, e, f, g = (f"{folder}/{node}/run" for node in "abcdefg")
    parts = f"{remote}/parts"
    # The form of optimizer state of which every rank writes a part.
    dealt = {"sharding": "dp_reshardable", "address": parts}
    return {
        "unbroken": run([f"{folder}/unbroken"] * 4, num_steps=8),
        "first half": run([f"{folder}/four"] * 4, num_steps=4),
        "on two": run([f"{folder}/two"] * 2, num_steps=8, copy_of=f"{folder}/four"),
        "on three": run([f"{folder}/three"] * 3, num_steps=8, copy_of=f"{folder}/four"),
        "apart": run([a, a, b], num_steps=2),
        "at an address": run([d, e], num_steps=4, address=remote),
        "on other nodes": run([f, f, g], num_steps=8, address=remote),
        "in parts": run([a, a, b], num_steps=4, **dealt),
        "one node replaced": run([a, a, c], num_steps=6, **dealt),
        "nowhere": run([a, b], num_steps=2, address=f"{remote}/no/such/one"),
        "not one place": run([a, b], num_steps=2, address="memory://bucket/folder"),
        "address lost": run(
            [f"{folder}/lost"] * 2,
            num_steps=4,
            address=remote,
            sabotaged=f"{folder}/remote/lost",
        ),
        "address lost, apart": run(
            [f"{folder}/x/apart", f"{folder}/y/apart"],
            num_steps=4,
            address=remote,
            sabotaged=f"{folder}/remote/apart",
        ),
    }


def run(folders: list[str], *, num_steps: int, **options: Any) -> dict[str, Any]:
    return {
        "folders": folders,
        "num_steps": num_steps,
        "address": None,
        "copy_of": None,
        "sabotaged": None,
        "sharding": "fully_reshardable",
        **options,
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["on two", "on three"])
def test_fewer_ranks_go_on_from_a_checkpoint_of_four(name: str, runs: dict[str, Any]) -> None:
    unbroken, resumed = runs["unbroken"][0], runs[name][0]
    assert list(unbroken["losses"]) == STEPS
    assert resumed["resumed"] == [4]
    assert list(resumed["losses"]) == STEPS[4:]
    for step in STEPS[4:]:
        assert resumed["losses"][step] == pytest.approx(unbroken["losses"][step], abs=1e-6)


def test_nodes_that_share_nothing_need_an_address_and_hear_so_at_the_start(
    folder: Path, runs: dict[str, Any]
) -> None:
    for node, each in zip("aab", runs["apart"], strict=True):
        checkpoints = folder / node / "run" / "checkpoints"
        assert each["error"].startswith(
            f"InputError: checkpoint.address: nodes do not share {checkpoints}: "
            "rank 2 does not see rank 0's files there"
        )
    assert [each["losses"] for each in runs["apart"]] == [{}, {}, {}]


def test_each_node_carries_its_files_to_the_address(folder: Path, runs: dict[str, Any]) -> None:
    first, second, third = runs["in parts"]
    assert [each["error"] for each in (first, second, third)] == [None] * 3
    assert first["saved"] == [2, 4]
    here = {Path(name).name for name in first["files"] if "step-00000004" in name}
    there = {Path(name).name for name in third["files"] if "step-00000004" in name}
    assert here & there == {"trimtab.json"}
    assert any(name.startswith("__2_") for name in there - here)


def test_a_new_node_fetches_what_it_lacks_and_an_old_one_keeps_what_it_has(
    runs: dict[str, Any],
) -> None:
    before, after = runs["in parts"][0], runs["one node replaced"]
    assert [each["error"] for each in after] == [None] * 3
    assert after[0]["resumed"] == [4]
    name = "checkpoints/step-00000004/__0_0.distcp"
    assert after[0]["files"][name] == before["files"][name], "the same file, not fetched again"
    assert {name for name in after[0]["files"] if "step-00000004" in name} == {
        name for name in after[2]["files"] if "step-00000004" in name
    }


def test_losses_go_on_as_if_nothing_had_happened_on_other_nodes_and_more_ranks(
    runs: dict[str, Any],
) -> None:
    first, then = runs["at an address"][0], runs["on other nodes"][0]
    assert first["error"] is then["error"] is None
    assert first["saved"] == [2, 4]
    assert then["resumed"] == [4]
    steps = {**first["losses"], **then["losses"]}
    assert list(steps) == STEPS
    assert steps == pytest.approx(runs["unbroken"][0]["losses"], abs=1e-6)


def test_the_address_keeps_as_many_as_asked_for_in_a_folder_of_the_run(
    folder: Path, runs: dict[str, Any]
) -> None:
    kept = ["step-00000006", "step-00000008"]
    assert runs["on other nodes"][0]["alerts"] == []
    assert names_in(folder / "remote" / "run") == kept
    for node in "fg":
        assert names_in(folder / node / "run" / "checkpoints") == kept
    manifest = json.loads((folder / "remote/run/step-00000008/trimtab.json").read_text())
    files = {
        path.name: path.stat().st_size
        for path in (folder / "remote/run/step-00000008").iterdir()
    }
    del files["trimtab.json"]
    assert manifest["files"] == files


def test_an_address_that_cannot_be_made_is_told_before_training(
    folder: Path, runs: dict[str, Any]
) -> None:
    for each in runs["nowhere"]:
        assert each["error"].startswith("InputError: checkpoint.address: rank 0 on ")
        assert (
            f"{folder}/remote/no/such/one/run cannot be made: FileNotFoundError"
            in each["error"]
        )
        assert each["losses"] == {}


def test_an_address_that_means_another_place_on_each_node_is_told_before_training(
    runs: dict[str, Any],
) -> None:
    for each in runs["not one place"]:
        assert each["error"].startswith("InputError: checkpoint.address: rank 1 on ")
        assert "memory://bucket/folder/run/.reached-by-rank-0 cannot be read" in each["error"]


def test_an_address_lost_in_training_is_an_alert_while_the_nodes_keep_whole_ones(
    runs: dict[str, Any],
) -> None:
    first, second = runs["address lost"]
    assert first["error"] is second["error"] is None
    assert first["saved"] == [2, 4]
    assert len(first["alerts"]) == 2
    assert all(text.startswith("checkpoint.address: rank 0 on ") for text in first["alerts"])


def test_nodes_that_share_nothing_do_not_claim_what_is_nowhere_whole(
    runs: dict[str, Any],
) -> None:
    for each in runs["address lost, apart"]:
        assert each["saved"] == []
        assert each["error"].startswith("JobFailedError: step 4 could not be saved: rank 0 on ")
