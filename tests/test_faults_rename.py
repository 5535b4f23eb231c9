"""Faults 50 to 58: the rename, which is the moment of doubt, and the ledger. The dialer's record is the judge."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import paramiko
import pytest
from paramiko import sftp as codes
from rig.faulty_sftp import ALWAYS, FaultySession, Request
from rig.theatre import Rig, until

pytest_plugins = ["rig.plugin"]

FINAL = "mailing_alfa_22-12_10-05.csv"  # alfa's name in the slot of the rig's clock
taken_or_left = pytest.mark.parametrize("take", [True, False], ids=["taken at once", "left there"])


def next_slot(rig: Rig) -> None:
    rig.clock.jump(3600, steady_too=True)


# 50 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renames", ["refuses", "overwrites"])
def test_a_file_that_is_already_there_is_never_overwritten(rig: Rig, renames: str) -> None:
    """50. Some servers (SFTPGo) overwrite on a plain rename: so the program looks first."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server:
        theirs = rig.stage.drop("alfa") / FINAL
        theirs.write_bytes(b"somebody else's")
        del rig.stage.drops["alfa"]  # the dialer of alfa sleeps: it is their file that stands there
        with rig.dialer():
            if renames == "overwrites":
                server.commits("rename", "overwrite", ALWAYS)
            assert rig.run().code == 4
            rig.delivered("beta")
    assert theirs.read_bytes() == b"somebody else's"
    assert os.listdir(theirs.parent) == [FINAL]
    assert rig.states() == {"alfa": "held", "beta": "delivered"}


def test_a_file_that_appears_between_the_look_and_the_rename_is_not_overwritten(rig: Rig) -> None:
    """50. Where the server refuses to rename onto a file, as OpenSSH does. One that overwrites: README.md, Limits."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server:
        theirs = rig.stage.drop("alfa") / FINAL

        def appear(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            theirs.write_bytes(b"somebody else's")
            proceed()

        server.commits("rename", appear, path="alfa")
        del rig.stage.drops["alfa"]
        with rig.dialer():
            assert rig.run().code == 4
            rig.delivered("beta")
    assert theirs.read_bytes() == b"somebody else's"
    assert os.listdir(theirs.parent) == [FINAL]


# 51 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("does", ["refuse", "forbid", "not support"])
def test_a_rename_that_is_refused_fails_its_campaign_alone_and_leaves_nothing(rig: Rig, does: str) -> None:
    """51."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", does, ALWAYS, path="alfa")
        assert rig.run().code == 4
        rig.delivered("beta")
        assert rig.leftovers() == []
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


def test_a_rename_that_is_refused_once_is_tried_again(rig: Rig) -> None:
    """51."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", "refuse")
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.parametrize("does", ["refuse", "forbid", "do, then refuse", "do, then cut"])
def test_a_rename_and_then_the_removal_of_the_temp_are_refused(rig: Rig, does: str) -> None:
    """51: each refusal was answered and the temp still stood there, so nothing is in doubt and nothing is lost."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", "refuse", ALWAYS, path="alfa")
        server.commits("remove", does, path="alfa")
        assert rig.run().code == 4
        assert rig.states() == {"alfa": "failed", "beta": "delivered"}
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


