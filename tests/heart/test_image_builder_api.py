"""The eleven operations of the main job, asked by unmodified boto3 of a real service with simulated machines.

Each test has a Region of its own, so that names and quotas of one never meet those of another.
"""

from __future__ import annotations

import itertools
import json
import signal
import sqlite3
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heart.heart_world import SMALL, a_world

from millstream import wiring
from millstream.lifecycle import machine as lifecycle
from millstream.model import errors
from millstream.model import shapes as aws
from millstream.model.errors import CommonError, ServiceError, ValidationException
from millstream.model.instance_types import INSTANCE_TYPES
from millstream.model.operation import Operation

COMMON = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CommonError)}
OPERATIONS = (
    "CreateImageBuilder",
    "DescribeImageBuilders",
    "StartImageBuilder",
    "StopImageBuilder",
    "UpdateImageBuilder",
    "DeleteImageBuilder",
    "CreateImageBuilderStreamingURL",
    "DescribeImages",
    "TagResource",
    "UntagResource",
    "ListTagsForResource",
)
ALIAS = "AppStream-WinServer2019-10-08-2021"
QUOTA = 12
_regions = (f"eu-test-{number}" for number in itertools.count(1))
_SERVE = """
import sys
from pathlib import Path
from millstream.wiring import serve, settings
options = dict(data=Path(sys.argv[1]), listen=sys.argv[2], edge=sys.argv[3], capacity="simulated", log_level="warning",
    image_builders_max=int(sys.argv[4]), simulated_acquire_s=0.05, simulated_start_s=0.3, simulated_stop_s=0.5, simulated_release_s=0.5)
sys.exit(serve(settings(**options), ready=lambda: print("ready", flush=True)))
"""


@dataclass
class Running:
    url: str
    data: Path
    key_id: str
    secret: str

    def client(self, region: str | None = None, service: str = "appstream") -> Any:
        client = boto3.client(
            service,
            endpoint_url=self.url,
            region_name=region or next(_regions),
            aws_access_key_id=self.key_id,
            aws_secret_access_key=self.secret,
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
        )
        client.meta.events.register("after-call.appstream", _only_declared)
        return client

    def sql(self, text: str, *values: object, file: str = "millstream.db") -> None:
        with sqlite3.connect(self.data / file, timeout=10) as connection:
            connection.execute(text, values)


def _only_declared(model: Any, parsed: dict[str, Any], **_: Any) -> None:
    """Every answer of this file passes here: an error is one of the operation's own, or a common one."""
    code = parsed.get("Error", {}).get("Code")
    if code is not None:
        declared = {shape.name for shape in model.error_shapes}
        assert code in declared | COMMON, f"{model.name} answered {code}, which its clients don't know"
        assert parsed["ResponseMetadata"]["HTTPStatusCode"] < 500, parsed
        assert parsed["Error"]["Message"]
    assert parsed["ResponseMetadata"]["RequestId"]


