"""`trimtab dashboard`: the page that shows a run while it trains, and afterwards."""

import contextlib
import ipaddress
import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from trimtab.core.errors import MissingExtraError, RunDirError
from trimtab.orchestrator.cli.which_run import NewestRunArgument
from trimtab.orchestrator.observation import Observed, observe_runs
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.runs_folder import find_run, runs_root

_MAX_PRINTED_RUNS = 10


def dashboard(
    run: NewestRunArgument = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Where to listen; 0: any free port.")
    ] = 8517,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; others than loopback let others read runs."),
    ] = "127.0.0.1",
    open_browser: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open a browser; by default where there is one."),
    ] = None,
    runs_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs; $TRIMTAB_RUNS_DIR, or ~/.trimtab/runs."),
    ] = None,
) -> None:
    """Serve a page that shows loss, step times, plans and events, live.

    It listens on this machine only and loads nothing from elsewhere. Ctrl-C ends it; the run
    goes on.
    """
    root = runs_root() if runs_dir is None else runs_dir.expanduser().absolute()
    job_id = None
    if run is not None:
        run_dir = find_run(run, root=root)
        _check_whole(run_dir)
        root, job_id = run_dir.path.parent, run_dir.job_id
    _serve(root, job_id, host=host, port=port, open_browser=open_browser)


def _serve(
    root: Path, job_id: str | None, *, host: str, port: int, open_browser: bool | None
) -> None:
    try:
        from trimtab.orchestrator.web.server import bind, make_server
    except ImportError as error:
        raise MissingExtraError(
            f"the dashboard needs the package {error.name}; pip install 'trimtab[monitor]'"
        ) from error
    with bind(host, port) as listener:
        job_id = job_id or _print_runs(root)
        address = f"[{host}]" if ":" in host else host
        page = f"/runs/{job_id}" if job_id else "/"
        url = f"http://{address}:{listener.getsockname()[1]}{page}"
        if not _is_loopback(host):
            typer.echo(
                f"warning: everyone who can reach {host} can read these runs; there is no "
                "password. An SSH tunnel to a loopback port is safer.",
                err=True,
            )
        typer.echo(f"Dashboard: {url}   (Ctrl-C ends it, the run goes on)")
        if _has_browser() if open_browser is None else open_browser:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
            make_server(root, host=host).run(sockets=[listener])


def _check_whole(run: RunDir) -> None:
    """Refuse a damaged run before its page is served, which could only say the same."""
    from trimtab.monitor.store import EventStore

    run.request()
    if run.events.is_file():
        EventStore.open(run.events).close()


def _print_runs(root: Path) -> str | None:
    """Print the newest runs; the id of the newest that can be shown."""
    newest = None
    for run, observed in observe_runs(root, limit=_MAX_PRINTED_RUNS):
        if isinstance(observed, Observed):
            newest = newest or run.job_id
        typer.echo(f"  {_state_text(observed):<10} {run.job_id}")
    if newest is None:
        typer.echo(f"There is no run in {root} yet; `trimtab demo` makes one.")
    return newest


def _state_text(run: Observed | RunDirError) -> str:
    return run.state.state.value if isinstance(run, Observed) else "broken"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_browser() -> bool:
    """Whether someone sits before a screen: no text browser must take over a terminal."""
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return has_screen and sys.stdout.isatty()
