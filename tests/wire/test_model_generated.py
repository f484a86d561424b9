"""The generated model: the same bytes again, cheap to load, and mypy refuses what the service would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.model import shapes as aws
from millstream.model.errors import ServiceError, ValidationException
from millstream.model.operation import Operation

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = """
from millstream.model import shapes as aws

class Call: ...

@aws.DeleteImageBuilder
def delete(call: Call, request: aws.DeleteImageBuilderRequest) -> aws.DeleteImageBuilderResult:
    builder: aws.ImageBuilder = {"Name": request["Name"], "State": "DELETING", "CreatedTime": 1.5}
    return {"ImageBuilder": builder}

@aws.DescribeImageBuilders
def describe(call: Call, request: aws.DescribeImageBuildersRequest) -> aws.DescribeImageBuildersResult:
    if request.get("MaxResults", 25) > 9:
        raise aws.ResourceNotFoundException("none")
    return aws.DescribeImageBuildersResult(ImageBuilders=[aws.ImageBuilder(Name=name) for name in request.get("Names", [])])

@aws.StopImageBuilder  # wrong: another operation's result
def stop(call: Call, request: aws.StopImageBuilderRequest) -> aws.DeleteImageBuilderRequest:
    return {"Name": "a"}

@aws.StartImageBuilder  # wrong: another operation's request
def start(call: Call, request: aws.DescribeFleetsRequest) -> aws.StartImageBuilderResult:
    return {}

misspelt: aws.ImageBuilder = {"Nam": "a"}  # wrong
missing: aws.ImageBuilder = {"State": "RUNNING"}  # wrong
outside: aws.ImageBuilder = {"Name": "a", "State": "SLEEPING"}  # wrong
kind: aws.ImageBuilder = {"Name": "a", "EnableDefaultInternetAccess": "yes"}  # wrong

@aws.DestroyImageBuilder  # wrong: no such operation
def destroy(call: Call) -> None: ...

def read(request: aws.CreateImageBuilderRequest) -> str:
    return request["Nmae"]  # wrong
"""


def python(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def test_regenerating_changes_nothing(tmp_path: Path) -> None:
    for seed in ("1", "2"):  # no order of a set or dict may show
        assert python("scripts/generate_model.py", "--check", PYTHONHASHSEED=seed).returncode == 0
    (tmp_path / "src/millstream/model").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts/generate_model.py"
    script.write_text((ROOT / "scripts/generate_model.py").read_text())
    out = tmp_path / "src/millstream/model/shapes.py"
    out.write_text("")
    assert python(str(script), "--check").returncode == 1
    assert python(str(script)).returncode == 0
    assert out.read_bytes() == (ROOT / "src/millstream/model/shapes.py").read_bytes()


def test_loading_it_reads_no_model_and_is_quick(tmp_path: Path) -> None:
    program = (
        "import sys, time, typing, re; before = time.perf_counter();"
        "import millstream.model.shapes; spent = time.perf_counter() - before;"
        "print(spent, *[m for m in ('botocore', 'regex', 'msgspec', 'json') if m in sys.modules])"
    )
    runs = [
        python("-c", program, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path)).stdout.split()
        for _ in range(6)
    ]
    assert all(len(run) == 1 for run in runs), f"it loads what it should not: {runs[0][1:]}"
    assert min(float(run[0]) for run in runs[1:]) < 0.025


def test_mypy_refuses_what_the_service_would(tmp_path: Path) -> None:
    snippet = tmp_path / "handlers.py"
    snippet.write_text(HANDLERS)
    run = python(
        "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(snippet), MYPYPATH=str(ROOT / "src")
    )
    found = {int(line) for line in re.findall(r"handlers\.py:(\d+): error", run.stdout)}
    wanted = {number for number, line in enumerate(HANDLERS.splitlines(), 1) if "# wrong" in line}
    assert found == wanted, run.stdout


def test_the_tables_hold_the_whole_model() -> None:
    assert len(aws.OPERATIONS) == 90
    assert len(aws.ERRORS) == 15
    for name, operation in aws.OPERATIONS.items():
        assert operation is getattr(aws, name)
        assert operation.name == name
        assert {operation.input, operation.output} <= aws.SHAPES.keys()
        assert operation.errors <= aws.ERRORS.keys()
        assert operation.reads == bool(re.match("Describe|List|Get", name))
    assert aws.DeleteImageBuilder.errors == {
        *("ResourceNotFoundException", "OperationNotPermittedException", "ConcurrentModificationException")
    }
    assert aws.DeleteImageBuilder.binds(aws.ResourceNotFoundException("none"))
    assert aws.DeleteImageBuilder.binds(ValidationException("bad"))
    assert not aws.DeleteImageBuilder.binds(aws.LimitExceededException("full"))
    assert aws.ResourceNotFoundException.status == 404
    assert issubclass(aws.ResourceNotFoundException, ServiceError)


def test_documents_are_made_by_name_and_other_names_are_refused() -> None:
    assert aws.ImageBuilder(Name="a", State="RUNNING") == {"Name": "a", "State": "RUNNING"}
    with pytest.raises(AttributeError, match="Fleeet"):
        aws.Fleeet  # type: ignore[attr-defined]  # noqa: B018


def test_an_operation_has_one_handler() -> None:
    operation: Operation[dict[str, str], dict[str, str]] = Operation("Do", input="a", output="b", errors=frozenset())

    @operation
    def do(call: None, request: dict[str, str]) -> dict[str, str]:
        return request

    assert operation.handler is do
    with pytest.raises(RuntimeError, match="two handlers"):
        operation(do)
