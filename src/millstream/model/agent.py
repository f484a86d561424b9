"""The version of the in-machine agent that this release carries, in the service's form MM-DD-YYYY."""

from typing import Final

AGENT_VERSION: Final = "11-23-2026"
