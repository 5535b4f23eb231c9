"""Faults 25 to 30: this PC's disk, its processes and its clock."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from paramiko import sftp as codes
from rig.faulty_sftp import FaultySession, Request
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

LOCAL = "mailing_{}_22-12_10-05.csv"


def an_hour_later(rig: Rig) -> None:
    rig.clock.jump(3600, steady_too=True)


# 25, 26 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [50, 30_000], ids=["small", "growing"])
def test_a_full_disk_fails_what_does_not_fit(rig: Rig, rows: int) -> None:
    """25. The local file is a link to /dev/full: the kernel's own ENOSPC."""
    rig.campaign("alfa", rows)
    rig.campaign("beta")
    rig.stage.output.mkdir()
    part = rig.stage.output / (LOCAL.format("alfa") + ".part")
    part.symlink_to("/dev/full")
    with rig.dialer():
        program = rig.run()
        assert program.code == 4
        assert "the disk is full" in program.output
        rig.delivered("beta")
        part.unlink(missing_ok=True)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


def test_a_disk_too_full_for_the_ledger_stops_the_run_before_any_query(rig: Rig) -> None:
    """25, 57. A limit on the size of files, which the kernel enforces on SQLite as a full disk would."""
    rig.campaign("alfa")
    with rig.dialer():
        program = rig.run(file_size_limit=2000)
        assert program.code == 2
        assert "ledger" in program.output or "lock" in program.output
        rig.delivered()
        assert rig.run().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize(("times", "delivered"), [(3, ["alfa", "beta"]), (1_000, [])], ids=["three times", "for ever"])
def test_a_target_that_is_open_elsewhere_is_waited_for(rig: Rig, times: int, delivered: list[str]) -> None:
    """26. Winerror 32 does not exist on Linux: os.replace is made to raise it, inside the program's process."""
    rig.campaigns("alfa", "beta")
    with rig.dialer():
        assert rig.run(target_held_open=times).code == (0 if delivered else 4)
        rig.delivered(*delivered)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


def test_a_status_page_that_cannot_be_written_costs_no_mailing(rig: Rig) -> None:
    """26: open in another program, or a folder stands there."""
    rig.campaigns("alfa")
    (rig.stage.output / "status.html").mkdir(parents=True)
    with rig.dialer():
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_a_damaged_lock_file_is_named_and_nothing_is_sent(rig: Rig) -> None:
    """25, 57: never run without the lock."""
    rig.campaigns("alfa")
    rig.stage.output.mkdir()
    (rig.stage.output / "run.lock").write_bytes(b"garbage " * 1000)
    with rig.dialer():
        program = rig.run()
        assert program.code == 2
        assert "run.lock" in program.output
        rig.delivered()


# 27, 28 --------------------------------------------------------------------------------------------------------------


def test_kill_9_while_writing_leaves_no_file_that_looks_whole(rig: Rig) -> None:
    """27: neither here nor in the drop folder; the next run sends what it queries itself."""
    rig.campaign("alfa", 100_000)
    with rig.database_line() as line, rig.dialer():
        line.limit(8_000_000, "down")
        program = rig.start()
        parts = rig.stage.output
        until(lambda: any(part.stat().st_size for part in parts.glob("*.csv.part")), "the file is being written")
        program.kill()
        assert list(rig.stage.output.glob("*.csv")) == []
        line.limit(0)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


@pytest.mark.parametrize(
    "name", ["mailing_alfa_21-12_10-05.csv", "mailing_alfa_22-12_10-05.csv", "mailing_alfa_22-12_10-05.csv.part"]
)
def test_what_lies_in_the_output_folder_is_never_sent(rig: Rig, name: str) -> None:
    """28: a mailing comes from the query of this run or not at all."""
    rig.campaign("alfa")
    rig.run("--only", "alfa", "--dry-run")
    with rig.dialer():
        rig.campaign("alfa", 50)
        rig.stage.output.mkdir(exist_ok=True)
        sqlite3.connect(rig.stage.output / "ledger.sqlite3").close()
        (rig.stage.output / "ledger.sqlite3").unlink()
        first = rig.run()
        assert first.code == 0
        rig.delivered("alfa")
        an_hour_later(rig)
        (rig.stage.output / name.replace("10-05", "11-05")).write_bytes(b"telefone;nome;cpf\r\nold;old;old\r\n")
        rig.run()
        rig.delivered("alfa", "alfa")