def test_a_refused_rename_whose_temp_cannot_be_seen_stays_in_doubt(rig: Rig) -> None:
    """51: a look that is refused has seen nothing; to upload again might send the mailing twice."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():

        def refuse_all_from_now_on(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            for later in ("stat", "list", "read", "remove"):
                server.commits(later, "forbid", ALWAYS)
            (server.root / request.path.lstrip("/")).rename(rig.stage.drop("alfa") / FINAL)
            proceed()  # which is refused: there is no such file any more

        server.commits("rename", refuse_all_from_now_on)
        rig.run()
        assert rig.states() == {"alfa": "publishing"}
        rig.run()
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_a_server_that_still_shows_a_temp_which_the_dialer_has_does_not_get_it_twice(rig: Rig) -> None:
    """51: rclone renames, misses the file that the dialer has taken, says FAILURE, and goes on showing the temp."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():

        def show(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            attributes = paramiko.SFTPAttributes()
            attributes.st_size = sizes[0]
            session._response(request.number, codes.CMD_ATTRS, attributes)  # type: ignore[attr-defined]

        def rename(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:
            sizes.append((server.root / request.path.lstrip("/")).stat().st_size)
            session.muted = True
            proceed()
            session.muted = False
            server.commits("stat", show, ALWAYS, path=".part-")
            until(lambda: not (rig.stage.drop("alfa") / FINAL).exists(), "the dialer has it")
            session._send_status(request.number, codes.SFTP_FAILURE)

        sizes: list[int] = []
        server.commits("rename", rename)
        server.commits("rename", "refuse", ALWAYS)
        rig.run()
        server.recovers()
        rig.run()
        rig.delivered("alfa")


# 52, 53, 54 ----------------------------------------------------------------------------------------------------------


@taken_or_left
@pytest.mark.parametrize("does", ["do, then cut", "do, then hang", "do, then refuse"])
def test_a_rename_that_happened_and_whose_reply_was_lost_is_not_sent_again(rig: Rig, does: str, take: bool) -> None:
    """52, and 54 where the dialer has already taken the file."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer(take=take):
        server.commits("rename", does)
        assert rig.run().code == 0
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.parametrize("does", ["cut", "hang", "ignore"])
def test_a_rename_that_never_happened_is_done_after_looking(rig: Rig, does: str) -> None:
    """53."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", does)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


def test_a_reply_without_a_status_in_it_is_no_success(rig: Rig) -> None:
    """53, 74: paramiko fills what a reply lacks with zeros, and zero is OK."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():

        def answer(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            session._send_packet(codes.CMD_STATUS, paramiko.Message(struct.pack(">I", request.number)))

        server.commits("rename", answer)
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_openssh_does_the_rename_and_its_reply_is_cut_off(rig: Rig) -> None:
    """54 on the real server: everything it says comes late, and the line is cut when the dialer has the file."""
    rig.campaigns("alfa")
    with rig.sftp_line() as line, rig.dialer(on_take=lambda _: line.cut()):
        line.delay(0.15, "down")
        assert rig.run().code == 0
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert line.cuts == 1


def test_openssh_never_hears_of_the_rename(rig: Rig) -> None:
    """53 on the real server: the line is cut while the request is on its way."""
    rig.campaigns("alfa")
    with rig.sftp_line() as line, rig.dialer():
        line.delay(0.15, "up")
        program = rig.start()
        rig.until_state("alfa", "publishing")
        line.cut()
        assert program.wait().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


def test_openssh_links_and_does_not_unlink(rig: Rig) -> None:
    """52: killed between the two halves of its rename; the temp beside the final name is removed.

    Nobody can tell it from a rename that never happened if the dialer has taken the file by then: README.md, Limits.
    """
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer(take=False):

        def link(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            os.link(server.root / request.path.lstrip("/"), rig.stage.drop("alfa") / FINAL)
            session.cut()

        server.commits("rename", link)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == [FINAL]


@pytest.mark.parametrize("removal", ["refused", "cut"])
def test_a_final_name_that_was_seen_once_is_not_forgotten_for_the_temp_beside_it(rig: Rig, removal: str) -> None:
    """52: linked, not unlinked. Both names are seen, and the dialer takes its file while the temp cannot be removed."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer(take=False) as dialer:
        final = rig.stage.drop("alfa") / FINAL

        def link(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            os.link(server.root / request.path.lstrip("/"), final)
            session.cut()

        def taken_meanwhile(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            dialer.wait_for(1)
            final.unlink(missing_ok=True)
            if removal == "cut":
                session.cut()
            else:
                session._send_status(request.number, codes.SFTP_PERMISSION_DENIED)

        server.commits("rename", link)
        server.commits("remove", taken_meanwhile)
        rig.run()
        rig.run()
        rig.delivered("alfa")
        assert rig.leftovers() == []


@taken_or_left
def test_a_rename_that_the_server_does_late_after_all_is_not_done_twice(rig: Rig, take: bool) -> None:
    """52: the first request was still in the dead session's pipe, and overtakes the second."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer(take=take) as dialer:
        late: list[str] = []

        def lose(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            late.append(request.path)
            session.cut()

        def overtaken(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            (server.root / late[0].lstrip("/")).rename(rig.stage.drop("alfa") / FINAL)
            dialer.wait_for(1)
            proceed()

        server.commits("rename", lose)
        server.commits("rename", overtaken)
        assert rig.run().code == 0
        assert rig.run().code == 0
        assert server.committed == 2
        rig.delivered("alfa")


# 55 ------------------------------------------------------------------------------------------------------------------


@taken_or_left
@pytest.mark.parametrize("happened", [True, False], ids=["happened", "never happened"])
def test_the_next_run_settles_a_rename_that_nobody_could_look_after(rig: Rig, happened: bool, take: bool) -> None:
    """55."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer(take=take), rig.sftp_line() as line:

        def then_unreachable(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            line.refuse()
            session.muted = True
            if happened:
                proceed()
            line.cut()

        server.commits("rename", then_unreachable, path="alfa")
        first = rig.run("--only", "alfa")
        assert first.code != 0
        assert rig.states() == {"alfa": "publishing"}
        line.accept()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.parametrize("happened", [True, False], ids=["happened", "never happened"])
def test_the_next_slot_settles_a_rename_and_never_sends_the_old_mailing(rig: Rig, happened: bool) -> None:
    """55."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer(), rig.sftp_line() as line:

        def then_unreachable(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            line.refuse()
            session.muted = True
            if happened:
                proceed()
            line.cut()

        server.commits("rename", then_unreachable)
        rig.run()
        line.accept()
        next_slot(rig)
        assert rig.run().code == 0
        rig.delivered(*["alfa"] * (2 if happened else 1))
        assert rig.leftovers() == []
        assert {row["slot"]: row["state"] for row in rig.ledger} == {
            "2026-12-22 10:00": "delivered" if happened else "failed",
            "2026-12-22 11:00": "delivered",
        }


def test_a_removal_without_an_answer_is_not_taken_for_the_dialer(rig: Rig) -> None:
    """55: the next slot withdraws what was left in doubt, and the reply is lost: the mailing was not delivered."""
    rig.campaigns("alfa")
    with rig.faulty_server() as server, rig.dialer():
        program = rig.start(stop_at="after:Ledger.still_ours")
        assert program.wait_until_stopped()
        program.kill()
        next_slot(rig)
        server.commits("remove", "do, then cut")
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert [row["state"] for row in rig.ledger] == ["in doubt", "delivered"]
        assert "not known whether it was picked up" in rig.ledger[0]["message"]


def test_a_removal_without_an_answer_in_the_same_slot_stays_in_doubt_until_the_slot_is_over(rig: Rig) -> None:
    """53: the first rename got no reply and may still come; neither name is there: taken or withdrawn, nobody knows."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("rename", "cut", path="alfa")
        server.commits("rename", "refuse", ALWAYS, path="alfa")
        server.commits("remove", "do, then refuse", path="alfa")
        assert rig.run().code == 4
        server.recovers()
        program = rig.run()
        assert program.code == 4
        assert "alfa: in doubt" in program.output
        rig.delivered("beta", settled=False)
        next_slot(rig)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta", "beta")
        assert [row["state"] for row in rig.ledger if row["campaign"] == "alfa"] == ["in doubt", "delivered"]


def test_temps_of_earlier_tries_go_when_a_doubt_is_settled(rig: Rig) -> None:
    """55: the ledger names every temp that may be on the server, the one in doubt last."""
    rig.campaigns("alfa")
    with rig.dialer():
        program = rig.start(stop_at="after:Ledger.still_ours")
        assert program.wait_until_stopped()
        program.kill()
        (temp,) = rig.leftovers()
        earlier = f".part-{int(temp.removeprefix('.part-'), 16) - 1:08x}"
        (rig.stage.drop("alfa") / earlier).write_bytes(b"an earlier try's")
        with contextlib.closing(sqlite3.connect(rig.stage.output / "ledger.sqlite3")) as ledger, ledger:
            ledger.execute("UPDATE mailings SET temp_id = temp_id - 1, temps = 2")
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


# 56 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["in the same slot", "in the next slot"])
@pytest.mark.parametrize("moment", ["after:Ledger.still_ours", "after:DropFolders.rename"], ids=["before", "after"])
def test_kill_9_beside_the_rename(rig: Rig, moment: str, again: str) -> None:
    """56: between the ledger's `publishing` and the request, or between its reply and the ledger's `delivered`."""
    rig.campaigns("alfa", "beta")
    with rig.dialer():
        program = rig.start("--only", "alfa", stop_at=moment)
        assert program.wait_until_stopped()
        program.kill()
        in_doubt = [row["campaign"] for row in rig.ledger if row["state"] == "publishing"]
        assert in_doubt == ["alfa"]
        if again == "in the next slot":
            next_slot(rig)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta", *in_doubt * (again == "in the next slot" and "rename" in moment))
        assert rig.leftovers() == []


@pytest.mark.parametrize("done", [True, False], ids=["the server does it", "the server does not"])
def test_kill_9_during_the_rename(rig: Rig, done: bool) -> None:
    """56: while the server has the request in hand."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        killed = threading.Event()

        def kill(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            until(lambda: programs, "the program's handle is there")
            programs[0].kill()
            killed.set()
            if done:
                proceed()

        programs: list[Any] = []
        server.commits("rename", kill)
        programs.append(rig.start())
        assert killed.wait(30)
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


@pytest.mark.parametrize("where", ["Line.note_new_temp", "DropFolders.send", "Ledger.claim", "Ledger.note"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_kill_9_at_any_other_step_of_the_protocol(rig: Rig, where: str, moment: str) -> None:
    """56: exactly once all the same, and no temp stays for ever."""
    rig.campaigns("alfa", "beta")
    with rig.dialer():
        program = rig.start(stop_at=f"{moment}:{where}")
        assert program.wait_until_stopped()
        program.kill()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


def test_kill_9_after_the_rename_of_a_resend(rig: Rig) -> None:
    """56: what was asked for once more comes once more, and not twice more."""
    rig.campaigns("alfa")
    with rig.dialer():
        assert rig.run().code == 0
        program = rig.start("--resend", stop_at="after:DropFolders.rename")
        assert program.wait_until_stopped()
        program.kill()
        assert rig.run().code == 0
        rig.delivered("alfa", "alfa")


def test_kill_9_before_the_rename_of_a_campaign_that_is_gone_by_the_next_run(rig: Rig) -> None:
    """56: its temp is removed and nothing of it is published."""
    path = rig.campaign("alfa")
    rig.campaign("beta")
    with rig.dialer():
        program = rig.start("--only", "alfa", stop_at="after:Ledger.still_ours")
        assert program.wait_until_stopped()
        program.kill()
        path.unlink()
        assert rig.run().code == 0
        rig.delivered("beta")
        assert rig.states() == {"alfa": "failed", "beta": "delivered"}
        assert rig.leftovers() == []


@pytest.mark.parametrize("forbidden", [["stat"], ["stat", "remove"]], ids=["to look", "to look and to remove"])
def test_a_doubt_that_cannot_be_settled_holds_up_no_other_campaign(rig: Rig, forbidden: list[str]) -> None:
    """49, 55: nothing is allowed in alfa's folder any more; beta is served, and alfa is not sent again."""
    rig.campaigns("alfa", "beta")
    with rig.faulty_server() as server, rig.dialer():
        program = rig.start("--only", "alfa", stop_at="after:DropFolders.rename")
        assert program.wait_until_stopped()
        program.kill()
        for request in forbidden:
            server.commits(request, "forbid", ALWAYS, path="alfa")
        rig.run()
        rig.delivered("alfa", "beta", settled=False)
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


# 57, 58 --------------------------------------------------------------------------------------------------------------


def overwritten(rig: Rig, data: bytes, at: int = 0) -> None:
    with (rig.stage.output / "ledger.sqlite3").open("r+b") as file:
        file.seek(at)
        file.write(data)


def truncated(rig: Rig) -> None:
    os.truncate(rig.stage.output / "ledger.sqlite3", 5000)


def a_folder(rig: Rig) -> None:
    (rig.stage.output / "ledger.sqlite3").unlink()
    (rig.stage.output / "ledger.sqlite3").mkdir()


def empty(rig: Rig) -> None:
    os.truncate(rig.stage.output / "ledger.sqlite3", 0)


def deleted(rig: Rig) -> None:
    (rig.stage.output / "ledger.sqlite3").unlink()


DAMAGE: dict[str, Callable[[Rig], None]] = {
    "57 its header is garbage": lambda rig: overwritten(rig, b"garbage " * 20),
    "57 a page in the middle is garbage": lambda rig: overwritten(rig, b"\xff" * 4096, 4096),
    "57 truncated": truncated,
    "57 a folder stands there": a_folder,
    "58 emptied": empty,
    "58 deleted": deleted,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_without_its_ledger_the_program_sends_nothing(rig: Rig, damage: Callable[[Rig], None]) -> None:
    """57, 58: what this slot has delivered is unknown, so nothing is queried and nothing sent."""
    rig.campaigns("alfa", "beta")
    with rig.dialer() as dialer:
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        queried = rig.log().count("exported")
        damage(rig)
        program = rig.run()
        assert program.code == 2
        assert "ledger" in program.output
        assert len(dialer.record) == 2
        assert rig.log().count("exported") == queried


def test_a_ledger_that_another_program_holds_stops_the_run_before_any_query(rig: Rig) -> None:
    """57."""
    rig.campaigns("alfa")
    with rig.dialer():
        rig.run("--only", "alfa")
        next_slot(rig)
        with contextlib.closing(sqlite3.connect(rig.stage.output / "ledger.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            program = rig.run(impatient_ledger=0.5)
        assert program.code == 2
        assert "ledger" in program.output
        rig.delivered("alfa")


def held_ledger(rig: Rig, how: str = "BEGIN IMMEDIATE") -> sqlite3.Connection:
    """Another program holds the ledger: a viewer with unsaved changes, or a backup that reads."""
    path = rig.stage.output / "ledger.sqlite3"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute(how)
    if how == "BEGIN":
        other.execute("SELECT count(*) FROM mailings").fetchone()
    return other


@pytest.mark.parametrize("how", ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest.mark.parametrize(
    "moment", ["before:Ledger.claim", "before:Line.note_exported", "before:Line.publish", "after:DropFolders.rename"]
)
def test_a_ledger_that_is_held_for_a_while_costs_no_mailing(rig: Rig, moment: str, how: str) -> None:
    """57: longer than SQLite waits by itself, at whatever is noted then."""
    rig.campaigns("alfa")
    with rig.dialer():
        program = rig.start(impatient_ledger=0.2, stop_at=moment)
        assert program.wait_until_stopped()
        with contextlib.closing(held_ledger(rig, how)):
            program.send(signal.SIGCONT)
            until(lambda: "another program holds it" in rig.log(), "it is waited for")
            time.sleep(0.5)
        assert program.wait().code == 0, program.output
        rig.delivered("alfa")


@pytest.mark.long
def test_a_ledger_that_is_held_for_good_is_waited_for_once_and_not_for_each_campaign(rig: Rig) -> None:
    """57."""
    names = [f"c{number}" for number in range(30)]
    rig.campaign("alfa", pause_s=1)
    rig.campaigns(*names)
    rig.settings(QUERY_WORKERS=1)
    with rig.dialer():
        program = rig.start(impatient_ledger=0.5)
        rig.busy_backend()
        with contextlib.closing(held_ledger(rig)):
            begun_s = time.monotonic()
            assert program.wait().code == 4
            assert time.monotonic() - begun_s < 12  # of which it waits 3.5
        rig.delivered(settled=False)
        assert "nothing was sent" not in program.output  # what is told of the page must be true of every run
        assert rig.run().code == 0
        rig.delivered("alfa", *names)


def test_a_ledger_that_is_taken_in_the_middle_of_a_run_never_costs_the_promise(rig: Rig) -> None:
    """57: without `publishing` on the disk there is no rename."""
    rig.campaign("alfa", pause_s=1.5)
    with rig.dialer():
        program = rig.start(impatient_ledger=0.5)
        rig.busy_backend()
        with contextlib.closing(sqlite3.connect(rig.stage.output / "ledger.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert program.wait().code != 0
        rig.delivered(settled=False)
        assert rig.run().code == 0
        rig.delivered("alfa")


def test_hours_that_end_while_the_ledger_is_held_end_it(rig: Rig) -> None:
    """30, 57: the clock is asked again once `publishing` is on the disk."""
    rig.campaign("alfa", hours="08:00-10:00")
    rig.clock.set(datetime(2026, 12, 22, 10, 59, 30))
    with rig.dialer():
        program = rig.start(stop_at="before:DropFolders.rename", impatient_ledger=0.2)
        assert program.wait_until_stopped()
        with contextlib.closing(held_ledger(rig)):
            program.send(signal.SIGCONT)
            until(lambda: "another program holds it" in rig.log(), "it is waited for")
            rig.clock.jump(120)
        assert program.wait().code == 4, program.output
        rig.delivered()
        assert rig.states() == {"alfa": "held"}
        assert rig.leftovers() == []
