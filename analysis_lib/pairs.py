"""Each notebook is a script and its ``.ipynb`` pair: same cells, no outputs."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
from jupytext.compare import NotebookDifference, compare_notebooks

from analysis_lib.base import write_atomically
from analysis_lib.runner import as_notebook


def sync(root: Path) -> list[str]:
    """Rewrite the ``.ipynb`` pairs that differ from their scripts; name them."""
    changed = []
    for source in scripts(root):
        pair = source.with_suffix(".ipynb")
        text = nbformat.writes(as_notebook(source)) + "\n"
        if not pair.exists() or pair.read_text(encoding="utf-8") != text:
            with write_atomically(pair) as path:
                path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(pair.name)
    return changed


def drift(root: Path) -> list[str]:
    """Give a sentence for each pair whose halves differ in content or has outputs."""
    problems = []
    for source in scripts(root):
        pair = source.with_suffix(".ipynb")
        if not pair.exists():
            problems.append(f"{source.name} has no .ipynb: run the sync command")
            continue
        notebook = nbformat.read(pair, as_version=4)
        if any(cell.get("outputs") for cell in notebook.cells):
            problems.append(f"{pair.name} holds outputs: clear them")
        try:
            compare_notebooks(notebook, jupytext.read(source), fmt="py:percent")
        except NotebookDifference as difference:
            where = str(difference).strip().splitlines()[0]
            problems.append(f"{pair.name} differs from {source.name}: {where}")
    lone = {p.stem for p in (root / "notebooks").glob("*.ipynb")} - {
        p.stem for p in scripts(root)
    }
    problems += [f"{name}.ipynb has no script beside it" for name in sorted(lone)]
    return problems


def scripts(root: Path) -> list[Path]:
    """List the notebooks' scripts, exercises included."""
    return sorted((root / "notebooks").rglob("*.py"))
