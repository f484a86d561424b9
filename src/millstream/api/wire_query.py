"""The query protocol, as far as it is spoken here: sts:GetCallerIdentity, which most tools ask first. Pure.

Form bodies and presigned queries in, XML out. Every other action is refused by its name.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from millstream.api.http import Response
from millstream.model.errors import CommonError

if TYPE_CHECKING:
    from millstream.api.http import Request
    from millstream.model.errors import ServiceError
    from millstream.model.identity import Identity

SERVICE: Final = "sts"
_VERSION: Final = "2011-06-15"
_NAMESPACE: Final = f"https://sts.amazonaws.com/doc/{_VERSION}/"
_FORM: Final = b"application/x-www-form-urlencoded"
_PARAMETERS_MAX: Final = 50
# The query protocol's words and statuses for what the JSON protocols call otherwise.
_ERRORS: Final = {
    "MissingAuthenticationTokenException": ("MissingAuthenticationToken", 403),
    "IncompleteSignatureException": ("IncompleteSignature", 400),
    "InvalidSignatureException": ("SignatureDoesNotMatch", 403),
    "UnrecognizedClientException": ("InvalidClientTokenId", 403),
    "ExpiredTokenException": ("ExpiredToken", 403),
    "AccessDeniedException": ("AccessDenied", 403),
    "ThrottlingException": ("Throttling", 400),
    "ServiceUnavailableException": ("ServiceUnavailable", 503),
}


class InvalidAction(CommonError):  # noqa: N818 - the wire's own word
    code = "InvalidAction"


class MissingAction(CommonError):  # noqa: N818 - the wire's own word
    code = "MissingAction"


class MalformedQueryString(CommonError):  # noqa: N818 - the wire's own word
    code = "MalformedQueryString"


def speaks_query(request: Request) -> bool:
    """Whether this request is of the query protocol: the signature's scope must then name sts."""
    if b"x-amz-target" in request.fields:
        return False
    content_type = request.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return content_type == _FORM or b"Action=" in request.target.partition(b"?")[2]


def answer(request: Request, identity: Identity, request_id: str) -> Response:
    """The answer to a verified request. Raises MissingAction, InvalidAction, MalformedQueryString."""
    parameters = _parameters(request)
    action = parameters.get("Action")
    if not action:
        raise MissingAction("The request must contain the parameter Action.")
    version = parameters.get("Version")
    if action != "GetCallerIdentity" or version != _VERSION:
        # A name is repeated as far as a name can go, and no further.
        raise InvalidAction(
            f"Could not find operation {action[:128]} for version {(version or 'NO_VERSION_SPECIFIED')[:32]}"
        )
    fields = (("Arn", identity.principal_arn), ("UserId", user_id(identity)), ("Account", identity.account))
    result = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields)
    return _xml(
        200,
        f'<GetCallerIdentityResponse xmlns="{_NAMESPACE}"><GetCallerIdentityResult>{result}'
        f"</GetCallerIdentityResult><ResponseMetadata><RequestId>{escape(request_id)}</RequestId>"
        "</ResponseMetadata></GetCallerIdentityResponse>",
        request_id,
    )


def refuse(error: ServiceError, request_id: str) -> Response:
    """An error in the query protocol's words."""
    code, status = _ERRORS.get(error.code, (error.code, error.status))
    fault = "Sender" if status < 500 else "Receiver"
    text = "".join(c if c.isprintable() else "\ufffd" for c in error.message)  # XML 1.0 has no control characters
    return _xml(
        status,
        f'<ErrorResponse xmlns="{_NAMESPACE}"><Error><Type>{fault}</Type><Code>{escape(code)}</Code>'
        f"<Message>{escape(text)}</Message></Error><RequestId>{escape(request_id)}</RequestId></ErrorResponse>",
        request_id,
    )


def user_id(identity: Identity) -> str:
    """The unique id of the caller, as IAM shapes it: the account's for its root, else made of the ARN.

    `AIDA…` for users, `AROA…:SESSION` for assumed roles, `ACCOUNT:NAME` for federated users.
    """
    kind, _, name = identity.principal_arn.split(":", 5)[5].partition("/")
    match kind:
        case "root":
            return identity.account
        case "federated-user":
            return f"{identity.account}:{name}"
        case "assumed-role":
            role, _, session = name.partition("/")
            return f"AROA{_letters(f'{identity.account}:role/{role}')}:{session}"
        case _:
            return f"AIDA{_letters(identity.principal_arn)}"


def _letters(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:17].decode()


def _parameters(request: Request) -> dict[str, str]:
    """Query and form body together; each parameter once, wherever it stands."""
    found: dict[str, str] = {}
    for part in (request.target.partition(b"?")[2], request.body):
        try:
            pairs = parse_qsl(
                part.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=_PARAMETERS_MAX,
            )
        except ValueError:
            raise MalformedQueryString("The parameters are not form-encoded, not UTF-8 or too many.") from None
        for name, value in pairs:
            if name in found:
                raise MalformedQueryString("A parameter stands twice.")
            found[name] = value
    return found


def _xml(status: int, text: str, request_id: str) -> Response:
    return Response(status, [("Content-Type", "text/xml"), ("x-amzn-RequestId", request_id)], text.encode())
