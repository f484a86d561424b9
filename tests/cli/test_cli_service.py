"""The commands against a running simulated service, and every exit code reached."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from tests.cli.cli_shell import PROGRAM, Shell, end, free_ports, serve

from millstream.cli.explain import STATES
from millstream.cli.main import root, run
from millstream.model import codes

if TYPE_CHECKING:
    from collections.abc import Iterator


_NUMBERS = itertools.count(1)


@pytest.fixture
def name(appstream: Any) -> Iterator[str]:
    """A name of this test's own, whose image builder is deleted afterwards."""
    made = f"b{next(_NUMBERS)}-{os.getpid()}"
    yield made
    try:
        appstream.delete_image_builder(Name=made)
    except appstream.exceptions.ResourceNotFoundException:
        return
    appstream.get_waiter("image_builder_deleted").wait(Names=[made], WaiterConfig={"Delay": 0, "MaxAttempts": 3000})


def create(appstream: Any, name: str) -> str:
    answer = appstream.create_image_builder(
        Name=name, ImageName="debian-12-desktop", InstanceType="stream.standard.medium"
    )
    return str(answer["ImageBuilder"]["Arn"])


# -- env and keys --------------------------------------------------------------------------------------------------------


def test_env_is_understood_by_a_shell_and_the_aws_cli(service: Shell) -> None:
    script = 'eval "$(millstream env)" && aws sts get-caller-identity && aws appstream describe-images'
    done = subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, env=service.environment(), check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert '"Arn": "arn:aws:iam::000000000000:root"' in done.stdout
    assert "debian-12-desktop" in done.stdout


def test_env_quotes_for_shells(service: Shell) -> None:
    values = service("env", "--json", AWS_DATA_PATH="/a folder/it's").json["variables"]
    lines = service("env", AWS_DATA_PATH="/a folder/it's").out.splitlines()
    assert dict(shlex.split(line)[1].split("=", 1) for line in lines) == values
    assert values["AWS_DATA_PATH"].endswith(":/a folder/it's")


def test_env_for_github_and_without_strange_tokens(service: Shell) -> None:
    lines = service("env", "--github", AWS_SESSION_TOKEN="of another account").out.splitlines()
    assert "AWS_SESSION_TOKEN=" in lines
    assert all("=" in line and not line.startswith("export") for line in lines)
    assert "unset AWS_SESSION_TOKEN" in service("env", AWS_SESSION_TOKEN="of another account").out


def test_env_wins_over_a_profile_a_region_and_switched_off_endpoints(service: Shell) -> None:
    """What a person's shell holds for AWS itself leads no SDK past this service."""
    theirs = {
        "AWS_PROFILE": "work",
        "AWS_DEFAULT_PROFILE": "work",
        "AWS_REGION": "eu-north-1",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    }
    script = 'eval "$(millstream env)" && env && aws sts get-caller-identity'
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        env=service.environment() | theirs,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1"} <= set(lines)
    assert not [line for line in lines if line.startswith(("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_IGNORE"))]
    github = service("env", "--github", **theirs).out.splitlines()
    assert "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=" in github
    assert not [line for line in github if line.startswith("AWS_PROFILE")]  # an empty one names a profile, too


def test_a_new_data_folder_is_its_owner_s_alone(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "deep" / "data")
    end(serve(shell))
    assert stat.S_IMODE(shell.data.stat().st_mode) == 0o700


def test_env_twice_does_not_grow(service: Shell) -> None:
    once = service("env", "--json").json["variables"]["AWS_DATA_PATH"]
    assert service("env", "--json", AWS_DATA_PATH=once).json["variables"]["AWS_DATA_PATH"] == once


def test_stock_boto3_finds_all_waiters(appstream: Any, service: Shell, name: str) -> None:
    import botocore.session

    builtin = botocore.session.Session().create_client("appstream", region_name="us-east-1").waiter_names
    assert set(builtin) < set(appstream.waiter_names)
    assert set(appstream.waiter_names) - set(builtin) == {
        "image_builder_running",
        "image_builder_stopped",
        "image_builder_deleted",
    }
    quick = {"Delay": 0, "MaxAttempts": 3000}
    create(appstream, name)
    appstream.get_waiter("image_builder_running").wait(Names=[name], WaiterConfig=quick)
    appstream.stop_image_builder(Name=name)
    appstream.get_waiter("image_builder_stopped").wait(Names=[name], WaiterConfig=quick)
    appstream.delete_image_builder(Name=name)
    appstream.get_waiter("image_builder_deleted").wait(Names=[name], WaiterConfig=quick)
    assert service("survey", "--json").json["clean"] is True


