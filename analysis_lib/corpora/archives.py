"""Unpack archives of strangers: plain files below one folder, nothing else."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from analysis_lib.base import AnalysisError

Refuse = Callable[[str, str], None]


def unpack(archive: Path, folder: Path, only: str = "") -> int:
    """Unpack a zip or tar archive into ``folder``.

    Only the bytes of plain files are taken; permissions and times are not.

    Parameters
    ----------
    archive
        Known as zip or tar by its content.
    folder
        Made if need be.
    only
        Members whose path does not contain this text stay packed.

    Returns
    -------
    int
        Number of files written.

    Raises
    ------
    AnalysisError
        If a member would land outside ``folder``, is a link or a device, or the
        archive is damaged. Nothing outside ``folder`` is ever written.
    """
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, folder, only)
        if tarfile.is_tarfile(archive):
            return _unpack_tar(archive, folder, only)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise AnalysisError(
            f"{archive} is damaged ({error}): delete it, and fetch it again."
        ) from error
    raise AnalysisError(f"{archive} is neither a zip nor a tar archive.")


def _unpack_zip(archive: Path, folder: Path, only: str) -> int:
    count = 0
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            # Upper half: the file's kind on Unix, 0 where the packer did not say.
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(archive, member.filename, "is a link or a device")
            target = _target(archive, folder, member.filename)
            if member.is_dir() or only not in member.filename:
                continue
            with packed.open(member) as source:
                _write(source, target)
            count += 1
    return count


def _unpack_tar(archive: Path, folder: Path, only: str) -> int:
    count = 0
    with tarfile.open(archive) as packed:
        for member in packed:
            if not (member.isfile() or member.isdir()):
                raise _refusal(archive, member.name, "is a link or a device")
            target = _target(archive, folder, member.name)
            if member.isdir() or only not in member.name:
                continue
            source = packed.extractfile(member)
            assert source is not None
            _write(source, target)
            count += 1
    return count


def _target(archive: Path, folder: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    outside = ".." in parts or name.startswith(("/", "\\"))
    if outside or PureWindowsPath(name).drive or "\0" in name:
        raise _refusal(archive, name, "leads out of the folder")
    return folder.joinpath(*parts)


def _refusal(archive: Path, name: str, why: str) -> AnalysisError:
    return AnalysisError(
        f"{archive} is refused: its member {name!r} {why}. Fetch it from its publisher."
    )


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
