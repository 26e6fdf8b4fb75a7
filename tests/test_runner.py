import json
import os

import jupytext
import nbformat
import pytest
from project import FAST, make_project, tiny

from analysis_lib.base import AnalysisError
from analysis_lib.freshness import rooms_used, run_key
from analysis_lib.notebook import versions
from analysis_lib.runner import (
    execute,
    execute_all,
    find_root,
    is_current,
    plan,
    record_of,
    tidy,
)


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, fast=FAST)


def test_plan_reads_values_by_declared_type(project):
    run = plan(
        project, "fast", {"seed": "3", "names": "x,y,z", "wide": "true", "limit": "7"}
    )
    assert run.parameters == {
        "seed": 3, "names": ["x", "y", "z"], "rate": 0.5, "wide": True, "limit": 7,
    }  # fmt: skip
    assert "rate" not in run.changed


def test_a_run_of_ones_own_does_not_touch_the_page(project):
    page = plan(project, "fast")
    assert page.output == project / "executed" / "fast.ipynb"
    assert plan(project, "fast", {"seed": "0"}) == page  # its own value, spelled out
    mine, other = (plan(project, "fast", {"seed": str(s)}).output for s in (1, 2))
    assert len({page.output, mine, other}) == 3


def test_named_runs(project):
    preset = project / "notebooks" / "runs" / "wide.yaml"
    preset.write_text("notebook: fast\nparameters: {wide: true, seed: 2}\n")
    run = plan(project, "wide")
    assert (run.name, run.changed) == ("wide", {"wide": True, "seed": 2})
    assert plan(project, "wide", {"seed": "5"}).parameters["wide"] is True
    assert plan(project, "wide", {"seed": "5"}).output != run.output
    preset.write_text("notebook: fast\n")
    with pytest.raises(AnalysisError, match=r"wide\.yaml needs the keys"):
        plan(project, "wide")
    preset.write_text("notebook: fast\nparameters: {wid: true}\n")
    with pytest.raises(AnalysisError, match="did you mean wide"):
        plan(project, "wide")


def test_what_cannot_be_planned_is_refused(project):
    with pytest.raises(AnalysisError, match=r"no notebook or named run 'slow'.*fast"):
        plan(project, "slow")
    with pytest.raises(AnalysisError, match=r"sed \(did you mean seed\?\)"):
        plan(project, "fast", {"sed": "1"})
    with pytest.raises(AnalysisError, match="seed takes int, got 'x'"):
        plan(project, "fast", {"seed": "x"})


def test_root_is_found_from_below(project):
    assert find_root(project / "notebooks" / "runs") == project


def test_key_follows_what_the_result_depends_on(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = project / "notebooks" / "fast.py"
    keys = [run_key(source, {"seed": 0, "names": ["my"]})]

    def changed():
        keys.append(run_key(source, {"seed": 0, "names": ["my"]}))
        return keys[-1] != keys[-2]

    assert not changed()
    source.write_text(FAST + "\n")
    assert changed()
    with (project / "constraints.txt").open("a") as lock:
        lock.write("x==1\n")
    assert changed()
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "a.wav").write_bytes(b"1")
    assert changed()
    (tmp_path / "my" / "a.wav").write_bytes(b"2")
    assert changed()
    os.utime(tmp_path / "my" / "a.wav", (0, 0))
    assert not changed()
    source.write_text("import analysis_lib.sound\n" + FAST)
    assert changed()
    assert run_key(source, {"seed": 1, "names": ["my"]}) != keys[-1]


def test_key_covers_the_rooms_behind_an_import(tmp_path):
    package = tmp_path / "analysis_lib"
    (package / "deep").mkdir(parents=True)
    (package / "near.py").write_text("def f():\n    from analysis_lib import deep\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "weights.bin").write_bytes(b"0")
    (package / "other.py").write_text("")
    script = tmp_path / "x.py"
    script.write_text("from analysis_lib.near import f\n")
    assert rooms_used(script, package) == {"base", "near", "deep"}


def test_tidy_refuses_errors_and_widgets():
    for output in (
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]),
        nbformat.v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}}
        ),
    ):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
        notebook.cells[0].outputs = [output]
        with pytest.raises(AnalysisError, match="cannot show"):
            tidy(notebook)


BROKEN = """\
# %% [markdown]
# # Broken

# %% tags=["parameters"]
seed: int = 0  # random seed

# %%
from analysis_lib.base import AnalysisError

if seed == 0:
    raise AnalysisError("clip dog.wav is empty: record it again")

# %%
if seed == 1:
    1 / 0
"""


