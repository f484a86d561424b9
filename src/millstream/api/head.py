"""Reading the head of an HTTP/1.1 request, strictly. Pure: bytes in, a `Head` or a `Malformed` out.

One language, no leniencies: what two readers could take differently is refused. Whatever passes here, llhttp in its
strict mode reads alike (the tests compare the two).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

# A name that is looked up or that decides something counts once; a second one is an attempt to be read differently.
SINGLE: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"date",
        b"expect",
        b"smithy-protocol",
        b"transfer-encoding",
    }
)
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,20}) (/[!\x22\x24-\x7e]*) HTTP/1\.([01])")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_ALLOWED: Final = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])  # RFC 9110 field values; all else is control
# Names as clients write them, so that the usual ones cost one look-up. Filled with what passed, up to a bound.
_names: Final[dict[bytes, bytes]] = {}
_NAMES_MAX: Final = 256


class Malformed(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Not a request that we take: `status` and a sentence that repeats nothing of what was sent."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Head(msgspec.Struct, frozen=True):
    """What stands before the body. `length` is the declared body's, in bytes; None when it comes in chunks."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    fields: dict[bytes, bytes]
    length: int | None
    keep_alive: bool
    expects_continue: bool
    http_1_0: bool


def read_head(raw: bytes, headers_max: int) -> Head:
    """The head without its closing empty line. Raises Malformed."""
    first, *lines = raw.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise _bad_request_line(first)
    # Whatever control character is left over was not part of a line's end: a bare CR or LF, a NUL.
    if raw.translate(None, _ALLOWED) != b"\r\n" * len(lines):
        raise Malformed(400, "The request's head holds a control character or a line that does not end in CR LF.")
    if len(lines) > headers_max:
        raise Malformed(431, f"The request has more than {headers_max} headers.")
    headers = _read_headers(lines)
    fields = dict(headers)
    if len(fields) != len(headers):
        _refuse_doubled(headers)
    http_1_0 = match[3] == b"0"
    if b"host" not in fields and not http_1_0:
        raise Malformed(400, "The request has no Host header.")
    expects_continue = False
    if b"expect" in fields and not http_1_0:
        if fields[b"expect"].lower() != b"100-continue":
            raise Malformed(417, "The only expectation that is met here is 100-continue.")
        expects_continue = True
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Malformed(415, "Compressed bodies are not taken: send the body as it is.")
    options = fields.get(b"connection", b"").lower()
    return Head(
        match[1],
        match[2],
        headers,
        fields,
        _body_length(fields, http_1_0),
        b"keep-alive" in options if http_1_0 else b"close" not in options,
        expects_continue,
        http_1_0,
    )


def check_start(raw: bytes) -> None:
    """Judge an unfinished head early: who speaks another protocol need not wait for a deadline. Raises Malformed."""
    end = raw.find(b"\n")
    if end < 0:
        if not raw[:1].isalpha() or (len(raw) > 20 and b" " not in raw[:21]):
            raise _bad_request_line(raw)
    elif raw[end - 1 : end] != b"\r" or not _REQUEST_LINE.fullmatch(raw, 0, end - 1):
        raise _bad_request_line(raw)


