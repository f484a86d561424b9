"""Instance types that an image builder may have: virtual processors and memory of each.

Sizes are those of the machines that AWS runs them on, from its public price pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class InstanceType:
    vcpus: int
    memory_bytes: int
    family: str  # as in an image's SupportedInstanceFamilies


def _sizes(prefix: str, family: str, sizes: str) -> dict[str, InstanceType]:
    """`sizes`: "small=1/2 medium=2/4": virtual processors and GiB."""
    found: dict[str, InstanceType] = {}
    for size in sizes.split():
        name, figures = size.split("=")
        vcpus, memory = figures.split("/")
        found[f"{prefix}.{name}"] = InstanceType(int(vcpus), int(float(memory) * GIB), family)
    return found


INSTANCE_TYPES: Final[dict[str, InstanceType]] = {
    **_sizes("stream.standard", "General Purpose", "small=1/2 medium=2/4 large=2/8 xlarge=4/16 2xlarge=8/32"),
    **_sizes(
        "stream.compute",
        "Compute Optimized",
        "large=2/3.75 xlarge=4/7.5 2xlarge=8/15 4xlarge=16/30 8xlarge=36/60",
    ),
    **_sizes(
        "stream.memory",
        "Memory Optimized",
        "large=2/15.25 xlarge=4/30.5 2xlarge=8/61 4xlarge=16/122 8xlarge=32/244",
    ),
    **_sizes(
        "stream.memory.z1d",
        "Memory Optimized",
        "large=2/16 xlarge=4/32 2xlarge=8/64 3xlarge=12/96 6xlarge=24/192 12xlarge=48/384",
    ),
    **_sizes("stream.graphics.g4dn", "Graphics G4", "xlarge=4/16 2xlarge=8/32 4xlarge=16/64 8xlarge=32/128"),
    **_sizes("stream.graphics.g4dn", "Graphics G4", "12xlarge=48/192 16xlarge=64/256"),
    **_sizes("stream.graphics.g5", "Graphics G5", "xlarge=4/16 2xlarge=8/32 4xlarge=16/64 8xlarge=32/128"),
    **_sizes("stream.graphics.g5", "Graphics G5", "12xlarge=48/192 16xlarge=64/256 24xlarge=96/384"),
    **_sizes("stream.graphics.g6", "Graphics G6", "xlarge=4/16 2xlarge=8/32 4xlarge=16/64 8xlarge=32/128"),
    **_sizes("stream.graphics.g6", "Graphics G6", "12xlarge=48/192 16xlarge=64/256 24xlarge=96/384"),
    **_sizes("stream.graphics.gr6", "Graphics G6", "4xlarge=16/128 8xlarge=32/256"),
    **_sizes("stream.graphics.g6f", "Graphics G6", "large=2/8 xlarge=4/16 2xlarge=8/32 4xlarge=16/64"),
    **_sizes("stream.graphics.gr6f", "Graphics G6", "4xlarge=16/128"),
}
# Gone from the service, or of unknown size: refused by name rather than as unknown.
RETIRED: Final = ("stream.graphics-design.", "stream.graphics-pro.", "stream.graphics-desktop.")
