"""A chapter for a class: exercises without their solutions, and with, for the teacher.

Solutions stand in a chapter between ``{solution-start}`` and ``{solution-end}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from analysis_lib.base import AnalysisError, write_atomically
from analysis_lib.runner import as_notebook, plan

EXERCISE = re.compile(
    r"```\{exercise\}\n:label: (?P<label>\S+)\n(?P<text>.*?)```", re.S
)
START = re.compile(r"```\{solution-start\} (?P<label>\S+)\n(?::.*\n)*```\n?")
END = re.compile(r"```\{solution-end\}\n```\n?")


def hand_out(root: Path, name: str, out: Path) -> list[Path]:
    """Write ``NAME-class.ipynb`` and ``NAME-teacher.ipynb`` to a folder.

    Both open in plain Jupyter: directives of the book have become headings.

    Raises
    ------
    AnalysisError
        If there is no such notebook, it has no exercises, or a handed-out file is
        there already: someone may have worked in it.
    """
    chapter = as_notebook(plan(root, name).source)
    if not labels(chapter):
        raise AnalysisError(f"{name} has no exercises with solutions to hand out")
    written = []
    for who, cells in (
        ("class", for_class(chapter)),
        ("teacher", for_teacher(chapter)),
    ):
        path = out / f"{name}-{who}.ipynb"
        if path.exists():
            raise AnalysisError(
                f"{path} is there already: move it away, or give another folder"
            )
        for number, cell in enumerate(cells):
            cell["id"] = f"{who}-{number}"
        notebook = deepcopy(chapter)
        notebook.cells = cells
        out.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as draft:
            draft.write_text(nbformat.writes(notebook) + "\n", "utf-8", newline="\n")
        written.append(path)
    return written


def labels(chapter: NotebookNode) -> list[str]:
    """Labels of the exercises that have a solution."""
    return [
        match["label"]
        for cell in chapter.cells
        for match in START.finditer(cell.source)
        if cell.cell_type == "markdown"
    ]


def for_class(chapter: NotebookNode) -> list[NotebookNode]:
    """The chapter's cells with an empty one in the place of each solution."""
    cells = []
    for cell, label, solves in parts(chapter):
        if not solves:
            cells.append(cell)
        elif label:
            cells.append(new_code_cell(f"# Your answer to {label}.\n"))
    return cells


def for_teacher(chapter: NotebookNode) -> list[NotebookNode]:
    """The chapter's cells with a heading above each solution."""
    cells = []
    for cell, label, _ in parts(chapter):
        if label:
            cells.append(new_markdown_cell(f"#### Solution of {label}"))
        cells.append(cell)
    return cells


def parts(chapter: NotebookNode) -> Iterator[tuple[NotebookNode, str, bool]]:
    """Cut the chapter at the borders of its solutions.

    Yields
    ------
    cell, label, solves
        A cell, the label of the solution that begins with it (or ""), and whether it
        belongs to a solution.
    """
    solves, label = False, ""
    for cell in chapter.cells:
        if cell.cell_type != "markdown":
            yield cell, label, solves
            label = ""
            continue
        rest = cell.source
        while rest:
            border = (END if solves else START).search(rest)
            text = rest[: border.start()] if border else rest
            if text.strip():
                yield _plain(text, cell), label, solves
                label = ""
            rest = rest[border.end() :] if border else ""
            if border:
                label = "" if solves else border["label"]
                solves = not solves


def _plain(text: str, cell: NotebookNode) -> NotebookNode:
    """A cell of this text, with the book's exercises as headings."""
    source = EXERCISE.sub(
        lambda found: f"### Exercise {found['label']}\n\n{found['text'].strip()}\n",
        text.strip(),
    )
    return new_markdown_cell(source, metadata=cell.metadata)
