"""The verifier against botocore as the one who signs: what it signs is let in, every change of it is refused."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.door.ways import ODD_BUT_RIGHT, WRONG, Caller, Way, Wire

from millstream.api import signature
from millstream.api.signature import verify
from millstream.model.errors import (
    ExpiredTokenException,
    IncompleteSignatureException,
    InvalidSignatureException,
    MissingAuthenticationTokenException,
    ServiceError,
    UnrecognizedClientException,
)
from millstream.model.identity import Identity, Key, Secret

NOW = 1_795_000_000.0
ROOT = Key("AKIAEXAMPLEEXAMPLE00", Secret("s3cr3t/+" * 5), "000000000000", "arn:aws:iam::000000000000:root")
TEMPORARY = Key(
    "ASIAEXAMPLEEXAMPLE00",
    Secret("t3mp0r4ry" * 4),
    "111122223333",
    "arn:aws:sts::111122223333:assumed-role/builder/session",
    session_token=Secret("FwoGZXIvYXdzEBYaD+/=="),
    expires_at=NOW + 600,
)
KEYS = {key.key_id: key for key in (ROOT, TEMPORARY)}


def caller_of(key: Key, service: str = "appstream", now: float = NOW) -> Caller:
    token = key.session_token.reveal() if key.session_token else None
    return Caller(key.key_id, key.secret.reveal(), now, token=token, service=service)


JSON = Wire(
    "POST",
    "/",
    (
        ("Host", "127.0.0.1:8400"),
        ("X-Amz-Target", "PhotonAdminProxyService.DeleteImageBuilder"),
        ("Content-Type", "application/x-amz-json-1.1"),
        ("amz-sdk-request", "attempt=1"),
    ),
    b'{"Name":"lab"}',
)
CBOR = Wire(
    "POST",
    "/service/PhotonAdminProxyService/operation/DeleteImageBuilder",
    (("Host", "127.0.0.1:8400"), ("Smithy-Protocol", "rpc-v2-cbor"), ("Content-Type", "application/cbor")),
    b"\xa1dNameclab",
)
STS = Wire(
    "POST",
    "/",
    (("Host", "127.0.0.1:8400"), ("Content-Type", "application/x-www-form-urlencoded")),
    b"Action=GetCallerIdentity&Version=2011-06-15",
)
STS_GET = Wire("GET", "/?Action=GetCallerIdentity&Version=2011-06-15", (("Host", "127.0.0.1:8400"),))
ROUTES = {"json": (JSON, "appstream"), "cbor": (CBOR, "appstream"), "sts": (STS, "sts"), "sts by GET": (STS_GET, "sts")}


def check(wire: Wire, service: str = "appstream", now: float = NOW) -> Identity:
    return verify(wire.request(), KEYS.get, now, service=service)


def refused(wire: Wire, service: str = "appstream", now: float = NOW) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        check(wire, service, now)
    return caught.value


@pytest.mark.parametrize("key", KEYS.values(), ids=["lasting", "temporary"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", WRONG.values(), ids=WRONG)
def test_no_way_in(way: Way, route: str, key: Key) -> None:
    wire, service = ROUTES[route]
    caller = caller_of(key, service)
    attempt = way(wire, caller)
    error = refused(attempt, service)
    assert isinstance(
        error,
        MissingAuthenticationTokenException
        | IncompleteSignatureException
        | InvalidSignatureException
        | UnrecognizedClientException,
    )
    # Nothing of what was computed, sent or stored is in the text: no signature, no secret, no token.
    assert not re.search(r"[0-9a-f]{32}", error.message)
    assert caller.secret not in error.message
    assert caller.token is None or caller.token not in error.message


@pytest.mark.parametrize("key", KEYS.values(), ids=["lasting", "temporary"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", ODD_BUT_RIGHT.values(), ids=ODD_BUT_RIGHT)
def test_the_honest_are_let_in(way: Way, route: str, key: Key) -> None:
    wire, service = ROUTES[route]
    identity = check(way(wire, caller_of(key, service)), service)
    assert (identity.account, identity.key_id, identity.principal_arn) == (key.account, key.key_id, key.principal_arn)
    assert identity.service == service
    assert identity.region in ("us-east-1", "ap-southeast-2")


# -- any request, as botocore signs it

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0189-._~", min_size=1, max_size=8)
ESCAPED = st.sampled_from(["%20", "%2F", "%2e", "%E2%82%AC", "+", "=", ":", "@", "*", "'", "(", ",", "!", "$"])
SEGMENT = st.one_of(TOKEN, ESCAPED, st.sampled_from(["", ".", "..", "..."]))
PATH = st.lists(SEGMENT, max_size=5).map(lambda parts: "/" + "/".join(parts))
PAIR = st.tuples(st.one_of(TOKEN, ESCAPED), st.one_of(TOKEN, ESCAPED, st.just(""))).map("=".join)
QUERY = st.lists(PAIR, max_size=5).map(lambda pairs: "?" + "&".join(pairs) if pairs else "")
VALUE = st.text("abc XYZ019 \t,;=/\"'-", max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(["X-Amz-Target", "x-amz-meta-a", "Accept", "X-Note", "Content-Type", "smithy-protocol", "X-B"]),
    VALUE,
    max_size=5,
)


@st.composite
def wires(draw: st.DrawFn) -> Wire:
    return Wire(
        draw(st.sampled_from(["GET", "POST", "PUT"])),
        draw(PATH) + draw(QUERY),
        (("Host", draw(st.sampled_from(["localhost:8400", "api.example.com", "[::1]:8400"]))), *draw(HEADERS).items()),
        draw(st.binary(max_size=40)),
    )


@settings(max_examples=1500, deadline=None)
@given(wires(), st.sampled_from([ROOT, TEMPORARY]), st.integers(-299, 299), st.sampled_from(["us-east-1", "local"]))
def test_whatever_botocore_signs_is_let_in(wire: Wire, key: Key, skew_s: int, region: str) -> None:
    caller = replace(caller_of(key, now=NOW - skew_s), region=region)
    assert check(caller.sign(wire)) == Identity(key.account, key.key_id, key.principal_arn, region, "appstream")


def once_each(wire: Wire) -> bool:
    """botocore's presigning reads the query into a dictionary, so only such ones come out as they went in."""
    names = [pair.partition("=")[0] for pair in wire.target.partition("?")[2].split("&")]
    return len(set(names)) == len(names)


