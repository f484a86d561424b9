"""Images: at present the public base images that the driver has, and AWS's names for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from millstream.model import names
from millstream.model import shapes as aws
from millstream.resources.call import Call, next_token, page_size, place_of

if TYPE_CHECKING:
    from typing import Any

PAGE_MAX: Final = 25  # DescribeImagesMaxResults of the model
FAMILIES: Final = ("General Purpose", "Compute Optimized", "Memory Optimized")

# What the names of AWS's public images say of their platform; longest first.
_PLATFORMS: Final[tuple[tuple[str, aws.PlatformType], ...]] = (
    ("winserver2016", "WINDOWS_SERVER_2016"),
    ("winserver2019", "WINDOWS_SERVER_2019"),
    ("winserver2022", "WINDOWS_SERVER_2022"),
    ("winserver2025", "WINDOWS_SERVER_2025"),
    ("windows11", "WINDOWS_11"),
    ("amazonlinux2", "AMAZON_LINUX2"),
    ("rhel8", "RHEL8"),
    ("rockylinux8", "ROCKY_LINUX8"),
    ("ubuntu", "UBUNTU_PRO_2404"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """An image that a name or ARN led to: its document, and the driver's name of what runs."""

    shown: aws.Image
    runs: str


def by_name(call: Call, name: str) -> Found | None:
    """An own or public image. None: no such image."""
    row = call.tx.one("base_image", name=name)
    if row is not None:
        return Found(_document(call, row), row["name"])
    if not call.service.aliases or not names.PUBLIC_IMAGE.fullmatch(name):
        return None
    row = call.tx.one("base_image", name=call.service.default_image)
    return Found(_alias(call, row, name), row["name"]) if row is not None else None


def by_arn(call: Call, text: str) -> Found | None:
    """A public image of this Region. None: no such image, or none that this account may see."""
    arn = names.parse_arn(text)
    if arn is None or arn.kind != "image" or arn.account != names.PUBLIC or arn.region != call.region:
        return None
    return by_name(call, arn.name)


def _document(call: Call, row: Any) -> aws.Image:
    return aws.Image(
        Name=row["name"],
        Arn=names.arn(call.region, names.PUBLIC, "image", row["name"]),
        DisplayName=row["name"],
        State="AVAILABLE",
        Visibility="PUBLIC",
        ImageBuilderSupported=True,
        Description=row["description"],
        Applications=[],
        CreatedTime=row["created"],
        PublicBaseImageReleasedDate=row["created"],
        AppstreamAgentVersion=call.service.agent_version,
        LatestAppstreamAgentVersion="TRUE",
        SupportedInstanceFamilies=list(FAMILIES),
        DynamicAppProvidersEnabled="DISABLED",
        ImageSharedWithOthers="FALSE",
        ManagedSoftwareIncluded=False,
        ImageType="NATIVE",
    )


def _alias(call: Call, row: Any, name: str) -> aws.Image:
    """One of AWS's names: its platform is what scripts that name it expect, its description says what runs."""
    shown = _document(call, row)
    shown["Name"] = shown["DisplayName"] = name
    shown["Arn"] = names.arn(call.region, names.PUBLIC, "image", name)
    shown["Description"] = f"Stands for {row['name']}, which is what runs: {row['description']}"[:256]
    for part, platform in _PLATFORMS:
        if part in name.lower():
            shown["Platform"] = platform
    return shown


@aws.DescribeImages
def describe_images(call: Call, request: aws.DescribeImagesRequest) -> aws.DescribeImagesResult:
    """By names or ARNs (all must exist), or by pages; `Type` narrows both."""
    asked_names, asked_arns = request.get("Names"), request.get("Arns")
    if asked_names and asked_arns:
        raise aws.InvalidParameterCombinationException("Names and Arns can't be given together: give one of them.")
    kind = request.get("Type")
    if asked_names or asked_arns:
        images = [_one(call, text, by_name) for text in dict.fromkeys(asked_names or [])]
        images += [_one(call, text, by_arn) for text in dict.fromkeys(asked_arns or [])]
        return {"Images": [image for image in images if kind in {None, image["Visibility"]}]}
    place = place_of(call, "DescribeImages", request.get("NextToken"))
    size = page_size(call, request.get("MaxResults"), PAGE_MAX)
    if kind not in {None, "PUBLIC"}:
        return {"Images": []}
    rows = [row for row in call.tx.all("base_images") if row["name"] > place]
    answer: aws.DescribeImagesResult = {"Images": [_document(call, row) for row in rows[:size]]}
    if len(rows) > size:
        answer["NextToken"] = next_token(call, "DescribeImages", rows[size - 1]["name"])
    return answer


def _one(call: Call, text: str, find: Any) -> aws.Image:
    found: Found | None = find(call, text)
    if found is None:
        raise aws.ResourceNotFoundException(f"The image {text} for account {call.account} does not exist.")
    return found.shown
