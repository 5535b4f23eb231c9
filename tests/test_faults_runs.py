"""Faults 59 to 63: several runs, their hours, and the deadline. (64, random kills, is in test_random_kills.py.)

RUN_DEADLINE_MINUTES counts whole minutes: where a test waits for it, the program's clock runs 60 times faster, so that
the deadline comes after one real second. The 20 seconds that a run may take after it to end by itself are real ones.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from rig.programs import Program
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

SPEED = 60
AFTER_DEADLINE_S = 30


def gone_in_time(program: Program) -> float:
    """The program must be gone by its deadline (one of its minutes) plus 30 s; the seconds it took."""
    start = time.monotonic()
    program.wait(60 / SPEED + AFTER_DEADLINE_S)
    return time.monotonic() - start


# 59, 60: two at once -------------------------------------------------------------------------------------------------


def test_a_manual_run_that_finds_another_says_who_it_is_and_ends(rig: Rig) -> None:
    """59."""
    rig.campaign("alfa", pause_s=1)
    with rig.dialer():
        first = rig.start("--scheduled")
        rig.busy_backend()
        second = rig.run()
        assert second.code == 3
        assert f"process {first.pid}" in second.output
        assert "Task Scheduler" in second.output
        assert first.wait().code == 0
        rig.delivered("alfa")


def test_a_scheduled_run_waits_for_a_manual_one_and_sends_nothing_again(rig: Rig) -> None:
    """59."""
    rig.campaign("alfa", pause_s=1)
    with rig.dialer():
        first = rig.start()
        rig.busy_backend()
        second = rig.start("--scheduled")
        assert (first.wait().code, second.wait().code) == (0, 0)
        rig.delivered("alfa")


def test_a_manual_run_at_9_58_does_not_cost_the_mailing_of_10_o_clock(rig: Rig) -> None:
    """59, 60."""
    rig.clock.set(datetime(2026, 12, 22, 9, 58))
    rig.campaign("alfa", pause_s=1)
    with rig.dialer():
        first = rig.start()
        rig.busy_backend()
        rig.clock.set(datetime(2026, 12, 22, 10, 0))
        second = rig.start("--scheduled")
        assert (first.wait().code, second.wait().code) == (0, 0)
        rig.delivered("alfa", "alfa")
        assert [row["slot"][-5:] for row in rig.ledger] == ["09:00", "10:00"]


def test_a_run_that_hangs_into_the_next_hour_is_ended_and_the_next_hour_is_served(rig: Rig) -> None:
    """60: the next one waits, within its own deadline."""
    rig.clock.set(datetime(2026, 12, 22, 10, 59, 30))
    rig.campaign("alfa", pause_s=20)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.dialer():
        hung = rig.start()
        with rig.frozen(rig.busy_backend()):
            rig.clock.run_faster(SPEED)
            until(lambda: rig.clock.now().hour == 11, "it is eleven", pause_s=0.001)
            rig.clock.run_faster(1)
            rig.campaign("alfa")
            following = rig.start("--scheduled")
            rig.clock.run_faster(SPEED / 6)
            assert hung.wait(40).code == 4
            rig.clock.run_faster(1)
            assert following.wait().code == 0
        rig.delivered("alfa")
        assert {row["slot"][-5:]: row["state"] for row in rig.ledger} == {"10:00": "failed", "11:00": "delivered"}


# 61: hours -----------------------------------------------------------------------------------------------------------

MOMENTS = {
    "07:59": (datetime(2026, 12, 22, 7, 59, 59), False),
    "08:00": (datetime(2026, 12, 22, 8, 0, 0), True),
    "20:00": (datetime(2026, 12, 22, 20, 0, 0), True),
    "20:59": (datetime(2026, 12, 22, 20, 59, 40), True),
    "21:00": (datetime(2026, 12, 22, 21, 0, 0), False),
    "Saturday": (datetime(2026, 12, 26, 12, 0, 0), True),
    "Sunday": (datetime(2026, 12, 27, 12, 0, 0), False),
    "a holiday": (datetime(2026, 12, 25, 12, 0, 0), False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_hours(rig: Rig, moment: str) -> None:
    """61: outside them the scheduler's run ends quietly, and a manual one says so."""
    at, inside = MOMENTS[moment]
    rig.clock.set(at)
    rig.campaign("alfa")
    rig.settings(HOLIDAYS="2026-12-25")
    with rig.database_line() as line, rig.dialer():
        assert rig.run("--scheduled").code == 0
        assert rig.run().code == (0 if inside else 7)
        rig.delivered(*["alfa"] * inside)
        assert bool(line.accepted) == inside