@settings(max_examples=700, deadline=None)
@given(wires().filter(once_each), st.sampled_from([ROOT, TEMPORARY]), st.integers(1, 604_800))
def test_whatever_botocore_presigns_is_let_in(wire: Wire, key: Key, expires_s: int) -> None:
    presigned = caller_of(key).presign(wire, expires_s)
    assert check(presigned).key_id == key.key_id
    assert check(presigned, now=NOW + min(expires_s - 1, 599)).key_id == key.key_id
    assert isinstance(refused(presigned, now=NOW + expires_s), InvalidSignatureException | ExpiredTokenException)


def canonical(target: str) -> tuple[bytes, list[str]]:
    path, _, query = target.partition("?")
    return signature.canonical_path(path.encode()), sorted(query.split("&"))


@settings(max_examples=600, deadline=None)
@given(wires(), st.data())
def test_a_single_change_is_refused(wire: Wire, data: st.DataObject) -> None:
    """One byte of method, target, a signed header or the body, or one header more or less."""
    signed = caller_of(ROOT).sign(wire)
    names = signed.value("Authorization").split("SignedHeaders=")[1].split(",")[0].split(";")
    kind = data.draw(st.sampled_from(["method", "target", "body", "value", "drop", "authorization"]))
    if kind == "method":
        changed = replace(signed, method=signed.method[:-1] + "X")
    elif kind == "target":
        at = data.draw(st.integers(0, len(signed.target)))
        changed = replace(signed, target=signed.target[:at] + "z" + signed.target[at:])
        # What is left out of the signed form changes nothing: the z of `/z/..`.
        assume(canonical(changed.target) != canonical(signed.target))
    elif kind == "body":
        at = data.draw(st.integers(0, len(signed.body)))
        changed = replace(signed, body=signed.body[:at] + b"z" + signed.body[at:])
    elif kind == "authorization":
        text = signed.value("Authorization")
        at = data.draw(st.integers(0, len(text) - 1))
        changed = signed.with_header("Authorization", text[:at] + ("b" if text[at] != "b" else "c") + text[at + 1 :])
    else:
        name = data.draw(st.sampled_from(names))
        changed = signed.without(name) if kind == "drop" else signed.with_header(name, signed.value(name) + "z")
    refused(changed)


