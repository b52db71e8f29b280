from pathlib import Path

from trimtab.launch.api import RankExit, rank_log


def test_rank_logs_sort_by_rank() -> None:
    assert rank_log(Path("/run"), 3) == Path("/run/logs/rank-0003.log")


def test_only_exit_code_zero_is_clean() -> None:
    assert RankExit(rank=0, exit_code=0, signal=None).is_clean
    assert not RankExit(rank=0, exit_code=1, signal=None).is_clean
    assert not RankExit(rank=0, exit_code=None, signal="SIGTERM").is_clean