def free_address() -> str:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="millstream-api-") as folder:
        listen, edge = free_address(), free_address()
        with subprocess.Popen(
            [sys.executable, "-c", _SERVE, folder, listen, edge, str(QUOTA)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                chosen = wiring.settings(data=Path(folder))
                store = wiring.open_store(chosen)
                key = wiring.root_key(store, "000000000000")
                store.close()
                yield Running(f"http://{listen}", Path(folder), key.key_id, key.secret.reveal())
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)


@pytest.fixture
def client(service: Running) -> Any:
    return service.client()


def wait_for(client: Any, name: str, state: str | None, among: set[str], limit_s: float = 20.0) -> list[str]:
    """Poll as Terraform does: any state outside of `among` is an error. None: until not found."""
    seen: list[str] = []
    until = time.monotonic() + limit_s
    while True:
        try:
            found = client.describe_image_builders(Names=[name])["ImageBuilders"][0]["State"]
        except client.exceptions.ResourceNotFoundException:
            assert state is None, f"{name} is gone"
            return seen
        if not seen or seen[-1] != found:
            seen.append(found)
        assert found in {*among, state}, f"unexpected state: {seen}"
        if found == state:
            return seen
        assert time.monotonic() < until, f"{name} is {found} after {limit_s} s"
        time.sleep(0.02)


def create(client: Any, name: str = "b", **more: Any) -> Any:
    return client.create_image_builder(**{"Name": name, **SMALL, **more})["ImageBuilder"]


def run(client: Any, name: str = "b", **more: Any) -> Any:
    create(client, name, **more)
    wait_for(client, name, "RUNNING", {"PENDING"})
    return shown(client, name)


def shown(client: Any, name: str = "b") -> Any:
    return client.describe_image_builders(Names=[name])["ImageBuilders"][0]


def refused(call: Callable[..., Any], code: str, *parts: str, **request: Any) -> str:
    """The message of a refusal, which must be of this code and speak of each part."""
    with pytest.raises(ClientError) as caught:
        call(**request)
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    for part in parts:
        assert part in error["Message"], error
    return str(error["Message"])


# -- create and describe


def test_create_answers_pending_and_describe_shows_it_at_once(client: Any) -> None:
    answer = create(client, Tags={"team": "cad"})
    assert answer["State"] == "PENDING"
    assert shown(client)["State"] in {"PENDING", "RUNNING"}
    assert client.list_tags_for_resource(ResourceArn=answer["Arn"])["Tags"] == {"team": "cad"}
    wait_for(client, "b", "RUNNING", {"PENDING"})
    found = shown(client)
    address = found.pop("NetworkAccessConfiguration")
    assert address["EniPrivateIpAddress"].startswith("10.")
    assert address["EniId"].startswith("eni-")
    assert len(address["EniId"]) == 21
    region = client.meta.region_name
    assert found == {**answer, "State": "RUNNING"}
    assert found == {
        "Name": "b",
        "Arn": f"arn:aws:appstream:{region}:000000000000:image-builder/b",
        "ImageArn": f"arn:aws:appstream:{region}::image/debian-12-desktop",
        "InstanceType": "stream.standard.small",
        "State": "RUNNING",
        "CreatedTime": found["CreatedTime"],
        "EnableDefaultInternetAccess": False,
        "AppstreamAgentVersion": found["AppstreamAgentVersion"],
        "LatestAppstreamAgentVersion": "TRUE",
        "RootVolumeConfig": {"VolumeSizeInGb": 200},
        "DisableIMDSV1": False,
    }


GIVEN: dict[str, Any] = {
    "Description": "for CAD",
    "DisplayName": "CAD 2",
    "VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1", "sg-2"]},
    "IamRoleArn": "arn:aws:iam::000000000000:role/cad",
    "EnableDefaultInternetAccess": True,
    "DomainJoinInfo": {"DirectoryName": "corp.example.com", "OrganizationalUnitDistinguishedName": "OU=x,DC=corp"},
    "RootVolumeConfig": {"VolumeSizeInGb": 300},
    "DisableIMDSV1": True,
    "AgentAccessConfig": {
        "Settings": [{"AgentAction": "COMPUTER_VISION", "Permission": "ENABLED"}],
        "ScreenResolution": "W_1280xH_720",
        "ScreenImageFormat": "PNG",
        "ScreenshotsUploadEnabled": False,
    },
}


def test_what_was_given_reads_back_and_updating_nothing_changes_nothing(client: Any) -> None:
    answer = create(client, **GIVEN)
    for member, value in GIVEN.items():
        assert answer[member] == value, member
    wait_for(client, "b", "RUNNING", {"PENDING"})
    client.stop_image_builder(Name="b")
    wait_for(client, "b", "STOPPED", {"STOPPING"})
    before = shown(client)
    assert {member: before[member] for member in GIVEN} == GIVEN
    assert "NetworkAccessConfiguration" not in before
    assert client.update_image_builder(Name="b")["ImageBuilder"] == before
    assert shown(client) == before


def test_an_empty_domain_reads_back_as_absent(client: Any) -> None:
    assert "DomainJoinInfo" not in create(
        client, DomainJoinInfo={"DirectoryName": "", "OrganizationalUnitDistinguishedName": ""}
    )


