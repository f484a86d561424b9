# ruff: noqa: N802 - the stand-in's methods are named as the operations are
"""The AWS SDK for JavaScript v3, unmodified, against both wires. Here behind stand-ins for the handlers; the same
script runs against the whole service elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from millstream.api.http import Response
from millstream.api.route import WIRES, route, unbuilt
from millstream.api.validate import validate
from millstream.api.wire import Wire
from millstream.model import shapes as aws
from millstream.model.errors import ServiceError

CLIENTS = Path(__file__).resolve().parents[1] / "clients"


class Standin:
    """One noun in a dict, which answers through the wires under test."""

    def __init__(self) -> None:
        self.builders: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, headers: dict[bytes, bytes], body: bytes) -> Response:
        wire, operation = route(method.encode(), path.encode(), headers)
        try:
            if isinstance(operation, ServiceError):
                raise operation
            request, unknown = wire.decode(operation, body)
            assert unknown == []
            validate(operation, request)
            handler = getattr(self, operation.name, None)
            if handler is None:
                raise unbuilt(operation)
            answered = handler(wire, request)
            return wire.answer(
                answered if isinstance(answered, bytes) else wire.encode(operation, answered), "request-1"
            )
        except ServiceError as error:
            return wire.error(error, "request-1")

    def found(self, name: str) -> dict[str, Any]:
        if name not in self.builders:
            raise aws.ResourceNotFoundException(f"The image builder {name} is not there.")
        return self.builders[name]

    def CreateImageBuilder(self, _: Wire, request: dict[str, Any]) -> dict[str, Any]:
        if request["Name"] in self.builders:
            raise aws.ResourceAlreadyExistsException(f"{request['Name']} is there already.")
        builder = {key: request[key] for key in ("Name", "InstanceType", "Description", "EnableDefaultInternetAccess")}
        builder |= {"State": "PENDING", "CreatedTime": time.time(), "Arn": f"arn:aws:appstream:eu-west-1:000000000000:image-builder/{request['Name']}"}  # fmt: skip
        self.tags = request["Tags"]
        self.builders[request["Name"]] = builder
        return {"ImageBuilder": builder}

    def DescribeImageBuilders(self, wire: Wire, request: dict[str, Any]) -> bytes:
        found = [self.found(name) for name in request["Names"]]
        documents = [wire.encode_document("ImageBuilder", builder) for builder in found]
        for builder in found:
            builder["State"] = "RUNNING"
        return wire.join(aws.DescribeImageBuilders, "ImageBuilders", documents, None)

    def ListTagsForResource(self, _: Wire, request: dict[str, Any]) -> dict[str, Any]:
        return {"Tags": self.tags}

    def TagResource(self, _: Wire, request: dict[str, Any]) -> dict[str, Any]:
        return {}

    def CreateImageBuilderStreamingURL(self, _: Wire, request: dict[str, Any]) -> dict[str, Any]:
        return {"StreamingURL": "http://localhost/stream?x=1", "Expires": time.time() + request["Validity"]}

    def DeleteImageBuilder(self, _: Wire, request: dict[str, Any]) -> dict[str, Any]:
        self.found(request["Name"])
        return {"ImageBuilder": self.builders.pop(request["Name"]) | {"State": "DELETING"}}


@pytest.fixture
def endpoint() -> Iterator[str]:
    standin = Standin()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            headers = {key.lower().encode(): value.encode() for key, value in self.headers.items()}
            body = self.rfile.read(int(self.headers["content-length"]))
            response = standin.answer(self.command, self.path, headers, body)
            self.send_response(response.status)
            for key, value in [*response.headers, ("content-length", str(len(response.body)))]:
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the pinned SDK installed beside the script."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    with (CLIENTS / ".npmrc").open() as lock:  # one installs, whatever runs beside it
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed, wanted = CLIENTS / "node_modules/.package-lock.json", CLIENTS / "package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            run = subprocess.run(npm, cwd=CLIENTS, capture_output=True, text=True, timeout=200, check=False)
            assert run.returncode == 0, run.stderr
    return found


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.NAME)
def test_the_javascript_sdk_does_the_main_job(wire: Wire, node: str, endpoint: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "MILLSTREAM_ENDPOINT": endpoint,
        "MILLSTREAM_PROTOCOL": wire.NAME,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    script = str(CLIENTS / "image_builder.mjs")
    run = subprocess.run([node, script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["ok"] is True


def test_the_lock_names_no_host() -> None:
    lock = json.loads((CLIENTS / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert lock["packages"]["node_modules/@aws-sdk/client-appstream"]["integrity"]