def test_every_single_bit_of_one_request_counts() -> None:
    signed = caller_of(TEMPORARY).sign(JSON)
    checked = 0
    for name, value in signed.headers:
        if name == "amz-sdk-request":
            continue
        for at in range(len(value)):
            flipped = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
            refused(signed.with_header(name, flipped))
            checked += 1
    for at in range(len(signed.body)):
        body = bytearray(signed.body)
        body[at] ^= 1
        refused(replace(signed, body=bytes(body)))
        checked += 1
    assert checked > 300


# -- words and codes


def test_words_of_the_service() -> None:
    caller = caller_of(ROOT)
    assert refused(JSON).message == "Missing Authentication Token"
    assert refused(WRONG["wrong secret"](JSON, caller)).message.startswith(
        "The request signature we calculated does not match the signature you provided."
    )
    unknown = refused(WRONG["unknown key"](JSON, caller))
    assert (unknown.code, unknown.message) == (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
    )
    old = refused(caller.sign(JSON), now=NOW + 301)
    assert re.fullmatch(
        r"Signature expired: \d{8}T\d{6}Z is now earlier than \d{8}T\d{6}Z \(\d{8}T\d{6}Z - 5 min\.\)", old.message
    )
    assert "Signature not yet current: " in refused(caller.sign(JSON), now=NOW - 301).message
    bare = refused(JSON.with_header("Authorization", "AWS4-HMAC-SHA256 Credential=x"))
    assert isinstance(bare, IncompleteSignatureException)
    assert "Authorization header requires 'Signature' parameter." in bare.message


def test_an_unknown_key_is_told_alike_with_any_secret() -> None:
    strangers = [replace(caller_of(ROOT), key_id="AKIASTRANGER00000000", secret=s) for s in ("a", "b")]
    assert len({refused(stranger.sign(JSON)).message for stranger in strangers}) == 1


def test_an_expired_token_is_said_to_its_holder_only() -> None:
    late = NOW + 601
    caller = caller_of(TEMPORARY, now=late)
    assert isinstance(refused(caller.sign(JSON), now=late), ExpiredTokenException)
    guessed = replace(caller, secret="x")
    assert isinstance(refused(guessed.sign(JSON), now=late), InvalidSignatureException)


def test_a_token_belongs_to_its_key() -> None:
    other = replace(caller_of(ROOT), token=caller_of(TEMPORARY).token)
    assert isinstance(refused(other.sign(JSON)), UnrecognizedClientException)


def test_skew_is_a_setting() -> None:
    signed = caller_of(ROOT).sign(JSON).request()
    assert verify(signed, KEYS.get, NOW + 800, service="appstream", skew_s=900).key_id == ROOT.key_id
    with pytest.raises(InvalidSignatureException, match=r"- 0\.5 min\."):
        verify(signed, KEYS.get, NOW + 31, service="appstream", skew_s=30)


def test_a_revoked_key_is_refused_at_once_and_a_changed_secret_too() -> None:
    keys = {ROOT.key_id: ROOT}
    signed = caller_of(ROOT).sign(JSON).request()
    assert verify(signed, keys.get, NOW, service="appstream")
    keys[ROOT.key_id] = replace(ROOT, secret=Secret("rotated"))
    with pytest.raises(InvalidSignatureException):
        verify(signed, keys.get, NOW, service="appstream")
    del keys[ROOT.key_id]
    with pytest.raises(UnrecognizedClientException):
        verify(signed, keys.get, NOW, service="appstream")


