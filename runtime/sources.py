"""Where adapters come from, as configurations and clients write it.

A source is a folder of this machine, a repository of the Hugging Face hub (``org/name``,
``org/name@revision``, or ``hf://org/name@revision/folder`` as huggingface_hub writes it) or a
folder at any other URL that fsspec can read (``s3://bucket/adapters/legal``). Nothing here touches
a network.
"""

from __future__ import annotations

import os.path
import re
from typing import NamedTuple
from urllib.parse import unquote

# It stands in messages, catalogs and logs.
SOURCE_CHARACTERS_MAX = 1024

HUB = "hf"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_FILE = "file"

# What fsspec can read and is no other machine's: it would go round the folders that are allowed.
_LOCAL_SCHEMES = {
    "arrow_hdfs", "asynclocal", "blockcache", "cached", "data", "dir", "filecache", "generic",
    "git", "libarchive", "local", "memory", "reference", "simplecache", "tar", "zip",
}  # fmt: skip

# Each part of a hub's name, by its own rules but for the length.
_HUB_PART = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
_HUB_ID_CHARACTERS_MAX = 256
_HUB_ID = re.compile(rf"{_HUB_PART}/{_HUB_PART}", re.ASCII)
# A pull request's revision has slashes; any other one writes them as %2F.
_HUB_PATH = re.compile(
    r"(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<folder>.+))?",
    re.DOTALL,
)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_MODELS = {"datasets", "spaces", "buckets", "kernels"}

_DIGEST = re.compile(r"(?P<source>.*)#digest=(?P<digest>.*)", re.DOTALL)
_DIGEST_VALUE = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"(?P<url>.*)#version=(?P<version>[0-9a-f]{16})", re.DOTALL)


class BadSource(Exception):
    """A source that means nothing. The message says what to write instead."""


class Remote(NamedTuple):
    """A folder that is not on this machine."""

    scheme: str
    path: str  # "org/name" or "org/name/folder" of the hub; what follows the :// of others
    # Of the hub a branch, tag or commit; of others a mark of the files as they were. None: whatever
    # is there now.
    revision: str | None = None

    def __str__(self) -> str:
        """Return it as it is shown, and as ``parse`` understands it."""
        if self.scheme != HUB:
            mark = "" if self.revision is None else f"#version={self.revision}"
            return f"{self.scheme}://{self.path}{mark}"
        repository, folder = self.repository, self.folder
        revision = "" if self.revision is None else f"@{_quoted(self.revision)}"
        return f"hf://{repository}{revision}{'/' if folder else ''}{folder}"

    @property
    def repository(self) -> str:
        """Of the hub: "org/name"."""
        return "/".join(self.path.split("/")[:2])

    @property
    def folder(self) -> str:
        """Of the hub: the folder in the repository, "" for the repository itself."""
        return "/".join(self.path.split("/")[2:])

    @property
    def is_exact(self) -> bool:
        """Whether it means the same content for ever."""
        if self.scheme != HUB:
            return self.revision is not None
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> Remote:
        """Return the same folder at a revision."""
        return self._replace(revision=revision)


def with_digest(source: str, digest: str | None) -> str:
    """Return a source that says which digest its content must have. Raises ``BadSource``."""
    place, own = split_digest(source)
    if digest is None:
        return source
    if own not in (None, digest):
        raise BadSource("it names one digest, and the field digest another; omit one of them")
    found = f"{place}#digest={digest}"
    split_digest(found)
    return found


def split_digest(source: str) -> tuple[str, str | None]:
    """Return a source without its ``#digest=``, and that digest. Raises ``BadSource``."""
    match = _DIGEST.fullmatch(source)
    if match is None:
        return source, None
    if _DIGEST_VALUE.fullmatch(match["digest"]) is None:
        raise BadSource(
            "after #digest= come the 64 hexadecimal digits that the list of adapters shows as "
            "an adapter's digest; mend or omit them"
        )
    return match["source"], match["digest"]


def is_remote(source: str) -> bool:
    """Whether a source begins as a URL does."""
    return _SCHEME.match(source) is not None


def parse(source: str) -> Remote | str:
    """Return what a source means: a remote folder, or a path of this machine.

    A name without a scheme is a path, though it may be one of the hub as well: see ``hub_id``.
    Raises ``BadSource``.
    """
    match = _SCHEME.fullmatch(source)
    if match is None:
        return source
    if len(source) > SOURCE_CHARACTERS_MAX or not source.isprintable():
        raise BadSource(
            f"a URL is at most {SOURCE_CHARACTERS_MAX} printable characters; send another one"
        )
    scheme, path = match[1].lower(), match[2]
    if "::" in source:
        raise BadSource("URLs within URLs (::) are not followed; send the URL of the folder itself")
    if scheme == _FILE:
        if not path.startswith("/"):
            raise BadSource("a file:// URL is an absolute path, as file:///adapters/legal; mend it")
        return path
    if scheme in _LOCAL_SCHEMES:
        raise BadSource(f"{scheme}:// is not read; send a folder, hf://, s3:// or the like")
    return _hub(path) if scheme == HUB else _url(scheme, path)


