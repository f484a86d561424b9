"""The base image: a small Debian desktop, built from Debian's signed packages with mmdebstrap, and given to an engine.

The list of packages and the files laid over them stand in `desktop/`. The versions that a build resolved to are kept
beside the result. Sources are the host's own for Debian's main and security suites, so a site's mirror is respected.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from millstream.capacity.containers.engine import ENGINE_PATH, locked, unmount_below
from millstream.capacity.driver import CapacityError, Refused
from millstream.model.records import BaseImage

if TYPE_CHECKING:
    from millstream.capacity.containers.engine import Engine

NAME: Final = "debian-12-desktop"
DESCRIPTION: Final = "Debian 12 with the Xfce desktop, Firefox, a terminal, a file manager and a text editor"
RELEASE: Final = "bookworm"
SUITES: Final = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
PUBLIC_SOURCES: Final = (  # for hosts that aren't Debian
    ("http://deb.debian.org/debian", f"{RELEASE} {RELEASE}-updates"),
    ("http://deb.debian.org/debian-security", f"{RELEASE}-security"),
)
PERSON_UID: Final = 1000  # ImageBuilderAdmin
ENGINE_UID: Final = 980  # Xvnc; a uid of its own, so that the person's programs can't signal it
EPOCH: Final = 1735689600  # no file in the image is younger than its recipe: builds of one list are alike
DESKTOP: Final = Path(__file__).parent / "desktop"
BUILD_LIMIT_S: Final = 1800.0
IMPORT_LIMIT_S: Final = 600.0

LABEL_NAME: Final = "millstream.image"
LABEL_DESCRIPTION: Final = "millstream.description"
LABEL_RECIPE: Final = "millstream.recipe"

Progress = Callable[[str, float], None]
"""Called when a step begins: its name for people, and the seconds since the build began."""

# Manuals in fifty languages are a fifth of the image and nobody's first need.
OPTIONS: Final = (
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-include=/usr/share/locale/locale.alias",
)

# What of mmdebstrap's output begins a step that people know.
STEPS: Final = (
    ("running apt-get update", "reading Debian's package lists"),
    ("downloading packages", "downloading packages"),
    ("extracting archives", "unpacking the base system"),
    ("installing essential packages", "installing the base system"),
    ("installing remaining packages", "installing the desktop"),
    ("creating tarball", "packing"),
)


def cache_folder() -> Path | None:
    """Where built images are kept for several data folders, if the operator names a place."""
    place = os.environ.get("MILLSTREAM_IMAGE_CACHE")
    return Path(place).resolve() if place else None


def build_base_image(
    engine: Engine, cache: Path, progress: Progress | None = None, *, fresh: bool = False
) -> BaseImage:
    """Bring the base image into the engine; build it only if `cache` has none of this recipe. Idempotent.

    `fresh` builds anew, with the versions that Debian has today. Takes about a minute on two cores, an import
    ten seconds. Raises CapacityError when packages can't be fetched, Refused when tools are missing.
    """
    began = time.monotonic()

    def tell(step: str) -> None:
        if progress:
            progress(step, time.monotonic() - began)

    recipe = recipe_digest()
    known = None if fresh else _find(engine, recipe)
    if known:
        return known
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(cache / "lock"):
        known = None if fresh else _find(engine, recipe)
        if known:
            return known
        tarball = tarball_of(cache)
        if fresh or not tarball.exists():
            _build(tarball, cache, tell)
        tell("giving the image to the engine")
        _import(engine, tarball, recipe)
    made = _find(engine, recipe)
    if made is None:
        raise CapacityError("the engine took the image but does not list it", code="image.lost")
    tell("done")
    return made


def tarball_of(cache: Path) -> Path:
    """Where `cache` holds, or would hold, the image that this recipe makes."""
    return cache / f"{NAME}-{recipe_digest()}.tar"


def build_tarball(cache: Path, progress: Progress | None = None) -> None:
    """Only build, for a set-up that does so beside other work: needs no engine. Raises as `build_base_image` does."""
    began = time.monotonic()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)

    def tell(step: str) -> None:
        if progress:
            progress(step, time.monotonic() - began)

    with locked(cache / "lock"):
        if not tarball_of(cache).exists():
            _build(tarball_of(cache), cache, tell)


def list_images(engine: Engine) -> list[BaseImage]:
    """Base images at hand, the newest of each name. Raises CapacityError."""
    with engine.calls(limit_s=10.0) as api:
        rows = api.images(filters={"label": LABEL_NAME})
    newest: dict[str, BaseImage] = {}
    for row in sorted(rows, key=lambda row: row["Created"]):
        labels = row.get("Labels") or {}
        name = labels[LABEL_NAME]
        newest[name] = BaseImage(
            name=name,
            reference=next(iter(row.get("RepoTags") or []), row["Id"]),
            digest=row["Id"],
            created=float(row["Created"]),
            size_bytes=int(row.get("Size") or 0),
            description=labels.get(LABEL_DESCRIPTION, ""),
        )
    return list(newest.values())


def remove_image(engine: Engine, name: str) -> None:
    """Take a base image from the engine; machines that were made from it keep it alive. Raises CapacityError."""
    with engine.calls() as api:
        for row in api.images(filters={"label": f"{LABEL_NAME}={name}"}):
            api.remove_image(row["Id"], force=False)


def recipe_digest() -> str:
    """Twelve hex digits that name the recipe: packages, files laid over them, and the steps of this file."""
    steps = [RELEASE, EPOCH, *OPTIONS, *_hooks("desktop", "sources", "versions")]
    digest = hashlib.sha256(json.dumps(steps).encode())
    for path in sorted(DESKTOP.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(DESKTOP)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def packages() -> list[str]:
    lines = (DESKTOP / "packages.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def debian_sources() -> list[str]:
    """The host's own sources for Debian's main and security suites, as deb822 stanzas; else Debian's public ones."""
    places: dict[str, set[str]] = {}
    if shutil.which("apt-get", path=ENGINE_PATH):
        wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
        listing = _output(["apt-get", "indextargets", "--no-release-info", "--format", wanted, "Created-By: Packages"])
        for line in listing.splitlines():
            uri, suite, component, *signed_by = line.split(maxsplit=3)
            debians = not signed_by or not signed_by[0].strip() or "debian-archive" in signed_by[0]
            if suite in SUITES and component == "main" and debians:
                places.setdefault(uri.rstrip("/"), set()).add(suite)
    if RELEASE not in {suite for suites in places.values() for suite in suites}:
        places = {uri: set(suites.split()) for uri, suites in PUBLIC_SOURCES}
    return [
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(sorted(suites))}\nComponents: main\nSigned-By: {KEYRING}\n"
        for uri, suites in sorted(places.items())
    ]


