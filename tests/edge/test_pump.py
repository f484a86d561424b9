"""Every byte once, in order; what is held stays within the bound; nothing waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from millstream.gateway.pump import Effect, LocalProtocolError, Pause, Pump, Resume, Send

HELD, CHUNK = 64, 16


class PumpStory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pump = Pump(HELD, CHUNK)
        self.wrote = b""
        self.got = b""
        self.under_way: bytes | None = None
        self.paused = False
        self.next = 0

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    assert self.under_way is None
                    assert 0 < len(data) <= HELD
                    self.under_way = data
                case Pause():
                    assert not self.paused
                    self.paused = True
                case Resume():
                    assert self.paused
                    self.paused = False

    @precondition(lambda self: not self.paused)
    @rule(size=st.integers(0, CHUNK))
    def machine_sends(self, size: int) -> None:
        chunk = bytes((self.next + i) % 256 for i in range(size))
        self.next += size
        self.wrote += chunk
        self.apply(self.pump.read(chunk))

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def viewer_takes(self) -> None:
        assert self.under_way is not None
        self.got += self.under_way
        self.under_way = None
        self.apply(self.pump.sent())

    @invariant()
    def nothing_lost_nothing_twice(self) -> None:
        assert self.wrote.startswith(self.got + (self.under_way or b""))
        assert self.pump.held_bytes == len(self.wrote) - len(self.got) - len(self.under_way or b"")
        assert self.pump.held_bytes <= HELD
        assert self.pump.paused == self.paused

    @invariant()
    def something_is_under_way_while_anything_waits(self) -> None:
        assert self.under_way is not None or self.got == self.wrote
        assert self.under_way is not None or not self.paused


TestPumpStory = PumpStory.TestCase


@given(st.lists(st.binary(min_size=1, max_size=CHUNK), max_size=50))
def test_a_quick_viewer_gets_each_chunk_as_it_came(chunks: list[bytes]) -> None:
    pump = Pump(HELD, CHUNK)
    for chunk in chunks:
        assert pump.read(chunk) == [Send(chunk)]
        assert pump.sent() == []


def test_our_own_mistakes_are_said() -> None:
    with pytest.raises(LocalProtocolError):
        Pump(8, 16)
    pump = Pump(HELD, CHUNK)
    with pytest.raises(LocalProtocolError):
        pump.sent()
    with pytest.raises(LocalProtocolError):
        pump.read(bytes(CHUNK + 1))
    while not pump.paused:
        pump.read(bytes(CHUNK))
    assert repr(pump) == "<Pump [sending, paused, 64 bytes held]>"
    with pytest.raises(LocalProtocolError):
        pump.read(b"x")
