"""Compiles a C file for this very processor and loads it; the result is kept for the next start."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# Contraction to fused multiply-add is wanted; reordering of sums is not, or results would depend
# on how the compiler unrolls. Nor is vectorising of loops that are not written with vectors: some
# copies of a sum would then be contracted and others not.
FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-pthread", "-fPIC", "-shared", "-fno-math-errno",
    "-fno-tree-vectorize",
)  # fmt: skip
COMPILE_TIMEOUT_S = 120

# Of headers that all sources share.
_FOLDER = Path(__file__).parent

log = logging.getLogger("weft.kernels")


def load(source: Path) -> ctypes.CDLL | None:
    """Return the library of a C file, None if this machine cannot make it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    folder = _cache_folder()
    if compiler is None or folder is None:
        log.info("no C compiler, or nowhere to keep what it makes: %s is not used", source.name)
        return None
    library = folder / f"{source.stem}-{_key(source, compiler)}.so"
    try:
        if not library.exists():
            _compile(compiler, source, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", b"") or b""
        log.warning("%s cannot be compiled: %s %s", source.name, error, output.decode()[-500:])
        return None


def _compile(compiler: str, source: Path, library: Path) -> None:
    """Compile beside the place and rename: several runners may do this at once."""
    with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as made:
        pass
    try:
        command = [compiler, *FLAGS, f"-I{_FOLDER}", str(source), "-o", made.name]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_TIMEOUT_S)
        os.replace(made.name, library)
    finally:
        Path(made.name).unlink(missing_ok=True)


def _cache_folder() -> Path | None:
    """Return a folder that belongs to this user alone: what lies in it is run."""
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")
    if not home:
        return None
    folder = Path(home) / ("weft" if os.environ.get("XDG_CACHE_HOME") else ".cache/weft")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    found = folder.lstat()
    is_ours = found.st_uid == os.getuid() and found.st_mode & 0o022 == 0
    return folder if is_ours and os.access(folder, os.W_OK) else None


def _key(source: Path, compiler: str) -> str:
    """Return a name for what the compiler would make, from all that it depends on."""
    status = os.stat(compiler)
    headers = sorted(_FOLDER.glob("*.h"))
    sources = [file.read_text() for file in (source, *headers)]
    parts = [*sources, *FLAGS, compiler, str(status.st_mtime_ns), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    # x86 calls them flags, ARM features.
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
