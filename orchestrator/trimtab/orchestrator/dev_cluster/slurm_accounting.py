"""slurmdbd and its database for a development Slurm.

Source: slurmdbd(8), sacctmgr(1), mariadb-install-db(1).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtab.core.errors import JobFailedError
from trimtab.orchestrator.dev_cluster import slurm_config
from trimtab.orchestrator.dev_cluster.commands import program, run
from trimtab.orchestrator.dev_cluster.daemons import Daemons
from trimtab.orchestrator.dev_cluster.slurm_config import CLUSTER, Accounting

PROGRAMS: Final = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb", "mariadb-install-db")
ACCOUNT: Final = "dev"
"""The account that jobs are charged to; another is refused."""
_UP_TIMEOUT_S: Final = 60.0


def start(
    folder: Path,
    daemons: Daemons,
    *,
    user: str,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    """Start what does not run of database and slurmdbd; make cluster, account and user known.

    Raises:
        JobFailedError: One does not come up, or refuses.
    """
    accounting = slurm_config.read_accounting((folder / "etc" / "slurmdbd.conf").read_text())
    tell("starting the database")
    _start_database(folder, daemons, accounting, user=user)
    tell("starting slurmdbd")
    if "slurmdbd" not in daemons.alive:
        daemons.start("slurmdbd", [program("slurmdbd"), "-D"], environment=environment)
    daemons.await_answer(
        "slurmdbd",
        lambda: run([*_sacctmgr(), "list", "cluster"], environment).returncode == 0,
        what="Slurm's accounting",
        timeout_s=_UP_TIMEOUT_S,
    )
    account = f"account={ACCOUNT}"
    for kind, name, options in (
        ("cluster", CLUSTER, []),
        ("account", ACCOUNT, [f"cluster={CLUSTER}"]),
        ("user", user, [account, f"defaultaccount={ACCOUNT}"]),
    ):
        asked = ["assoc", account, f"user={name}"] if kind == "user" else [kind, name]
        if not _is_listed(name, asked, environment):
            _checked([*_sacctmgr(), "add", kind, name, *options], environment)


def _start_database(
    folder: Path, daemons: Daemons, accounting: Accounting, *, user: str
) -> None:
    data = folder / "database"
    options = ["--no-defaults", f"--datadir={data}", f"--user={user}"]
    if not (data / "mysql").is_dir():
        _checked([program("mariadb-install-db"), *options, *_NEW])
    if "mariadbd" not in daemons.alive:
        places = [
            f"--socket={data / 'socket'}",
            "--bind-address=127.0.0.1",
            f"--port={accounting.database_port}",
            "--innodb-buffer-pool-size=64M",
            f"--pid-file={folder / 'mariadbd.pid'}",
        ]
        daemons.start("mariadbd", [program("mariadbd"), *options, *places])
    place = f"--socket={data / 'socket'}"
    client = [program("mariadb"), "--no-defaults", place, f"--user={user}"]
    daemons.await_answer(
        "mariadbd",
        lambda: run([*client, "--execute=SELECT 1"]).returncode == 0,
        what="the database",
        timeout_s=_UP_TIMEOUT_S,
    )
    _checked(client, text=_GRANT.format(password=accounting.database_password))


def _is_listed(name: str, asked: Sequence[str], environment: Mapping[str, str]) -> bool:
    fields = f"format={'user' if asked[0] == 'assoc' else asked[0]}"
    argv = [*_sacctmgr(), "--noheader", "--parsable2", "list", *asked, fields]
    return name in run(argv, environment).stdout.splitlines()


def _sacctmgr() -> list[str]:
    return [program("sacctmgr"), "--immediate", "--quiet"]


_NEW: Final = ("--skip-test-db", "--auth-root-authentication-method=socket")
_GRANT: Final = """
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
GRANT ALL ON slurm.* TO 'slurm'@'localhost';
"""


def _checked(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, *, text: str = ""
) -> None:
    ended = run(argv, environment, text=text)
    if ended.returncode:
        said = " ".join((ended.stderr or ended.stdout).split())
        raise JobFailedError(f"{Path(argv[0]).name} failed: {said}")
