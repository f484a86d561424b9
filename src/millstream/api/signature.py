"""The one verifier: no request gets past it without a signature, and nobody else reads a key id.

SigV4 in its header and its presigned form, for every route. It returns the identity, so that what was verified and
what is used can't be two things. Texts of errors say what a client did and never what was computed.

Canonical forms are botocore's: the path is normalised, then encoded once more; query pairs are sorted as they were
sent; blanks in header values collapse.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from calendar import timegm
from datetime import UTC, datetime
from email.utils import parsedate_tz
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, unquote_to_bytes

from millstream.model.errors import (
    ExpiredTokenException,
    IncompleteSignatureException,
    InvalidSignatureException,
    MissingAuthenticationTokenException,
    UnrecognizedClientException,
)
from millstream.model.identity import Identity, Key, Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.api.http import Request

_K = TypeVar("_K")
_V = TypeVar("_V")

SKEW_S: Final = 300.0
EXPIRES_S_MAX: Final = 604_800  # seven days, SigV4's own bound
_ALGORITHM: Final = b"AWS4-HMAC-SHA256"
# Hashes are begun by copying one that is begun: to make a new one costs OpenSSL more than to hash a request.
_BEGUN: Final = hashlib.sha256()
_EMPTY_SHA256: Final = _BEGUN.hexdigest().encode()

_SCOPE: Final = re.compile(
    rb"([A-Za-z0-9_+=,.@-]{1,128})/([0-9]{8})/([a-z0-9]+(?:-[a-z0-9]+){0,8})/([a-z0-9-]{1,32})/aws4_request"
)
_SIGNATURE: Final = re.compile(rb"[0-9a-f]{64}")
_SIGNED_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+(?:;[!#$%&'*+.^_`|~0-9a-z-]+)*")
_TIME: Final = re.compile(rb"[0-9]{8}T[0-9]{6}Z")
_HTTP_DATE: Final = re.compile(
    rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} (?:GMT|[+-]0000)"
)
_EXPIRES: Final = re.compile(rb"[0-9]{1,6}")
# All that a presigned query may hold of X-Amz-; each once, spelt so.
_QUERY_NAMES: Final = frozenset(
    {
        b"X-Amz-Algorithm",
        b"X-Amz-Credential",
        b"X-Amz-Date",
        b"X-Amz-Expires",
        b"X-Amz-SignedHeaders",
        b"X-Amz-Security-Token",
        b"X-Amz-Signature",
    }
)
_QUERY_REQUIRED: Final = _QUERY_NAMES - {b"X-Amz-Security-Token"}

_MISSING: Final = "Missing Authentication Token"
_WRONG: Final = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key"
    " and signing method. Consult the service documentation for details."
)
_UNKNOWN: Final = "The security token included in the request is invalid."
_EXPIRED_TOKEN: Final = "The security token included in the request is expired"  # noqa: S105 - a sentence

# Signing keys by secret (its digest), date, region and service. What is here never speaks for a key: `find_key` is
# asked for each request, so a revoked key's entry is dead weight until it is pushed out.
_signing_keys: Final[dict[tuple[bytes, bytes, bytes, bytes], _SigningKey]] = {}
_SIGNING_KEYS_MAX: Final = 1024
# Authorization headers up to their signature, as read. Only of requests that were let in, so strangers can't fill it.
_claims: Final[dict[bytes, _Claim]] = {}
_CLAIMS_MAX: Final = 1024
# An unknown key is verified against this one, so that it costs what a known one does.
_DUMMY: Final = Key("unknown", Secret(secrets.token_hex(20)), "", "")


class _SigningKey(NamedTuple):
    """HMAC-SHA256 with this key, begun: both hashes have taken in the key's block."""

    inner: hashlib._Hash
    outer: hashlib._Hash

    @classmethod
    def of(cls, key: bytes) -> _SigningKey:
        """`key`: 32 bytes."""
        block = key.ljust(64, b"\0")
        return cls(hashlib.sha256(bytes(b ^ 0x36 for b in block)), hashlib.sha256(bytes(b ^ 0x5C for b in block)))

    def sign(self, text: bytes) -> bytes:
        """The signature as it is sent: 64 hex digits."""
        inner, outer = self.inner.copy(), self.outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest().encode()


class _Claim(NamedTuple):
    """What a request says of its signature, besides the signature and the time."""

    key_id: str
    date: bytes
    region: bytes
    service: bytes
    signed: tuple[bytes, ...]  # names, lower-case, sorted
    # What each request needs of the above in another form.
    scope: bytes  # date/region/service/aws4_request
    signed_text: bytes  # the names as they are signed
    region_text: str
    service_text: str


