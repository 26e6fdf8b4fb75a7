import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import numpy as np
import pytest
from project import FIXTURES, ROOT
from pydantic import Field

from analysis_lib.base import AnalysisError
from analysis_lib.declared import declared_parameters, parse_value
from analysis_lib.notebook import (
    Parameters,
    glue,
    notebook_source,
    refuse_unknown,
    rerun_command,
    show_value,
)
from analysis_lib.runner import as_notebook

SCRIPTS = [*sorted((ROOT / "notebooks").rglob("*.py")), FIXTURES / "tiny.py"]


class Settings(Parameters):
    seed: int = Field(ge=0)
    layers: list[int] = Field(min_length=1)


@pytest.fixture
def kernel(monkeypatch):
    """Stand in for the namespace of a running kernel."""

    def start(cells, **values):
        main = ModuleType("__main__")
        vars(main).update(values, In=["", *cells])
        monkeypatch.setitem(sys.modules, "__main__", main)

    return start


def test_reads_the_namespace(kernel):
    kernel([], seed=3, layers=[1])
    settings = Settings.from_notebook()
    assert (settings.seed, settings.layers) == (3, [1])
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 4


def test_seeds_every_generator(kernel):
    import torch

    draws = []
    for _ in range(2):
        kernel([], seed=11, layers=[1])
        Settings.from_notebook()
        draws.append((np.random.random(), torch.rand(1).item()))  # noqa: NPY002
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seed": -1, "layers": [1]}, r"parameter seed: .*greater.*got -1"),
        ({"seed": "abc", "layers": [1]}, r"parameter seed: .*integer, got 'abc'"),
        ({"seed": 1.0, "layers": [1]}, r"parameter seed: .*integer, got 1.0"),
        ({"seed": True, "layers": [1]}, r"parameter seed: .*integer, got True"),
        ({"seed": 0, "layers": "[1]"}, r"parameter layers: .*list, got '\[1\]'"),
        ({"seed": 0, "layers": [1, "2"]}, r"parameter layers.1: .*integer, got '2'"),
        ({"seed": 0, "layers": []}, r"parameter layers: .*at least 1"),
        ({"seed": 0}, r"parameter layers: .*required"),
    ],
)
def test_ill_typed_values_are_refused(kernel, values, words):
    kernel([], **values)
    with pytest.raises(AnalysisError, match=words):
        Settings.from_notebook()


def test_injected_unknown_name_is_refused(kernel):
    kernel(["# Parameters\nsed = 3\n"], seed=0, layers=[1], sed=3)
    with pytest.raises(AnalysisError, match=r"sed \(did you mean seed\?\)"):
        Settings.from_notebook()


def test_other_names_of_the_kernel_are_no_parameters(kernel):
    kernel(["x = 1"], seed=0, layers=[1], x=1)
    assert Settings.from_notebook().seed == 0


def test_refusal_lists_what_there_is():
    with pytest.raises(AnalysisError, match=r"unknown parameters: a, b; .* has seed"):
        refuse_unknown(["a", "b"], ["seed"])


@pytest.mark.parametrize(
    ("kind", "value"),
    [("int", 3), ("float", 0.25), ("bool", True), ("str", "a b"), ("list[int]", [1, 2]),
     ("list[str]", ["a", "b"]), ("Optional[int]", None), ("Optional[float]", 1.5),
     ("list[float]", [0.5])],
)  # fmt: skip
def test_values_survive_the_command_line(tmp_path, kind, value):
    script = tmp_path / "x.py"
    script.write_text(f'# %% tags=["parameters"]\np: {kind} = {value!r}  # help\n')
    declared = declared_parameters(script)["p"]
    assert (declared.kind, declared.default, declared.help) == (kind, value, "help")
    assert parse_value(show_value(value), declared) == value


@pytest.mark.parametrize(
    ("kind", "text"), [("int", "1.5"), ("bool", "yes"), ("list[int]", "1,x"),
                       ("float", "fast")],
)  # fmt: skip
def test_text_of_another_type_is_refused(tmp_path, kind, text):
    script = tmp_path / "x.py"
    script.write_text(f'# %% tags=["parameters"]\np: {kind} = None\n')
    with pytest.raises(AnalysisError, match=r"parameter p takes .*, got"):
        parse_value(text, declared_parameters(script)["p"])


def test_unannotated_parameter_is_refused(tmp_path):
    script = tmp_path / "x.py"
    script.write_text('# %% tags=["parameters"]\nseed = 3\n')
    with pytest.raises(AnalysisError, match=r"x\.py: write a parameter as.*seed = 3"):
        declared_parameters(script)


def test_rerun_command_is_quoted_for_a_shell():
    command = rerun_command(
        Path("notebooks/tiny.py"), {"folder": "my sounds", "k": [1]}
    )
    assert command == "python -m analysis_lib run tiny -p 'folder=my sounds' -p k=1"


def test_source_is_found_from_the_cells_alone(kernel, monkeypatch):
    monkeypatch.delenv("ANALYSIS_NOTEBOOK", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    script = sorted((ROOT / "notebooks").glob("*.py"))[0]
    cells = [c.source for c in jupytext.read(script).cells if c.cell_type == "code"]
    kernel([cells[0], "# Parameters\nseed = 1\n", cells[1]])
    assert notebook_source() == script
    kernel(["a = 'in no notebook'"])
    assert notebook_source() is None


@pytest.mark.parametrize("value", [[1], None, True, np.ones(2), {"a": 1}])
def test_only_numbers_and_words_are_glued(value):
    with pytest.raises(TypeError, match="a number or a short string"):
        glue(x=value)


def test_long_text_is_not_glued():
    with pytest.raises(ValueError, match="one line"):
        glue(x="a" * 201)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_parameters_of_each_notebook(script):
    declared = declared_parameters(script)
    assert declared, "a notebook has a cell tagged parameters"
    plain = {"int", "float", "str", "bool"}
    for one in declared.values():
        inner = one.kind.removeprefix("Optional[").removeprefix("list[").rstrip("]")
        assert inner in plain, f"papermill cannot read the type of {one.name}"
        assert one.help, f"{one.name} has no help"
        assert not set("=#") & set(repr(one.default)), f"papermill misreads {one.name}"
    classes = [
        node
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(getattr(base, "id", "") == "Parameters" for base in node.bases)
    ]
    assert len(classes) == 1
    fields = [n.target.id for n in classes[0].body if isinstance(n, ast.AnnAssign)]
    assert fields == list(declared)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "tiny.ipynb"
    nbformat.write(as_notebook(FIXTURES / "tiny.py"), path)
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [(["-p", "sed", "3"], "sed (did you mean seed?)"),
     (["-r", "seed", "4"], "parameter seed: input should be a valid integer, got '4'"),
     (["-p", "layers", "[1]"], "parameter layers: input should be a valid list")],
)  # fmt: skip
def test_plain_papermill_is_checked(pair, tmp_path, words, said):
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(pair),
        str(tmp_path / "out.ipynb"),
    ]
    done = subprocess.run(
        [*command, "--no-progress-bar", *words], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert said in done.stderr


def test_papermill_describes_the_parameters(pair):
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(pair)],
        capture_output=True,
        text=True,
    )
    assert "frequency: float (default 440.0)" in done.stdout
    assert "rows of the table" in done.stdout
