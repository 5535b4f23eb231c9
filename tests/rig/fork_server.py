"""Starts the program in milliseconds: everything is imported once, and each run is a fork, a real process of its own.

Reads one JSON order a line: {"argv", "environ", "cwd", "output", "clock", "constants", "seams"}; answers {"started":
pid} and, when a run has ended, {"ended": pid, "code": exit code, negative for a signal}. Its handle is rig.programs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import json
import logging
import os
import resource
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import mailing_pipeline

HEAVY = (
    "psycopg",
    "paramiko",
    "pandas",
    "pyarrow.csv",
    "pyarrow.compute",
    "dotenv.parser",
    "rich.console",
    "rich.table",
)


class SharedClock(mailing_pipeline.Clock):
    """Reads its hands from a file, so that a test may set them, or let them run faster or jump, while a run is on.

    The file: {"wall": [real, shown], "steady": [real, shown], "speed": n}; rig.programs.Hands writes it.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def _hands(self) -> dict[str, Any]:
        with open(self.path, encoding="ascii") as file:
            return dict(json.load(file))

    def now(self) -> datetime:
        hands = self._hands()
        real, shown = hands["wall"]
        return datetime.fromtimestamp(shown + (time.time() - real) * hands["speed"]).astimezone()

    def steady_s(self) -> float:
        hands = self._hands()
        real, shown = hands["steady"]
        return float(shown + (time.monotonic() - real) * hands["speed"])

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(timeout_s / self._hands()["speed"])


def target_held_open(times: int) -> None:
    """os.replace meets winerror 32 so many times, as when Excel holds the target open. Windows alone does it."""
    real, left = os.replace, [times]

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(".csv") and left[0] > 0:
            left[0] -= 1
            error = PermissionError(errno.EACCES, "being used by another process")
            error.winerror = 32  # type: ignore[attr-defined]
            raise error
        real(source, target)

    os.replace = replace  # type: ignore[assignment]


def stop_at(what: str) -> None:
    """SIGSTOP this process just before (`before:name`) or after (`after:name`) a method; the test takes over."""
    when, _, name = what.partition(":")
    owner_name, _, method = name.rpartition(".")
    owner = getattr(mailing_pipeline, owner_name)
    real = getattr(owner, method)

    def stand_still() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.3)  # any of the threads may take the signal, and this one would go on for a moment

    def stopping(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            stand_still()
        result = real(*args, **kwargs)
        if when == "after":
            stand_still()
        return result

    setattr(owner, method, stopping)


def impatient_ledger(timeout_s: float) -> None:
    """SQLite gives up so soon on a file that another program holds; the field's ten seconds only make a test slow."""
    real = sqlite3.connect

    def connect(path: Any, timeout: float = 5.0, **options: Any) -> sqlite3.Connection:
        return real(path, timeout=min(timeout, timeout_s), **options)  # type: ignore[no-any-return]

    sqlite3.connect = connect  # type: ignore[assignment]


def log_fills_up(_: bool) -> None:
    """From the first delivery on, the log's disk is full."""
    real = logging.FileHandler.emit

    def emit(handler: logging.FileHandler, record: logging.LogRecord) -> None:
        if "delivered" in record.getMessage() and handler.stream and "full" not in handler.stream.name:
            handler.stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
        real(handler, record)

    logging.FileHandler.emit = emit  # type: ignore[method-assign, assignment]


def bug(text: str) -> None:
    """An error that nobody foresaw, in the middle of a mailing."""

    def fail(*_: Any) -> None:
        raise RuntimeError(text)

    mailing_pipeline.to_csv = fail  # type: ignore[assignment]


def bug_in_delivery(campaign: str) -> None:
    """An error that nobody foresaw, between one campaign's upload and its rename."""
    real = mailing_pipeline.Line.remarks

    def fail(line: Any, owner: Any, *more: Any) -> Any:
        if owner.name == campaign:
            raise RuntimeError("119" + str(80000001))  # a phone, though not in this line, which a traceback shows
        return real(line, owner, *more)

    mailing_pipeline.Line.remarks = fail  # type: ignore[method-assign]


def file_size_limit(size_bytes: int) -> None:
    """No file may grow beyond this: the kernel refuses the write, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def network(name: str) -> None:
    """This process sees the network of a namespace, which is another PC's, and no other."""
    with open(f"/var/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")


SEAMS: dict[str, Callable[[Any], None]] = {
    "log_fills_up": log_fills_up,
    "bug": bug,
    "bug_in_delivery": bug_in_delivery,
    "file_size_limit": file_size_limit,
    "impatient_ledger": impatient_ledger,
    "network": network,
    "target_held_open": target_held_open,
    "stop_at": stop_at,
}


def run(order: dict[str, Any]) -> None:
    """The child: becomes the program, as if a shell had started it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environ"])
    time.tzset()
    for name, value in order["constants"].items():
        if not hasattr(mailing_pipeline, name):
            raise SystemExit(f"mailing_pipeline has no {name}")
        setattr(mailing_pipeline, name, value)
    for name, value in order["seams"].items():
        SEAMS[name](value)
    code = int(mailing_pipeline.main(order["argv"], os.environ, SharedClock(order["clock"])))
    # What an interpreter waits for at its end, without the second that it takes to empty this large a memory.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def say(**said: int) -> None:
    os.write(1, (json.dumps(said) + "\n").encode())


def main() -> None:
    """Take orders until the parent is gone; then kill what still runs."""
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(awake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    waiting, running = b"", set()
    say(ready=os.getpid())
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    running.discard(ended[0])
                    say(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))
        if 0 not in ready:
            continue
        data = os.read(0, 1 << 20)
        if not data:
            break
        *orders, waiting = (waiting + data).split(b"\n")
        for order in orders:
            pid = os.fork()
            if pid == 0:
                for descriptor in (awake, wake):
                    os.close(descriptor)
                return run(json.loads(order))
            running.add(pid)
            say(started=pid)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