def test_a_run_that_begins_at_20_59_publishes_nothing_after_21_00(rig: Rig) -> None:
    """61: the hours are asked again just before the rename."""
    rig.clock.set(datetime(2026, 12, 22, 20, 59, 50))
    rig.campaign("alfa", pause_s=1)
    rig.campaign("beta")
    with rig.dialer() as dialer:
        program = rig.start()
        dialer.wait_for(1)
        rig.clock.jump(15)
        assert program.wait().code == 4
        rig.delivered("beta")
        assert rig.states()["alfa"] == "held"
        assert rig.leftovers() == []


def test_a_campaign_has_hours_of_its_own(rig: Rig) -> None:
    """61."""
    rig.clock.set(datetime(2026, 12, 22, 18, 30))
    rig.campaign("alfa", hours="09:00-18:00")
    rig.campaign("beta", hours="09:00-17:00")
    rig.campaign("gama", days="wed-fri")
    with rig.dialer():
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_the_hour_boundary_in_a_run(rig: Rig) -> None:
    """61: what began at 10:59 belongs to 10:00, and 11:00 is served all the same."""
    rig.clock.set(datetime(2026, 12, 22, 10, 59, 58))
    rig.campaign("alfa", pause_s=1)
    with rig.dialer():
        program = rig.start()
        rig.busy_backend()
        rig.clock.jump(4)
        assert program.wait().code == 0
        assert rig.run().code == 0
        rig.delivered("alfa", "alfa")
        assert [row["slot"][-5:] for row in rig.ledger] == ["10:00", "11:00"]


# 62, 63: reruns ------------------------------------------------------------------------------------------------------


def test_a_rerun_in_the_same_slot_sends_nothing(rig: Rig) -> None:
    """62: and asks the database nothing."""
    rig.campaigns("alfa", "beta")
    with rig.database_line() as line, rig.dialer():
        assert rig.run().code == 0
        asked = line.accepted
        for _ in range(3):
            assert rig.run().code == 0
        assert line.accepted == asked
        rig.delivered("alfa", "beta")


def test_a_rerun_after_three_of_five_sends_two(rig: Rig) -> None:
    """63."""
    rig.campaigns("alfa", "beta", "gama")
    broken = [rig.campaign(name, sql="SELECT 1 / 0 AS telefone") for name in ("delta", "epsilon")]
    with rig.dialer() as dialer:
        assert rig.run().code == 4
        rig.delivered("alfa", "beta", "gama")
        for path in broken:
            path.write_text("SELECT '11980000001' AS telefone", encoding="utf-8")
        assert rig.run().code == 0
        rig.delivered("alfa", "beta", "gama", "delta", "epsilon")
        assert [arrival.campaign for arrival in dialer.record[3:]] in (["delta", "epsilon"], ["epsilon", "delta"])


def test_resend_sends_again_under_another_name_and_says_so(rig: Rig) -> None:
    """62: only on request."""
    rig.campaigns("alfa", "beta")
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        assert rig.run("--resend", "--only", "alfa").code == 0
        assert rig.violations() == []
        assert len({arrival.name for arrival in dialer.record}) == 3
        assert [row["resend"] for row in rig.ledger] == [0, 0, 1]


