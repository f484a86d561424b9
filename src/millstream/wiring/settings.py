"""What the operator decided: flags over environment over configuration file over defaults."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from millstream.model import names


class SettingsError(Exception):
    """A setting that can't be. `code` is readable, `next` names one step that helps."""

    def __init__(self, message: str, *, code: str = "settings.invalid", next_step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.next = next_step or "millstream explain " + code


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, with its default. docs/reference/configuration.md is made from the `help` of each."""

    data: Path = field(
        default=Path("~/.local/share/millstream"), metadata={"help": "the data folder: everything is in it"}
    )
    listen: str = field(default="127.0.0.1:8400", metadata={"help": "where programs reach the API"})
    edge: str = field(default="127.0.0.1:8401", metadata={"help": "where people reach their desktops"})
    capacity: str = field(default="containers", metadata={"help": "what a machine is: containers or simulated"})
    engine: str = field(
        default="", metadata={"help": "an outside engine's socket, e.g. unix:///run/docker.sock; empty: our own Podman"}
    )
    database: str = field(default="", metadata={"help": "empty: SQLite in the data folder"})
    account: str = field(default="000000000000", metadata={"help": "the account of the root key, 12 digits"})
    region: str = field(default="us-east-1", metadata={"help": "the Region that `millstream env` names"})
    public_url: str = field(
        default="", metadata={"help": "what browsers see of the edge: scheme, host, port, path; empty: its address"}
    )
    tls_certificate: str = field(default="", metadata={"help": "PEM file; with tls_key, both addresses speak TLS"})
    tls_key: str = field(default="", metadata={"help": "PEM file, readable by its owner only"})
    hosts: tuple[str, ...] = field(default=(), metadata={"help": "further names in Host that are ours"})
    proxies: tuple[str, ...] = field(default=(), metadata={"help": "networks of reverse proxies in front"})
    metrics_token: str = field(default="", repr=False, metadata={"help": "lets others than loopback read /metrics"})
    synchronous: str = field(
        default="FULL", metadata={"help": "FULL: durable against a loss of power before it is acknowledged; NORMAL"}
    )
    skew_s: float = field(default=300.0, metadata={"help": "how far a caller's clock may be off, in seconds"})
    answers_kept: int = field(
        default=512, metadata={"help": "answers to reads that are given again while nobody has written; 0: none"}
    )
    throttle_reads_per_s: float = field(
        default=2000.0, metadata={"help": "Describe and List calls a second of one access key; 0: no limit"}
    )
    throttle_writes_per_s: float = field(
        default=200.0, metadata={"help": "other calls a second of one access key; 0: no limit"}
    )
    image: str = field(default="debian-12-desktop", metadata={"help": "the base image that AWS's image names mean"})
    image_aliases: bool = field(default=True, metadata={"help": "whether AWS's image names (AppStream-…) are known"})
    image_builders_max: int = field(default=10, metadata={"help": "quota: image builders in an account and Region"})
    start_s: float = field(default=60.0, metadata={"help": "how long a desktop may take to be ready"})
    silent_s: float = field(default=20.0, metadata={"help": "how long an agent may be silent before FAILED"})
    attempts_s: float = field(default=300.0, metadata={"help": "how long a create is tried again before FAILED"})
    threads: int = field(default=16, metadata={"help": "machines that are worked on at once"})
    simulated_acquire_s: float = field(default=0.02, metadata={"help": "simulated: seconds that each verb takes"})
    simulated_start_s: float = field(default=0.15, metadata={"help": "as above"})
    simulated_stop_s: float = field(default=0.1, metadata={"help": "as above"})
    simulated_release_s: float = field(default=0.05, metadata={"help": "as above"})
    log_format: str = field(default="auto", metadata={"help": "text, json, or auto: text on a terminal"})
    log_level: str = field(default="info", metadata={"help": "debug, info, warning"})

    @property
    def edge_url(self) -> str:
        scheme = "https" if self.tls_certificate else "http"
        return (self.public_url or f"{scheme}://{_dialled(self.edge)}").rstrip("/")

    @property
    def api_url(self) -> str:
        return f"{'https' if self.tls_certificate else 'http'}://{_dialled(self.listen)}"


_CHOICES: Final = {
    "capacity": ("containers", "simulated"),
    "synchronous": ("FULL", "NORMAL"),
    "log_format": ("auto", "text", "json"),
    "log_level": ("debug", "info", "warning"),
}


def settings(**flags: Any) -> Settings:
    """Settings from `flags` (None: not given), MILLSTREAM_*, the file that `config` names, defaults.

    Raises SettingsError that names the setting, where it came from and what it may be.
    """
    known = {item.name: item for item in fields(Settings)}
    given = _given(flags)
    strange = sorted(set(given) - set(known))
    if strange:
        raise SettingsError(
            f"{strange[0]} (from {given[strange[0]][1]}) is not a setting",
            next_step="millstream help environment lists them",
        )
    values = {name: _typed(name, value, known[name].default, origin) for name, (value, origin) in given.items()}
    return _checked(replace(Settings(), **values))


def origins(**flags: Any) -> dict[str, str]:
    """Where each setting that is not at its default was given: a flag, a variable or the file."""
    return {name: origin for name, (_, origin) in _given(flags).items()}


def _given(flags: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Every value that was given, with where; the strongest of each."""
    config = flags.get("config") or os.environ.get("MILLSTREAM_CONFIG")
    given: dict[str, tuple[Any, str]] = {}
    for name, value in (_file(Path(config)) if config else {}).items():
        given[name] = (value, f"{config}")
    for item in fields(Settings):
        variable = f"MILLSTREAM_{item.name.upper()}"
        if variable in os.environ:
            given[item.name] = (os.environ[variable], variable)
    return given | {
        name: (value, f"--{name.replace('_', '-')}")
        for name, value in flags.items()
        if value is not None and name != "config"
    }


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}", next_step="check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}", next_step="mend that line") from error


