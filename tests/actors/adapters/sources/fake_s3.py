"""An S3 of this machine: as much of its interface as s3fs uses to look up objects and read them."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class FakeS3:
    """Objects by "bucket/key". ``faults`` are statuses of the next answers about a path's end."""

    def __init__(self):
        self.objects = {}
        self.faults = {}
        self.reads = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                fake.answer(self)

            def do_GET(self):
                fake.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def put(self, folder, files):
        self.objects |= {f"{folder}/{name}": content for name, content in files.items()}

    def answer(self, handler):
        url = urlsplit(handler.path)
        path = unquote(url.path).strip("/")
        for end, faults in self.faults.items():
            if path.endswith(end) and faults:
                say(handler, faults.pop(0), b"<Error><Code>InternalError</Code></Error>", {})
                return
        if "list-type" in (asked := parse_qs(url.query)):
            self._list(handler, path, asked.get("prefix", [""])[0])
        elif path not in self.objects:
            say(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>", {})
        else:
            content = self.objects[path]
            if handler.command == "GET":
                self.reads.append(path)
            headers = {
                "ETag": f'"{hashlib.md5(content).hexdigest()}"',
                "Last-Modified": "Sat, 21 Nov 2026 12:00:00 GMT",
            }
            say(handler, 200, content, headers)

    def _list(self, handler, bucket, prefix):
        keys = [path.partition("/")[2] for path in self.objects if path.startswith(f"{bucket}/")]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>"
            for key in sorted(keys)
            if key.startswith(prefix)
        )
        text = f"<ListBucketResult><Name>{bucket}</Name>{found}</ListBucketResult>"
        say(handler, 200, text.encode(), {"Content-Type": "application/xml"})


def say(handler, status, content, headers):
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)