class _Signed(NamedTuple):
    """One form of signature, read: what is needed to compute it again."""

    claim: _Claim
    time: bytes  # 20261123T150000Z
    expires_s: int | None  # only presigned
    token: bytes | None
    signature: bytes
    query: bytes  # canonical


def verify(
    request: Request,
    find_key: Callable[[str], Key | None],
    now: float,
    *,
    service: str,
    skew_s: float = SKEW_S,
) -> Identity:
    """Who sent this request, as its signature proves.

    `service` is what the route demands of the scope; `now` is in seconds since the epoch. Raises
    MissingAuthenticationToken-, IncompleteSignature-, InvalidSignature-, UnrecognizedClient- or ExpiredTokenException.
    """
    fields = _single_fields(request)
    path, _, query = request.target.partition(b"?")
    pairs = _query_pairs(query) if query else []
    signs_query = bool(pairs) and any(unquote_to_bytes(name).lower().startswith(b"x-amz-") for name, _ in pairs)
    authorization = fields.get(b"authorization")
    if authorization is not None:
        if signs_query:
            raise InvalidSignatureException(
                "The request carries an Authorization header and X-Amz- parameters in its query: send only one."
            )
        signed = _read_header_form(authorization, fields, pairs)
    elif signs_query:
        signed = _read_query_form(pairs, fields)
    else:
        raise MissingAuthenticationTokenException(_MISSING)
    claim = signed.claim
    _check_scope(claim, signed.time, service)
    _check_signed_names(claim.signed, tuple(fields), authorization is not None and b"x-amz-date" not in fields)
    _check_time(signed, now, skew_s)
    body_hash = _sha256(request.body) if request.body else _EMPTY_SHA256
    if fields.get(b"x-amz-content-sha256", body_hash) != body_hash:
        raise InvalidSignatureException("The x-amz-content-sha256 of the request is not that of its body.")

    known = find_key(claim.key_id)
    key = known or _DUMMY
    canonical = b"%b\n%b\n%b\n%b\n\n%b\n%b" % (
        request.method,
        b"/" if path == b"/" else canonical_path(path),
        signed.query,
        _canonical_headers(request, fields, claim.signed),
        claim.signed_text,
        body_hash,
    )
    to_sign = b"%b\n%b\n%b\n%b" % (_ALGORITHM, signed.time, claim.scope, _sha256(canonical))
    cache_key = (key.secret.digest, claim.date, claim.region, claim.service)
    signing_key = _signing_keys.get(cache_key) or _derive(key.secret, claim)
    right = hmac.compare_digest(signing_key.sign(to_sign), signed.signature)
    token_right = _token_is_right(key, signed.token)
    # An unknown key and a token that isn't its key's are told alike, whether or not the signature is right.
    if known is None or not token_right:
        raise UnrecognizedClientException(_UNKNOWN)
    if not right:
        raise InvalidSignatureException(_WRONG)
    if known.expires_at is not None and now >= known.expires_at:
        raise ExpiredTokenException(_EXPIRED_TOKEN)

    _remember(_signing_keys, cache_key, signing_key, _SIGNING_KEYS_MAX)
    if authorization is not None:
        _remember(_claims, authorization[:-64], claim, _CLAIMS_MAX)
    return Identity(known.account, known.key_id, known.principal_arn, claim.region_text, claim.service_text)


