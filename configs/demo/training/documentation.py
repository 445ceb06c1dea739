"""English text that every Python installation carries: the documentation of its own library.

Docstrings are read from the source files without importing them, so nothing runs; the language
reference comes from `pydoc_data.topics`, the text behind `help("for")`.
"""

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]

# Tests, bundled programs and generated tables: little prose, or not the library's own.
SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
# A longer text is cut into pieces of about this size, so that no single one fills many rows.
PIECE_CHARACTERS = 1600


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing: its dotted name and its docstring."""

    name: str
    text: str


def library_entries() -> list[Entry]:
    """Return the docstrings of the standard library's public modules, classes and functions."""
    root = Path(sysconfig.get_path("stdlib"))
    entries = [entry for path in sorted(root.rglob("*.py")) for entry in _entries_of(path, root)]
    seen: dict[str, Entry] = {}
    for entry in entries:
        seen.setdefault(entry.text, entry)
    return list(seen.values())


def reference_pieces() -> list[str]:
    """Return the language reference, in pieces of a few paragraphs."""
    return [piece for name in sorted(topics) for piece in pieces(topics[name])]


def pieces(text: str) -> Iterator[str]:
    """Cut a text between paragraphs into pieces of about PIECE_CHARACTERS."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += ("\n\n" if piece else "") + paragraph.strip("\n")
    if piece:
        yield piece


def summary(entry: Entry) -> str | None:
    """Return the docstring's first paragraph as one line, if it is a sentence and not too long."""
    line = " ".join(entry.text.split("\n\n")[0].split())
    if 20 <= len(line) <= 200 and line.endswith(".") and line[0].isupper():
        return line
    return None


def _entries_of(path: Path, root: Path) -> Iterator[Entry]:
    relative = path.relative_to(root)
    if SKIPPED_FOLDERS.intersection(relative.parts):
        return
    parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
    if any(part.startswith("_") for part in parts):
        return
    module = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    yield from _documented(module, ".".join(parts))


def _documented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[Entry]:
    """Yield the node's docstring, then those of its public members, two levels deep at most."""
    text = ast.get_docstring(node)
    if text and len(text) >= 20:
        yield Entry(name, inspect.cleandoc(text))
    for member in node.body:
        if isinstance(member, ast.ClassDef) and not member.name.startswith("_"):
            yield from _documented(member, f"{name}.{member.name}")
        elif isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            text = ast.get_docstring(member)
            if text and len(text) >= 20:
                yield Entry(f"{name}.{member.name}", inspect.cleandoc(text))
