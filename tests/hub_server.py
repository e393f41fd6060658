"""A stand-in for the Hugging Face Hub: 127.0.0.1, a free port, its own threads, faults on demand.

Only the real client talks to it, in a process of its own with HF_ENDPOINT set. Written from the
client's source (huggingface_hub 2.4: hf_api.py, _commit_api.py, lfs.py, file_download.py).

with HubServer() as hub:
    hub.faults.append(Fault("PUT", "/lfs/", cut_after=1000))
    subprocess.run([...], env={**os.environ, **hub.environment()})
assert hub.repos["lab/x"].files()["config.json"] == b"..."
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_TestTokenOfTheLabWithWriteAccess"
LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Account:
    name: str
    orgs: tuple[str, ...] = ()
    write: bool = True


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]
    title: str


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], title: str, ref: str) -> Commit:
        seed = f"{self.name} {len(self.commits)} {title}".encode()
        made = Commit(hashlib.sha1(seed).hexdigest(), files, title)
        self.commits[made.oid] = made
        self.refs[ref] = made.oid
        return made

    def at(self, revision: str) -> Commit | None:
        oid = self.refs.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        found = self.at(revision)
        assert found is not None
        return {name: text for name, text in found.files.items() if name != ".gitattributes"}

    @property
    def titles(self) -> list[str]:
        return [made.title for made in self.commits.values()][1:]


@dataclass
class Fault:
    """What goes wrong once with a request: another status, or a connection that is cut.

    `cut_after` bytes of the body, received of an upload or sent of a download, the connection is
    cut; `then_cut` does the work first and cuts instead of answering; `action` is called first.
    """

    method: str
    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    then_cut: bool = False
    action: Callable[[], object] | None = None


@dataclass
class Request:
    method: str
    path: str
    status: int = 0
    received: int = 0


class RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubServer:
    """The stand-in.

    Attributes:
        repos: By full name.
        accounts: By token.
        blobs: What large-file storage has, by SHA-256.
        requests: The log, in order of arrival.
        faults: Each is used up by the first request that it fits.
        chunk_size: Above it, uploads go in parts of this size.
        drop_privacy: Whether new repositories are public whatever was asked.
        bare: Whether new repositories have no first commit, and nobody is told who they are.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.accounts = {TOKEN: Account("tester", ("lab", "my-org"))}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: deque[Fault] = deque()
        self.chunk_size: int | None = None
        self.drop_privacy = self.bare = False
        self.lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.005,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """What a process needs to talk to this server and to nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def add_repo(self, name: str, files: dict[str, bytes] | None = None, **traits: Any) -> Repo:
        repo = self.repos[name] = Repo(name, **traits)
        if self.bare:
            return repo
        repo.commit(
            {".gitattributes": b"*.safetensors filter=lfs\n"} | (files or {}), "init", "main"
        )
        return repo

    def uploads(self) -> list[str]:
        """The SHA-256 of every object that was put into storage, in order, repetitions too."""
        done = [r.path for r in self.requests if r.status == 200]
        return [path.split("/")[2] for path in done if re.fullmatch(r"/lfs/\w+(/complete)?", path)]

    def paths(self, method: str) -> list[str]:
        return [request.path for request in self.requests if request.method == method]


class _Server(ThreadingHTTPServer):
    owner: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def log_message(self, *_: object) -> None:
        """Quiet: the log is `HubServer.requests`."""

    def _handle(self) -> None:
        self.hub = self.server.owner
        parts = urlsplit(self.path)
        self.where, self.query = unquote(parts.path), parse_qs(parts.query)
        self.entry = Request(self.command, self.where)
        with self.hub.lock:
            self.hub.requests.append(self.entry)
            self.fault = next(
                (
                    fault
                    for fault in self.hub.faults
                    if fault.method == self.command and re.search(fault.path, self.where)
                ),
                None,
            )
            if self.fault:
                self.hub.faults.remove(self.fault)
        if self.fault and self.fault.action:
            self.fault.action()
        body = self._receive()
        if body is None:
            return
        try:
            if self.fault and self.fault.status:
                self._reply(self.fault.status, {"error": "planted"}, self.fault.headers)
                return
            with self.hub.lock:
                answer = self._route(body)
            if self.fault and self.fault.then_cut:
                self.close_connection = True
                return
            if answer is not None:
                self._reply(200, answer)
        except RefusedError as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            if refusal.message:
                headers["X-Error-Message"] = refusal.message
            self._reply(refusal.status, {"error": refusal.message or refusal.code}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _receive(self) -> bytes | None:
        """The body; None if a fault cut it. Uploads of open files come in chunks."""
        limit = self.fault.cut_after if self.fault and self.command != "GET" else None
        blocks: list[bytes] = []
        for block in self._blocks():
            blocks.append(block)
            self.entry.received += len(block)
            if limit is not None and self.entry.received >= limit:
                self.close_connection = True
                self.connection.close()
                return None
        return b"".join(blocks)

    def _blocks(self) -> Any:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, 1 << 16))
            if not block:
                raise ConnectionError
            left -= len(block)
            yield block

    def _route(self, body: bytes) -> Any:
        for method, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, self.where)
            if match and self.command in method:
                return getattr(self, handler)(body, *match.groups())
        raise RefusedError(404)

    def _reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.entry.status = status
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut_after if self.fault else None
        self.wfile.write(data[:cut])
        if cut is not None and cut < len(data):
            self.close_connection = True

    # Who asks, and for what.

    def _account(self) -> Account | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            message = "Invalid credentials in Authorization header"
            raise RefusedError(401, message=f"{message}: {token}")  # a server may well repeat it
        return self.hub.accounts.get(token)

    def _member(self, name: str) -> bool:
        account = self._account()
        return account is not None and name.split("/")[0] in (account.name, *account.orgs)

    def _repo(self, name: str, *, write: bool = False, content: bool = True) -> Repo:
        account = self._account()
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._member(name)):
            raise RefusedError(404 if account else 401, "RepoNotFound", "Repository not found")
        if repo.gated and content and not self._member(name):
            raise RefusedError(403 if account else 401, "GatedRepo", "Access is restricted")
        if write and not (account and account.write and self._member(name)):
            raise RefusedError(403, message="You have no rights to write here")
        return repo

    def _commit_at(self, repo: Repo, revision: str) -> Commit:
        found = repo.at(revision)
        if not repo.commits:
            return Commit("", {}, "")
        if found is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # The API.

    def whoami(self, body: bytes) -> Any:
        if self.hub.bare:
            raise RefusedError(404)
        account = self._account()
        if account is None:
            raise RefusedError(401)
        orgs = [{"name": name, "type": "org"} for name in account.orgs]
        return {"type": "user", "name": account.name, "orgs": orgs}

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        account = self._account()
        if account is None:
            raise RefusedError(401, message="Invalid username or password.")
        owner = asked.get("organization") or account.name
        name = f"{owner}/{asked['name']}"
        if owner not in (account.name, *account.orgs) or not account.write:
            raise RefusedError(
                403, message=f"You don't have the rights to create a model under {owner}"
            )
        if name in self.hub.repos:
            raise RefusedError(409, message="You already created this model repo")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add_repo(name, private=private and not self.hub.drop_privacy)
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def validate_yaml(self, body: bytes) -> Any:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}
        return {"errors": [], "warnings": []}

    def info(self, body: bytes, name: str, revision: str | None) -> Any:
        repo = self._repo(name, content=False)
        at = self._commit_at(repo, revision or "main")
        return {
            "id": name,
            "modelId": name,
            "sha": at.oid or None,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in at.files],
        }

    def auth_check(self, body: bytes, name: str, write: str | None) -> Any:
        if self.hub.bare:
            raise RefusedError(404)
        self._repo(name, write=bool(write))
        return {}

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        repo = self._repo(name, write="create_pr" not in self.query)
        at = self._commit_at(repo, revision)
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in at.files:
                entry["oid"] = _oid(path, at.files[path])
            files.append(entry)
        return {"files": files}

    def lfs_batch(self, body: bytes, name: str) -> Any:
        self._repo(name)
        objects = []
        for item in json.loads(body)["objects"]:
            oid, size = item["oid"], item["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.blobs:
                href = f"{self.hub.url}/lfs/{oid}"
                step = self.hub.chunk_size
                upload: dict[str, Any] = {"href": href}
                if step and size > step:
                    count = -(-size // step)
                    urls = {str(i): f"{href}/part/{i}" for i in range(1, count + 1)}
                    upload = {"href": f"{href}/complete", "header": {"chunk_size": step, **urls}}
                verify = {"href": f"{self.hub.url}/lfs/{oid}/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return {"objects": objects, "transfer": "basic"}

    def lfs_put(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, message="checksum mismatch")
        self.hub.blobs[oid] = body
        return {}

    def lfs_part(self, body: bytes, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = body
        self._reply(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def lfs_complete(self, body: bytes, oid: str) -> Any:
        parts = self.hub.parts.pop(oid)
        stated = {part["partNumber"]: part["etag"] for part in json.loads(body)["parts"]}
        found = {n: f'"{hashlib.md5(part).hexdigest()}"' for n, part in parts.items()}
        if stated != found:
            raise RefusedError(400, message="etag mismatch")
        return self.lfs_put(b"".join(parts[n] for n in sorted(parts)), oid)

    def lfs_verify(self, body: bytes, oid: str) -> Any:
        asked = json.loads(body)
        if len(self.hub.blobs.get(oid, b"")) != asked["size"]:
            raise RefusedError(404)
        return {}

    def commit(self, body: bytes, name: str, revision: str) -> Any:
        proposed = "create_pr" in self.query
        repo = self._repo(name, write=not proposed)
        base = self._commit_at(repo, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        parent = header.get("parentCommit")
        if parent and parent != base.oid and not proposed:
            raise RefusedError(
                412, message="A commit has happened since. Please refresh and try again."
            )
        files = dict(base.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise RefusedError(400, message="lfs object missing")
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = f"refs/pr/{number}" if proposed else revision
        made = repo.commit(files, header["summary"], ref)
        answer = {"commitOid": made.oid, "commitUrl": f"{self.hub.url}/{name}/commit/{made.oid}"}
        if proposed:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        return answer

    def paths_info(self, body: bytes, name: str, revision: str) -> Any:
        at = self._commit_at(self._repo(name), revision)
        wanted = parse_qs(body.decode())["paths"]
        return [_entry(path, at.files[path]) for path in wanted if path in at.files]

    def tree(self, body: bytes, name: str, revision: str) -> Any:
        at = self._commit_at(self._repo(name), revision)
        return [_entry(path, content) for path, content in at.files.items()]

    def refs(self, body: bytes, name: str) -> Any:
        repo = self._repo(name)

        def listed(refs: dict[str, str], prefix: str) -> Any:
            return [
                {"name": ref, "ref": prefix + ref, "targetCommit": oid} for ref, oid in refs.items()
            ]

        branches = {ref: oid for ref, oid in repo.refs.items() if "/" not in ref}
        return {
            "branches": listed(branches, "refs/heads/"),
            "tags": listed(repo.tags, "refs/tags/"),
            "converts": [],
        }

    def tag(self, body: bytes, name: str, revision: str) -> Any:
        repo = self._repo(name, write=True)
        tag = json.loads(body)["tag"]
        if tag in repo.tags:
            raise RefusedError(409, message="Tag reference exists already")
        repo.tags[tag] = self._commit_at(repo, revision).oid
        return {}

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        at = self._commit_at(self._repo(name), revision)
        headers = {"X-Repo-Commit": at.oid}
        if path not in at.files:
            self._reply(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        content = at.files[path]
        headers |= {"ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        if path.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(content))
            self._reply(200, b"", headers)
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._reply(200, content, headers)
            return
        first, last = int(span[1]), int(span[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._reply(206, content[first : last + 1], headers)


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (("GET",), r"/api/whoami-v2", "whoami"),
    (("POST",), r"/api/repos/create", "create"),
    (("POST",), r"/api/validate-yaml", "validate_yaml"),
    (("GET",), rf"/api/models/{_ID}(?:/revision/(.+))?", "info"),
    (("GET",), rf"/api/models/{_ID}/auth-check(/write)?", "auth_check"),
    (("POST",), rf"/api/models/{_ID}/preupload/(.+)", "preupload"),
    (("POST",), rf"/api/models/{_ID}/commit/(.+)", "commit"),
    (("POST",), rf"/api/models/{_ID}/paths-info/(.+)", "paths_info"),
    (("GET",), rf"/api/models/{_ID}/tree/(.+)", "tree"),
    (("GET",), rf"/api/models/{_ID}/refs", "refs"),
    (("POST",), rf"/api/models/{_ID}/tag/(.+)", "tag"),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
    (("PUT",), r"/lfs/(\w+)", "lfs_put"),
    (("PUT",), r"/lfs/(\w+)/part/(\d+)", "lfs_part"),
    (("POST",), r"/lfs/(\w+)/complete", "lfs_complete"),
    (("POST",), r"/lfs/(\w+)/verify", "lfs_verify"),
    (("GET", "HEAD"), rf"/{_ID}/resolve/((?:refs/pr/\d+)|[^/]+)/(.+)", "resolve"),
)


def _oid(path: str, content: bytes) -> str:
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        entry["oid"] = hashlib.sha1(f"pointer {oid}".encode()).hexdigest()
    return entry
