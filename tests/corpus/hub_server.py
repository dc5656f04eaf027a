"""A stand-in for the Hugging Face hub: serves one folder as `org/sample`, a dataset or a model, to the real client.

Run as `python hub_server.py FOLDER [datasets|models]`; it prints its address and serves until it is stopped.
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40
NAME = "org/sample"
FOLDER = Path(sys.argv[1])
KIND = sys.argv[2] if len(sys.argv) > 2 else "datasets"


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub is asked about a repository: what it is, its folders, and its files in ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Keep quiet."""

    def answer(self, body, status=200, **headers):
        """Send bytes, or anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers |= {"Content-Length": len(content), "Content-Type": "application/json"}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        """Answer a request by its path."""
        path = unquote(urlparse(self.path).path)
        about, tree = f"/api/{KIND}/{NAME}", f"/api/{KIND}/{NAME}/tree/{COMMIT}"
        resolve = f"/{NAME}/resolve/{COMMIT}/" if KIND == "models" else f"/{KIND}/{NAME}/resolve/{COMMIT}/"
        if path in (about, f"{about}/revision/main", f"{about}/revision/{COMMIT}"):
            return self.answer({"id": NAME, "sha": COMMIT, "siblings": [describe(file) for file in files(FOLDER)]})
        if path.startswith(f"{about}/revision/"):
            return self.answer({}, 404, X_Error_Code="RevisionNotFound")
        folder = FOLDER / path.removeprefix(tree).strip("/")
        if path.startswith(tree) and folder.is_dir():
            return self.answer([describe(entry) for entry in sorted(folder.iterdir())])
        file = FOLDER / path.removeprefix(resolve)
        if path.startswith(resolve) and file.is_file():
            return self.answer_file(file.read_bytes())
        code = "EntryNotFound" if NAME in path else "RepoNotFound"
        return self.answer({}, 404, X_Error_Code=code, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def answer_file(self, content):
        """Send a file, or the range of it that was asked for."""
        digest = hashlib.sha256(content).hexdigest()  # the client keeps files by it
        facts = {"ETag": f'"{digest}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if self.command == "HEAD" or "Range" not in self.headers:
            return self.answer(content, **facts)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        piece = content[int(first) : int(last or len(content)) + 1]
        span = f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"
        return self.answer(piece, 206, Content_Range=span, **facts)


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def describe(path):
    name = path.relative_to(FOLDER).as_posix()
    kind = "file" if path.is_file() else "directory"
    return {"rfilename": name, "path": name, "type": kind, "oid": "0", "size": path.stat().st_size}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