def test_our_waiters_repeat_botocores_own() -> None:
    import botocore

    theirs = Path(botocore.__file__).parent / "data/appstream/2016-12-01/waiters-2.json"
    from millstream.cli.access import waiters_folder

    ours = json.loads((Path(waiters_folder()) / "appstream/2016-12-01/waiters-2.json").read_bytes())["waiters"]
    for waiter, said in json.loads(theirs.read_bytes())["waiters"].items():
        assert ours[waiter] == said


def test_keys_are_made_work_and_are_revoked(service: Shell) -> None:
    import boto3

    made = service("keys", "create", "ci", "--json").json
    assert made["principal"] == "arn:aws:iam::000000000000:user/ci"
    variables = service("env", "--json").json["variables"]
    sts = boto3.session.Session(made["access_key_id"], made["secret_access_key"], region_name="us-east-1").client(
        "sts", endpoint_url=variables["AWS_ENDPOINT_URL_STS"]
    )
    assert sts.get_caller_identity()["Arn"] == made["principal"]
    listed = service("keys", "list", "--json")
    assert made["key_id"] in {key["key_id"] for key in listed.json["keys"]}
    assert made["secret_access_key"] not in listed.out
    assert service("keys", "revoke", made["key_id"], "--json").json["revoked"]
    assert _refused_within(sts, 5.0) in {"UnrecognizedClientException", "InvalidClientTokenId"}


def test_the_root_key_is_replaced(tmp_path: Path) -> None:
    import boto3

    def sts(variables: dict[str, str]) -> Any:
        session = boto3.session.Session(
            variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
        )
        return session.client("sts", endpoint_url=variables["AWS_ENDPOINT_URL_STS"])

    shell = Shell(tmp_path)
    pid = serve(shell)
    try:
        before = shell("env", "--json").json["variables"]
        arn = sts(before).get_caller_identity()["Arn"]
        assert arn.endswith(":root")
        rotated = shell("keys", "rotate-root", "--json")
        after = shell("env", "--json").json["variables"]
        assert rotated.json["replaces"] == before["AWS_ACCESS_KEY_ID"]
        assert rotated.json["key_id"] == after["AWS_ACCESS_KEY_ID"] != before["AWS_ACCESS_KEY_ID"]
        assert after["AWS_SECRET_ACCESS_KEY"] not in rotated.out + rotated.err
        assert _refused_within(sts(before), 5.0) in {"UnrecognizedClientException", "InvalidClientTokenId"}
        assert sts(after).get_caller_identity()["Arn"] == arn
        listed = {key["key_id"]: key["revoked"] for key in shell("keys", "list", "--json").json["keys"]}
        assert listed.pop(after["AWS_ACCESS_KEY_ID"]) is None
        assert listed[before["AWS_ACCESS_KEY_ID"]]
    finally:
        end(pid)


def _refused_within(sts: Any, limit_s: float) -> str:
    """The code with which a call is refused: revoked keys end within a second in all processes."""
    import botocore.exceptions

    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            sts.get_caller_identity()
        except botocore.exceptions.ClientError as error:
            return str(error.response["Error"]["Code"])
        time.sleep(0.05)
    return "it still works"


