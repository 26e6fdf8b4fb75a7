import json

import pytest
from project import FAST, ROOT, make_project

from analysis_lib.pairs import drift, scripts, sync


def test_the_pairs_of_the_book_say_the_same():
    assert scripts(ROOT)
    assert drift(ROOT) == []


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path, fast=FAST)
    assert sync(project) == ["fast.ipynb"]
    return project


def test_sync_writes_what_differs_only(project):
    assert drift(project) == []
    assert sync(project) == []
    before = (project / "notebooks" / "fast.ipynb").read_bytes()
    (project / "notebooks" / "fast.py").write_text(FAST + "\n# %%\n1 + 1\n")
    assert sync(project) == ["fast.ipynb"]
    assert (project / "notebooks" / "fast.ipynb").read_bytes() != before


def edit(project, change):
    path = project / "notebooks" / "fast.ipynb"
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))
    return drift(project)


def test_changed_code_is_drift(project):
    def change(notebook):
        notebook["cells"][2]["source"] = ["print(1)"]

    (problem,) = edit(project, change)
    assert problem.startswith("fast.ipynb differs from fast.py: ")


def test_changed_tags_are_drift(project):
    def change(notebook):
        notebook["cells"][1]["metadata"] = {}

    assert len(edit(project, change)) == 1


def test_outputs_are_drift(project):
    def change(notebook):
        notebook["cells"][2]["outputs"] = [
            {"output_type": "stream", "name": "stdout", "text": ["0"]}
        ]

    assert edit(project, change) == ["fast.ipynb holds outputs: clear them"]


def test_lone_halves_are_drift(project):
    (project / "notebooks" / "fast.ipynb").rename(project / "notebooks" / "lone.ipynb")
    assert drift(project) == [
        "fast.py has no .ipynb: run the sync command",
        "lone.ipynb has no script beside it",
    ]
