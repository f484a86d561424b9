"""The agent of a machine: display first, then the person's session, and one socket on which the host may ask.

The display (Xvnc) belongs to a uid of its own, so that the person's programs can neither list its folder nor signal it.
A person who is root in here can do anything to all of this: the host trusts none of it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

STARTED = time.monotonic()
LINE_MAX = 4096  # a question is a few words
ASK_LIMIT_S = 2.0
ASKERS_MAX = 8
RUN = "/run/millstream"
ENGINE = f"{RUN}/engine"  # mounted from the host, which dials the sockets in it
RFB = f"{ENGINE}/rfb.sock"
ASK = f"{ENGINE}/agent.sock"
COOKIE = f"{RUN}/cookie"
DISPLAY = ":1"
X_SOCKET = "/tmp/.X11-unix/X1"  # noqa: S108 - where every X program looks
ENGINE_USER = "millstream"
PERSON = "ImageBuilderAdmin"
SESSION_STOP_S = 4.0
TICK_S = 1.0

XVNC = (
    "Xtigervnc", DISPLAY, "-geometry", "1280x720", "-depth", "24", "-rfbport", "-1",
    "-rfbunixpath", RFB, "-rfbunixmode", "0600", "-SecurityTypes", "None", "-AlwaysShared",
    "-auth", COOKIE, "-nolisten", "tcp", "-nolisten", "local", "-s", "0", "-dpms",
    "-AcceptSetDesktopSize=1", "-SendPrimary=0", "-MaxCutText=1048576", "-AllowOverride", "",
    "-desktop", "Millstream",
)  # fmt: skip
SESSION = ("dbus-run-session", "--", "xfce4-session")


class Part:
    """A program that must run. It is watched by a handle on its process, so one whose parent died is adopted."""

    def __init__(self, name: str, command: tuple[str, ...], user: str, environment: dict[str, str], log: str) -> None:
        self.name, self.command, self.user, self.environment, self.log = name, command, user, environment, log
        self.record = f"{RUN}/{name}.pid"
        self.pid = 0
        self.handle = -1
        self.starts = 0
        self.born = 0.0
        self.pause_s = 0.1
        self.due = 0.0

    def adopt(self) -> bool:
        """Find the process that an agent before this one started."""
        with contextlib.suppress(OSError, ValueError), open(self.record, encoding="ascii") as file:  # noqa: PTH123
            pid, birth = file.read().split()
            handle = os.pidfd_open(int(pid))
            if birth_of(int(pid)) == birth:
                self.pid, self.handle, self.born = int(pid), handle, time.monotonic()
                return True
            os.close(handle)
        return False

    def start(self) -> None:
        self.pid = spawn(self.command, self.user, self.environment, self.log)
        self.handle = os.pidfd_open(self.pid)
        self.born = time.monotonic()
        self.starts += 1
        write(self.record, f"{self.pid} {birth_of(self.pid)}".encode(), 0o600)

    def ended(self) -> None:
        """It is gone: start it again at once if it had lived, else after a pause that grows."""
        with contextlib.suppress(ChildProcessError):  # adopted ones are reaped by process 1
            os.waitpid(self.pid, os.WNOHANG)
        os.close(self.handle)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGTERM)  # what it leaves behind would stand in the way of the next one
        self.handle, self.pid = -1, 0
        self.pause_s = 0.1 if time.monotonic() - self.born > 10.0 else min(self.pause_s * 2, 10.0)
        self.due = time.monotonic() + self.pause_s

    @property
    def running(self) -> bool:
        return self.handle >= 0


class Asker:
    """One connection of the host: a line in, a line out, within its time."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.got = b""
        self.deadline = time.monotonic() + ASK_LIMIT_S


