"""The stage of a test: a project folder, drop folders of its own, and a few words to run the program on them.

stage.query("10_cobranca_30d", "SELECT telefone, nome FROM contatos", phones="telefone", min_rows=50)
result = stage.run()                        # as a process, as a user would
result = stage.main(["--json"], now=NOON)   # in this process, at a time of our choice
assert result.verdicts == {"cobranca_30d": "delivered"}
assert stage.files("cobranca_30d") == ["mailing_cobranca_30d_22-12_12-00.csv"]
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from local_servers import Dialer, LocalPostgres, SftpServer

import mailing_pipeline

PROJECT = Path(__file__).resolve().parents[1]
PROGRAM = PROJECT / "mailing_pipeline.py"
NOON = datetime(2026, 12, 22, 12, 0)  # a Tuesday

# A few thousand people who do not exist; enough for guards, duplicates and several blocks.
TABLES = """
CREATE TABLE contatos (id bigint PRIMARY KEY, telefone text, telefone_2 text, nome text, cpf text, valor numeric);
INSERT INTO contatos
SELECT n, '119' || 80000000 + n, CASE WHEN n % 3 = 0 THEN '1133' || 200000 + n END,
       'Pessoa Fictícia ' || n, lpad((90000000000 + n)::text, 11, '0'), n * 1.10