def _typed(name: str, value: Any, default: Any, origin: str) -> Any:
    try:
        match default:
            case bool():
                if isinstance(value, bool):
                    return value
                return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                    str(value).lower()
                ]
            case int():
                return int(value)
            case float():
                return float(value)
            case tuple():
                return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
            case Path():
                return Path(value)
            case _:
                return str(value)
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"{name} = {value!r} (from {origin}) is not like its default {default!r}") from None


def _checked(found: Settings) -> Settings:
    for name, choices in _CHOICES.items():
        if getattr(found, name) not in choices:
            raise SettingsError(f"{name} = {getattr(found, name)!r} is none of {', '.join(choices)}")
    if found.database:
        raise SettingsError(
            "another database than SQLite in the data folder is not built yet", next_step="leave --database out"
        )
    if not names.ACCOUNT.fullmatch(found.account):
        raise SettingsError(f"account = {found.account!r} is not 12 digits")
    if bool(found.tls_certificate) != bool(found.tls_key):
        raise SettingsError("tls_certificate and tls_key go together", next_step="give both, or none")
    if not names.REGION.fullmatch(found.region):
        raise SettingsError(f"region = {found.region!r} is not like us-east-1")
    for name in ("listen", "edge"):
        address(getattr(found, name))
    for item in fields(Settings):
        value, least = getattr(found, item.name), 1 if item.name == "threads" else 0
        if isinstance(value, (int, float)) and not least <= value < math.inf:
            raise SettingsError(f"{item.name} = {value} is not a number from {least} up")
    return replace(found, data=found.data.expanduser().absolute())


def address(text: str) -> tuple[str, int]:
    """HOST:PORT. Raises SettingsError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"{text!r} is not HOST:PORT", next_step="for example 127.0.0.1:8400")
    return host.strip("[]"), int(port)


def _dialled(text: str) -> str:
    """What a program on this host dials to reach a listening address."""
    host, port = address(text)
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not listened on
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