def _build(tarball: Path, cache: Path, tell: Callable[[str], None]) -> None:
    for tool in ("mmdebstrap", "apt-get"):
        if not shutil.which(tool, path=ENGINE_PATH):
            raise Refused(f"{tool} is not installed: apt-get install {tool}", code="image.tool-missing")
    for stale in cache.glob("build-*"):
        # What a killed build left, unless its /proc or /dev is still mounted there: those are not ours to delete.
        if str(stale) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8"):
            shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
    try:
        sources = work / "debian.sources"
        sources.write_text("\n".join(debian_sources()), encoding="utf-8")
        versions = work / "versions"
        command = [
            # What mmdebstrap mounts for its work is seen by nobody else, and goes with it even when it is killed.
            *(["unshare", "--mount", "--propagation=private"] if os.geteuid() == 0 else []),
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root" if os.geteuid() == 0 else "--mode=auto",
            *OPTIONS,
            *_proxies(),
            f"--include={','.join(packages())}",
            *(f"--customize-hook={hook}" for hook in [*_hooks(DESKTOP, sources, versions), *_authorities(sources)]),
            RELEASE,
            str(work / "rootfs.tar"),
            str(sources),
        ]
        _run_visibly(command, work, tell)
        for older in cache.glob(f"{NAME}-*.tar"):
            older.unlink()  # each is a gigabyte; an engine that took one has its own copy
        (work / "rootfs.tar").replace(tarball)
        record = {
            "image": NAME,
            "recipe": recipe_digest(),
            "built": time.time(),
            "sha256": _sha256(tarball),
            "packages": dict(line.split("=", 1) for line in versions.read_text(encoding="utf-8").splitlines()),
        }
        tarball.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _hooks(desktop: Path | str, sources: Path | str, versions: Path | str) -> list[str]:
    """Shell lines run on the finished tree `$1`, in order."""
    nobody, person = "--shell /usr/sbin/nologin millstream", "ImageBuilderAdmin"
    return [
        f'cp -a --no-preserve=ownership "{desktop}/rootfs/." "$1/"',
        'rm -f "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/* "$1/etc/apt/apt.conf.d/99mmdebstrap"',
        f'cp "{sources}" "$1/etc/apt/sources.list.d/debian.sources"',
        f'chroot "$1" groupadd --gid {ENGINE_UID} millstream',
        f'chroot "$1" useradd --uid {ENGINE_UID} --gid {ENGINE_UID} --no-create-home --home-dir /nonexistent {nobody}',
        f'chroot "$1" useradd --uid {PERSON_UID} --create-home --shell /bin/bash --comment "Image builder" {person}',
        'chroot "$1" fc-cache --system-only || true',
        f'chroot "$1" dpkg-query --show --showformat "\\${{Package}}=\\${{Version}}\\n" > "{versions}"',
        # What must differ between two machines is made at the first start, not here.
        'rm -f "$1/etc/machine-id" "$1/var/lib/dbus/machine-id" "$1"/etc/ssh/ssh_host_*_key*; : > "$1/etc/machine-id"',
        'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"; rm -rf "$1"/var/log/*.log "$1"/var/log/apt/* "$1"/tmp/*',
        'rm -rf "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*_*',
    ]