# Requests of CreateImageBuilder that are refused: what differs from a good one (None: left out), the code, the message.
CREATE_REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"Name": None}, "ValidationException", "'name' failed to satisfy constraint: Member must not be null"),
    ({"Name": "-b"}, "ValidationException", "Member must satisfy regular expression pattern"),
    ({"Name": "x" * 102}, "ValidationException", "Member must satisfy regular expression pattern"),
    ({"InstanceType": None}, "ValidationException", "Member must not be null"),
    ({"ImageName": None}, "InvalidParameterCombinationException", "exactly one of ImageName and ImageArn"),
    ({"ImageArn": "arn:aws:appstream:us-east-1::image/x"}, "InvalidParameterCombinationException", "exactly one"),
    ({"ImageName": "nothing"}, "ResourceNotFoundException", "The image nothing for account 000000000000 does not"),
    ({"InstanceType": "stream.standard.huge"}, "InvalidParameterCombinationException", "is not known"),
    ({"InstanceType": "stream.graphics-pro.4xlarge"}, "InvalidParameterCombinationException", "no longer offered"),
    ({"InstanceType": "stream.graphics.g5.xlarge"}, "IncompatibleImageException", "Graphics G5"),
    ({"VpcConfig": {"SubnetIds": ["subnet-1", "subnet-2"]}}, "InvalidParameterCombinationException", "one subnet"),
    ({"VpcConfig": {"SecurityGroupIds": [f"sg-{n}" for n in range(6)]}}, "ValidationException", "length"),
    ({"RootVolumeConfig": {"VolumeSizeInGb": 199}}, "ValidationException", "greater than or equal to 200"),
    ({"RootVolumeConfig": {"VolumeSizeInGb": 501}}, "ValidationException", "less than or equal to 500"),
    ({"AppstreamAgentVersion": "01-01-2001"}, "ResourceNotFoundException", "agent version 01-01-2001 does not exist"),
    ({"AccessEndpoints": [{"EndpointType": "STREAMING", "VpceId": "vpce-1"}]}, "OperationNotPermittedException", "AccessEndpoints"),
    ({"AccessEndpoints": [{"EndpointType": "OTHER"}]}, "ValidationException", "enum value set"),
    ({"Tags": {"aws:x": "y"}}, "ValidationException", "regular expression pattern"),
    ({"Tags": {str(n): "" for n in range(51)}}, "ValidationException", "50"),
    ({"Description": "x" * 257}, "ValidationException", "length less than or equal to 256"),
    ({"IamRoleArn": "role"}, "ValidationException", "regular expression pattern"),
    ({"EnableDefaultInternetAccess": "yes"}, "SerializationException", ""),
)  # fmt: skip


@pytest.mark.parametrize("case", CREATE_REFUSED, ids=lambda case: next(iter(case[0])))
def test_what_create_refuses(client: Any, case: tuple[dict[str, Any], str, str]) -> None:
    differs, code, text = case
    request = {member: value for member, value in ({"Name": "b", **SMALL} | differs).items() if value is not None}
    refused(client.create_image_builder, code, text, **request)
    assert client.describe_image_builders()["ImageBuilders"] == [], "a refused call leaves nothing"


def test_refusals_come_in_a_fixed_order(client: Any) -> None:
    """Form, then combinations, then the name, then the image, then its type, the agent, the quota."""
    create(client)
    wrong: dict[str, Any] = {"Name": "b", "ImageName": "no", "InstanceType": "no"}
    refused(client.create_image_builder, "ValidationException", **{**wrong, "Description": "x" * 300})
    refused(
        client.create_image_builder,
        "InvalidParameterCombinationException",
        **{**wrong, "ImageArn": "arn:aws:x:y:z:image/a"},
    )
    refused(
        client.create_image_builder, "ResourceAlreadyExistsException", "The image builder b already exists", **wrong
    )
    refused(client.create_image_builder, "ResourceNotFoundException", "image", **{**wrong, "Name": "c"})
    refused(
        client.create_image_builder,
        "InvalidParameterCombinationException",
        "instance type",
        **{**wrong, "Name": "c", "ImageName": ALIAS},
    )


def test_a_taken_name_is_refused_even_for_the_same_request_and_while_it_goes(client: Any) -> None:
    create(client)
    refused(client.create_image_builder, "ResourceAlreadyExistsException", Name="b", **SMALL)
    client.delete_image_builder(Name="b")
    refused(client.create_image_builder, "ResourceAlreadyExistsException", Name="b", **SMALL)
    wait_for(client, "b", None, {"DELETING"})
    create(client)


