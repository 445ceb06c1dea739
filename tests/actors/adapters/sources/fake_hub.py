"""A hub of this machine: as much of the real one's interface as huggingface_hub uses to download.

Large files are stored elsewhere, under another host name, as the real hub does it.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)")
LARGE = "adapter_model.safetensors"


class Repository:
    def __init__(self):
        self.commits = {}  # commit -> name -> content
        self.refs = {}  # branch or tag -> commit
        self.is_gated = False
        self.token = None  # that reads it, if it is private


class FakeHub:
    """Repositories, what was asked of them, and what goes wrong.

    ``faults`` are answers to come, by a path's end: a status, or a function of the handler and the
    content that it should answer with.
    """

    def __init__(self):
        self.repositories = {}
        self.asked = []  # (method, path without what is quoted, authorization)
        self.faults = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.url, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def push(self, name, files, ref="main"):
        """Commit files to a branch; return the commit."""
        repository = self.repositories.setdefault(name, Repository())
        said = repr((sorted(files.items()), len(repository.commits)))
        commit = hashlib.sha1(said.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.refs[ref] = commit
        return commit

    def downloads(self, name=LARGE):
        """How often a file's content was asked for."""
        return sum(
            method == "GET" and "/api/" not in path and path.endswith(name)
            for method, path, _ in self.asked
        )

    def lookups(self):
        return sum("/api/models/" in path for _, path, _ in self.asked)

    def answer(self, handler):
        path = unquote(urlsplit(handler.path).path)
        self.asked.append((handler.command, path, handler.headers.get("authorization")))
        for end, faults in self.faults.items():
            if path.endswith(end) and faults and self._is_about(handler, path, faults[0]):
                fault = faults.pop(0)
                if isinstance(fault, int):
                    self._say(handler, fault, b"", {})
                    return
                handler.fault = fault
        if path.startswith("/storage/"):
            content = self._stored(path.removeprefix("/storage/"))
            self._say(handler, 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        elif found := API.fullmatch(urlsplit(handler.path).path):
            self._describe(handler, found[1], unquote(found[2] or "main"))
        elif found := RESOLVE.fullmatch(path):
            self._resolve(handler, *found.groups())
        else:
            self._say(handler, 404, b"", {})

    def _is_about(self, handler, path, fault):
        """What spoils content has its turn where content is sent."""
        is_content = handler.command == "GET" and not (
            path.endswith(LARGE) and not path.startswith("/storage/")
        )
        return isinstance(fault, int) or is_content

    def _stored(self, digest):
        contents = {
            hashlib.sha256(content).hexdigest(): content
            for repository in self.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        }
        return contents[digest.split("/")[0]]

    def _repository(self, handler, name):
        """The repository, or None: the answer has been given."""
        repository = self.repositories.get(name)
        given = handler.headers.get("authorization")
        if repository is None or (repository.token and given != f"Bearer {repository.token}"):
            self._say(handler, 401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _describe(self, handler, name, revision):
        repository = self._repository(handler, name)
        if repository is None:
            return
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self._say(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [
            {"rfilename": path, "size": len(content), "blobId": blob(content)}
            | ({"lfs": lfs(content)} if path.endswith(LARGE) else {})
            for path, content in sorted(repository.commits[commit].items())
        ]
        said = {"id": name, "sha": commit, "siblings": siblings}
        self._say(handler, 200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _resolve(self, handler, name, commit, path):
        repository = self._repository(handler, name)
        if repository is None:
            return
        if repository.is_gated:
            self._say(handler, 403, b"", {"X-Error-Code": "GatedRepo"})
            return
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            self._say(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob(content)}"'}
        if not path.endswith(LARGE):
            self._say(handler, 200, content, headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {
            "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"',
            "Location": f"{self.storage}/storage/{digest}/{path}",
        }  # fmt: skip
        self._say(handler, 302, b"", headers)

    def _say(self, handler, status, content, headers):
        fault = handler.__dict__.pop("fault", None)
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range", ""))
        if asked and status == 200:
            headers = {**headers, "Content-Range": f"bytes {asked[1]}-/{len(content)}"}
            status, content = 206, content[int(asked[1]) :]
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        try:
            if fault is None:
                handler.wfile.write(content)
            else:
                fault(handler, content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked has gone


def blob(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def lfs(content):
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}


def cut(handler, content):
    """Half of what was announced, and then no more."""
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def other(handler, content):
    """As many bytes, but others."""
    handler.wfile.write(bytes(len(content)))
