"""Tags: on whatever has an ARN of a taggable kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millstream.model import names
from millstream.model import shapes as aws

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from millstream.resources.call import Call

TAGS_MAX: Final = 50


def _image_builder_exists(call: Call, arn: names.Arn) -> bool:
    row = call.tx.one("builder", account=arn.account, region=arn.region, name=arn.name)
    return row is not None and row["arn"] == str(arn)


# What is there to be tagged, by the kind in its ARN. A kind that is not built yet has no resources.
_EXISTS: Final[Mapping[str, Callable[[Call, names.Arn], bool]]] = {"image-builder": _image_builder_exists}


def _existing(call: Call, text: str) -> str:
    """The ARN itself, if it names a resource of this account and Region."""
    arn = names.parse_arn(text)
    if (
        arn is None
        or (arn.account, arn.region) != (call.account, call.region)
        or arn.kind not in _EXISTS
        or not _EXISTS[arn.kind](call, arn)
    ):
        raise aws.ResourceNotFoundException(f"The resource {text} does not exist.")
    return text


def put(call: Call, arn: str, tags: Mapping[str, str]) -> None:
    """Add tags to an existing resource. Raises LimitExceededException beyond 50."""
    held = {row["key"] for row in call.tx.all("tags", arn=arn)}
    count = len(held | set(tags))
    if count > TAGS_MAX:
        raise aws.LimitExceededException(
            f"The resource {arn} would have {count} tags. Limit: {TAGS_MAX}. Remove {count - TAGS_MAX} first."
        )
    for key, value in tags.items():
        call.tx.run("set_tag", arn=arn, key=key, value=value)


@aws.TagResource
def tag_resource(call: Call, request: aws.TagResourceRequest) -> aws.TagResourceResponse:
    put(call, _existing(call, request["ResourceArn"]), request["Tags"])
    return {}


@aws.UntagResource
def untag_resource(call: Call, request: aws.UntagResourceRequest) -> aws.UntagResourceResponse:
    """Keys that the resource does not have are passed over."""
    arn = _existing(call, request["ResourceArn"])
    for key in request["TagKeys"]:
        call.tx.run("drop_tag", arn=arn, key=key)
    return {}


@aws.ListTagsForResource
def list_tags_for_resource(call: Call, request: aws.ListTagsForResourceRequest) -> aws.ListTagsForResourceResponse:
    arn = _existing(call, request["ResourceArn"])
    return {"Tags": {row["key"]: row["value"] for row in call.tx.all("tags", arn=arn)}}
