"""The image builder: what is asked of it. Handlers write what is wanted and answer; nothing is made here."""

from __future__ import annotations

import secrets
import uuid
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from millstream.lifecycle import machine as lifecycle
from millstream.model import document, ticket
from millstream.model import shapes as aws
from millstream.model.instance_types import INSTANCE_TYPES, RETIRED
from millstream.model.records import MachineSpec, Wanted
from millstream.resources import image, tag
from millstream.resources.call import Call, Page, invalid, next_token, page_size, place_of
from millstream.store import image_builders, machines, steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.store.machines import MachineRow

PAGE_MAX: Final = 100  # the largest page that clients of the real service ask for
GB: Final = 1000**3
VALIDITY_S_MAX: Final = 604_800


@aws.CreateImageBuilder
def create_image_builder(call: Call, request: aws.CreateImageBuilderRequest) -> aws.CreateImageBuilderResult:
    """A row and a wish; the reconciler makes the machine. Refusals come in the order of docs/behaviour.md."""
    name = request["Name"]
    _check_combinations(request)
    if call.tx.one("builder", account=call.account, region=call.region, name=name) is not None:
        raise aws.ResourceAlreadyExistsException(f"The image builder {name} already exists.")
    found = _image(call, request)
    spec_of_type = _instance_type(request["InstanceType"], found.shown)
    version = _agent_version(call, request.get("AppstreamAgentVersion"), found.shown["AppstreamAgentVersion"])
    most = call.service.image_builders_max
    count = call.tx.one("count_builders", account=call.account, region=call.region, most=most + 1)[0]
    if count >= most:
        raise aws.LimitExceededException(
            f"The image builder limit for account {call.account} in {call.region} was exceeded. "
            f"Requested: {count + 1}, Limit: {most}. Delete an image builder, or raise the setting image_builders_max."
        )
    arn = call.arn("image-builder", name)
    spec = MachineSpec(
        id=uuid.uuid4().hex,
        owner=arn,
        image=found.runs,
        vcpus=spec_of_type.vcpus,
        memory_bytes=spec_of_type.memory_bytes,
        disk_bytes=request.get("RootVolumeConfig", {}).get("VolumeSizeInGb", 200) * GB,
        internet=request.get("EnableDefaultInternetAccess", False),
        administrator=True,
        agent_version=version,
    )
    machines.add(call.tx, spec, state="PENDING", now=call.now)
    row = _machine(call, spec.id)
    asked = _asked(call, request, arn, found.shown, version)
    shown = image_builders.render(asked, row)
    call.tx.run(
        "add_builder",
        account=call.account,
        region=call.region,
        name=name,
        arn=arn,
        machine_id=spec.id,
        asked=msgspec.json.encode(asked).decode(),
        json=document.encode_json("ImageBuilder", shown),
        cbor=document.encode_cbor("ImageBuilder", shown),
    )
    tag.put(call, arn, request.get("Tags", {}))
    _told(call, row, "CreateImageBuilder")
    return {"ImageBuilder": shown}


def _check_combinations(request: aws.CreateImageBuilderRequest) -> None:
    """What the model can't say of the members together."""
    if ("ImageName" in request) == ("ImageArn" in request):
        raise aws.InvalidParameterCombinationException("Give exactly one of ImageName and ImageArn.")
    subnets = request.get("VpcConfig", {}).get("SubnetIds", [])
    if len(subnets) > 1:
        raise aws.InvalidParameterCombinationException(
            f"VpcConfig names {len(subnets)} subnets. An image builder is attached to one subnet: name one."
        )
    size = request.get("RootVolumeConfig", {}).get("VolumeSizeInGb", 200)
    if not 200 <= size <= 500:
        bound = "greater than or equal to 200" if size < 200 else "less than or equal to 500"
        raise invalid(size, "rootVolumeConfig.volumeSizeInGb", f"Member must have value {bound}")
    both = set(request.get("SoftwaresToInstall", [])) & set(request.get("SoftwaresToUninstall", []))
    if both:
        raise aws.InvalidParameterCombinationException(
            f"{min(both)} is in both SoftwaresToInstall and SoftwaresToUninstall. Name it in one of them."
        )
    if request.get("AccessEndpoints"):
        # To answer it back without enforcing it would leave the stream open to everybody else.
        raise aws.OperationNotPermittedException(
            "AccessEndpoints can't be enforced yet, so they are refused rather than ignored: leave them out. "
            "See `millstream coverage`."
        )
    if "AgentAccessConfig" in request:
        _check_agent_access(request["AgentAccessConfig"])