@lru_cache(256)  # an operation of rpc-v2-cbor is a path, and there are ninety
def canonical_path(path: bytes) -> bytes:
    """The path as it is signed: empty and dot segments taken out, then percent-encoded once more."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    closing = b"/" if kept and path.endswith(b"/") else b""
    return quote(b"/" + b"/".join(kept) + closing, safe="/~").encode()


def _single_fields(request: Request) -> dict[bytes, bytes]:
    """Values by name. Raises when one that decides something stands twice (the door refuses it as well)."""
    fields = request.fields
    if len(fields) != len(request.headers):
        names = [name for name, _ in request.headers]
        for name in fields:
            if names.count(name) > 1 and (
                name in (b"host", b"authorization", b"date", b"content-type") or name.startswith(b"x-amz-")
            ):
                raise InvalidSignatureException("A header that may stand once stands twice.")
    return fields


def _query_pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    """Pairs as sent, undecoded."""
    pairs = []
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        pairs.append((name, value))
    return pairs


def _canonical_query(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"&".join(b"%b=%b" % pair for pair in sorted(pairs))


def _read_header_form(authorization: bytes, fields: dict[bytes, bytes], pairs: list[tuple[bytes, bytes]]) -> _Signed:
    signature = authorization[-64:]
    claim = _claims.get(authorization[:-64])
    if claim is None or not _SIGNATURE.fullmatch(signature):
        claim, signature = _read_authorization(authorization)
    time = fields.get(b"x-amz-date")
    if time is None:
        time = _read_http_date(fields.get(b"date"))
    return _Signed(
        claim, time, None, fields.get(b"x-amz-security-token"), signature, _canonical_query(pairs) if pairs else b""
    )


def _read_authorization(authorization: bytes) -> tuple[_Claim, bytes]:
    algorithm, _, rest = authorization.partition(b" ")
    if algorithm != _ALGORITHM:
        _refuse_algorithm(algorithm)
    given: dict[bytes, bytes] = {}
    for part in rest.split(b","):
        name, equals, value = part.strip(b" ").partition(b"=")
        if not equals or name in given:
            raise IncompleteSignatureException("The Authorization header is not a list of distinct `name=value` parts.")
        given[name] = value
    absent = [name for name in (b"Credential", b"Signature", b"SignedHeaders") if name not in given]
    if absent:
        raise IncompleteSignatureException(
            " ".join(f"Authorization header requires '{name.decode()}' parameter." for name in absent)
        )
    if len(given) > 3:
        raise IncompleteSignatureException("The Authorization header holds a parameter that SigV4 does not have.")
    return _claim(given[b"Credential"], given[b"SignedHeaders"]), _signature(given[b"Signature"])


def _read_query_form(pairs: list[tuple[bytes, bytes]], fields: dict[bytes, bytes]) -> _Signed:
    given: dict[bytes, bytes] = {}
    for name, value in pairs:
        if unquote_to_bytes(name).lower().startswith(b"x-amz-"):
            if name not in _QUERY_NAMES:
                raise IncompleteSignatureException("The query holds an X-Amz- parameter that is unknown or misspelt.")
            if name in given:
                raise IncompleteSignatureException(f"{name.decode()} stands twice in the query.")
            given[name] = unquote_to_bytes(value)
    absent = sorted(_QUERY_REQUIRED - given.keys())
    if absent:
        raise IncompleteSignatureException(
            " ".join(f"AWS query-string parameters must include '{name.decode()}'." for name in absent)
        )
    if given[b"X-Amz-Algorithm"] != _ALGORITHM:
        _refuse_algorithm(given[b"X-Amz-Algorithm"])
    if b"x-amz-date" in fields or b"x-amz-security-token" in fields:
        raise InvalidSignatureException("What a presigned query holds stands in a header as well: send only one.")
    expires = given[b"X-Amz-Expires"]
    if not _EXPIRES.fullmatch(expires) or not 1 <= int(expires) <= EXPIRES_S_MAX:
        raise IncompleteSignatureException(f"X-Amz-Expires must be a number of seconds between 1 and {EXPIRES_S_MAX}.")
    return _Signed(
        _claim(given[b"X-Amz-Credential"], given[b"X-Amz-SignedHeaders"]),
        given[b"X-Amz-Date"],
        int(expires),
        given.get(b"X-Amz-Security-Token"),
        _signature(given[b"X-Amz-Signature"]),
        _canonical_query([pair for pair in pairs if pair[0] != b"X-Amz-Signature"]),
    )


def _refuse_algorithm(algorithm: bytes) -> NoReturn:
    if algorithm.startswith(b"AWS"):
        raise IncompleteSignatureException("The only signing algorithm that is taken is AWS4-HMAC-SHA256.")
    raise MissingAuthenticationTokenException(_MISSING)


def _claim(credential: bytes, signed_names: bytes) -> _Claim:
    scope = _SCOPE.fullmatch(credential)
    if scope is None:
        raise IncompleteSignatureException(
            "Credential must have at least 5 slash-delimited elements, e.g. keyid/date/region/service/term,"
            " the last of them aws4_request."
        )
    if not _SIGNED_NAMES.fullmatch(signed_names):
        raise IncompleteSignatureException("SignedHeaders is not a list of lower-case header names.")
    names = tuple(signed_names.split(b";"))
    if any(one >= other for one, other in pairwise(names)):
        raise IncompleteSignatureException("SignedHeaders must be sorted and name each header once.")
    key_id, date, region, service = scope.groups()
    return _Claim(
        key_id.decode(),
        date,
        region,
        service,
        names,
        credential[len(key_id) + 1 :],
        signed_names,
        region.decode(),
        service.decode(),
    )


def _signature(text: bytes) -> bytes:
    if not _SIGNATURE.fullmatch(text):
        raise InvalidSignatureException(_WRONG)
    return text


def _read_http_date(text: bytes | None) -> bytes:
    if text is None:
        raise IncompleteSignatureException(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
        )
    parsed = parsedate_tz(text.decode()) if _HTTP_DATE.fullmatch(text) else None
    if parsed is None:
        raise IncompleteSignatureException("The Date header is not a date of the form that HTTP has.")
    return b"%04d%02d%02dT%02d%02d%02dZ" % parsed[:6]


def _check_scope(claim: _Claim, time: bytes, service: str) -> None:
    if claim.service_text != service:
        raise InvalidSignatureException(f"Credential should be scoped to correct service: '{service}'.")
    if claim.date != time[:8]:
        raise InvalidSignatureException(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date."
        )


@lru_cache(512)  # a program sends the same headers again and again
def _check_signed_names(names: tuple[bytes, ...], fields: tuple[bytes, ...], by_date: bool) -> None:
    """Whatever decides what a request does must be signed, or a captured signature would be good for another one."""
    if b"host" not in names or (by_date and b"date" not in names):
        raise InvalidSignatureException("'Host' and 'X-Amz-Date' (or 'Date') must be 'SignedHeaders'.")
    for name in fields:
        if name.startswith(b"x-amz-") and name not in names:
            raise InvalidSignatureException("Every X-Amz- header of a request must be one of its 'SignedHeaders'.")
    for name in names:
        if name not in fields:
            raise InvalidSignatureException("A header that 'SignedHeaders' names is not in the request.")


def _check_time(signed: _Signed, now: float, skew_s: float) -> None:
    text = signed.time
    at = _instant(text)
    minutes = f"{skew_s / 60:g} min."
    if at > now + skew_s:
        raise InvalidSignatureException(
            f"Signature not yet current: {text.decode()} is still later than {_iso(now + skew_s)}"
            f" ({_iso(now)} + {minutes})"
        )
    if signed.expires_s is not None:
        if now >= at + signed.expires_s:
            raise InvalidSignatureException(
                f"Signature expired: {_iso(at + signed.expires_s)} is now earlier than {_iso(now)}"
            )
    elif at < now - skew_s:
        raise InvalidSignatureException(
            f"Signature expired: {text.decode()} is now earlier than {_iso(now - skew_s)} ({_iso(now)} - {minutes})"
        )


@lru_cache(256)  # callers send the time in whole seconds, so many requests share one
def _instant(text: bytes) -> int:
    if not _TIME.fullmatch(text):
        raise IncompleteSignatureException("Date must be in ISO-8601 'basic format', e.g. 20261123T150000Z.")
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    try:
        at = datetime(year, month, day, int(text[9:11]), int(text[11:13]), int(text[13:15]), tzinfo=UTC)
    except ValueError:  # a 31st of June, a 25th hour
        raise IncompleteSignatureException("Date is not a date that exists.") from None
    return timegm(at.timetuple())


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")


def _canonical_headers(request: Request, fields: dict[bytes, bytes], names: tuple[bytes, ...]) -> bytes:
    if len(fields) == len(request.headers):
        text = b"\n".join([name + b":" + fields[name] for name in names])
        if b"  " not in text and b"\t" not in text:  # the everyday case: nothing to collapse, nothing doubled
            return text
    return b"\n".join(
        name + b":" + b",".join(b" ".join(value.split()) for other, value in request.headers if other == name)
        for name in names
    )


def _sha256(data: bytes) -> bytes:
    """64 hex digits."""
    begun = _BEGUN.copy()
    begun.update(data)
    return begun.hexdigest().encode()


def _derive(secret: Secret, claim: _Claim) -> _SigningKey:
    key = b"AWS4" + secret.reveal().encode()
    for part in (claim.date, claim.region, claim.service, b"aws4_request"):
        key = hmac.digest(key, part, "sha256")
    return _SigningKey.of(key)


def _token_is_right(key: Key, token: bytes | None) -> bool:
    """A temporary key needs exactly its token, a lasting one none."""
    if key.session_token is None:
        return token is None
    return token is not None and hmac.compare_digest(hashlib.sha256(token).digest(), key.session_token.digest)


def _remember(cache: dict[_K, _V], key: _K, value: _V, most: int) -> None:
    if key not in cache:
        if len(cache) >= most:
            cache.pop(next(iter(cache)), None)
        cache[key] = value