def test_caches_are_bounded_and_only_hold_who_was_let_in() -> None:
    signature._signing_keys.clear()
    signature._claims.clear()
    for number in range(50):
        refused(replace(caller_of(ROOT), region=f"r{number}", secret="wrong").sign(JSON))
        refused(replace(caller_of(ROOT), region=f"r{number}", key_id="AKIASTRANGER").sign(JSON))
    assert not signature._signing_keys
    assert not signature._claims
    for number in range(signature._SIGNING_KEYS_MAX + 20):
        check(replace(caller_of(ROOT), region=f"r{number}").sign(JSON))
    assert len(signature._signing_keys) == signature._SIGNING_KEYS_MAX
    assert len(signature._claims) == signature._CLAIMS_MAX
    assert all(b"Signature=" in claim and len(claim) < 400 for claim in signature._claims)


def test_secrets_are_compared_in_constant_time_only() -> None:
    """Neither signature nor token meets `==`: the code is read, since a timing test would be a coin toss here."""
    tree = ast.parse(inspect.getsource(signature))
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            text = ast.unparse(node)
            assert not re.search(r"signature|signing_key|token|secret|digest", text), text
    assert inspect.getsource(signature).count("hmac.compare_digest(") == 2


def test_a_secret_never_shows() -> None:
    for text in (repr(TEMPORARY), str(TEMPORARY.secret), f"{TEMPORARY.secret!r} {TEMPORARY.secret}"):
        assert "t3mp" not in text
        assert "Fwo" not in text
        assert "***" in text


# -- values worked out once with botocore 1.44.5 for 2026-11-18T11:06:40Z: they pin botocore, the table and the verifier

VECTORS = {
    "json": (JSON, "appstream", "2a6bd1bf972acdea7282a7bdc17c216c2a8a5ccf1c693c480f5342083502afd0"),
    "dot segments and slashes": (
        replace(JSON, target="//a/./b/../%20c//"),
        "appstream",
        "b84546eca91038ac780d985e4813797752b59b6ca0fe0b6a4be4d7b11689699f",
    ),
    "no body": (
        replace(CBOR, body=b""),
        "appstream",
        "2b0681e93b2504478f3a45529311d7497678ec48ed5a85800e75cd75a522daa2",
    ),
    "cbor": (CBOR, "appstream", "c3ed9b4285af40ec913c0a4ecd22e12f506d40cbd77c002dd7a7e2292ddeced0"),
    "form": (STS, "sts", "2c2f801f34beb7d0872e7078e11aaaa8d3ffd71348043b8603a86bf52fc8ad6e"),
    "query to sort": (
        replace(STS_GET, target="/?b=2&a=1&b=1&c&a=%20"),
        "sts",
        "0ff5fefef6f4fb2341b26d09a31cb5aed5a35ca4b6b5efba6d164b9f28af0413",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_pinned_signatures(name: str) -> None:
    wire, service, expected = VECTORS[name]
    signed = wire.plus("X-Amz-Date", "20261118T110640Z").plus(
        "Authorization",
        f"AWS4-HMAC-SHA256 Credential=AKIAEXAMPLEEXAMPLE00/20261118/us-east-1/{service}/aws4_request, "
        f"SignedHeaders={';'.join(sorted(['x-amz-date', *(n.lower() for n, _ in wire.headers)]))}, Signature={expected}",
    )
    assert check(signed, service).key_id == ROOT.key_id


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (b"/", b"/"),
        (b"", b"/"),
        (b"//", b"/"),
        (b"///", b"/"),
        (b"/./", b"/"),
        (b"/..", b"/"),
        (b"/../../x", b"/x"),
        (b"/a//b", b"/a/b"),
        (b"/a/./b/../c/", b"/a/c/"),
        (b"/a/..", b"/"),
        (b"/%20", b"/%2520"),
        (b"/a%2Fb", b"/a%252Fb"),
        (b"/~a-b_c.d", b"/~a-b_c.d"),
        (b"/a:b@c", b"/a%3Ab%40c"),
        (b"/\xe2\x82\xac", b"/%E2%82%AC"),
    ],
)
def test_canonical_paths(path: bytes, canonical: bytes) -> None:
    assert signature.canonical_path(path) == canonical
