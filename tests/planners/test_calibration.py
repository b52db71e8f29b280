import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import InputError
from trimtab.planners.calibration import profile_document, profile_from_document

PROFILES = Path(__file__).parents[1] / "data" / "profiles"

DOCUMENT: dict[str, Any] = {
    "model": "7b",
    "num_gpus": 64,
    "gpus_per_node": 8,
    "quadratic_ms": 5e-6,
    "linear_ms": 0.2,
    "fixed_ms": 600.0,
    "activation_mb_per_token": 4.5,
    "alltoall_mb_per_token": 2.0,
    "v_gb_per_s": {"2": 100.0, "4": 50.0},
    "hidden": 4096,
    "num_layers": 32,
    "token_cap": 6000,
}


def test_units_become_seconds_and_bytes() -> None:
    profile = profile_from_document(DOCUMENT)
    assert profile.quadratic_s == pytest.approx(5e-9)
    assert profile.linear_s == pytest.approx(2e-4)
    assert profile.fixed_s == pytest.approx(0.6)
    assert profile.alltoall_bytes_per_token == 2e6
    assert profile.bytes_per_s(2) == 100e9
    assert profile.degrees == (1, 2, 4)
    assert (profile.evidence, profile.step_fixed_s) == ("published", 0.0)


@pytest.mark.parametrize("name", ["flexsp_7b_a100", "flexsp_13b_a100", "flexsp_30b_a100"])
def test_published_profiles_survive_a_round_trip(name: str) -> None:
    document = json.loads((PROFILES / f"{name}.json").read_text())
    profile = profile_from_document(document)
    again = profile_from_document(json.loads(json.dumps(profile_document(profile))))
    assert again.degrees == profile.degrees == (1, 2, 4, 8, 16, 32, 64)
    assert again.token_cap == profile.token_cap
    assert (again.hidden, again.num_layers) == (document["hidden"], document["num_layers"])
    for field in ("quadratic_s", "linear_s", "fixed_s", "alltoall_bytes_per_token"):
        assert getattr(again, field) == pytest.approx(getattr(profile, field), rel=1e-15)


