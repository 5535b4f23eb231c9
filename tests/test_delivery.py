"""Delivery over SFTP: logins, the protocol, retries, second runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import local_servers
import paramiko
import psycopg.errors
import pytest
from cryptography.hazmat.primitives import serialization
from local_servers import FolderFiles, FolderHandle, OpenSshServer, ParamikoServer, SftpServer, free_port
from rig.faulty_sftp import ALWAYS, AnotherOrder, FaultyServer, FaultySession, Request
from rig.proxy import Proxy
from stage import NOON, FakeClock, Result, Stage, forbidden

import mailing_pipeline
from mailing_pipeline import (
    AGAIN,
    NEVER,
    ConnectionLost,
    PipelineError,
    RetryPolicy,
    Stop,
    Text,
    connect_error,
    place_in,
    query_error,
    retry,
    sftp_error,
)

CANARY = "s3cret-Canary"
ONE = "SELECT 1 AS n"
TEMP = re.compile(r"\.part-[0-9a-f]{8}")


@pytest.fixture
def with_password(stage: Stage, password_server: SftpServer) -> Stage:
    """The stage on a server that takes a password."""
    if stage.sftp is not password_server:
        stage.use(password_server)
    return stage


class LoginLog:
    """What a server logged since this began: of logins, with which method, how they ended."""

    def __init__(self, server: SftpServer) -> None:
        self.server, self._before = server, len(server.log_text())

    def lines(self, verdict: str, method: str) -> int:
        return len(re.findall(f"{verdict} {method} for", self.server.log_text()[self._before :]))

    def passwords(self) -> int:
        return self.lines("(?:Accepted|Failed)", "password")


def refused(stage: Stage, told: str, hint: str) -> Result:
    """A run that fails as a whole at the SFTP server, at once: nothing delivered, nothing retried, no secret told."""
    stage.query("10_a", ONE)
    stage.query("20_b", ONE)
    result = stage.deliver()
    assert result.exit_code == 6, result.said
    assert result.verdicts == {"a": "failed", "b": "failed"}
    for entry in result.campaigns.values():
        assert told in entry["message"] and hint in entry["hint"]
    assert " retry " not in result.log
    assert stage.files("a") == stage.files("b") == []
    assert [entry["state"] for entry in stage.ledger()] == ["failed", "failed"]
    assert CANARY not in result.said + stage.everything_written()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Logins
# ---------------------------------------------------------------------------------------------------------------------


def test_a_password_opens_the_server(with_password: Stage) -> None:
    with_password.query("10_a", ONE)
    log = LoginLog(with_password.sftp)
    assert with_password.deliver().exit_code == 0
    assert (log.lines("Accepted", "password"), log.lines("(?:Accepted|Failed)", "publickey")) == (1, 0)


def test_a_key_opens_the_server(stage: Stage) -> None:
    key = stage.folder / "id_ed25519"
    key.write_bytes(stage.sftp.key_file.read_bytes())
    stage.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE=key.name)  # relative to config.env
    stage.query("10_a", ONE)
    log = LoginLog(stage.sftp)
    assert stage.deliver().exit_code == 0
    assert (log.lines("Accepted", "publickey"), log.passwords()) == (1, 0)


@pytest.fixture
def locked_key(stage: Stage) -> Path:
    """The key that opens the server, with a passphrase."""
    key = serialization.load_ssh_private_key(stage.sftp.key_file.read_bytes(), None)
    form = serialization.PrivateFormat.OpenSSH
    lock = serialization.BestAvailableEncryption(CANARY.encode())
    path = stage.folder / "locked"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
    return path


def test_a_key_with_a_passphrase_opens_the_server(stage: Stage, locked_key: Path) -> None:
    stage.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE=locked_key, SFTP_KEY_PASSPHRASE=CANARY)
    stage.query("10_a", ONE)
    assert stage.deliver().exit_code == 0


@pytest.mark.parametrize("passphrase", [None, "wrong-" + CANARY])
def test_a_wrong_passphrase_is_told(stage: Stage, locked_key: Path, passphrase: str | None) -> None:
    stage.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE=locked_key, SFTP_KEY_PASSPHRASE=passphrase)
    refused(stage, str(locked_key), "SFTP_KEY_PASSPHRASE")


def test_a_key_file_that_is_not_there_is_told(stage: Stage) -> None:
    stage.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE="nowhere")
    refused(stage, "not found", "SFTP_KEY_FILE")


@pytest.mark.parametrize(
    ("content", "told", "hint"),
    [
        ("", "no private key", "ssh-keygen"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nxx\n", "no private key", "ssh-keygen"),
        ("ssh-ed25519 AAAA operator@example.com", "public half", "without .pub"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", "public half", "without .pub"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", "PuTTY", "Export OpenSSH key"),
    ],
)
def test_a_file_that_is_no_private_key_is_told(stage: Stage, content: str, told: str, hint: str) -> None:
    (stage.folder / "id").write_text(content)
    stage.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE="id")
    refused(stage, told, hint)


def test_a_key_that_the_server_does_not_know_is_refused_at_once(stage: Stage) -> None:
    from local_servers import write_key_pair

    write_key_pair(stage.folder / "id")
    stage.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE="id")
    refused(stage, "is wrong", "SFTP_USER")


def test_a_wrong_password_is_tried_once(with_password: Stage) -> None:
    with_password.settings(SFTP_PASSWORD=CANARY)
    log = LoginLog(with_password.sftp)
    refused(with_password, "the user, the password or the key is wrong", "SFTP_PASSWORD")
    assert log.lines("Failed", "password") == 1


def test_another_host_key_stops_the_run_before_any_password_is_sent(with_password: Stage) -> None:
    with_password.settings(SFTP_HOST_KEY="SHA256:" + "a" * 43)
    log = LoginLog(with_password.sftp)
    result = refused(with_password, with_password.sftp.fingerprint, "administrator")
    assert "SFTP_HOST_KEY" in result.campaigns["a"]["message"]
    assert log.passwords() == 0


def test_a_host_key_that_changed_between_two_runs_stops_the_second(stage: Stage, tmp_path: Path) -> None:
    with ParamikoServer(tmp_path / "server") as server:
        server.root.mkdir()
        stage.use(server)
        stage.query("10_a", ONE)
        assert stage.deliver(now=NOON).exit_code == 0
        server.renew_host_key()
        log = LoginLog(server)
        assert stage.deliver(now=NOON + timedelta(hours=1)).exit_code == 6
        assert log.passwords() == 0 and len(stage.files("a")) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Out of reach
# ---------------------------------------------------------------------------------------------------------------------


def unreachable(stage: Stage, attempts: int = 3) -> Result:
    """A run whose server is down: one retry budget for all campaigns."""
    stage.settings(RETRY_ATTEMPTS=attempts)
    for name in ("10_a", "20_b", "30_c"):
        stage.query(name, ONE)
    result = stage.deliver()
    assert result.exit_code == 6 and set(result.verdicts.values()) == {"failed"}, result.said
    assert "SFTP_HOST" in result.campaigns["c"]["hint"]
    assert result.log.count(" retry ") == attempts - 1
    return result


def test_an_unreachable_server_costs_one_retry_budget_and_ends_with_6(stage: Stage) -> None:
    stage.settings(SFTP_PORT=free_port())
    unreachable(stage)


def test_an_unknown_host_name_ends_with_6(stage: Stage) -> None:
    stage.settings(SFTP_HOST="nowhere.invalid")
    unreachable(stage)


def test_a_server_that_is_no_ssh_server_ends_with_6(stage: Stage) -> None:
    with Proxy(stage.sftp.port) as proxy:
        proxy.answer_next(b"HTTP/1.1 400 Bad Request\r\n\r\n", connections=99)
        stage.settings(SFTP_PORT=proxy.port)
        unreachable(stage, attempts=2)


def test_the_port_of_postgresql_is_told_as_that_and_not_tried_again(stage: Stage) -> None:
    stage.settings(SFTP_PORT=stage.values["PGPORT"])
    refused(stage, "PostgreSQL answers there", "SFTP_PORT")


def test_a_server_that_comes_back_within_the_budget_is_used(stage: Stage) -> None:
    stage.query("10_a", ONE)
    with Proxy(stage.sftp.port) as proxy:
        stage.settings(SFTP_PORT=proxy.port)
        proxy.close_next(3)  # one of them is the question whether this is PostgreSQL's port
        result = stage.deliver()
    assert result.verdicts == {"a": "delivered"}
    assert "retry 2 of 4" in result.log


# ---------------------------------------------------------------------------------------------------------------------
# The protocol
# ---------------------------------------------------------------------------------------------------------------------


def test_a_mailing_arrives_under_a_temp_name_and_is_renamed_when_it_is_whole(stage: Stage) -> None:
    stage.query("10_a", "SELECT telefone, nome FROM contatos")
    with stage.dialer(pattern="*", take=False) as dialer:
        assert stage.deliver(now=NOON).exit_code == 0
        temp, final = dialer.record
    assert TEMP.fullmatch(temp.name)
    assert final.name == "mailing_a_22-12_12-00.csv" and stage.files("a") == [final.name]
    whole = (stage.output / final.name).read_bytes()
    assert final.size_bytes == len(whole) and stage.mailing("a") == whole


def test_no_temp_name_is_one_that_a_dialer_takes(stage: Stage) -> None:
    stage.query("10_a", "SELECT telefone, nome FROM contatos")
    with stage.dialer(pattern="mailing_*.csv") as dialer, stage.dialer(pattern="*.csv", take=False) as other:
        assert stage.deliver().exit_code == 0
        assert len(dialer.record) == 1 and len(other.record) <= 1
        assert dialer.record[0].sha256 == stage.ledger()[0]["sha256"]


def test_with_a_staging_folder_only_final_names_ever_stand_in_the_drop_folder(stage: Stage) -> None:
    staging = stage.sftp.make_folder(f"{stage.base.name}/em obras")
    stage.settings(SFTP_STAGING_DIR=stage.remote_base / "em obras")
    stage.query("10_a", "SELECT telefone, nome FROM contatos")
    with stage.dialer(pattern="*") as dialer:
        assert stage.deliver(now=NOON).exit_code == 0
        (arrival,) = dialer.record
    assert arrival.name == "mailing_a_22-12_12-00.csv"
    assert arrival.sha256 == stage.ledger()[0]["sha256"]
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("directive", [True, False])
def test_final_names_follow_file_name(stage: Stage, directive: bool) -> None:
    pattern = "{campaign}@%Y%m%d-%H%M%S ção.txt"
    if directive:
        stage.query("10_a", ONE, file_name=pattern)
    else:
        stage.settings(FILE_NAME=pattern)
        stage.query("10_a", ONE)
    assert stage.deliver(now=NOON).exit_code == 0
    assert stage.files("a")[0].startswith("a@20261222-1200")
    assert stage.files("a")[0].endswith(" ção.txt")


def test_a_campaign_can_name_its_folder(stage: Stage) -> None:
    stage.query("10_a", ONE, folder=stage.remote_base / "Outra Pasta")
    stage.query("20_b", ONE, folder="relativa")
    assert stage.deliver().exit_code == 0
    assert len(list((stage.base / "Outra Pasta").iterdir())) == len(list((stage.base / "relativa").iterdir())) == 1


@pytest.fixture
def on_request(stage: Stage, tmp_path: Path) -> Iterator[FaultyServer]:
    """The stage on a server that commits faults on request."""
    with FaultyServer(tmp_path / "server") as server:
        stage.use(server)
        yield server


def test_each_worker_has_a_channel_of_one_login(stage: Stage, on_request: FaultyServer) -> None:
    """Two uploads meet in the middle, each in a channel of its own; nobody logs in twice."""
    meeting = threading.Barrier(2)
    met: set[FaultySession] = set()

    def meet(session: FaultySession, _: Request, proceed: Callable[[], None]) -> None:
        met.add(session)
        meeting.wait(20)
        proceed()

    on_request.commits("write", meet, times=2)
    for name in ("10_a", "20_b", "30_c"):
        stage.query(name, ONE)
    result = stage.deliver()
    assert set(result.verdicts.values()) == {"delivered"}, result.said
    assert len(met) == 2 and " retry " not in result.log
    assert on_request.log_text().count("Accepted ") == 1


@pytest.fixture(params=["OpenSSH", "paramiko"])
def one_channel(
    stage: Stage, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """The stage on a server that grants one channel only."""
    if request.param == "paramiko":
        with FaultyServer(tmp_path / "server") as server:
            server.commits("session", "refuse", times=ALWAYS)
            server.faults[-1].skip = 1
            stage.use(server)
            yield stage
        return
    if not isinstance(stage.sftp, OpenSshServer):
        pytest.skip("needs OpenSSH's sshd")
    config = local_servers.SSHD_CONFIG
    monkeypatch.setattr(local_servers, "SSHD_CONFIG", config.replace("MaxSessions 100", "MaxSessions 1"))
    with OpenSshServer(None, login="test_user" if local_servers.is_root() else "current") as sshd:
        stage.use(sshd)
        yield stage
        stage.close()


def test_a_server_that_grants_one_channel_gets_every_mailing_in_turn(one_channel: Stage) -> None:
    names = "abcdef"
    for number, name in enumerate(names):
        one_channel.query(f"{number}0_{name}", "SELECT telefone, nome FROM contatos")
    log = LoginLog(one_channel.sftp)
    with Proxy(one_channel.sftp.port) as line:
        line.delay(0.02)  # so that more than one wants to upload at a time
        one_channel.settings(SFTP_PORT=line.port)
        result = one_channel.deliver()
    assert result.exit_code == 0, result.said
    assert {len(one_channel.cells(name)) for name in names} == {3001}
    assert result.log.count("the server grants no more than 1 SFTP channels, mailings take turns") == 1, result.log
    assert " retry " not in result.log
    assert log.lines("Accepted", r"\w+") == 1


def test_answers_in_another_order_are_understood(stage: Stage, on_request: FaultyServer) -> None:
    """As threaded servers give them: 3 MB arrive in one try."""
    shuffled = AnotherOrder(16)
    on_request.commits("write", shuffled, times=ALWAYS)
    stage.query("10_a", "SELECT n, repeat('x', 92) AS x FROM generate_series(1, 30000) AS n")
    result = stage.deliver(now=NOON)
    assert result.verdicts == {"a": "delivered"}, result.said
    assert " retry " not in result.log
    assert len(stage.mailing("a")) > 2_900_000
    assert stage.mailing("a") == (stage.output / stage.files("a")[0]).read_bytes()
    assert shuffled.displaced > 20, "the server did answer in another order"


def test_a_refusal_among_answers_in_another_order_is_heard(stage: Stage, on_request: FaultyServer) -> None:
    """The answer to one write in the middle says FAILURE; the next try is whole."""
    on_request.commits("write", "refuse", at_byte=1_000_000)
    on_request.commits("write", AnotherOrder(16), times=ALWAYS)
    stage.query("10_a", "SELECT n, repeat('x', 92) AS x FROM generate_series(1, 30000) AS n")
    result = stage.deliver(now=NOON)
    assert result.verdicts == {"a": "delivered"}, result.said
    assert result.log.count("a: retry") == 1
    assert stage.mailing("a") == (stage.output / stage.files("a")[0]).read_bytes()


def test_a_mailing_is_published_while_later_queries_still_run(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.query("20_b", "SELECT pg_sleep(1.2) AS s")
    with stage.dialer() as dialer:
        assert stage.deliver().exit_code == 0
        first, second = dialer.record
    assert (first.campaign, second.campaign) == ("a", "b")
    assert second.at - first.at > 0.5


SLOW = """
SELECT n, repeat('x', 50) AS x, pg_sleep(CASE WHEN n = 900 THEN 1.2 ELSE 0 END) AS s FROM generate_series(1, 1000) AS n
"""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mailing is written while its query still runs."""
    monkeypatch.setattr(mailing_pipeline, "BLOCK_BYTES", 1000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("sql", "directives"),
    [(SLOW, {"max_rows": 950}), (SLOW, {"min_rows": 2000}), (SLOW.replace("n,", "1 / (n - 950) AS n,"), {})],
    ids=["max_rows", "min_rows", "error"],
)
def test_of_a_mailing_that_is_refused_not_even_a_temp_is_seen(
    stage: Stage, sql: str, directives: dict[str, Any]
) -> None:
    stage.query("10_a", sql, **directives)
    with stage.dialer(pattern="*", take=False) as dialer:
        assert stage.deliver().exit_code == 4
        assert dialer.record == []
    assert stage.files("a") == []
    assert stage.ledger()[0]["temps"] == 0


