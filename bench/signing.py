"""Requests as the SDKs sign them, made beforehand: signatures are good for five minutes."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from millstream.model import cbor

if TYPE_CHECKING:
    from millstream.model.identity import Key

SERVICE = "PhotonAdminProxyService"


def request(key: Key, port: int, wire: str, operation: str, members: dict[str, Any]) -> bytes:
    """The bytes of one call: `json` with the headers that boto3 sends, `cbor` with those of the Go SDK."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    host = f"127.0.0.1:{port}"
    if wire == "json":
        path, body = "/", json.dumps(members).encode()
        headers = {
            "X-Amz-Target": f"{SERVICE}.{operation}",
            "Content-Type": "application/x-amz-json-1.1",
            "User-Agent": "Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux#6.1 md/arch#x86_64 lang/python#3.11.7"
            " md/pyimpl#CPython m/b,Z,D cfg/retry-mode#standard Botocore/1.44.5",
            "amz-sdk-invocation-id": str(uuid.uuid4()),
            "amz-sdk-request": "attempt=1",
            "Accept-Encoding": "identity",
        }
    else:
        path, body = f"/service/{SERVICE}/operation/{operation}", cbor.encode(members)
        headers = {
            "Smithy-Protocol": "rpc-v2-cbor",
            "Content-Type": "application/cbor",
            "Accept": "application/cbor",
            "User-Agent": "aws-sdk-go-v2/1.41.0 ua/2.1 os/linux lang/go#1.25 md/GOOS#linux md/GOARCH#amd64"
            " api/appstream#1.60.0 m/E,C",
            "Amz-Sdk-Invocation-Id": str(uuid.uuid4()),
            "Amz-Sdk-Request": "attempt=1; max=3",
            "Accept-Encoding": "gzip",
        }
    unsigned = AWSRequest("POST", f"http://{host}{path}", headers={**headers, "Host": host}, data=body)
    SigV4Auth(Credentials(key.key_id, key.secret.reveal()), "appstream", "us-east-1").add_auth(unsigned)
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in unsigned.headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
