"""A server that knows as much of the Hub as its real client asks for when it pushes."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_good"


class Repositories(ThreadingHTTPServer):
    """A Hub that holds files by repository, and the blobs that were sent before they were committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.forget()

    def forget(self) -> None:
        """Hold what it held at first."""
        self.files: dict[str, dict[str, bytes]] = {"me/open": {}}
        self.private = {"me/open": False}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Hub(BaseHTTPRequestHandler):
    """Making a repository, and a commit of small files in its text and of large ones sent before it."""

    server: Repositories  # type: ignore[override]

    def do_POST(self) -> None:
        """Answer what the client asks for as the Hub does."""
        body, path = self.body(), self.path.split("?")[0]
        self.server.asked.append(path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        for pattern, reply in ROUTES.items():
            if found := re.fullmatch(pattern, path):
                return reply(self, body, *found.groups())
        return self.answer(404, {})

    def do_PUT(self) -> None:
        """A large file's content."""
        content = self.body()
        oid = self.path.removeprefix("/blobs/")
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, {})
        self.server.blobs[oid] = content
        return self.answer(200, {})

    def do_GET(self) -> None:
        """Facts of a repository."""
        name = self.path.split("?")[0].removeprefix("/api/models/")
        if name not in self.server.files:
            return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        return self.answer(200, {"id": name, "sha": "a" * 40, "private": self.server.private[name], "tags": []})

    def create(self, body: bytes) -> None:
        """A repository, in the name of the token's owner alone."""
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in self.server.files:
            return self.answer(409, {"url": f"{self.server.url}/{name}", "error": "You already created this repo"})
        self.server.files[name] = {}
        self.server.private[name] = asked.get("visibility") == "private"
        return self.answer(200, {"url": f"{self.server.url}/{name}"})

    def validate(self, body: bytes) -> None:
        """A card whose base model can not be a Hub id is refused."""
        base = re.search(r"^base_model: (.*)$", json.loads(body)["content"], re.MULTILINE)
        good = base is None or re.fullmatch(r"[\w.-]+/[\w.-]+", base[1])
        self.answer(200 if good else 400, {} if good else {"errors": [{"message": '"base_model" must be a model id'}]})

    def modes(self, body: bytes, name: str) -> None:
        """How each file is to be sent."""
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.answer(200, {"files": files})

    def places(self, body: bytes) -> None:
        """Where large files are to be sent."""
        verify = {"href": f"{self.server.url}/verify"}
        places = [
            wanted | {"actions": {"upload": {"href": f"{self.server.url}/blobs/{wanted['oid']}"}, "verify": verify}}
            for wanted in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": places})

    def verify(self, body: bytes) -> None:
        """Whether a large file came."""
        self.answer(200 if json.loads(body)["oid"] in self.server.blobs else 404, {})

    def commit(self, body: bytes, name: str) -> None:
        """Small files in the request itself, large ones by what they hash to."""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[name][value["path"]] = self.server.blobs[value["oid"]]
        page = f"{self.server.url}/{name}/commit/{'c' * 40}"
        self.answer(200, {"commitUrl": page, "commitOid": "c" * 40})

    def body(self) -> bytes:
        """The content of the request, sent in pieces or at once."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, code: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        for name, text in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


ROUTES = {
    "/api/repos/create": Hub.create,
    "/api/validate-yaml": Hub.validate,
    r"/api/models/(\w+/\w+)/preupload/main": Hub.modes,
    r"/\w+/\w+\.git/info/lfs/objects/batch": Hub.places,
    "/verify": Hub.verify,
    r"/api/models/(\w+/\w+)/commit/main": Hub.commit,
}


def environment(endpoint: str, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Settings of the Hub's client, which reads them but once. Its newer way of sending needs a server of its own."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return settings | ({"HF_TOKEN": token} if token else {})