def _read_headers(lines: list[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    headers: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        known = _names.get(name) if colon else None
        if known is None:
            # Also refuses a blank before the colon, a folded line (it begins with a blank) and a missing colon.
            if not colon or not _NAME.fullmatch(name):
                raise Malformed(400, "The request holds a header line that is not `name: value`.")
            known = name.lower()
            if b"_" in known:
                _judge_underscore(known)
                continue
            if len(_names) < _NAMES_MAX and len(name) <= 40:
                _names[name] = known
        headers.append((known, value.strip(b" \t")))
    return tuple(headers)


def _judge_underscore(name: bytes) -> None:
    """Drop a name with `_`; refuse one that a gateway may fold into a name that decides something."""
    folded = name.replace(b"_", b"-")
    if folded in SINGLE or folded.startswith(b"x-amz-"):
        raise Malformed(400, "A header's name is written with an underscore where a hyphen belongs.")


def _refuse_doubled(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and (name in SINGLE or name.startswith(b"x-amz-")):
            raise Malformed(400, "A header that may stand once stands twice.")
        seen.add(name)


def _body_length(fields: dict[bytes, bytes], http_1_0: bool) -> int | None:
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is None:
        if length is None:
            return 0
        if not _LENGTH.fullmatch(length):
            raise Malformed(400, "Content-Length is not a number.")
        return int(length)
    if length is not None:
        raise Malformed(400, "The request has both Content-Length and Transfer-Encoding.")
    if http_1_0:
        raise Malformed(400, "HTTP/1.0 has no Transfer-Encoding.")
    if coding.lower() != b"chunked":
        raise Malformed(501, "The only transfer coding that is taken here is chunked.")
    return None


def _bad_request_line(first: bytes) -> Malformed:
    if first.startswith((b"\x16\x03", b"SSH-")):
        return Malformed(0, "A TLS or SSH greeting arrived where HTTP is spoken.")
    if re.match(rb"[A-Z]{1,20} [^ ]+ HTTP/[0-9]", first) and not re.search(rb"HTTP/1\.[01]\r?$", first.split(b"\n")[0]):
        return Malformed(505, "HTTP/1.1 is spoken here.")
    return Malformed(400, "The request line is not `METHOD /path HTTP/1.1`.")


class Chunks:
    """The reader of a chunked body: feed it what came, it takes what it understands. Trailers are refused.

    A trailer field could only be one that was not signed and not seen when the request was judged.
    """

    __slots__ = ("_body", "_count", "_limit", "_missing", "done")

    # The longest line that begins a chunk: a size of 8 digits. Extensions have no use here and have hidden
    # a second reading of a chunk's end before; they are refused.
    _SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
    # Each chunk costs about a microsecond, whatever it holds: 1 MiB in single bytes would be a second of ours.
    _COUNT_MAX: Final = 8192

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._body = bytearray()
        self._count = 0
        self._missing = 0  # bytes of the current chunk, its closing CR LF included
        self.done = False

    def __len__(self) -> int:
        return len(self._body)

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    def feed(self, buffer: bytearray) -> None:
        """Take from the front of `buffer`, up to the body's end. Raises Malformed."""
        position = 0
        while not self.done:
            if self._missing > 2:
                data = buffer[position : position + self._missing - 2]
                if not data:
                    break
                self._body += data
                self._missing -= len(data)
                position += len(data)
                continue
            if self._missing:
                # Both bytes of a line's end must be here, or the first of them alone is right so far.
                ending = buffer[position : position + 2]
                if ending != b"\r\n"[: len(ending)]:
                    raise Malformed(400, "A chunk is longer or shorter than it says.")
                if len(ending) < 2:
                    break
                self._missing = 0
                position += 2
                continue
            end = buffer.find(b"\r\n", position, position + 10)
            if end < 0:
                if len(buffer) - position >= 10 or b"\n" in buffer[position:]:
                    raise Malformed(400, "A chunk's size is not a hexadecimal number.")
                break
            position = self._begin(bytes(buffer[position:end]), buffer, end + 2, position)
            if position < 0:
                return
        del buffer[:position]

    def _begin(self, size: bytes, buffer: bytearray, after: int, before: int) -> int:
        """Begin the chunk of this size. Gives the new position; -1 when the closing line is not here yet."""
        if not self._SIZE.fullmatch(size):
            raise Malformed(400, "A chunk's size is not a hexadecimal number.")
        length = int(size, 16)
        if length:
            self._count += 1
            if self._count > self._COUNT_MAX:
                raise Malformed(400, f"The request's body comes in more than {self._COUNT_MAX} chunks.")
            if len(self._body) + length > self._limit:
                raise Malformed(413, f"The request's body is larger than {self._limit} bytes.")
            self._missing = length + 2
            return after
        closing = buffer[after : after + 2]
        if closing != b"\r\n"[: len(closing)]:
            raise Malformed(400, "Trailers are not taken here.")
        if len(closing) < 2:
            del buffer[:before]
            return -1
        self.done = True
        return after + 2
