"""How fast one access key may call, so that its flood is nobody else's wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BURST_S: Final = 2.0  # a key that was silent may call at once what it may call in this time
_ROUNDING_S: Final = 1e-6
_KEYS_MAX: Final = 4096  # buckets held; only keys whose signature was right have one


class Throttle:
    """A bucket for each key and kind of call. Rates in calls a second; 0: no limit.

    A bucket is one number: the time at which it will be full again.
    """

    def __init__(
        self, *, reads_per_s: float = 0.0, writes_per_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._buckets: dict[bool, tuple[float, dict[str, float]]] = {
            True: (1 / reads_per_s if reads_per_s else 0.0, {}),
            False: (1 / writes_per_s if writes_per_s else 0.0, {}),
        }

    def admits(self, key_id: str, *, reads: bool) -> bool:
        """Whether this call may pass; if so it is counted."""
        call_s, full_at = self._buckets[reads]
        if not call_s:
            return True
        now = self._clock()
        at = full_at.get(key_id, now)
        at = max(at, now) + call_s
        if at - now > BURST_S + _ROUNDING_S:
            return False
        if len(full_at) >= _KEYS_MAX:
            for key in [key for key, then in full_at.items() if then <= now]:
                del full_at[key]
        full_at[key_id] = at
        return True