def test_a_temp_that_a_killed_run_left_on_the_server_yesterday_is_removed_and_never_published(rig: Rig) -> None:
    """28."""
    rig.campaign("alfa", 3_000)
    with rig.dialer():
        program = rig.start(stop_at="after:DropFolders.send")
        assert program.wait_until_stopped()
        program.kill()
        assert len(rig.leftovers()) == 1
        rig.clock.jump(24 * 3600)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


# 29 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-4, 4, 30])
def test_a_clock_that_jumps_within_its_hour_sends_nothing_twice(rig: Rig, minutes: int) -> None:
    """29: a time server corrects the PC's clock between two runs."""
    rig.campaigns("alfa", "beta")
    with rig.dialer():
        assert rig.run().code == 0
        rig.clock.jump(minutes * 60)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


def test_a_clock_that_jumps_back_an_hour_and_forth_again_sends_each_slot_once(rig: Rig) -> None:
    """29: also under a name that was used already."""
    rig.campaign("alfa", file_name="mailing_{campaign}.csv")
    with rig.dialer():
        for jump_s in (0, -3600, 3600, -3600, 3600):
            rig.clock.jump(jump_s)
            rig.run()
        rig.delivered("alfa", "alfa")
        assert {row["slot"] for row in rig.ledger if row["state"] == "delivered"} == {
            "2026-12-22 09:00",
            "2026-12-22 10:00",
        }


@pytest.mark.parametrize("hours", [2, 12, 24 * 365])
def test_a_clock_that_jumps_forward_in_a_run_publishes_nothing_more(rig: Rig, hours: int) -> None:
    """29: nobody can tell it from a sleep, so the mailing counts as old."""
    rig.campaign("alfa", pause_s=1)
    with rig.dialer():
        program = rig.start()
        rig.busy_backend()
        rig.clock.jump(hours * 3600)
        assert program.wait().code != 0
        rig.delivered()


def test_a_clock_that_jumps_back_in_a_run_makes_no_old_mailing_young(rig: Rig) -> None:
    """29: the deadline is measured by the steady clock as well."""
    rig.campaign("alfa", pause_s=2)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.dialer():
        program = rig.start()
        rig.busy_backend()
        rig.clock.jump(-1800)
        rig.clock.run_faster(60)
        assert program.wait().code != 0
        rig.delivered()


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Honolulu"])
def test_a_wrong_time_zone_is_outside_the_hours(rig: Rig, zone: str) -> None:
    """29: it is night there. A manual run says so; nothing is sent."""
    at = datetime(2026, 12, 22, 10, 5)
    rig.clock.set(at)
    rig.campaign("alfa")
    with rig.dialer():
        program = rig.run(environ={"TZ": zone})
        assert program.code == 7
        assert "outside" in program.output
        rig.delivered()


# 30 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asleep_in",
    ["before:DropFolders.send", "after:DropFolders.send", "before:Line.publish", "before:DropFolders.rename"],
)
@pytest.mark.parametrize("steady_too", [False, True], ids=["as on Linux", "as on Windows"])
def test_a_pc_that_slept_for_hours_publishes_nothing_of_what_it_read_before(
    rig: Rig, asleep_in: str, steady_too: bool
) -> None:
    """30."""
    rig.campaign("alfa")
    with rig.dialer():
        program = rig.start(stop_at=asleep_in)
        assert program.wait_until_stopped()
        rig.clock.jump(2 * 3600, steady_too)
        program.send(signal.SIGCONT)
        assert program.wait().code == 4
        rig.delivered()
        assert rig.leftovers() == []
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_hours_that_end_while_a_rename_waits_for_its_connection_end_it(rig: Rig) -> None:
    """30: the clock is asked once the request can go out, not before the wait for a channel."""
    rig.campaign("alfa", hours="08:00-10:00")
    rig.clock.set(datetime(2026, 12, 22, 10, 40))
    with rig.sftp_line() as line, rig.dialer():
        program = rig.start(stop_at="before:DropFolders.rename", connect_timeout_s=20)
        assert program.wait_until_stopped()
        dialled = line.accepted
        line.cut()
        line.delay(0.2)  # the new login takes a while
        program.send(signal.SIGCONT)
        until(lambda: line.accepted > dialled, "it dials again")
        rig.clock.jump(25 * 60)
        line.delay(0)
        assert program.wait().code == 4, program.output
        rig.delivered()
        assert rig.states() == {"alfa": "held"}
        assert rig.run().code == 0
        assert rig.leftovers() == []


