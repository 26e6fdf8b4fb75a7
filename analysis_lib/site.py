"""From notebooks to the finished site: nothing failed or stale is published."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from analysis_lib.base import AnalysisError, digest, sha256_file
from analysis_lib.runner import Run, execute_all, is_current, notebook_names, plan


def listed_chapters(root: Path) -> list[str]:
    """Name the notebooks that ``_toc.yml`` lists, in reading order."""
    found: list[str] = []

    def walk(entry: object) -> None:
        if isinstance(entry, dict):
            file = entry.get("file")
            if isinstance(file, str) and file.startswith("executed/"):
                found.append(file.removeprefix("executed/"))
            for value in entry.values():
                walk(value)
        elif isinstance(entry, list):
            for item in entry:
                walk(item)

    walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    return found


def build(
    root: Path,
    *,
    execute: bool = True,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Execute every notebook that is not current, then build the site.

    Parameters
    ----------
    execute
        False only builds, from notebooks that are all current.
    force
        Execute and build even what has not changed.

    Returns
    -------
    Path
        The site's ``index.html``.

    Raises
    ------
    AnalysisError
        If ``_toc.yml`` names no notebook or named run, or leaves a notebook out; if a
        notebook fails, an executed one is stale, or Sphinx warns.
    """
    runs = [plan(root, name) for name in listed_chapters(root)]
    left_out = set(notebook_names(root)) - {run.source.stem for run in runs}
    if left_out:
        raise AnalysisError(
            f"{min(left_out)} is in notebooks but not in _toc.yml: add or remove it"
        )
    if execute:
        _make_corpora(runs)
        problems = execute_all(runs, force=force, tell=tell)
        if problems:
            raise AnalysisError("no site was built: " + "; ".join(problems))
    stale = [run.name for run in runs if not is_current(run)]
    if stale:
        raise AnalysisError(
            f"not current: {', '.join(stale)}; python -m analysis_lib run {stale[0]} "
            "brings it up to date"
        )
    index = root / "_build" / "html" / "index.html"
    key, kept = _site_key(root, runs), root / "_build" / "site-key"
    if not force and index.exists() and kept.exists() and kept.read_text() == key:
        tell("site: unchanged")
        return index
    kept.unlink(missing_ok=True)
    _sphinx(root, root / "_toc.yml", root, "-W", "-n", "--keep-going")
    kept.write_text(key)
    return index


def page(root: Path, run: Run) -> Path:
    """Show one executed notebook, such as a run of one's own, as a page by itself.

    Returns
    -------
    Path
        The page, in a folder under ``_build/runs``: the book's site stays as it is.
    """
    folder = root / "_build" / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    contents = folder / "_toc.yml"
    contents.write_text(f"format: jb-book\nroot: executed/{run.name}\n")
    _sphinx(root, contents, folder)  # links to other chapters lead nowhere here
    return folder / "_build" / "html" / "executed" / f"{run.name}.html"


def _make_corpora(runs: list[Run]) -> None:
    """Make the bundled corpora that the notebooks name, before two want the same."""
    from analysis_lib import corpora

    waiting = [run for run in runs if not is_current(run)]
    named = {word for run in waiting for word in run.parameters.values()
             if isinstance(word, str)}  # fmt: skip
    for name in sorted(named & set(corpora.names())):
        corpora.make(name)


def _sphinx(root: Path, contents: Path, output: Path, *strictness: str) -> None:
    start = "from jupyter_book.cli.main import main; main()"
    words = ["build", str(root), "--toc", str(contents), "--path-output", str(output)]
    for old in ("html", ".doctrees"):
        shutil.rmtree(output / "_build" / old, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", start, *words, "-q", *strictness],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"},
    )
    if done.returncode:
        shutil.rmtree(output / "_build" / "html", ignore_errors=True)
        said = done.stderr.strip() or done.stdout.strip()
        raise AnalysisError(f"the site has warnings, so it is not published:\n{said}")


def _site_key(root: Path, runs: list[Run]) -> str:
    """Hash what the site is made of, and what makes it."""
    places = ["_config.yml", "_toc.yml", "constraints.txt", "book"]
    files = [
        file
        for place in (root / name for name in places)
        for file in ([place] if place.is_file() else place.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]
    files += [run.output for run in runs] + list({run.source for run in runs})
    parts = [[str(file.relative_to(root)), sha256_file(file)] for file in sorted(files)]
    return digest(*(text for pair in parts for text in pair), sha256_file(__file__))