def _check_agent_access(config: Mapping[str, Any]) -> None:
    enabled = {item["AgentAction"] for item in config.get("Settings", []) if item["Permission"] == "ENABLED"}
    if not enabled:
        raise aws.InvalidParameterCombinationException(
            "AgentAccessConfig enables no agent action. Enable at least one, or leave it out."
        )
    if "COMPUTER_INPUT" in enabled and "COMPUTER_VISION" not in enabled:
        raise aws.InvalidParameterCombinationException("COMPUTER_INPUT needs COMPUTER_VISION: enable both.")
    if config.get("ScreenshotsUploadEnabled") and not config.get("S3BucketArn"):
        raise aws.InvalidParameterCombinationException("ScreenshotsUploadEnabled needs S3BucketArn.")


def _image(call: Call, request: aws.CreateImageBuilderRequest) -> image.Found:
    text = request.get("ImageName") or request.get("ImageArn", "")
    found = (image.by_name if "ImageName" in request else image.by_arn)(call, text)
    if found is None:
        raise aws.ResourceNotFoundException(f"The image {text} for account {call.account} does not exist.")
    return found


def _instance_type(name: str, shown: aws.Image) -> Any:
    if name not in INSTANCE_TYPES:
        gone = "is no longer offered" if name.startswith(RETIRED) else "is not known"
        raise aws.InvalidParameterCombinationException(
            f"The instance type {name} {gone}. stream.standard.medium is a good one to begin with."
        )
    found = INSTANCE_TYPES[name]
    if found.family not in shown["SupportedInstanceFamilies"]:
        raise aws.IncompatibleImageException(
            f"The image {shown['Name']} does not support the instance type {name} ({found.family}). "
            f"It supports: {', '.join(shown['SupportedInstanceFamilies'])}."
        )
    return found


def _agent_version(call: Call, asked: str | None, carried: str) -> str:
    if asked not in {None, "LATEST", carried, call.service.agent_version}:
        raise aws.ResourceNotFoundException(
            f"The AppStream agent version {asked} does not exist. This server has {call.service.agent_version}."
        )
    return call.service.agent_version if asked == "LATEST" else (asked or carried)


def _asked(
    call: Call, request: aws.CreateImageBuilderRequest, arn: str, shown: aws.Image, version: str
) -> dict[str, Any]:
    """The members of the document that do not change while the machine moves, as asked for or by default."""
    asked: dict[str, Any] = {"Name": request["Name"], "Arn": arn, "ImageArn": shown["Arn"]}
    given = cast("dict[str, Any]", request)
    for member in ("Description", "DisplayName", "VpcConfig", "InstanceType"):
        if member in given:
            asked[member] = given[member]
    if "Platform" in shown:
        asked["Platform"] = shown["Platform"]
    if "IamRoleArn" in given:
        asked["IamRoleArn"] = given["IamRoleArn"]
    asked["CreatedTime"] = call.now
    asked["EnableDefaultInternetAccess"] = given.get("EnableDefaultInternetAccess", False)
    if any(given.get("DomainJoinInfo", {}).values()):  # sent empty, it reads back as absent
        asked["DomainJoinInfo"] = given["DomainJoinInfo"]
    asked["AppstreamAgentVersion"] = version
    asked["RootVolumeConfig"] = given.get("RootVolumeConfig") or {"VolumeSizeInGb": 200}
    asked["LatestAppstreamAgentVersion"] = "TRUE" if version == call.service.agent_version else "FALSE"
    asked["DisableIMDSV1"] = given.get("DisableIMDSV1", False)
    if "AgentAccessConfig" in given:
        asked["AgentAccessConfig"] = given["AgentAccessConfig"]
    return asked


