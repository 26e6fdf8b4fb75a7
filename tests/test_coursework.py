"""What a class is handed out: exercises whose solutions are not needed further on."""

from __future__ import annotations

import ast

import nbformat
import pytest
from project import ROOT, make_project

from analysis_lib.__main__ import main
from analysis_lib.base import AnalysisError
from analysis_lib.coursework import hand_out, labels, parts
from analysis_lib.runner import as_notebook, notebook_names

CHAPTERS = [
    name
    for name in notebook_names(ROOT)
    if (ROOT / "notebooks" / f"{name}.py").exists()
    and labels(as_notebook(ROOT / "notebooks" / f"{name}.py"))
]


def names_in(source: str, kind: type[ast.expr_context]) -> set[str]:
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, kind)
    }


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_handed_out_with_and_without_its_solutions(name, tmp_path):
    chapter = as_notebook(ROOT / "notebooks" / f"{name}.py")
    students, teacher = (
        nbformat.read(path, as_version=4) for path in hand_out(ROOT, name, tmp_path)
    )
    whole = [cell.source for cell in chapter.cells if cell.cell_type == "code"]
    kept = [cell.source for cell in teacher.cells if cell.cell_type == "code"]
    assert kept == whole
    solutions = [cell.source for cell, _, solves in parts(chapter) if solves]
    assert solutions
    left = {cell.source for cell in students.cells}
    assert not left & set(solutions)
    text = "\n".join(cell.source for cell in students.cells)
    for label in labels(chapter):
        assert f"### Exercise {label}" in text
        assert f"# Your answer to {label}." in text
    assert "{solution" not in text
    assert "{exercise}" not in text
    nbformat.validate(students)
    nbformat.validate(teacher)


@pytest.mark.parametrize("name", CHAPTERS)
def test_nothing_further_on_needs_a_solution(name):
    chapter = as_notebook(ROOT / "notebooks" / f"{name}.py")
    known: set[str] = set()
    solved: set[str] = set()
    for cell, _, solves in parts(chapter):
        if cell.cell_type != "code":
            continue
        if solves:
            solved |= names_in(cell.source, ast.Store)
            continue
        known |= names_in(cell.source, ast.Store)
        assert not names_in(cell.source, ast.Load) & (solved - known)


def test_work_that_is_there_is_never_overwritten(tmp_path):
    hand_out(ROOT, CHAPTERS[0], tmp_path)
    with pytest.raises(AnalysisError, match="there already"):
        hand_out(ROOT, CHAPTERS[0], tmp_path)


def test_a_chapter_without_exercises_is_refused(tmp_path, monkeypatch, capsys):
    make_project(tmp_path, plain="# %%\nprint(1)\n")
    monkeypatch.chdir(tmp_path)
    assert main(["coursework", "plain"]) == 2
    assert "no exercises" in capsys.readouterr().err
