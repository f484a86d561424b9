"""boto3, unmodified, through the door and the verifier: both services, lasting and temporary keys, presigned."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import boto3
import pytest
import uvloop
from botocore.config import Config
from botocore.exceptions import ClientError

from millstream.api import wire_query
from millstream.api.http import Request, Response
from millstream.api.server import Door, Limits
from millstream.api.signature import verify
from millstream.model.errors import ServiceError
from millstream.model.identity import Key, Secret

ACCOUNT = "111122223333"
ROOT = Key("AKIAEXAMPLEEXAMPLE00", Secret("s3cr3t"), ACCOUNT, f"arn:aws:iam::{ACCOUNT}:root")
TEMPORARY = Key(
    "ASIAEXAMPLEEXAMPLE00",
    Secret("t3mp"),
    ACCOUNT,
    f"arn:aws:sts::{ACCOUNT}:assumed-role/builder/me",
    session_token=Secret("token+/="),
    expires_at=time.time() + 3600,
)
KEYS = {key.key_id: key for key in (ROOT, TEMPORARY)}


def app(request: Request) -> Response:
    """As the api's application does it: the route says which service must be signed for."""
    if wire_query.speaks_query(request):
        try:
            identity = verify(request, KEYS.get, time.time(), service=wire_query.SERVICE)
            return wire_query.answer(request, identity, "id")
        except ServiceError as error:
            return wire_query.refuse(error, "id")
    try:
        identity = verify(request, KEYS.get, time.time(), service="appstream")
    except ServiceError as error:
        return Response(error.status, [], json.dumps({"__type": error.code, "message": error.message}).encode())
    return Response(200, [], json.dumps({"NextToken": f"{identity.region} {identity.principal_arn}"}).encode())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    ready = threading.Event()
    running: dict[str, Any] = {}

    async def main() -> None:
        running.update(loop=asyncio.get_running_loop(), stop=asyncio.Event(), door=Door(app, Limits()))
        await running["door"].serve("127.0.0.1", 0, tls=None, ready=ready.set, stop=running["stop"])

    thread = threading.Thread(target=lambda: uvloop.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{running['door'].address[1]}"
    running["loop"].call_soon_threadsafe(running["stop"].set)
    thread.join(15)
    assert not thread.is_alive()


def client(service: str, endpoint: str, key: Key, **changes: Any) -> Any:
    settings = {
        "endpoint_url": endpoint,
        "region_name": "eu-west-1",
        "aws_access_key_id": key.key_id,
        "aws_secret_access_key": key.secret.reveal(),
        "aws_session_token": key.session_token.reveal() if key.session_token else None,
        "config": Config(retries={"max_attempts": 0}),
    }
    return boto3.session.Session().client(service, **{**settings, **changes})


@pytest.mark.parametrize("key", KEYS.values(), ids=["lasting", "temporary"])
def test_both_services(endpoint: str, key: Key) -> None:
    answer = client("appstream", endpoint, key).describe_image_builders(Names=["lab"])
    assert answer["NextToken"] == f"eu-west-1 {key.principal_arn}"
    assert client("sts", endpoint, key).get_caller_identity()["Arn"] == key.principal_arn


@pytest.mark.parametrize("key", KEYS.values(), ids=["lasting", "temporary"])
def test_a_presigned_caller_identity(endpoint: str, key: Key) -> None:
    """How cluster log-ins prove who asks."""
    url = client("sts", endpoint, key).generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod="GET")
    with urlopen(url) as answer:
        assert key.principal_arn in answer.read().decode()


@pytest.mark.parametrize(
    ("service", "call", "codes"),
    [
        ("appstream", "describe_fleets", ["InvalidSignatureException", "UnrecognizedClientException"]),
        ("sts", "get_caller_identity", ["SignatureDoesNotMatch", "InvalidClientTokenId"]),
    ],
)
def test_errors_as_a_client_reads_them(endpoint: str, service: str, call: str, codes: list[str]) -> None:
    found = []
    for changes in ({"aws_secret_access_key": "test"}, {"aws_access_key_id": "AKIAUNKNOWN"}):
        with pytest.raises(ClientError) as caught:
            getattr(client(service, endpoint, ROOT, **changes), call)()
        found.append(caught.value.response["Error"]["Code"])
    assert found == codes
