"""A Windows command line on Linux: Wine's cmd.exe, and stand-ins for the programs that run_pipeline.bat calls.

The stand-ins (standin.c) decide nothing. Each call is reported to a Desk here, which records it and answers with an
exit code; so a test says in Python what python.exe, pip or schtasks.exe did, and then reads what they were asked to do.

Wine 8.0 fails by itself once in some hundreds of starts: its server dies ("server/sock.c: sock_poll_event: Assertion
`sock->obj.ops == &sock_ops' failed"), and its Windows programs end without a word or wait for it for ever; a stand-in
hears nothing; cmd cannot start a program that stands there. So the server is ours, all of this is noticed (WineFailed),
and what was going on is played again.
"""

import contextlib
import itertools
import os
import re
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent
COMPILER = "x86_64-w64-mingw32-gcc"
PROGRAMS = ("wine", COMPILER)
PACKAGES = "wine wine64 gcc-mingw-w64-x86-64"
WINESERVER = shutil.which("wineserver") or "/usr/lib/wine/wineserver"
PLAYS = 3  # of a story in which Wine failed
# What schtasks prints of a task with /fo list.
NEXT_RUN = "Next Run Time: 12/22/2026 11:00:00 AM\nStatus: Ready\nLogon Mode: Interactive only\n"
# standin.c's words, and those of Wine's cmd for a program that it could not start (the BAT hides them where one may be
# missing).
FAILINGS = ("stand-in: no answer", "Can't recognize")


def windows_path(path: Path) -> str:
    return "Z:" + str(path).replace("/", "\\")


class WineFailed(Exception):
    """Wine itself is at fault, not what runs under it: mostly its server has ended, and with it every program."""


