"""Ways to try to get in without a right signature, as a table that every suite can use.

A way takes a request that is not signed yet and the caller who could sign it, and gives what goes on the wire. botocore
signs, so that the signatures are a real client's; `ODD_BUT_RIGHT` are requests that must be let in.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from millstream.api.http import Request

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Wire:
    """One request as a client would send it. Values are latin-1."""

    method: str
    target: str
    headers: Headers
    body: bytes = b""

    def request(self, peer: str = "127.0.0.1") -> Request:
        pairs = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers)
        return Request.of(self.method.encode(), self.target.encode("latin-1"), pairs, self.body, peer)

    def raw(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{n}: {v}" for n, v in self.headers)]
        lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body

    def with_header(self, name: str, value: str) -> Wire:
        """The header set, in its place or at the end."""
        if self.has(name):
            return replace(self, headers=tuple((n, value if n.lower() == name.lower() else v) for n, v in self.headers))
        return replace(self, headers=(*self.headers, (name, value)))

    def plus(self, name: str, value: str, *, first: bool = False) -> Wire:
        """One header more, even if there is one of that name."""
        return replace(self, headers=((name, value), *self.headers) if first else (*self.headers, (name, value)))

    def without(self, *names: str) -> Wire:
        lowered = {name.lower() for name in names}
        return replace(self, headers=tuple((n, v) for n, v in self.headers if n.lower() not in lowered))

    def has(self, name: str) -> bool:
        return any(n.lower() == name.lower() for n, _ in self.headers)

    def value(self, name: str) -> str:
        return next(v for n, v in self.headers if n.lower() == name.lower())


@dataclass(frozen=True)
class Caller:
    """Who holds a key, and the time by which they sign (seconds since the epoch)."""

    key_id: str
    secret: str
    now: float
    token: str | None = None
    region: str = "us-east-1"
    service: str = "appstream"

    def sign(self, wire: Wire, signer: type[botocore.auth.SigV4Auth] = botocore.auth.SigV4Auth) -> Wire:
        signed = self._botocore(wire, signer(self._credentials(), self.service, self.region))
        return replace(wire, headers=tuple(signed.headers.items()))

    def presign(
        self,
        wire: Wire,
        expires_s: int = 300,
        signer: type[botocore.auth.SigV4QueryAuth] = botocore.auth.SigV4QueryAuth,
    ) -> Wire:
        query = signer(self._credentials(), self.service, self.region, expires=expires_s)
        # botocore would move a body into the query, as JSON; its hash is all that matters here.
        query.payload = lambda _request: hashlib.sha256(wire.body).hexdigest()
        signed = self._botocore(replace(wire, body=b""), query)
        parts = urlsplit(signed.url)
        return replace(wire, target=f"{parts.path}?{parts.query}")

    def _credentials(self) -> Credentials:
        return Credentials(self.key_id, self.secret, self.token)

    def _botocore(self, wire: Wire, signer: botocore.auth.BaseSigner) -> AWSRequest:
        url = f"http://{wire.value('Host')}{wire.target}"
        request = AWSRequest(wire.method, url, headers=dict(wire.headers), data=wire.body)
        at = dt.datetime.fromtimestamp(self.now, dt.UTC).replace(tzinfo=None)
        clock, botocore.auth.get_current_datetime = botocore.auth.get_current_datetime, lambda: at
        try:
            signer.add_auth(request)
        finally:
            botocore.auth.get_current_datetime = clock
        return request


class _TrueHash(botocore.auth.SigV4Auth):  # type: ignore[misc] # botocore has no types
    """Signs the body's true hash, whatever the header says of it."""

    def canonical_request(self, request: AWSRequest) -> str:
        first = super().canonical_request(request).rpartition("\n")[0]
        return f"{first}\n{hashlib.sha256(request.body or b'').hexdigest()}"


