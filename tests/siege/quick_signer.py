"""SigV4 for many thousand requests a second: `hmac` only, written apart from the verifier, checked against it by use."""

from __future__ import annotations

import hashlib
import hmac
import time

from tests.door.ways import Caller
from tests.siege.siege_world import CBOR_PATH, TARGET


class QuickSigner:
    """Signs for one key and one listening address."""

    def __init__(self, caller: Caller, host: str) -> None:
        self._caller = caller
        self._host = host
        self._stamp = ""
        self._key = b""

    def json(self, operation: str, body: bytes) -> bytes:
        return self._signed("/", {"x-amz-target": f"{TARGET}.{operation}"}, "application/x-amz-json-1.1", body)

    def cbor(self, operation: str, body: bytes) -> bytes:
        return self._signed(CBOR_PATH + operation, {"smithy-protocol": "rpc-v2-cbor"}, "application/cbor", body)

    def _signed(self, path: str, more: dict[str, str], content_type: str, body: bytes) -> bytes:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/{self._caller.region}/{self._caller.service}/aws4_request"
        if stamp[:8] != self._stamp[:8]:
            self._key = f"AWS4{self._caller.secret}".encode()
            for part in scope.split("/"):
                self._key = hmac.digest(self._key, part.encode(), "sha256")
        self._stamp = stamp
        fields = {"content-type": content_type, "host": self._host, "x-amz-date": stamp, **more}
        names = sorted(fields)
        signed = ";".join(names)
        lines = ["POST", path, "", *(f"{name}:{fields[name]}" for name in names), "", signed]
        canonical = "\n".join([*lines, hashlib.sha256(body).hexdigest()])
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key, to_sign.encode(), "sha256").hex()
        fields["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._caller.key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )
        fields["content-length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
