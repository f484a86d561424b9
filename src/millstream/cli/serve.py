"""`serve`, and each role alone: `api`, `edge`, `reconcile`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli import health
from millstream.cli.here import Command, Here, Trouble, command, seconds, service_of, talk

if TYPE_CHECKING:
    from millstream.model.records import Health
    from millstream.wiring import Settings

USABLE_S: Final = 10.0  # from the first answer to a health check that is good
LOG_LINES: Final = 12


def _setting(name: str, metavar: str, text: str, **more: Any) -> click.Option:
    return click.Option([f"--{name}"], metavar=metavar, help=text, **more)


SETTINGS: Final = (
    _setting("listen", "HOST:PORT", "Where programs reach the API. Default: 127.0.0.1:8400."),
    _setting("edge", "HOST:PORT", "Where people reach their desktops. Default: 127.0.0.1:8401."),
    _setting("capacity", "NAME", "What a machine is: containers (default) or simulated."),
    _setting("engine", "URL", "The socket of an engine of yours (unix:///…). Default: a Podman of its own."),
    _setting("database", "URL", "Default: SQLite in the data folder."),
    _setting("public-url", "URL", "What browsers see of the edge behind a proxy: scheme, host, port, path."),
    _setting("tls-certificate", "FILE", "PEM; with --tls-key both addresses speak TLS."),
    _setting("tls-key", "FILE", "PEM, readable by its owner only."),
    _setting("log-format", "FORM", "text, json, or auto (text on a terminal)."),
)


@command(
    name="serve",
    params=[
        *SETTINGS,
        click.Option(["--detach"], is_flag=True, help="Return when it is usable; it goes on in the background."),
        click.Option(["--adopt"], is_flag=True, help="Take a copied or moved data folder for one of its own."),
    ],
    examples=[
        "millstream serve",
        "millstream serve --capacity simulated --detach      for tests and CI",
        "millstream serve --listen 0.0.0.0:8400 --edge 0.0.0.0:8401 \\",
        "    --tls-certificate cert.pem --tls-key key.pem",
    ],
)
def serve_command(here: Here, *, detach: bool, adopt: bool, **flags: str | None) -> int:
    """Run the service: api, edge and reconcile.

    Prints ready on standard output when it answers; all other talk and the log go to standard error. Ctrl-C stops
    the service. Machines keep running and are found again by the next start.

    Every setting may also stand in the environment (MILLSTREAM_LISTEN) or in the file of --config.
    """
    settings = here.settings(**flags)
    if detach:
        return _detach(here, settings)
    from millstream import wiring

    started = time.monotonic()
    if settings.capacity == "containers":
        from millstream.cli.image import ensure

        ensure(settings, quiet=here.as_json)
    return wiring.serve(settings, ready=lambda: _ready(here, settings, started), adopt=adopt)


def _ready(here: Here, settings: Settings, started: float) -> None:
    service = service_of(settings.data)
    found = health.of(service)
    body = {
        "ready": found.ok,
        "api": settings.api_url,
        "edge": settings.edge_url,
        "data": str(settings.data),
        "capacity": settings.capacity,
        "pid": os.getpid(),
        "wall_s": round(time.monotonic() - started, 3),
    }
    if here.as_json:
        here.answer("serve", body, [])
        return
    print("ready", flush=True)
    data = f" --data {settings.data}" if settings.data != _default_data() else ""
    talk(f"ready in {seconds(time.monotonic() - started)}")
    talk(f"  API      {settings.api_url}")
    talk(f"  Streams  {settings.edge_url}")
    talk(f"  Data     {settings.data}       everything is in here; delete it and nothing is left")
    if not found.ok:
        talk(f"  but      {found.code}: {found.why}")
        talk(f"  next     {found.next}")
    talk("Try this in another shell:")
    talk(f"  {_called()} demo{data}")
    talk(f'  eval "$({_called()} env{data})" && aws appstream describe-images')
    talk(f"  {_called()} explain image-builder{data}")
    talk("Ctrl-C stops the service. Machines keep running and are found again.")


def _called() -> str:
    """How this program was called: the path for who has not activated its environment."""
    from shutil import which

    program = Path(sys.argv[0])
    found = which("millstream")
    if program.name != "millstream" or (found and Path(found).resolve() == program.resolve()):
        return "millstream"
    with contextlib.suppress(ValueError):
        return str(program.resolve().relative_to(Path.cwd()))
    return str(program)


def _default_data() -> Path:
    return Path("~/.local/share/millstream").expanduser()


def _detach(here: Here, settings: Settings) -> int:
    """Start it in a session of its own and wait until a create would succeed."""
    started = time.monotonic()
    folder = settings.data / "log"
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)  # a parent made on the way would be open to all
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "serve.log"
    # Exactly what was asked for here, whatever the new process would find in its place.
    arguments = [word for word in sys.argv[1:] if word not in {"--detach", "--json"}]
    with path.open("ab") as log:
        said_before = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "millstream.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if first.strip() != b"ready":
        code = process.wait()
        sys.stderr.write(_tail(path, said_before))
        return code or 1
    found = _usable(settings)
    if not found.ok:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise Trouble(found.code, why=found.why, next_step=found.next)
    body = {
        "ready": True,
        "api": settings.api_url,
        "edge": settings.edge_url,
        "data": str(settings.data),
        "capacity": settings.capacity,
        "pid": process.pid,
        "wall_s": round(time.monotonic() - started, 3),
    }
    here.answer("serve", body, ["ready"])
    if not here.as_json:
        talk(f"  API {settings.api_url}   streams {settings.edge_url}   log {path}   stop: kill {process.pid}")
    return 0


def _usable(settings: Settings) -> Health:
    until = time.monotonic() + USABLE_S
    while True:
        service = service_of(settings.data)
        found = health.of(service) if service else health.NOT_RUNNING
        if found.ok or time.monotonic() > until:
            return found
        time.sleep(0.02)


def _tail(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return "".join(file.read().decode(errors="replace").splitlines(keepends=True)[-LOG_LINES:])


def _role(name: str, text: str) -> Command:
    def run(here: Here, **flags: str | None) -> int:
        from millstream import wiring

        return wiring.run_role(name, here.settings(**flags), ready=lambda: print("ready", flush=True))

    run.__doc__ = text
    return command(name=name, params=SETTINGS, examples=[f"millstream {name} --data DIR"])(run)


api_command = _role(
    "api",
    """Run the api role alone: the programs' door.

    For supervisors such as systemd that want each role as a process of their own. It shares only the data folder with
    the others, and may be restarted without any stream noticing.
    """,
)
edge_command = _role(
    "edge",
    """Run the edge role alone: the people's door.

    It serves streaming URLs and carries desktops. It holds no engine and can't change what is wanted.
    """,
)
reconcile_command = _role(
    "reconcile",
    """Run the reconcile role alone: the only one that holds the engine.

    It brings each machine to what its owner asked for. While it is down calls are answered and remembered; nothing
    moves until it is back.
    """,
)
