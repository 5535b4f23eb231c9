"""Faults 31 to 37: reaching the SFTP server, knowing it, and logging in."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import paramiko
import pytest
from local_servers import is_root, write_key_pair
from rig.faulty_sftp import ALWAYS, Fault, FaultyLogin, FaultyServer
from rig.proxy import Direction
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

PATIENT = {"RETRY_FIRST_SECONDS": 1, "RETRY_MAX_SECONDS": 2}


def until_retrying(rig: Rig) -> None:
    until(lambda: "retry 1 of" in rig.log(), "the program tries again")


# 31 ------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_costs_the_run_one_budget_and_not_one_for_each_campaign(rig: Rig) -> None:
    """31, refused."""
    rig.campaigns("alfa", "beta", "gama", "delta")
    with rig.sftp_line() as line, rig.dialer():
        line.refuse()
        assert rig.run().code == 6
        rig.delivered()
        assert rig.log().count(" retry ") == 4


def test_a_server_that_comes_back_while_the_run_tries_again_gets_everything(rig: Rig) -> None:
    """31, refused."""
    rig.campaigns("alfa", "beta")
    rig.settings(**PATIENT)
    with rig.sftp_line() as line, rig.dialer():
        line.refuse()
        program = rig.start()
        until_retrying(rig)
        line.accept()
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")


def test_a_name_that_dns_does_not_know(rig: Rig) -> None:
    """31."""
    rig.campaigns("alfa")
    rig.settings(SFTP_HOST="sftp.invalid", RETRY_ATTEMPTS=2)
    with rig.dialer():
        program = rig.run()
        assert program.code == 6
        assert "SFTP_HOST" in program.output
        rig.delivered()


def test_a_server_that_accepts_and_never_says_a_word(rig: Rig) -> None:
    """31."""
    rig.campaigns("alfa")
    rig.settings(RETRY_ATTEMPTS=2)
    with rig.sftp_line() as line, rig.dialer():
        line.keep_silent_on_connect()
        assert rig.run(connect_timeout_s=1).code == 6
        rig.delivered()
        line.answer()
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_a_banner_that_comes_late(rig: Rig) -> None:
    """31."""
    rig.campaigns("alfa")
    with rig.sftp_line() as line, rig.dialer():
        line.silence("down")
        threading.Timer(1.5, line.speak).start()
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert line.accepted == 1


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_that_are_closed_at_once(rig: Rig, connections: int) -> None:
    """31: as an sshd that has too many of them (MaxStartups)."""
    rig.campaigns("alfa")
    with rig.sftp_line() as line, rig.dialer():
        line.close_next(connections)
        assert rig.run().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_line_that_is_half_closed(rig: Rig, direction: Direction) -> None:
    """31 in the middle of an upload."""
    rig.campaign("alfa", 20_000)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(1_500_000, "up")
        program = rig.start()
        until(rig.leftovers, "the upload has begun")
        time.sleep(0.2)
        line.half_close(direction)
        line.limit(0)
        assert program.wait().code == 0
        rig.delivered("alfa")


def test_a_line_that_falls_silent_in_an_upload(rig: Rig) -> None:
    """31, 44: nothing arrives and nothing is refused; the wait has an end."""
    rig.campaign("alfa", 20_000)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(1_500_000, "up")
        program = rig.start()
        until(rig.leftovers, "the upload has begun")
        line.silence()
        until_retrying(rig)
        line.speak()
        line.limit(0)
        assert program.wait().code == 0
        rig.delivered("alfa")


def test_a_connection_that_is_closed_while_a_query_runs_is_dialled_again(rig: Rig) -> None:
    """31: servers end idle sessions."""
    rig.campaign("alfa", pause_s=1)
    with rig.sftp_line() as line, rig.dialer():
        logins = rig.stage.sftp.log_text().count("Accepted")
        program = rig.start()
        rig.busy_backend()
        until(lambda: rig.stage.sftp.log_text().count("Accepted") > logins, "the program has logged in")
        time.sleep(0.2)  # its session follows
        line.cut()
        assert program.wait().code == 0
        rig.delivered("alfa")


# 32, 33 --------------------------------------------------------------------------------------------------------------


def test_a_changed_host_key_stops_at_once_and_no_password_is_sent(rig: Rig) -> None:
    """32."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.sftp_line() as line, rig.dialer():
        server.renew_host_key()
        program = rig.run()
        assert program.code == 6
        assert "SFTP_HOST_KEY" in program.output
        assert server.passwords_seen == 0
        assert line.accepted == 1
        rig.delivered()