def test_hours_that_end_between_the_look_at_a_doubt_and_its_rename_leave_none(rig: Rig) -> None:
    """30, 53: the first rename was lost, and the second one comes too late: its temp is withdrawn."""
    rig.campaign("alfa", hours="08:00-10:00")
    rig.clock.set(datetime(2026, 12, 22, 10, 40))
    with rig.faulty_server() as server, rig.dialer():

        def late_after_the_look(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            rig.clock.jump(25 * 60)
            proceed()

        def lose(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            server.commits("stat", late_after_the_look, path=".part-")
            session.cut()

        server.commits("rename", lose)
        assert rig.run().code != 0
        assert rig.states() == {"alfa": "failed"}
        rig.delivered()
        assert rig.leftovers() == []


def test_a_refused_rename_that_becomes_late_is_in_no_doubt_whatever_its_temp_s_removal_says(rig: Rig) -> None:
    """30, 51: the refusal was answered, so nothing is out; the removal's reply is lost."""
    rig.campaign("alfa", hours="08:00-10:00")
    rig.clock.set(datetime(2026, 12, 22, 10, 40))
    with rig.faulty_server() as server, rig.dialer():

        def refuse_late(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            rig.clock.jump(25 * 60)
            session._send_status(request.number, codes.SFTP_FAILURE)

        server.commits("rename", refuse_late)
        server.commits("remove", "do, then cut")
        assert rig.run().code == 4
        assert rig.states() == {"alfa": "failed"}
        rig.delivered()


def test_hours_that_end_while_a_doubt_is_settled_end_it(rig: Rig) -> None:
    """30, 56: what an earlier run of this slot left is judged again at the moment of its rename."""
    rig.campaign("alfa", hours="08:00-10:00")
    rig.campaign("beta")
    rig.clock.set(datetime(2026, 12, 22, 10, 40))
    with rig.faulty_server() as server, rig.dialer():
        program = rig.start("--only", "alfa", stop_at="after:Ledger.still_ours")
        assert program.wait_until_stopped()
        program.kill()

        def slowly(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            rig.clock.jump(25 * 60)
            proceed()

        server.commits("stat", slowly, path=".part-")
        rig.run()
        rig.delivered("beta")
        assert [row["state"] for row in rig.ledger] == ["failed", "held", "delivered"]
        assert rig.leftovers() == []


@pytest.mark.parametrize("happened", [True, False])
def test_a_pc_that_slept_in_the_moment_of_the_rename_does_not_repeat_it_late(rig: Rig, happened: bool) -> None:
    """30: its connection is dead when it wakes; whether the request went out before is settled by looking."""
    rig.campaign("alfa")
    with rig.sftp_line() as line, rig.dialer():
        program = rig.start(stop_at="after:DropFolders.rename" if happened else "after:Ledger.still_ours")
        assert program.wait_until_stopped()
        line.cut()
        rig.clock.jump(2 * 3600)
        program.send(signal.SIGCONT)
        program.wait()
        rig.delivered(*["alfa"] * happened, settled=False)
        assert rig.run().code == 0  # settles it, and sends what it queries itself in its own slot
        rig.delivered(*["alfa"] * (1 + happened))
        assert rig.leftovers() == []


def test_a_frozen_process_that_goes_on_in_another_hour_meets_the_next_run(rig: Rig, tmp_path: Path) -> None:
    """30, 60: the scheduled run of the next hour waits for it, then sends its own slot."""
    rig.campaign("alfa", pause_s=1)
    with rig.dialer():
        program = rig.start()
        rig.busy_backend()
        program.send(signal.SIGSTOP)
        an_hour_later(rig)
        following = rig.start("--scheduled")
        until(lambda: "waiting for" in rig.log(), "the next run waits")
        program.send(signal.SIGCONT)
        assert program.wait().code == 4
        assert following.wait().code == 0
        rig.delivered("alfa")
        assert [row["slot"][-5:] for row in rig.ledger if row["state"] == "delivered"] == ["11:00"]
    assert os.path.exists(tmp_path)
