"""A Hub on loopback: enough of its HTTP interface for `push_to_hub`, `from_pretrained` and `snapshot_download`.

Files are asked for inline ("regular" upload mode), and Parquet files by LFS as the Hub does, for `datasets` deletes its
own before the commit. There is no Xet. The libraries read the
environment when they are imported: run what should talk to this Hub in a subprocess with `LocalHub.environment()`.

    with LocalHub() as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(home), check=True)
        assert "config.json" in hub.repos["tester/model"]
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

USER = "tester"
Files = dict[str, bytes]


class LocalHub(ThreadingHTTPServer):
    """The server; a context manager.

    Attributes:
        repos: the files of every repository, by its id; those of another branch or of a proposal by "id@revision".
        requests: (method, path) of everything asked, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Files] = {}
        self.requests: list[tuple[str, str]] = []
        self.large: Files = {}  # by the hash of their content

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a subprocess that takes this server for the Hub, with its cache in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_local",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def answer(self) -> None:
        path, body = unquote(self.path.split("?")[0]), self._body()
        self.server.requests.append((self.command, path))
        if path == "/api/whoami-v2":
            access = {"accessToken": {"displayName": "local", "role": "write"}}
            self._json({"name": USER, "type": "user", "orgs": [], "auth": access})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/(?:models|datasets|spaces)/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.*))?)?", path):
            self._repository(match[1], match[2], match[3] or "", body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._large(json.loads(body))
        elif match := re.fullmatch(r"/large/(\w+)", path):
            self.server.large[match[1]] = body
            self._send(200, b"", {})
        elif match := re.fullmatch(r"/(?:datasets/|spaces/)?([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._missing("Not", f"the local Hub does not know {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or USER}/{wanted['name'].split('/')[-1]}"
        reply = {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo}
        if repo in self.server.repos:
            self._json({**reply, "error": "You already created this repo"}, 409)
        else:
            self.server.repos[repo] = {}
            self._json(reply)

    def _files(self, repo: str, revision: str) -> Files | None:
        """The files of a branch, or of a commit that is the last of one; None where there is no such repository."""
        repos = self.server.repos
        of_repo = [files for name, files in repos.items() if name.partition("@")[0] == repo]
        as_commit = next((files for files in of_repo if _revision(files) == revision), repos.get(repo))
        return repos.get(f"{repo}@{revision}", as_commit)

    def _branch(self, repo: str, revision: str) -> Files:
        """The files that a commit changes: of a proposal, where one is asked for."""
        repos = self.server.repos
        if "create_pr=1" in self.path:
            revision = "refs/pr/1"
        return repos[repo] if revision == "main" else repos.setdefault(f"{repo}@{revision}", dict(repos[repo]))

    def _repository(self, repo: str, verb: str | None, rest: str, body: bytes) -> None:
        files = self._files(repo, rest if verb == "revision" else rest.partition("/")[0])
        if files is None:
            return self._missing("Repo", f"Repository {repo} not found")
        if verb == "branch":
            return self._json(bool(self._branch(repo, rest)) and {})
        if verb == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".parquet") else "regular" for path in asked}
            return self._json(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        if verb == "commit":
            files = self._branch(repo, rest)
            _commit(files, body, self.server.large)
            oid = _revision(files)
            made = {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"}
            proposal = {"pullRequestUrl": f"{self.server.url}/{repo}/discussions/1"}
            return self._json(made | proposal if "create_pr=1" in self.path else made)
        if verb == "tree":
            folder = rest.partition("/")[2]  # behind the revision
            inside = {path: data for path, data in files.items() if not folder or path.startswith(f"{folder}/")}
            if folder and not inside:
                return self._missing("Entry", f"No folder {folder} in {repo}")
            return self._json(_listed(inside, folder, "recursive=true" in self.path.lower()))
        if verb == "paths-info":
            asked = json.loads(body)["paths"]
            return self._json([_entry(path, files[path]) for path in asked if path in files])
        if verb == "refs":
            head = {"name": "main", "ref": "refs/heads/main", "targetCommit": _revision(files)}
            return self._json({"branches": [head], "tags": [], "converts": []})
        siblings = [{"rfilename": path} for path in files]
        return self._json(
            {"id": repo, "modelId": repo, "sha": _revision(files), "private": False, "tags": [], "siblings": siblings}
        )

    def _large(self, asked: dict[str, Any]) -> None:
        """Where objects of LFS are sent to."""
        places = {one["oid"]: {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}} for one in asked["objects"]}
        objects = [{"oid": one["oid"], "size": one["size"], "actions": places[one["oid"]]} for one in asked["objects"]]
        self._json({"transfer": "basic", "objects": objects})

    def _file(self, repo: str, revision: str, path: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return self._missing("Repo", f"Repository {repo} not found")
        if path not in files:
            return self._missing("Entry", f"{path} not found in {repo}", {"X-Repo-Commit": _revision(files)})
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{_digest(files[path])}"',
            "X-Repo-Commit": _revision(files),
        }
        return self._send(200, files[path], headers)

    def _missing(self, what: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(404, body, {"X-Error-Code": f"{what}NotFound", "X-Error-Message": message, **(headers or {})})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the tests' output is not a server log."""


def _commit(files: Files, body: bytes, large: Files) -> None:
    """Apply a commit, one JSON object a line, to the files; what was sent by LFS is in `large`."""
    for line in body.decode().splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            files[value["path"]] = large[value["oid"]]
        elif operation["key"] == "deletedFile":
            files.pop(value["path"], None)


def _listed(inside: Files, folder: str, deep: bool) -> list[dict[str, object]]:
    """What lies in a folder: all files below it, or its own files and folders."""
    start = f"{folder}/" if folder else ""
    below = {path: path.removeprefix(start).split("/") for path in inside}
    if deep:
        return [_entry(path, data) for path, data in inside.items()]
    folders = sorted({start + parts[0] for parts in below.values() if len(parts) > 1})
    found: list[dict[str, object]] = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
    return found + [_entry(path, inside[path]) for path, parts in below.items() if len(parts) == 1]


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": _digest(data)}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _revision(files: Files) -> str:
    """Commit id: a function of the content alone."""
    return _digest(json.dumps(sorted((path, _digest(data)) for path, data in files.items())).encode())
