"""What is out stays out: no failure beside or after the rename makes a second file, or lets half a one out."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from rig.faulty_sftp import ALWAYS, FaultySession, Request
from rig.theatre import Rig, until
from stage import NOON, FakeClock, Stage

import mailing_pipeline as mp

WRITES = "INSERT INTO escrita SELECT 'x' RETURNING nota AS telefone, nota AS nome, nota AS cpf"
pytest_plugins = ["rig.plugin"]
Proceed = Callable[[], None]


# After the rename -----------------------------------------------------------------------------------------------------


def test_a_session_that_is_lost_after_the_delivery_makes_no_second_one(rig: Rig) -> None:
    """The query that wrote has committed; its session ends before it is given back."""
    rig.campaign("alfa", sql=WRITES, read_only="no")
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mailing_pipeline'"
    with rig.faulty_server() as server, rig.dialer():

        def then_restart(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
            rig.stage.execute(sql)
            proceed()

        server.commits("rename", then_restart)
        assert rig.run().code == 0
        assert server.committed == 1
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_a_session_that_ended_by_itself_makes_no_second_delivery(rig: Rig) -> None:
    rig.campaign("alfa", sql="SET idle_session_timeout = '1ms';\n" + WRITES, read_only="no")
    with rig.dialer():
        assert rig.run().code == 0
        assert rig.run().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize("directives", [{}, {"read_only": "no", "sql": WRITES}], ids=["reads", "writes"])
def test_ctrl_c_while_the_rename_is_under_way_makes_no_second_delivery(rig: Rig, directives: dict[str, Any]) -> None:
    rig.campaign("alfa", **directives)
    programs: list[Any] = []
    with rig.faulty_server() as server, rig.dialer():

        def then_stopped(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
            until(lambda: programs, "the program's handle is there")
            programs[0].send(signal.SIGINT)
            time.sleep(0.3)
            proceed()

        server.commits("rename", then_stopped)
        programs.append(rig.start())
        programs[0].wait()
        rig.run()
        rig.delivered("alfa")


def test_a_ledger_that_is_busy_at_the_last_note_makes_no_second_delivery(rig: Rig) -> None:
    """The rename is done, `delivered` cannot be noted, and the lock is free again a moment later."""
    rig.campaign("alfa")
    path = rig.stage.output / "ledger.sqlite3"
    with rig.faulty_server() as server, rig.dialer(), contextlib.ExitStack() as held:

        def then_busy(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
            other = held.enter_context(
                contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
            )
            other.execute("BEGIN IMMEDIATE")
            threading.Timer(0.5, other.execute, ("ROLLBACK",)).start()
            proceed()

        server.commits("rename", then_busy)
        rig.run(impatient_ledger=0.3)
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_a_mailing_in_doubt_stays_so_whatever_fails_afterwards() -> None:
    mailing = mp.Mailing(campaign="a", slot="2026-12-22 10:00", state=mp.State.PUBLISHING)
    for error in (mp.Stopped(mp.BY_OPERATOR), mp.Stopped(mp.BY_OPERATOR)):
        mailing.state = mp.state_after(mailing, error)
        assert mailing.state is mp.State.IN_DOUBT


def test_a_delivered_mailing_stays_so_whatever_fails_afterwards(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    bring = mp.Line.bring

    def bring_and_fail(line: mp.Line, *given: Any) -> None:
        bring(line, *given)
        raise mp.Stopped(mp.BY_OPERATOR)

    monkeypatch.setattr(mp.Line, "bring", bring_and_fail)
    stage.query("10_alfa", "SELECT 1 AS n")
    result = stage.deliver()
    assert (result.exit_code, result.verdicts) == (0, {"alfa": "delivered"})
    assert [entry["state"] for entry in stage.ledger()] == ["delivered"] and len(stage.files("alfa")) == 1
    assert f"alfa: after its delivery: {mp.BY_OPERATOR}" in result.log


# Before it ------------------------------------------------------------------------------------------------------------


def takes_temps(rig: Rig, taken: list[str], then: str = "") -> Callable[[FaultySession, Request, Proceed], None]:
    """A dialer or gateway that takes files of any name as soon as they are closed."""

    def take(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
        proceed()
        for path in rig.stage.drop("alfa").iterdir():
            taken.append(path.name)
            path.unlink()
        if then:
            session.cut()

    return take


@pytest.mark.parametrize("then", ["", "cut"])
def test_a_temp_that_was_whole_and_is_gone_is_in_doubt_and_goes_out_once(rig: Rig, then: str) -> None:
    """75: also where the connection is lost with the CLOSE, so that it can be looked for only later."""
    rig.campaign("alfa")
    taken: list[str] = []
    with rig.faulty_server() as server, rig.dialer():
        server.commits("close", takes_temps(rig, taken, then), ALWAYS)
        program = rig.run()
        assert program.code in (4, 6) and "SFTP_STAGING_DIR" in program.output
        assert rig.states() == {"alfa": "in doubt"}
        assert rig.run().code != 0
        assert len(taken) == 1


def test_a_temp_that_is_taken_before_it_is_read_back_is_in_doubt(rig: Rig) -> None:
    rig.campaign("alfa")
    rig.settings(SFTP_VERIFY="hash")
    taken: list[str] = []
    with rig.faulty_server() as server, rig.dialer():

        def take(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
            if ".part-" in request.path and rig.leftovers():
                path = rig.stage.drop("alfa") / rig.leftovers()[0]
                if path.stat().st_size:
                    taken.append(path.name)
                    path.unlink()
            proceed()

        server.commits("open", take, ALWAYS)
        rig.run()
        assert rig.states() == {"alfa": "in doubt"}
        rig.run()
        assert len(taken) == 1


def test_a_file_that_somebody_changed_before_it_was_sent_never_goes_out(rig: Rig) -> None:
    """Excel saved it, or a cleaner cut it, while it waited for its turn."""
    rig.campaign("alfa", 1000)
    with rig.dialer():
        program = rig.start(stop_at="after:Line.note_exported")
        assert program.wait_until_stopped()
        (path,) = rig.stage.output.glob("mailing_alfa*.csv")
        path.write_bytes(path.read_bytes()[:500])
        program.send(signal.SIGCONT)
        assert program.wait().code == 4
        assert "was changed on this PC" in program.output
        rig.delivered()
        assert rig.leftovers() == []


@pytest.mark.parametrize("same_size", [False, True], ids=["as it was", "another letter"])
def test_a_file_that_was_only_touched_goes_out_and_one_of_the_same_size_does_not(rig: Rig, same_size: bool) -> None:
    """A backup program sets its time: what counts is what is in it."""
    rig.campaign("alfa", 1000)
    with rig.dialer():
        program = rig.start(stop_at="after:Line.note_exported")
        assert program.wait_until_stopped()
        (path,) = rig.stage.output.glob("mailing_alfa*.csv")
        if same_size:
            path.write_bytes(path.read_bytes()[:-3] + b"!\r\n")
        os.utime(path, (1_766_400_000, 1_766_400_000))
        program.send(signal.SIGCONT)
        assert program.wait().code == (4 if same_size else 0)
        rig.delivered(*([] if same_size else ["alfa"]))
        assert rig.leftovers() == []


@pytest.mark.parametrize("spoilt", [b"", b"\0" * 1_400_000], ids=["touched", "written anew"])
def test_a_file_that_is_written_anew_while_it_is_sent_goes_out_as_it_was(rig: Rig, spoilt: bytes) -> None:
    """A sync client or an editor writes the same bytes again: in the middle of it they are not there."""
    rig.campaign("alfa", 60_000)
    size, whole = rig.sizes["alfa"], list[bytes]()
    with rig.faulty_server() as server, rig.dialer() as dialer:

        def write(at: int, data: bytes) -> None:
            (path,) = rig.stage.output.glob("mailing_alfa*.csv")
            whole.append(path.read_bytes())
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(data or whole[0][at:])

        def spoil(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
            write(size - 1_500_000, spoilt)
            proceed()

        def restore(session: FaultySession, request: Request, proceed: Proceed) -> None:  # noqa: ARG001
            write(0, whole[0])
            proceed()

        server.commits("write", spoil, at_byte=0)
        server.commits("write", restore, at_byte=size - 62 * mp.WRITE_BYTES)  # the last bytes are read by now
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert server.committed == 2
        assert [arrival.path.read_bytes() for arrival in dialer.record] == [whole[0]]
        assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("after:Ledger.claim", ""),  # its transaction went with its session
        ("after:Session.commit", "what its query wrote may be kept all the same"),
        ("after:Ledger.still_ours", "what its query wrote is kept all the same"),
    ],
)
def test_a_killed_run_s_query_that_marked_its_rows_as_sent_is_told_of(rig: Rig, moment: str, told: str) -> None:
    """They are not in the next mailing, and nobody has called them."""
    rig.campaign("alfa", sql=WRITES, read_only="no")
    with rig.dialer():
        program = rig.start(stop_at=moment)
        assert program.wait_until_stopped()
        program.kill()
        rig.clock.jump(3600, steady_too=True)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert [row["state"] for row in rig.ledger] == ["failed", "delivered"]
        message = rig.ledger[0]["message"]
        assert message.endswith(told) if told else "wrote" not in message


def test_a_leftover_is_not_published_into_a_folder_that_was_corrected_meanwhile(rig: Rig) -> None:
    rig.campaign("alfa", folder="errada")
    wrong = rig.stage.drop("alfa")
    with rig.dialer():
        program = rig.start(stop_at="after:Ledger.still_ours")
        assert program.wait_until_stopped()
        program.kill()
    rig.campaign("alfa", folder="certa")
    with rig.dialer():
        assert rig.run().code == 0
        assert list(wrong.iterdir()) == []
        assert rig.states() == {"alfa": "delivered"}
        assert [row["state"] for row in rig.ledger] == ["failed", "delivered"]


def test_a_rename_that_is_forbidden_for_a_moment_is_tried_again(rig: Rig) -> None:
    """76: a virus scanner on the server holds the file."""
    rig.campaign("alfa")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", "forbid", times=3)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert server.committed == 3


def test_what_a_query_wrote_before_a_failed_delivery_is_told(rig: Rig) -> None:
    """It is committed just before the rename: a refused rename leaves people marked as sent who were not called."""
    rig.campaign("alfa", sql=WRITES, read_only="no")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", "refuse", ALWAYS)
        program = rig.run()
        assert program.code == 4 and "what its query wrote is kept all the same" in program.output
        rig.delivered()


# Beside it ------------------------------------------------------------------------------------------------------------


def test_a_remark_about_the_previous_mailing_costs_no_mailing(rig: Rig) -> None:
    rig.campaign("alfa", pickup=1)
    with rig.faulty_server() as server, rig.dialer(take=False):
        rig.run()
        rig.clock.jump(3600, steady_too=True)
        first = next(iter(rig.leftovers()))
        server.commits("stat", "cut", path=first)
        rig.run()
        assert server.committed == 1
        assert [row["state"] for row in rig.ledger] == ["delivered", "delivered"]


def test_a_look_that_fails_once_is_no_end_of_watching_a_pickup(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.query("10_a", "SELECT 1 AS n", pickup=30)
    settle, size, looks = mp.settle_pickup, mp.DropFolders.size, []

    def watched(*args: Any) -> bool:
        looks.append(len(looks))
        return settle(*args)

    def lost(drops: mp.DropFolders, path: Any) -> int | None:
        if looks == [0]:
            raise mp.ConnectionLost(mp.text("login"), mp.NETWORK, tries=mp.AGAIN)
        return size(drops, path)

    monkeypatch.setattr(mp, "settle_pickup", watched)
    monkeypatch.setattr(mp.DropFolders, "size", lost)
    with stage.dialer():
        result = stage.deliver(now=NOON)
    assert result.campaigns["a"]["pickup"] == "picked up"


def test_an_error_that_passes_is_not_taken_for_scarcity(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        stage.query(f"{number}0_c{number}", "SELECT pg_sleep(0.5) AS n")
    connection, calls = mp.bounded_connection(), []

    class Blip(connection):  # type: ignore[misc, valid-type]
        @classmethod
        def connect(cls, *args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise psycopg.OperationalError("timeout expired")
            return super().connect(*args, **options)

    monkeypatch.setattr(mp, "bounded_connection", lambda: Blip)
    result = stage.deliver(now=NOON)
    assert result.exit_code == 0 and "grants no more" not in result.log


@pytest.mark.parametrize("limit", [3, 2, 1])
def test_a_role_with_few_connections_gets_everything(stage: Stage, limit: int) -> None:
    """81: scarce is not down."""
    stage.settings(QUERY_WORKERS=6, RETRY_FIRST_SECONDS=1)
    for number in range(8):
        stage.query(f"{number}0_c{number}", "SELECT pg_sleep(0.3) AS n")
    stage.execute(f"ALTER ROLE mailing CONNECTION LIMIT {limit}")
    try:
        result = stage.deliver()
    finally:
        stage.execute("ALTER ROLE mailing CONNECTION LIMIT -1")
    assert set(result.verdicts.values()) == {"delivered"}, result.said
    assert "the server grants" in result.log


def test_a_pc_that_slept_after_the_commit_publishes_nothing_and_says_what_is_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.query("10_a", "INSERT INTO escrita SELECT 'x' RETURNING nota", read_only="no")
    clock, publish = FakeClock(NOON, naps=False), mp.Line.publish

    def slept(line: mp.Line, *args: Any) -> None:
        clock.advance(timedelta(hours=2).total_seconds())
        publish(line, *args)

    monkeypatch.setattr(mp.Line, "publish", slept)
    result = stage.deliver(clock=clock)
    assert result.verdicts["a"] in ("held", "failed") and stage.files("a") == []
    assert "what its query wrote is kept all the same" in result.campaigns["a"]["message"]


def test_a_whole_temp_that_is_gone_is_in_doubt_also_when_the_run_is_stopped_at_that_moment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialer that takes files of any name has it, and Ctrl+C comes while the program looks a second time."""
    stage.query("10_a", "SELECT 1 AS n")
    look, taken = mp.DropFolders.wait_until_whole, []

    def stopped(drops: mp.DropFolders, temp: Any, size_bytes: int) -> None:
        if not taken:
            (path,) = (stage.base / "a").iterdir()
            taken.append(path.read_bytes())
            path.unlink()
            drops.stop.end(mp.BY_OPERATOR)
        look(drops, temp, size_bytes)

    monkeypatch.setattr(mp.DropFolders, "wait_until_whole", stopped)
    assert stage.deliver(now=NOON).verdicts == {"a": "in doubt"}
    assert stage.deliver(now=NOON).verdicts == {"a": "in doubt"}
    assert stage.files("a") == [] and len(taken) == 1


