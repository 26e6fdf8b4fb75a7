"""What a run's result depends on, as one key."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis_lib.base import digest, sha256_file


def run_key(source: Path, parameters: Mapping[str, Any]) -> str:
    """Hash everything a run's result depends on.

    The script, the rooms of the library it imports (and those they import), the lock
    file, Python's version, the parameters, and the content of every file or folder that
    a parameter names.
    """
    package, root = Path(__file__).parent, source.parents[1]
    lock = root / "constraints.txt"
    parts = [
        source.read_text(encoding="utf-8"),
        lock.read_text(encoding="utf-8") if lock.exists() else "",
        f"{sys.version_info[0]}.{sys.version_info[1]}",
        json.dumps(parameters, sort_keys=True),
        *(sha256_file(package / name) for name in ("freshness.py", "runner.py")),
    ]
    for room in sorted(rooms_used(source, package)):
        parts.append(_tree_digest(_room_files(package, room), package))
    for place in _places_named(parameters.values()):
        files = [place] if place.is_file() else list(place.rglob("*"))
        parts.append(_tree_digest(files, place))
    return digest(*parts)


def rooms_used(source: Path, package: Path) -> set[str]:
    """Name the rooms of the library that a Python file imports, directly or not."""
    found: set[str] = set()
    queue = _imported_rooms(source)
    while queue:
        room = queue.pop()
        if room in found or not _room_files(package, room):
            continue
        found.add(room)
        for file in _room_files(package, room):
            if file.suffix == ".py":
                queue |= _imported_rooms(file)
    return found | {"base"}


def _imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "analysis_lib" and len(words) > 1:
                rooms.add(words[1])
    return rooms


def _room_files(package: Path, room: str) -> list[Path]:
    if (package / f"{room}.py").is_file():
        return [package / f"{room}.py"]
    return [p for p in (package / room).rglob("*") if "__pycache__" not in p.parts]


def _tree_digest(files: Iterable[Path], base: Path) -> str:
    parts: list[str] = []
    for file in sorted(files):
        if file.is_file():
            name = file.name if file == base else file.relative_to(base).as_posix()
            parts += [name, sha256_file(file)]
    return digest(*parts)


def _places_named(values: Iterable[Any]) -> list[Path]:
    """Files and folders that string parameters name."""
    folders = [Path.cwd()]
    if os.environ.get("ANALYSIS_DATA"):
        folders.append(Path(os.environ["ANALYSIS_DATA"]))
    words = [
        word
        for value in values
        for word in (value if isinstance(value, list) else [value])
        if isinstance(word, str) and word
    ]
    # A model of one's own is FILE.py:FUNCTION.
    words += [f"{word.partition('.py:')[0]}.py" for word in words if ".py:" in word]
    places = [place for word in words for f in folders if (place := f / word).exists()]
    return sorted(set(places))