class Agent:
    def __init__(self, agent_restarts: int) -> None:
        self.agent_restarts = agent_restarts
        self.version = os.environ.get("MILLSTREAM_AGENT_VERSION", "")
        person = pwd.getpwnam(PERSON)
        self.display = Part(
            "display", XVNC, ENGINE_USER, {"HOME": "/nonexistent", "LANG": "C.UTF-8"}, f"{RUN}/display.log"
        )
        self.session = Part("session", SESSION, PERSON, session_environment(person), f"{RUN}/session.log")
        self.ready = False
        self.stopping = False
        self.askers: dict[int, Asker] = {}
        self.probe: socket.socket | None = None

    def run(self) -> None:
        prepare_display()
        if not self.display.adopt():
            self.start_display()
        # All that follows happens while Xvnc starts; importing `socket` and `json` alone takes 15 ms.
        import socket

        prepare_person(pwd.getpwnam(PERSON), administrator=os.environ.get("MILLSTREAM_ADMINISTRATOR") == "1")
        self.session.adopt()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ASK)  # noqa: PTH108
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(ASK)
        os.chmod(ASK, 0o600)  # noqa: PTH101
        listener.listen(16)
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while not self.stopping:
            self.round(listener, woken)
        self.shut_down()

    def stop(self, *_: object) -> None:
        self.stopping = True

    def round(self, listener: socket.socket, woken: int) -> None:
        """Wait for whatever happens next, and answer it."""
        poll = select.poll()
        poll.register(woken, select.POLLIN)
        if len(self.askers) < ASKERS_MAX:
            poll.register(listener, select.POLLIN)
        for number in self.askers:
            poll.register(number, select.POLLIN)
        for part in (self.display, self.session):
            if part.running:
                poll.register(part.handle, select.POLLIN)
        starting = self.display.running and not self.ready
        happened = {number for number, _ in poll.poll(15 if starting else TICK_S * 1000)}
        if woken in happened:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 512)
        self.tend(happened)
        if listener.fileno() in happened:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.setblocking(False)  # noqa: FBT003
                self.askers[connection.fileno()] = Asker(connection)
        now = time.monotonic()
        for number, asker in list(self.askers.items()):
            done = now > asker.deadline
            if number in happened:
                done = self.answer(asker) or done
            if done:
                asker.connection.close()
                del self.askers[number]

    def tend(self, happened: set[int]) -> None:
        """Notice what died, and start what is due."""
        for part in (self.display, self.session):
            if part.running and part.handle in happened:
                say(f"{part.name} ended")
                part.ended()
                if part is self.display:
                    self.ready = False
        now = time.monotonic()
        if not self.display.running and now >= self.display.due:
            self.start_display()
        if self.display.running and not self.ready and display_answers():
            self.ready = True
            say(f"display ready {time.monotonic() - STARTED:.2f} s after the agent's start")
        if self.ready and not self.session.running and now >= self.session.due:
            self.session.start()

    def start_display(self) -> None:
        for stale in (RFB, X_SOCKET, "/tmp/.X1-lock"):  # noqa: S108
            with contextlib.suppress(FileNotFoundError):
                os.unlink(stale)  # noqa: PTH108
        self.display.start()

    def answer(self, asker: Asker) -> bool:
        """Read on, and answer once a line is there. True when this connection is over."""
        try:
            data = asker.connection.recv(LINE_MAX)
        except BlockingIOError:
            return False
        except OSError:
            return True
        asker.got += data
        if b"\n" not in asker.got:
            return not data or len(asker.got) > LINE_MAX
        import json

        with contextlib.suppress(OSError):
            asker.connection.send(json.dumps(self.status()).encode() + b"\n")
        return True

    def status(self) -> dict[str, object]:
        return {
            "ready": self.ready,
            "version": self.version,
            "uptime_s": round(time.monotonic() - STARTED, 3),
            "display_starts": self.display.starts,
            "session_starts": self.session.starts,
            "session": self.session.running,
            "agent_restarts": self.agent_restarts,
        }

    def shut_down(self) -> None:
        """Programs first, so that they may save; then the display."""
        for part, limit_s in ((self.session, SESSION_STOP_S), (self.display, 1.5)):
            if not part.running:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGTERM)
            ended = select.poll()
            ended.register(part.handle, select.POLLIN)
            if not ended.poll(limit_s * 1000):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(part.pid, signal.SIGKILL)


def run(agent_restarts: int) -> None:
    Agent(agent_restarts).run()


def display_answers() -> bool:
    """Does the display greet on its socket? Xvnc says `RFB 003.008` by itself."""
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.5)
        try:
            connection.connect(RFB)
            return connection.recv(12).startswith(b"RFB ")
        except OSError:
            return False


