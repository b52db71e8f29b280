"""The documents tell the truth: their examples run, their links, commands and options exist.

A fenced block whose info string ends in `test` runs: of ```console test, every line that begins
with `$ trimtab`; of ```python test, all of it. The blocks of one document run in their order in
one folder that holds `configs` and `clusters`.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from trimtab.orchestrator.cli.main import make_app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DOCUMENT_IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
TRIMTAB = (sys.executable, "-m", "trimtab.orchestrator.cli.main")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    language: str
    is_tested: bool
    text: str

    @property
    def commands(self) -> list[str]:
        """Command lines of a console block, a trailing backslash going on in the next line."""
        whole = self.text.replace("\\\n", " ")
        return [line[2:] for line in whole.splitlines() if line.startswith("$ ")]


def blocks(document: Path) -> Iterator[Block]:
    pattern = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for language, info, text in pattern.findall(document.read_text(encoding="utf-8")):
        yield Block(language=language, is_tested="test" in info.split(), text=text)


def console_commands(document: Path, program: str) -> list[list[str]]:
    lines = [
        shlex.split(command, comments=True)
        for block in blocks(document)
        if block.language == "console"
        for command in block.commands
    ]
    return [line for line in lines if line[0].removeprefix(".venv/bin/") == program]


@documents
def test_the_examples_run(document: Path, tmp_path: Path) -> None:
    for folder in ("configs", "clusters"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for block in blocks(document):
        if block.is_tested and block.language == "python":
            run([sys.executable, "-c", block.text], tmp_path)
        elif block.is_tested:
            for command in block.commands:
                program, *arguments = shlex.split(command, comments=True)
                assert program.removeprefix(".venv/bin/") == "trimtab", command
                run([*TRIMTAB, *arguments], tmp_path)


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TRIMTAB_RUNS_DIR": str(folder)},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_the_readme_has_examples_that_run() -> None:
    tested = [block for block in blocks(ROOT / "README.md") if block.is_tested]
    assert {"console", "python"} <= {block.language for block in tested}


@documents
def test_the_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{document.name} links to {target}"


def anchors(document: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@documents
def test_the_commands_and_options_exist(document: Path) -> None:
    known = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]  # a group has it
    for _, *line in console_commands(document, "trimtab"):
        arguments = line[: line.index("--")] if "--" in line else line
        names = [argument for argument in arguments if not argument.startswith("-")]
        if not names:
            continue
        assert names[0] in known, f"{document.name}: trimtab {names[0]}"
        options = {option for param in known[names[0]].params for option in param.opts}
        options |= {"--help"}
        for argument in arguments:
            if re.match(r"--?[a-z]", argument):
                option = argument.partition("=")[0]
                assert option in options, f"{document.name}: trimtab {names[0]} {option}"


@documents
def test_the_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for _, *arguments in console_commands(document, "make"):
        for target in arguments:
            assert "=" in target or target in targets, f"{document.name}: make {target}"


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for target in set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)) - {"help"}:
        assert f"make {target} " in done.stdout


def test_no_document_or_file_names_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = (f"{ROOT}/", f"{Path.home()}/")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not any(folder in text for folder in here), name
