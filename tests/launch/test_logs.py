from pathlib import Path

import pytest

from trimtab.launch.logs import LogTail, last_words, rank_log, without_secrets


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


def test_rank_logs_sort_by_rank() -> None:
    assert rank_log(Path("/run"), 3) == Path("/run/logs/rank-0003.log")


def test_a_tail_begins_with_what_is_new_and_waits_for_the_file(tmp_path: Path) -> None:
    log, missing = tmp_path / "log", tmp_path / "missing"
    log.write_text("old\n")
    tail, other = LogTail(log), LogTail(missing)
    assert (tail.read_new(), other.read_new()) == ("", "")
    with log.open("a") as file:
        file.write("new\n")
    missing.write_text("there\n")
    assert (tail.read_new(), other.read_new()) == ("new\n", "there\n")
    assert tail.read_new() == ""


def test_a_tail_tears_no_character_and_reads_on_where_it_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = LogTail(log)
    text = "ä\N{GRINNING FACE}x" * 30_000
    log.write_text(text)
    pieces = []
    while piece := tail.read_new():
        pieces.append(piece)
    assert len(pieces) == 4  # of 64 KiB, of 210,000 bytes
    assert "".join(pieces) == text
    log.write_bytes(text.encode() + b"\xff")
    assert tail.read_new() == "\N{REPLACEMENT CHARACTER}"
