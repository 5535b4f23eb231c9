"""PostgreSQL as field machines have it: the system's own (older, another encoding, another language), and what may
stand before it: PgBouncer, Pgpool-II, a line from another machine. All of them real but `LosesBegin`."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from local_servers import (
    LOOPBACK,
    LocalPostgres,
    ServerError,
    free_port,
    is_root,
    remove_folder,
    temp_folder,
    wait_until,
)

from .proxy import Proxy

if TYPE_CHECKING:
    from typing import Self

PGBOUNCER, PGPOOL = (shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("pgbouncer", "pgpool"))


def installed_binaries() -> Path | None:
    """The folder of the newest PostgreSQL that Debian's packages have installed."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    found = [folder for folder in folders if (folder / "initdb").exists()]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


class InstalledPostgres(LocalPostgres):
    """The PostgreSQL that this machine has installed.

    Args:
        encoding: of its databases.
        language: what it speaks (de, es, fr), as far as its packages have the words.
        conf: more lines of postgresql.conf.
    """

    def __init__(self, encoding: str = "UTF8", language: str = "", conf: str = "") -> None:
        super().__init__()
        self._encoding, self._language = encoding, language
        self._conf = conf + ("\nlc_messages = 'C.UTF-8'\n" if language else "\n")

    def _binaries(self) -> Path:
        found = installed_binaries()
        if not found:
            raise ServerError("No PostgreSQL is installed: apt-get install postgresql")
        return found

    @property
    def data(self) -> Path:
        """The folder of its files, its certificate among them."""
        return self._data

    def _create(self) -> None:
        super()._create()
        with (self._data / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write(self._conf)

    def _command(self, program: str, *arguments: str) -> None:
        if program == "initdb":  # the builtin locales are newer than this server
            kept = [argument for argument in arguments if "builtin" not in argument and "--encoding" not in argument]
            arguments = (*kept, f"--encoding={self._encoding}")
        before = os.environ.get("LANGUAGE")
        os.environ["LANGUAGE"] = self._language
        try:
            super()._command(program, *arguments)
        finally:
            os.environ.pop("LANGUAGE")
            if before is not None:
                os.environ["LANGUAGE"] = before


class Pooler:
    """What PgBouncer and Pgpool-II have in common: a folder, a port, a process. Use as a context manager."""

    host = LOOPBACK

    def __init__(self, database: LocalPostgres) -> None:
        self.database, self.port = database, free_port()
        self.folder = temp_folder("mailing-pooler-", for_all=is_root())
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = self._command()
        how: dict[str, Any] = {}
        if is_root():
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "nobody", "nogroup")
            how = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **how)
        try:
            wait_until(f"{command[0]} listens", self._listens, 30)
        except ServerError as error:
            self.__exit__()
            raise ServerError(f"{error}\n{self.log_text()}") from None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        remove_folder(self.folder)

    @property
    def log_file(self) -> Path:
        return self.folder / "log"

    def log_text(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def environment(self) -> dict[str, str]:
        """The settings that a config.env needs to go through it."""
        return self.database.environment() | {"PGHOST": self.host, "PGPORT": str(self.port)}

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Another program's connection through it."""
        theirs = {key[2:].lower(): value for key, value in self.environment().items()}
        return psycopg.connect(dbname=theirs.pop("database"), **theirs, **options)

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False

    def _write(self, name: str, settings: dict[str, Any]) -> Path:
        path = self.folder / name
        path.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="ascii")
        return path


class PgBouncer(Pooler):
    """PgBouncer in one of its pool modes (session, transaction); settings are those of its [pgbouncer] section.

    Args:
        login: user and password whom it lets in; those of the database's owner, if nobody is named.
    """

    def __init__(
        self, database: LocalPostgres, mode: str, login: tuple[str, str] | None = None, **settings: object
    ) -> None:
        super().__init__(database)
        self._login = login or (database.user, database.password)
        self._settings = {"pool_mode": mode, **settings}

    def _command(self) -> list[str]:
        users = self.folder / "users.txt"
        users.write_text('"{}" "{}"\n'.format(*self._login), encoding="ascii")
        common = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": users,
            "max_client_conn": 200,
            "logfile": "",
        }
        config = self._write("pgbouncer.ini", common | self._settings)
        head = f"[databases]\n* = host={self.database.host} port={self.database.port}\n[pgbouncer]\n"
        config.write_text(head + config.read_text(encoding="ascii"), encoding="ascii")
        return [str(PGBOUNCER), str(config)]


class Pgpool(Pooler):
    """Pgpool-II in streaming replication mode, with load balancing between two nodes.

    Both nodes are one PostgreSQL: what goes to which node is Pgpool's own doing, and is what this is about.
    """

    def __init__(self, database: LocalPostgres, **settings: object) -> None:
        super().__init__(database)
        self._settings = settings

    def _command(self) -> list[str]:
        user, password = self.database.user, self.database.password
        passwords = self.folder / "pool_passwd"
        passwords.write_text(f"{user}:TEXT{password}\n", encoding="ascii")
        rules = self.folder / "pool_hba.conf"
        rules.write_text("host all all 127.0.0.1/32 scram-sha-256\n", encoding="ascii")
        nodes: dict[str, object] = {}
        for node in range(2):
            nodes |= {f"backend_hostname{node}": f"'{self.database.host}'", f"backend_port{node}": self.database.port}
            nodes |= {f"backend_weight{node}": node, f"backend_flag{node}": "'DISALLOW_TO_FAILOVER'"}
        common = {
            "listen_addresses": f"'{self.host}'",
            "port": self.port,
            "pcp_port": free_port(),
            "socket_dir": f"'{self.folder}'",
            "pcp_socket_dir": f"'{self.folder}'",
            "unix_socket_directories": f"'{self.folder}'",
            "pid_file_name": f"'{self.folder}/pgpool.pid'",
            "logdir": f"'{self.folder}'",
            "work_dir": f"'{self.folder}'",
            "backend_clustering_mode": "'streaming_replication'",
            "load_balance_mode": "on",
            "num_init_children": 8,
            "sr_check_period": 0,
            "enable_pool_hba": "on",
            "pool_passwd": f"'{passwords}'",
        }
        config = self._write("pgpool.conf", common | nodes | self._settings)
        return [str(PGPOOL), "-n", "-f", str(config), "-a", str(rules)]


class LosesBegin(Proxy):
    """Not Pgpool-II, and like it in one point: a client's BEGIN never reaches the server that its queries go to."""

    def altered(self, data: bytes) -> bytes:
        for begin in (b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", b"BEGIN READ WRITE"):
            data = data.replace(begin, b"SELECT 1".ljust(len(begin)))
        return data


class Balancer(Proxy):
    """One address and several servers behind it, in turn: HAProxy's or a Kubernetes service's way."""

    def __init__(self, *ports: int) -> None:
        self._ports = itertools.cycle(ports)
        super().__init__(ports[0])

    def connected(self) -> int:
        return next(self._ports)


class FromOutside(Proxy):
    """A line that comes from another address than this machine's loopback."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.host = outer_address() or LOOPBACK


def outer_address() -> str | None:
    """An address of this machine that is not its loopback."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        found = str(probe.getsockname()[0])
        return None if found.startswith("127.") else found
    return None


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that this machine signs for itself, and its key: files that PostgreSQL's owner may read."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db.example.com")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=2))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(private)
    for path in paths:
        path.chmod(0o600)
        if is_root():
            shutil.chown(path, "nobody")
    return paths
