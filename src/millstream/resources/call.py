"""What a handler is given besides its request, and what every handler needs to say."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from millstream.model import names
from millstream.model.errors import ValidationException

if TYPE_CHECKING:
    from millstream.model.identity import Identity
    from millstream.store.store import Tx

TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Service:
    """What the operator decided, as far as handlers need it."""

    public_url: str  # where people reach the edge, without a trailing slash
    ticket_key: bytes = field(repr=False)
    token_key: bytes = field(repr=False)
    agent_version: str
    default_image: str = "debian-12-desktop"
    aliases: bool = True  # whether AWS's own image names resolve to the default image
    image_builders_max: int = 10  # per account and region; AWS's default quota
    page_max: int = 100  # answers a page when none is asked for


class Call(msgspec.Struct, frozen=True):
    """One call: who calls, when, and the transaction that it lives in. Made once a request: hence the cheap kind."""

    tx: Tx
    identity: Identity
    now: float
    request_id: str
    service: Service
    wire: str  # "json" or "cbor": which of the stored documents fits

    @property
    def account(self) -> str:
        return self.identity.account

    @property
    def region(self) -> str:
        return self.identity.region

    def arn(self, kind: str, name: str) -> str:
        return names.arn(self.region, self.account, kind, name)


class Page(msgspec.Struct, frozen=True):
    """Stored documents, ready for the wire: a Describe joins them instead of writing them anew."""

    member: str
    documents: list[bytes]
    next_token: str | None


def next_token(call: Call, operation: str, after: str) -> str:
    """An opaque place to go on from, bound to operation, account and region; only this service can make one."""
    body = after.encode()
    return base64.urlsafe_b64encode(_mac(call, operation, body) + body).decode().rstrip("=")


def place_of(call: Call, operation: str, token: str | None) -> str:
    """The place that `next_token` named. Raises ValidationException for a token that is not ours."""
    if token is None:
        return ""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        mac, body = raw[:TOKEN_BYTES], raw[TOKEN_BYTES:]
        if (
            hmac.compare_digest(mac, _mac(call, operation, body))
            and next_token(call, operation, body.decode()) == token
        ):
            return body.decode()
    except ValueError:
        pass
    raise ValidationException(
        "1 validation error detected: Value at 'nextToken' failed to satisfy constraint: "
        "Member must be a token that this operation returned to this account in this Region"
    )


def _mac(call: Call, operation: str, body: bytes) -> bytes:
    # BLAKE2's own keyed form: a third of what HMAC costs for texts so short.
    scope = f"{operation}\0{call.account}\0{call.region}\0".encode()
    return hashlib.blake2b(scope + body, digest_size=TOKEN_BYTES, key=call.service.token_key).digest()


def invalid(value: object, member: str, constraint: str) -> ValidationException:
    """A validation error that the model can't state, in the service's own wording."""
    return ValidationException(
        f"1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
    )


def page_size(call: Call, asked: int | None, most: int) -> int:
    """How many answers a page has. 0 means *as many as usual*, like the real service's lists."""
    if asked is not None and asked < 0:
        raise invalid(asked, "maxResults", "Member must have value greater than or equal to 0")
    return min(asked or call.service.page_max, most)
