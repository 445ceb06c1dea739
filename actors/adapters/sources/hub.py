"""Adapters of the Hugging Face hub, by huggingface_hub: HF_ENDPOINT, HF_TOKEN and the rest hold."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
from huggingface_hub.hf_api import RepoSibling

from weft.actors.adapters.errors import BadAdapter, Unavailable
from weft.actors.adapters.reading import CONFIG_NAME
from weft.actors.adapters.sources.origin import File, Found, needed
from weft.runtime.sources import Remote

# For the answer to one question; HF_HUB_DOWNLOAD_TIMEOUT is how long a download may stand still.
_QUESTION_TIMEOUT_S = 10.0

_COMMIT = re.compile(r"[0-9a-f]{40}")

# Answers that another attempt may change: a request too many, a server that is ill.
_TRANSIENT_STATUS = (408, 425, 429)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return constants.HF_HUB_OFFLINE


class Hub:
    """The hub, or whatever stands in for it at HF_ENDPOINT."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        """``limits`` are the bytes that each file may have."""
        self._limits = limits
        self._api = HfApi()

    def find(self, source: Remote) -> Found:
        """Ask which commit a revision is, and what lies there."""
        with _explained(source):
            info = self._api.model_info(
                source.repository,
                revision=source.revision,
                files_metadata=True,
                timeout=_QUESTION_TIMEOUT_S,
            )
            if info.sha is None or _COMMIT.fullmatch(info.sha) is None:
                raise ValueError(f"{info.sha} is no commit")
            prefix = f"{source.folder}/" if source.folder else ""
            there = {
                sibling.rfilename.removeprefix(prefix): sibling
                for sibling in info.siblings or ()
                if sibling.rfilename.startswith(prefix)
            }
            files = {name: _file(name, sibling) for name, sibling in there.items()}
        return Found(source.at(info.sha), needed(source, files, self._limits))

    def get(self, found: Found, file: File, folder: Path) -> None:
        """Download a file, or copy it from the hub's own cache if it is there."""
        source = found.source
        there = folder / ".hub"
        try:
            with _explained(source):
                path = hf_hub_download(
                    source.repository,
                    file.name,
                    subfolder=source.folder or None,
                    revision=source.revision,
                    local_dir=there,
                )
            Path(path).replace(folder / file.name)
        finally:
            shutil.rmtree(there, ignore_errors=True)


class HubCache:
    """What others have downloaded into HF_HUB_CACHE, for when the hub is not to be asked."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        """``limits`` are the bytes that each file may have."""
        self._limits = limits

    def find(self, source: Remote) -> Found:
        """Look up what is there."""
        first = self._path(source, CONFIG_NAME)
        if first is None:
            raise BadAdapter(
                f"HF_HUB_OFFLINE is set, and neither adapter_cache nor HF_HUB_CACHE has {source}; "
                f"download it before, or unset HF_HUB_OFFLINE"
            )
        # …/snapshots/{commit}/{folder}/{name}
        commit = first.parts[-2 - len(source.folder.split("/") if source.folder else ())]
        exact = source.at(commit)
        paths = {name: self._path(exact, name) for name in self._limits}
        files = {name: File(name, path.stat().st_size) for name, path in paths.items() if path}
        return Found(exact, needed(source, files, self._limits))

    def get(self, found: Found, file: File, folder: Path) -> None:
        """Copy a file."""
        path = self._path(found.source, file.name)
        if path is None:
            raise Unavailable(f"{file.name} of {found.source} has left HF_HUB_CACHE; try again")
        shutil.copyfile(path, folder / file.name)

    def _path(self, source: Remote, name: str) -> Path | None:
        file = os.path.join(source.folder, name)
        path = try_to_load_from_cache(source.repository, file, revision=source.revision)
        return Path(path) if isinstance(path, str) else None


def _file(name: str, sibling: RepoSibling) -> File:
    """Return what the hub tells of a file: large ones are known by sha256, others by git's hash."""
    if sibling.lfs is not None:
        return File(name, sibling.lfs.size, sha256=sibling.lfs.sha256)
    return File(name, sibling.size, blob=sibling.blob_id)


@contextmanager
def _explained(source: Remote) -> Iterator[None]:
    """Say what the library's errors mean to whoever wants an adapter."""
    repository, hub = source.repository, constants.ENDPOINT
    try:
        yield
    except OfflineModeIsEnabled:
        raise BadAdapter(f"HF_HUB_OFFLINE is set; unset it to download {source}") from None
    except GatedRepoError:
        raise BadAdapter(
            f"{repository} is gated: have its owners grant you access at {hub}/{repository}, and "
            f"give weft a token of yours (HF_TOKEN, or `hf auth login`)"
        ) from None
    except RepositoryNotFoundError:
        raise BadAdapter(
            f"{hub} has no model repository {repository}, or it is private; check the name (a "
            f"folder that is missing is looked for there, too), or set HF_TOKEN to a token that "
            f"may read it"
        ) from None
    except RevisionNotFoundError:
        raise BadAdapter(
            f"{repository} has no revision {source.revision}; send a branch, tag or commit of it"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _TRANSIENT_STATUS or status >= 500:
            raise Unavailable(f"{hub} answered {status} for {source}; try again later") from None
        if status in (401, 403):
            raise BadAdapter(
                f"{hub} does not let weft read {source} ({status}); check HF_TOKEN"
            ) from None
        raise BadAdapter(f"{hub} answered {status} for {source}; check it") from None
    except TransportError as error:
        raise Unavailable(
            f"{hub} cannot be reached for {source}: {error or type(error).__name__}; check the "
            f"network and HF_ENDPOINT"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadAdapter(
            f"{hub} answers as no hub does for {source} ({error}); check HF_ENDPOINT"
        ) from None