def test_of_many_that_take_a_name_at_once_one_has_it(service: Running) -> None:
    region = next(_regions)
    told: list[str] = []

    def work() -> None:
        client = service.client(region)
        try:
            create(client)
            told.append("")
        except ClientError as error:
            told.append(error.response["Error"]["Code"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["", *["ResourceAlreadyExistsException"] * 7]


def test_every_instance_type_of_the_images_families_is_taken() -> None:
    """In the handler itself: forty creates need no network."""
    with a_world() as world:
        world.service = replace(world.service, image_builders_max=1000)
        for number, (name, found) in enumerate(INSTANCE_TYPES.items()):
            request = {"Name": f"b{number}", "InstanceType": name, "ImageName": ALIAS}
            if "Graphics" in found.family:
                with pytest.raises(aws.IncompatibleImageException):
                    world.call(aws.CreateImageBuilder, **request)
            else:
                answer = world.call(aws.CreateImageBuilder, **request)
                assert answer["ImageBuilder"]["InstanceType"] == name


def test_the_quota_counts_whatever_is_there_and_what_is_gone_no_more(client: Any, service: Running) -> None:
    for number in range(QUOTA):
        create(client, f"b{number}")
    refused(
        client.create_image_builder,
        "LimitExceededException",
        f"Requested: {QUOTA + 1}, Limit: {QUOTA}",
        Name="c",
        **SMALL,
    )
    create(service.client(), "c")  # another Region has its own
    client.delete_image_builder(Name="b0")
    refused(client.create_image_builder, "LimitExceededException", Name="c", **SMALL)  # while it goes it still counts
    wait_for(client, "b0", None, {"DELETING"})
    create(client, "c")


# -- states


def test_the_whole_life_as_terraform_and_scripts_poll_it(client: Any) -> None:
    create(client)
    assert wait_for(client, "b", "RUNNING", {"PENDING"})[-1] == "RUNNING"
    before = shown(client)
    assert client.start_image_builder(Name="b")["ImageBuilder"] == before, "nothing to do: it succeeds"
    assert client.stop_image_builder(Name="b")["ImageBuilder"]["State"] == "STOPPING"
    assert shown(client)["State"] == "STOPPING"
    assert client.stop_image_builder(Name="b")["ImageBuilder"]["State"] == "STOPPING"
    refused(client.start_image_builder, "ResourceNotAvailableException", "b is STOPPING", "must be STOPPED", Name="b")
    refused(client.delete_image_builder, "OperationNotPermittedException", "STOPPING", Name="b")
    refused(client.update_image_builder, "OperationNotPermittedException", "must be STOPPED", Name="b")
    refused(client.create_image_builder_streaming_url, "OperationNotPermittedException", "must be RUNNING", Name="b")
    wait_for(client, "b", "STOPPED", {"STOPPING"})
    assert client.stop_image_builder(Name="b")["ImageBuilder"]["State"] == "STOPPED"
    assert client.start_image_builder(Name="b", AppstreamAgentVersion="LATEST")["ImageBuilder"]["State"] == "PENDING"
    refused(client.start_image_builder, "ResourceNotAvailableException", "PENDING", Name="b")
    refused(client.stop_image_builder, "OperationNotPermittedException", "PENDING", Name="b")
    wait_for(client, "b", "RUNNING", {"PENDING"})
    assert shown(client)["NetworkAccessConfiguration"] != before["NetworkAccessConfiguration"], "a new interface"
    assert client.delete_image_builder(Name="b")["ImageBuilder"]["State"] == "DELETING"
    assert client.delete_image_builder(Name="b")["ImageBuilder"]["State"] == "DELETING", "sent again"
    assert wait_for(client, "b", None, {"DELETING"}) in ([], ["DELETING"])
    refused(client.delete_image_builder, "ResourceNotFoundException", "The image builder b does not exist", Name="b")


@pytest.mark.parametrize("state", ["PENDING", "STOPPED", "FAILED"])
def test_delete_from_every_state_that_lasts(service: Running, client: Any, state: str) -> None:
    if state == "FAILED":
        arn = f"arn:aws:appstream:{client.meta.region_name}:000000000000:image-builder/b"
        service.sql(
            "INSERT INTO fault (owner, step, moment, error_code, message, times) VALUES (?,?,?,?,?,?)",
            arn, "acquire", "refused", "SUBNET_NOT_FOUND", "The subnet is not there.", 1,
        )  # fmt: skip
    create(client)
    if state == "STOPPED":
        wait_for(client, "b", "RUNNING", {"PENDING"})
        client.stop_image_builder(Name="b")
        wait_for(client, "b", "STOPPED", {"STOPPING"})
    elif state == "FAILED":
        wait_for(client, "b", "FAILED", {"PENDING"})
        found = shown(client)
        assert found["ImageBuilderErrors"][0]["ErrorCode"] == "SUBNET_NOT_FOUND"
        assert found["ImageBuilderErrors"][0]["ErrorMessage"] == "The subnet is not there."
        assert found["ImageBuilderErrors"][0]["ErrorTimestamp"]
        assert found["StateChangeReason"] == {"Code": "INTERNAL_ERROR", "Message": "The subnet is not there."}
        refused(client.start_image_builder, "ResourceNotAvailableException", "FAILED", Name="b")
        refused(client.stop_image_builder, "OperationNotPermittedException", "FAILED", Name="b")
    assert client.delete_image_builder(Name="b")["ImageBuilder"]["State"] == "DELETING"
    wait_for(client, "b", None, {"DELETING"})


# What each call makes of each state of the model: the tables of docs/lifecycle.md, held to the handlers.
CALLS: tuple[tuple[Any, Any, type[ServiceError]], ...] = (
    (aws.StartImageBuilder, lifecycle.START, aws.ResourceNotAvailableException),
    (aws.StopImageBuilder, lifecycle.STOP, aws.OperationNotPermittedException),
    (aws.DeleteImageBuilder, lifecycle.DELETE, aws.OperationNotPermittedException),
    (aws.UpdateImageBuilder, {state: state for state in lifecycle.UPDATE}, aws.OperationNotPermittedException),
    (aws.CreateImageBuilderStreamingURL, dict.fromkeys(lifecycle.STREAM, ""), aws.OperationNotPermittedException),
)


def test_every_call_in_every_state_of_the_model() -> None:
    with a_world() as world:
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        world.settle()
        for (operation, table, refusal), state in itertools.product(CALLS, lifecycle.STATES):
            wanted = "GONE" if state == "DELETING" else "STOPPED" if state in {"STOPPED", "STOPPING"} else "RUNNING"
            with sqlite3.connect(world.folder / "millstream.db") as connection:
                connection.execute("UPDATE machine SET state = ?, wanted = ?", (state, wanted))
            if state not in table:
                with pytest.raises(refusal, match=f"The image builder b is {state} and can't be"):
                    world.call(operation, Name="b")
                assert world.rows()[0]["state"] == state
            else:
                answer = world.call(operation, Name="b")
                assert answer.get("ImageBuilder", {}).get("State", "") == table[state]


# -- update


def test_update_keeps_what_is_left_out_and_merges_agent_access(client: Any) -> None:
    create(client, Description="one", DisplayName="One")
    wait_for(client, "b", "RUNNING", {"PENDING"})
    client.stop_image_builder(Name="b")
    wait_for(client, "b", "STOPPED", {"STOPPING"})
    update = client.update_image_builder
    found = update(Name="b", Description="two")["ImageBuilder"]
    assert (found["Description"], found["DisplayName"]) == ("two", "One")
    vision = {"AgentAction": "COMPUTER_VISION", "Permission": "ENABLED"}
    entry = {"AgentAction": "COMPUTER_INPUT", "Permission": "ENABLED"}
    config: dict[str, Any] = {
        "Settings": [vision], "ScreenResolution": "W_1280xH_720", "ScreenImageFormat": "PNG",
        "ScreenshotsUploadEnabled": False,
    }  # fmt: skip
    refused(
        update,
        "InvalidParameterCombinationException",
        "ScreenResolution and ScreenImageFormat",
        Name="b",
        AgentAccessConfig={"Settings": [vision]},
    )
    assert update(Name="b", AgentAccessConfig=config)["ImageBuilder"]["AgentAccessConfig"] == config
    merged = update(Name="b", AgentAccessConfig={"Settings": [entry]})["ImageBuilder"]["AgentAccessConfig"]
    assert merged == {**config, "Settings": [vision, entry]}
    refused(update, "InvalidParameterCombinationException", "enables no agent action", Name="b",
            AgentAccessConfig={"Settings": [{**vision, "Permission": "DISABLED"}, {**entry, "Permission": "DISABLED"}]})  # fmt: skip
    refused(update, "InvalidParameterCombinationException", "COMPUTER_VISION", Name="b",
            AgentAccessConfig={"Settings": [{**vision, "Permission": "DISABLED"}]})  # fmt: skip
    refused(
        update,
        "InvalidParameterCombinationException",
        "both",
        Name="b",
        AgentAccessConfig=config,
        AttributesToDelete=["AGENT_ACCESS_CONFIG"],
    )
    assert shown(client)["AgentAccessConfig"] == merged, "a refused update changes nothing"
    assert "AgentAccessConfig" not in update(Name="b", AttributesToDelete=["AGENT_ACCESS_CONFIG"])["ImageBuilder"]
    refused(update, "ResourceNotFoundException", Name="no")


# -- lists


def test_pages_by_boto3s_own_paginator(client: Any) -> None:
    names = [f"b{number:02}" for number in range(7)]
    for name in reversed(names):
        create(client, name)
    pages = list(client.get_paginator("describe_image_builders").paginate(PaginationConfig={"PageSize": 3}))
    assert [[found["Name"] for found in page["ImageBuilders"]] for page in pages] == [names[:3], names[3:6], names[6:]]
    assert "NextToken" not in pages[-1]
    assert [found["Name"] for found in client.describe_image_builders()["ImageBuilders"]] == names
    assert "NextToken" not in client.describe_image_builders(MaxResults=7)
    assert len(client.describe_image_builders(MaxResults=0)["ImageBuilders"]) == 7, "0: as many as usual"
    refused(client.describe_image_builders, "ValidationException", "maxResults", MaxResults=-1)
    asked = ["b03", "b01", "b03"]
    assert [f["Name"] for f in client.describe_image_builders(Names=asked)["ImageBuilders"]] == ["b03", "b01"]
    refused(
        client.describe_image_builders,
        "ResourceNotFoundException",
        "The image builder no does not exist",
        Names=["b01", "no"],
    )


def test_tokens_are_of_this_list_this_account_and_region(service: Running, client: Any) -> None:
    for name in ("1", "2", "3"):
        create(client, name)
    token = client.describe_image_builders(MaxResults=1)["NextToken"]
    named = client.describe_image_builders(MaxResults=1, Names=["1", "2"])["NextToken"]
    turned = ("A" if token[5] != "A" else "B").join([token[:5], token[6:]])
    forged = ["x", "AAAA", token + "A", token[:-1], turned, token.upper(), "é", "=" * 40, "1"]
    for text in forged:
        refused(client.describe_image_builders, "ValidationException", "nextToken", NextToken=text)
    # A place among names given is none among all, and the other way round.
    refused(client.describe_image_builders, "ValidationException", "nextToken", NextToken=token, Names=["1", "2"])
    refused(client.describe_image_builders, "ValidationException", "nextToken", NextToken=named)
    refused(client.describe_images, "ValidationException", "nextToken", NextToken=token)
    refused(service.client().describe_image_builders, "ValidationException", "nextToken", NextToken=token)
    refused(client.describe_image_builders, "ValidationException", "", NextToken="")
    rest = client.describe_image_builders(MaxResults=1, Names=["1", "2"], NextToken=named)
    assert [found["Name"] for found in rest["ImageBuilders"]] == ["2"]
    with a_world() as world:
        for name in ("a", "b"):
            world.call(aws.CreateImageBuilder, Name=name, **SMALL)
        foreign = world.call(aws.DescribeImageBuilders, MaxResults=1)["NextToken"]
        world.account = "111122223333"
        with pytest.raises(ValidationException):
            world.call(aws.DescribeImageBuilders, NextToken=foreign)


NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=3).filter(
    lambda name: name[0] not in "_.-"
)


@given(
    st.sets(NAMES, min_size=1, max_size=10),
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), NAMES), max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_pages_are_stable_while_rows_come_and_go(names: set[str], size: int, changes: list[tuple[bool, str]]) -> None:
    """What is there all the while comes exactly once, in order; what came or went meanwhile at most once."""
    with a_world() as world:
        world.service = replace(world.service, image_builders_max=1000)
        for name in names:
            world.call(aws.CreateImageBuilder, Name=name, **SMALL)
        world.settle()
        kept, todo, listed = set(names), list(changes), list[str]()
        token: str | None = None
        while True:
            request = {"NextToken": token} if token else {}
            page = world.call(aws.DescribeImageBuilders, MaxResults=size, **request)
            assert len(page["ImageBuilders"]) <= size
            listed += [found["Name"] for found in page["ImageBuilders"]]
            token = page.get("NextToken")
            if token is None:
                break
            for adds, name in todo[:2]:
                if adds and world.shown(name) is None:
                    world.call(aws.CreateImageBuilder, Name=name, **SMALL)
                elif not adds and world.shown(name) is not None:
                    world.call(aws.DeleteImageBuilder, Name=name)
                    kept.discard(name)
            world.settle()
            todo = todo[2:]
        assert listed == sorted(set(listed)), "in order, none twice"
        assert kept <= set(listed)
        assert set(listed) <= names | {name for adds, name in changes if adds}


