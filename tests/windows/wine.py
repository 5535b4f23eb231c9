"""A Windows command line on Linux: Wine's cmd.exe, and stand-ins for the programs that run_pipeline.bat calls.

The stand-ins (standin.c) decide nothing. Each call is reported to a Desk here, which records it and answers with an
exit code; so a test says in Python what python.exe, pip or schtasks.exe did, and then reads what they were asked to do.
"""

import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = "x86_64-w64-mingw32-gcc"
PROGRAMS = ("wine", COMPILER)
PACKAGES = "wine wine64 gcc-mingw-w64-x86-64"


def windows_path(path: Path) -> str:
    return "Z:" + str(path).replace("/", "\\")


@dataclass(frozen=True)
class Call:
    """One call of a stand-in: `program` is python, py or schtasks."""

    program: str
    path: str
    directory: str
    utf8: str
    arguments: tuple[str, ...]

    @property
    def is_version_question(self) -> bool:
        return self.arguments[:1] in [("-c",), ("-3",)] and "version_info" in " ".join(self.arguments)

    @property
    def module(self) -> str:
        """The module of `python -m module`, or nothing. `py -3` is the launcher's own option."""
        words = self.arguments[1:] if self.program == "py" else self.arguments
        return words[1] if words[:1] == ("-m",) else ""

    @property
    def is_job(self) -> bool:
        return self.arguments[:1] == ("mailing_pipeline.py",)


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
        if call.arguments[:1] == ("-c",) and not call.is_version_question:
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
        done = subprocess.run([sys.executable, *call.arguments], cwd=self.folder, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def register(self, call: Call) -> tuple[int, str]:
        if "/xml" in call.arguments:
            given = call.arguments[call.arguments.index("/xml") + 1].replace("\\", "/")
            self.kept_task = (self.folder / given).read_bytes()
        return 0, "SUCCESS\n"

    def jobs(self) -> list[Call]:
        return [call for call in self.calls if call.is_job]

    def modules(self) -> list[str]:
        """The modules that were run, in order: venv, pip."""
        return [call.module for call in self.calls if call.module]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    desk: Desk


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        path, directory, utf8, *arguments = self.rfile.read().decode("utf-8").split("\n")[:-1]
        program = path.rsplit("\\", 1)[1].removesuffix(".exe")
        code, text = self.server.desk.answer(Call(program, path, directory, utf8, tuple(arguments)))
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
        self.run_wine(["wineboot", "--init"], timeout_s=180)
        # While one process is up, Wine's server and services stay up too, and a start takes 0.1 s rather than 4.
        self.keeper = subprocess.Popen(
            ["wine", "cmd"], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def run_wine(self, command: list[str], timeout_s: float, stdin: bytes = b"", **more: str) -> bytes:
        # Into a file: Windows services that Wine starts on the way hold a pipe open long after the command has ended.
        with tempfile.TemporaryFile(dir=self.folder) as said:
            environment = self.environment | more
            subprocess.run(
                ["wine", *command],
                env=environment,
                input=stdin,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
            )
            said.seek(0)
            return said.read()

    def programs(self, name: str, *names: str) -> str:
        """A folder with stand-ins of these names, to be the first on the PATH."""
        folder = self.folder / "programs" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            for each in names:
                shutil.copy(self.standin, folder / f"{each}.exe")
        return windows_path(folder)

    def run(self, line: str, directory: str, desk: Desk, path: str, stdin: bytes = b"") -> Ended:
        """Run a Windows command line in a Windows directory, with `desk` behind the stand-ins in `path`."""
        code_file = desk.folder.parent / f"code-{threading.get_ident()}"
        code_file.unlink(missing_ok=True)
        with _Server(("127.0.0.1", 0), _Handler) as server:
            server.desk = desk
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            said = self.run_wine(
                [str(self.launch)],
                timeout_s=60,
                stdin=stdin,
                WINEPATH=path,
                STANDIN_PORT=str(server.server_address[1]),
                LAUNCH_LINE=line,
                LAUNCH_DIR=directory,
                LAUNCH_CODE=windows_path(code_file),
            )
            server.shutdown()
        return Ended(int(code_file.read_text()), said.decode("cp850"))

    def stop(self) -> None:
        """End this prefix's own Windows, and no other."""
        self.keeper.communicate(b"exit\r\n", timeout=60)
        self.run_wine(["wineboot", "--kill"], timeout_s=60)
