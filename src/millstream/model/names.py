"""ARNs and the rules of names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Public base images belong to AWS: the account of their ARN is empty.
PUBLIC: Final = ""
# Names of AWS's own images. Scripts that name one get a local base image, see `Service.aliases`.
PUBLIC_IMAGE: Final = re.compile(r"(?i)(appstream|amazon-appstream2)-[a-z0-9_.-]{1,90}")
REGION: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+){0,8}")  # whatever a signature's scope may name
ACCOUNT: Final = re.compile(r"\d{12}")

_ARN: Final = re.compile(r"arn:([a-z-]+):appstream:([a-z0-9-]*):(\d{12}|):([a-z-]+)/(.+)")


@dataclass(frozen=True, slots=True)
class Arn:
    """The parts of an ARN of this service: `arn:PARTITION:appstream:REGION:ACCOUNT:KIND/NAME`."""

    partition: str
    region: str
    account: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"arn:{self.partition}:appstream:{self.region}:{self.account}:{self.kind}/{self.name}"


def partition(region: str) -> str:
    """The partition that a region belongs to."""
    for start, name in (
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-isob-", "aws-iso-b"),
        ("us-iso-", "aws-iso"),
    ):
        if region.startswith(start):
            return name
    return "aws"


def arn(region: str, account: str, kind: str, name: str) -> str:
    return str(Arn(partition(region), region, account, kind, name))


def parse_arn(text: str) -> Arn | None:
    """None for anything that is no ARN of this service."""
    found = _ARN.fullmatch(text)
    return Arn(*found.groups()) if found else None