def prepare_display() -> None:
    """The folders and the X cookie; all that Xvnc needs before it can start."""
    engine = pwd.getpwnam(ENGINE_USER)
    os.chown(RUN, engine.pw_uid, engine.pw_gid)
    os.chmod(RUN, 0o700)  # noqa: PTH101 - the person can't look into it
    for folder in ("/tmp/.X11-unix", "/tmp/.ICE-unix"):  # noqa: S108
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        os.chmod(folder, 0o1777)  # noqa: PTH101, S103 - as X itself makes it, sticky
    if os.path.exists(COOKIE):  # noqa: PTH110
        return
    # One Xauthority entry for any host name (65535), display 1: containers are renamed, cookies aren't.
    name = b"MIT-MAGIC-COOKIE-1"
    entry = b"\xff\xff" + b"".join(len(part).to_bytes(2, "big") + part for part in (b"", b"1", name, os.urandom(16)))
    write(COOKIE, entry, 0o400, engine)


def prepare_person(person: pwd.struct_passwd, *, administrator: bool) -> None:
    """What the person's session needs, and what must be new in each machine."""
    runtime = f"/run/user/{person.pw_uid}"
    os.makedirs(runtime, mode=0o755, exist_ok=True)  # noqa: PTH103
    os.chown(runtime, person.pw_uid, person.pw_gid)
    os.chmod(runtime, 0o700)  # noqa: PTH101
    with open(COOKIE, "rb") as file:  # noqa: PTH123
        write(f"{runtime}/Xauthority", file.read(), 0o400, person)
    rule = "/etc/sudoers.d/millstream"
    if administrator:
        write(rule, f"{PERSON} ALL=(ALL:ALL) NOPASSWD: ALL\n".encode(), 0o440)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(rule)  # noqa: PTH108
    if not os.path.exists("/etc/machine-id") or os.path.getsize("/etc/machine-id") == 0:  # noqa: PTH110, PTH202
        write("/etc/machine-id", os.urandom(16).hex().encode() + b"\n", 0o444)
    if not os.path.isdir(person.pw_dir):  # noqa: PTH112
        os.makedirs(person.pw_dir, mode=0o700)  # noqa: PTH103
        os.chown(person.pw_dir, person.pw_uid, person.pw_gid)


def session_environment(person: pwd.struct_passwd) -> dict[str, str]:
    return {
        "DISPLAY": DISPLAY,
        "HOME": person.pw_dir,
        "LANG": "C.UTF-8",
        "LOGNAME": PERSON,
        "SHELL": person.pw_shell or "/bin/sh",
        "USER": PERSON,
        "XAUTHORITY": f"/run/user/{person.pw_uid}/Xauthority",
        "XDG_CONFIG_DIRS": "/etc/xdg",
        "XDG_CURRENT_DESKTOP": "XFCE",
        "XDG_DATA_DIRS": "/usr/local/share:/usr/share",
        "XDG_RUNTIME_DIR": f"/run/user/{person.pw_uid}",
        "XDG_SESSION_TYPE": "x11",
        "NO_AT_BRIDGE": "1",  # no accessibility bus is there to wait for
        "TZ": os.environ.get("TZ", "UTC"),
    }


def spawn(command: tuple[str, ...], user: str, environment: dict[str, str], log: str) -> int:
    """Start `command` as `user` in a session of its own. Returns its pid."""
    account = pwd.getpwnam(user)
    groups = os.getgrouplist(user, account.pw_gid)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setgroups(groups)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.chdir(account.pw_dir if os.path.isdir(account.pw_dir) else "/")  # noqa: PTH112
        os.execvpe(command[0], command, {"PATH": "/usr/local/bin:/usr/bin:/bin", **environment})  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def birth_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; with the pid it names a process for ever."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def write(path: str, content: bytes, mode: int, owner: pwd.struct_passwd | None = None) -> None:
    """Replace a file whole; a link that stands there is replaced, never followed."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # noqa: PTH108
    number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        os.write(number, content)
        os.fchmod(number, mode)
        if owner:
            os.fchown(number, owner.pw_uid, owner.pw_gid)
    finally:
        os.close(number)
    os.rename(new, path)  # noqa: PTH104


def say(text: str) -> None:
    sys.stderr.write(f"agent: {text}\n")
    sys.stderr.flush()