@pytest.mark.parametrize("lost", [False, True], ids=["removal refused", "connection lost"])
def test_a_temp_of_another_size_that_somebody_takes_is_never_sent_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """It was acknowledged whole; what the server says of its size proves nothing."""
    stage.query("10_a", "SELECT 1 AS n")
    remove, sent = mp.DropFolders.remove, []

    def another_size(_drops: mp.DropFolders, temp: Any, _size_bytes: int) -> None:
        (path,) = (stage.base / "a").iterdir()
        sent.append(path.read_bytes())
        path.unlink()
        raise mp.DeliveryError(mp.text("removing {path}", path=temp), tries=mp.TWICE_MORE)

    def removed(drops: mp.DropFolders, path: Any) -> bool:
        if lost:
            raise mp.ConnectionLost(mp.text("login"), tries=mp.AGAIN)
        return remove(drops, path)

    monkeypatch.setattr(mp.DropFolders, "wait_until_whole", another_size)
    monkeypatch.setattr(mp.DropFolders, "remove", removed)
    assert stage.deliver(now=NOON).verdicts == {"a": "in doubt"}
    monkeypatch.setattr(mp.DropFolders, "remove", remove)
    assert stage.deliver(now=NOON).verdicts == {"a": "in doubt"}
    assert len(sent) == 1


def test_a_commit_whose_answer_is_lost_says_that_its_changes_may_be_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.query("10_a", "INSERT INTO escrita VALUES ('x') RETURNING nota", read_only="no")
    commit = mp.Session.commit

    def lost(session: mp.Session) -> None:
        commit(session)
        session.run("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(mp.Session, "commit", lost)
    result = stage.deliver(now=NOON)
    assert result.verdicts == {"a": "failed"} and stage.files("a") == []
    assert "what its query wrote may be kept all the same" in result.campaigns["a"]["message"]