def test_keys_from_elsewhere_are_imported_from_a_file_or_standard_input(service: Shell, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n")
    assert service("keys", "import", "AKIAIOSFODNN7EXAMPLE", "--secret-file", str(secret)).code == 0
    assert service("keys", "import", "AKIAIOSFODNN7EXAMPL2", given="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY").code == 0
    again = service("keys", "import", "AKIAIOSFODNN7EXAMPLE", "--json", given="wJalrXUtnFEMI/K7MDENG/bPx")
    assert (again.code, again.error["code"]) == (codes.USAGE, "key.exists")
    short = service("keys", "import", "AKIAIOSFODNN7EXAMPL3", "--json", given="short")
    assert (short.code, short.error["code"]) == (codes.USAGE, "key.bad")


def test_a_temporary_key_has_a_session_token(service: Shell) -> None:
    made = service("keys", "create", "visitor", "--days", "1", "--json").json
    assert made["session_token"]
    assert made["expires"]


# -- waiting and seeing --------------------------------------------------------------------------------------------------


def test_wait_until_a_state_and_until_gone(service: Shell, appstream: Any, name: str) -> None:
    arn = create(appstream, name)
    said = service("wait", f"image-builder/{name}", "RUNNING", "--json")
    assert (said.code, said.json["state"], said.json["resource"]) == (0, "RUNNING", arn)
    assert appstream.describe_image_builders(Names=[name])["ImageBuilders"][0]["State"] == "RUNNING"
    appstream.delete_image_builder(Name=name)
    assert service("wait", arn, "gone").code == 0
    assert service("wait", name, "gone").code == 0  # it was, and is no more


def test_wait_on_a_terminal_says_what_is_usual(service: Shell, appstream: Any, name: str) -> None:
    create(appstream, name)
    assert service("wait", name, "RUNNING").code == 0  # so that there is something usual
    appstream.stop_image_builder(Name=name)
    assert service("wait", name, "STOPPED").code == 0
    assert service("fault", "add", name, "start", "before", "--times", "3").code == 0
    appstream.start_image_builder(Name=name)
    person, terminal = os.openpty()
    subprocess.run(
        [PROGRAM, "wait", name, "RUNNING"],
        stderr=terminal,
        env=service.environment() | {"TERM": "xterm"},
        timeout=60,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    os.close(terminal)
    drawn = os.read(person, 65536).decode()
    os.close(person)
    assert ", usually " in drawn, drawn


def test_wait_fails_at_once_for_a_state_that_does_not_exist(service: Shell, appstream: Any, name: str) -> None:
    create(appstream, name)
    started = time.monotonic()
    said = service("wait", name, "RUNING", "--json")
    assert time.monotonic() - started < 5
    assert said.code == codes.USAGE
    assert "RUNNING" in said.error["why"]


def test_wait_ends_with_no_when_it_failed(service: Shell, appstream: Any, name: str) -> None:
    told = ["--error-code", "SUBNET_HAS_INSUFFICIENT_IP_ADDRESSES", "--message", "No address is free."]
    assert service("fault", "add", name, "start", "refused", *told).code == 0
    create(appstream, name)
    said = service("wait", name, "RUNNING", "--json")
    assert (said.code, said.error["code"]) == (codes.NO, "resource.failed")
    assert "SUBNET_HAS_INSUFFICIENT_IP_ADDRESSES: No address is free." in said.error["why"]


def test_wait_gives_up_in_time(service: Shell, appstream: Any, name: str) -> None:
    create(appstream, name)
    said = service("wait", name, "STOPPED", "--timeout", "0.3", "--json")
    assert (said.code, said.error["code"]) == (codes.TIME, "wait.time-out")


def test_wait_for_what_never_was(service: Shell) -> None:
    assert service("wait", "never-made", "RUNNING").code == codes.ABSENT
    assert service("wait", "never-made", "gone").code == codes.ABSENT


def test_wait_ready(service: Shell) -> None:
    assert service("wait", "--ready", "--json").json["ready"] is True


def test_the_timeline_adds_up_and_outlives_the_resource(service: Shell, appstream: Any, name: str) -> None:
    create(appstream, name)
    service("wait", name, "RUNNING")
    appstream.delete_image_builder(Name=name)
    service("wait", name, "gone")
    told = service("explain", name, "--json").json
    assert told["state"] == "gone"
    steps = told["timeline"]
    assert steps[0]["step"] == "CreateImageBuilder"
    assert steps[-1]["step"] == "gone"
    # Nothing that one waits for lies outside a step: each begins where the one before it ended.
    for before, after in itertools.pairwise(steps[1:]):
        if after["step"] != "DeleteImageBuilder":
            assert after["started"] == before["ended"]
    events = service("events", name, "--json").json["events"]
    assert [event["number"] for event in events] == [step["number"] for step in steps]


def test_events_follow_shows_what_comes_and_ends_cleanly(service: Shell, appstream: Any, name: str) -> None:
    following = service.start("events", "--follow", "--json", "--last", "1")
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["schema"] == "millstream.event/1"
    arn = create(appstream, name)
    while json.loads(following.stdout.readline())["resource"] != arn:
        pass
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == codes.INTERRUPTED
    assert "Traceback" not in following.stderr.read()  # type: ignore[union-attr]  # a pipe


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("engine.no-answer", "code"),
        ("running", "state"),
        ("DeleteImageBuilder", "operation"),
        ("delete-image-builder", "operation"),
        ("CreateFleet", "operation"),
        ("listen", "setting"),
        ("MILLSTREAM_LISTEN", "setting"),
        ("image-builder", "noun"),
        ("debian-12-desktop", "image"),
    ],
)
def test_explain_anything(service: Shell, word: str, kind: str) -> None:
    said = service("explain", word, "--json")
    assert (said.code, said.json["kind"]) == (0, kind)


