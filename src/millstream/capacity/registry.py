"""The drivers, a line each. What a driver needs is loaded when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from millstream.capacity.driver import Driver, Streams


def _containers(data: Path, engine: str | None, options: dict[str, Any]) -> Driver:
    from millstream.capacity.containers.driver import ContainersDriver

    return ContainersDriver(data, engine, **options)


def _simulated(data: Path, engine: str | None, options: dict[str, Any]) -> Driver:  # noqa: ARG001 - one form for all
    from millstream.capacity.simulated import Durations, SimulatedDriver

    return SimulatedDriver(data, Durations(**options))


def _container_streams(data: Path) -> Streams:
    from millstream.capacity.containers.stream import ContainerStreams

    return ContainerStreams(data)


def _no_streams(data: Path) -> Streams:  # noqa: ARG001 - one form for all
    from millstream.capacity.simulated import NoStreams

    return NoStreams()


DRIVERS: dict[str, Callable[[Path, str | None, dict[str, Any]], Driver]] = {
    "containers": _containers,
    "simulated": _simulated,
}
STREAMS: dict[str, Callable[[Path], Streams]] = {
    "containers": _container_streams,
    "simulated": _no_streams,
}