# -- images


def test_images_are_public_and_aws_own_names_stand_for_ours(client: Any) -> None:
    (image,) = client.describe_images()["Images"]
    region = client.meta.region_name
    assert image["Arn"] == f"arn:aws:appstream:{region}::image/debian-12-desktop"
    assert (image["State"], image["Visibility"], image["ImageType"]) == ("AVAILABLE", "PUBLIC", "NATIVE")
    assert image["CreatedTime"] == image["PublicBaseImageReleasedDate"]
    assert client.describe_images(Names=[image["Name"]])["Images"] == [image]
    assert client.describe_images(Arns=[image["Arn"]])["Images"] == [image]
    assert client.describe_images(Type="PRIVATE")["Images"] == []
    (alias,) = client.describe_images(Names=[ALIAS])["Images"]
    assert alias["Platform"] == "WINDOWS_SERVER_2019"
    assert alias["Description"].startswith("Stands for debian-12-desktop")
    assert client.describe_images(Arns=[alias["Arn"]])["Images"] == [alias]
    by_name, by_arn = create(client, "n", ImageName=ALIAS), create(client, "a", ImageName=None, ImageArn=alias["Arn"])
    assert by_name["ImageArn"] == by_arn["ImageArn"] == alias["Arn"]
    assert by_name["Platform"] == "WINDOWS_SERVER_2019"
    for name in ("n", "a"):
        wait_for(client, name, "RUNNING", {"PENDING"})