def test_a_host_key_that_changes_between_two_connections_of_a_run(rig: Rig) -> None:
    """32: somebody stepped in between."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():

        def cut_and_renew(session: object, *_: object) -> None:
            session.cut()  # type: ignore[attr-defined]
            server.fingerprint = write_key_pair(server._host_key_file)
            threading.Thread(target=restart).start()

        def restart() -> None:
            server.stop()
            server.start()

        server.commits("write", cut_and_renew)
        assert rig.run().code == 6
        assert server.passwords_seen == 1
        rig.delivered()


def test_without_a_known_host_key_nothing_is_even_dialled(rig: Rig) -> None:
    """33."""
    rig.campaigns("alfa")
    rig.settings(SFTP_HOST_KEY=None)
    with rig.sftp_line() as line, rig.dialer():
        program = rig.run()
        assert program.code == 2
        assert "SFTP_HOST_KEY" in program.output
        assert line.accepted == 0
        rig.delivered()


# 34 ------------------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_tried_once(rig: Rig) -> None:
    """34: an account that locks itself after three would otherwise be locked by us."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        rig.settings(SFTP_PASSWORD="wrong-canary")
        program = rig.run()
        assert program.code == 6
        assert "SFTP_PASSWORD" in program.output
        assert server.passwords_seen == 1
        rig.delivered()


def test_a_wrong_key_is_tried_once(rig: Rig, tmp_path: Path) -> None:
    """34."""
    rig.campaigns("alfa")
    write_key_pair(tmp_path / "other_key")
    with rig.faulty_server() as server, rig.dialer():
        rig.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE=tmp_path / "other_key")
        assert rig.run().code == 6
        assert server.log_text().count("Failed publickey") == 1
        rig.delivered()


@pytest.mark.parametrize("passphrase", ["", "wrong-canary"])
def test_a_key_whose_passphrase_is_missing_or_wrong_is_told_as_that(rig: Rig, tmp_path: Path, passphrase: str) -> None:
    """34."""
    rig.campaigns("alfa")
    key = paramiko.RSAKey.generate(2048)
    key.write_private_key_file(str(tmp_path / "locked_key"), password="the-right-canary")
    rig.settings(SFTP_PASSWORD=None, SFTP_KEY_FILE=tmp_path / "locked_key", SFTP_KEY_PASSPHRASE=passphrase)
    with rig.dialer():
        program = rig.run()
        assert program.code == 6
        assert "SFTP_KEY_PASSPHRASE" in program.output
        rig.delivered()


def test_an_authentication_that_is_never_answered_is_tried_again(rig: Rig) -> None:
    """34: a timeout is not a wrong password."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("password", "hang")
        assert rig.run(connect_timeout_s=1).code == 0
        assert server.passwords_seen == 2
        rig.delivered("alfa")


@pytest.mark.parametrize("does", ["cut", "hang up"])
def test_a_line_that_is_lost_during_the_authentication_is_dialled_again(rig: Rig, does: str) -> None:
    """34: paramiko tells it as an AuthenticationException, and yet no password was refused."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("password", does)
        assert rig.run().code == 0
        assert server.passwords_seen == 2
        rig.delivered("alfa")


def test_a_server_that_always_hangs_up_on_the_password_sees_it_twice_at_the_most(rig: Rig) -> None:
    """34: it may be its way to refuse one, and an account that locks itself after three must not be locked by us."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("password", "hang up", ALWAYS)
        program = rig.run()
        assert program.code == 6
        assert "SFTP_PASSWORD" in program.output
        assert server.passwords_seen == 2
        rig.delivered()


def test_a_wrong_password_at_a_server_that_then_offers_no_other_way_is_told_as_that(rig: Rig) -> None:
    """34: its list of what can continue is empty."""

    class Login(FaultyLogin):
        def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
            return ""

    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.login_class = Login
        rig.settings(SFTP_PASSWORD="wrong-canary")
        program = rig.run()
        assert program.code == 6
        assert "SFTP_PASSWORD" in program.output
        assert server.passwords_seen == 1
        rig.delivered()


def test_a_server_that_quotes_the_password_in_its_next_question_is_told_without_it(rig: Rig) -> None:
    """70."""

    class Login(FaultyLogin):
        def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
            return "keyboard-interactive"

        def check_auth_password(self, username: str, password: str) -> int:  # noqa: ARG002
            return paramiko.common.AUTH_FAILED

        def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:  # noqa: ARG002
            return paramiko.InteractiveQuery("", "", "Password: ")

        def check_auth_interactive_response(self, responses: list[str]) -> paramiko.InteractiveQuery:  # type: ignore[override]
            return paramiko.InteractiveQuery("", "", f"{responses[0]} has expired, a new one: ")

    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.login_class = Login
        program = rig.run()
        assert program.code == 6
        assert "has expired, a new one" in program.output
        assert rig.leaks() == []
        rig.delivered()


@pytest.mark.skipif(not is_root(), reason="making a user needs root")
def test_openssh_refuses_a_password_and_locks_nobody_out(rig: Rig) -> None:
    """34 on the real server."""
    rig.campaigns("alfa")
    server = rig.openssh()
    before = server.log_text().count("Failed password")
    right = rig.stage.values["SFTP_PASSWORD"]
    rig.settings(SFTP_PASSWORD="wrong-canary")
    with rig.dialer():
        assert rig.run().code == 6
        assert server.log_text().count("Failed password") == before + 1
        rig.settings(SFTP_PASSWORD=right)
        assert rig.run().code == 0
        rig.delivered("alfa")


# 35, 36, 37 ----------------------------------------------------------------------------------------------------------


def test_a_server_with_only_old_algorithms_is_told_as_that(rig: Rig) -> None:
    """35: never tried again, and the hint says who must act."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.sftp_line() as line, rig.dialer():
        server.kex = ("diffie-hellman-group1-sha1",)
        program = rig.run()
        assert program.code == 6
        assert "outdated" in program.output
        assert line.accepted == 1
        rig.delivered()


