"""Reads that were answered, answered again as long as nobody has written.

A read is a function of the store, the caller's account and Region, and its own bytes. Whoever waits asks the same
question over and over, so the bytes of its answer are kept until the store says that anything was committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from millstream.store.store import Store

BYTES_MAX: Final = 8 * 1024 * 1024  # of all questions and answers together
ANSWER_BYTES_MAX: Final = 128 * 1024
QUESTION_BYTES_MAX: Final = 4 * 1024

# Wire, operation, account, Region, the body's bytes: all that a read's answer depends on besides the store.
Question = tuple[str, str, str, str, bytes]


class Answers:
    """At most `most` answers of one thread's reads. 0: none, each read looks for itself."""

    def __init__(self, store: Store, most: int) -> None:
        self._store = store
        self._most = most
        self._held: dict[Question, bytes] = {}
        self._bytes = 0
        self._version = -1

    def find(self, question: Question) -> bytes | None:
        """The answer as it would be given now, if it is known. Raises StoreError."""
        if not self._most:
            return None
        version = self._store.version()
        if version != self._version:
            self._held.clear()
            self._bytes = 0
            self._version = version
        return self._held.get(question)

    def keep(self, question: Question, answer: bytes) -> None:
        """After `find` knew none. What was committed since `find` makes the next `find` forget it."""
        size = len(question[-1]) + len(answer)
        if len(question[-1]) > QUESTION_BYTES_MAX or len(answer) > ANSWER_BYTES_MAX:
            return
        if len(self._held) < self._most and self._bytes + size <= BYTES_MAX:
            self._held[question] = answer
            self._bytes += size
