"""What of a viewer's bytes reaches the display: whole messages of the closed grammar, and nothing else."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream.gateway.rfb import KINDS, VERSION, ClientFilter, RemoteProtocolError, Rules

HELLO = VERSION + b"\x01\x01"
LIMIT = 1000


def filter_after_hello(**rules: bool | int) -> ClientFilter:
    made = ClientFilter(Rules(clipboard_in_bytes_max=LIMIT, **rules))  # type: ignore[arg-type]
    assert made.feed(HELLO) == HELLO
    return made


def key(sym: int = 0x61, down: int = 1) -> bytes:
    return struct.pack(">BBxxI", 4, down, sym)


def pointer(mask: int, x: int, y: int) -> bytes:
    return struct.pack(">BBHH", 5, mask, x, y)


def cut_text(text: bytes) -> bytes:
    return struct.pack(">Bxxxi", 6, len(text)) + text


def provide(text: bytes, *, flags: int = 1 << 28 | 1) -> bytes:
    body = struct.pack(">I", flags) + zlib.compress(struct.pack(">I", len(text)) + text)
    return struct.pack(">Bxxxi", 6, -len(body)) + body


def encodings(*numbers: int) -> bytes:
    return struct.pack(f">BxH{len(numbers)}i", 2, len(numbers), *numbers)


def desktop_size(width: int, height: int, screens: int = 1) -> bytes:
    return struct.pack(">BxHHBx", 251, width, height, screens) + bytes(16 * screens)


messages = st.one_of(
    st.binary(min_size=19, max_size=19).map(lambda rest: b"\0" + rest),
    st.lists(st.integers(-300, 300), max_size=40).map(lambda numbers: encodings(*numbers)),
    st.binary(min_size=9, max_size=9).map(lambda rest: b"\x03" + rest),
    st.builds(key, st.integers(0, 2**32 - 1), st.integers(0, 1)),
    st.builds(pointer, st.integers(0, 127), st.integers(0, 65535), st.integers(0, 65535)),
    st.binary(max_size=LIMIT).map(cut_text),
    st.binary(max_size=LIMIT - 400).map(provide),
    st.binary(min_size=9, max_size=9).map(lambda rest: b"\x96" + rest),
    st.binary(max_size=64).map(lambda text: struct.pack(">BxxxIB", 248, 7, len(text)) + text),
    st.builds(desktop_size, st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 16)),
    st.binary(min_size=10, max_size=10).map(lambda rest: b"\xff\0" + rest),
)


@given(st.lists(messages, max_size=12), st.lists(st.integers(1, 400), min_size=1))
def test_good_messages_pass_unchanged_however_they_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream = HELLO + b"".join(sent)
    made = ClientFilter(Rules(clipboard_in_bytes_max=LIMIT))
    got, at, turn = b"", 0, 0
    while at < len(stream):
        got += made.feed(stream[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    assert got == stream
    assert sum(made.counts.values()) == len(sent)


@given(st.lists(messages, max_size=12), st.booleans())
def test_a_viewer_who_only_looks_sends_no_input(sent: list[bytes], clipboard: bool) -> None:
    made = filter_after_hello(view_only=True, clipboard_in=clipboard)
    assert made.feed(b"".join(sent)) == b"".join(m for m in sent if m[0] in (0, 2, 3, 150, 248))
    assert made.inputs == 0


@given(chunks=st.lists(st.binary(max_size=300), max_size=8), greeted=st.booleans())
@example(chunks=[b"\x06\0\0\0\x80\0\0\0"], greeted=True)
@example(chunks=[b"\x06\0\0\0\xff\xff\xff\xff", b"x"], greeted=True)
@settings(max_examples=1500)
def test_any_bytes_pass_or_end_the_connection_and_nothing_else(chunks: list[bytes], *, greeted: bool) -> None:
    made = ClientFilter(Rules(clipboard_in_bytes_max=LIMIT))
    if greeted:
        made.feed(HELLO)
    got = b""
    try:
        for chunk in chunks:
            got += made.feed(chunk)
    except RemoteProtocolError:
        return
    # What passed is itself good: a second filter finds nothing more to take out of it.
    again = ClientFilter(Rules(clipboard_in_bytes_max=LIMIT))
    if greeted:
        again.feed(HELLO)
    assert again.feed(got) == got


@given(st.lists(messages, min_size=1, max_size=6), st.data())
def test_unknown_kinds_end_the_connection(sent: list[bytes], data: st.DataObject) -> None:
    kind = data.draw(st.integers(0, 255).filter(lambda k: k not in KINDS))
    with pytest.raises(RemoteProtocolError):
        filter_after_hello().feed(b"".join(sent) + bytes((kind,)))


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1", b"RFB 003.003\n", b"RFB 003.009\n", VERSION + b"\x02", VERSION + b"\x13"]
)
def test_another_version_or_security_type_is_not_rfb_to_us(start: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ClientFilter(Rules()).feed(start)


@pytest.mark.parametrize("shared", [0, 1, 2, 255])
def test_shared_is_always_set(shared: int) -> None:
    assert ClientFilter(Rules()).feed(VERSION + b"\x01" + bytes((shared,))) == HELLO


def test_the_long_pointer_message_is_never_agreed_on() -> None:
    made = filter_after_hello()
    assert made.feed(encodings(7, -316, 0)) == encodings(7, 0)
    assert made.feed(encodings(-316)) == encodings()
    # Its marker, sent all the same, is cleared: six bytes, as the display reads it.
    assert made.feed(pointer(0x81, 1, 2) + key()) == pointer(0x01, 1, 2) + key()


def test_idle_hears_the_person_only() -> None:
    made = filter_after_hello()
    made.feed(b"\x03" + bytes(9) + encodings(0) + b"\x96" + bytes(9) + cut_text(b"x") + desktop_size(10, 10))
    assert made.inputs == 0
    made.feed(key())
    assert made.inputs == 1
    made.feed(pointer(0, 5, 5))
    assert made.inputs == 2
    made.feed(pointer(0, 5, 5) * 100)  # a page that repeats itself is nobody moving
    assert made.inputs == 2
    made.feed(pointer(1, 5, 5) + b"\xff\0" + bytes(10))
    assert made.inputs == 4


def test_clipboard_limit_counts_what_arrives_and_what_it_unpacks_to() -> None:
    made = filter_after_hello()
    assert made.feed(cut_text(b"x" * LIMIT)) == cut_text(b"x" * LIMIT)
    assert made.feed(cut_text(b"x" * (LIMIT + 1)) + key()) == key()
    bomb = provide(b"x" * 10_000_000)  # some 10 kB for 10 MB
    assert made.feed(bomb + key()) == key()
    wide = ClientFilter(Rules(clipboard_in_bytes_max=1_000_000))
    wide.feed(HELLO)
    assert wide.feed(bomb + key()) == key()
    assert made.counts["clipboard", "too_long"] == 2
    assert made.feed(provide(b"x" * (LIMIT - 5))) != b""
    assert filter_after_hello(clipboard_in=False).feed(cut_text(b"x") + provide(b"y") + key()) == key()


@pytest.mark.parametrize("length", [2**31 - 1, -(2**31), 33_554_433, -33_554_433])
def test_a_2_gb_clipboard_ends_before_a_byte_of_it_is_kept(length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        filter_after_hello().feed(struct.pack(">Bxxxi", 6, length))


def test_a_long_clipboard_is_skipped_not_stored() -> None:
    made = filter_after_hello()
    assert made.feed(struct.pack(">Bxxxi", 6, 30_000_000)) == b""
    for _ in range(30):
        assert made.feed(bytes(1_000_000)) == b""
        assert len(made._rest) == 0
    assert made.feed(key()) == key()


def test_malformed_extended_clipboard_is_dropped() -> None:
    made = filter_after_hello()
    short = struct.pack(">Bxxxi", 6, -2) + b"ab"
    noise = struct.pack(">BxxxiI", 6, -10, 1 << 28) + b"nozlib"
    assert made.feed(short + noise + key()) == key()
    assert made.counts["clipboard", "malformed"] == 2


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (0, 100), (100, 0), (8193, 1), (8000, 8000)])
def test_a_screen_that_would_eat_the_memory_is_not_asked_for(width: int, height: int) -> None:
    assert filter_after_hello().feed(desktop_size(width, height) + key()) == key()


@pytest.mark.parametrize("bad", [b"\xff\x01", b"\xf8\0\0\0\0\0\0\0\x41", b"\x02\0\x01\x01", b"\xfb\0\0\1\0\1\x11\0"])
def test_lengths_over_the_limits_end_the_connection(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        filter_after_hello().feed(bad)


def test_one_byte_at_a_time_costs_no_square() -> None:
    made = ClientFilter(Rules(clipboard_in_bytes_max=262_144))
    made.feed(HELLO)
    message = cut_text(bytes(200_000))
    began = time.process_time()
    got = [made.feed(message[at : at + 1]) for at in range(len(message))]
    assert got[-1] == message
    assert time.process_time() - began < 2


def test_reboot_and_shutdown_are_the_apis_business() -> None:
    made = filter_after_hello()
    assert made.feed(b"\xfa\0\x01\x02" + key()) == key()
    assert made.counts["power", "not_allowed"] == 1
