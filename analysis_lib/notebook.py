"""What a notebook's first cells need: parameters, provenance, numbers for its prose."""

from __future__ import annotations

import ast
import difflib
import os
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
from IPython.display import Markdown, display
from pydantic import BaseModel, ConfigDict, ValidationError

from analysis_lib.base import AnalysisError, sha256_file

NOTEBOOK_VARIABLE = "ANALYSIS_NOTEBOOK"
RECORDED_PACKAGES = ("analysis-lib", "numpy", "scikit-learn", "torch", "transformers")
_GLUE_MIME = "application/papermill.record/text/plain"


class Parameters(BaseModel):
    """The typed parameters of a notebook; a chapter subclasses it.

    The notebook's cell tagged ``parameters`` holds the defaults as plain annotated
    assignments; the subclass, in the next cell, repeats the names with their exact
    types and bounds. Values are checked strictly, unknown names are refused, and the
    result cannot be changed afterwards.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", protected_namespaces=()
    )

    @classmethod
    def from_notebook(cls) -> Self:
        """Read the parameters from the notebook that is running, and seed it.

        Works however the notebook was started: by ``python -m analysis_lib run``, by
        plain ``papermill -p``, in JupyterLab, or as a script. If there is a parameter
        ``seed``, the generators of Python, NumPy and PyTorch start from it.

        Raises
        ------
        AnalysisError
            If papermill passed a name the notebook does not have, or a value is
            missing, of the wrong type, or out of bounds.
        """
        space = vars(sys.modules["__main__"])
        fields = list(cls.model_fields)
        refuse_unknown(_injected_names(space.get("In", [])), fields)
        values = {name: space[name] for name in fields if name in space}
        try:
            settings = cls(**values)
        except ValidationError as error:
            raise AnalysisError(_validation_sentence(error)) from None
        _settle(getattr(settings, "seed", None))
        return settings


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise AnalysisError if a given parameter name is not a known one."""
    known = list(known)
    unknown = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            unknown.append(f"{name} (did you mean {near[0]}?)" if near else name)
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise AnalysisError(
            f"unknown parameter{plural}: {', '.join(unknown)}; "
            f"this notebook has {', '.join(known) or 'none'}"
        )


def glue(**values: float | int | str) -> None:
    """Keep numbers and short strings of this run for the prose.

    In a Markdown cell of the same notebook, ``{glue:text}`accuracy:.2f``` then shows
    the value. The runner collects the same values for its tables of runs.
    """
    for name, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError(
                f"glue({name}=…) takes a number or a short string, "
                f"not {type(value).__name__}"
            )
        if isinstance(value, str) and (len(value) > 200 or "\n" in value):
            raise ValueError(f"glue({name}=…) takes one line of at most 200 characters")
        display(
            {_GLUE_MIME: repr(value)},
            raw=True,
            metadata={
                "scrapbook": {
                    "name": name,
                    "mime_prefix": "application/papermill.record/",
                }
            },
        )


def say(text: str) -> None:
    """Show a sentence built from the run's own numbers, as Markdown prose."""
    display(Markdown(text))


def provenance(
    settings: Parameters, encoder: Any = None, corpus: Any = None, **more: Any
) -> None:
    """Show the box "How this page was made".

    Parameters
    ----------
    settings
        The parameters as run.
    encoder, corpus
        Anything with ``name``, ``fingerprint`` and ``licence``.
    **more
        Further rows: an encoder, a corpus, or a plain value under its name
        (underscores in a name read as spaces).
    """
    source = notebook_source()
    parameters = settings.model_dump()
    command = rerun_command(source, parameters)
    rows = {
        "Notebook": _source_row(source),
        "Code": git_state(source.parent if source else Path(__file__).parent),
        "Parameters": ", ".join(
            f"`{k}={show_value(v)}`" for k, v in parameters.items()
        ),
        "Seed": f"{parameters['seed']}" if "seed" in parameters else "",
        "Versions": ", ".join(
            f"{name} {number}" for name, number in versions().items()
        ),
        "Machine": _machine_row(encoder),
        "Model": _describe(encoder),
        "Corpus": _describe(corpus),
    }
    for name, value in more.items():
        rows[name.replace("_", " ").capitalize()] = _describe(value)
    table = "\n".join(
        f"| {name} | {_cell(text)} |" for name, text in rows.items() if text
    )
    box = (
        ":::{admonition} How this page was made\n:class: dropdown provenance\n\n"
        f"| What | As run |\n|:---|:---|\n{table}\n\n"
        f"Run it yourself, with other values if you like:\n\n"
        f"```bash\n{command}\n```\n:::"
    )
    record = {"parameters": parameters, "command": command, "rows": rows}
    display(Markdown(box), metadata={"analysis_lib": record})