def test_explain_offers_the_nearest_resource_and_setting(service: Shell, appstream: Any, name: str) -> None:
    create(appstream, name)
    assert f"did you mean {name}?" in service("explain", name[:-1] + "_").err
    assert "did you mean image_builders_max?" in service("explain", "image_builder_max").err
    appstream.delete_image_builder(Name=name)


def test_explain_says_where_a_setting_comes_from(service: Shell) -> None:
    told = service("explain", "account", "--json", MILLSTREAM_ACCOUNT="123456789012").json
    assert (told["value"], told["origin"]) == ("123456789012", "MILLSTREAM_ACCOUNT")
    assert service("explain", "region", "--json").json["origin"] == "default"
    assert "sesame" not in service("explain", "metrics_token", MILLSTREAM_METRICS_TOKEN="sesame").out


@pytest.mark.parametrize("state", STATES)
def test_every_state_that_is_shown_is_explained(state: str) -> None:
    from millstream.lifecycle.machine import STATES, TRANSITIONS

    assert state in STATES
    assert {to for _, _, to in TRANSITIONS if to} <= set(STATES)


def test_explain_nothing_known(service: Shell) -> None:
    said = service("explain", "DeleteImageBilder", "--json")
    assert (said.code, said.error["next"]) == (codes.ABSENT, "millstream explain DeleteImageBuilder")


# -- survey, fault, demo -------------------------------------------------------------------------------------------------


def test_every_fault_is_reached_and_mended(service: Shell, appstream: Any, name: str) -> None:
    for step, moment in itertools.product(("acquire", "start", "desktop", "stop", "release"), ("before", "after")):
        assert service("fault", "add", name, step, moment).code == 0
    assert len(service("fault", "list", "--json").json["faults"]) == 10
    create(appstream, name)
    assert service("wait", name, "RUNNING", "--timeout", "30").code == 0
    appstream.stop_image_builder(Name=name)
    assert service("wait", name, "STOPPED", "--timeout", "30").code == 0
    appstream.delete_image_builder(Name=name)
    assert service("wait", name, "gone", "--timeout", "30").code == 0
    assert service("fault", "list", "--json").json["faults"] == []
    happened = {(e["step"], e["code"]) for e in service("events", name, "--json").json["events"] if e["code"]}
    # A step that fails again and again is one line, with its newest reason; which one that is, retries decide.
    for step in ("acquire", "start", "stop", "release"):
        assert {(step, "fault.before"), (step, "fault.after")} & happened, (step, happened)
    assert service("survey", "--json").json["clean"] is True


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["b", "relase"], "release"),
        (["b", "start", "befor"], "before"),
        (["b", "start", "refused", "--error-code", "SUBNET_NOT_FOUD"], "SUBNET_NOT_FOUND"),
    ],
)
def test_misspelt_faults_are_refused_with_the_nearest_word(service: Shell, words: list[str], meant: str) -> None:
    said = service("fault", "add", *words, "--json")
    assert said.code == codes.USAGE
    assert meant in said.error["why"]


def test_faults_are_cleared_by_number_or_all(service: Shell) -> None:
    first = service("fault", "add", "*", "stop", "--json").json["number"]
    service("fault", "add", "*", "stop")
    assert service("fault", "clear", str(first), "--json").json["cleared"] == 1
    assert service("fault", "clear", str(first)).code == codes.ABSENT
    assert service("fault", "clear", "--json").json["cleared"] == 1


def test_the_demo_tells_its_story_and_leaves_nothing(service: Shell) -> None:
    told = service("demo", "--json").json
    assert told["ok"] is True
    assert told["left"]["clean"] is True
    assert [line["call"] for line in told["story"] if "call" in line] == ["CreateImageBuilder", "DeleteImageBuilder"]
    assert [line["at_s"] for line in told["story"]] == sorted(line["at_s"] for line in told["story"])
    text = service("demo")
    assert text.code == 0
    assert text.out.splitlines()[-1].startswith("Rows 0, machines 0. Nothing left.")
    assert "no desktop to open" in text.out