def test_what_describe_images_refuses(client: Any) -> None:
    describe = client.describe_images
    arn = f"arn:aws:appstream:{client.meta.region_name}::image/debian-12-desktop"
    refused(describe, "ResourceNotFoundException", "The image no for account 000000000000 does not exist", Names=["no"])
    refused(
        describe, "ResourceNotFoundException", "The image", Arns=[arn.replace(client.meta.region_name, "us-west-1")]
    )
    refused(describe, "ResourceNotFoundException", "The image", Arns=[arn.replace("::", ":111122223333:")])
    refused(describe, "InvalidParameterCombinationException", "Names and Arns", Names=["debian-12-desktop"], Arns=[arn])
    refused(describe, "ValidationException", "less than or equal to 25", MaxResults=26)
    refused(describe, "ValidationException", "enum value set", Type="OTHER")


# -- tags


def test_tags_have_their_rules(client: Any) -> None:
    arn = create(client, Tags={"a": "1"})["Arn"]

    def tags() -> Any:
        return client.list_tags_for_resource(ResourceArn=arn)["Tags"]

    client.tag_resource(ResourceArn=arn, Tags={"a": "2", "A": "", "ключ _.:/=+-@": "значение"})
    assert tags() == {"a": "2", "A": "", "ключ _.:/=+-@": "значение"}
    client.untag_resource(ResourceArn=arn, TagKeys=["a", "never there"])
    assert tags() == {"A": "", "ключ _.:/=+-@": "значение"}
    client.tag_resource(ResourceArn=arn, Tags={str(number): "" for number in range(48)})
    refused(client.tag_resource, "LimitExceededException", "Limit: 50", ResourceArn=arn, Tags={"one more": ""})
    client.tag_resource(ResourceArn=arn, Tags={"A": "changed"})  # at the limit a value may still change
    assert len(tags()) == 50
    refused(client.tag_resource, "ValidationException", "pattern", ResourceArn=arn, Tags={"aws:x": ""})
    refused(client.tag_resource, "ValidationException", "", ResourceArn=arn, Tags={"k" * 129: ""})
    refused(client.tag_resource, "ValidationException", "", ResourceArn=arn, Tags={"k": "v" * 257})
    refused(client.tag_resource, "ValidationException", "", ResourceArn=arn, Tags={})
    for call, more in (
        (client.tag_resource, {"Tags": {"a": ""}}),
        (client.untag_resource, {"TagKeys": ["a"]}),
        (client.list_tags_for_resource, {}),
    ):
        for other in (
            arn + "x",
            arn.replace("image-builder", "fleet"),
            arn.replace(client.meta.region_name, "us-west-1"),
            arn.replace("000000000000", "111122223333"),
            arn.replace(":aws:", ":aws-cn:"),
        ):
            refused(call, "ResourceNotFoundException", other, ResourceArn=other, **more)
        refused(call, "ValidationException", "", ResourceArn="b", **more)