def rerun_command(source: Path | None, parameters: Mapping[str, Any]) -> str:
    """Give the shell command that runs a notebook with these parameters."""
    words = ["python", "-m", "analysis_lib", "run", source.stem if source else "NAME"]
    for name, value in parameters.items():
        words += ["-p", f"{name}={show_value(value)}"]
    return shlex.join(words)


def show_value(value: Any) -> str:
    """Write a parameter's value the way ``-p name=value`` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(show_value(item) for item in value)
    return str(value)


def notebook_source() -> Path | None:
    """Find the ``.py`` source of the notebook that is running, if it can be known."""
    space = vars(sys.modules["__main__"])
    named = (
        os.environ.get(NOTEBOOK_VARIABLE)
        or space.get("__vsc_ipynb_file__")
        or os.environ.get("JPY_SESSION_NAME")
        or space.get("__file__")
    )
    if named and Path(named).with_suffix(".py").exists():
        return Path(named).with_suffix(".py").resolve()
    # Plain papermill tells the kernel nothing: take the notebook that holds every
    # cell run so far.
    run = [cell.strip() for cell in space.get("In", []) if not _is_injected(cell)]
    for path in sorted(Path(__file__).parents[1].glob("notebooks/*.py")):
        text = path.read_text(encoding="utf-8")
        if any(run) and all(cell in text for cell in run):
            return path
    return None


def git_state(folder: Path) -> str:
    """Describe the commit a folder is at, and whether its code was changed since."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not root or not commit:
        return "not in a git checkout"
    watched = ("analysis_lib", "notebooks", "constraints.txt")
    changed = _git(Path(root), "status", "--porcelain", "--", *watched)
    return f"commit `{commit}`" + (", with changes not committed" if changed else "")


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages a page's numbers rest on."""
    found = {"Python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        found[package] = metadata.version(package)
    return found


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _is_injected(cell: str) -> bool:
    return cell.lstrip().startswith("# Parameters\n")


def _injected_names(cells: Iterable[str]) -> list[str]:
    """Names assigned by the cells papermill put in front of the notebook's own."""
    return [
        target.id
        for cell in cells
        if _is_injected(cell)
        for statement in ast.parse(cell).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]


def _validation_sentence(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"])
        got = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
        why = problem["msg"].removeprefix("Value error, ")
        parts.append(f"parameter {where}: {why[0].lower()}{why[1:]}{got}")
    return "; ".join(parts)


def _settle(seed: int | None) -> None:
    """Seed every generator: a page repeats exactly."""
    import torch

    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries still read it)
        torch.manual_seed(seed)


def _source_row(source: Path | None) -> str:
    if source is None:
        return "an unsaved notebook"
    return f"`{source.parent.name}/{source.name}`, sha256 `{sha256_file(source)[:16]}`"


def _machine_row(encoder: Any) -> str:
    import torch

    device = getattr(encoder, "device", "cpu")
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    return (
        f"{platform.system()} {platform.machine()}, device {device}, "
        f"{threads} thread{plural}"
    )


def _describe(value: Any) -> str:
    """One line on a model, a corpus, or a plain value."""
    if value is None:
        return ""
    if not hasattr(value, "fingerprint"):
        return show_value(value)
    parts = [f"`{value.name}`"]
    if hasattr(value, "table"):
        parts.append(f"{len(value.table)} clips")
    if getattr(value, "source", ""):
        parts.append(f"from {value.source}")
    parts.append(f"fingerprint `{value.fingerprint[:16]}`")
    licence = str(value.licence).strip().splitlines()
    parts.append(f"licence: {licence[0] if licence else 'not stated'}")
    skipped = list(getattr(value, "skipped", ()))
    if skipped:
        shown = "; ".join(skipped[:3]) + ("; …" if len(skipped) > 3 else "")
        parts.append(f"{len(skipped)} skipped ({shown})")
    return ", ".join(parts)


def _cell(text: str) -> str:
    """Make text safe inside one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