def test_the_demo_deletes_what_it_made_when_interrupted(service: Shell) -> None:
    service("fault", "add", "*", "start", "before", "--times", "3")  # long enough to be interrupted in
    telling = service.start("demo")
    assert telling.stdout is not None
    assert "CreateImageBuilder demo-" in telling.stdout.readline()
    time.sleep(0.2)
    telling.send_signal(signal.SIGINT)
    out, err = telling.communicate(timeout=60)
    assert telling.returncode == codes.INTERRUPTED, (out, err)
    assert "Traceback" not in err
    assert service("survey", "--json").json["rows"] == 0


def test_the_demo_says_no_when_it_comes_to_no_desktop(service: Shell) -> None:
    service("fault", "add", "*", "start", "refused")
    said = service("demo", "--json")
    assert (said.code, said.error["code"]) == (codes.NO, "resource.failed")
    assert said.json["left"]["clean"] is True


# -- schemas -------------------------------------------------------------------------------------------------------------

KEYS = {
    "survey": {"schema", "clean", "rows", "machines", "driver", "differences", "all"},
    "coverage": {"schema", "operations", "counts"},
    "doctor": {"schema", "ok", "at", "capacity", "engine", "checks"},
    "events": {"schema", "events"},
    "env": {"schema", "variables", "unset"},
    "keys list": {"schema", "keys"},
    "fault list": {"schema", "faults"},
    "image list": {"schema", "images"},
    "help": {"schema", "topic", "text"},
    "completion bash": {"schema", "shell", "script"},
    "wait --ready": {"schema", "ready", "wall_s"},
    "demo": {"schema", "ok", "name", "resource", "problem", "wall_s", "story", "left"},
}


@pytest.mark.parametrize("words", KEYS)
def test_json_is_one_object_with_its_keys(service: Shell, words: str) -> None:
    said = service(*words.split(), "--json")
    assert len(said.out.splitlines()) == 1
    assert set(said.json) == KEYS[words]
    assert said.json["schema"].startswith("millstream.")
    assert said.json["schema"].endswith("/1")
    assert _not_snake(said.json) == []


