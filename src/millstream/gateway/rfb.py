"""What a viewer may say to a machine's display: RFB, client to server, parsed whole. Pure: bytes in, bytes out.

The grammar is closed: a kind that isn't in the table has no known length, so it ends the connection. What the display
answers is never read here: it is the machine's, and goes to the page as it came.

Three things change what the same bytes mean at the display and are therefore taken out of its hands: the version is
3.8 and the security type None, or it is not RFB to us; `shared` is always set; and the pointer extension that makes
message 5 one byte longer is never announced.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass

VERSION = b"RFB 003.008\n"

# kind -> its name in metrics. The first four lengths are fixed; see `_length` for the rest.
KINDS = {
    0: "pixel_format",
    2: "encodings",
    3: "update_request",
    4: "key",
    5: "pointer",
    6: "clipboard",
    150: "continuous_updates",
    248: "fence",
    250: "power",
    251: "desktop_size",
    255: "key_extended",
}
_FIXED = {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 250: 4, 255: 12}
_INPUT = frozenset((4, 5, 6, 250, 251, 255))  # what a viewer who only looks can't send

ENCODINGS_MAX = 256  # noVNC sends 24
SCREENS_MAX = 16
FENCE_BYTES_MAX = 64  # the protocol's own limit
SIDE_PIXELS_MAX = 8192
AREA_PIXELS_MAX = 7680 * 4320  # a display's memory is the machine's, but a person shall not fill it by accident
CLIPBOARD_BYTES_MAX = 262_144  # what Xvnc takes unless told otherwise (-MaxCutText)
_SKIP_BYTES_MAX = 33_554_432  # longer than any clipboard that a page of ours offers: not a mistake, an attack

_EXTENDED_POINTER = (-316).to_bytes(4, "big", signed=True)
_PROVIDE = 1 << 28  # extended clipboard: this message holds the text itself, deflated


class RemoteProtocolError(Exception):
    """The viewer broke the grammar: the connection ends. The text is for the log."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one viewer may do. Fixed when the stream starts."""

    view_only: bool = False
    clipboard_in: bool = True
    clipboard_in_bytes_max: int = CLIPBOARD_BYTES_MAX


