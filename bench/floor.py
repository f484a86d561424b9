"""The floor of the API's figures: the product's own HTTP server, answering fixed bytes.

    python -m bench.floor PORT FILE [PORT FILE …]

Each FILE holds a body; its first line is the answer's content type.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from millstream.api.http import Request, Response
from millstream.api.server import Door, Limits


async def main(pairs: list[tuple[int, Path]]) -> None:
    stop = asyncio.Event()
    doors = []
    for port, file in pairs:
        content_type, _, body = file.read_bytes().partition(b"\n")
        headers = [
            ("content-type", content_type.decode()),
            ("x-amzn-RequestId", "00000000-0000-4000-a000-000000000000"),
        ]
        answer = Response(200, headers, body)

        def app(_request: Request, answer: Response = answer) -> Response:
            return answer

        doors.append(Door(app, Limits()).serve("127.0.0.1", port, tls=None, ready=lambda: None, stop=stop))
    await asyncio.gather(*doors)


if __name__ == "__main__":
    ports = [int(text) for text in sys.argv[1::2]]
    uvloop.run(main(list(zip(ports, map(Path, sys.argv[2::2]), strict=True))))