@aws.DescribeImageBuilders
def describe_image_builders(call: Call, request: aws.DescribeImageBuildersRequest) -> aws.DescribeImageBuildersResult:
    """By names (all must exist), or by pages in the order of names, which stays stable while others come and go."""
    here = {"account": call.account, "region": call.region}
    size = page_size(call, request.get("MaxResults"), PAGE_MAX)
    asked = request.get("Names")
    # A place among given names is a number, one among all is a name: a token of one kind is none of the other.
    scope = "DescribeImageBuilders by name" if asked else "DescribeImageBuilders"
    place = place_of(call, scope, request.get("NextToken"))
    token: str | None = None
    if asked:
        query = f"builder_{call.wire}"
        # The token numbers the page's first name: the caller sends the same names again.
        start = int(place or "0")
        wanted = list(dict.fromkeys(asked))
        documents = []
        for name in wanted[start : start + size]:
            row = call.tx.one(query, **here, name=name)
            if row is None:
                raise _not_found(name)
            documents.append(row[0])
        if start + size < len(wanted):
            token = next_token(call, scope, str(start + size))
    else:
        rows = call.tx.tuples(f"page_{call.wire}", **here, after=place, most=size + 1)
        if len(rows) > size:
            rows.pop()
            token = next_token(call, scope, rows[-1][0])
        documents = [document for _, document in rows]
    # Stored documents, joined by the wire: the type says what they hold.
    return cast("aws.DescribeImageBuildersResult", Page("ImageBuilders", documents, token))


@aws.StartImageBuilder
def start_image_builder(call: Call, request: aws.StartImageBuilderRequest) -> aws.StartImageBuilderResult:
    builder_id, asked, row = _existing(call, request["Name"])
    state = lifecycle.START.get(row.machine.state)
    if state is None:
        raise aws.ResourceNotAvailableException(_refusal(request["Name"], row.machine.state, "started", ("STOPPED",)))
    if "AppstreamAgentVersion" in request:
        _agent_version(call, request["AppstreamAgentVersion"], asked["AppstreamAgentVersion"])
    if state == row.machine.state:
        return {"ImageBuilder": image_builders.render(asked, row)}
    return {"ImageBuilder": _want(call, builder_id, asked, row, Wanted.RUNNING, state, "StartImageBuilder")}


@aws.StopImageBuilder
def stop_image_builder(call: Call, request: aws.StopImageBuilderRequest) -> aws.StopImageBuilderResult:
    builder_id, asked, row = _existing(call, request["Name"])
    state = lifecycle.STOP.get(row.machine.state)
    if state is None:
        raise aws.OperationNotPermittedException(_refusal(request["Name"], row.machine.state, "stopped", ("RUNNING",)))
    if state == row.machine.state:
        return {"ImageBuilder": image_builders.render(asked, row)}
    return {"ImageBuilder": _want(call, builder_id, asked, row, Wanted.STOPPED, state, "StopImageBuilder")}


@aws.DeleteImageBuilder
def delete_image_builder(call: Call, request: aws.DeleteImageBuilderRequest) -> aws.DeleteImageBuilderResult:
    """Wanted: gone. The row goes when the driver says that nothing is left, and on nothing else."""
    builder_id, asked, row = _existing(call, request["Name"])
    if row.machine.state not in lifecycle.DELETE:
        raise aws.OperationNotPermittedException(
            _refusal(request["Name"], row.machine.state, "deleted", ("RUNNING", "STOPPED", "FAILED"))
        )
    if row.machine.wanted is Wanted.GONE:  # sent again, after a lost answer
        return {"ImageBuilder": image_builders.render(asked, row)}
    return {"ImageBuilder": _want(call, builder_id, asked, row, Wanted.GONE, "DELETING", "DeleteImageBuilder")}