@pytest.mark.usefixtures("small_blocks")
def test_an_export_that_begins_anew_is_uploaded_once(stage: Stage) -> None:
    stage.query("10_a", SLOW)

    def end() -> None:
        with stage.database.connect() as connection:
            for _ in range(500):
                time.sleep(0.01)
                sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                if connection.execute(sql).fetchone() != (0,):
                    return

    thread = threading.Thread(target=end)
    thread.start()
    result = stage.deliver(now=NOON)
    thread.join()
    assert result.verdicts == {"a": "delivered"}
    assert "a: retry 1 of" in result.log
    assert stage.files("a") == ["mailing_a_22-12_12-00.csv"]
    assert [row[0] for row in stage.cells("a")[1:]] == [str(n) for n in range(1, 1001)]


def real_permissions(stage: Stage) -> None:
    if isinstance(stage.sftp, ParamikoServer) or stage.sftp.user == "root":
        pytest.skip("needs an sshd whose user is bound by permission bits")


def test_a_read_only_folder_fails_its_campaign_alone(stage: Stage) -> None:
    real_permissions(stage)
    stage.query("10_a", ONE)
    stage.query("20_b", ONE)
    with forbidden(stage.drop("a")):
        result = stage.deliver()
    assert result.exit_code == 4 and result.verdicts == {"a": "failed", "b": "delivered"}
    assert f"{stage.remote_base}/a" in result.campaigns["a"]["message"]
    assert "write access" in result.campaigns["a"]["hint"]
    assert " retry " not in result.log and stage.files("a") == []


