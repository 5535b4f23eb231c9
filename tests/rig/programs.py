"""The program as processes that start in milliseconds, under a clock that the test sets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from typing import Self

TUESDAY = datetime(2026, 12, 22, 10, 5)


class Hands:
    """The clock that the programs see: it may be set, run faster, and jump, while they run."""

    def __init__(self, path: Path, at: datetime = TUESDAY) -> None:
        self.path = path
        self.speed = 1.0
        self._wall = (time.time(), at.timestamp())
        self._steady = (time.monotonic(), 1000.0)
        self._history = [(0.0, *self._wall, self.speed)]
        self._write()

    def now(self) -> datetime:
        """What the programs see now."""
        return self.at(time.time())

    def at(self, real: float) -> datetime:
        """What the programs saw at a moment of the real time."""
        _, wall_real, shown, speed = next(entry for entry in reversed(self._history) if entry[0] <= real)
        return datetime.fromtimestamp(shown + (real - wall_real) * speed)

    def set(self, at: datetime) -> None:
        """Set the wall clock; the steady one goes on, as when a person or a time server sets it."""
        self._change(at.timestamp(), self._steady_now(), self.speed)

    def jump(self, seconds: float, steady_too: bool = False) -> None:
        """The wall clock jumps. With steady_too both do, as after a sleep on Windows."""
        steady = self._steady_now() + (seconds if steady_too else 0)
        self._change(self.now().timestamp() + seconds, steady, self.speed)

    def run_faster(self, speed: float) -> None:
        """From now on a real second is `speed` of theirs: deadlines in whole minutes become testable."""
        self._change(self.now().timestamp(), self._steady_now(), speed)

    def _steady_now(self) -> float:
        real, shown = self._steady
        return shown + (time.monotonic() - real) * self.speed

    def _change(self, wall: float, steady: float, speed: float) -> None:
        self._wall, self._steady, self.speed = (time.time(), wall), (time.monotonic(), steady), speed
        self._history.append((self._wall[0], *self._wall, speed))
        self._write()

    def _write(self) -> None:
        temp = self.path.with_name(self.path.name + ".new")
        temp.write_text(json.dumps({"wall": self._wall, "steady": self._steady, "speed": self.speed}), encoding="ascii")
        os.replace(temp, self.path)


@dataclass
class Program:
    """One run of the program, a real process."""

    pid: int
    output_file: Path
    ended: threading.Event = field(default_factory=threading.Event)
    code: int | None = None  # the exit code, negative for a signal

    @property
    def output(self) -> str:
        """What it said on stdout and stderr so far."""
        return self.output_file.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    def wait(self, timeout_s: float = 60) -> Self:
        """Until it has ended by itself; AssertionError with what it said if it does not."""
        assert self.ended.wait(timeout_s), f"still running after {timeout_s:g} s:\n{self.output}"
        return self

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing if it has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> Self:
        """kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        return self.wait(10)

    def wait_until_stopped(self, timeout_s: float = 30) -> bool:
        """Until a seam has stopped it (SIGSTOP); False if it ended instead."""
        end = time.monotonic() + timeout_s
        while self.running and time.monotonic() < end:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(self.pid).status() == psutil.STATUS_STOPPED:
                    return True
            time.sleep(0.005)
        return False


class Programs:
    """The fork server's handle; use as a context manager, one for the whole test session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        self._starting: list[Program] = []
        self._running: dict[int, Program] = {}
        self._guard = threading.Lock()
        self._answered = threading.Condition(self._guard)

    def __enter__(self) -> Self:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "SFTP_"))}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            bufsize=1,
            env=environ,
        )
        assert self._process.stdout is not None
        assert "ready" in self._process.stdout.readline(), "the fork server did not start"
        threading.Thread(target=self._read, name="fork-server", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def start(
        self,
        argv: Sequence[str],
        cwd: Path,
        clock: Hands,
        environ: Mapping[str, str] | None = None,
        constants: Mapping[str, Any] | None = None,
        seams: Mapping[str, Any] | None = None,
    ) -> Program:
        """Start the program. constants and seams (fork_server.SEAMS) are set in its process alone."""
        program = Program(0, self.folder / f"{next(self._numbers)}.txt")
        program.output_file.touch()
        order = {
            "argv": list(argv),
            "environ": dict(environ or {}) | {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
            "cwd": str(cwd),
            "output": str(program.output_file),
            "clock": str(clock.path),
            "constants": dict(constants or {}),
            "seams": dict(seams or {}),
        }
        with self._answered:
            assert self._process.stdin is not None
            self._starting.append(program)
            self._process.stdin.write(json.dumps(order) + "\n")
            assert self._answered.wait_for(lambda: program.pid, 30), "the fork server does not answer"
        return program

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self._answered:
                if "started" in said:
                    program = self._starting.pop(0)
                    program.pid = said["started"]
                    self._running[program.pid] = program
                elif program_ended := self._running.pop(said["ended"], None):
                    program_ended.code = said["code"]
                    program_ended.ended.set()
                self._answered.notify_all()
