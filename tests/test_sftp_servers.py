"""The matrix: SFTP servers as they really are, each an ordinary process, judged by what the dialer got.

README's table "Servers, SFTP" has a line for each row here. A server that cannot do the job is a row too: what the
operator reads then, and that it is tried no oftener than makes sense.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import paramiko
import pytest
from conftest import IN_CI, PROJECT
from local_servers import is_root, sshd_path
from rig.faulty_sftp import ALWAYS, FaultySession, Request
from rig.sftp_servers import (
    GESFTPSERVER,
    NOLOGIN,
    SFTP_SERVER,
    AsyncSsh,
    Chrooted,
    Dropbear,
    OldHostKey,
    OtherDisk,
    ProFtpd,
    Rclone,
    Server,
    Sshd,
    TinySsh,
    TwoHostKeys,
)
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

MAILINGS = {"dez": 10, "vinte_mil": 20_000, "trezentos_mil": 300_000}
NETWORK = "check SFTP_HOST|is the SFTP server running"
NOT_STARTED = "logged in, but SFTP does not start"
PAM = "UsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication yes\n"
DENY_DOTS = r"PathDenyFilter (^|/)\."


@dataclass(frozen=True)
class Row:
    """A server of the matrix, under the name that README's table has for it.

    needs: a program, or a package of PyPI, without which it does not exist here.
    pattern: what the dialer takes.
    leaves: --check cannot remove its probes, and names them.
    """

    name: str
    make: Callable[[], Server]
    needs: str = "sshd"
    pattern: str = "mailing_*.csv"
    leaves: bool = False


@dataclass(frozen=True)
class Refusal(Row):
    """A server that gets nothing: the exit code, and what the operator must read (and must not)."""

    code: int = 6
    says: str = ""
    never: str = ""
    tries: int = 1  # of each mailing, or of the login
    checks: bool = True  # whether --check finds it too


DELIVERED = [
    Row("OpenSSH", Sshd),
    Row("OpenSSH: chroot, internal-sftp", Chrooted),
    Row("OpenSSH: keyboard-interactive (PAM)", lambda: Sshd(PAM, login="password")),
    Row(
        "OpenSSH: key, then password",
        lambda: Sshd("AuthenticationMethods publickey,password", login="key and password"),
    ),
    Row(
        "OpenSSH: password, then key",
        lambda: Sshd("AuthenticationMethods password,publickey", login="key and password"),
    ),
    Row(
        "OpenSSH: key, then keyboard-interactive",
        lambda: Sshd(PAM + "AuthenticationMethods publickey,keyboard-interactive", login="key and password"),
    ),
    Row("OpenSSH: MaxSessions 1", lambda: Sshd("MaxSessions 1")),
    Row("OpenSSH: MaxStartups 1", lambda: Sshd("MaxStartups 1")),
    Row("OpenSSH: no FSTAT", lambda: Sshd(subsystem="internal-sftp -P fstat")),
    Row("OpenSSH: no STAT", lambda: Sshd(subsystem="internal-sftp -P stat")),
    Row("OpenSSH: no LSTAT", lambda: Sshd(subsystem="internal-sftp -P lstat")),
    Row("OpenSSH: no lists", lambda: Sshd(subsystem="internal-sftp -P opendir,readdir")),
    Row("OpenSSH: no removal", lambda: Sshd(subsystem="internal-sftp -P remove"), leaves=True),
    Row("OpenSSH: no SETSTAT", lambda: Sshd(subsystem="internal-sftp -P setstat,fsetstat")),
    Row("OpenSSH: folders that may be written, not listed", lambda: Sshd(folder_mode=0o333)),
    Row("OpenSSH: Compression", lambda: Sshd("Compression yes", SFTP_COMPRESS="yes")),
    Row("OpenSSH: ClientAlive", lambda: Sshd("ClientAliveInterval 1\nClientAliveCountMax 2")),
    Row("OpenSSH: a dialer that takes any name", lambda: Sshd(SFTP_STAGING_DIR="{root}/staging"), pattern="*"),
    Row("OpenSSH: curve25519-sha256 only", lambda: Sshd("KexAlgorithms curve25519-sha256")),
    Row("OpenSSH: the pinned key is its second one", TwoHostKeys),
    Row("OpenSSH with gesftpserver", lambda: Sshd(subsystem=GESFTPSERVER), GESFTPSERVER),
    Row("dropbear: key", Dropbear, "dropbear"),
    Row("dropbear: password", lambda: Dropbear("password"), "dropbear"),
    Row("dropbear: key, then password", lambda: Dropbear("key and password", two_factors=True), "dropbear"),
    Row("ProFTPD", ProFtpd, "proftpd"),
    Row(
        "ProFTPD: keyboard-interactive (mod_sftp_pam)",
        lambda: ProFtpd("SFTPPAMEngine on\nSFTPPAMServiceName sshd", "keyboard-interactive"),
        "proftpd",
    ),
    Row("ProFTPD: HiddenStores", lambda: ProFtpd("HiddenStores on"), "proftpd"),
    Row("ProFTPD: MaxClientsPerHost 1", lambda: ProFtpd("MaxClientsPerHost 1"), "proftpd"),
    Row(
        "ProFTPD: PathDenyFilter, SFTP_TEMP_NAME set",
        lambda: ProFtpd(DENY_DOTS, SFTP_TEMP_NAME="part-{{id}}"),
        "proftpd",
    ),
    Row("rclone serve sftp", Rclone, "rclone"),
    Row("rclone serve sftp: --dir-cache-time 0", lambda: Rclone("--dir-cache-time", "0"), "rclone"),
    Row("AsyncSSH: SFTP up to version 3", lambda: AsyncSsh(3), "asyncssh"),
    Row("AsyncSSH: SFTP up to version 4", lambda: AsyncSsh(4), "asyncssh"),
    Row("AsyncSSH: SFTP up to version 5", lambda: AsyncSsh(5), "asyncssh"),
    Row("AsyncSSH: SFTP up to version 6", lambda: AsyncSsh(6), "asyncssh"),
    Row("AsyncSSH: keyboard-interactive", lambda: AsyncSsh(asks="keyboard-interactive"), "asyncssh"),
]
REFUSALS = [
    Refusal(
        "OpenSSH: no RENAME",
        lambda: Sshd(subsystem="internal-sftp -P rename"),
        code=4,
        says="renam",
        never="write access",
        tries=3,
    ),
    Refusal(
        "OpenSSH: staging folder on another disk",
        OtherDisk,
        code=4,
        says="SFTP_STAGING_DIR",
        never="full",
        tries=3,
        checks=False,
    ),
    Refusal("OpenSSH: no subsystem sftp", lambda: Sshd(subsystem=""), says=NOT_STARTED, never=NETWORK, tries=2),
    Refusal(
        "OpenSSH: chroot of the wrong owner",
        lambda: Chrooted(owner="user"),
        says=f"{NOT_STARTED}|SFTP is not allowed",
        never=NETWORK,
        tries=5,  # it hangs up after the login, and that may be the network's doing as well
    ),
    Refusal("OpenSSH: shell nologin", lambda: Sshd(shell=NOLOGIN), says=NOT_STARTED, never=NETWORK, tries=2),
    Refusal(
        "OpenSSH: a login script that prints",
        lambda: Sshd(subsystem=f"echo Bem-vindo; exec {SFTP_SERVER}"),
        says=NOT_STARTED,
        never=NETWORK,
        tries=2,
    ),
    Refusal(
        "OpenSSH: chacha20 only", lambda: Sshd("Ciphers chacha20-poly1305@openssh.com"), says="chacha20", never="SHA-1"
    ),
    Refusal("OpenSSH: 3des-cbc only", lambda: Sshd("Ciphers 3des-cbc"), says="3des-cbc"),
    Refusal("OpenSSH: hmac-md5 only", lambda: Sshd("Ciphers aes256-ctr\nMACs hmac-md5"), says="hmac-md5"),
    Refusal(
        "OpenSSH: umac only",
        lambda: Sshd("Ciphers aes256-ctr\nMACs umac-128-etm@openssh.com,umac-64@openssh.com"),
        says="umac-128",
        never="SHA-1",
    ),
    Refusal(
        "OpenSSH: sntrup761 only",
        lambda: Sshd("KexAlgorithms sntrup761x25519-sha512@openssh.com"),
        says="sntrup761",
        never="SHA-1",
    ),
    Refusal("OpenSSH: RSA host key, SHA-1 only", lambda: OldHostKey("HostKeyAlgorithms ssh-rsa"), says="SHA-1|ssh-rsa"),
    Refusal(
        "OpenSSH: key and password, only the key given",
        lambda: Sshd("AuthenticationMethods publickey,password"),
        says="(?s)wants password.*set SFTP_PASSWORD",
        never=NETWORK,
    ),
    Refusal(
        "OpenSSH: key and password, only the password given",
        lambda: Sshd("AuthenticationMethods password,publickey", login="password"),
        says="(?s)wants publickey.*set SFTP_KEY_FILE",
        never=NETWORK,
    ),
    Refusal(
        "OpenSSH: keys alone, only the password given",
        lambda: Sshd("AuthenticationMethods publickey", login="password"),
        says="(?s)wants publickey.*set SFTP_KEY_FILE",
        never="also|" + NETWORK,
    ),
    Refusal(
        "OpenSSH: expired password",
        lambda: Sshd(login="password", expired=True),
        says=NOT_STARTED,
        never=NETWORK,
        tries=2,
    ),
    Refusal("TinySSH", TinySsh, "tinysshd", says="chacha20", never="SHA-1"),
    Refusal("ProFTPD: PathDenyFilter", lambda: ProFtpd(DENY_DOTS), "proftpd", code=4, says="SFTP_TEMP_NAME"),
    Refusal(
        "ProFTPD: Limit RENAME",
        lambda: ProFtpd("<Limit RENAME RNFR RNTO>\nDenyAll\n</Limit>"),
        "proftpd",
        code=4,
        says="renam",
        never="write access",
        tries=3,
    ),
    Refusal(
        "AsyncSSH: one-time code", lambda: AsyncSsh(asks="code"), "asyncssh", says="(?i)one-time code", never=NETWORK
    ),
]
LATE = Row("rclone serve sftp: --vfs-cache-mode writes", lambda: Rclone("--vfs-cache-mode", "writes"), "rclone")
MATRIX = [*DELIVERED, *REFUSALS, LATE]


def by_name(row: Row) -> str:
    return row.name.replace(" ", "_")


def missing(needs: str) -> str:
    """Why a server cannot be had on this machine; empty if it can."""
    if not sshd_path() or not is_root():
        return "needs OpenSSH's sshd, and root to make a system user for it"
    if needs == "asyncssh":
        return "" if importlib.util.find_spec(needs) else "needs the package asyncssh"
    there = needs == "sshd" or shutil.which(needs, path=os.pathsep.join(("/usr/sbin", os.environ.get("PATH", ""))))
    return "" if there else f"needs {needs}"


@contextlib.contextmanager
def serving(rig: Rig, row: Row, **campaigns: int) -> Iterator[Server]:
    """The server of a row with drop folders for some campaigns, by their numbers of rows."""
    if reason := missing(row.needs):
        pytest.fail(reason) if IN_CI else pytest.skip(reason)
    with row.make() as server:
        server.make_folder("staging")
        rig.stage.use(server)
        rig.settings()
        for name, rows in campaigns.items():
            numbers = f"generate_series(1, {rows}) AS n"
            rig.campaign(name, sql=f"SELECT '119' || 80000000 + n AS telefone, n AS contrato FROM {numbers}")
        yield server


@pytest.mark.parametrize("row", DELIVERED, ids=by_name)
def test_three_mailings_arrive_once_each(rig: Rig, row: Row) -> None:
    with serving(rig, row, **MAILINGS), rig.dialer(pattern=row.pattern):
        for options, times in (((), 1), ((), 1), (("--resend",), 2)):
            ended = rig.run(*options, as_in_the_field=True)
            assert ended.code == 0, ended.output
            rig.delivered(*[*MAILINGS] * times)
        checked = rig.run("--check", as_in_the_field=True)
        assert checked.code == 0, checked.output
        rig.delivered(*[*MAILINGS] * 2)
        stays = rig.leftovers()
        assert bool(stays) == row.leaves, stays
        assert all(name in checked.output for name in stays), checked.output


@pytest.mark.parametrize("row", REFUSALS, ids=by_name)
def test_what_cannot_be_delivered_is_told(rig: Rig, row: Refusal) -> None:
    with serving(rig, row, um=10, dois=10), rig.dialer(pattern=row.pattern):
        ended = rig.run(as_in_the_field=True)
        checked = rig.run("--check", as_in_the_field=True)
        rig.delivered()
    for program in (ended, checked) if row.checks else (ended,):
        assert program.code == row.code, program.output
        assert re.search(row.says, program.output), program.output
        assert not (row.never and re.search(row.never, program.output)), program.output
    most = (row.tries - 1) * (2 if row.code == 4 else 1)
    assert ended.output.count(" retry ") <= most, ended.output


def test_a_server_that_writes_behind_delivers_later_than_it_says(rig: Rig) -> None:
    """README's Limits: rclone's write cache says OK at once, and writes its disk after some seconds, as it likes."""
    with serving(rig, LATE, **MAILINGS), rig.dialer() as dialer:
        assert rig.run(as_in_the_field=True).code == 0
        assert not dialer.record
        assert rig.run(as_in_the_field=True).code == 0
        until(lambda: {arrival.campaign for arrival in dialer.record} == {*MAILINGS}, "it is written back", 60, 0.2)


def test_mailings_of_one_size_do_not_mix_on_a_server_that_mixes_halves_of_requests(rig: Rig) -> None:
    """ProFTPD fills a request that came in two packets from whatever channel speaks next."""
    at_once = {"um": 100_000, "dois": 100_000, "tres": 100_000, "quatro": 100_000}
    row = next(row for row in DELIVERED if row.name == "ProFTPD")
    with serving(rig, row, **at_once), rig.dialer():
        ended = rig.run(as_in_the_field=True)
        assert ended.code == 0 and " retry " not in ended.output, ended.output
        rig.delivered(*at_once)


def test_the_readme_has_a_line_for_every_server() -> None:
    section = (PROJECT / "README.md").read_text("utf-8").partition("\n### SFTP\n")[2].partition("\n#")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    assert [cells[0].strip().replace("`", "") for cells in lines[1:]] == [row.name for row in MATRIX]


# ---------------------------------------------------------------------------------------------------------------------
# Answers that no server of the registries gives
# ---------------------------------------------------------------------------------------------------------------------

Fault = str | Callable[[FaultySession, Request, Callable[[], None]], None]


def answers(change: Callable[[paramiko.SFTPAttributes], Any]) -> Fault:
    """A fault of STAT or FSTAT: the attributes are changed before they are sent."""

    def fault(session: FaultySession, _request: Request, proceed: Callable[[], None]) -> None:
        real = session._response  # type: ignore[attr-defined]

        def respond(number: int, kind: int, *arguments: Any) -> None:
            for argument in arguments:
                if isinstance(argument, paramiko.SFTPAttributes):
                    change(argument)
            real(number, kind, *arguments)

        session._response = respond  # type: ignore[attr-defined]
        try:
            proceed()
        finally:
            del session._response  # type: ignore[attr-defined]

    return fault


def cut_short(session: FaultySession, _request: Request, proceed: Callable[[], None]) -> None:
    """The reply ends in the middle of its attributes."""
    real = session._send_packet
    session._send_packet = lambda kind, packet: real(kind, bytes(packet)[:9])  # type: ignore[method-assign]
    try:
        proceed()
    finally:
        del session._send_packet


def no_size(attributes: paramiko.SFTPAttributes) -> None:
    attributes.st_size = None


def size_zero(attributes: paramiko.SFTPAttributes) -> None:
    attributes.st_size = 0


def no_type(attributes: paramiko.SFTPAttributes) -> None:
    attributes.st_mode = (attributes.st_mode or 0) & 0o7777


def nothing(attributes: paramiko.SFTPAttributes) -> None:
    attributes.st_size = attributes.st_mode = attributes.st_uid = attributes.st_gid = None
    attributes.st_atime = attributes.st_mtime = None


@pytest.mark.parametrize(
    "fault",
    ["refuse", "forbid", "not support", "no such file", answers(size_zero), cut_short],
    ids=["refused", "forbidden", "unsupported", "no_such_file", "size_0", "cut_short"],
)
def test_an_open_file_that_cannot_be_asked_after_is_delivered(rig: Rig, fault: Fault) -> None:
    """Fault 73: FSTAT is refused, or wrong until CLOSE."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("fstat", fault, times=ALWAYS)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.parametrize("change", [no_size, no_type, nothing], ids=["no_size", "no_type", "nothing"])