class ClientFilter:
    """One viewer's side of one connection. `feed` bytes as they come; what it returns may go to the display.

    `inputs` grows with each key and each pointer event that differs from the one before it: the person's own doing.
    `counts` holds messages by (kind's name, "passed" or why dropped).
    """

    def __init__(self, rules: Rules) -> None:
        self.inputs = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._rules = rules
        self._rest = bytearray()  # the start of a message
        self._need = 0  # bytes of it before it is worth looking again
        self._skip = 0  # bytes of a clipboard message, too long, still to come
        self._hello = [len(VERSION), 1, 1]  # version, security type, ClientInit: bytes of each still to come
        self._pointer = b""

    def feed(self, data: bytes) -> bytes:
        """What of the messages that `data` completes may pass. Raises RemoteProtocolError, and nothing else."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return b""  # not joined and parsed again for every byte of a long message
            data = bytes(self._rest)
            self._rest.clear()
        passed: list[bytes] = []
        at = 0
        while at < len(data):
            length = self._hello[0] if self._hello else self._length(data, at)
            if not length or at + length > len(data):
                if not self._too_long(data, at):
                    self._rest += data[at:]
                    self._need = length or len(self._rest) + 1
                break
            message = data[at : at + length]
            at += length
            kept = self._greet(message) if self._hello else self._judge(message)
            if kept:
                passed.append(kept)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _greet(self, message: bytes) -> bytes:
        step = self._hello.pop(0)
        if step == len(VERSION):
            if message != VERSION:
                raise RemoteProtocolError("not RFB 3.8")
            return message
        if self._hello:
            if message != b"\x01":
                raise RemoteProtocolError("security type other than None")
            return message
        return b"\x01"  # shared, whatever was asked: a second viewer must not end the first one behind our back

    def _length(self, data: bytes, at: int) -> int:
        """Bytes of the message that starts at `at`, 0 when more must come to tell."""
        kind = data[at]
        known = len(data) - at
        match kind:
            case 2:
                if known < 4:
                    return 0
                count = int.from_bytes(data[at + 2 : at + 4], "big")
                if count > ENCODINGS_MAX:
                    raise RemoteProtocolError(f"{count} encodings")
                return 4 + 4 * count
            case 6:
                return 8 + self._clipboard_bytes(data, at) if known >= 8 else 0
            case 248:
                if known < 9:
                    return 0
                if data[at + 8] > FENCE_BYTES_MAX:
                    raise RemoteProtocolError(f"a fence of {data[at + 8]} bytes")
                return 9 + data[at + 8]
            case 251:
                if known < 8:
                    return 0
                if data[at + 6] > SCREENS_MAX:
                    raise RemoteProtocolError(f"{data[at + 6]} screens")
                return 8 + 16 * data[at + 6]
            case 255 if known >= 2 and data[at + 1] != 0:
                raise RemoteProtocolError(f"kind 255, {data[at + 1]}")
            case _ if kind in _FIXED:
                return _FIXED[kind]
            case _:
                raise RemoteProtocolError(f"kind {kind}")

    def _clipboard_bytes(self, data: bytes, at: int) -> int:
        # A negative length announces the extended form: so many bytes of flags and deflated text.
        length = abs(int.from_bytes(data[at + 4 : at + 8], "big", signed=True))
        if length > _SKIP_BYTES_MAX:
            raise RemoteProtocolError(f"a clipboard of {length} bytes")
        return length

    def _too_long(self, data: bytes, at: int) -> bool:
        """True when the unfinished message at `at` is a clipboard that won't pass: its bytes are not even kept."""
        if self._hello or data[at] != 6 or len(data) - at < 8:
            return False
        length = self._clipboard_bytes(data, at)
        if length <= self._rules.clipboard_in_bytes_max:
            return False
        self._skip = 8 + length - (len(data) - at)
        self.counts["clipboard", "too_long"] += 1
        return True

    def _judge(self, message: bytes) -> bytes:
        kind = message[0]
        verdict = "passed"
        if kind in _INPUT and self._rules.view_only:
            verdict = "view_only"
        elif kind == 2:
            message = _without_extended_pointer(message)
        elif kind in (4, 255):
            self.inputs += 1
        elif kind == 5:
            message = message[:1] + bytes((message[1] & 0x7F,)) + message[2:]
            if message != self._pointer:
                self._pointer = message
                self.inputs += 1
        elif kind == 6:
            verdict = self._clipboard(message)
        elif kind == 250:
            verdict = "not_allowed"  # shut down, reboot: the API's business
        elif kind == 251:
            width, height = int.from_bytes(message[2:4], "big"), int.from_bytes(message[4:6], "big")
            if max(width, height) > SIDE_PIXELS_MAX or width * height > AREA_PIXELS_MAX or not width * height:
                verdict = "not_a_screen"
        self.counts[KINDS[kind], verdict] += 1
        return message if verdict == "passed" else b""

    def _clipboard(self, message: bytes) -> str:
        if not self._rules.clipboard_in:
            return "not_allowed"
        limit = self._rules.clipboard_in_bytes_max
        if len(message) - 8 > limit:
            return "too_long"
        if message[4] & 0x80:  # extended
            if len(message) < 12:
                return "malformed"
            if int.from_bytes(message[8:12], "big") & _PROVIDE:
                try:
                    text = zlib.decompressobj().decompress(message[12:], limit + 1)
                except zlib.error:
                    return "malformed"
                if len(text) > limit:
                    return "too_long"
        return "passed"


def _without_extended_pointer(message: bytes) -> bytes:
    encodings = [message[at : at + 4] for at in range(4, len(message), 4)]
    kept = [encoding for encoding in encodings if encoding != _EXTENDED_POINTER]
    if len(kept) == len(encodings):
        return message
    return message[:2] + len(kept).to_bytes(2, "big") + b"".join(kept)
