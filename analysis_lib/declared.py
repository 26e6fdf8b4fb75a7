"""The parameters a notebook declares, read from its script without running it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import yaml

from analysis_lib.base import AnalysisError


@dataclass(frozen=True)
class Declared:
    """A parameter as its notebook declares it."""

    name: str
    kind: str
    default: Any
    help: str


def declared_parameters(source: Path) -> dict[str, Declared]:
    """Read the cell tagged ``parameters`` of a notebook.

    Raises
    ------
    AnalysisError
        If a line of the cell is not ``name: type = literal``.
    """
    notebook = jupytext.read(source)
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    found: dict[str, Declared] = {}
    for statement in ast.parse(cells[0].source).body if cells else []:
        if isinstance(statement, ast.ImportFrom):  # of a type, such as Optional
            continue
        try:
            if not isinstance(statement, ast.AnnAssign) or statement.value is None:
                raise ValueError
            name, kind = (
                ast.unparse(statement.target),
                ast.unparse(statement.annotation),
            )
            default = ast.literal_eval(statement.value)
        except ValueError:
            line = cells[0].source.splitlines()[statement.lineno - 1]
            raise AnalysisError(
                f"{source.name}: write a parameter as name: type = value, not {line!r}"
            ) from None
        words = _comments(cells[0].source).get(statement.end_lineno or 0, "")
        found[name] = Declared(name, kind, default, words)
    return found


def parse_value(text: str, declared: Declared) -> Any:
    """Read the text of ``-p name=text`` as the type the notebook declares.

    Lists are written ``1,2,3`` or ``[1, 2, 3]``, an absent optional value ``none``.
    """
    try:
        return _parse(text, declared.kind)
    except ValueError:
        raise AnalysisError(
            f"parameter {declared.name} takes {declared.kind}, got {text!r}"
        ) from None


def _parse(text: str, kind: str) -> Any:
    text = text.strip()
    if match := re.fullmatch(r"Optional\[(.+)\]", kind):
        return None if text.lower() in ("none", "null") else _parse(text, match[1])
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        if text.startswith("["):
            items = [str(item) for item in yaml.safe_load(text)]
        else:
            items = text.split(",") if text else []
        return [_parse(item, match[1]) for item in items]
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return {"int": int, "float": float, "str": str}[kind](text)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.end[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
