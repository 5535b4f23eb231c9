"""Runs on the Windows Python, as the tests' hand inside: `inside.py WORD …`.

probe PROJECT CONFIG FOLDER   calls the program's own functions and prints what came of each as one JSON object
hold HELD RELEASE SHARE PATH …  opens each path as another program would and makes the file HELD; until RELEASE appears
log PROJECT NAME LOG GO       when the file GO appears, writes a thousand lines to a log as fast as it can
press KEY GO COMMAND…         starts a command on a console of its own; when the file GO appears, presses a key there
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True  # of the project's files
kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
kernel32.CreateFileW.restype = ctypes.c_void_p
DWORD = ctypes.c_uint
kernel32.CreateFileW.argtypes = [ctypes.c_wchar_p, DWORD, DWORD, ctypes.c_void_p, DWORD, DWORD, ctypes.c_void_p]
kernel32.CloseHandle.argtypes = [ctypes.c_void_p]

# What other programs allow while they hold a file open: FILE_SHARE_READ 1, FILE_SHARE_WRITE 2, FILE_SHARE_DELETE 4.
SHARES = {"nothing": 0, "reading": 1, "reading and writing": 3}


FOR_GOOD = float("inf")
PATIENCE_S = 170  # for what no promise of the program is about; the tests outside wait a little longer


def wait_for(path: str, timeout_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + timeout_s
    while not os.path.exists(path):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


@contextlib.contextmanager
def held(path: object, share: str) -> Iterator[None]:
    """An open handle on a file."""
    handle = kernel32.CreateFileW(str(path), 0x80000000, SHARES[share], None, 3, 0x80, None)
    assert handle != ctypes.c_void_p(-1).value, f"{path}: WinError {ctypes.get_last_error()}"
    try:
        yield
    finally:
        kernel32.CloseHandle(handle)


def hold(sign: str, release: str, *shares_and_paths: str) -> None:
    with contextlib.ExitStack() as stack:
        for share, path in zip(shares_and_paths[::2], shares_and_paths[1::2], strict=True):
            stack.enter_context(held(path, share))
        Path(sign).touch()
        wait_for(release)


def press(key: str, go: str, *command: str) -> None:
    """Ctrl+C goes the whole way, through the console. The other events Windows sends by a thread at CtrlRoutine, and so
    does this: Wine's console sends none to a group, and has no window to close."""
    kernel32.FreeConsole()
    assert kernel32.AllocConsole(), f"WinError {ctypes.get_last_error()}"
    printed = Path(go + ".printed")  # no pipe: Wine's explorer.exe may inherit it, and go on
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after the start: to ignore it is inherited
    try:
        wait_for(go)
        start_s = time.monotonic()
        if key == "ctrl_c":
            assert kernel32.GenerateConsoleCtrlEvent(0, 0), f"WinError {ctypes.get_last_error()}"
        else:
            start_ctrl_routine(process.pid, {"ctrl_break": 1, "close": 2}[key])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        seconds = time.monotonic() - start_s
    finally:
        process.kill()  # where it has not ended, the test will say so, and nothing is left
    said = printed.read_text("cp1252", "replace")
    print(json.dumps({"code": process.wait(), "seconds": seconds, "said": said}))


def write_log(project: str, name: str, path: str, go: str) -> None:
    sys.path.insert(0, project)
    import mailing_pipeline

    handler = mailing_pipeline.DayLog(path, encoding="utf-8")
    Path(f"{go}.{name}").touch()
    wait_for(go)
    for number in range(1000):
        handler.handle(logging.makeLogRecord({"msg": f"{name} {number:04} {'x' * 100}"}))