def test_what_is_the_matter_on_the_way_to_one_folder_does_not_stop_the_others(stage: Stage) -> None:
    """Every fault at once, one campaign each."""
    stage.query("10_missing", ONE, drop=False)
    stage.query("20_broken", "SELECT")
    stage.query("30_empty", "SELECT 1 AS n WHERE false", min_rows=1)
    stage.query("40_layout", ONE, columns="m")
    stage.query("50_there", ONE)
    stage.query("60_good", ONE)
    (stage.drop("there") / "mailing_there_22-12_12-00.csv").write_bytes(b"x")
    result = stage.deliver(now=NOON)
    verdicts = result.verdicts
    assert result.exit_code == 4
    assert verdicts.pop("missing") in ("held", "failed")
    assert verdicts.pop("broken") in ("held", "failed")
    assert verdicts == {"empty": "held", "layout": "held", "there": "held", "good": "delivered"}
    assert all(entry["message"] and entry["hint"] for name, entry in result.campaigns.items() if name != "good")


# ---------------------------------------------------------------------------------------------------------------------
# SFTP_VERIFY, SFTP_COMPRESS
# ---------------------------------------------------------------------------------------------------------------------


class FlippingHandle(FolderHandle):
    """Stores one byte other than it was sent."""

    def write(self, offset: int, data: Any) -> int:
        return int(super().write(offset, bytes([data[0] ^ 1]) + data[1:]))


