"""Every readable code that Millstream says, in one table: errors, health, reasons of steps, log events.

`explain`, the docs and the command line's errors read it; a test holds the source against it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Exit codes of the command line.
NO, USAGE, UNREACHABLE, DENIED, ABSENT, HOST, TIME, BUG, INTERRUPTED = 1, 2, 3, 4, 5, 6, 7, 70, 130

EXITS: Final = {
    0: "yes, or done",
    NO: "the answer is no: the survey differs, doctor found something, the resource is FAILED",
    USAGE: "the command was not understood: nothing was done",
    UNREACHABLE: "the service can't be reached",
    DENIED: "not allowed",
    ABSENT: "no such thing",
    HOST: "this host, its store or its engine can't do it",
    TIME: "time ran out",
    BUG: "a bug of ours: the error names the file that holds its trace",
    INTERRUPTED: "interrupted with Ctrl-C",
}


class Code(NamedTuple):
    what: str  # what is the matter, without a full stop: it stands after "error CODE:"
    why: str  # the usual cause
    next: str  # one step that helps
    exit: int = HOST


CODES: Final[dict[str, Code]] = {
    # -- the command line
    "usage.wrong": Code(
        "the command was not understood",
        "an option, an argument or a command is missing or misspelt",
        "millstream help, or the command with --help",
        USAGE,
    ),
    "usage.unknown": Code(
        "there is no such word",
        "it is not one of those that this place knows",
        "take the nearest one, if it fits",
        USAGE,
    ),
    "usage.ambiguous": Code(
        "more than one resource has this name",
        "the same name may exist in several regions and accounts",
        "give the ARN instead of the name",
        USAGE,
    ),
    "usage.not-file": Code("the file can't be read", "it is missing, or not readable by you", "check the path", USAGE),
    "settings.invalid": Code(
        "a setting can't be used",
        "a flag, a MILLSTREAM_ variable or the configuration file holds it",
        "millstream help environment lists the settings",
        USAGE,
    ),
    "service.not-running": Code(
        "no service runs on this data folder",
        "it was not started, was stopped, or uses another folder",
        "millstream serve --data DIR, or name the right folder with --data",
        UNREACHABLE,
    ),
    "service.not-ready": Code(
        "the service runs but is not ready",
        "its health check says no: the store, the engine or a base image is missing",
        "millstream doctor",
        UNREACHABLE,
    ),
    "service.no-answer": Code(
        "the service does not answer",
        "its process hangs, or its address is taken by another program",
        "see its log",
        UNREACHABLE,
    ),
    "resource.absent": Code(
        "there is no such resource",
        "it was never made, is already gone, or lives in another data folder",
        "aws appstream describe-image-builders lists what there is",
        ABSENT,
    ),
    "resource.failed": Code(
        "the resource can't become what was asked for",
        "its own error says why",
        "millstream explain NAME shows its timeline",
        NO,
    ),
    "key.absent": Code("there is no such key", "it was never made here", "millstream keys list", ABSENT),
    "key.exists": Code("this key already exists", "a key id is used once", "millstream keys list", USAGE),
    "key.bad": Code(
        "this is no access key",
        "a key id is 16 to 128 letters, digits or _; a secret 16 to 256 printable characters",
        "millstream keys create makes one",
        USAGE,
    ),
    "fault.absent": Code("there is no such fault", "it was used up or cleared", "millstream fault list", ABSENT),
    "image.absent": Code(
        "there is no such base image", "it was not built on this host", "millstream image list", ABSENT
    ),
    "image.in-use": Code(
        "the base image is in use", "machines were made from it", "delete those image builders first", NO
    ),
    "image.build": Code(
        "the base image could not be built",
        "the last lines of its log say why",
        "mend that, then millstream image build",
    ),
    "image.tool-missing": Code(
        "base images can't be built on this host",
        "mmdebstrap and apt are needed",
        "make setup, or: apt-get install mmdebstrap",
    ),
    "image.import": Code(
        "the engine did not take the base image", "its own words stand beside this code", "millstream doctor"
    ),
    "image.old": Code(
        "the base image is old", "it lacks the security updates of the last weeks", "millstream image build --fresh", NO
    ),
    "image.lost": Code(
        "the engine took the base image but does not list it",
        "the engine failed half-way",
        "millstream image build again",
    ),
    "image.unknown": Code(
        "the image is not there any more",
        "it was removed after the image builder was asked for",
        "millstream image list; delete the image builder and create it from another image",
    ),
    "image.none": Code("there is no base image to start machines from", "none was built yet", "millstream image build"),
    "wait.time-out": Code(
        "time ran out before it came true", "what it waits for is named above", "millstream explain NAME", TIME
    ),
    "access.denied": Code(
        "not allowed",
        "the data folder, or the key, belongs to somebody else",
        "run it as the user who runs the service",
        DENIED,
    ),
    "bug.unexpected": Code(
        "a bug of Millstream's",
        "something happened that its makers did not think of",
        "report it with the file named here",
        BUG,
    ),
    # -- the store
    "store.absent": Code(
        "there is no data folder here yet",
        "no service was ever started on it",
        "millstream serve --data DIR",
        UNREACHABLE,
    ),
    "store.disk-full": Code("the store can't be written", "the disk is full or failing", "free disk space"),
    "store.busy": Code("the store is busy", "another process held it for more than 10 s", "try again"),
    "store.failed": Code("the store failed", "the database said why", "see the log; millstream doctor"),
    "store.newer": Code(
        "the store was written by a newer Millstream",
        "an older version can't know what a newer one wrote",
        "install that version again, or serve with another --data",
    ),
    "store.copied": Code(
        "the data folder is a copy of another, or was moved",
        "its rows name machines that belong to the folder that it was copied from",
        "move it back, or serve --adopt to start it as a folder of its own, without those machines",
    ),
    "store.damaged": Code(
        "the store can't be read",
        "its file was changed by something else, or the disk fails",
        "restore the data folder from a backup, or serve with another --data",
    ),
    # -- the engine
    "engine.no-answer": Code(
        "no engine answers, so machines can't be made",
        "its process is not running, or its socket is another one",
        "millstream doctor --fix, or try without machines: millstream serve --capacity simulated",
    ),
    "engine.missing": Code(
        "no container engine is installed",
        "machines are containers, and nothing here can run them",
        "make setup, or: apt-get install podman runc; without machines: millstream serve --capacity simulated",
    ),
    "engine.slow": Code("the engine took too long", "the host is overloaded, or the engine hangs", "millstream doctor"),
    "engine.error": Code(
        "the engine answered with an error", "its own words stand beside this code", "millstream doctor"
    ),
    "engine.disk-full": Code("the engine's disk is full", "images and root volumes fill it", "free disk space"),
    "engine.no-runtime": Code(
        "no OCI runtime works on this host",
        "runc and crun were tried with a memory limit, and both failed",
        "apt-get install runc; millstream doctor shows what each of them said",
    ),
    "capacity.error": Code(
        "the capacity driver could not do it now", "its own words stand beside this code", "it is tried again by itself"
    ),
    "capacity.refused": Code(
        "the capacity driver refuses it for good",
        "its own words stand beside this code",
        "delete the resource and create it anew",
    ),
    "machine.absent": Code(
        "the machine is not there",
        "something other than Millstream removed it",
        "delete the resource and create it anew",
    ),
    "capacity.unknown": Code(
        "the capacity driver can't say how the machine is",
        "its engine did not answer",
        "it is asked again by itself; millstream doctor",
    ),
    "engine.no-userns": Code(
        "this Docker Engine has no userns-remap",
        "a machine's root would be the host's root",
        "start it with --userns-remap=default",
    ),
    "engine.netns": Code(
        "the folder of network namespaces can't be made a shared mount",
        "mounting in /run/netns is not allowed here, and machines' namespaces would outlive them",
        "run the service as root of the host, or give it --engine with an engine of yours",
    ),
    "machine.bad-id": Code(
        "a machine's id is 32 hex digits", "something else was given for one", "this is a bug of ours: report it"
    ),
    "agent.unknown": Code(
        "there is no agent of this version",
        "the resource asks for one that this server does not have",
        "ask for LATEST",
    ),
    "network.no-subnet": Code(
        "no free subnet is left for machines",
        "other networks of this host cover the whole pool",
        "remove networks that nobody uses",
    ),
    "network.refused": Code("the engine made no network", "its own words stand beside this code", "millstream doctor"),
    # -- roles
    "data.locked": Code(
        "another Millstream works on this data folder",
        "two services on one folder would make and delete the same machines",
        "stop it, or serve with another --data",
    ),
    "serve.address-taken": Code(
        "an address of the service can't be had",
        "another program listens there, or it is none of this host's",
        "stop that program, or give another one with --listen or --edge",
    ),
    "serve.role-ended": Code(
        "a role of the service ended by itself",
        "it was killed, or ran into a bug; it is started again",
        "read the log lines before it",
    ),
    "confine.partial": Code(
        "a role could not give up all rights that it does not need",
        "the kernel, or the container that the service runs in, does not let it",
        "nothing, if the service runs in a container of its own; otherwise a newer kernel",
    ),
    "edge.no-health": Code(
        "the edge can't say how the service is", "the store did not answer in time", "millstream doctor"
    ),
    "reconcile.absent": Code(
        "no reconcile role answers, so nothing moves",
        "it was not started, or is being started again",
        "millstream serve, or reconcile",
    ),
    "reconcile.stuck": Code(
        "the reconcile role has not reported for a while",
        "it hangs, or the host's clock was moved",
        "read its log; millstream doctor",
    ),
    "reconcile.bug": Code(
        "an internal error in a step",
        "something happened that its makers did not think of",
        "report it with the traceback in the log",
    ),
    # -- streams
    "stream.unknown-kind": Code("machines have no such stream", "a newer page asks an older server", "reload the page"),
    "stream.no-display": Code(
        "the machine's display does not answer",
        "it is starting, or its agent died",
        "wait a moment; millstream explain NAME",
    ),
    "stream.simulated": Code(
        "a simulated machine has no desktop",
        "the service runs with --capacity simulated",
        "millstream serve --capacity containers",
    ),
    # -- what people read instead of a desktop
    "ticket.missing": Code(
        "a desktop was asked for without a link",
        "the browser holds no cookie for it: the link was opened elsewhere, or the browser was closed since",
        "open the link that was given, or make a new one with CreateImageBuilderStreamingURL",
        DENIED,
    ),
    "ticket.forged": Code(
        "the link isn't whole",
        "it was cut off or changed on its way, or made by another service",
        "copy the whole link again, or make a new one with CreateImageBuilderStreamingURL",
        DENIED,
    ),
    "ticket.foreign": Code(
        "the link is for another desktop",
        "its machine's id or account is not the one in its ticket",
        "make a new one with CreateImageBuilderStreamingURL",
        DENIED,
    ),
    "ticket.used": Code(
        "the link has been used",
        "a link opens one desktop in one browser, once",
        "go back to that browser, or make a new link: it takes the desktop over",
        DENIED,
    ),
    "ticket.expired": Code(
        "the link has expired",
        "its Validity is over: 3600 s unless more was asked for, at most 604800 s",
        "make a new one with CreateImageBuilderStreamingURL",
        DENIED,
    ),
    "ticket.withdrawn": Code(
        "the link was withdrawn",
        "the access key that it was made with was revoked",
        "make a new one with a key that is valid: millstream keys list",
        DENIED,
    ),
    "ticket.earlier-run": Code(
        "the desktop was restarted since it was opened",
        "a way in is good for one run of a machine",
        "make a new link with CreateImageBuilderStreamingURL",
        DENIED,
    ),
    "ticket.too-many-wrong": Code(
        "too many wrong links came from one network",
        "somebody guesses, or a page goes on with an old link",
        "wait a minute; a right link still works",
        DENIED,
    ),
    "machine.gone": Code(
        "the desktop is gone", "its resource was deleted", "millstream explain NAME shows its last steps", ABSENT
    ),
    "machine.not-running": Code(
        "the desktop is not running",
        "it is starting, stopped, being deleted, or has failed; the page says which",
        "millstream explain NAME; StartImageBuilder if it is STOPPED",
        NO,
    ),
    "machine.no-display": Code(
        "the machine has no display",
        "the service runs with --capacity simulated",
        "millstream serve --capacity containers",
        NO,
    ),
    "edge.not-found": Code(
        "the edge has no such page", "the address was changed, or is of another service", "open the whole link", ABSENT
    ),
    "edge.wrong-host": Code(
        "the edge does not answer to this name",
        "the browser's address is neither the one of --public-url nor one of hosts",
        "open it at that address, or set public_url or hosts: millstream explain public_url",
        DENIED,
    ),
    "edge.foreign-origin": Code(
        "another web page asked for a desktop",
        "only the edge's own page may, at the address of --public-url",
        "behind a proxy set --public-url to what the browser shows",
        DENIED,
    ),
    "edge.method": Code(
        "the address does not take that kind of request", "a program asked, not the page", "open the link", USAGE
    ),
    "edge.full": Code(
        "the edge shows as many desktops as it may", "many people or many tabs look on", "close some; try again", HOST
    ),
    "edge.too-often": Code(
        "a desktop was opened too often",
        "one machine may be opened 300 times a minute",
        "try again in a minute; a page or script opens it in a loop",
    ),
    "edge.not-now": Code(
        "the edge can't look a desktop up at the moment", "the store did not answer", "millstream doctor"
    ),
    "edge.bug": Code(
        "the edge made a mistake",
        "something happened that its makers did not think of",
        "report it with the traceback in the log",
        BUG,
    ),
    # -- reconciling
    "reconcile.lease-lost": Code(
        "another reconciler took the machine over",
        "a step took longer than its lease",
        "nothing: the other one goes on",
    ),
    "sweep.stranger": Code(
        "a machine that no row knows was released",
        "it was left by a call that was cut off; it was seen in two sweeps",
        "nothing: that is the mending",
    ),
    # -- faults on request
    "fault.before": Code(
        "a fault on request: the step was not taken",
        "millstream fault add … before",
        "millstream fault list, or clear",
        NO,
    ),
    "fault.after": Code(
        "a fault on request: the step was taken, its answer lost",
        "millstream fault add … after",
        "millstream fault list, or clear",
        NO,
    ),
    "fault.refused": Code(
        "a fault on request: the step was refused for good",
        "millstream fault add … refused",
        "millstream fault list, or clear",
        NO,
    ),
    # -- what doctor looks at
    "host.not-root": Code(
        "the embedded engine runs as root, and this is another user",
        "limits, networks and user namespaces of machines need it",
        "sudo millstream serve, or --engine with an engine of yours",
    ),
    "host.packages": Code(
        "programs that the embedded engine needs are missing",
        "they were never installed",
        "millstream doctor --fix, or make setup",
    ),
    "host.no-uid-range": Code(
        "machines can't get user ids of their own",
        "no line for containers in /etc/subuid and /etc/subgid, so their root would be the host's",
        "millstream doctor --fix adds it",
    ),
    "host.memory-short": Code(
        "memory is short on this host",
        "a machine would take what the host needs itself",
        "stop other machines, or take a smaller instance type",
    ),
    "disk.full": Code(
        "the disk below the data folder is full", "images, machines' writes and logs fill it", "free some space there"
    ),
    "disk.error": Code(
        "a file below the data folder can't be written or removed",
        "the disk fails, or something holds it",
        "see the log",
    ),
    "host.system": Code(
        "this system is not one that machines run on", "containers need Linux", "serve --capacity simulated"
    ),
    "host.python": Code("Python is too old", "3.11 or newer is needed", "apt-get install python3"),
    "host.memory": Code(
        "the host has little memory", "a small desktop needs 1 GiB", "close other programs, or take a larger host"
    ),
    "host.disk": Code(
        "the disk has little room", "a base image takes about 2 GiB, and each machine its own writes", "free disk space"
    ),
    "host.cgroups": Code(
        "limits on machines can't be set",
        "no memory and CPU control groups are mounted",
        "boot with cgroup v2, or mount cgroup v1",
    ),
    "host.old-runtime": Code(
        "the container runtime has known holes",
        "it is older than the version that closed them (CVE-2025-31133, -52565, -52881)",
        "apt-get update && apt-get install --only-upgrade runc",
    ),
    "host.exposed": Code(
        "the service listens beyond this host without TLS",
        "streams and calls would cross the network in clear text",
        "give --tls-certificate and --tls-key, or listen on 127.0.0.1 behind a proxy with TLS",
    ),
    "network.no-guard": Code(
        "machines can't be kept from the host's own ports",
        "nft is not installed, or the kernel has no nf_tables",
        "apt-get install nftables",
    ),
}


def of(code: str) -> Code:
    """The entry of `code`; one that is missing is our own bug, but must not hide the error that it came with."""
    return CODES.get(code, CODES["bug.unexpected"]._replace(what=f"{code}, a code that is not in our table"))
