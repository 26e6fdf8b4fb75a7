import re
import subprocess
import sys

import pytest
from project import FAST, ROOT, make_project

from analysis_lib.__main__ import main


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = make_project(tmp_path, fast=FAST)
    monkeypatch.chdir(project)
    return project


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out
    for command in (
        "run",
        "build",
        "sweep",
        "corpus",
        "zoo",
        "test",
        "sync",
        "check",
        "doctor",
    ):
        assert re.search(rf"^    {command} ", words, re.MULTILINE), command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "fast", "-p", "sed=1"], "unknown parameter: sed (did you mean seed?)"),
        (["run", "fast", "-p", "seed"], "write a parameter as name=value, not 'seed'"),
        (["run", "fast", "-p", "seed=x"], "parameter seed takes int, got 'x'"),
        (["run", "fast", "-y", "[1]"], "parameters in YAML are a mapping"),
        (["run", "fast", "-f", "no.yaml"], "cannot read no.yaml"),
        (["run", "fats"], "no notebook or named run 'fats'; there is fast"),
        (["run"], "name a notebook (fast), or give --all"),
        (["run", "fast", "--all"], "run --all takes no notebook"),
        (["sweep", "fast"], "at least one -g"),
        (["build", "--no-run"], "not current: fast; python -m analysis_lib run fast"),
        (["zoo", "describe", "nothing"], "no recipe for 'nothing'"),
        (["corpus", "make", "nothing"], "not a bundled corpus"),
    ],
)
def test_bad_input_is_one_sentence(project, capsys, words, said):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_exit_code_reaches_the_shell(project):
    command = [sys.executable, "-m", "analysis_lib", "run", "fast", "-p", "sed=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_run_prints_what_was_glued_and_where_it_is(project, capsys):
    script = project / "notebooks" / "fast.py"
    script.write_text(
        FAST.replace("print(seed", "from analysis_lib.notebook import glue\n"
                     "glue(double=2 * seed)\nprint(seed")
    )  # fmt: skip
    assert main(["run", "fast", "-p", "seed=4", "-y", "{rate: 0.25}"]) == 0
    words = capsys.readouterr().out.splitlines()
    assert words[1] == "  double = 8"
    assert re.fullmatch(r"executed/fast-[0-9a-f]{8}\.ipynb", words[2])
    assert (project / words[2]).exists()

    assert (
        main(["sweep", "fast", "-g", "seed=4,5", "-o", "t.csv", "-p", "rate=0.25"]) == 0
    )
    said = capsys.readouterr().out
    assert "unchanged" in said, "seed=4 was run above"
    assert (project / "t.csv").read_text() == "seed,double\n4,8\n5,10\n"


def test_failed_run_fails_the_command(project, capsys):
    script = project / "notebooks" / "fast.py"
    script.write_text(FAST + "\n# %%\nraise ValueError('no sound')\n")
    assert main(["run", "--all"]) == 1
    captured = capsys.readouterr()
    assert "ValueError: no sound" in captured.err
    assert main(["build"]) == 2
    assert "no site was built" in capsys.readouterr().err
    assert not (project / "_build").exists()


def test_sync_and_its_check(project, capsys):
    assert main(["sync"]) == 0
    assert capsys.readouterr().out == "fast.ipynb: written\n"


def test_corpus_describe_and_check(tmp_path, capsys):
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    for label in ("robin", "wren"):
        (tmp_path / label).mkdir()
        for number in range(3):
            wave = 0.1 * rng.standard_normal(8000)
            soundfile.write(tmp_path / label / f"{number}.wav", wave, 8000)
    assert main(["corpus", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "6 clips can be read, 0 cannot\n"
    (tmp_path / "wren" / "bad.wav").write_bytes(b"no sound")
    assert main(["corpus", "check", str(tmp_path)]) == 1
    assert "bad.wav" in capsys.readouterr().err
    assert main(["corpus", "describe", str(tmp_path)]) == 0
    words = capsys.readouterr().out
    assert re.search(r"robin\s+3", words)
    assert "bad.wav" in words


def test_make_targets_are_one_line_each():
    text = (ROOT / "Makefile").read_text()
    body = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z-]+):.*## ", line):
            name = match[1]
            body[name] = []
        elif line.startswith("\t"):
            body[name].append(line)
    del body["help"], body["clean"]
    assert {"book", "test", "run", "sync", "check", "site-test"} <= set(body)
    assert all(lines[0].startswith("\t@$(LIB) ") for name, lines in body.items())
    assert all(len(body[name]) == 1 for name in ("book", "test", "run", "site-test"))


def test_the_options_of_pytest_are_passed_on(monkeypatch):
    called = []
    monkeypatch.setattr("subprocess.call", lambda words, **_: called.append(words) or 0)
    assert main(["test", "-m", "site", "tests/test_site.py"]) == 0
    assert called[0][1:] == ["-m", "pytest", "-m", "site", "tests/test_site.py"]