class _OtherAlgorithm(botocore.auth.SigV4QueryAuth):  # type: ignore[misc] # botocore has no types
    """Names another algorithm in the query that it then signs as ever."""

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        super()._modify_request_before_signing(request)
        request.url = request.url.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA384")


Way = Callable[[Wire, Caller], Wire]


def _signed(change: Callable[[Wire], Wire]) -> Way:
    return lambda wire, caller: change(caller.sign(wire))


def _presigned(change: Callable[[Wire], Wire]) -> Way:
    return lambda wire, caller: change(caller.presign(wire))


def _as(**changes: object) -> Way:
    return lambda wire, caller: replace(caller, **changes).sign(wire)  # type: ignore[arg-type]


def _authorization(old: str, new: str) -> Way:
    """Rewrite the Authorization header; the text must be there."""

    def change(wire: Wire) -> Wire:
        text = wire.value("Authorization")
        assert old in text
        return wire.with_header("Authorization", text.replace(old, new, 1))

    return _signed(change)


def _target(old: str, new: str) -> Way:
    def change(wire: Wire) -> Wire:
        assert old in wire.target
        return replace(wire, target=wire.target.replace(old, new, 1))

    return _presigned(change)


def _query(extra: str) -> Callable[[Wire], Wire]:
    return lambda wire: replace(wire, target=f"{wire.target}{'&' if '?' in wire.target else '?'}{extra}")


def _rescoped(wire: Wire, caller: Caller) -> Wire:
    """Signed in full, and rightly, for the day before the request's own date."""
    day_before = replace(caller, now=caller.now - 86_400).sign(wire)
    return day_before.with_header("X-Amz-Date", caller.sign(wire).value("X-Amz-Date"))


def _literal_hash(literal: str) -> Way:
    """Signed by a client that puts a literal where the body's hash belongs (botocore signs what the header says)."""
    return lambda wire, caller: caller.sign(wire.with_header("X-Amz-Content-SHA256", literal))


def _unsigned_header(name: str, value: str) -> Way:
    return _signed(lambda wire: wire.plus(name, value))


def _left_out(name: str) -> Way:
    """Signed without that header, which is then added."""
    return lambda wire, caller: caller.sign(wire.without(name)).plus(name, wire.value(name))


def _dropped_name(name: str) -> Way:
    """Sent with that header, but not named in SignedHeaders (the signature is then of another text too)."""

    def change(wire: Wire) -> Wire:
        text = wire.value("Authorization")
        names = text.split("SignedHeaders=")[1].split(",")[0]
        kept = ";".join(n for n in names.split(";") if n != name)
        return wire.with_header("Authorization", text.replace(names, kept))

    return _signed(change)


def _anyway(
    *,
    leave_out: str = "",
    names: Callable[[list[str]], list[str]] = sorted,
    scope_date: str = "",
    time: Callable[[str], str] = str,
    algorithm: str = "AWS4-HMAC-SHA256",
    by_date: str = "",
) -> Way:
    """A right signature, by the key's holder, over a request that no client may make so: a signer without scruples.

    What such a request gets wrong must be refused for itself, not since the signature happens to differ.
    """

    def sign(wire: Wire, caller: Caller) -> Wire:
        at = time(_stamp(caller.now))
        wire = wire.with_header("Date", by_date) if by_date else wire.with_header("X-Amz-Date", at)
        if caller.token:
            wire = wire.with_header("X-Amz-Security-Token", caller.token)
        signed = names([n.lower() for n, _ in wire.headers if n.lower() != leave_out])
        scope = f"{scope_date or at[:8]}/{caller.region}/{caller.service}/aws4_request"
        path, _, query = wire.target.partition("?")
        lines = [wire.method, path, "&".join(sorted(query.split("&"))), *(f"{n}:{wire.value(n)}" for n in signed)]
        lines += ["", ";".join(signed), hashlib.sha256(wire.body).hexdigest()]
        hashed = hashlib.sha256("\n".join(lines).encode("latin-1")).hexdigest()
        key = f"AWS4{caller.secret}".encode()
        for part in [*scope.split("/"), f"{algorithm}\n{at}\n{scope}\n{hashed}"]:
            key = hmac.digest(key, part.encode(), "sha256")
        return wire.with_header(
            "Authorization",
            f"{algorithm} Credential={caller.key_id}/{scope}, SignedHeaders={';'.join(signed)}, Signature={key.hex()}",
        )

    return sign


