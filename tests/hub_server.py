"""A stand-in for the Hugging Face Hub: the endpoints that the real client calls to push and pull a model, over HTTP.

Git semantics are kept as far as the client can see them: every commit has its own tree, blobs have git's hashes, large
files go through LFS and come from another origin (``localhost`` instead of ``127.0.0.1``), as from a CDN.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

LARGE = (".safetensors", ".parquet", ".bin", ".pt")
WRITE, READ = "hf_write", "hf_read"


@dataclass
class Model:
    """A repository: its commits, newest last, and who may see it."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def add(self, files: dict[str, bytes]) -> str:
        """Commit a whole tree."""
        listing = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in sorted(files.items())})
        sha = hashlib.sha1(f"{len(self.commits)}{listing}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def tree(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit by its hash, or the newest one of ``main``."""
        if revision == "main" and self.commits:
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubServer(ThreadingHTTPServer):
    """Serves on a free port until ``close``.

    Attributes:
        models: by id.
        requests: method and path of everything that was asked.
        break_off: file name -> how many bytes of it are sent before the connection breaks, once.
        missing: files that every model lists and does not give.
        failing: status that every request is answered with; 0 = none.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, Model] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.break_off: dict[str, int] = {}
        self.missing: set[str] = set()
        self.failing = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}/cdn"

    def close(self) -> None:
        """Stop serving, also on the connections that the client keeps open."""
        from huggingface_hub.utils import close_session

        self.shutdown()
        self.server_close()
        close_session()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        url = urlparse(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.server.requests.append(f"{self.command} {url.path}")
        if self.server.failing:
            return self._answer({"error": "out of order"}, self.server.failing)
        match parts:
            case ["cdn", sha]:
                return self._content(self.server.blobs[sha], sha)
            case ["upload", sha]:
                self.server.blobs[sha] = self.body
                return self._answer({})
            case ["api", "repos", "create"]:
                return self._create()
            case ["api", "validate-yaml"]:
                return self._answer({"errors": [], "warnings": []})
            case ["api", "models", owner, name, *rest]:
                return self._api(f"{owner}/{name}", rest)
            case [owner, git, "info", "lfs", "objects", "batch"]:
                return self._lfs(f"{owner}/{git.removesuffix('.git')}")
            case [owner, name, "resolve", revision, *path]:
                return self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                return self._answer({"error": "no such page"}, 404)

    def _may(self, repo: str, *, write: bool = False) -> bool:
        """Answer, and return False, where the token does not allow it, or there is no such model."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if write and token != WRITE:
            status = 403 if token == READ else 401
            self._answer({"error": "Invalid username or password." if status == 401 else "read-only token"}, status)
            return False
        model = self.server.models.get(repo)
        if model is None or (model.private and token not in (READ, WRITE)):
            self._answer({"error": "Repository not found"}, 404 if token else 401, "RepoNotFound")
            return False
        return True

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != WRITE:
            return self._answer({"error": "Invalid username or password."}, 403 if token == READ else 401)
        if repo in self.server.models:
            return self._answer({"error": "You already created this model repo"}, 409)
        self.server.models[repo] = Model(private=asked.get("visibility") == "private")
        self.server.models[repo].add({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._answer({"url": f"{self.server.url}/{repo}"})

    def _api(self, repo: str, rest: list[str]) -> None:
        write = rest[:1] in (["preupload"], ["commit"])
        if not self._may(repo, write=write):
            return None
        model = self.server.models[repo]
        revision = rest[1] if len(rest) > 1 else "main"
        commit = model.tree(revision)
        if commit is None:
            return self._answer({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        sha, files = commit
        match rest:
            case [] | ["revision", _]:
                siblings = [{"rfilename": name} for name in sorted(files)]
                return self._answer({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": []})
            case ["tree", _, *_]:
                return self._answer([self._entry(name, content) for name, content in sorted(files.items())])
            case ["preupload", _]:
                return self._preupload(files)
            case ["commit", _]:
                return self._commit(repo, model, dict(files))
            case _:
                return self._answer({"error": "no such page"}, 404)

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _preupload(self, files: dict[str, bytes]) -> None:
        answers = []
        for file in json.loads(self.body)["files"]:
            mode, known = "lfs" if file["path"].endswith(LARGE) else "regular", files.get(file["path"])
            oid = None if known is None else hashlib.sha256(known).hexdigest() if mode == "lfs" else _git_hash(known)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def _lfs(self, repo: str) -> None:
        if not self._may(repo, write=True):
            return
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = dict(wanted)
            if wanted["oid"] not in self.server.blobs:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/upload/{wanted['oid']}", "header": {}}}
            answers.append(answer)
        self._answer({"transfer": "basic", "objects": answers})

    def _commit(self, repo: str, model: Model, files: dict[str, bytes]) -> None:
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            match step["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = model.add(files)
        self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if not self._may(repo):
            return None
        model = self.server.models[repo]
        commit = model.tree(revision)
        if commit is None or path not in commit[1] or path in self.server.missing:
            return self._answer({"error": "Entry not found"}, 404, "EntryNotFound")
        if model.gated:
            return self._answer({"error": "Access to this model is restricted"}, 403, "GatedRepo")
        sha, content = commit[0], commit[1][path]
        if not path.endswith(LARGE):
            return self._content(content, _git_hash(content), path, {"X-Repo-Commit": sha})
        etag = hashlib.sha256(content).hexdigest()
        self.server.blobs[etag] = content
        self.server.break_off |= {etag: self.server.break_off.pop(path)} if path in self.server.break_off else {}
        headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"'}
        return self._answer({}, 302, headers={**headers, "Location": f"{self.server.cdn}/{etag}", "ETag": f'"{etag}"'})

    def _content(self, content: bytes, etag: str, path: str = "", headers: dict[str, str] | None = None) -> None:
        start, status = 0, 200
        if asked := self.headers.get("Range"):
            start, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
        self.send_response(status)
        for name, value in ({"ETag": f'"{etag}"'} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = next((self.server.break_off.pop(key) for key in (path, etag) if key in self.server.break_off), None)
        self.wfile.write(content[start : None if limit is None else start + limit])
        if limit is not None:
            self.close_connection = True

    def _answer(
        self, content: Any, status: int = 200, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in ({"X-Error-Code": code} if code else {}).items() | (headers or {}).items():
            self.send_header(name, value)
        if isinstance(content, dict) and "error" in content:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def connect(server: HubServer, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None) -> None:
    """Turn the client of this process to ``server``, as HF_ENDPOINT does for a new one."""
    from huggingface_hub import constants, hf_api
    from transformers.utils import hub

    # Two clients that are made once for the whole process.
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(hub, "_hf_api", None, raising=False)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # the chunk store has a protocol of its own; LFS is the client's other way
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("M6REC_CACHE", str(home / "m6rec"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