def test_tags_go_with_their_resource_and_work_in_every_state(client: Any) -> None:
    arn = create(client, Tags={"a": "1"})["Arn"]
    assert client.list_tags_for_resource(ResourceArn=arn)["Tags"] == {"a": "1"}
    client.delete_image_builder(Name="b")
    client.tag_resource(ResourceArn=arn, Tags={"b": "2"})
    assert client.list_tags_for_resource(ResourceArn=arn)["Tags"] == {"a": "1", "b": "2"}
    wait_for(client, "b", None, {"DELETING"})
    refused(client.list_tags_for_resource, "ResourceNotFoundException", ResourceArn=arn)
    assert client.list_tags_for_resource(ResourceArn=create(client)["Arn"])["Tags"] == {}


# -- streaming URL


def test_a_streaming_url_lives_as_long_as_asked(client: Any) -> None:
    run(client)
    ask = client.create_image_builder_streaming_url
    for request, life_s in (({}, 3600), ({"Validity": 1}, 1), ({"Validity": 604_800}, 604_800)):
        now = time.time()
        answer = ask(Name="b", **request)
        assert abs(answer["Expires"].timestamp() - now - life_s) < 5
        assert answer["StreamingURL"].startswith("http://127.0.0.1:")
    assert ask(Name="b")["StreamingURL"] != ask(Name="b")["StreamingURL"], "each is a ticket of its own"
    refused(ask, "ValidationException", "validity", "greater than or equal to 1", Name="b", Validity=0)
    refused(ask, "ValidationException", "less than or equal to 604800", Name="b", Validity=604_801)
    refused(ask, "ResourceNotFoundException", Name="no")