FROM generate_series(1, 3000) AS n;
CREATE TABLE escrita (nota text);
GRANT INSERT, SELECT ON escrita TO mailing;
GRANT CREATE ON SCHEMA public TO mailing;
"""

_numbers = itertools.count(1)


class FakeClock(mailing_pipeline.Clock):
    """Begins at a time of our choice and goes on from there; a wait takes no real time, and is noted in `pauses`.

    Args:
        start: local time; without offset the machine's own is added.
        frozen: stand still between waits and `advance`.
        naps: False: waits last as long as they should, and time runs meanwhile.
    """

    def __init__(self, start: datetime = NOON, *, frozen: bool = False, naps: bool = True) -> None:
        self._start, self._frozen, self._naps = start.astimezone(), frozen, naps
        self._born, self._slept_s = time.monotonic(), 0.0
        self.pauses: list[float] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s())

    def steady_s(self) -> float:
        return 1000.0 + self._elapsed_s()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.pauses.append(timeout_s)
        if not self._naps:
            return event.wait(timeout_s)
        self.advance(timeout_s)
        return event.is_set()

    def jitter(self) -> float:
        return 1.0

    def advance(self, seconds: float) -> None:
        """Move the time on at once, as a PC that slept."""
        self._slept_s += seconds

    def _elapsed_s(self) -> float:
        return self._slept_s + (0.0 if self._frozen else time.monotonic() - self._born)


@dataclass(frozen=True)
class Result:
    """What a run said, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str
    log: str  # what this run added to the log

    @property
    def said(self) -> str:
        """Everything that a person or a machine could read."""
        return f"{self.stdout}\n{self.stderr}\n{self.log}"

    @property
    def json(self) -> dict[str, Any]:
        """The object that --json put on stdout; nothing else may be there."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found

    @property
    def campaigns(self) -> dict[str, dict[str, Any]]:
        """The report's entry of each campaign, by its name; needs --json."""
        return {entry["campaign"]: entry for entry in self.json["campaigns"]}

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of each campaign, by its name; needs --json."""
        return {name: entry["verdict"] for name, entry in self.campaigns.items()}


class Stage:
    """A project folder with its config.env, queries and drop folders, on the servers that the whole run shares."""

    def __init__(self, folder: Path, database: LocalPostgres, sftp: SftpServer) -> None:
        self.folder = folder / "Área de trabalho"
        self.elsewhere = folder / "elsewhere"  # the working directory of every process
        self.queries, self.output, self.logs = (self.folder / name for name in ("queries", "output", "logs"))
        for place in (self.queries, self.elsewhere):
            place.mkdir(parents=True)
        self.folder.chmod(0o700)  # as the first set-up leaves it
        self.config = self.folder / "config.env"
        self.database, self.sftp = database, sftp
        self.drops: dict[str, Path] = {}
        self.values: dict[str, str] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self.use(sftp)

    # What a test prepares

    def use(self, sftp: SftpServer) -> None:
        """Deliver to this server, into drop folders of this test's own below it."""
        self.sftp = sftp
        name = f"test_{next(_numbers)}"
        self.base = sftp.make_folder(name)  # on this machine
        self.remote_base = sftp.remote_root / name  # as a client of the server sees it
        self.values = {
            **self.database.environment(),
            **sftp.environment("password" if sftp.password else "key"),
            "SFTP_BASE_DIR": str(self.remote_base),
            "RUN_DAYS": "mon-sun",
            "RUN_HOURS": "00:00-23:59",
            "RETRY_FIRST_SECONDS": "0",
            "RETRY_MAX_SECONDS": "1",
        }
        self.settings()

    def settings(self, **values: object) -> None:
        """Set settings in config.env; None removes one."""
        self.values |= {key: str(value) for key, value in values.items()}
        for key in [key for key, value in values.items() if value is None]:
            del self.values[key]
        lines = [
            f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" for key, value in self.values.items()
        ]
        self.config.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def query(self, name: str, sql: str, *, drop: bool = True, **directives: object) -> Path:
        """Write queries/<name>.sql with its directives on top, and make its drop folder; the query's path."""
        head = "".join(f"-- {key}: {value}\n" for key, value in directives.items())
        path = self.queries / f"{name}.sql"
        path.write_text(head + sql + "\n", encoding="utf-8", newline="")
        campaign = str(directives.get("campaign") or re.sub(r"^\d+_", "", name))
        if drop:
            self.make_drop(campaign, str(directives.get("folder", campaign)))
        return path

    def make_drop(self, campaign: str, folder: str | None = None) -> Path:
        """A drop folder for a campaign; folder is its path on the server."""
        remote = self.remote_base / (folder or campaign)
        self.drops[campaign] = self.sftp.make_folder(str(remote.relative_to(self.sftp.remote_root)))
        return self.drops[campaign]

    def execute(self, sql: str) -> None:
        """Run SQL as the database's administrator."""
        with self.database.connect() as connection:
            connection.execute(sql.encode())

    def dialer(self, **options: Any) -> Dialer:
        """A dialer for the drop folders of the queries so far; use it as a context manager."""
        return Dialer(self.drops.values(), **{"taken": self.base / "taken", **options})

    # What a test does

    def command(self, *options: str) -> list[str]:
        """The command line that runs the program on this stage."""
        return [sys.executable, str(PROGRAM), "--config", str(self.config), *options]

    def run(self, *options: str, **environ: str) -> Result:
        """Run the program as a process, from another working directory; environ is added to its environment."""
        process = self.start(*options, **environ)
        return self.end(process)

    def start(self, *options: str, **environ: str) -> subprocess.Popen[str]:
        """Start the program as a process and go on; it is killed at the end of the test at the latest."""
        process = subprocess.Popen(
            self.command(*options),
            cwd=self.elsewhere,
            env={**clean_environ(), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str], timeout_s: float = 60) -> Result:
        """What a process that was started came to."""
        stdout, stderr = process.communicate(timeout=timeout_s)
        return Result(process.returncode, stdout, stderr, self.log())

    def main(
        self,
        options: Sequence[str] = (),
        now: datetime | None = None,
        clock: mailing_pipeline.Clock | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Result:
        """Run the program inside this process, where `now` or another clock can be given."""
        clock = clock or (FakeClock(now, naps=False) if now else mailing_pipeline.Clock())
        logged = len(self.log())
        stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                try:
                    code = mailing_pipeline.main(["--config", str(self.config), *options], environ or {}, clock)
                except SystemExit as exit:  # argparse
                    code = int(exit.code or 0)
        finally:
            close_log()
        out, err = (stream.buffer.getvalue().decode("utf-8") for stream in (stdout, stderr))
        return Result(int(code), out, err, self.log()[logged:])

    def deliver(
        self, *options: str, now: datetime | None = None, clock: mailing_pipeline.Clock | None = None
    ) -> Result:
        """main with --json, for tests of verdicts."""
        return self.main(["--json", *options], now, clock)

    # What a test looks at

    def drop(self, campaign: str) -> Path:
        """The drop folder of a campaign, on this machine's disk."""
        return self.drops[campaign]

    def files(self, campaign: str) -> list[str]:
        """Every name in the drop folder of a campaign, temps included."""
        return sorted(path.name for path in self.drop(campaign).iterdir())

    def mailing(self, campaign: str) -> bytes:
        """The one file in the drop folder of a campaign."""
        (path,) = self.drop(campaign).iterdir()
        return path.read_bytes()

    def cells(self, campaign: str) -> list[list[str]]:
        """The rows of the one file in the drop folder of a campaign, header first, as any CSV reader sees them."""
        return list(csv.reader(io.StringIO(self.mailing(campaign).decode("utf-8-sig"), newline=""), delimiter=";"))

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's mailings, oldest first."""
        path = self.output / "ledger.sqlite3"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.row_factory = sqlite3.Row
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'mailings'").fetchone():
                return []  # seen between the file and its table
            return [dict(row) for row in db.execute("SELECT * FROM mailings WHERE campaign <> '' ORDER BY id")]

    def log(self) -> str:
        """Everything in the log folder, oldest day first."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.logs.glob("*.log")))

    def everything_written(self) -> str:
        """Every byte that the program has left in logs and output except the mailings themselves, for canaries."""
        places = [path for folder in (self.logs, self.output) for path in folder.rglob("*")]
        return "\n".join(
            path.read_bytes().decode("latin-1") for path in places if path.is_file() and ".csv" not in path.name
        )

    def close(self) -> None:
        """Kill what still runs, and remove the drop folders."""
        for process in self._processes:
            process.kill()
            process.communicate()
        with contextlib.suppress(psycopg.Error), self.database.connect() as connection:
            # The query of a killed run goes on, and a later test would take it for its own.
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'mailing'")
        shutil.rmtree(self.base, ignore_errors=True)


def clean_environ() -> dict[str, str]:
    """This process's environment without what the program would read from it."""
    keys = {*mailing_pipeline.SETTING_FIELDS}
    return {key: value for key, value in os.environ.items() if key not in keys and not key.startswith("PG")}


def close_log() -> None:
    """Close the files that main left open, as the end of a process would."""
    for handler in mailing_pipeline.log.handlers:
        if hasattr(handler, "baseFilename"):
            handler.close()
    mailing_pipeline.log.handlers = []


@contextlib.contextmanager
def forbidden(path: Path, mode: int = 0o555) -> Iterator[Path]:
    """A folder without write permission for a while."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield path
    finally:
        path.chmod(before)