def located(source: str, folder: str) -> str:
    """Return a source that does not depend on the folder in which it was written.

    Raises ``BadSource``.
    """
    place, digest = split_digest(source)
    found = parse(place)
    if isinstance(found, str):
        found = hub_id(found, folder) or os.path.join(folder, found)
    return with_digest(str(found), digest)


def hub_id(source: str, folder: str | None) -> Remote | None:
    """Return what ``org/name`` or ``org/name@revision`` means on the hub; None: it is no such id.

    It may be a path relative to ``folder`` just as well, and is one if its first part lies there:
    a folder that is missing is not looked for among what strangers have named so.
    """
    name, at, revision = source.partition("@")
    if _HUB_ID.fullmatch(name) is None or (at and _REVISION.fullmatch(revision) is None):
        return None
    if len(source) > _HUB_ID_CHARACTERS_MAX:
        return None
    if folder is not None and os.path.lexists(os.path.join(folder, name.split("/")[0])):
        return None
    return Remote(HUB, name, revision or None)


def parse_prefix(prefix: str) -> Remote:
    """Return what an entry of ``adapter_sources`` allows. Raises ``BadSource``.

    ``hf://`` allows all of the hub, ``hf://org/`` an organization, and the path of an ``s3://``
    whatever lies below it.
    """
    match = _SCHEME.fullmatch(prefix)
    if match is None:
        found = hub_id(prefix, None)
        if found is None:
            raise BadSource("it must begin with hf://, s3:// or the like; folders: adapter_roots")
        return found
    scheme, path = match[1].lower(), match[2].rstrip("/")
    if scheme == HUB and "/" not in path:
        if path and re.fullmatch(_HUB_PART, path, re.ASCII) is None:
            raise BadSource(f"{path!r} is no name of the hub")
        return Remote(HUB, path)
    if scheme == HUB:
        return _hub(path)
    if scheme == _FILE:
        raise BadSource("folders of this machine are allowed by adapter_roots")
    if scheme in _LOCAL_SCHEMES:
        raise BadSource(f"{scheme}:// is not read")
    return _url(scheme, path) if path else Remote(scheme, "")


def allows(prefix: Remote, source: Remote) -> bool:
    """Whether a source lies where an entry of ``adapter_sources`` allows.

    An entry without a revision allows those that a repository's owners make, and none of those
    that anybody can: ``refs/pr/7`` is a pull request.
    """
    if prefix.scheme != source.scheme:
        return False
    if prefix.revision is None:
        if source.scheme == HUB and (source.revision or "").startswith("refs/"):
            return False
    elif prefix.revision != source.revision:
        return False
    return (
        not prefix.path or source.path == prefix.path or source.path.startswith(f"{prefix.path}/")
    )


def _hub(path: str) -> Remote:
    match = _HUB_PATH.fullmatch(path.rstrip("/"))
    if match is None or _HUB_ID.fullmatch(match["id"]) is None:
        raise BadSource(
            "after hf:// comes org/name, perhaps @revision, perhaps /folder; mend the URL"
        )
    if match["id"].split("/")[0] in _NOT_MODELS:
        raise BadSource("only repositories of models have adapters; send hf://org/name")
    revision = None if match["revision"] is None else unquote(match["revision"])
    if revision is not None and _REVISION.fullmatch(revision) is None:
        raise BadSource(f"{revision!r} is no branch, tag or commit; mend what follows @")
    folder = match["folder"] or ""
    if folder:
        _check_segments(folder)
    return Remote(HUB, f"{match['id']}{'/' if folder else ''}{folder}", revision)


def _url(scheme: str, path: str) -> Remote:
    match = _VERSION.fullmatch(path)
    url, version = (path, None) if match is None else (match["url"], match["version"])
    url = url.rstrip("/")
    if "#" in url or "?" in url:
        raise BadSource(
            "a URL is a folder's, without ? and #, but for #digest=…; credentials come from the "
            "environment of weft, as fsspec reads them"
        )
    if ":" in url.split("/")[0].rpartition("@")[0]:
        raise BadSource("a URL has no password, it is shown to others; use weft's environment")
    _check_segments(url)
    return Remote(scheme, url, version)


def _check_segments(path: str) -> None:
    """Refuse what another machine may take for a way out of the folder that is allowed."""
    for segment in path.split("/"):
        plain = unquote(segment)
        if plain in ("", ".", "..") or "/" in plain or "\\" in plain:
            raise BadSource(f"{segment!r} in a URL's path is not followed; send the plain path")


def _quoted(revision: str) -> str:
    """Write a revision so that no slash of it seems to begin a folder."""
    is_plain = re.fullmatch(r"refs/(?:pr|convert)/[^/]+", revision) is not None
    return revision if is_plain else revision.replace("/", "%2F")
