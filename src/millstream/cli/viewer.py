"""Look at a desktop without a browser: in by the streaming URL, through the edge, to the first picture."""

from __future__ import annotations

import asyncio
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    import ssl

    import aiohttp

LIMIT_S: Final = 20.0
_RAW_ENCODING: Final = 0
_NO_SECURITY: Final = 1


class NoPicture(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The desktop could not be seen; its text says at which step."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The first one of a desktop. Times in seconds from the call of `view`."""

    width: int
    height: int
    name: str
    first_byte_s: float
    picture_s: float


def view(url: str, *, tls: ssl.SSLContext | None = None) -> Picture:
    """Follow `url` as its page would. Raises NoPicture."""
    try:
        return asyncio.run(asyncio.wait_for(_view(url, tls), LIMIT_S))
    except TimeoutError:
        raise NoPicture(f"no picture came within {LIMIT_S:.0f} s") from None


async def _view(url: str, tls: ssl.SSLContext | None) -> Picture:
    import aiohttp

    started = time.perf_counter()
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}{parts.path}"
    headers = {"Origin": f"{parts.scheme}://{parts.netloc}"}
    # The cookie belongs to an address like 127.0.0.1, which a jar refuses unless told.
    jar = aiohttp.CookieJar(unsafe=True)
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
    try:
        async with aiohttp.ClientSession(cookie_jar=jar, headers=headers, connector=connector) as session:
            async with session.post(f"{base}enter", data=parse_qs(parts.query)["ticket"][0]) as answer:
                if answer.status != 204:
                    raise NoPicture(f"the edge answered {answer.status}: {(await answer.text())[:200]}")
            async with session.ws_connect(f"{base}rfb", max_msg_size=0) as ws:
                return await _first_picture(_Reader(ws), started)
    except (aiohttp.ClientError, OSError) as error:
        raise NoPicture(f"{type(error).__name__}: {error}") from error


class _Reader:
    """The display's bytes, whatever messages they come in."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self._held = b""

    async def take(self, count: int) -> bytes:
        import aiohttp

        while len(self._held) < count:
            message = await self.ws.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                continue  # the edge's own talk with its page
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise NoPicture(f"the stream ended: {self.ws.close_code} {message.extra or ''}".rstrip())
            self._held += message.data
        taken, self._held = self._held[:count], self._held[count:]
        return taken


async def _first_picture(reader: _Reader, started: float) -> Picture:
    """RFC 6143 from the greeting to the first FramebufferUpdate that holds a rectangle."""
    version = await reader.take(12)
    first_byte_s = time.perf_counter() - started
    if not version.startswith(b"RFB 003."):
        raise NoPicture(f"the display greets with {version!r}")
    await reader.ws.send_bytes(b"RFB 003.008\n")
    kinds = await reader.take((await reader.take(1))[0])
    if _NO_SECURITY not in kinds:
        raise NoPicture(f"the display wants security {list(kinds)}")
    await reader.ws.send_bytes(bytes((_NO_SECURITY,)))
    if await reader.take(4) != b"\0\0\0\0":
        raise NoPicture("the display refused")
    await reader.ws.send_bytes(b"\x01")  # shared
    width, height, name_size = struct.unpack(">HH16xI", await reader.take(24))
    name = (await reader.take(min(name_size, 4096))).decode(errors="replace")
    await reader.ws.send_bytes(struct.pack(">BxHi", 2, 1, _RAW_ENCODING))
    await reader.ws.send_bytes(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
    while True:
        kind = (await reader.take(1))[0]
        if kind == 0:  # FramebufferUpdate
            if struct.unpack(">xH", await reader.take(3))[0]:
                break
        elif kind == 2:  # Bell
            continue
        elif kind == 3:  # ServerCutText
            await reader.take(struct.unpack(">3xI", await reader.take(7))[0])
        else:
            raise NoPicture(f"the display sent a message of kind {kind}")
    return Picture(width, height, name, first_byte_s, time.perf_counter() - started)
