"""`env` and `keys`: what a program needs to call the service."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli.here import Group, Here, Trouble, command, moment, nearest, rfc3339, table, talk

if TYPE_CHECKING:
    from millstream.model.identity import Key
    from millstream.store.store import Row, Tx

KEY_ID: Final = re.compile(r"[A-Za-z0-9_]{16,128}")
SECRET: Final = re.compile(r"[\x21-\x7e]{16,256}")
NAME: Final = re.compile(r"[A-Za-z0-9+=,.@_-]{1,64}")  # IAM's rule for user names
ACCOUNT: Final = re.compile(r"[0-9]{12}")
# A session token of somebody's real account would be sent along with our key, and be refused; with endpoints ignored
# our key would be sent to AWS.
_EMPTIED: Final = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
# SDKs for JavaScript take a profile's keys before those of the environment. Empty it would name a profile, too.
_UNSET: Final = (*_EMPTIED, "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


def waiters_folder() -> str:
    """The folder that botocore finds through AWS_DATA_PATH: waiters for image builders, which its own model lacks."""
    return str(resources.files("millstream.cli").joinpath("aws"))


@command(
    name="env",
    params=[click.Option(["--github"], is_flag=True, help="Lines for $GITHUB_ENV: NAME=value, without export.")],
    examples=[
        'eval "$(millstream env)"                    this shell now talks to this service',
        "millstream env --github >> $GITHUB_ENV      the same for the next steps of a CI job",
    ],
)
def env_command(here: Here, *, github: bool) -> None:
    """Print the variables that point AWS tools at this service.

    boto3, the AWS CLI, Terraform and the other SDKs read them. The key is the root key of this data folder; make
    narrower ones with: millstream keys create.
    """
    from millstream import wiring

    service = here.service()
    settings = here.settings()
    key = wiring.root_key(here.store(), settings.account)
    url = service.get("api") or settings.api_url
    if not service:
        talk("note: no service runs on this data folder now; start it with millstream serve")
    ours = waiters_folder()
    others = [path for path in os.environ.get("AWS_DATA_PATH", "").split(os.pathsep) if path and path != ours]
    values = {
        "AWS_ENDPOINT_URL_APPSTREAM": url,
        "AWS_ENDPOINT_URL_STS": url,
        "AWS_ACCESS_KEY_ID": key.key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret.reveal(),
        "AWS_REGION": settings.region,  # what all SDKs but boto3 and the CLI read
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_DATA_PATH": os.pathsep.join([ours, *others]),
    }
    # What $GITHUB_ENV holds can be emptied, but not taken away.
    unset = [name for name in (_EMPTIED if github else _UNSET) if os.environ.get(name)]
    if github:
        lines = [f"{name}={value}" for name, value in values.items()] + [f"{name}=" for name in unset]
    else:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
        lines += [f"unset {' '.join(unset)}"] * bool(unset)
    here.answer("env", {"variables": values, "unset": unset}, lines)


keys_command = Group("keys", help="Make, import, list, revoke and replace access keys.")


def _shown(row: Row) -> dict[str, Any]:
    """A key without its secret."""
    return {
        "key_id": row["key_id"],
        "name": row["name"],
        "account": row["account"],
        "principal": row["principal"],
        "created": rfc3339(row["created"]),
        "expires": rfc3339(row["expires"]) if row["expires"] else None,
        "revoked": rfc3339(row["revoked"]) if row["revoked"] else None,
    }


def _checked(here: Here, name: str, account: str | None, days: float | None) -> dict[str, Any]:
    """What `new_key` is given, or Trouble."""
    account = account or here.settings().account
    if not ACCOUNT.fullmatch(account):
        raise Trouble("key.bad", what=f"{account!r} is no account", why="an account is 12 digits")
    if not NAME.fullmatch(name):
        raise Trouble(
            "key.bad", what=f"{name!r} is no name for a key", why="a name is 1 to 64 of A-Z a-z 0-9 + = , . @ _ -"
        )
    return {
        "account": account,
        "name": name,
        "principal": f"arn:aws:iam::{account}:user/{name}",
        "expires_at": time.time() + days * 86400 if days is not None else None,
    }


_ACCOUNT = click.Option(["--account"], metavar="DIGITS", help="The account it belongs to. Default: the configured one.")
_DAYS = click.Option(
    ["--days"],
    type=click.FloatRange(min=0, min_open=True),
    help="A temporary key, with a session token, that ends by itself after so many days.",
)


@command(
    keys_command,
    name="create",
    params=[click.Argument(["name"]), _ACCOUNT, _DAYS],
    examples=["millstream keys create ci", "millstream keys create ci --days 30 --json"],
)
def keys_create(here: Here, *, name: str, account: str | None, days: float | None) -> None:
    """Make an access key. Its secret is shown once, now."""
    from millstream import wiring

    given = _checked(here, name, account, days)
    key, row = here.store().write(lambda tx: _with_row(tx, wiring.new_key(tx, **given))).result()
    values = {"AWS_ACCESS_KEY_ID": key.key_id, "AWS_SECRET_ACCESS_KEY": key.secret.reveal()}
    if key.session_token is not None:
        values["AWS_SESSION_TOKEN"] = key.session_token.reveal()
    here.answer(
        "key",
        {**_shown(row), **{name.lower().removeprefix("aws_"): value for name, value in values.items()}},
        [f"export {name}={shlex.quote(value)}" for name, value in values.items()],
    )
    talk(f"key {key.key_id} for {key.principal_arn}; its secret is not shown again")


def _with_row(tx: Tx, key: Key) -> tuple[Key, Row]:
    return key, tx.one("key", key_id=key.key_id)


@command(
    keys_command,
    name="import",
    params=[
        click.Argument(["key_id"]),
        click.Option(["--name"], default="imported", show_default=True, help="What the key is called."),
        click.Option(
            ["--secret-file"],
            type=click.File("r"),
            default="-",
            metavar="FILE",
            help="Where its secret stands. Default: standard input; never an argument, since others can read those.",
        ),
        _ACCOUNT,
    ],
    examples=["millstream keys import AKIAIOSFODNN7EXAMPLE --secret-file secret.txt"],
)
def keys_import(here: Here, *, key_id: str, name: str, secret_file: Any, account: str | None) -> None:
    """Take over an access key that exists elsewhere, so that scripts which hold it run unchanged."""
    if not KEY_ID.fullmatch(key_id):
        raise Trouble("key.bad", what=f"{key_id!r} is no key id")
    if secret_file is sys.stdin and sys.stdin.isatty():
        secret = click.prompt("Secret of the key", hide_input=True, err=True)
    else:
        secret = secret_file.read(4096)
    secret = secret.strip()
    if not SECRET.fullmatch(secret):
        raise Trouble("key.bad", what="this is no secret", why="a secret is 16 to 256 printable characters on one line")
    from millstream import wiring

    given = _checked(here, name, account, None)

    def work(tx: Tx) -> Row:
        if tx.one("key", key_id=key_id) is not None:
            raise Trouble("key.exists", what=f"the key {key_id} already exists")
        return _with_row(tx, wiring.new_key(tx, **given, key_id=key_id, secret=secret))[1]

    here.answer("key", _shown(here.store().write(work).result()), [key_id])


@command(keys_command, name="list", examples=["millstream keys list"])
def keys_list(here: Here) -> None:
    """List the keys, without their secrets."""
    rows = sorted(here.store().read().all("keys"), key=lambda row: (row["name"], row["key_id"]))
    lines = table(
        [(row["name"], row["key_id"], row["account"], _standing(row), moment(row["created"])) for row in rows],
        head=("NAME", "KEY", "ACCOUNT", "STANDING", "MADE"),
    )
    here.answer("keys", {"keys": [_shown(row) for row in rows]}, lines)


def _standing(row: Row) -> str:
    if row["revoked"]:
        return f"revoked {moment(row['revoked'])}"
    if row["expires"]:
        return f"{'expired' if row['expires'] < time.time() else 'until'} {rfc3339(row['expires'])}"
    return "valid"


@command(
    keys_command,
    name="revoke",
    params=[click.Argument(["key_id"])],
    examples=["millstream keys revoke AKIAIOSFODNN7EXAMPLE"],
)
def keys_revoke(here: Here, *, key_id: str) -> None:
    """Revoke a key: calls with it, and streams that it opened, end within seconds."""

    def work(tx: Tx) -> Row:
        tx.run("revoke_key", key_id=key_id, now=time.time())
        row = tx.one("key", key_id=key_id)
        if row is None:
            meant = nearest(key_id, [other["key_id"] for other in tx.all("keys")])
            raise Trouble("key.absent", what=f"there is no key {key_id}", why=f"did you mean {meant}?" if meant else "")
        return row  # type: ignore[no-any-return]  # a row of sqlite3

    row = here.store().write(work).result()
    here.answer("key", _shown(row), [f"{key_id} is revoked"])


@command(
    keys_command,
    name="rotate-root",
    examples=["millstream keys rotate-root", 'eval "$(millstream env)"          the shells that held the old one'],
)
def keys_rotate_root(here: Here) -> None:
    """Replace the root key: the old one is revoked, and millstream env gives the new one.

    Calls with the old key, and streams that it opened, end within seconds. Other keys are not touched.
    """
    from millstream import wiring

    account = here.settings().account

    def work(tx: Tx) -> tuple[Row, str]:
        old = tx.one("meta", key="root_key")
        revoked = str(old["value"]) if old is not None else ""
        key = wiring.new_root_key(tx, account)
        tx.run("revoke_key", key_id=revoked, now=time.time())
        return tx.one("key", key_id=key.key_id), revoked

    row, revoked = here.store().write(work).result()
    here.answer("key", {**_shown(row), "replaces": revoked or None}, [row["key_id"]])
    talk(f"{revoked or 'no key'} is revoked; the root key is now {row['key_id']}")
    talk('  next  eval "$(millstream env)" in the shells that held the old one')
