"""A real Windows CPython under Wine, made by ../shared/windows/setup.sh; and a Stage whose program runs on it.

Making it takes a minute or two, so it is kept between runs in the user's cache folder, under a name that changes with
the requirements and the script. Nothing of it is in the project.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from local_servers import LocalPostgres, SftpServer
from stage import PROGRAM, PROJECT, Stage, clean_environ
from windows import needs, wine

SETUP = PROJECT.parent / "shared" / "windows" / "setup.sh"
REQUIREMENTS = PROJECT / "requirements.txt"
INSIDE = Path(__file__).with_name("inside.py")
ZONE = "BRT3"  # three hours behind UTC, in the one notation that Wine and Windows' C library both read


def windows_path(path: Path | str) -> str:
    """A path of this machine as a Windows program sees it: Z:\\tmp\\file."""
    return wine.windows_path(Path(path))


def wait_for(what: str, happened: Callable[[], object], timeout_s: float = 40) -> None:
    """Return when happened() is true; fail the test if that takes too long."""
    until = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < until, f"still waiting after {timeout_s:g} s: {what}"
        time.sleep(0.05)


class WindowsPython:
    """The interpreter, and how to start a script on it. `keeper` holds Wine up: a start takes 0.1 s instead of 3."""

    def __init__(self) -> None:
        needs.shared_file(SETUP)
        needs.programs(*wine.PROGRAMS, packages=wine.PACKAGES)
        self.folder = made_once()
        self.prefix = self.folder / "prefix"
        self.environment = {
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "ucrtbase=n,b;mscoree,mshtml=",
            "LC_ALL": "C.UTF-8",  # Wine takes names with accents from Linux only in a UTF-8 locale
            "TZ": ZONE,
            "PYTHONDONTWRITEBYTECODE": "",  # the packages' own; or every start compiles pandas, for ten seconds
        }
        environment = clean_environ() | self.environment
        self.keeper = subprocess.Popen(
            ["wine", "cmd"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def command(self, script: Path, *arguments: str) -> list[str]:
        """The command line that runs a script, given by its path on this machine."""
        return ["wine", str(self.folder / "python" / "python.exe"), windows_path(script), *arguments]

    def start(self, script: Path, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a script; standard output and error are pipes of bytes."""
        return subprocess.Popen(
            self.command(script, *arguments),
            env=clean_environ() | self.environment | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def stop(self) -> None:
        """Let Wine go; it ends by itself after its last program."""
        self.keeper.communicate(b"exit\r\n", timeout=60)


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