class Server:
    """Wine's server for one prefix, and a keeper of its services: a start of a program takes 0.1 s rather than 4."""

    def __init__(self, environment: dict[str, str], said: Path) -> None:
        self.environment, self.said = environment, said
        self.prefix = environment["WINEPREFIX"]

    def begin(self) -> None:
        """Start Wine anew, whatever is left of it."""
        self.end_all()
        command = [WINESERVER, "--foreground", "--persistent"]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, env=self.environment, stdout=said, stderr=subprocess.STDOUT)
        self.keeper = subprocess.Popen(
            ["wine", "cmd"], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def end_all(self) -> None:
        """End the server and every program of this prefix and no other, also one that has outlived its server."""
        # In order, with its registry saved: it may be the one that made the prefix a second ago.
        subprocess.run([WINESERVER, "--kill"], env=self.environment, timeout=180)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("WINEPREFIX") == self.prefix:
                    process.kill()

    def check(self, patience_s: float = 0) -> None:
        """Raise WineFailed, with its last words, if the server has ended or ends in so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
            last_words = self.said.read_text(errors="replace").strip()
            raise WineFailed(f"Wine's own server has ended with {self.process.returncode}: {last_words}")

    def stop(self) -> None:
        """End Wine, and what a test that failed has left."""
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self.keeper.communicate(b"exit\r\n", timeout=20)
        self.end_all()
        for process in (self.keeper, self.process):
            process.communicate()


@dataclass(frozen=True)
class Call:
    """One call of a stand-in: `program` is python, py, schtasks or icacls."""

    program: str
    path: str
    directory: str
    environment: str  # the names of PYTHON… and PIP_…, as they are set
    arguments: tuple[str, ...]

    @property
    def is_alone(self) -> bool:
        """Whether Python was told to heed nobody's environment, nor what lies in the folder; and to speak UTF-8."""
        own = self.arguments[1:] if self.program == "py" else self.arguments
        return own[:3] == ("-I", "-X", "utf8")

    @property
    def words(self) -> tuple[str, ...]:
        """What Python is to do, after its own options and the launcher's: -3."""
        options = re.compile(r"-3(\.\d+)?|-I|-X|utf8")
        return tuple(itertools.dropwhile(options.fullmatch, self.arguments))

    @property
    def is_version_question(self) -> bool:
        return self.words[:1] == ("-c",) and "version_info" in self.words[1]

    @property
    def module(self) -> str:
        """The module of `python -m module`, or pip run from its own wheel, or nothing."""
        if self.words[:1] == ("-m",):
            return self.words[1]
        return "pip" if self.words and self.words[0].endswith(".whl\\pip") else ""

    @property
    def is_job(self) -> bool:
        return self.words[:1] == ("mailing_pipeline.py",)


@dataclass
class Desk:
    """Answers the stand-ins. `replies` are asked first; what none of them decides is done as on a healthy PC."""

    standin: Path
    folder: Path
    calls: list[Call] = field(default_factory=list)
    replies: list[Callable[[Call], tuple[int, str] | None]] = field(default_factory=list)
    kept_task: bytes = b""

    def answer(self, call: Call) -> tuple[int, str]:
        self.calls.append(call)
        for reply in self.replies:
            if (decided := reply(call)) is not None:
                return decided
        if call.program == "schtasks":
            return self.register(call)
        if call.module == "venv":
            return self.make_environment(call)
        if call.words[:1] == ("-c",) and not call.is_version_question:
            return self.run_for_real(call)
        return 0, ""

    def make_environment(self, call: Call) -> tuple[int, str]:
        """What `-m venv --clear .venv` does, with a stand-in for its python.exe."""
        environment = self.folder / call.arguments[-1]
        if "--clear" in call.arguments:
            shutil.rmtree(environment, ignore_errors=True)
        (environment / "Scripts").mkdir(parents=True, exist_ok=True)
        shutil.copy(self.standin, environment / "Scripts" / "python.exe")
        return 0, ""

    def run_for_real(self, call: Call) -> tuple[int, str]:
        """A `-c` text of the BAT is run by the Python of this test, so that it is tested and not only recorded."""
        done = subprocess.run([sys.executable, "-I", *call.words], cwd=self.folder, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def register(self, call: Call) -> tuple[int, str]:
        """As Windows does: it keeps one task of that name, and shows it in the way that it is asked for."""
        verb = call.arguments[0]
        if verb == "/create":
            given = call.arguments[call.arguments.index("/xml") + 1].replace("\\", "/")
            self.kept_task = (self.folder / given).read_bytes()
        elif not self.kept_task:
            return 1, "ERROR: The system cannot find the file specified.\n"
        elif verb == "/query":
            return 0, self.kept_task.decode("ascii") if "/xml" in call.arguments else NEXT_RUN
        elif verb == "/delete":
            self.kept_task = b""
        return 0, "SUCCESS\n"

    def jobs(self) -> list[Call]:
        return [call for call in self.calls if call.is_job]

    def modules(self) -> list[str]:
        """The modules that were run, in order: venv, pip."""
        return [call.module for call in self.calls if call.module]

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """Everything as it was before, should Wine fail in here: the folder, and what was asked."""
        count, kept_task = len(self.calls), self.kept_task
        with tempfile.TemporaryDirectory() as temp:
            before = shutil.copytree(self.folder, Path(temp) / "before")
            try:
                yield
            except WineFailed:
                shutil.rmtree(self.folder)
                shutil.copytree(before, self.folder)
                del self.calls[count:]
                self.kept_task = kept_task
                raise


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, desk: Desk) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.desk = desk
        self.faults: list[Exception] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        asked = self.rfile.read().decode("utf-8").split("\n")[:-1]
        if len(asked) < 3:  # a program that was ended
            return
        path, directory, environment, *arguments = asked
        program = path.rsplit("\\", 1)[1].removesuffix(".exe")
        try:
            code, text = self.server.desk.answer(Call(program, path, directory, environment, tuple(arguments)))
        except Exception as error:  # the test's own: told by run()
            self.server.faults.append(error)
            raise
        with contextlib.suppress(ConnectionError):
            self.wfile.write(f"{code}\n{text}".encode())


@dataclass(frozen=True)
class Ended:
    code: int
    said: str


class Wine:
    """A Wine prefix of its own in `folder`, with the compiled stand-ins. Making it takes some 15 s: once a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.standin, self.launch = folder / "standin.exe", folder / "launch.exe"
        for target in (self.standin, self.launch):
            source = HERE / f"{target.stem}.c"
            command = [COMPILER, "-municode", "-O1", "-s", "-o", target, source, "-lws2_32"]
            subprocess.run(command, check=True, timeout=60)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",  # Wine takes names with accents from Linux only in a UTF-8 locale
            "WINEPREFIX": str(folder / "prefix"),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",  # no offer to download Mono and Gecko
        }
        with (folder / "init.txt").open("w") as said:  # a file, as in run_wine
            command = ["wine", "wineboot", "--init"]
            subprocess.run(command, env=self.environment, stdout=said, stderr=said, timeout=180)
        self.server = Server(self.environment, folder / "server.txt")
        self.server.begin()

    def run_wine(self, command: list[str], timeout_s: float, stdin: bytes = b"", **more: str) -> bytes:
        """What a Windows program printed. Raises WineFailed."""
        # Into a file: Windows services that Wine starts on the way hold a pipe open long after the command has ended.
        with tempfile.TemporaryFile(dir=self.folder) as said:
            process = subprocess.Popen(
                ["wine", *command],
                env=self.environment | more,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            with contextlib.suppress(BrokenPipeError), process.stdin as keys:
                keys.write(stdin)
            self._wait_for(process, timeout_s)
            said.seek(0)
            return said.read()

    def _wait_for(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while process.poll() is None:
            self.server.check()
            if time.monotonic() > until:
                raise WineFailed(f"still waiting after {timeout_s:.0f} s: {process.args}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)

    def programs(self, name: str, *names: str) -> str:
        """A folder with stand-ins of these names, to be the first on the PATH."""
        folder = self.folder / "programs" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            for each in names:
                shutil.copy(self.standin, folder / f"{each}.exe")
        return windows_path(folder)

    def run(self, line: str, directory: str, desk: Desk, path: str, stdin: bytes = b"", **environ: str) -> Ended:
        """Run a Windows command line in a Windows directory, with `desk` behind the stand-ins in `path`.

        Where Wine fails, all is put back and it runs again; not what a test runs beside it, whose story is the first's.
        """
        if threading.current_thread() is not threading.main_thread():
            return self._run_once(line, directory, desk, path, stdin, environ)
        for last in (False,) * (PLAYS - 1) + (True,):
            try:
                with desk.playing():
                    return self._run_once(line, directory, desk, path, stdin, environ)
            except WineFailed as failed:
                self.server.begin()
                if last:
                    raise
                warnings.warn(f"played again, since {failed}", stacklevel=1)
        raise AssertionError("unreachable")

    def _run_once(
        self, line: str, directory: str, desk: Desk, path: str, stdin: bytes, environ: dict[str, str]
    ) -> Ended:
        code_file = desk.folder.parent / f"code-{threading.get_ident()}"
        code_file.unlink(missing_ok=True)
        with _Server(desk) as server:
            said = self.run_wine(
                [str(self.launch)],
                timeout_s=60,
                stdin=stdin,
                WINEPATH=path,
                STANDIN_PORT=str(server.server_address[1]),
                LAUNCH_LINE=line,
                LAUNCH_DIR=directory,
                LAUNCH_CODE=windows_path(code_file),
                **environ,
            ).decode("cp850")
        if server.faults:
            raise server.faults[0]
        if not code_file.exists() or any(words in said for words in FAILINGS):
            self.server.check(patience_s=2)
            raise WineFailed(f"a program was not started, got no answer or wrote no exit code; it said: {said!r}")
        return Ended(int(code_file.read_text()), said)

    def stop(self) -> None:
        """End this prefix's own Windows, and no other."""
        self.server.stop()
