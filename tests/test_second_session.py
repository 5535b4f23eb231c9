"""A second SFTP session beside the first: for mailings that would have to wait. The dialer's record is the judge."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rig.faulty_sftp import ALWAYS, FaultyServer, FaultySession, Request
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

SOON = {"ASSIST_AFTER_S": 0.1, "SFTP_TIMEOUT_S": 20}
NAMES = ["alfa", "beta", "gama", "delta"]
ROWS = 3_000  # 300 KB each, two seconds on the line below
LINE_BYTES_PER_S = 150_000


def second_login(rig: Rig) -> int:
    return rig.log().count("over one session")


def test_mailings_that_wait_for_a_slow_line_get_a_second_session(rig: Rig) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        assert rig.run(constants=SOON).code == 0
        rig.delivered(*NAMES)
        assert line.accepted == 2
        assert rig.leftovers() == []


@pytest.mark.parametrize(("delay_s", "far_s", "logins"), [(0.05, 0.03, 2), (0, 1, 1)])
def test_a_far_server_gets_its_second_session_at_once(rig: Rig, delay_s: float, far_s: float, logins: int) -> None:
    rig.campaigns(*NAMES)
    with rig.sftp_line() as line, rig.dialer():
        line.delay(delay_s)
        assert rig.run(constants=SOON | {"ASSIST_AFTER_S": 60, "FAR_S": far_s}).code == 0
        rig.delivered(*NAMES)
        assert line.accepted == logins


def test_what_nobody_waits_for_costs_no_second_login(rig: Rig) -> None:
    rig.campaigns(*NAMES)
    with rig.sftp_line() as line, rig.dialer():
        assert rig.run().code == 0
        rig.delivered(*NAMES)
        assert line.accepted == 1


@pytest.mark.parametrize("how", ["refuse", "hang"])
def test_a_server_that_lets_nobody_in_twice_gets_one_mailing_after_the_other(rig: Rig, how: str) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.faulty_server() as server, rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        server.commits("password", how, ALWAYS)
        server.faults[-1].skip = 1
        assert rig.run(constants=SOON | {"CONNECT_TIMEOUT_S": 1}).code == 0
        rig.delivered(*NAMES)
        assert second_login(rig) == 1
        assert server.passwords_seen == 2


def test_a_server_that_ends_the_older_session_of_a_user_is_served_over_one(rig: Rig) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.faulty_server() as server, rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        server.commits("password", "end the older", ALWAYS)
        assert rig.run(constants=SOON).code == 0
        rig.delivered(*NAMES)
        assert second_login(rig) == 1
        assert server.passwords_seen == 3
        assert rig.leftovers() == []


def test_without_a_second_session_no_whole_mailing_waits_for_one_that_grows(rig: Rig) -> None:
    """The upload of a growing one is given up and begun anew later: nobody else could take the others meanwhile."""
    cell = "rpad('Pessoa ' || n, 74, '.')"
    slow = f"CASE WHEN n = 19999 THEN pg_sleep(4)::text || {cell} ELSE {cell} END"
    sql = (
        f"SELECT '119' || 80000000 + n AS telefone, {slow} AS nome, (90000000000 + n)::text AS cpf "
        "FROM generate_series(1, 20000) AS n"
    )
    rig.campaign("alfa", sql=sql)
    rig.campaign("beta", pause_s=1)
    with rig.faulty_server() as server, rig.dialer() as dialer:
        server.commits("password", "refuse", ALWAYS)
        server.faults[-1].skip = 1
        program = rig.start(constants=SOON)
        dialer.wait_for(1)
        assert rig.states()["alfa"] == "started"
        assert program.wait().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


def test_a_host_key_that_changed_before_the_second_login_stops_everything(rig: Rig, tmp_path: Path) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.sftp_line() as line, FaultyServer(tmp_path) as impostor, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        program = rig.start(constants=SOON | {"ASSIST_AFTER_S": 0.5})
        until(rig.leftovers, "the upload has begun")
        line.target_port = impostor.port
        program.wait()
        assert "SFTP_HOST_KEY" in program.output
        assert impostor.passwords_seen == 0
        assert program.code in (4, 6)
        rig.delivered(*[row["campaign"] for row in rig.ledger if row["state"] == "delivered"])


@pytest.mark.parametrize("request_name", ["open", "write", "fstat", "close", "stat", "rename", "remove"])
@pytest.mark.parametrize("does", ["do, then cut", "cut", "refuse", "hang"])
def test_a_fault_of_one_session_costs_nothing_of_the_other(rig: Rig, request_name: str, does: str) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.faulty_server() as server, rig.sftp_line() as line, rig.dialer():
        line.limit(4 * LINE_BYTES_PER_S, "up")
        server.commits(request_name, does)
        server.faults[-1].skip = 2
        assert rig.run(constants=SOON | {"SFTP_TIMEOUT_S": 2}).code == 0
        rig.delivered(*NAMES)
        assert rig.leftovers() == []


@pytest.mark.parametrize("moment", ["uploading", "renaming"])
def test_ctrl_c_while_both_sessions_are_at_work(rig: Rig, moment: str) -> None:
    """Nothing partial, the ledger true, and the next run sends the rest."""
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.faulty_server() as server, rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        at_work, sessions = threading.Event(), set[int]()

        def note(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            proceed()
            sessions.add(id(session))
            if len(sessions) == 2:
                at_work.set()

        server.commits("write" if moment == "uploading" else "rename", note, ALWAYS)
        program = rig.start(constants=SOON)
        assert at_work.wait(20)
        program.send(signal.SIGINT)
        program.wait(15)
        assert "Traceback" not in program.output
        rig.delivered(*[row["campaign"] for row in rig.ledger if row["state"] == "delivered"], settled=False)
        server.recovers()
        line.limit(0)
        assert rig.run().code == 0
        rig.delivered(*NAMES)
        assert rig.leftovers() == []


def test_kill_9_while_both_sessions_are_at_work(rig: Rig) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        program = rig.start(constants=SOON)
        until(lambda: len(rig.leftovers()) == 2, "two uploads are under way")
        program.kill()
        line.limit(0)
        assert rig.run().code == 0
        rig.delivered(*NAMES)
        assert rig.leftovers() == []


def test_both_sessions_silent_do_not_outlive_the_deadline(rig: Rig) -> None:
    """44, 60."""
    rig.campaigns(*NAMES, rows=ROWS)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        program = rig.start(constants=SOON | {"SFTP_TIMEOUT_S": 600})
        until(lambda: len(rig.leftovers()) == 2, "two uploads are under way")
        line.silence()
        rig.clock.run_faster(60)
        program.wait(30)
        assert program.code in (4, 6)
        assert "deadline" in program.output
        rig.clock.run_faster(1)
        line.speak()
        line.limit(0)
        rig.run()
        rig.delivered(*NAMES)
        assert rig.leftovers() == []


def test_a_bug_in_the_second_session_ends_the_run_and_loses_nothing(rig: Rig) -> None:
    rig.campaigns(*NAMES, rows=ROWS)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(LINE_BYTES_PER_S, "up")
        program = rig.run(constants=SOON, bug_in_assistant=True)
        assert program.code == 1
        assert "a bug: RuntimeError" in rig.log()
        line.limit(0)
        assert rig.run().code == 0
        rig.delivered(*NAMES)