WRONG: dict[str, Way] = {
    # rightly signed, and yet
    "signed: host left out": _anyway(leave_out="host"),
    "signed: date left out": _anyway(leave_out="x-amz-date"),
    "signed: names unsorted": _anyway(names=lambda names: sorted(names, reverse=True)),
    "signed: a name twice": _anyway(names=lambda names: sorted([*names, "host"])),
    "signed: another day's scope": _anyway(scope_date="20200101"),
    "signed: time without zone": _anyway(time=lambda at: at[:-1]),
    "signed: time with more behind": _anyway(time=lambda at: at + "Z"),
    "signed: time with blanks": _anyway(time=lambda at: at[:9] + " " + at[10:]),
    "signed: another algorithm": _anyway(algorithm="AWS4-HMAC-SHA384"),
    "signed: date header that is no date": _anyway(by_date="Wed, 99 Nov 2026 11:06:40 GMT"),
    "signed: date header in words": _anyway(by_date="yesterday"),
    # nothing, or what is no signature
    "nothing": lambda wire, _caller: wire,
    "empty authorization": lambda wire, _caller: wire.with_header("Authorization", ""),
    "basic": lambda wire, _caller: wire.with_header("Authorization", "Basic QUtJRDp4"),
    "bearer": lambda wire, caller: wire.with_header("Authorization", f"Bearer {caller.key_id}"),
    "none": lambda wire, _caller: wire.with_header("Authorization", "none"),
    "sigv2": lambda wire, caller: wire.with_header("Authorization", f"AWS {caller.key_id}:c2lnbmF0dXJl"),
    "key id alone": lambda wire, caller: wire.with_header(
        "Authorization", f"AWS4-HMAC-SHA256 Credential={caller.key_id}"
    ),
    "key id in query, nothing else": lambda wire, caller: _query(f"X-Amz-Credential={caller.key_id}")(wire),
    "key id in query, forged header": lambda wire, caller: _query(f"X-Amz-Credential={caller.key_id}")(
        replace(caller, secret="test").sign(wire)
    ),
    "old query form": lambda wire, caller: _query(f"AWSAccessKeyId={caller.key_id}&Signature=x&Expires=9999999999")(
        wire
    ),
    # somebody else's secret, token or name
    "fabricated signature": lambda wire, caller: wire.with_header("X-Amz-Date", _stamp(caller.now)).with_header(
        "Authorization",
        f"AWS4-HMAC-SHA256 Credential={caller.key_id}/{_stamp(caller.now)[:8]}/{caller.region}/{caller.service}"
        f"/aws4_request, SignedHeaders=host;x-amz-date;x-amz-target, Signature={'0' * 64}",
    ),
    "wrong secret": _as(secret="w" * 40),
    "secret test": _as(secret="test"),
    "empty secret": _as(secret=""),
    "unknown key": _as(key_id="AKIAUNKNOWNUNKNOWN00"),
    "key id in other case": lambda wire, caller: replace(caller, key_id=caller.key_id.swapcase()).sign(wire),
    "token of nobody": lambda wire, caller: replace(caller, token=f"{caller.token or ''}x").sign(wire),
    "token left out": lambda wire, caller: (
        replace(caller, token=None).sign(wire)
        if caller.token
        else caller.sign(wire).plus("X-Amz-Security-Token", "appended")
    ),
    # scope and algorithm
    "another service": _as(service="s3"),
    "scope's service rewritten": lambda wire, caller: _authorization(f"/{caller.service}/", "/iam/")(wire, caller),
    "scope's region rewritten": _authorization("/us-east-1/", "/eu-west-1/"),
    "scope's region in capitals": _as(region="US-EAST-1"),
    "scope's region empty": _authorization("/us-east-1/", "//"),
    "scope's date rewritten": lambda wire, caller: _authorization(f"/{_stamp(caller.now)[:8]}/", "/20200101/")(
        wire, caller
    ),
    "scope's date unlike the request's": _rescoped,
    "scope's key rewritten": lambda wire, caller: _authorization(f"={caller.key_id}/", "=AKIAOTHEROTHEROTHER0/")(
        wire, caller
    ),
    "aws4_request missing": _authorization("/aws4_request", ""),
    "aws4_request misspelt": _authorization("/aws4_request", "/aws4_reques"),
    "scope too long": _authorization("/aws4_request", "/aws4_request/more"),
    "hmac-sha1": _authorization("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
    "sigv4a": _authorization("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
    "algorithm in lower case": _authorization("AWS4-HMAC-SHA256", "aws4-hmac-sha256"),
    "signature cut": _signed(lambda w: w.with_header("Authorization", w.value("Authorization")[:-1])),
    "signature empty": _signed(lambda w: w.with_header("Authorization", w.value("Authorization")[:-64])),
    "signature longer": _signed(lambda w: w.with_header("Authorization", w.value("Authorization") + "0")),
    "signature in capitals": _signed(
        lambda w: w.with_header("Authorization", w.value("Authorization")[:-64] + "ABCDEF" + "0" * 58)
    ),
    "signature flipped": _signed(
        lambda w: w.with_header(
            "Authorization", w.value("Authorization")[:-1] + ("0" if w.value("Authorization")[-1] != "0" else "1")
        )
    ),
    "credential twice": _signed(
        lambda w: w.with_header("Authorization", w.value("Authorization") + ", Credential=x/20200101/a/b/aws4_request")
    ),
    "signature twice": _signed(
        lambda w: w.with_header("Authorization", w.value("Authorization") + ", Signature=" + "0" * 64)
    ),
    "parameter too many": _authorization(", Signature=", ", Extra=1, Signature="),
    # time
    "six minutes old": lambda wire, caller: replace(caller, now=caller.now - 360).sign(wire),
    "six minutes early": lambda wire, caller: replace(caller, now=caller.now + 360).sign(wire),
    "a year old": lambda wire, caller: replace(caller, now=caller.now - 31_536_000).sign(wire),
    "date missing": _signed(lambda w: w.without("X-Amz-Date")),
    "date no date": _signed(lambda w: w.with_header("X-Amz-Date", w.value("X-Amz-Date")[:8] + "T996199Z")),
    "date of one second later": _signed(
        lambda w: w.with_header(
            "X-Amz-Date", w.value("X-Amz-Date")[:-2] + ("1Z" if w.value("X-Amz-Date")[-2] != "1" else "2Z")
        )
    ),
    "date twice": _signed(lambda w: w.plus("X-Amz-Date", "20200101T000000Z")),
    # what decides, changed or added after signing
    "method changed": _signed(lambda w: replace(w, method="PUT" if w.method == "POST" else "POST")),
    "path changed": _signed(lambda w: replace(w, target="/x" + w.target)),
    "query added": _signed(_query("a=b")),
    "host changed": _signed(lambda w: w.with_header("Host", "localhost:1")),
    "host twice": _signed(lambda w: w.plus("Host", "localhost:1")),
    "host unsigned": _dropped_name("host"),
    "date unsigned": _dropped_name("x-amz-date"),
    "target replaced": _signed(lambda w: w.with_header("X-Amz-Target", "PhotonAdminProxyService.DeleteFleet")),
    "target unsigned": lambda wire, caller: caller.sign(wire.without("X-Amz-Target")).plus(
        "X-Amz-Target", "PhotonAdminProxyService.DescribeFleets"
    ),
    "target twice": _signed(lambda w: w.plus("X-Amz-Target", "PhotonAdminProxyService.DeleteFleet")),
    "target twice, first": _signed(lambda w: w.plus("X-Amz-Target", "PhotonAdminProxyService.DeleteFleet", first=True)),
    "unsigned x-amz- header": _unsigned_header("X-Amz-Meta", "1"),
    "unsigned token": _unsigned_header("X-Amz-Security-Token", "appended"),
    "authorization twice": _signed(lambda w: w.plus("Authorization", w.value("Authorization"))),
    "authorization twice, forged first": _signed(
        lambda w: w.plus("Authorization", w.value("Authorization")[:-64] + "0" * 64, first=True)
    ),
    "signed header left out": lambda wire, caller: caller.sign(wire.with_header("X-Amz-Meta", "1")).without(
        "X-Amz-Meta"
    ),
    "signed headers unsorted": _signed(
        lambda w: w.with_header(
            "Authorization", w.value("Authorization").replace("SignedHeaders=", "SignedHeaders=x-amz-date;")
        )
    ),
    # body and its hash
    "body changed": _signed(lambda w: replace(w, body=w.body[:-1] + bytes([(w.body or b"\0")[-1] ^ 1]))),
    "body longer": _signed(lambda w: replace(w, body=w.body + b" ")),
    "body taken away": _signed(lambda w: replace(w, body=b"" if w.body else b"{}")),
    "unsigned payload": _literal_hash("UNSIGNED-PAYLOAD"),
    "streaming payload": _literal_hash("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
    "streaming unsigned payload": _literal_hash("STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
    "hash of another body": _literal_hash(hashlib.sha256(b"another").hexdigest()),
    "hash header unlike what was signed": lambda wire, caller: caller.sign(
        wire.with_header("X-Amz-Content-SHA256", "UNSIGNED-PAYLOAD"), _TrueHash
    ),
    "hash empty": _literal_hash(""),
    # presigned
    "presigned: another algorithm, rightly signed": lambda wire, caller: caller.presign(wire, signer=_OtherAlgorithm),
    "presigned: date header, signed": lambda wire, caller: caller.presign(wire.plus("X-Amz-Date", _stamp(caller.now))),
    "presigned: token header, signed": lambda wire, caller: caller.presign(
        wire.plus("X-Amz-Security-Token", caller.token or "x")
    ),
    "presigned: wrong secret": lambda wire, caller: replace(caller, secret="w" * 40).presign(wire),
    "presigned: another service": lambda wire, caller: replace(caller, service="s3").presign(wire),
    "presigned: expired": lambda wire, caller: replace(caller, now=caller.now - 301).presign(wire),
    "presigned: from the future": lambda wire, caller: replace(caller, now=caller.now + 360).presign(wire),
    "presigned: 604801 s": lambda wire, caller: caller.presign(wire, 604_801),
    "presigned: 0 s": lambda wire, caller: caller.presign(wire, 0),
    "presigned: negative": lambda wire, caller: caller.presign(wire, -1),
    "presigned: expires rewritten": _target("X-Amz-Expires=300", "X-Amz-Expires=3000"),
    "presigned: expires in other digits": _target("X-Amz-Expires=300", "X-Amz-Expires=%D9%A3%D9%A0%D9%A0"),
    "presigned: expires with a sign": _target("X-Amz-Expires=300", "X-Amz-Expires=+300"),
    "presigned: no expires": _target("&X-Amz-Expires=300", ""),
    "presigned: expires twice": _presigned(_query("X-Amz-Expires=300")),
    "presigned: date twice": _target("X-Amz-Date=", "X-Amz-Date=20200101T000000Z&X-Amz-Date="),
    "presigned: credential twice": _target("X-Amz-Credential=", "X-Amz-Credential=x&X-Amz-Credential="),
    "presigned: signature twice": _presigned(_query(f"X-Amz-Signature={'0' * 64}")),
    "presigned: signature twice, forged first": _target(
        "X-Amz-Algorithm", f"X-Amz-Signature={'0' * 64}&X-Amz-Algorithm"
    ),
    "presigned: lower-case name": _target("X-Amz-Signature", "x-amz-signature"),
    "presigned: lower-case twin": _presigned(_query("x-amz-expires=604800")),
    "presigned: encoded name": _target("X-Amz-Signature", "%58-Amz-Signature"),
    "presigned: encoded twin": _presigned(_query("%58-Amz-Expires=604800")),
    "presigned: algorithm": _target("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
    "presigned: algorithm none": _target("AWS4-HMAC-SHA256", "none"),
    "presigned: signature missing": _presigned(lambda w: replace(w, target=w.target.split("&X-Amz-Signature")[0])),
    "presigned: signature empty": _presigned(lambda w: replace(w, target=w.target[:-64])),
    "presigned: signature flipped": _presigned(
        lambda w: replace(w, target=w.target[:-1] + ("0" if w.target[-1] != "0" else "1"))
    ),
    "presigned: query added": _presigned(_query("a=b")),
    "presigned: token appended": _presigned(_query("X-Amz-Security-Token=appended")),
    "presigned: header too": lambda wire, caller: caller.sign(caller.presign(wire)),
    "presigned: key id in a header": _presigned(lambda w: w.plus("Authorization", "AWS4-HMAC-SHA256 Credential=x")),
    "presigned: date in a header": _presigned(lambda w: w.plus("X-Amz-Date", "20200101T000000Z")),
    "presigned: target added": lambda wire, caller: caller.presign(wire.without("X-Amz-Target")).plus(
        "X-Amz-Target", "PhotonAdminProxyService.DeleteFleet"
    ),
    "presigned: body changed": _presigned(lambda w: replace(w, body=w.body + b" ")),
    "presigned: method changed": _presigned(lambda w: replace(w, method="PUT" if w.method == "POST" else "POST")),
    "presigned: host changed": _presigned(lambda w: w.with_header("Host", "localhost:1")),
}


def _stamp(now: float) -> str:
    return dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y%m%dT%H%M%SZ")


# Requests as real clients and what stands between send them: let in, or we refuse the honest.
ODD_BUT_RIGHT: dict[str, Way] = {
    "by another signer": _anyway(),
    "plain": _signed(lambda w: w),
    "presigned": _presigned(lambda w: w),
    "presigned for a week": lambda wire, caller: replace(caller, now=caller.now - 604_000).presign(wire, 604_800),
    "four minutes late": lambda wire, caller: replace(caller, now=caller.now - 240).sign(wire),
    "four minutes early": lambda wire, caller: replace(caller, now=caller.now + 240).sign(wire),
    "through proxies": _signed(
        lambda w: (
            w.plus("Via", "1.1 proxy")
            .plus("X-Forwarded-For", "10.1.2.3")
            .plus("X-Forwarded-Proto", "https")
            .plus("X-Amzn-Trace-Id", "Root=1-67891233-abcdef012345678912345678")
            .plus("User-Agent", "something/1.0")
        )
    ),
    "another region": _as(region="ap-southeast-2"),
    "date header instead": lambda wire, caller: caller.sign(wire.plus("Date", "")),
    "hash sent": lambda wire, caller: caller.sign(
        wire.with_header("X-Amz-Content-SHA256", hashlib.sha256(wire.body).hexdigest())
    ),
    "blanks in a value": lambda wire, caller: caller.sign(wire.plus("X-Note", "  a   b\tc  ")),
    "no blank after the commas": _signed(
        lambda w: w.with_header("Authorization", w.value("Authorization").replace(", ", ","))
    ),
    "empty query": lambda wire, caller: caller.sign(replace(wire, target=wire.target + "?")),
    "query to sort": lambda wire, caller: caller.sign(_query("b=2&a=1&b=1&c&a=%20")(wire)),
}