def start_ctrl_routine(process_id: int, event: int) -> None:
    kernelbase = ctypes.WinDLL("kernelbase")
    kernel32.OpenProcess.restype = kernel32.GetProcAddress.restype = kernel32.CreateRemoteThread.restype = (
        ctypes.c_void_p
    )
    kernel32.GetProcAddress.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    kernel32.CreateRemoteThread.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_uint, ctypes.c_void_p]
    handle = kernel32.OpenProcess(0x1F0FFF, False, process_id)
    routine = kernel32.GetProcAddress(kernelbase._handle, b"CtrlRoutine")
    assert handle and routine
    assert kernel32.CreateRemoteThread(handle, None, None, routine, event, 0, None)


# ---- The program's own functions -------------------------------------------------------------------------------------


class Probes:
    """Each method's name is a key of the result, and what it returns or raises the value."""

    def __init__(self, project: str, config: str, folder: str) -> None:
        sys.path.insert(0, project)
        import mailing_pipeline

        self.program, self.config, self.folder = mailing_pipeline, config, Path(folder)
        self.settings = mailing_pipeline.load_settings(Path(config), {}, sends=True, knows_host=True)
        self.clock = mailing_pipeline.Clock()

    def all(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        work = [name for name in vars(Probes) if not name.startswith("_") and name != "all"]
        threads = [threading.Thread(target=self._keep, args=(found, name), daemon=True) for name in work]
        for thread in threads:  # at once, since most of them wait
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        return found

    def _keep(self, found: dict[str, Any], name: str) -> None:
        found[name] = self._said(getattr(self, name))

    def _said(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            return {"raised": type(error).__name__, "message": str(error)}

    def _stop(self) -> Any:
        """The stop of a run that nothing ends."""
        return self.program.Stop(self.clock, 50)

    def _seconds(self, action: Callable[[], Any]) -> dict[str, Any]:
        start_s = time.monotonic()
        return {"result": self._said(action), "seconds": time.monotonic() - start_s}

    def platform(self) -> list[str]:
        return [os.name, ".".join(map(str, sys.version_info[:2])), os.sep]

    def file_names(self) -> dict[str, Any]:
        patterns = [
            "mailing_{campaign}_%d-%m_%H-%M.csv",
            "{campaign}_%#d_%e.csv",
            "ação_ção_{campaign}.csv",
            "{campaign}_%-d.csv",
            "{campaign}_%P.csv",
            "{campaign}_%s.csv",
            "{campaign}_%k.csv",
            "{campaign}_%5d.csv",
            "{campaign}_%",
            "{campaign}_%X.csv",
            "{campaign}_%H%:z.csv",
            "C:{campaign}.csv",
            "{campaign}.csv:hidden",
            "{campaign}.csv.",
            "{campaign}.csv ",
            "pasta\\{campaign}.csv",
            "con.{campaign}.csv",
            "nul.%H.csv",
            "COM1 .{campaign}",
            "mailing_con_{campaign}.csv",
            "{campaign}" + "x" * 250,
        ]
        program, now = self.program, self.clock.now()

        def rendered(pattern: str) -> str:
            text: str = program.render_file_name(program.file_name_pattern(pattern), "alfa", now)
            return text

        return {pattern: self._said(lambda pattern=pattern: rendered(pattern)) for pattern in patterns}

    def reserved_campaigns(self) -> dict[str, Any]:
        """Campaigns called as devices are, with a prefix in the file name and without."""

        def load(name: str, pattern: str) -> str:
            folder = self.folder / f"queries {name} {len(pattern)}"
            folder.mkdir()
            (folder / f"10_{name}.sql").write_text(f"-- file_name: {pattern}\nSELECT 1 AS telefone")
            files = self.program.load_campaigns(folder, self.settings)
            if files.broken:
                raise self.program.SettingsFault(*files.broken[0].told)
            loaded: str = files.campaigns[0].name
            return loaded

        names = ("con", "nul", "aux", "prn", "com1", "lpt9")
        patterns = ("mailing_{campaign}.csv", "{campaign}.csv")
        return {
            pattern: {name: self._said(lambda n=name, p=pattern: load(n, p)) for name in names} for pattern in patterns
        }

    def same_name_in_capitals(self) -> list[str]:
        """The local files of two campaigns whose names differ in capitals alone."""
        folder = self.folder / "queries capitals"
        folder.mkdir()
        for name, pattern in (("alfa", "Lista_%d-%m_%H-%M.csv"), ("beta", "lista_%d-%m_%H-%M.csv")):
            (folder / f"10_{name}.sql").write_text(f"-- file_name: {pattern}\nSELECT 1 AS telefone")
        files = self.program.load_campaigns(folder, self.settings)
        rehearsal = self.program.Options(dry_run=True)
        ledger = self.program.Ledger(self.program.IN_MEMORY, self.clock)
        run = self.program.Run(self.program.Line(self.settings, rehearsal, self._stop(), ledger), files)
        run.plan()
        for campaign in files.campaigns:
            run._begin(campaign)
        return [mailing.file.lower() for mailing in run.mailings.values()]

    def a_code_that_windows_lacks(self) -> dict[str, Any]:
        """%-d in config.env, and in one of two query files."""
        config = self.folder / "code.env"
        config.write_text("FILE_NAME={campaign}_%-d.csv\n")
        folder = self.folder / "queries code"
        folder.mkdir()
        (folder / "10_alfa.sql").write_text("-- file_name: {campaign}_%-d.csv\nSELECT 1 AS telefone")
        (folder / "20_beta.sql").write_text("SELECT 1 AS telefone")

        def loaded() -> list[list[str]]:
            files = self.program.load_campaigns(folder, self.settings)
            return [[item.name for item in items] for items in (files.campaigns, files.broken)]

        setting = self._said(lambda: self.program.load_settings(config, {}, sends=False, knows_host=False))
        return {"setting": setting, "campaigns and broken": self._said(loaded)}

    def query_files(self) -> list[str]:
        folder = self.folder / "queries order"
        folder.mkdir()
        for name in ("20_beta.sql", "10_alfa.sql", "B_gama.txt", "30_gama.sql.bak"):
            (folder / name).write_bytes(b"\xef\xbb\xbf-- min_rows: 1\r\nSELECT 1 AS telefone\r\n")
        return [campaign.name for campaign in self.program.load_campaigns(folder, self.settings).campaigns]

    def mangled_paths(self) -> dict[str, Any]:
        r"""What quotes of config.env make of \\servidor\pasta and C:\nova\tabela; and what a plain path stays."""
        lines = {
            "unc in single quotes": r"OUTPUT_DIR='\\servidor\pasta'",
            "double quotes": r'OUTPUT_DIR="C:\nova\tabela"',
            "unc without quotes": r"OUTPUT_DIR=\\servidor\pasta",
            "unc with slashes": r"OUTPUT_DIR='//servidor/pasta'",
            "single quotes": r"OUTPUT_DIR='C:\nova\tabela'",
            "without quotes": r"OUTPUT_DIR=C:\nova pasta\tabela",
        }

        def output(line: str) -> str:
            path = self.folder / f"mangled {abs(hash(line))}.env"
            path.write_text(line + "\n")
            return str(self.program.load_settings(path, {}, sends=False, knows_host=False).output)

        return {what: self._said(lambda line=line: output(line)) for what, line in lines.items()}

    def winsock_errors(self) -> dict[str, list[Any]]:
        r"""Tries and whether the connection is lost, for errors as a Portuguese Windows words them."""
        found = {}
        doing = self.program.text("writing {path}", path="alfa")
        for number in (10038, 10050, 10051, 10052, 10053, 10054, 10060, 10061, 10064, 10065):
            error = self.program.sftp_error(OSError(0, "rede inacessível", None, number), doing)
            found[str(number)] = [error.tries, isinstance(error, self.program.ConnectionLost), str(error.hint)]
        return found

    def refused_connections(self) -> dict[str, Any]:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            values = {"sftp_host": "127.0.0.1", "sftp_port": port}
            settings = self.program.dataclass_replace(
                self.settings, libpq={**self.settings.libpq, "port": str(port)}, **values
            )
            servers = {
                "database": self.program.Database(settings, self._stop()),
                "sftp": self.program.DropFolders(settings, self._stop()),
            }
            found = {}
            for what, server in servers.items():
                try:
                    server.open()
                except self.program.PipelineError as error:
                    found[what] = [int(error.exit_code), error.tries, error.wide, str(error)]
            return found

    def service_file(self) -> str:
        """What libpq says of a service file that is not there: PGSERVICEFILE reaches it by the environment alone."""
        libpq = {"service": "mala"}
        settings = self.program.dataclass_replace(
            self.settings, libpq=libpq, libpq_environment={"PGSERVICEFILE": r"Z:\sem\nada.conf"}
        )
        found: str = self._said(self.program.Database(settings, self._stop()).open)["message"]
        return found

    def waits(self) -> dict[str, Any]:
        """How a wait for a query that is silent for a minute ends: by the operator, at the deadline, at its limit."""
        found: dict[str, Any] = {}

        def wait(asks: str, ends: str) -> None:
            found[f"{asks} {ends}"] = self._waited(asks, ends)

        cases = [(asks, ends) for asks in ("execute", "copy") for ends in ("stop", "deadline", "limit")]
        threads = [threading.Thread(target=wait, args=case) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        return found

    def _waited(self, asks: str, ends: str) -> dict[str, Any]:
        stop, start_s = self._stop(), 0.0
        sql = "SELECT pg_sleep(60)::text AS telefone /* probe */"
        campaign = self.program.parse_campaign("10_alfa.sql", sql, self.settings)
        database = self.program.Database(self.settings, stop)
        try:
            with database.session(campaign) as session:
                start_s = time.monotonic()
                self._end_soon(ends, stop, session)
                if asks == "execute":
                    session.run(sql)
                with session.copy(campaign.select) as blocks:
                    list(blocks)
        except self.program.PipelineError as error:  # the query was cancelled on the way, or the server would go on
            return {"raised": type(error).__name__, "message": str(error), "seconds": time.monotonic() - start_s}
        finally:
            database.close()
        return {"raised": "nothing"}

    def _end_soon(self, ends: str, stop: Any, session: Any) -> None:
        """A second from now the wait that is about to begin must be over."""
        if ends == "stop":
            threading.Timer(1, stop.end, [self.program.BY_OPERATOR]).start()
        elif ends == "deadline":
            stop.seconds -= stop.left_s() - 1
        else:
            session.timeout_s = 1 - self.program.GRACE_S

    def a_silent_sftp_server(self) -> dict[str, Any]:
        """A login to a server that says nothing, broken off from another thread, as the watchdog does."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            settings = self.program.dataclass_replace(self.settings, sftp_host="127.0.0.1", sftp_port=port)
            drops = self.program.DropFolders(settings, self._stop())
            found: dict[str, Any] = {}
            login = threading.Thread(target=lambda: found.update(self._seconds(drops.open)))
            login.start()
            with silent.accept()[0]:
                time.sleep(0.5)
                start_s = time.monotonic()
                drops.shut()
                login.join()
            return found | {"seconds": time.monotonic() - start_s}

    def replace(self) -> dict[str, Any]:
        """os.replace while another program holds one of the two files."""
        found: dict[str, Any] = {}

        def one(which: str, share: str, seconds: float) -> None:
            source, target = (self.folder / f"{which} {seconds:g}.{end}" for end in ("part", "csv"))
            for path in (source, target):
                path.write_text(path.suffix)
            with contextlib.ExitStack() as stack:
                stack.enter_context(held(target if which == "target" else source, share))
                if seconds < FOR_GOOD:
                    threading.Timer(seconds, stack.pop_all().close).start()
                result = self._seconds(lambda: self.program.patient_replace(source, target))
            found[f"{which} {seconds:g}"] = result | {"target": target.read_text() if not result["result"] else ""}

        cases = [("target", "reading", 1.0), ("source", "reading", 1.0), ("target", "nothing", FOR_GOOD)]
        threads = [threading.Thread(target=one, args=case) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def a_growing_file(self) -> dict[str, Any]:
        """What stands in the folder while a mailing is written, when it is kept, and when it is given up."""
        folder = self.folder / "growing"
        folder.mkdir()

        def names() -> list[str]:
            return sorted(path.name for path in folder.iterdir())

        with (
            self.program.whole_file(folder / "kept.csv") as kept,
            contextlib.suppress(ZeroDivisionError),
            self.program.whole_file(folder / "given up.csv") as given_up,
        ):
            for file in (kept, given_up):
                file.write("ação".encode())
            growing = names()
            raise ZeroDivisionError
        return {"growing": growing, "left": names(), "kept": (folder / "kept.csv").read_text("utf-8")}

    def long_path(self) -> dict[str, Any]:
        folder = self.folder / ("a" * 100) / ("ç" * 60) / ("c" * 100)
        folder.mkdir(parents=True)

        def file() -> str:
            with self.program.whole_file(folder / "mailing.csv") as file:
                file.write(b"1")
            return (folder / "mailing.csv").read_text()

        def ledger() -> list[int]:
            with contextlib.closing(self.program.Ledger(folder / "ledger" / "l.sqlite3", self.clock)) as ledger:
                state = self.program.State.CLAIMED
                ledger.claim(self.program.Mailing(campaign="alfa", slot="2026-12-22 10:00", state=state))
                return [len(ledger.mailings("campaign = ?", "alfa"))]

        def lock() -> str:
            with self.program.only_run(folder / "run.lock", "me", self.clock, 0):
                try:
                    with self.program.only_run(folder / "run.lock", "you", self.clock, 0):
                        return "twice"
                except self.program.Busy as error:
                    return str(error)

        return {
            "length": len(str(folder)),
            "file": self._said(file),
            "ledger": self._said(ledger),
            "lock": self._said(lock),
        }

    def times(self) -> dict[str, Any]:
        clock = self.program.Clock()
        before_s = clock.steady_s()
        waited = self._seconds(lambda: clock.wait(threading.Event(), 0.7))
        return {
            "now": clock.now().isoformat(),
            "log": self.program.LineFormatter("en").format(logging.makeLogRecord({"msg": "said", "levelname": "INFO"})),
            "waited": waited,
            "steady": clock.steady_s() - before_s,
        }

    def folders_of_this_pc(self) -> dict[str, bool]:
        """Which are open to others, and which are on the network."""
        found = {name: self.program.is_open_to_others(self.folder / name) for name in ("own", "shared")}
        return found | {path: self.program.is_on_network(Path(path)) for path in ("C:\\", r"\\servidor\mala")}

    def remote_paths(self) -> list[str]:
        base = self.program.remote_path("/entrada")
        return [
            str(base / "alfa"),
            str(base / "/outra/pasta"),
            str(self._said(lambda: self.program.remote_path("a\\b"))),
        ]


def probe(project: str, config: str, folder: str) -> None:
    probes = Probes(project, config, folder)
    found = probes.all()
    # Alone, since others would print meanwhile: the program with no standard streams, as under pythonw.
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = None
    try:
        codes = [
            probes._said(lambda options=options: int(probes.program.main(["--config", config, *options], {})))
            for options in (["--status"], ["--status", "--json"], ["--only", "nobody"], ["--dry-run", "--scheduled"])
        ]
    finally:
        sys.stdout, sys.stderr = streams
    print(json.dumps(found | {"without_streams": codes}))


if __name__ == "__main__":
    {"probe": probe, "hold": hold, "log": write_log, "press": press}[sys.argv[1]](*sys.argv[2:])