# The deadline --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["backend", "database"])
def test_a_frozen_backend_does_not_outlive_the_deadline(rig: Rig, what: str) -> None:
    """12, 60: SIGSTOP; statement_timeout cannot help."""
    rig.campaign("alfa", pause_s=8, timeout=600)
    rig.campaign("beta")
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.dialer() as dialer:
        program = rig.start(constants={"GRACE_S": 600})
        pids = [rig.busy_backend()]
        dialer.wait_for(1)
        if what == "database":
            pids += [pid for pid, _ in rig.backends()]
        with rig.frozen(*set(pids)):
            rig.clock.run_faster(SPEED)
            gone_in_time(program)
        assert program.code == 4
        assert "deadline" in program.output
        rig.delivered("beta")


@pytest.mark.parametrize("what", ["sftp-server", "sshd"])
def test_a_frozen_sftp_server_does_not_outlive_the_deadline(rig: Rig, what: str) -> None:
    """44, 60: SIGSTOP in an upload."""
    rig.campaign("alfa", 40_000)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    server = rig.openssh()
    with rig.sftp_line() as line, rig.dialer():
        line.limit(1_500_000, "up")
        program = rig.start(constants={"SFTP_TIMEOUT_S": 600})
        until(rig.leftovers, "the upload has begun")
        with rig.frozen(*[process.pid for process in server.sessions() if process.name().startswith(what)]):
            rig.clock.run_faster(SPEED)
            gone_in_time(program)
        assert program.code in (4, 6)
        assert "deadline" in program.output
        rig.clock.run_faster(1)
        rig.delivered()
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


@pytest.mark.parametrize("hangs_in", ["subsystem", "init", "open", "write", "rename"])
def test_no_silence_of_an_sftp_server_outlives_the_deadline(rig: Rig, hangs_in: str) -> None:
    """36, 44, 60: whatever it does not answer; and what was in doubt is settled by the next run."""
    rig.campaign("alfa", 2_000)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.faulty_server() as server, rig.dialer():
        server.commits(hangs_in, "hang")
        program = rig.start(constants={"SFTP_TIMEOUT_S": 600}, connect_timeout_s=300)
        until(lambda: server.committed, "the server is silent")
        rig.clock.run_faster(SPEED)
        gone_in_time(program)
        assert program.code in (4, 6)
        assert "deadline" in program.output
        rig.clock.run_faster(1)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


def test_a_heartbeat_that_is_never_answered_keeps_nobody_waiting(rig: Rig) -> None:
    """60: everything is delivered by then; the next hour must not wait for a monitoring server."""
    rig.campaign("alfa")
    with rig.sftp_line() as silent, rig.dialer():
        rig.settings(SFTP_PORT=rig.stage.sftp.port, HEARTBEAT_URL=f"http://127.0.0.1:{silent.port}/canary-token")
        silent.keep_silent_on_connect()
        program = rig.start(constants={"TELL_TIMEOUT_S": 3})
        until(lambda: silent.accepted, "the heartbeat is sent")
        rig.delivered("alfa")
        program.wait(AFTER_DEADLINE_S)
        assert program.code == 0


def test_nothing_is_renamed_after_the_deadline(rig: Rig) -> None:
    """60: though everything works again by then."""
    rig.campaign("alfa", 2_000)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.faulty_server() as server, rig.dialer():

        def too_late(session: Any, request: Any, proceed: Any) -> None:  # noqa: ARG001
            rig.clock.jump(61, steady_too=True)
            proceed()

        server.commits("close", too_late)
        assert rig.run().code == 4
        assert server.committed == 1
        rig.delivered()
        assert rig.leftovers() == []


def test_a_run_that_waits_for_its_turn_gives_up_at_its_own_deadline(rig: Rig) -> None:
    """59, 60."""
    rig.campaign("alfa", pause_s=4)
    with rig.dialer():
        first = rig.start()
        rig.busy_backend()
        rig.settings(RUN_DEADLINE_MINUTES=1)
        second = rig.start("--scheduled")
        until(lambda: "waiting for" in rig.log(), "it waits")
        rig.clock.run_faster(SPEED)
        assert second.wait(20).code == 3
        rig.clock.run_faster(1)
        assert first.wait().code == 0
        rig.delivered("alfa")
    assert rig.clock.now() > datetime(2026, 12, 22, 10, 5) + timedelta(minutes=1)
