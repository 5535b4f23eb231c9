"""A real Windows CPython under Wine, made by ../shared/windows/setup.sh; and a Stage whose program runs on it.

Making it takes a minute or two, so it is kept between runs in the user's cache folder, under a name that changes with
the requirements and the script. Nothing of it is in the project.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import AnyStr, ParamSpec, TypeVar

from local_servers import LocalPostgres, SftpServer
from stage import PROGRAM, PROJECT, Result, Stage, clean_environ
from windows import wine

SETUP = PROJECT.parent / "shared" / "windows" / "setup.sh"
REQUIREMENTS = PROJECT / "requirements.txt"
INSIDE = Path(__file__).with_name("inside.py")


def windows_path(path: Path | str) -> str:
    """A path of this machine as a Windows program sees it: Z:\\tmp\\file."""
    return wine.windows_path(Path(path))


# How long anything may take that no promise of the program is about: some starts of Python at once, on a busy machine.
PATIENCE_S = 180

P, T = ParamSpec("P"), TypeVar("T")


def zone_early_in_its_hour() -> tuple[str, timedelta]:
    """A time zone in which at least half an hour of the slot is left, so that no test meets the next one; its offset.

    In the one notation that Wine and Windows' C library both read. Three hours behind UTC, or three and a half.
    """
    early = datetime.now(UTC).minute < 30
    return ("BRT3", timedelta(hours=-3)) if early else ("BRT3:30", timedelta(hours=-3, minutes=-30))


class WindowsPython:
    """The interpreter, how to start a script on it and how to wait for one.

    Wine's server dies once in some two hundred starts of the program (see wine.py); then what was going on is played
    again (see `replayed`).
    """

    def __init__(self) -> None:
        self.folder = made_once()
        self.prefix = self.folder / "prefix"
        zone, self.utc_offset = zone_early_in_its_hour()
        self.environment = {
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "ucrtbase=n,b;mscoree,mshtml=",
            "LC_ALL": "C.UTF-8",  # Wine takes names with accents from Linux only in a UTF-8 locale
            "TZ": zone,
            "PYTHONDONTWRITEBYTECODE": "",  # the packages' own; or every start compiles pandas, for ten seconds
        }
        self._started: list[subprocess.Popen[bytes]] = []
        self.server = wine.Server(clean_environ() | self.environment, self.folder / "server.txt")
        self._in_use = (self.folder.parent / "in use").open("w")
        fcntl.flock(self._in_use, fcntl.LOCK_EX)  # by one run of the tests at a time
        self.begin()

    def begin(self) -> None:
        """Start Wine anew, whatever is left of it."""
        self.server.begin()

    def end_all(self) -> None:
        """End Wine's server and every program of this prefix, also one that has outlived its server."""
        self.server.end_all()

    def check_server(self) -> None:
        """Raise WineFailed, with its last words, if Wine's server has ended."""
        self.server.check()

    def wait_for(self, what: str, happened: Callable[[], object]) -> None:
        """Return when happened() is true; fail the test if that takes too long."""
        until = time.monotonic() + PATIENCE_S
        while not happened():
            self.check_server()
            assert time.monotonic() < until, f"still waiting after {PATIENCE_S} s: {what}"
            time.sleep(0.05)

    def printed(self, process: subprocess.Popen[AnyStr]) -> tuple[AnyStr, AnyStr]:
        """Standard output and error of a program, when it has ended.

        Not when its pipes have: Wine's explorer.exe, which any program may be the one to start, goes on and holds them.
        """
        until = time.monotonic() + PATIENCE_S
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=0.2)
            self.check_server()
            assert time.monotonic() < until, f"still waiting after {PATIENCE_S} s: {process.args}"
        self.check_server()  # the program may have ended for that
        try:
            return process.communicate(timeout=2)
        except subprocess.TimeoutExpired as held:
            said = [part or b"" for part in (held.stdout, held.stderr)]
            text = process.text_mode  # type: ignore[attr-defined]
            return tuple(part.decode(errors="replace") if text else part for part in said)  # type: ignore[return-value]

    def said(self, process: subprocess.Popen[bytes]) -> bytes:
        """What a script of the tests printed; it must end well."""
        stdout, stderr = self.printed(process)
        assert process.returncode == 0, (stdout + stderr).decode(errors="replace")
        return stdout

    def command(self, script: Path, *arguments: str) -> list[str]:
        """The command line that runs a script, given by its path on this machine."""
        return ["wine", str(self.folder / "python" / "python.exe"), windows_path(script), *arguments]

    def start(self, script: Path, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a script; standard output and error are pipes of bytes."""
        return self._start(self.command(script, *arguments), environ)

    def taskkill(self, number: str) -> None:
        """End a Windows process by its number, as the Task Manager does."""
        self.printed(self._start(["wine", "taskkill", "/f", "/pid", number], {}))

    def typed(self, folder: Path, line: str, **environ: str) -> tuple[int, str]:
        """A line as typed in a command window in that folder: its exit code, and what a person reads."""
        process = self._start(["wine", "cmd", "/d", "/c", line], environ, folder)
        stdout, stderr = self.printed(process)
        return process.returncode, (stdout + stderr).decode("utf-8", "replace").replace("\r\n", "\n")

    def _start(
        self, command: list[str], environ: dict[str, str], folder: Path | None = None
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environ() | self.environment | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def stop(self) -> None:
        """End Wine, and what a test that failed has left."""
        self.server.stop()
        for process in self._started:
            process.communicate()
        self._in_use.close()


def replayed(story: Callable[P, T]) -> Callable[P, T]:
    """A fixture or a test that is played again from its beginning when Wine's own server died in it.

    Whatever else goes wrong fails at once. The fixture `python` must be among its arguments.
    """

    @functools.wraps(story)
    def play(*arguments: P.args, **fixtures: P.kwargs) -> T:
        python = fixtures["python"]
        assert isinstance(python, WindowsPython)
        for last in (False,) * (wine.PLAYS - 1) + (True,):
            try:
                python.check_server()
                return story(*arguments, **fixtures)
            except wine.WineFailed as failed:
                if last:
                    raise
                warnings.warn(f"played again, since {failed}", stacklevel=1)
                python.begin()
        raise AssertionError("unreachable")

    return play


class WindowsStage(Stage):
    """A stage whose program runs on the Windows Python."""

    def __init__(self, folder: Path, database: LocalPostgres, sftp: SftpServer, python: WindowsPython) -> None:
        super().__init__(folder, database, sftp)
        self.python = python
        self.settings(SFTP_KEY_FILE=windows_path(self.values["SFTP_KEY_FILE"])) if sftp.password is None else None

    def command(self, *options: str) -> list[str]:
        return self.python.command(PROGRAM, "--config", windows_path(self.config), *options)

    def start(self, *options: str, **environ: str) -> subprocess.Popen[str]:
        return super().start(*options, **(self.python.environment | environ))

    def end(self, process: subprocess.Popen[str], timeout_s: float = PATIENCE_S) -> Result:  # noqa: ARG002
        stdout, stderr = self.python.printed(process)
        return Result(process.returncode, stdout, stderr, self.log())


# What stands in the embeddable build as it is unpacked; setup.sh has written another beside its python.exe.
EMBEDDABLE_PATHS = b"python313.zip\r\n.\r\n\r\n# Uncomment to run site.main() automatically\r\n#import site\r\n"


def unpack_embeddable(folder: Path) -> None:
    """python.org's embeddable build as a person unpacks it, with the stand-ins that Wine needs."""
    shutil.copytree(made_once() / "python", folder)
    (folder / "python313._pth").write_bytes(EMBEDDABLE_PATHS)


def wheels_once(line: str) -> Path | str:
    """The folder that README's `pip download` line makes, kept between runs; or why the package index gave none."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + line.encode()).hexdigest()[:16]
    folder = made_once().parent / f"wheels-{key}"
    if not folder.exists():
        half = folder.with_suffix(".half")
        words = line.replace(" -d wheels ", f" -d {half} ").split()
        done = subprocess.run([sys.executable, *words[1:], "-q"], cwd=PROJECT, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        half.rename(folder)
    return folder


def made_once() -> Path:
    """The folder of the interpreter, made if no earlier run has made it."""
    texts = [path.read_bytes() for path in (REQUIREMENTS, *sorted(SETUP.parent.iterdir()))]
    key = hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mailing_pipeline_tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder, ready = cache / f"windows-python-{key}", cache / f"windows-python-{key}.ready"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            # pip of this Python's environment where the machine has none of its own
            path = f"{os.environ['PATH']}:{Path(sys.executable).parent}"
            environment = clean_environ() | {"PATH": path, "LC_ALL": "C.UTF-8"}
            command = ["bash", str(SETUP), str(folder), str(REQUIREMENTS)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
            assert done.returncode == 0 and "ready: nt" in done.stdout, done.stdout + done.stderr
            ready.touch()
    return folder
