"""The rig: a stage whose servers and lines fail on request, and whose dialer judges.

def test_a_lost_reply_is_settled_by_looking(rig):
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", "do, then cut")
        rig.run()
        rig.delivered("alfa", "beta")
"""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from local_servers import Dialer, OpenSshServer, SftpServer
from stage import Stage

from .faulty_sftp import FaultyServer
from .judge import violations
from .programs import Hands, Program, Programs
from .proxy import Proxy

# Waits that are long in the field and would only make tests slow; those that a test is about are set by the test.
QUICK = {
    "SFTP_TIMEOUT_S": 1.2,
    "CLOSE_TIMEOUT_S": 2,
    "GRACE_S": 2,
    "LOOK_PAUSES_S": (0.02, 0.05, 0.1, 0),
    "LOCK_PATIENCE_S": 3,
}
HEADER = b"telefone;nome;cpf\r\n"
ROW_BYTES = 100


class Rig:
    """One stage, the programs on it, and the dialer that judges them."""

    def __init__(self, stage: Stage, programs: Programs, folder: Path) -> None:
        self.stage, self.programs, self.folder = stage, programs, folder
        self.clock = Hands(folder / "clock.json")
        self.sizes: dict[str, int] = {}  # of each campaign's mailing in bytes
        self._dialer: Dialer | None = None
        self._started: list[Program] = []
        self._since = 0.0  # backends of earlier programs may still be about
        self._secrets: set[str] = set()  # every password that a config.env of this test held
        self.settings(RUN_DAYS="mon-sat", RUN_HOURS="08:00-20:00")

    # What a test prepares

    def settings(self, **values: object) -> None:
        """Set settings in config.env; None removes one."""
        self.stage.settings(**values)
        secret = re.compile("PASS|URL")
        self._secrets |= {value for key, value in self.stage.values.items() if value and secret.search(key)}

    def campaign(self, name: str, rows: int = 50, pause_s: float = 0, sql: str = "", **directives: Any) -> Path:
        """A campaign whose rows take 100 bytes each; or with an SQL text of its own. pause_s: it sleeps first."""
        wide = f"rpad('Pessoa ' || n, {ROW_BYTES - 26}, '.')"
        sleep = f"SELECT pg_sleep({pause_s});\n" if pause_s else ""
        numbered = (
            f"SELECT '119' || 80000000 + n AS telefone, {wide} AS nome, (90000000000 + n)::text AS cpf "
            f"FROM generate_series(1, {rows}) AS n"
        )
        self.sizes[name] = len(HEADER) + ROW_BYTES * rows
        return self.stage.query(f"{len(self.sizes):02}_{name}", sql or sleep + numbered, **directives)

    def campaigns(self, *names: str, rows: int = 50) -> None:
        """Several plain campaigns."""
        for name in names:
            self.campaign(name, rows)

    def openssh(self) -> OpenSshServer:
        """The real sshd; without one the test is skipped."""
        if not isinstance(self.stage.sftp, OpenSshServer):
            pytest.skip("needs OpenSSH's sshd")
        return self.stage.sftp

    @contextlib.contextmanager
    def faulty_server(self) -> Iterator[FaultyServer]:
        """An SFTP server that commits faults, in place of the sound sshd."""
        with FaultyServer(self.folder / "sftp") as server:
            self._move(server)
            yield server

    @contextlib.contextmanager
    def database_line(self) -> Iterator[Proxy]:
        """A proxy between the program and PostgreSQL."""
        with Proxy(self.stage.database.port) as line:
            self.settings(PGHOST=line.host, PGPORT=line.port)
            yield line

    @contextlib.contextmanager
    def sftp_line(self) -> Iterator[Proxy]:
        """A proxy between the program and the SFTP server of this moment."""
        with Proxy(self.stage.sftp.port) as line:
            self.settings(SFTP_PORT=line.port)
            yield line

    @contextlib.contextmanager
    def dialer(self, **options: Any) -> Iterator[Dialer]:
        """The dialer, who takes every mailing away at the first instant and keeps the record."""
        with self.stage.dialer(**options) as dialer:
            self._dialer = dialer
            yield dialer

    # What a test does

    def start(
        self,
        *options: str,
        constants: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        as_in_the_field: bool = False,
        connect_timeout_s: int = 3,
        **seams: Any,
    ) -> Program:
        """Start the program under the rig's clock, with QUICK timeouts or those of the field.

        Seams: see fork_server.SEAMS.
        """
        quick = {} if as_in_the_field else QUICK
        environ = {} if as_in_the_field else {"CONNECT_TIMEOUT_SECONDS": str(connect_timeout_s)} | (environ or {})
        argv = ["--config", str(self.stage.config), *options]
        self._since = time.time()
        program = self.programs.start(argv, self.stage.elsewhere, self.clock, environ, quick | (constants or {}), seams)
        self._started.append(program)
        return program

    def run(self, *options: str, timeout_s: float = 60, **how: Any) -> Program:
        """Run the program to its end; `how` as for start."""
        return self.start(*options, **how).wait(timeout_s)

    def backends(self) -> list[tuple[int, str]]:
        """The program's sessions in PostgreSQL: process id and state."""
        with self.stage.database.connect() as connection:
            sql = (
                "SELECT pid, coalesce(state, '') FROM pg_stat_activity WHERE application_name = 'mailing_pipeline' "
                "AND backend_start > to_timestamp(%s)"
            )
            return connection.execute(sql, (self._since,)).fetchall()

    def busy_backend(self, timeout_s: float = 20) -> int:
        """The process id of a session that runs a query of a campaign now."""
        sql = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'mailing_pipeline' AND state = 'active' "
            "AND (query LIKE '%%generate_series%%' OR query LIKE '%%pg_sleep%%') AND backend_start > to_timestamp(%s)"
        )
        with self.stage.database.connect() as connection:
            return int(until(lambda: connection.execute(sql, (self._since,)).fetchone(), "a query runs", timeout_s)[0])

    def terminate(self, backend: int) -> None:
        """End one session, as an administrator or a crash does."""
        with self.stage.database.connect() as connection, contextlib.suppress(psycopg.Error):
            connection.execute("SELECT pg_terminate_backend(%s)", (backend,))

    @contextlib.contextmanager
    def frozen(self, *pids: int) -> Iterator[None]:
        """Processes that stand still for a while (SIGSTOP)."""
        for pid in pids:
            psutil.Process(pid).send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).send_signal(signal.SIGCONT)

    # What a test looks at

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's rows of mailings, oldest first; a whole run's own row has no campaign."""
        with contextlib.suppress(sqlite3.OperationalError):  # a run that could not even make its table
            return [row for row in self.stage.ledger() if row["campaign"]]
        return []

    def states(self) -> dict[str, str]:
        """The latest state of each campaign in the ledger."""
        return {row["campaign"]: row["state"] for row in self.ledger}

    def until_state(self, campaign: str, state: str, timeout_s: float = 30) -> None:
        """Wait until the ledger says so."""
        with contextlib.suppress(KeyError):
            until(lambda: self.states().get(campaign) == state, f"{campaign} is {state}", timeout_s, 0.002)

    def violations(self, settled: bool = True) -> list[str]:
        """What broke the promise so far."""
        assert self._dialer is not None
        return violations(self._dialer.record, self.ledger, self.clock.at, settled=settled)

    def delivered(self, *campaigns: str, settled: bool = True) -> None:
        """Assert that exactly these have reached the dialer, as often as they are named, and that nothing is wrong."""
        assert self._dialer is not None
        broken = self.violations(settled)
        arrived = Counter(arrival.campaign for arrival in self._dialer.record)
        assert not broken, broken
        assert arrived == Counter(campaigns), f"{dict(arrived)} arrived; the log says:\n{self.log()}"

    def log(self) -> str:
        return self.stage.log()

    def leftovers(self) -> list[str]:
        """Names that stand in the drop folders now."""
        return sorted(path.name for drop in self.stage.drops.values() for path in drop.iterdir())

    def leaks(self) -> list[str]:
        """Passwords, phones and CPFs in what the programs wrote, except the mailings; each with where it stands."""
        canaries = re.compile("|".join([*map(re.escape, self._secrets), r"1198\d{7}", r"900000\d{5}"]))
        places = {str(program.output_file): program.output for program in self._started}
        places["logs and output"] = self.stage.everything_written()
        found = [(where, canaries.search(text)) for where, text in places.items()]
        return [f"{hit.string[max(0, hit.start() - 80) : hit.end() + 20]!r} in {where}" for where, hit in found if hit]

    def close(self) -> None:
        """Kill what still runs."""
        for program in self._started:
            program.send(signal.SIGKILL)
            program.ended.wait(10)

    def _move(self, server: SftpServer) -> None:
        """Deliver to another server, with the settings and drop folders that were made so far."""
        stage, kept = self.stage, dict(self.stage.values)
        stage.use(server)
        self.settings()
        theirs = {*server.environment(), *stage.values, "SFTP_PASSWORD", "SFTP_KEY_FILE"}
        stage.settings(
            **{key: value for key, value in kept.items() if key not in theirs or key.startswith(("RUN", "RETRY"))}
        )
        for campaign in list(stage.drops):
            stage.make_drop(campaign)


def until(happened: Callable[[], Any], what: str, timeout_s: float = 20, pause_s: float = 0.01) -> Any:
    """What `happened` returns as soon as it is true; AssertionError naming `what` if it never is."""
    end = time.monotonic() + timeout_s
    while not (found := happened()):
        assert time.monotonic() < end, f"waited {timeout_s:g} s in vain until {what}"
        time.sleep(pause_s)
    return found
