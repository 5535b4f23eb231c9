"""A real Windows CPython under Wine, made by ../shared/windows/setup.sh; and a Stage whose program runs on it.

Making it takes a minute or two, so it is kept between runs in the user's cache folder, under a name that changes with
the requirements and the script. Nothing of it is in the project.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import AnyStr

import pytest
from local_servers import LocalPostgres, SftpServer
from stage import PROGRAM, PROJECT, Result, Stage, clean_environ
from windows import needs, wine

SETUP = PROJECT.parent / "shared" / "windows" / "setup.sh"
REQUIREMENTS = PROJECT / "requirements.txt"
INSIDE = Path(__file__).with_name("inside.py")


def windows_path(path: Path | str) -> str:
    """A path of this machine as a Windows program sees it: Z:\\tmp\\file."""
    return wine.windows_path(Path(path))


# How long anything may take that no promise of the program is about: some starts of Python at once, on a busy machine.
PATIENCE_S = 180


def wait_for(what: str, happened: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Return when happened() is true; fail the test if that takes too long."""
    until = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > until:
            WindowsPython.skip_if_wine_hangs()
            pytest.fail(f"still waiting after {timeout_s:g} s: {what}")
        time.sleep(0.05)


def zone_early_in_its_hour() -> tuple[str, timedelta]:
    """A time zone in which at least half an hour of the slot is left, so that no test meets the next one; its offset.

    In the one notation that Wine and Windows' C library both read. Three hours behind UTC, or three and a half.
    """
    early = datetime.now(UTC).minute < 30
    return ("BRT3", timedelta(hours=-3)) if early else ("BRT3:30", timedelta(hours=-3, minutes=-30))


class WindowsPython:
    """The interpreter, and how to start a script on it. `keeper` holds Wine up: a start takes 0.1 s instead of 3."""

    up: WindowsPython | None = None

    def __init__(self) -> None:
        needs.shared_file(SETUP)
        needs.programs(*wine.PROGRAMS, packages=wine.PACKAGES)
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
        self.keep_wine_up()

    def keep_wine_up(self) -> None:
        environment = clean_environ() | self.environment
        self.keeper = subprocess.Popen(
            ["wine", "cmd"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        WindowsPython.up = self

    @classmethod
    def skip_if_wine_hangs(cls) -> None:
        """Skip what waits for Wine in vain, and start Wine anew, if it answers nobody any more.

        Wine 8's server was seen to hang once in some hundred starts, with every thread of every program waiting for its
        answer: nothing that the program under test does or leaves undone. Where it still starts a new program, this
        returns, and the test fails.
        """
        assert cls.up is not None
        environment = clean_environ() | cls.up.environment
        try:
            subprocess.run(["wine", "cmd", "/c", "exit"], env=environment, stdin=subprocess.DEVNULL, timeout=60)
        except subprocess.TimeoutExpired:
            cls.up.kill_wine()
            cls.up.keep_wine_up()
            pytest.skip("Wine's own server hung: it does not even start an empty cmd within a minute")

    def kill_wine(self) -> None:
        """End this prefix's Windows, also one that answers nobody."""
        server = shutil.which("wineserver") or "/usr/lib/wine/wineserver"
        subprocess.run([server, "-k", "9"], env=clean_environ() | self.environment, timeout=60)
        self.keeper.kill()
        self.keeper.communicate()

    def command(self, script: Path, *arguments: str) -> list[str]:
        """The command line that runs a script, given by its path on this machine."""
        return ["wine", str(self.folder / "python" / "python.exe"), windows_path(script), *arguments]

    def start(self, script: Path, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a script; standard output and error are pipes of bytes."""
        process = subprocess.Popen(
            self.command(script, *arguments),
            env=clean_environ() | self.environment | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def stop(self) -> None:
        """Let Wine go; it ends by itself after its last program, and no test that failed has left one."""
        for process in self._started:
            process.kill()
        try:
            self.keeper.communicate(b"exit\r\n", timeout=60)
        except subprocess.TimeoutExpired:
            self.kill_wine()


def printed(process: subprocess.Popen[AnyStr], timeout_s: float = PATIENCE_S) -> tuple[AnyStr, AnyStr]:
    """Standard output and error of a process, when it has ended.

    Some starts never come back: seen with all their threads waiting for an answer of Wine's server, in the middle of
    an import. That says nothing of the program, whose own hangs are looked for on Linux: it is a skip.
    """
    try:
        return process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        WindowsPython.skip_if_wine_hangs()
        process.kill()
        pytest.skip(f"Wine: a process did not come back within {timeout_s:g} s")


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

    def end(self, process: subprocess.Popen[str], timeout_s: float = PATIENCE_S) -> Result:
        stdout, stderr = printed(process, timeout_s)
        return Result(process.returncode, stdout, stderr, self.log())


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