class FlippingFiles(FolderFiles):
    handle_class = FlippingHandle


class ForgetfulHandle(FolderHandle):
    """Says OK and stores less."""

    def write(self, offset: int, data: Any) -> int:
        return int(super().write(offset, data[:-1]))


class ForgetfulFiles(FolderFiles):
    handle_class = ForgetfulHandle


@pytest.fixture
def faulty(stage: Stage, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The stage on a server that stores what it likes."""
    (tmp_path / "server").mkdir()
    with ParamikoServer(tmp_path / "server", request.param) as server:
        stage.use(server)
        stage.query("10_a", "SELECT telefone FROM contatos")
        yield stage


@pytest.mark.parametrize("faulty", [ForgetfulFiles], indirect=True)
def test_a_file_of_another_size_is_never_published(faulty: Stage) -> None:
    result = faulty.deliver()
    assert result.exit_code == 4 and result.verdicts == {"a": "failed"}
    assert faulty.files("a") == []
    assert result.log.count("a: retry") == 2 and "retry 2 of 2" in result.log
    assert "disk is full" in result.campaigns["a"]["hint"]


@pytest.mark.parametrize("faulty", [FlippingFiles], indirect=True)
def test_with_verify_hash_other_content_of_the_same_size_is_never_published(faulty: Stage) -> None:
    assert faulty.deliver(now=NOON).verdicts == {"a": "delivered"}  # what `size` cannot see
    faulty.settings(SFTP_VERIFY="hash")
    result = faulty.deliver(now=NOON + timedelta(hours=1))
    assert result.exit_code == 4 and result.verdicts == {"a": "failed"}
    assert faulty.files("a") == ["mailing_a_22-12_12-00.csv"]
    assert result.log.count("a: retry") == 2
    assert "SHA-256" in result.campaigns["a"]["message"]


def test_with_verify_hash_good_files_are_delivered(stage: Stage) -> None:
    stage.settings(SFTP_VERIFY="hash")
    stage.query("10_a", "SELECT telefone FROM contatos")
    assert stage.deliver().verdicts == {"a": "delivered"}


def test_a_server_that_does_not_compress_is_served_without(stage: Stage, tmp_path: Path) -> None:
    with ParamikoServer(tmp_path / "sftp") as server:
        stage.use(server)
        stage.settings(SFTP_COMPRESS="yes")
        stage.query("10_a", ONE)
        assert stage.deliver().verdicts == {"a": "delivered"}


@pytest.mark.parametrize(("compress", "passes"), [("yes", True), ("no", False)])
def test_compression_makes_a_slow_line_carry_more(stage: Stage, compress: str, passes: bool) -> None:
    if isinstance(stage.sftp, ParamikoServer):
        pytest.skip("paramiko's server does not compress")
    stage.query("10_a", "SELECT repeat('x', 100) AS x FROM generate_series(1, 5000)")
    with Proxy(stage.sftp.port) as proxy:
        proxy.cut_after(200_000, "up")
        stage.settings(SFTP_PORT=proxy.port, SFTP_COMPRESS=compress, RETRY_ATTEMPTS=1)
        result = stage.deliver()
    assert (result.exit_code == 0) is passes
    assert len(stage.cells("a")) == 5001 if passes else stage.files("a") == [] or TEMP.fullmatch(stage.files("a")[0])


# ---------------------------------------------------------------------------------------------------------------------
# Second runs
# ---------------------------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_slot_sends_nothing(stage: Stage) -> None:
    stage.query("10_a", ONE)
    assert stage.deliver(now=NOON).verdicts == {"a": "delivered"}
    again = stage.deliver(now=NOON + timedelta(minutes=59))
    assert again.exit_code == 0 and again.verdicts == {"a": "already delivered"}
    assert len(stage.files("a")) == 1 and len(stage.ledger()) == 1


def test_the_next_slot_sends_anew(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON + timedelta(minutes=59))
    assert stage.deliver(now=NOON + timedelta(hours=1)).verdicts == {"a": "delivered"}
    assert stage.files("a") == ["mailing_a_22-12_12-59.csv", "mailing_a_22-12_13-00.csv"]


def test_resend_sends_again_under_a_new_name_and_says_so(stage: Stage) -> None:
    stage.query("10_a", ONE)
    clock = FakeClock(NOON, frozen=True, naps=False)
    assert stage.deliver(clock=clock).exit_code == 0
    for _ in range(2):
        again = stage.deliver("--resend", clock=clock)
        assert again.exit_code == 0 and again.verdicts == {"a": "delivered"}
        assert "--resend" in again.log
    names = ["mailing_a_22-12_12-00-2.csv", "mailing_a_22-12_12-00-3.csv", "mailing_a_22-12_12-00.csv"]
    assert stage.files("a") == names
    assert [entry["resend"] for entry in stage.ledger()] == [0, 1, 1]
    assert stage.deliver(clock=clock).verdicts == {"a": "already delivered"}


def test_a_name_is_never_used_twice_even_after_the_dialer_took_the_file(stage: Stage) -> None:
    stage.query("10_a", ONE)
    clock = FakeClock(NOON, frozen=True, naps=False)
    with stage.dialer() as dialer:
        stage.deliver(clock=clock)
        dialer.wait_for(1)
        stage.deliver("--resend", clock=clock)
        assert [arrival.name for arrival in dialer.wait_for(2)] == [
            "mailing_a_22-12_12-00.csv",
            "mailing_a_22-12_12-00-2.csv",
        ]


def test_resend_of_a_slot_that_was_not_delivered_is_no_resend(stage: Stage) -> None:
    stage.query("10_a", ONE)
    assert stage.deliver("--resend").verdicts == {"a": "delivered"}
    assert [entry["resend"] for entry in stage.ledger()] == [0]


def test_a_rerun_after_three_of_five_sends_two(stage: Stage) -> None:
    names = ("a", "b", "c", "d", "e")
    for number, name in enumerate(names):
        stage.query(f"{number}0_{name}", ONE if name not in "bd" else "SELECT broken")
    first = stage.deliver(now=NOON)
    assert first.exit_code == 4 and [name for name in names if first.verdicts[name] == "delivered"] == ["a", "c", "e"]
    for name in "bd":
        stage.query(f"{names.index(name)}0_{name}", ONE)
    second = stage.deliver(now=NOON + timedelta(minutes=10))
    assert second.exit_code == 0
    assert [name for name in names if second.verdicts[name] == "delivered"] == ["b", "d"]
    assert [len(stage.files(name)) for name in names] == [1] * 5


def test_an_empty_campaign_is_asked_again_in_the_same_slot(stage: Stage) -> None:
    stage.query("10_a", "SELECT 1 AS n WHERE false")
    stage.deliver(now=NOON)
    stage.query("10_a", ONE)
    assert stage.deliver(now=NOON + timedelta(minutes=5)).verdicts == {"a": "delivered"}


# ---------------------------------------------------------------------------------------------------------------------
# Which errors are tried again: the classes of the contract
# ---------------------------------------------------------------------------------------------------------------------

MANY, ONCE_MORE, TWICE_MORE, CAMPAIGN, STAGE = "again", "once more", "twice more", "campaign fails", "stage fails"


def class_of(error: PipelineError) -> str:
    """What the retry loop makes of an error: how often it tries, and how far a final one reaches."""
    clock = FakeClock(frozen=True)
    tries = [0]

    def action() -> None:
        tries[0] += 1
        raise error

    with pytest.raises(PipelineError):
        retry(action, RetryPolicy(7, 1, 60), Stop(clock, 50), "test")
    if tries[0] == 1:
        return STAGE if error.wide else CAMPAIGN
    return {2: ONCE_MORE, 3: TWICE_MORE, 7: MANY}[tries[0]]


CONNECTING = [
    ('connection to server at "10.0.0.1", port 5432 failed: Connection refused', MANY),
    ('could not translate host name "db.example" to address: Name or service not known', MANY),
    ('connection to server at "10.0.0.1", port 5432 failed: timeout expired', MANY),
    ("connection timeout expired", MANY),
    ('connection to server at "10.0.0.1", port 5432 failed: server closed the connection unexpectedly', MANY),
    ("could not receive data from server: Connection reset by peer", MANY),
    ('connection to server at "10.0.0.1", port 5432 failed: FATAL:  sorry, too many clients already', MANY),
    ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", MANY),
    ('FATAL:  too many connections for role "mailing"', MANY),
    ("FATAL:  the database system is starting up", MANY),
    ("FATAL:  the database system is shutting down", MANY),
    ("FATAL:  the database system is in recovery mode", MANY),
    ("FATAL:  o sistema de banco de dados está iniciando", MANY),
    ('FATAL:  password authentication failed for user "mailing"', STAGE),
    ("fe_sendauth: no password supplied", STAGE),
    ('FATAL:  autenticação do tipo senha falhou para o usuário "mailing"', STAGE),
    ('FATAL:  role "mailing" does not exist', STAGE),
    ('FATAL:  role "mailing" is not permitted to log in', STAGE),
    ('FATAL:  role "mailing" não existe', STAGE),
    ('FATAL:  database "cobranca" does not exist', STAGE),
    ('FATAL:  banco de dados "cobranca" não existe', STAGE),
    ('FATAL:  no pg_hba.conf entry for host "10.0.0.2", user "mailing", database "cobranca", no encryption', STAGE),
    ("FATAL:  pg_hba.conf rejects connection for host", STAGE),
    ("FATAL:  unsupported startup parameter: options", STAGE),
    ("server does not support SSL, but SSL was required", STAGE),
    ('definition of service "casa" not found', STAGE),
]


@pytest.mark.parametrize(("told", "expected"), CONNECTING)
def test_an_error_while_connecting_has_its_class(told: str, expected: str) -> None:
    error = connect_error(told, "10.0.0.1:5432", names=["mailing", "cobranca"])
    assert class_of(error) == expected
    assert "10.0.0.1:5432" in str(error.message)
    assert error.hint and error.exit_code == 5 and error.wide


SQLSTATES = {
    **dict.fromkeys(
        ["08000", "08001", "08003", "08006", "08P01", "40001", "40P01", "40003", "53000", "53300", "55P03"], MANY
    ),
    **dict.fromkeys(["57P01", "57P02", "57P03", "57P05", "25P03", "72000"], MANY),
    **dict.fromkeys(["57014", "53100", "53200", "55006", "58030", "XX000"], ONCE_MORE),
    **dict.fromkeys(["28000", "28P01", "3D000"], STAGE),
}


def known_sqlstates() -> list[str]:
    """Every SQLSTATE that psycopg knows a name for."""
    found = {getattr(kind, "sqlstate", None) for kind in vars(psycopg.errors).values()}
    return sorted(state for state in found if isinstance(state, str))


def test_the_list_of_sqlstates_is_the_whole_list() -> None:
    known = set(known_sqlstates())
    assert len(known) > 200 and set(SQLSTATES) - known <= {"57P05"}


def refused_with(sqlstate: str) -> psycopg.Error:
    error = psycopg.Error("told")
    error.sqlstate = sqlstate
    return error


@pytest.mark.parametrize("sqlstate", sorted({*known_sqlstates(), *SQLSTATES, "72000", "99999"}))
def test_an_sqlstate_has_its_class(sqlstate: str) -> None:
    error = query_error(refused_with(sqlstate), place_in("10_a.sql", 3))
    assert class_of(error) == SQLSTATES.get(sqlstate, CAMPAIGN)
    assert str(error.message).startswith("10_a.sql: line 3: ") and sqlstate in str(error.message)
    assert error.hint and error.exit_code == 5


def test_a_connection_that_was_lost_in_a_query_is_tried_again() -> None:
    error = query_error(psycopg.OperationalError("told"), "10_a.sql")
    assert class_of(error) == MANY and "10_a.sql" in str(error.message) and error.hint


SFTP: list[tuple[Exception, str]] = [
    (ConnectionRefusedError(111, "Connection refused"), MANY),
    (socket.gaierror(-2, "Name or service not known"), MANY),
    (TimeoutError("timed out"), MANY),
    (ConnectionResetError(104, "Connection reset by peer"), MANY),
    (BrokenPipeError(32, "Broken pipe"), MANY),
    (OSError(113, "No route to host"), MANY),
    (EOFError(), MANY),
    (paramiko.SSHException("Error reading SSH protocol banner"), MANY),
    (paramiko.SSHException("Server connection dropped: "), MANY),
    (paramiko.SSHException("Channel closed."), MANY),
    (paramiko.SSHException("Key-exchange timed out waiting for key negotiation"), MANY),
    (paramiko.SSHException("Timeout opening channel."), MANY),
    (paramiko.ChannelException(1, "Administratively prohibited"), MANY),
    (paramiko.AuthenticationException("Authentication timeout."), MANY),
    (paramiko.SFTPError("Garbage packet received"), MANY),
    (OSError("Socket is closed"), MANY),
    (paramiko.AuthenticationException("Authentication failed: transport shut down or saw EOF"), ONCE_MORE),
    (paramiko.AuthenticationException("Authentication failed."), STAGE),
    (paramiko.BadAuthenticationType("Bad authentication type", ["publickey"]), STAGE),
    (paramiko.ssh_exception.IncompatiblePeer("Incompatible ssh peer (no acceptable host key)"), STAGE),
    (paramiko.SSHException("Illegal info request from server"), STAGE),  # the password has expired
    (FileNotFoundError(2, "No such file"), CAMPAIGN),
    (PermissionError(13, "Permission denied"), CAMPAIGN),
    (OSError("Operation unsupported"), CAMPAIGN),
    (OSError("Failure"), TWICE_MORE),
]


@pytest.mark.parametrize(
    ("error", "expected"), SFTP, ids=lambda value: repr(value) if isinstance(value, Exception) else ""
)
def test_an_sftp_error_has_its_class(error: Exception, expected: str) -> None:
    """STAGE: of a login, which would meet every campaign. A connection that broke is known as that."""
    where = "10.0.0.1:22" if expected == STAGE else ""
    fault = sftp_error(error, Text("writing x"), where=where)
    assert class_of(fault) == expected
    assert isinstance(fault, ConnectionLost) is (expected in (MANY, ONCE_MORE, STAGE))
    server = f"SFTP at {where}" if where else "SFTP"
    assert str(fault.message).startswith(f"{server}: writing x: ") and fault.hint and fault.exit_code == 6


def test_every_row_of_the_tables_has_an_example_here() -> None:
    """A row that no example meets is either dead or not tested."""
    examples: list[tuple[tuple[mailing_pipeline.Rule, ...], str, str]] = []
    examples += [(mailing_pipeline.CONNECT_RULES, told, "") for told, _ in CONNECTING]
    examples += [(mailing_pipeline.SQLSTATE_RULES, state, "") for state in [*known_sqlstates(), *SQLSTATES]]
    told = "08P01 transaction blocks not allowed in statement pooling mode"  # test_database_servers.py has the pooler
    examples.append((mailing_pipeline.SQLSTATE_RULES, told, ""))
    for error, _ in SFTP:
        examples.append((mailing_pipeline.SFTP_RULES, str(error), str(type(error).__mro__)))
    met = set()
    for rules, told, kinds in examples:
        fits = (rule for rule in rules if re.search(rule.kind, kinds) and re.search(rule.pattern, told, re.I))
        met.add(id(next(fits)))
    every = (*mailing_pipeline.CONNECT_RULES, *mailing_pipeline.SQLSTATE_RULES, *mailing_pipeline.SFTP_RULES)
    assert [rule for rule in every if id(rule) not in met] == []


# ---------------------------------------------------------------------------------------------------------------------
# The retry loop
# ---------------------------------------------------------------------------------------------------------------------


def failing(times: int, clock: FakeClock, takes_s: float = 0, **how: Any) -> Any:
    """An action that fails so many times, taking so long each time, and then returns how often it was called."""
    calls = [0]

    def action() -> int:
        calls[0] += 1
        clock.advance(takes_s)
        if calls[0] <= times:
            raise PipelineError(Text("down"), **({"tries": AGAIN} | how))
        return calls[0]

    return action


def test_pauses_double_up_to_the_longest() -> None:
    clock = FakeClock(frozen=True)
    assert retry(failing(5, clock), RetryPolicy(6, 2, 10), Stop(clock, 50), "x") == 6
    assert clock.pauses == [2, 4, 8, 10, 10]


def test_pauses_are_shortened_by_chance() -> None:
    assert {round(mailing_pipeline.Clock().jitter(), 3) for _ in range(50)} <= {n / 1000 for n in range(500, 1001)}
    assert len({mailing_pipeline.Clock().jitter() for _ in range(50)}) > 10


def test_the_last_error_is_raised_after_the_last_attempt() -> None:
    clock = FakeClock(frozen=True)
    with pytest.raises(PipelineError, match="down"):
        retry(failing(3, clock), RetryPolicy(3, 2, 10), Stop(clock, 50), "x")
    assert len(clock.pauses) == 2


@pytest.mark.parametrize("max_s", [0, 1])
def test_no_pause_at_all_is_a_policy_too(max_s: int) -> None:
    clock = FakeClock()
    assert retry(failing(4, clock), RetryPolicy(5, 0, max_s), Stop(clock, 50), "x") == 5


def test_one_attempt_is_no_retry() -> None:
    clock = FakeClock(frozen=True)
    with pytest.raises(PipelineError):
        retry(failing(1, clock), RetryPolicy(1, 2, 10), Stop(clock, 50), "x")
    assert clock.pauses == []


def test_an_error_that_is_not_worth_while_is_never_tried_again() -> None:
    clock = FakeClock(frozen=True)
    with pytest.raises(PipelineError):
        retry(failing(1, clock, tries=NEVER), RetryPolicy(5, 2, 10), Stop(clock, 50), "x")
    assert clock.pauses == []


@pytest.mark.parametrize(
    ("met", "attempts"),
    [
        ([AGAIN, AGAIN, 1], 4),
        ([AGAIN, 1, AGAIN, AGAIN], 5),
        ([1, 1], 2),
        ([AGAIN, 1, 1], 3),
        ([AGAIN, NEVER], 2),
        ([AGAIN, AGAIN, AGAIN, AGAIN, 2], 5),
    ],
)
def test_what_is_worth_a_few_tries_gets_them_whatever_failed_before(met: list[int | None], attempts: int) -> None:
    """A line that is lost twice, and then a server that refuses once: it gets its one more try."""
    clock, tried = FakeClock(frozen=True), 0

    def action() -> None:
        nonlocal tried
        tried += 1
        if tried <= len(met):
            raise PipelineError(Text("down"), tries=met[tried - 1])

    with contextlib.suppress(PipelineError):
        retry(action, RetryPolicy(5, 2, 10), Stop(clock, 50), "x")
    assert tried == attempts


def test_the_time_of_all_attempts_is_a_budget_too() -> None:
    """Attempts that take minutes each do not get as many as quick ones."""
    clock = FakeClock(frozen=True)
    with pytest.raises(PipelineError):
        retry(failing(99, clock, takes_s=120), RetryPolicy(5, 2, 60), Stop(clock, 500), "x")
    assert len(clock.pauses) < 4


def test_no_pause_reaches_beyond_the_deadline() -> None:
    clock = FakeClock(frozen=True)
    with pytest.raises(PipelineError, match="down"):
        retry(failing(99, clock), RetryPolicy(50, 20, 60), Stop(clock, 1.9), "x")
    assert sum(clock.pauses) < 120


def test_nothing_starts_after_the_deadline() -> None:
    clock = FakeClock(frozen=True)
    stop = Stop(clock, 2)
    clock.advance(121)
    with pytest.raises(PipelineError, match="deadline"):
        retry(failing(0, clock), RetryPolicy(5, 2, 60), stop, "x")


def test_a_clock_that_is_set_back_does_not_lengthen_the_run() -> None:
    class SetBack(FakeClock):
        def now(self) -> Any:
            return super().now() - timedelta(hours=1 if self._slept_s else 0)

    clock = SetBack(frozen=True)
    stop = Stop(clock, 2)
    clock.advance(121)
    assert stop.left_s() < 0


def test_the_deadline_says_the_same_whoever_notices_it_first() -> None:
    """The watchdog, which ends the waits of the others, or the one who waits."""
    clock = FakeClock(frozen=True)
    stop = Stop(clock, 2)
    clock.advance(121)
    noticed = stop.error
    stop.end()
    assert noticed and stop.error and noticed.lines == stop.error.lines
    assert "RUN_DEADLINE_MINUTES" in str(noticed.hint)


def test_the_retry_settings_are_used(stage: Stage) -> None:
    """Of a run: as many attempts and as long pauses as config.env says."""
    stage.settings(SFTP_PORT=free_port(), RETRY_ATTEMPTS=4, RETRY_FIRST_SECONDS=3, RETRY_MAX_SECONDS=10)
    stage.query("10_a", ONE)
    clock = FakeClock(NOON)
    assert stage.deliver(clock=clock).exit_code == 6
    assert [pause for pause in clock.pauses if pause > 0.5] == [3, 6, 10]


def test_each_retry_is_a_line_in_the_log(stage: Stage) -> None:
    stage.settings(SFTP_PORT=free_port(), RETRY_ATTEMPTS=3, RETRY_FIRST_SECONDS=3)
    stage.query("10_a", ONE)
    log = stage.deliver(clock=FakeClock(NOON)).log
    assert re.search(r"retry 1 of 2 in \d+\.\d s: .*refused", log) and "retry 2 of 2" in log


# ---------------------------------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------------------------------


def wait_for_temp(stage: Stage, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if any(TEMP.fullmatch(name) for name in stage.files("a")):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    raise AssertionError("no upload began")


@pytest.mark.parametrize("same_slot", [True, False])
def test_a_run_that_is_killed_in_its_upload_is_made_good_by_the_next(stage: Stage, same_slot: bool) -> None:
    stage.query("10_a", "SELECT repeat('x', 1000) AS x FROM generate_series(1, 3000) AS n")
    with stage.dialer() as dialer:
        with Proxy(stage.sftp.port) as line:
            line.limit(300_000, "up")
            process = stage.start(SFTP_PORT=str(line.port))
            wait_for_temp(stage, process)
            process.kill()
            process.wait()
        (whole,) = stage.output.glob("*.csv")
        assert whole.read_bytes().count(b"\n") == 3001, "a CSV that stands in output/ is complete"
        stage.query("10_a", ONE)
        result = stage.deliver(now=None if same_slot else NOON)
        assert result.exit_code == 0 and result.verdicts == {"a": "delivered"}
        assert len(dialer.wait_for(1)) == 1
        assert dialer.record[0].size_bytes == len(b"n\r\n1\r\n")
    assert stage.files("a") == [], "the temp of the killed run is gone"
    assert [entry["state"] for entry in stage.ledger()] == ["failed", "delivered"]


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind there")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("state", ["exported", "publishing", "delivered"])
def test_ctrl_c_beside_a_note_of_the_rename_leaves_what_the_next_run_can_settle(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, state: str, when: str
) -> None:
    """Between two given lines no key can be pressed on request: the ledger's own note presses it."""
    stage.query("10_a", ONE)
    real = mailing_pipeline.Ledger.note
    pressed: list[str] = []

    def press(now: str) -> None:
        if now == when and not pressed:
            pressed.append(when)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # until the main thread has taken it

    def note(ledger: mailing_pipeline.Ledger, mailing: mailing_pipeline.Mailing, **values: object) -> None:
        told = values.get("state") == state
        if told:
            press("before")
        real(ledger, mailing, **values)
        if told:
            press("after")

    monkeypatch.setattr(mailing_pipeline.Ledger, "note", note)
    first = stage.deliver()
    monkeypatch.undo()
    assert pressed, first.said
    again = stage.deliver()
    assert again.verdicts["a"] in ("delivered", "already delivered"), first.said + again.said
    assert len(stage.files("a")) == 1
    assert not [entry for entry in stage.ledger() if entry["temps"] or entry["state"] == "publishing"]


def test_a_run_that_is_interrupted_in_its_rename_ends_in_order(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.query("20_b", "SELECT pg_sleep(30) AS s")
    process = stage.start("--json")
    for _ in range(3000):
        if any(not TEMP.fullmatch(name) for name in stage.files("a")):
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    result = stage.end(process)
    assert result.exit_code == 4, result.said
    assert result.verdicts["a"] in ("delivered", "in doubt") and result.verdicts["b"] == "failed"
    stage.query("20_b", ONE)
    again = stage.deliver(now=datetime.fromisoformat(result.json["slot"]))
    assert again.verdicts == {"a": "already delivered", "b": "delivered"}, result.said + again.said + stage.log()
    assert len(stage.files("a")) == 1
