"""Several PCs and one ledger: each a folder, a config.env and lines of its own; the drop folders are those of all.

def test_two_pcs_share_the_work(centre):
    centre.campaigns("alfa", "beta")
    with centre.dialer():
        for program in [centre.pc("um").start(), centre.pc("dois").start()]:
            program.wait()
        centre.delivered("alfa", "beta")
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from local_servers import LocalPostgres
from psycopg.rows import dict_row
from stage import Stage

from .programs import Program, Programs
from .proxy import Proxy
from .theatre import Rig

if TYPE_CHECKING:
    from typing import Self

# The field's half minute makes tests slow; a test that is about it sets its own. The rig's clock is no server's.
QUICK_LEDGER: dict[str, Any] = {
    "LEDGER_SESSION_S": 3,
    "LEDGER_BEAT_S": 0.5,
    "LEDGER_POLL_S": 0.2,
    "LEDGER_ANSWER_S": 2,
    "CLOCK_TOLERANCE_S": 1e12,
}
ROLE = "ledger_keeper"
_numbers = itertools.count(1)


class Centre(Rig):
    """A call centre: a rig whose settings and queries every PC gets, and whose ledger is a PostgreSQL's."""

    def __init__(self, stage: Stage, programs: Programs, folder: Path, server: LocalPostgres) -> None:
        super().__init__(stage, programs, folder)
        self.server, self.password = server, secrets.token_urlsafe(12)
        self.database = f"ledger_{next(_numbers)}"
        self.pcs: dict[str, Pc] = {}
        self._lines = ExitStack()
        with server.connect() as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone():
                connection.execute(f"CREATE ROLE {ROLE} LOGIN")
            connection.execute(f"ALTER ROLE {ROLE} PASSWORD '{self.password}'")
            connection.execute(f"CREATE DATABASE {self.database} OWNER {ROLE}")
        self._secrets.add(self.password)

    def conninfo(self, port: int | None = None) -> str:
        """LEDGER, at the server itself or at a line to it."""
        where = f"host={self.server.host} port={port or self.server.port} dbname={self.database}"
        return f"{where} user={ROLE} password={self.password}"

    def pc(self, name: str) -> Pc:
        """A PC with that name."""
        if name not in self.pcs:
            self.pcs[name] = Pc(self, name, self._lines)
        return self.pcs[name]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        with self.server.connect(self.database) as connection, connection.cursor(row_factory=dict_row) as cursor:
            try:
                return cursor.execute("SELECT * FROM mailing_pipeline.mailings ORDER BY id").fetchall()
            except psycopg.errors.UndefinedTable:
                return []

    def end_sessions(self) -> int:
        """End the ledger's sessions, as an administrator or a crash does."""
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        with self.server.connect() as connection:
            return len(connection.execute(sql, (self.database,)).fetchall())

    def log(self) -> str:
        return "\n".join(f"--- {pc.name}\n{pc.log()}" for pc in self.pcs.values())

    def leaks(self) -> list[str]:
        written = "".join(
            path.read_text(encoding="latin-1")
            for pc in self.pcs.values()
            for path in pc.folder.rglob("*")
            if path.is_file() and (path.suffix in (".log", ".html") or path.name == "run.lock")
        )
        told = [*super().leaks(), *(secret for secret in self._secrets if secret in written)]
        return told + [row["campaign"] for row in self.ledger if self.password in str(row)]

    def forget(self) -> None:
        """The end of a round: ledger and logs of the next one begin anew."""
        assert self.leaks() == []
        super().close()
        self._started.clear()
        with self.server.connect(self.database) as connection:
            connection.execute("DROP SCHEMA mailing_pipeline CASCADE")
        for pc in self.pcs.values():
            shutil.rmtree(pc.folder)

    def close(self) -> None:
        super().close()
        self._lines.close()
        with self.server.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")


class Network:
    """A network namespace with one cable to this machine, and no other way anywhere."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"pc{os.getpid()}_{number}"
        self.cable, self._inner = f"pc{os.getpid() % 100000}h{number}", f"pc{os.getpid() % 100000}n{number}"
        net = f"10.231.{os.getpid() % 250}.{4 * (number % 60)}"
        first, _, last = net.rpartition(".")
        self.host, self._address = f"{first}.{int(last) + 1}", f"{first}.{int(last) + 2}"

    def __enter__(self) -> Self:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", self._inner, "netns", self.name)
        ip("addr", "add", f"{self.host}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        ip("-n", self.name, "addr", "add", f"{self._address}/30", "dev", self._inner)
        ip("-n", self.name, "link", "set", self._inner, "up")
        return self

    def __exit__(self, *exc: object) -> None:
        ip("netns", "del", self.name)

    def unplug(self) -> None:
        """Packets go nowhere, and nobody says so."""
        ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        ip("link", "set", self.cable, "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def has_networks() -> bool:
    """Whether this machine lets us make network namespaces."""
    try:
        with Network():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Pc:
    """One PC of the centre."""

    def __init__(self, centre: Centre, name: str, lines: ExitStack) -> None:
        self.centre, self.name = centre, name
        self.folder = centre.folder / name
        self.to_ledger = lines.enter_context(Proxy(centre.server.port))
        self.to_dialer = lines.enter_context(Proxy(centre.stage.sftp.port))
        self.settings: dict[str, object] = {}
        self.network: Network | None = None
        self._lines = lines

    def start(self, *options: str, constants: dict[str, Any] | None = None, **how: Any) -> Program:
        """Start the program on this PC, with the centre's queries and settings of this moment."""
        shutil.rmtree(self.folder / "queries", ignore_errors=True)
        shutil.copytree(self.centre.stage.queries, self.folder / "queries")
        stage = self.centre.stage
        lines = {"LEDGER": self.centre.conninfo(self.to_ledger.port), "SFTP_PORT": self.to_dialer.port}
        kept = dict(stage.values)
        stage.settings(**(lines | self.settings))
        shutil.copy(stage.config, self.folder / "config.env")
        stage.values = kept
        if self.network:
            how["network"] = self.network.name
        constants = QUICK_LEDGER | {"PC": self.name} | (constants or {})
        config = ("--config", str(self.folder / "config.env"))  # the last one counts
        return self.centre.start(*config, *options, constants=constants, **how)

    def use_network(self) -> Network:
        """A network of its own: servers are reached over one cable, which may be pulled out."""
        self.network = network = self._lines.enter_context(Network())
        self.to_ledger, self.to_dialer, to_database = (
            self._lines.enter_context(Proxy(port, network.host))
            for port in (self.centre.server.port, self.centre.stage.sftp.port, self.centre.stage.database.port)
        )
        ledger = self.centre.conninfo(self.to_ledger.port).replace(self.centre.server.host, network.host)
        self.settings |= {"LEDGER": ledger, "SFTP_HOST": network.host, "PGHOST": network.host}
        self.settings["PGPORT"] = to_database.port
        return network

    def run(self, *options: str, timeout_s: float = 60, **how: Any) -> Program:
        return self.start(*options, **how).wait(timeout_s)

    def log(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in sorted((self.folder / "logs").glob("*.log")))

    def cut_off(self, *lines: Proxy) -> None:
        """Nothing passes on these lines any more, and nobody says so."""
        for line in lines:
            line.silence()
            line.keep_silent_on_connect()

    def reconnect(self) -> None:
        """What was held back passes."""
        for line in (self.to_ledger, self.to_dialer):
            line.speak()
            line.answer()