@aws.UpdateImageBuilder
def update_image_builder(call: Call, request: aws.UpdateImageBuilderRequest) -> aws.UpdateImageBuilderResult:
    """A member left out keeps its value. AgentAccessConfig is merged, its settings by action."""
    builder_id, asked, row = _existing(call, request["Name"])
    if row.machine.state not in lifecycle.UPDATE:
        raise aws.OperationNotPermittedException(_refusal(request["Name"], row.machine.state, "updated", ("STOPPED",)))
    drop = "AGENT_ACCESS_CONFIG" in request.get("AttributesToDelete", [])
    if drop and "AgentAccessConfig" in request:
        raise aws.InvalidParameterCombinationException(
            "AgentAccessConfig is both given and in AttributesToDelete. Send one of the two."
        )
    for member in ("Description", "DisplayName"):
        if member in request:
            asked[member] = request[member]
    if drop:
        asked.pop("AgentAccessConfig", None)
    if "AgentAccessConfig" in request:
        asked["AgentAccessConfig"] = _merged(asked.get("AgentAccessConfig", {}), request["AgentAccessConfig"])
    _told(call, row, "UpdateImageBuilder")
    return {"ImageBuilder": image_builders.save(call.tx, builder_id, asked, row)}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    settings = {item["AgentAction"]: item for item in old.get("Settings", [])}
    settings |= {item["AgentAction"]: item for item in new.get("Settings", [])}
    merged = {**old, **new, "Settings": list(settings.values())}
    missing = [member for member in ("ScreenResolution", "ScreenImageFormat") if member not in merged]
    if missing:
        raise aws.InvalidParameterCombinationException(
            f"AgentAccessConfig needs {' and '.join(missing)}: the image builder has none yet."
        )
    _check_agent_access(merged)
    return merged


@aws.CreateImageBuilderStreamingURL
def create_image_builder_streaming_url(
    call: Call, request: aws.CreateImageBuilderStreamingURLRequest
) -> aws.CreateImageBuilderStreamingURLResult:
    """A ticket for this machine, signed; nothing is stored until it is used."""
    validity_s = request.get("Validity", 3600)
    if not 1 <= validity_s <= VALIDITY_S_MAX:
        bound = "greater than or equal to 1" if validity_s < 1 else f"less than or equal to {VALIDITY_S_MAX}"
        raise invalid(validity_s, "validity", f"Member must have value {bound}")
    _, _, row = _existing(call, request["Name"])
    if row.machine.state not in lifecycle.STREAM or row.machine.wanted is not Wanted.RUNNING:
        raise aws.OperationNotPermittedException(_refusal(request["Name"], row.machine.state, "streamed", ("RUNNING",)))
    expires = int(call.now) + validity_s
    text = ticket.mint(
        call.service.ticket_key,
        ticket.Ticket(
            machine_id=row.machine.id,
            expires_at=expires,
            key_id=call.identity.key_id,
            account=call.account,
            nonce=secrets.token_hex(16),
        ),
    )
    url = f"{call.service.public_url}/stream/{row.machine.id}/?ticket={text}"
    return {"StreamingURL": url, "Expires": float(expires)}


def _existing(call: Call, name: str) -> tuple[int, dict[str, Any], MachineRow]:
    """The builder's number, the fixed members of its document, and its machine."""
    found = call.tx.one("builder", account=call.account, region=call.region, name=name)
    if found is None:
        raise _not_found(name)
    return found["id"], msgspec.json.decode(found["asked"]), _machine(call, found["machine_id"])


def _machine(call: Call, machine_id: str) -> MachineRow:
    row = machines.get(call.tx, machine_id)
    if row is None:
        raise LookupError(f"a builder without its machine {machine_id}")
    return row


def _want(
    call: Call,
    builder_id: int,
    asked: dict[str, Any],
    row: MachineRow,
    wanted: Wanted,
    state: str,
    operation: str,
) -> aws.ImageBuilder:
    machines.want(call.tx, row.machine.id, wanted, state=state, now=call.now)
    after = _machine(call, row.machine.id)
    _told(call, after, operation)
    return image_builders.save(call.tx, builder_id, asked, after)


def _told(call: Call, row: MachineRow, operation: str) -> None:
    """The timeline's first line of what follows: who asked for it can be found by the request's id."""
    steps.add(
        call.tx,
        steps.Step(
            owner=row.machine.owner,
            machine_id=row.machine.id,
            step=operation,
            started=call.now,
            ended=call.now,
            request_id=call.request_id,
        ),
    )


def _not_found(name: str) -> aws.ResourceNotFoundException:
    return aws.ResourceNotFoundException(f"The image builder {name} does not exist.")


def _refusal(name: str, state: str, verb: str, allowed: tuple[str, ...]) -> str:
    """As the service says it of other resources: which, what it is, what it must be."""
    states = allowed[0] if len(allowed) == 1 else f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    return f"The image builder {name} is {state} and can't be {verb}. It must be {states} for this action to succeed."
