"""One simulated service a module, and stock boto3 on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.cli_shell import Shell, end, serve, stock_client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("data"))
    pid = serve(shell)
    yield shell
    end(pid)


@pytest.fixture(scope="module")
def appstream(service: Shell) -> Any:
    """Stock boto3, told where to go by `millstream env` alone."""
    return stock_client(service)