def test_a_connection_that_breaks_under_many_workers_is_dialled_anew_once_and_by_nobody_closed(rig: Rig) -> None:
    """37: who loses a channel of the old connection leaves the new one alone, which another worker has dialled."""
    names = [f"c{number}" for number in range(12)]
    rig.settings(QUERY_WORKERS=6)
    rig.campaigns(*names)
    with rig.faulty_server() as server, rig.dialer():
        for request in ("open", "close", "rename", "rename"):
            server.commits(request, "do, then cut")
        assert rig.run().code == 0, rig.log()
        rig.delivered(*names)
    assert "SFTP does not start" not in rig.log()


def later(server: FaultyServer, request: str, does: str, skip: int, times: int = 1) -> None:
    """A fault that the first requests of its kind do not meet."""
    server.faults.append(Fault(request, does, times, "", None, skip))


@pytest.mark.parametrize("workers", [1, 6])
def test_a_cut_and_then_a_hang_up_in_the_login_that_follows_end_no_run(rig: Rig, workers: int) -> None:
    """37: faults of two kinds, each of which is worth another try."""
    names = [f"c{number}" for number in range(6)]
    rig.settings(QUERY_WORKERS=workers)
    rig.campaigns(*names)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("open", "cut")
        later(server, "password", "hang up", skip=1)
        assert rig.run().code == 0, rig.log()
        rig.delivered(*names)


def test_a_password_that_is_refused_later_is_sent_by_one_worker_alone(rig: Rig) -> None:
    """34: it was changed during the run; an account may be locked after three."""

    class Changed(FaultyLogin):
        def check_auth_password(self, username: str, password: str) -> int:
            if not self._server.passwords_seen:
                return super().check_auth_password(username, password)
            time.sleep(0.4)  # as OpenSSH takes its time
            self._server.passwords_seen += 1
            return int(paramiko.common.AUTH_FAILED)

    rig.settings(QUERY_WORKERS=6)
    rig.campaigns(*(f"c{number}" for number in range(12)), rows=5_000)
    with rig.faulty_server() as server, rig.dialer():
        server.login_class = Changed
        later(server, "close", "do, then cut", skip=1)
        rig.run()
        assert server.passwords_seen == 2, rig.log()


@pytest.mark.parametrize("workers", [1, 6])
def test_a_password_that_is_hung_up_on_later_is_sent_twice_whoever_dials(rig: Rig, workers: int) -> None:
    """34: as at the first login; several workers must not try it twice each."""
    rig.settings(QUERY_WORKERS=workers)
    rig.campaigns(*(f"c{number}" for number in range(8)))
    with rig.faulty_server() as server, rig.dialer():
        server.commits("open", "cut", 3)
        later(server, "password", "hang up", skip=1, times=ALWAYS)
        program = rig.run()
        assert program.code == 6
        assert "SFTP_PASSWORD" in program.output
        assert server.passwords_seen == 3, rig.log()


@pytest.mark.parametrize("where", ["session", "subsystem", "init"])
@pytest.mark.parametrize("does", ["refuse", "hang", "cut"])
@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "always"])
def test_a_session_that_does_not_come_about(rig: Rig, where: str, does: str, times: int) -> None:
    """36, 37: after a good login the session or its sftp is refused, never answered, or the line drops."""
    rig.campaigns("alfa", "beta")
    rig.settings(RETRY_ATTEMPTS=2)
    with rig.faulty_server() as server, rig.dialer():
        server.commits(where, does, times)
        program = rig.run(constants={"SFTP_TIMEOUT_S": 1}, connect_timeout_s=1, timeout_s=30)
        assert program.code == (0 if times == 1 else 6)
        rig.delivered(*["alfa", "beta"] * (times == 1))
