from pathlib import Path

import pytest

from trimtab.launch.logs import last_words, without_secrets


def test_the_last_words_are_the_last_twelve_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_words(log).splitlines() == [f"line {number}" for number in range(88, 100)]


def test_only_the_words_of_the_attempt_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("--- attempt 1: now\nold\n--- attempt 2: now\nnew\n")
    assert last_words(log, attempt=2) == "new"


def test_only_the_words_after_a_place_count(tmp_path: Path) -> None:
    log = tmp_path / "controller.log"
    log.write_text("old\nnew\n")
    assert last_words(log, start=4) == "new"


def test_a_log_of_any_bytes_and_size_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\x00" * 10_000_000)
    assert len(last_words(log)) == 2_000


def test_a_missing_log_says_nothing(tmp_path: Path) -> None:
    assert last_words(tmp_path / "missing") == ""


def test_values_of_secret_variables_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "hf_marker_marker")
    monkeypatch.setenv("MONKEY_MODE", "1")
    text = "the keys 0123456789abcdef and hf_marker_marker, and 1 more"
    assert without_secrets(text) == "the keys *** and ***, and 1 more"
