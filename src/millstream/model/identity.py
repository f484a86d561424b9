"""Who may call and who is calling: a key as it is stored, and what a verified signature says of its sender."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec


class Secret:
    """Text that no log, traceback or repr may show. `reveal()` is the only way to read it, and easy to search for.

    `digest` (SHA-256 of the text) names the secret where something must be kept by it without keeping it.
    """

    __slots__ = ("_text", "digest")

    def __init__(self, text: str) -> None:
        self._text: Final = text
        self.digest: Final = hashlib.sha256(text.encode()).digest()

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled or copied")


@dataclass(frozen=True, slots=True)
class Key:
    """One access key. With a `session_token` it is temporary and useless without exactly that token."""

    key_id: str
    secret: Secret
    account: str  # 12 digits
    principal_arn: str  # arn:aws:iam::ACCOUNT:root, …:user/NAME, arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION
    session_token: Secret | None = None
    expires_at: float | None = None  # seconds since the epoch


class Identity(msgspec.Struct, frozen=True):
    """What a verified signature proves. Only `api.signature.verify` makes one, one a request: hence the cheap kind."""

    account: str
    key_id: str
    principal_arn: str
    region: str  # from the signature's scope
    service: str  # from the signature's scope: appstream or sts