# -- around them


def test_who_am_i(service: Running) -> None:
    assert service.client("us-east-1", "sts").get_caller_identity()["Arn"] == "arn:aws:iam::000000000000:root"


def test_a_region_is_a_world_of_its_own(service: Running) -> None:
    one, other = service.client(), service.client()
    create(one)
    assert other.describe_image_builders()["ImageBuilders"] == []
    refused(other.delete_image_builder, "ResourceNotFoundException", Name="b")
    create(other)


def test_unknown_members_are_passed_over_and_counted(service: Running) -> None:
    region = next(_regions)
    before = _metric(service, "millstream_api_unknown_members_total")
    body = json.dumps({"Name": "b", **SMALL, "Invented": {"Deep": [1]}, "VpcConfig": {"AlsoInvented": 1}}).encode()
    request = AWSRequest(
        "POST",
        service.url + "/",
        headers={
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": "PhotonAdminProxyService.CreateImageBuilder",
        },
        data=body,
    )
    botocore.auth.SigV4Auth(Credentials(service.key_id, service.secret), "appstream", region).add_auth(request)
    with urllib.request.urlopen(
        urllib.request.Request(service.url + "/", data=body, headers=dict(request.headers), method="POST"), timeout=10
    ) as answer:
        found = json.load(answer)["ImageBuilder"]
    assert found["State"] == "PENDING"
    assert "Invented" not in found
    assert _metric(service, "millstream_api_unknown_members_total") == before + 2


def _metric(service: Running, name: str) -> float:
    with urllib.request.urlopen(service.url + "/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    raise AssertionError(name)


def test_the_operations_of_this_file_are_those_that_are_built() -> None:
    built = {name for name, found in vars(aws).items() if isinstance(found, Operation) and found.handler is not None}
    assert built == set(OPERATIONS)


def test_a_machine_that_stops_by_itself_shows_rebooting_and_comes_back(service: Running, client: Any) -> None:
    found = run(client)
    with sqlite3.connect(service.data / "millstream.db") as connection:
        machine_id = connection.execute("SELECT id FROM machine WHERE owner = ?", (found["Arn"],)).fetchone()[0]
    service.sql("UPDATE held SET running = 0 WHERE id = ?", machine_id, file="simulated.db")
    assert wait_for(client, "b", "REBOOTING", {"RUNNING"})[-1] == "REBOOTING"
    refused(client.stop_image_builder, "OperationNotPermittedException", "REBOOTING", Name="b")
    wait_for(client, "b", "RUNNING", {"REBOOTING"})


def test_a_second_service_on_the_same_folder_is_refused(service: Running) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, str(service.data), free_address(), free_address(), "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "another Millstream works on" in done.stderr
    assert "ready" not in done.stdout
    assert time.monotonic() - began < 20
    assert service.client().describe_image_builders()["ImageBuilders"] == [], "the first goes on"