def test_degrees_may_come_in_any_order() -> None:
    document = DOCUMENT | {"v_gb_per_s": {"16": 10.0, "2": 100.0, "4": 50.0}}
    assert profile_from_document(document).degrees == (1, 2, 4, 16)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quadratic_ms", float("nan"), "quadratic_ms: expected a finite number >= 0, got nan"),
        ("linear_ms", -0.2, "linear_ms: expected a finite number > 0, got -0.2"),
        ("linear_ms", 0, "linear_ms: expected a finite number > 0, got 0"),
        ("fixed_ms", "600", "fixed_ms: expected a finite number >= 0, got '600'"),
        ("alltoall_mb_per_token", float("inf"), "alltoall_mb_per_token: expected a finite"),
        ("token_cap", 0, "token_cap: expected a whole number >= 1, got 0"),
        ("token_cap", 6000.5, "token_cap: expected a whole number >= 1, got 6000.5"),
        ("num_gpus", True, "num_gpus: expected a whole number >= 1, got True"),
        ("model", 7, "model: expected text, got 7"),
        ("evidence", "guessed", "evidence: unknown value 'guessed'"),
        ("v_gb_per_s", [1, 2], "v_gb_per_s: expected an object"),
        (
            "v_gb_per_s",
            {"two": 1.0},
            "v_gb_per_s: expected whole degrees >= 2 as keys, got 'two'",
        ),
        ("v_gb_per_s", {"1": 1.0}, "v_gb_per_s: expected whole degrees >= 2 as keys, got '1'"),
        ("v_gb_per_s", {"2.5": 1.0}, "v_gb_per_s: expected whole degrees"),
        ("v_gb_per_s", {"2": float("nan")}, r"v_gb_per_s\[2\]: expected a finite number > 0"),
        ("v_gb_per_s", {"2": -1}, r"v_gb_per_s\[2\]: expected a finite number > 0, got -1"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        profile_from_document(DOCUMENT | {key: value})


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown key 'token_caps'; did you mean 'token_cap'"):
        profile_from_document(DOCUMENT | {"token_caps": 1})


@pytest.mark.parametrize("key", ["quadratic_ms", "v_gb_per_s", "token_cap", "model"])
def test_a_missing_key_is_named(key: str) -> None:
    document = {name: value for name, value in DOCUMENT.items() if name != key}
    with pytest.raises(InputError, match=f"the key '{key}' is missing"):
        profile_from_document(document)


def test_a_list_is_no_profile() -> None:
    with pytest.raises(InputError, match="expected a JSON object, got list"):
        profile_from_document([])  # type: ignore[arg-type]  # what a user may give


RING: dict[str, Any] = {
    "quadratic_ms": 6e-6,
    "mb_per_token": 0.5,
    "v_gb_per_s": {"3": 80.0, "2": 90.0},
    "latency_ms": {"2": 0.5, "3": 1.0},
    "overlap": 0.75,
}


def test_a_ring_and_latencies_survive_a_round_trip() -> None:
    document = DOCUMENT | {"ring": RING, "alltoall_latency_ms": {"2": 0.25, "4": 0.0}}
    profile = profile_from_document(document)
    assert profile.ring is not None
    assert profile.ring.bytes_per_token == 5e5
    assert profile.degrees == (1, 2, 3, 4)
    assert profile.exchange(2).latency_s == pytest.approx(2.5e-4)
    assert profile.exchange(3, "ring").latency_s == pytest.approx(1e-3)
    written = profile_document(profile)
    assert written["ring"]["v_gb_per_s"] == {"2": 90.0, "3": 80.0}
    assert profile_from_document(json.loads(json.dumps(written))) == profile


def test_a_profile_without_a_ring_is_written_without_one() -> None:
    written = profile_document(profile_from_document(DOCUMENT))
    assert not {"ring", "alltoall_latency_ms"} & written.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quadratic_ms": float("nan")}, "ring.quadratic_ms: expected a finite number >= 0"),
        ({"mb_per_token": -1}, "ring.mb_per_token: expected a finite number >= 0, got -1"),
        ({"overlap": 1.5}, "ring.overlap: expected a number from 0 to 1, got 1.5"),
        ({"overlap": "half"}, "ring.overlap: expected a number from 0 to 1, got 'half'"),
        ({"v_gb_per_s": {}, "latency_ms": {}}, "ring.v_gb_per_s: expected at least one entry"),
        ({"v_gb_per_s": 90}, "ring.v_gb_per_s: expected an object of degree: GB/s, got 90"),
        (
            {"v_gb_per_s": {"2": 0, "3": 1}},
            r"ring.v_gb_per_s\[2\]: expected a finite number > 0",
        ),
        (
            {"latency_ms": {"2": -1, "3": 0}},
            r"ring.latency_ms\[2\]: expected a finite number >=",
        ),
        (
            {"latency_ms": {"2": 1}},
            r"ring.latency_ms: .*degrees of v_gb_per_s, \[2, 3\], got \[2",
        ),
        ({"overlaps": 1}, "ring: unknown key 'overlaps'; did you mean 'overlap'"),
    ],
)
def test_a_bad_value_of_a_ring_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        profile_from_document(DOCUMENT | {"ring": RING | change})


@pytest.mark.parametrize("ring", [None, [], "ring", 3])
def test_what_is_no_object_is_no_ring(ring: Any) -> None:
    with pytest.raises(InputError, match=r"^ring: expected a JSON object, got"):
        profile_from_document(DOCUMENT | {"ring": ring})


def test_a_ring_needs_all_but_latencies() -> None:
    for key in ("quadratic_ms", "mb_per_token", "v_gb_per_s", "overlap"):
        ring = {name: value for name, value in RING.items() if name != key}
        with pytest.raises(InputError, match=f"^ring: the key '{key}' is missing"):
            profile_from_document(DOCUMENT | {"ring": ring})
