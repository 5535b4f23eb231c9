"""SFTP servers of the field, each an ordinary process on a free port of 127.0.0.1, for test_sftp_servers.py.

All of them are handled as OpenSshServer is: a folder of their own, a system user made for the test (as root), a key, a
password, a log. A server is described by its class and a few lines of its own configuration.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Literal

import local_servers
import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from local_servers import LOOPBACK, OpenSshServer, ServerError, is_root, wait_until

Login = Literal["key", "password", "key and password"]
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
GESFTPSERVER = "/usr/libexec/gesftpserver"
NOLOGIN = "/usr/sbin/nologin"


class Server(OpenSshServer):
    """What the servers of the matrix have in common.

    Args:
        login: what the program is given to log in with.
        settings: more lines for config.env; {home} and {root} are the server's folders.
    """

    def __init__(self, login: Login = "key", **settings: str) -> None:
        super().__init__(None, login="test_user" if is_root() else "current")
        self.login, self.settings = login, settings

    def environment(self, login: Literal["key", "password"] = "key") -> dict[str, str]:  # noqa: ARG002 (ours decides)
        found = super().environment("key")
        if "password" in self.login:
            found |= super().environment("password")
        if "key" not in self.login:
            del found["SFTP_KEY_FILE"]
        return found | {key: value.format(home=self.home, root=self.root) for key, value in self.settings.items()}


class Sshd(Server):
    """OpenSSH with other options.

    Args:
        options: lines of sshd_config that come before, and so win over, the usual ones.
        subsystem: the command of the subsystem sftp; empty: there is none.
        folder_mode: permissions of the drop folders.
        shell: the user's login shell.
        expired: the user's password must be changed before anything else.
    """

    def __init__(
        self,
        options: str = "",
        subsystem: str = SFTP_SERVER,
        login: Login = "key",
        folder_mode: int = 0o755,
        shell: str = "",
        expired: bool = False,
        **settings: str,
    ) -> None:
        super().__init__(login, **settings)
        self.options, self.subsystem = options, subsystem
        self.folder_mode, self.shell, self.expired = folder_mode, shell, expired

    def make_folder(self, name: str) -> Path:
        folder = super().make_folder(name)
        folder.chmod(self.folder_mode)
        return folder

    def _prepare(self) -> None:
        super()._prepare()
        if self.shell:
            local_servers._account_command(["usermod", "--shell", self.shell, self.user])
        if self.expired:
            local_servers._account_command(["chage", "--lastday", "0", self.user])

    def _write_config(self) -> None:
        super()._write_config()
        usual = self._config_file.read_text("utf-8")
        ours = f"Subsystem sftp {self.subsystem}" if self.subsystem else ""
        text = self.options.format(root=self.root, home=self.home) + "\n" + re.sub("Subsystem .*", ours, usual)
        self._config_file.write_text(text, "utf-8")


class Chrooted(Sshd):
    """OpenSSH whose clients see the drop folders as /. The whole path must be root's, which /tmp is not."""

    def __init__(self, owner: str = "root", **how: str) -> None:
        super().__init__("ChrootDirectory {root}", "internal-sftp", **how)  # type: ignore[arg-type]
        shutil.rmtree(self.root)
        self.root = Path(tempfile.mkdtemp(prefix="mailing-chroot-", dir="/var/lib"))
        self.root.chmod(0o755)
        self.owner = owner

    @property
    def remote_root(self) -> PurePosixPath:
        return PurePosixPath("/")

    def _prepare(self) -> None:
        super()._prepare()
        if self.owner == "user":
            shutil.chown(self.root, self.user)


class OtherDisk(Sshd):
    """OpenSSH whose staging folder is on another disk than the drop folders."""

    def __init__(self) -> None:
        super().__init__()
        self.staging = Path(tempfile.mkdtemp(prefix="mailing-staging-", dir="/dev/shm"))
        self.settings["SFTP_STAGING_DIR"] = str(self.staging)

    def _prepare(self) -> None:
        super()._prepare()
        if self.staging.stat().st_dev == self.root.stat().st_dev:
            raise ServerError("/dev/shm is no disk of its own here.")
        shutil.chown(self.staging, self.user)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.staging, ignore_errors=True)