def _not_snake(value: Any, path: str = "") -> list[str]:
    """Keys that are not snake_case, but for those that are names of something else."""
    if isinstance(value, dict):
        free = path.endswith((".operations", ".variables"))
        own = [f"{path}.{key}" for key in value if not free and (key != key.lower() or "-" in key)]
        return own + [bad for key, inner in value.items() for bad in _not_snake(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [bad for inner in value for bad in _not_snake(inner, path)]
    return []


# -- every exit code -----------------------------------------------------------------------------------------------------


def test_exit_1_the_survey_differs(tmp_path: Path) -> None:

    shell = Shell(tmp_path)
    end(serve(shell))
    stranger = sqlite3.connect(tmp_path / "simulated.db")
    stranger.execute("INSERT INTO held (id, owner, internet, agent_version) VALUES (?, '', 0, '')", ("0" * 32,))
    stranger.commit()
    stranger.close()
    said = shell("survey", "--json", MILLSTREAM_CAPACITY="simulated")
    assert said.code == codes.NO
    assert said.json["differences"][0]["difference"] == "held, but no row knows it"


@pytest.mark.parametrize(
    "words", [["surve"], ["survey", "--jsn"], ["keys", "create"], ["wait"], ["fault", "clear", "x"]]
)
def test_exit_2_usage(service: Shell, words: list[str]) -> None:
    said = service(*words)
    assert said.code == codes.USAGE
    assert said.out == ""
    assert [line.split()[0] for line in said.err.splitlines()] == ["error", "why", "next", "more"]


@pytest.mark.parametrize("words", [["demo"], ["events"], ["survey"], ["env"], ["keys", "list"]])
def test_exit_3_no_service(tmp_path: Path, words: list[str]) -> None:

    said = Shell(tmp_path / "none")(*words)
    assert said.code == codes.UNREACHABLE
    assert not (tmp_path / "none").exists()  # looking makes nothing


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_exit_4_not_allowed(service: Shell) -> None:
    # All is imported as root, who may read this checkout; then the data folder is somebody else's.
    code = "import os, sys; from millstream.cli.main import run; run(['events']); os.setuid(65534); sys.exit(run(['events']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=service.environment(), check=False
    )
    assert done.returncode == codes.DENIED, done.stderr
    assert "error access.denied" in done.stderr


def test_exit_5_no_such_thing(service: Shell) -> None:
    assert service("events", "no-such-builder").code == codes.ABSENT
    assert service("keys", "revoke", "AKIANOSUCHKEY").code == codes.ABSENT


def test_exit_6_the_store_is_of_a_newer_version(tmp_path: Path) -> None:

    store = sqlite3.connect(tmp_path / "millstream.db")
    store.execute("PRAGMA user_version=999")
    store.commit()
    store.close()
    shell = Shell(tmp_path)
    for words in (["survey"], ["serve", "--capacity", "simulated"], ["serve", "--capacity", "simulated", "--detach"]):
        said = shell(*words)
        assert said.code == codes.HOST, said
        assert "error store.newer" in said.err


def test_exit_70_a_bug_is_told_with_its_trace_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(root, "get_command", lambda *_: _failing(ZeroDivisionError("a bug")))
    assert run(["survey", "--json"]) == codes.BUG
    told = json.loads(capsys.readouterr().err)
    assert told["code"] == "bug.unexpected"
    trace = Path(told["next"].rpartition(" ")[2])
    assert "ZeroDivisionError: a bug" in trace.read_text()
    trace.unlink()


def _failing(error: Exception) -> click.Command:
    def call() -> None:
        raise error

    return click.Command("failing", callback=call, params=[click.Option(["--json"], is_flag=True, expose_value=False)])


# -- serve ---------------------------------------------------------------------------------------------------------------


def test_a_second_service_on_one_folder_is_refused(service: Shell) -> None:
    said = service("serve", "--capacity", "simulated")
    assert said.code not in {0, codes.BUG}
    assert said.err.startswith("error data.locked")


@pytest.mark.parametrize("option", ["--listen", "--edge"])
@pytest.mark.parametrize("words", [["serve"], ["serve", "--detach"]])
def test_an_address_that_is_taken_is_said_in_four_lines(tmp_path: Path, option: str, words: list[str]) -> None:
    free = free_ports(1)[0]
    other = {"--listen": "--edge", "--edge": "--listen"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        here = f"127.0.0.1:{taken.getsockname()[1]}"
        said = Shell(tmp_path)(*words, "--capacity", "simulated", option, here, other, f"127.0.0.1:{free}")
    assert said.code == codes.HOST
    assert [line.split()[0] for line in said.err.splitlines()] == ["error", "why", "next", "more"]
    assert "serve.address-taken" in said.err
    assert here in said.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", "0"), ("threads", "-3"), ("start_s", "-1"), ("skew_s", "nan"), ("region", "US east")],
)
def test_a_setting_that_cant_be_is_named(tmp_path: Path, name: str, value: str) -> None:
    said = Shell(tmp_path, {f"MILLSTREAM_{name.upper()}": value})("serve", "--capacity", "simulated")
    assert said.code == codes.USAGE
    assert said.err.startswith("error settings.invalid")
    assert f"{name} = " in said.err


def test_serve_prints_ready_and_nothing_else_and_ends_cleanly_on_ctrl_c(tmp_path: Path) -> None:

    shell = Shell(tmp_path)
    api, edge = free_ports(2)
    serving = shell.start(
        "serve", "--capacity", "simulated", "--listen", f"127.0.0.1:{api}", "--edge", f"127.0.0.1:{edge}"
    )
    assert serving.stdout is not None
    assert serving.stdout.readline() == "ready\n"
    assert shell("wait", "--ready", "--timeout", "10").code == 0
    serving.send_signal(signal.SIGINT)
    out, err = serving.communicate(timeout=30)
    assert out == ""
    assert "Traceback" not in err
    assert serving.returncode == 0
    assert shell("wait", "--ready", "--timeout", "0").code == codes.TIME


def test_a_copied_folder_is_refused_until_it_is_adopted(tmp_path: Path) -> None:

    first = Shell(tmp_path / "first")
    end(serve(first))
    shutil.copytree(first.data, tmp_path / "copy", ignore=shutil.ignore_patterns("*.wake"))  # a socket
    copy = Shell(tmp_path / "copy")
    said = copy("serve", "--capacity", "simulated", "--detach")
    assert said.code == codes.HOST
    assert "error store.copied" in said.err
    end(serve(copy, "--adopt"))


def test_completion_knows_live_names_and_is_silent_without_a_service(
    service: Shell, appstream: Any, name: str, tmp_path: Path
) -> None:
    create(appstream, name)
    asked = {"_MILLSTREAM_COMPLETE": "bash_complete", "COMP_CWORD": "2", "COMP_WORDS": "millstream explain "}
    assert name in service(**asked).out

    silent = Shell(tmp_path / "none")(**asked)
    assert (silent.out.strip(), silent.err) == ("", "")
