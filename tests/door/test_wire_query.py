"""sts:GetCallerIdentity as botocore reads it."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import botocore.parsers
import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.api import wire_query
from millstream.api.http import Request, Response
from millstream.model.errors import (
    ExpiredTokenException,
    InvalidSignatureException,
    ServiceError,
    UnrecognizedClientException,
)
from millstream.model.identity import Identity

FORM = b"application/x-www-form-urlencoded; charset=utf-8"
ACCOUNT = "111122223333"


@pytest.fixture(scope="module")
def model() -> Any:
    return botocore.session.Session().get_service_model("sts").operation_model("GetCallerIdentity")


def parsed(model: Any, response: Response) -> dict[str, Any]:
    """What botocore makes of an answer."""
    parser = botocore.parsers.create_parser("query")
    return dict(
        parser.parse(
            {"body": response.body, "headers": dict(response.headers), "status_code": response.status},
            model.output_shape,
        )
    )


def identity(arn: str) -> Identity:
    return Identity(ACCOUNT, "AKIA", arn, "us-east-1", "sts")


def post(body: bytes, content_type: bytes = FORM, target: bytes = b"/") -> Request:
    return Request.of(b"POST", target, ((b"content-type", content_type),), body)


ASK = b"Action=GetCallerIdentity&Version=2011-06-15"


@pytest.mark.parametrize(
    ("arn", "user_id"),
    [
        (f"arn:aws:iam::{ACCOUNT}:root", r"111122223333"),
        (f"arn:aws:iam::{ACCOUNT}:user/lab&<test>", r"AIDA[A-Z2-7]{17}"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/builder/me", r"AROA[A-Z2-7]{17}:me"),
        (f"arn:aws:sts::{ACCOUNT}:federated-user/me", r"111122223333:me"),
    ],
)
def test_the_caller_is_told_who_they_are(model: Any, arn: str, user_id: str) -> None:
    for request in (post(ASK), Request.of(b"GET", b"/?" + ASK, ())):
        assert wire_query.speaks_query(request)
        answer = parsed(model, wire_query.answer(request, identity(arn), "id-1"))
        assert (answer["Account"], answer["Arn"]) == (ACCOUNT, arn)
        assert re.fullmatch(user_id, answer["UserId"])
        assert answer["ResponseMetadata"]["RequestId"] == "id-1"


def test_a_role_s_sessions_share_its_id() -> None:
    one, other = (
        wire_query.user_id(identity(f"arn:aws:sts::{ACCOUNT}:assumed-role/builder/{session}")) for session in "ab"
    )
    assert one.split(":")[0] == other.split(":")[0]
    assert one != other


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "MissingAction"),
        (b"Action=&Version=2011-06-15", "MissingAction"),
        (b"Action=AssumeRole&Version=2011-06-15", "InvalidAction"),
        (b"Action=GetCallerIdentity", "InvalidAction"),
        (b"Action=GetCallerIdentity&Version=2010-01-01", "InvalidAction"),
        (b"Action=getcalleridentity&Version=2011-06-15", "InvalidAction"),
        (ASK + b"&Action=AssumeRole", "MalformedQueryString"),
        (b"Action=\xff", "MalformedQueryString"),
        (b"Action=%ff", "MalformedQueryString"),
        (b"&".join(b"p%d=1" % n for n in range(60)), "MalformedQueryString"),
    ],
)
def test_everything_else_is_refused_by_name(model: Any, body: bytes, code: str) -> None:
    with pytest.raises(ServiceError) as caught:
        wire_query.answer(post(body), identity(f"arn:aws:iam::{ACCOUNT}:root"), "id")
    answer = parsed(model, wire_query.refuse(caught.value, "id-2"))
    assert answer["Error"]["Code"] == code
    assert answer["Error"]["Type"] == "Sender"
    assert answer["ResponseMetadata"]["RequestId"] == "id-2"


def test_a_parameter_in_query_and_body_is_refused() -> None:
    with pytest.raises(wire_query.MalformedQueryString):
        wire_query.answer(post(ASK, target=b"/?Action=AssumeRole"), identity("arn:aws:iam::1:root"), "id")


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (InvalidSignatureException("x"), "SignatureDoesNotMatch", 403),
        (UnrecognizedClientException("x"), "InvalidClientTokenId", 403),
        (ExpiredTokenException("x"), "ExpiredToken", 403),
        (ServiceError("x"), "InternalFailure", 500),
    ],
)
def test_errors_bear_the_query_protocol_s_names(model: Any, error: ServiceError, code: str, status: int) -> None:
    response = wire_query.refuse(error, "id")
    assert response.status == status
    assert parsed(model, response)["Error"]["Code"] == code


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_well_formed_xml(text: str) -> None:
    ET.fromstring(wire_query.refuse(ServiceError(text), "id").body)


@pytest.mark.parametrize(
    ("request_", "query"),
    [
        (post(b"", b"application/x-amz-json-1.1"), False),
        (post(b"", b"application/cbor"), False),
        (post(b"", b"Application/X-WWW-Form-Urlencoded"), True),
        (Request.of(b"GET", b"/", ()), False),
        (Request.of(b"POST", b"/", ((b"X-Amz-Target", b"A.B"), (b"Content-Type", FORM))), False),
    ],
)
def test_which_requests_are_of_the_query_protocol(request_: Request, query: bool) -> None:
    assert wire_query.speaks_query(request_) is query


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=100))
def test_no_bytes_are_a_fault_of_ours(query: bytes, body: bytes) -> None:
    request = post(body, target=b"/?" + query)
    try:
        response = wire_query.answer(request, identity("arn:aws:iam::1:root"), "id")
    except ServiceError as error:
        response = wire_query.refuse(error, "id")
    assert response.status < 500