def write_rsa_key(path: Path) -> str:
    """A new RSA key in a file that only its owner may read; its fingerprint, as SFTP_HOST_KEY wants it."""
    key = generate_private_key(65537, 2048)
    form = serialization.PrivateFormat.OpenSSH
    path.touch(0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    fingerprint: str = paramiko.RSAKey.from_private_key_file(str(path)).fingerprint  # type: ignore[attr-defined]
    return fingerprint


class OldHostKey(Sshd):
    """OpenSSH that signs with RSA and SHA-1 only, as servers before 2016 do."""

    def _prepare(self) -> None:
        super()._prepare()
        write_rsa_key(self._host_key_file)


class TwoHostKeys(Sshd):
    """OpenSSH with an Ed25519 key, which clients prefer, and an RSA key, which is the pinned one."""

    def __init__(self) -> None:
        super().__init__("HostKey {home}/rsa_key")

    def _prepare(self) -> None:
        super()._prepare()
        self.settings["SFTP_HOST_KEY"] = write_rsa_key(self.home / "rsa_key")


class Daemon(Server):
    """Another server than OpenSSH, started by a command of its own; `log_text` is what it prints."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def _launch(self) -> bool:
        with self._log_file.open("ab") as log:
            self._process = process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.home
            )
        wait_until("its greeting", lambda: process.poll() is not None or local_servers._greets(self.port), 20)
        if process.poll() is None:
            return True
        self._process = None
        return False


PROFTPD_CONF = """
ServerType standalone
DefaultAddress 127.0.0.1
SocketBindTight on
Port {port}
UseIPv6 off
UseReverseDNS off
User nobody
Group nogroup
ModulePath /usr/lib/proftpd
LoadModule mod_sftp.c
LoadModule mod_sftp_pam.c
AuthOrder mod_auth_unix.c
RequireValidShell off
UseFtpUsers off
WtmpLog off
TransferLog none
SystemLog {home}/sshd.log
PidFile {home}/pid
ScoreboardFile {home}/scoreboard
DelayEngine off
SFTPEngine on
SFTPLog {home}/sftp.log
SFTPHostKey {home}/host_key
SFTPAuthMethods {methods}
{options}
"""


class ProFtpd(Daemon):
    """ProFTPD with mod_sftp, for a password."""

    def __init__(self, options: str = "", methods: str = "password", **settings: str) -> None:
        super().__init__("password", **settings)
        self.options, self.methods = options, methods

    def command(self) -> list[str]:
        conf = self.home / "proftpd.conf"
        options = {"port": self.port, "home": self.home, "methods": self.methods, "options": self.options}
        conf.write_text(PROFTPD_CONF.format(**options), "utf-8")
        return ["/usr/sbin/proftpd", "--nodaemon", "--config", str(conf)]


class Rclone(Daemon):
    """`rclone serve sftp` of the drop folders' root."""

    def __init__(self, *options: str, **settings: str) -> None:
        super().__init__("password", **settings)
        self.options = options

    @property
    def remote_root(self) -> PurePosixPath:
        return PurePosixPath("/")

    def _prepare(self) -> None:
        super()._prepare()
        self.password = self.password or "s3rve-" + os.urandom(6).hex()

    def command(self) -> list[str]:
        login = ["--user", self.user, "--pass", str(self.password)]
        where = ["--addr", f"{LOOPBACK}:{self.port}", "--key", str(self._host_key_file)]
        config = ["--config", str(self.home / "rclone.conf"), "--cache-dir", str(self.home / "cache")]
        return ["rclone", "serve", "sftp", str(self.root), *where, *login, *config, *self.options]


class Dropbear(Daemon):
    """dropbear, which runs OpenSSH's sftp-server; two_factors: asks for the key and then for the password."""

    def __init__(self, login: Login = "key", two_factors: bool = False) -> None:
        super().__init__(login)
        self.two_factors = two_factors

    def _prepare(self) -> None:
        super()._prepare()
        folder = self.home / ".ssh"
        folder.mkdir(mode=0o755)
        shutil.copy(self.home / "client_key.pub", folder / "authorized_keys")
        convert = ["dropbearconvert", "openssh", "dropbear", str(self._host_key_file), str(self.home / "dropbear_key")]
        subprocess.run(convert, check=True, capture_output=True)

    def command(self) -> list[str]:
        more = ["-t"] if self.two_factors else []
        key = str(self.home / "dropbear_key")
        return ["dropbear", "-F", "-E", "-r", key, "-p", f"{LOOPBACK}:{self.port}", "-P", str(self.home / "pid"), *more]


class TinySsh(Daemon):
    """tinysshd, which knows one cipher and one kind of key, behind a listener that starts it for each connection."""

    def _prepare(self) -> None:
        super()._prepare()
        keys = self.home / "keys"
        subprocess.run(["tinysshd-makekey", str(keys)], check=True, capture_output=True)
        shown = subprocess.run(["tinysshd-printkey", str(keys)], check=True, capture_output=True, text=True).stdout
        blob = next(word for word in shown.split() if word.startswith("AAAA"))
        digest = hashlib.sha256(base64.b64decode(blob)).digest()
        self.fingerprint = "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")

    def command(self) -> list[str]:
        listener = Path(__file__).with_name("listener.py")
        served = ["tinysshd", "-v", "-x", f"sftp={SFTP_SERVER}", str(self.home / "keys")]
        return [sys.executable, str(listener), str(self.port), *served]


class AsyncSsh(Daemon):
    """AsyncSSH with the highest version of SFTP that it may speak; asks: password or keyboard-interactive."""

    def __init__(self, version: int = 3, asks: str = "password") -> None:
        super().__init__("password")
        self.version, self.asks = version, asks

    @property
    def remote_root(self) -> PurePosixPath:
        return PurePosixPath("/")

    def _prepare(self) -> None:
        super()._prepare()
        self.password = self.password or "async-" + os.urandom(6).hex()

    def command(self) -> list[str]:
        program = Path(__file__).with_name("asyncssh_server.py")
        what = [str(self.port), str(self.root), str(self._host_key_file), str(self.version), self.asks]
        return [sys.executable, str(program), *what, self.user, str(self.password)]