def test_attributes_that_are_left_out_stop_no_mailing(rig: Rig, change: Any) -> None:
    """Fault 74."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("stat", answers(change), times=ALWAYS)
        assert rig.run().code == 0
        assert rig.run("--check").code == 0
        rig.delivered("alfa", "beta")


def test_attributes_that_are_cut_short_say_nothing(rig: Rig) -> None:
    """Fault 74: a reply that ends in the middle is no size; the folder's list has it."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("stat", cut_short, times=ALWAYS, path=".part-")
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


# ---------------------------------------------------------------------------------------------------------------------
# --check finds what a run would meet
# ---------------------------------------------------------------------------------------------------------------------


def test_check_fails_where_a_file_may_not_be_read_back(rig: Rig) -> None:
    rig.campaign("alfa")
    rig.settings(SFTP_VERIFY="hash")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("read", "forbid", ALWAYS)
        checked, ended = rig.run("--check"), rig.run()
        assert (checked.code, ended.code) == (4, 4)
        assert "let this user read the file" in checked.output and "let this user read the file" in ended.output


@pytest.mark.parametrize("answer", ["refuse", "forbid", "not support"])
def test_check_and_run_agree_where_a_missing_name_is_answered_in_another_way(rig: Rig, answer: str) -> None:
    rig.campaign("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("stat", answer, ALWAYS)
        assert (rig.run("--check").code, rig.run().code) == (0, 0)
        rig.delivered("alfa")
        assert rig.leftovers() == []


def test_check_names_the_staging_folder_where_a_dialer_takes_any_name(rig: Rig) -> None:
    rig.campaign("alfa")
    with rig.faulty_server() as server, rig.dialer():

        def take(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            proceed()
            (server.root / request.path.lstrip("/")).unlink()

        server.commits("close", take, ALWAYS)
        checked = rig.run("--check")
        assert checked.code == 4 and "SFTP_STAGING_DIR" in checked.output