def test_failure_is_one_sentence_and_replaces_nothing(tmp_path):
    project = make_project(tmp_path, broken=BROKEN)
    run = plan(project, "broken")
    run.output.parent.mkdir()
    run.output.write_text("the page before")
    with pytest.raises(AnalysisError) as caught:
        execute(run)
    said = str(caught.value)
    assert said.startswith(
        "notebooks/broken.py:8, cell 2: clip dog.wav is empty: record it again ("
    )
    assert "\n" not in said
    assert run.output.read_text() == "the page before"
    trace = run.output.with_suffix(".error.txt").read_text()
    assert "AnalysisError" in trace
    assert "\x1b" not in trace

    other = plan(project, "broken", {"seed": "1"})
    assert execute_all([other], tell=lambda _: None)[0].startswith(
        "notebooks/broken.py:14, cell 4: ZeroDivisionError: division by zero"
    )
    assert not other.output.exists()

    third = plan(project, "broken", {"seed": "2"})
    assert execute_all([third], tell=lambda _: None) == []
    assert is_current(third)


@pytest.fixture(scope="module")
def tiny_project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("tiny"), tiny=tiny())


@pytest.fixture(scope="module")
def tiny_run(tiny_project):
    run = plan(tiny_project, "tiny", {"seed": "1", "layers": "0,4"})
    said: list[str] = []
    assert execute_all([run], tell=said.append) == []
    assert said[0].startswith(f"{run.name}: ")
    return run


def outputs(run):
    notebook = nbformat.read(run.output, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_result_repeats_byte_for_byte(tiny_run):
    before = tiny_run.output.read_bytes()
    assert execute_all([tiny_run], tell=lambda _: None) == []
    assert tiny_run.output.read_bytes() == before  # unchanged, so not run
    assert execute_all([tiny_run], force=True, tell=lambda _: None) == []
    assert tiny_run.output.read_bytes() == before


def test_pieces_of_a_stream_are_joined():
    pieces = [
        nbformat.v4.new_output("stream", name="stdout", text="one\n"),
        nbformat.v4.new_output("stream", name="stdout", text="two\n"),
        nbformat.v4.new_output("stream", name="stderr", text="three\n"),
        nbformat.v4.new_output("display_data", {"text/plain": "4"}),
        nbformat.v4.new_output("stream", name="stdout", text="five\n"),
    ]
    cell = nbformat.v4.new_code_cell("", outputs=pieces)
    tidied = tidy(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    texts = [output.get("text") for output in tidied]
    assert texts == ["one\ntwo\n", "three\n", None, "five\n"]


def test_executed_notebook_is_tidy(tiny_run):
    text = tiny_run.output.read_text()
    assert "0x7f" not in text, "a memory address changes from run to run"
    notebook = json.loads(text)
    assert "papermill" not in notebook["metadata"]
    for cell in notebook["cells"]:
        assert not {"papermill", "execution"} & set(cell["metadata"])
    kinds = {kind for output in outputs(tiny_run) for kind in output.get("data", {})}
    assert "application/vnd.plotly.v1+json" not in kinds
    names = {output.get("name") for output in outputs(tiny_run)}
    assert "stderr" not in names


def test_record_and_box_say_what_was_run(tiny_run, tiny_project):
    record = record_of(tiny_run)
    assert record["parameters"] == {
        "seed": 1, "frequency": 440.0, "layers": [0, 4], "folder": "environment",
    }  # fmt: skip
    assert record["glued"]["name"] == "tone's"
    assert 4 < record["glued"]["ratio"] < 9
    box = next(
        output.data["text/markdown"]
        for output in outputs(tiny_run)
        if "How this page was made" in output.get("data", {}).get("text/markdown", "")
    )
    for words in (
        "python -m analysis_lib run tiny -p seed=1 -p frequency=440.0 -p layers=0,4",
        "`seed=1`",
        "`layers=0,4`",
        "| Seed | 1 |",
        "| Rows drawn | 2 |",
        f"numpy {versions()['numpy']}",
        "`notebooks/tiny.py`, sha256 `",
    ):
        assert words in box, words
    assert record["provenance"]["parameters"] == record["parameters"]


def test_the_command_in_the_box_repeats_the_run(tiny_run, tiny_project):
    import shlex

    words = shlex.split(record_of(tiny_run)["provenance"]["command"])
    assert words[:5] == ["python", "-m", "analysis_lib", "run", "tiny"]
    texts = dict(word.split("=", 1) for word in words[6::2])
    assert set(words[5::2]) == {"-p"}
    assert plan(tiny_project, "tiny", texts) == tiny_run


def test_an_executed_notebook_edited_by_hand_is_stale(tiny_run):
    assert is_current(tiny_run)
    before = tiny_run.output.read_bytes()
    tiny_run.output.write_bytes(before + b"\n")
    assert not is_current(tiny_run)
    tiny_run.output.write_bytes(before)


def test_bounds_are_checked_by_the_notebook(tiny_project):
    run = plan(tiny_project, "tiny", {"frequency": "9000"})
    problems = execute_all([run], tell=lambda _: None)
    assert len(problems) == 1
    assert "parameter frequency: input should be less than 8000" in problems[0]
    assert not run.output.exists()


def test_scripts_are_read_as_jupytext_reads_them(project):
    from analysis_lib.runner import as_notebook

    source = project / "notebooks" / "fast.py"
    ours, theirs = as_notebook(source), jupytext.read(source)
    assert [c.source for c in ours.cells] == [c.source for c in theirs.cells]
    assert [c.id for c in ours.cells] == ["fast-0", "fast-1", "fast-2"]