def _authorities(sources: Path) -> list[str]:
    """A mirror behind a site's own authority is reached only with the certificates that this host trusts."""
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    https = "https://" in sources.read_text(encoding="utf-8")
    return [f'cp "{certificates}" "$1{certificates}"'] if https else []


def _run_visibly(command: list[str], work: Path, tell: Callable[[str], None]) -> None:
    said: list[str] = []
    (work / "tmp").mkdir()
    environment = {
        "PATH": ENGINE_PATH,
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        **{key: value for key, value in os.environ.items() if key.lower() in ("http_proxy", "https_proxy", "no_proxy")},
    }
    (work / "tmp").chmod(0o755)
    work.chmod(0o711)  # apt's own user reads what it fetched below
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            step = next((name for begin, name in STEPS if begin in line), None)
            if step:
                tell(step)
        code = process.wait(BUILD_LIMIT_S)
    if code:
        why = next((line for line in reversed(said) if re.match(r"(E|W): ", line) and "mmdebstrap" not in line), "")
        raise CapacityError(
            f"the base image could not be built: {why or ' '.join(said[-2:])}"[:500], code="image.build"
        )


def _import(engine: Engine, tarball: Path, recipe: str) -> None:
    reference = f"millstream/{NAME}"
    changes = [f"LABEL {k}={json.dumps(v)}" for k, v in _labels(recipe).items()]
    if engine.embedded is None:
        with engine.calls(limit_s=IMPORT_LIMIT_S) as api, tarball.open("rb") as file:
            # docker-py says "chunked" in the head, and requests chunks what has no length.
            chunks = iter(lambda: file.read(1 << 20), b"")
            answer = api.import_image_from_stream(chunks, repository=reference, tag=recipe, changes=changes)
            if "error" in str(answer):
                raise CapacityError(f"the engine did not take the image: {str(answer)[-300:]}", code="image.import")
        return
    podman = engine.embedded
    podman.ensure()
    options = [option for change in changes for option in ("--change", change)]
    store = podman.image_store
    # With a cache for several data folders, the image goes into a store that all their engines read.
    into = (
        ["--root", str(store), "--runroot", str(podman.folder / "run" / "cache"), "--storage-driver", "overlay"]
        if store
        else []
    )
    command = podman.command(*into, "import", "--quiet", *options, str(tarball), f"localhost/{reference}:{recipe}")
    environment = podman.environment()
    if into:
        environment.pop("CONTAINERS_STORAGE_CONF")
    result = subprocess.run(
        command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=IMPORT_LIMIT_S, check=False
    )
    if store:
        unmount_below(store)
    if result.returncode:
        why = result.stderr.decode(errors="replace").strip()[-300:]
        raise CapacityError(f"the engine did not take the image: {why}", code="image.import")


def _labels(recipe: str) -> dict[str, str]:
    return {LABEL_NAME: NAME, LABEL_DESCRIPTION: DESCRIPTION, LABEL_RECIPE: recipe}


def _find(engine: Engine, recipe: str) -> BaseImage | None:
    with engine.calls(limit_s=10.0) as api:
        fits = bool(api.images(filters={"label": f"{LABEL_RECIPE}={recipe}"}))
    return next((image for image in list_images(engine) if image.name == NAME), None) if fits else None


def _proxies() -> list[str]:
    """The proxies that this host's apt uses."""
    found = re.findall(r'^(Acquire::https?::Proxy) "([^"]+)";', _output(["apt-config", "dump"]), re.MULTILINE)
    return [f'--aptopt={key} "{value}"' for key, value in found]


def _output(command: list[str]) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
