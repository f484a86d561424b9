"""Members that are taken but have no effect yet, and those that are refused: the coverage page's truth.

A member that stands in neither table works. Tests hold these tables against the handlers.
"""

from __future__ import annotations

from typing import Final

_KEPT: Final = "validated and answered back as given; "

PARTIAL: Final[dict[str, dict[str, str]]] = {
    "CreateImageBuilder": {
        "VpcConfig": _KEPT + "every machine is on a network of its own kind, closed towards host and neighbours",
        "IamRoleArn": _KEPT + "no role credentials are inside the machine",
        "DomainJoinInfo": _KEPT + "the machine joins no domain",
        "AppstreamAgentVersion": "LATEST and the one version that this server has; others are refused",
        "RootVolumeConfig": _KEPT + "the size is no limit on the disk yet",
        "SoftwaresToInstall": "checked and not installed",
        "SoftwaresToUninstall": "checked; there is nothing to uninstall",
        "DisableIMDSV1": _KEPT + "there is no instance metadata in the machine, of either version",
        "AgentAccessConfig": _KEPT + "agents have no access of their own",
        "InstanceType": "processors and memory are real limits, no greater than the host's; no GPU",
    },
    "StartImageBuilder": {
        "AppstreamAgentVersion": "LATEST and the one version that this server has; others are refused",
    },
    "UpdateImageBuilder": {
        "AgentAccessConfig": _KEPT + "agents have no access of their own",
    },
    "DescribeImages": {
        "Type": "PUBLIC lists the base images; there are no PRIVATE and SHARED images yet, so their lists are empty",
    },
    "TagResource": {"ResourceArn": "image builders; other kinds of resource are not built yet"},
    "UntagResource": {"ResourceArn": "image builders; other kinds of resource are not built yet"},
    "ListTagsForResource": {"ResourceArn": "image builders; other kinds of resource are not built yet"},
}
REFUSED: Final[dict[str, dict[str, str]]] = {
    "CreateImageBuilder": {
        "AccessEndpoints": "refused rather than ignored: without effect the stream would be open to everybody else",
    },
}
