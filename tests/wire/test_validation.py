"""Every constraint of the model, in the service's words."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from millstream.api.validate import PATTERN_SIZE_MAX, REDACTED, SHOWN_MAX, _fullmatch, validate
from millstream.model import shapes as aws
from millstream.model.errors import ValidationException
from millstream.model.operation import Operation
from millstream.model.shape import ListOf, MapOf, Structure, Text

NAME = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,100}$"
TAG_KEYS = (
    "[Member must have length less than or equal to 128, Member must have length greater than or equal to 1, "
    r"Member must satisfy regular expression pattern: ^(^(?!aws:).[\p{L}\p{Z}\p{N}_.:/=+\-@]*)$]"
)
TAG_VALUES = (
    "[Member must have length less than or equal to 256, Member must have length greater than or equal to 0, "
    r"Member must satisfy regular expression pattern: ^([\p{L}\p{Z}\p{N}_.:/=+\-@]*)$]"
)
GOOD = {"Name": "a", "InstanceType": "stream.standard.medium"}
ARN = "arn:aws:appstream:eu-west-1:000000000000:image-builder/a"


def told(operation: Operation[Any, Any], request: dict[str, Any]) -> str:
    with pytest.raises(ValidationException) as caught:
        validate(operation, request)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize(
    ("operation", "request_", "expected"),
    [
        (aws.DeleteImageBuilder, {}, "Value null at 'name' failed to satisfy constraint: Member must not be null"),
        (
            aws.DeleteImageBuilder,
            {"Name": "-a"},
            f"Value '-a' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: {NAME}",
        ),
        (
            aws.StartImageBuilder,
            {"Name": ""},
            "Value '' at 'name' failed to satisfy constraint: Member must have length greater than or equal to 1",
        ),
        (
            aws.CreateImageBuilder,
            GOOD | {"Description": "x" * 257},
            f"Value '{'x' * 257}' at 'description' failed to satisfy constraint: Member must have length less than or equal to 256",
        ),
        (
            aws.DescribeImages,
            {"MaxResults": 26},
            "Value '26' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 25",
        ),
        (
            aws.DescribeImages,
            {"MaxResults": -1},
            "Value '-1' at 'maxResults' failed to satisfy constraint: Member must have value greater than or equal to 0",
        ),
        (
            aws.DescribeImages,
            {"Type": "SECRET"},
            "Value 'SECRET' at 'type' failed to satisfy constraint: Member must satisfy enum value set: [PUBLIC, PRIVATE, SHARED]",
        ),
        (
            aws.DescribeImageBuilders,
            {"Names": ["a", ""]},
            (
                "Value '[a, ]' at 'names' failed to satisfy constraint: Member must satisfy constraint: "
                "[Member must have length greater than or equal to 1]"
            ),
        ),
        (
            aws.TagResource,
            {"ResourceArn": ARN, "Tags": {"aws:x": "y"}},
            f"Value '{{aws:x=y}}' at 'tags' failed to satisfy constraint: Map keys must satisfy constraint: {TAG_KEYS}",
        ),
        (
            aws.TagResource,
            {"ResourceArn": ARN, "Tags": {"x": "y\x00"}},
            f"Value '{{x=y\x00}}' at 'tags' failed to satisfy constraint: Map value must satisfy constraint: {TAG_VALUES}",
        ),
        (
            aws.TagResource,
            {"ResourceArn": ARN, "Tags": {}},
            "Value '{}' at 'tags' failed to satisfy constraint: Member must have length greater than or equal to 1",
        ),
        (
            aws.CreateImageBuilder,
            GOOD | {"AccessEndpoints": [{"EndpointType": "STREAMING"}, {}]},
            "Value null at 'accessEndpoints.2.member.endpointType' failed to satisfy constraint: Member must not be null",
        ),
        (
            aws.CreateDirectoryConfig,
            {
                "DirectoryName": "d",
                "OrganizationalUnitDistinguishedNames": [],
                "ServiceAccountCredentials": {"AccountName": "a", "AccountPassword": "hunter2" * 20},
            },
            (
                "Value at 'serviceAccountCredentials.accountPassword' failed to satisfy constraint: "
                "Member must have length less than or equal to 127"
            ),
        ),
    ],
)
def test_one_error_in_the_services_words(
    operation: Operation[Any, Any], request_: dict[str, Any], expected: str
) -> None:
    assert told(operation, request_) == f"1 validation error detected: {expected}"


def test_several_errors_are_told_together() -> None:
    message = told(aws.CreateImageBuilder, {"Name": "-", "VpcConfig": {"SubnetIds": [""]}, "AccessEndpoints": []})
    first, *rest = message.split("; ")
    assert first.startswith("4 validation errors detected: Value '-' at 'name' failed to satisfy constraint: ")
    assert [part.split(" failed")[0] for part in rest] == [
        "Value null at 'instanceType'",
        "Value '[]' at 'vpcConfig.subnetIds'",
        "Value '[]' at 'accessEndpoints'",
    ]


def test_sensitive_values_are_never_shown() -> None:
    secret = "hunter2"
    lists = aws.SHAPES["ApplicationConfig"]
    assert isinstance(lists, Structure)
    assert lists.sensitive
    message = told(
        aws.CreateImportedImage,
        {
            "AppCatalogConfig": [{"Name": secret, "AbsoluteAppPath": secret}] * 60,
            "Name": "n",
            "RuntimeValidationConfig": {},
        },
    )
    assert secret not in message
    assert REDACTED in message
    for user in (
        {"UserName": "\n" + secret, "AuthenticationType": secret},
        {"UserName": secret * 99, "FirstName": "\x00" + secret},
    ):
        message = told(aws.CreateUser, user)
        assert secret not in message.replace("Value 'hunter2' at 'authenticationType'", "")


def test_a_message_is_bounded_whatever_is_wrong() -> None:
    endpoint = {"EndpointType": "x" * 10_000}
    message = told(aws.CreateImageBuilder, GOOD | {"AccessEndpoints": [endpoint] * 100})
    assert message.startswith("101 validation errors detected")
    assert len(message) < 26 * (SHOWN_MAX + 300)


def patterns() -> list[tuple[str, Text]]:
    return [(name, shape) for name, shape in aws.SHAPES.items() if isinstance(shape, Text) and shape.pattern]


# What makes patterns slow: long runs that almost match, in every alphabet that the model's patterns know.
HOSTILE = [
    "a",
    "0",
    "-",
    ".",
    " ",
    "_",
    "a.",
    "a-",
    ", ",
    "a ",
    "arn:aws:",
    ":",
    "/",
    "é",
    "\n",
    "x.y-",
    ",a*",
    "\u00a0",
    "(",
    "ami-0",
]


@pytest.mark.parametrize(("name", "shape"), patterns())
def test_no_pattern_is_slow(name: str, shape: Text) -> None:
    """Under a millisecond on the longest text that reaches it, since lengths are judged first."""
    match = _fullmatch(shape.pattern)
    match("warm")
    prefix = (
        "arn:aws:kms:a:123456789012:key/" if "key/" in shape.pattern else "https://" if "http" in shape.pattern else ""
    )
    size = shape.size_max or PATTERN_SIZE_MAX
    assert size <= PATTERN_SIZE_MAX
    worst = 0.0
    for unit in HOSTILE:
        for text in ((prefix + unit * size)[: size - 1] + "\x00", (prefix + unit * size)[:size]):
            spent = []
            for _ in range(3):
                started = time.process_time()
                match(text)
                spent.append(time.process_time() - started)
            worst = max(worst, min(spent))
    assert worst < 0.001, f"{name} took {worst * 1000:.1f} ms"


def test_a_pattern_never_sees_more_than_its_shape_allows() -> None:
    started = time.process_time()
    for unit in HOSTILE:
        text = unit * 50_000
        for operation, request in (
            (aws.TagResource, {"ResourceArn": ARN, "Tags": {text: text}}),
            (aws.DeleteImageBuilder, {"Name": text}),
            (aws.CreateImageBuilder, GOOD | {"InstanceType": text, "ImageArn": text}),
            (aws.CreateUser, {"UserName": text, "FirstName": text, "AuthenticationType": text}),
        ):
            assert len(told(operation, request)) < 20_000
    assert time.process_time() - started < 2


def test_patterns_match_whole_values_in_javas_sense() -> None:
    validate(aws.TagResource, {"ResourceArn": ARN, "Tags": {"Kostenstelle Süd": "文字 ½"}})
    for name in ("a\n", "á", "a b", "٣"):  # `$` is the end, and letters and digits are ASCII
        assert "pattern" in told(aws.DeleteImageBuilder, {"Name": name})
    assert "pattern" in told(aws.CreateStack, {"Name": "s", "EmbedHostDomains": ["example.com/x"]})
    digits = next(shape for name, shape in patterns() if name == "AwsAccountId")
    assert not _fullmatch(digits.pattern)("٣")


def test_every_shape_that_requests_reach_can_be_checked() -> None:
    """Maps are of text to text, lists of lists are none: what validate.py presumes of the model."""
    for shape in aws.SHAPES.values():
        if isinstance(shape, MapOf):
            assert isinstance(aws.SHAPES[shape.key], Text)
            assert isinstance(aws.SHAPES[shape.value], Text)
        if isinstance(shape, ListOf):
            assert not isinstance(aws.SHAPES[shape.member], ListOf | MapOf)
        if isinstance(shape, Text) and shape.pattern:
            _fullmatch(shape.pattern)  # compiles
    for operation in aws.OPERATIONS.values():
        shape = aws.SHAPES[operation.input]
        assert isinstance(shape, Structure)
        if shape.required:
            message = told(operation, {})
            for member in shape.required:
                assert f"Value null at '{member[0].lower()}{member[1:]}'" in message
            assert int(re.match(r"\d+", message)[0]) == len(shape.required)  # type: ignore[index]
        else:
            validate(operation, {})
