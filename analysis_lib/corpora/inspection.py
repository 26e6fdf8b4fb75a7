"""Look at every sound file once: is it whole, how long is it, what is its hash?"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from analysis_lib.base import cache_dir, digest, sha256_file, write_atomically

VERSION = 1
MISSING = "does not exist"


@dataclass(frozen=True)
class FileFacts:
    """What one look at a file found; ``problem`` is empty for a good one."""

    size: int
    changed: int
    sha256: str = ""
    frames: int = 0
    sampling_rate: int = 0
    silent: bool = False
    problem: str = ""


def inspect_files(root: Path, names: Sequence[str]) -> list[FileFacts]:
    """Decode and hash files below ``root``; unchanged ones are not read again.

    A file counts as unchanged while its size and time of change stay.
    """
    memory = cache_dir() / "inspected" / f"{digest(str(root))[:16]}-{VERSION}.json"
    try:
        known = {k: FileFacts(**v) for k, v in json.loads(memory.read_text()).items()}
    except (OSError, ValueError, TypeError):
        known = {}

    def facts(name: str) -> FileFacts:
        path = root / name
        if not path.is_file():
            return FileFacts(0, 0, problem=MISSING)
        stat = path.stat()
        before = known.get(name)
        if before and (before.size, before.changed) == (stat.st_size, stat.st_mtime_ns):
            return before
        return inspect_file(path)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(facts, names))
    fresh = dict(zip(names, found, strict=True))
    if any(known.get(name) != fact for name, fact in fresh.items()):
        text = json.dumps({name: asdict(fact) for name, fact in fresh.items()})
        try:
            with write_atomically(memory) as draft:
                draft.write_text(text)
        except OSError:
            pass  # Without a cache the next load only takes longer.
    return found


def inspect_file(path: Path) -> FileFacts:
    """Decode one file to its end."""
    stat = path.stat()
    size, changed = stat.st_size, stat.st_mtime_ns
    if size == 0:
        return FileFacts(size, changed, problem="is empty (0 bytes)")
    try:
        with soundfile.SoundFile(path) as file:
            rate, declared, frames, peak = file.samplerate, file.frames, 0, 0.0
            for block in file.blocks(1 << 18, dtype="float32", always_2d=True):
                frames += len(block)
                peak = max(peak, float(np.abs(block).max()))
                if not np.isfinite(peak) or not np.isfinite(block).all():
                    problem = "holds samples that are not finite (NaN or infinity)"
                    return FileFacts(size, changed, problem=problem)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        reason = str(error).rsplit(": ", 1)[-1].strip(" .")
        problem = f"cannot be decoded as sound ({reason})"
        return FileFacts(size, changed, problem=problem)
    if frames == 0:
        return FileFacts(size, changed, problem="holds no samples")
    if frames < declared or _ends_early(path, size):
        return FileFacts(size, changed, problem="is truncated: its end is missing")
    return FileFacts(size, changed, sha256_file(path), frames, rate, silent=peak == 0.0)


def _ends_early(path: Path, size: int) -> bool:
    """Whether a RIFF, AIFF or Ogg file stops before its own end.

    libsndfile quietly shortens such files to what is there.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] in (b"RIFF", b"FORM") and len(head) == 8:
            order = "<I" if head[:4] == b"RIFF" else ">I"
            declared = struct.unpack(order, head[4:])[0]
            # Streamed files say 0 or the largest number for "not known".
            return 0 < declared < 0xFFFFFF00 and size < declared + 8
        if head[:4] == b"OggS":
            file.seek(max(size - 66000, 0))
            return not _ends_with_last_page(file.read())
    return False


def _ends_with_last_page(tail: bytes) -> bool:
    """Whether an Ogg stream ends with a whole page that says it is the last."""
    at = tail.rfind(b"OggS")
    header = tail[at : at + 27]
    if at < 0 or len(header) < 27 or not header[5] & 4:
        return False
    segments = tail[at + 27 : at + 27 + header[26]]
    return len(tail) >= at + 27 + header[26] + sum(segments)
