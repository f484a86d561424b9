"""Process 1 of a machine: reaps what dies, and starts the agent again when it dies. Runs as `python3 -I -S -B main.py`.

It does nothing else, so it has nothing to die of. Its end is the machine's end.
"""

import os
import signal
import sys
import time

STOP_LIMIT_S = 8.0  # the engine's own patience is 10 s
WORTHY_S = 10.0  # an agent that lived this long starts again at once
NAP_MAX_S = 5.0


def start_agent(restarts: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib costs 10 ms here
        import agent  # type: ignore[import-not-found, unused-ignore]

        agent.run(restarts)
        code = 0
    except BaseException:  # a forked child must not come back into the loop of process 1
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    # Signals are waited for, never delivered: no handler, no race.
    waited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    restarts = 0
    agent, born = start_agent(restarts), time.monotonic()
    nap_s = 0.1
    while True:
        number = signal.sigwait(waited)
        if number != signal.SIGCHLD:
            break
        if agent in reaped():
            restarts += 1
            nap_s = 0.1 if time.monotonic() - born > WORTHY_S else min(nap_s * 2, NAP_MAX_S)
            if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, nap_s):
                break
            agent, born = start_agent(restarts), time.monotonic()
    shut_down(agent)


def reaped() -> set[int]:
    """Every child that has ended, ours and the orphans that the kernel gave us."""
    ended: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


def shut_down(agent: int) -> None:
    """Let the agent end its session, then all else; whoever is left dies with process 1."""
    deadline = time.monotonic() + STOP_LIMIT_S
    for pid in (agent, -1):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        while time.monotonic() < deadline:
            ended = reaped()
            if agent in ended or not children():
                break
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
    sys.exit(0)


def children() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None or True
    except ChildProcessError:
        return False


if __name__ == "__main__":
    main()
