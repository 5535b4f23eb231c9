"""Faults 38 to 49: the upload. A half-written or wrong file never gets a name that the dialer looks for."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import time
from collections.abc import Callable

import paramiko
import pytest
from paramiko import sftp as codes
from rig.faulty_sftp import ALWAYS, FaultySession, Request
from rig.proxy import Direction
from rig.theatre import HEADER, ROW_BYTES, Rig, until

pytest_plugins = ["rig.plugin"]

ROWS = 2_000
SIZE = len(HEADER) + ROWS * ROW_BYTES
PLACES = {"byte 0": 0, "byte 1": 1, "byte 32767": 32767, "byte 32768": 32768, "half": SIZE // 2, "last": SIZE - 1}
WRITES = {"first": 0, "middle": SIZE // 2, "last": SIZE - 1, "all": None}
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())


# 38 ------------------------------------------------------------------------------------------------------------------


@places
def test_an_upload_that_is_cut_begins_anew_under_another_temp_name(rig: Rig, place: int) -> None:
    """38."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "store, then cut", at_byte=place)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert len({request.path for request in server.requests if request.name == "open"}) == 2
        assert rig.leftovers() == []


def test_an_upload_that_is_cut_every_time_shows_nothing_and_is_cleared_away_later(rig: Rig) -> None:
    """38."""
    rig.campaign("alfa", ROWS)
    rig.campaign("beta")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "store, then cut", ALWAYS, at_byte=SIZE // 2)
        assert rig.run().code != 0
        assert [name for name in rig.leftovers() if not name.startswith(".part-")] == []
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")
        assert rig.leftovers() == []


@pytest.mark.parametrize("after", [500, 2_500, 20_000, 190_000])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_openssh_s_line_is_cut_at_any_byte(rig: Rig, direction: Direction, after: int) -> None:
    """38 and 37 on the real server: in the banner, the key exchange, the login, the upload, the check, the rename."""
    rig.campaign("alfa", ROWS)
    with rig.sftp_line() as line, rig.dialer():
        line.cut_after(after if direction == "up" else min(after // 4, 6_000), direction)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


def test_an_upload_of_a_large_mailing_is_cut(rig: Rig) -> None:
    """38 for a mailing of several blocks."""
    rig.campaign("alfa", 30_000)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "store, then cut", at_byte=1_500_000)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


def test_a_server_that_calls_itself_openssh_and_takes_no_long_writes_gets_short_ones(rig: Rig) -> None:
    """38: its packets' limit is what closes the connection; the next try writes what any server takes."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.banner = "SSH-2.0-OpenSSH_for_nobody"

        def cut_if_long(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:
            lengths.append(len(request.data))
            if len(request.data) > 65_536:
                session.cut()
            else:
                proceed()

        lengths: list[int] = []
        server.commits("write", cut_if_long, ALWAYS)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert max(lengths) > 65_536
        assert rig.log().count(" retry ") == 1


# 39 to 43 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", WRITES.values(), ids=WRITES.keys())
def test_a_write_that_is_refused_is_noticed_and_sent_again(rig: Rig, place: int | None) -> None:
    """39: also in the middle, where paramiko itself would not notice."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "refuse", 1 if place is not None else 8, at_byte=place)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


@pytest.mark.parametrize("does", ["refuse", "forbid", "store less"])
@pytest.mark.parametrize("place", WRITES.values(), ids=WRITES.keys())
def test_writes_that_always_fail_show_nothing(rig: Rig, place: int | None, does: str) -> None:
    """39, 40, 42. A hole that was stored in silence has the right size: only hash mode sees it."""
    rig.campaign("alfa", ROWS)
    rig.campaign("beta", 5)
    rig.settings(SFTP_VERIFY="hash" if does == "store less" else "size")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", does, ALWAYS, at_byte=place, path="alfa")
        assert rig.run().code == 4
        rig.delivered("beta")
        assert rig.leftovers() == []
        assert rig.states()["alfa"] == "failed"


@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1], ids=["first", "middle", "last"])
def test_what_the_server_lost_in_silence_is_sent_again(rig: Rig, place: int) -> None:
    """40: the end of one write is missing. In the middle the size is right all the same: hash mode sees it."""
    rig.campaign("alfa", ROWS)
    rig.settings(SFTP_VERIFY="hash")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "store less", at_byte=place)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


def test_a_file_that_is_short_is_noticed_without_reading_it_back(rig: Rig) -> None:
    """40: size mode is enough where the end is missing."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "pretend", at_byte=SIZE - 1)
        assert rig.run().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize(
    ("place", "times"), [(0, 1), (32767, 1), (32768, 1), (SIZE // 2, 1), (SIZE - 1, 1), (SIZE // 2, ALWAYS)]
)
def test_a_flipped_byte_is_seen_in_hash_mode(rig: Rig, place: int, times: int) -> None:
    """41."""
    rig.campaign("alfa", ROWS)
    rig.settings(SFTP_VERIFY="hash")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "flip", times, at_byte=place)
        assert rig.run().code == (0 if times == 1 else 4)
        rig.delivered(*["alfa"] * (times == 1))
        assert rig.leftovers() == []


def test_a_remote_disk_that_is_full_fails_what_does_not_fit(rig: Rig) -> None:
    """42: beta is small enough; when there is room again, alfa comes."""
    rig.campaign("alfa", ROWS)
    rig.campaign("beta", 5)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "refuse", ALWAYS, at_byte=100_000)
        assert rig.run().code == 4
        rig.delivered("beta")
        assert rig.leftovers() == []
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa", "beta")


@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "always"])
def test_a_close_that_is_refused_never_shows_a_broken_file(rig: Rig, times: int) -> None:
    """43: paramiko swallows it; the size by name, asked afterwards, decides."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("close", "refuse", times)
        assert rig.run().code == 0
        rig.delivered("alfa")


# 44, 45 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_name", ["stat", "open", "write", "close", "remove", "read"])
def test_a_reply_that_never_comes_ends_the_wait_and_the_mailing_arrives_all_the_same(
    rig: Rig, request_name: str
) -> None:
    """44."""
    rig.campaign("alfa", ROWS)
    rig.settings(SFTP_VERIFY="hash")
    with rig.faulty_server() as server, rig.dialer():
        server.commits(request_name, "hang")
        if request_name == "remove":  # asked for after a file that arrived short
            server.commits("write", "refuse", at_byte=SIZE - 1)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert server.committed > 0


@pytest.mark.parametrize("program", ["sftp-server", "sshd"])
def test_openssh_s_process_is_killed_in_an_upload(rig: Rig, program: str) -> None:
    """45."""
    rig.campaign("alfa", 20_000)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(1_500_000, "up")
        run = rig.start()
        until(lambda: any(name.startswith(".part-") for name in rig.leftovers()), "the upload has begun")
        time.sleep(0.2)
        assert rig.openssh().kill_sessions(program) > 0  # type: ignore[arg-type]
        assert run.wait().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


# 46 to 49 ------------------------------------------------------------------------------------------------------------


def test_a_temp_name_that_is_taken_is_left_alone(rig: Rig) -> None:
    """46: opened exclusively; another temp name is used, and what stood there stays as it was."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():

        def taken(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            (server.root / request.path.lstrip("/")).write_bytes(b"somebody else's")
            proceed()

        server.commits("open", taken, path=".part-")
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert [path.read_bytes() for path in rig.stage.drop("alfa").iterdir()] in ([], [b"somebody else's"])


def folder_missing(drop: os.PathLike[str]) -> None:
    os.rmdir(drop)


def folder_read_only(drop: os.PathLike[str]) -> None:
    os.chmod(drop, 0o555)


def folder_is_a_file(drop: os.PathLike[str]) -> None:
    os.rmdir(drop)
    with open(drop, "wb"):
        pass


@pytest.mark.parametrize("breaks", [folder_missing, folder_read_only, folder_is_a_file])
def test_a_broken_drop_folder_fails_its_campaign_alone(rig: Rig, breaks: Callable[[os.PathLike[str]], None]) -> None:
    """47: it is never created. On the real server, as a user to whom permissions apply."""
    rig.campaigns("alfa", "beta", "gama")
    drop = rig.stage.drops.pop("beta")
    breaks(drop)
    with rig.dialer():
        program = rig.run()
        assert program.code == 4
        assert str(drop.name) in program.output
        rig.delivered("alfa", "gama")
        assert rig.states()["beta"] == "failed"
    assert not drop.is_dir() or os.listdir(drop) == []


@pytest.mark.parametrize("fault", ["none", "upload cut", "rename reply lost", "killed"])
def test_a_dialer_that_takes_any_name_never_sees_a_temp_with_a_staging_folder(rig: Rig, fault: str) -> None:
    """48."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server:
        server.make_folder(f"{rig.stage.base.name}/staging")
        rig.settings(SFTP_STAGING_DIR=f"{rig.stage.remote_base}/staging")
        with rig.dialer(pattern="*"):
            if fault == "upload cut":
                server.commits("write", "store, then cut", at_byte=SIZE // 2)
            elif fault == "rename reply lost":
                server.commits("rename", "do, then cut")
            elif fault == "killed":
                program = rig.start(stop_at="after:Ledger.still_ours")
                assert program.wait_until_stopped()
                program.kill()
            assert rig.run().code == 0
            rig.delivered("alfa")
        assert os.listdir(rig.stage.base / "staging") == []
    shutil.rmtree(rig.stage.base / "staging")


@pytest.mark.parametrize("taken", [True, False])
def test_a_whole_temp_that_nobody_could_look_after_is_looked_for_by_the_next_run(rig: Rig, taken: bool) -> None:
    """48, 75: acknowledged to its last byte, then the server is out of reach. If it is gone, it may be activated."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer(), rig.sftp_line() as line:

        def then_unreachable(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            proceed()
            for temp in rig.stage.drop("alfa").iterdir() if taken else ():
                temp.unlink()
            line.refuse()
            line.cut()

        server.commits("close", then_unreachable)
        assert rig.run().code == 6
        line.accept()
        assert rig.run().code == (4 if taken else 0)
        assert rig.run().code == (4 if taken else 0)
        rig.delivered(*["alfa"] * (not taken), settled=False)
        assert rig.states() == {"alfa": "in doubt" if taken else "delivered"}
        assert rig.leftovers() == []


@pytest.mark.parametrize("path", ["", "alfa", "mailing_", ".part-"], ids=["everything", "folder", "final", "temp"])
@pytest.mark.parametrize("request_name", ["stat", "fstat"])
def test_where_looking_is_forbidden_nothing_is_published_blindly(rig: Rig, request_name: str, path: str) -> None:
    """49: a server that cannot be asked cannot be trusted with a rename; the message says what is missing."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits(request_name, "forbid", ALWAYS, path=path)
        server.commits("list", "forbid", ALWAYS)
        if server.committed or request_name == "stat":
            assert rig.run().code == 4
        else:
            rig.run()
        first = list(rig.states().values())
        assert first in (["failed"], ["delivered"])
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


@pytest.mark.parametrize("answer", ["refuse", "forbid", "not support"])
@pytest.mark.parametrize("path", ["", "alfa", "mailing_", ".part-"], ids=["everything", "folder", "final", "temp"])
def test_where_a_name_cannot_be_asked_for_the_folder_s_list_tells(rig: Rig, answer: str, path: str) -> None:
    """49: `internal-sftp -P stat`, and servers that answer so for a name that is not there."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("stat", answer, ALWAYS, path=path)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []


@pytest.mark.parametrize("lists", [True, False])
def test_attributes_cut_short_hold_nobody_up(rig: Rig, lists: bool) -> None:
    """74: a reply that announces four billion attributes, and brings none; the list tells, or the campaign fails."""

    def answer(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
        reply = struct.pack(">III", request.number, 1 << 31, (1 << 32) - 1)
        session._send_packet(codes.CMD_ATTRS, paramiko.Message(reply))

    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("stat", answer, ALWAYS)
        if not lists:
            server.commits("list", "forbid", ALWAYS)
        program = rig.run()
        assert program.code == (0 if lists else 4)
        assert lists or "drop folder" in program.output
        server.recovers()
        rig.run()
        rig.delivered("alfa")


def test_a_server_without_exclusive_creation_is_served(rig: Rig) -> None:
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        server.commits("open", "know no exclusive creation", ALWAYS)
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert server.committed > 0


def test_a_close_that_takes_long_is_waited_for(rig: Rig) -> None:
    """Servers that scan a file, or copy it elsewhere, before they answer."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():

        def slowly(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            time.sleep(1.5)
            proceed()

        server.commits("close", slowly)
        program = rig.run()  # SFTP_TIMEOUT_S is 1.2, CLOSE_TIMEOUT_S is 2
        assert program.code == 0 and "retry" not in program.output and "acknowledged" not in program.output
        rig.delivered("alfa")


def test_where_looking_is_forbidden_after_a_rename_in_doubt_nothing_is_sent_again(rig: Rig) -> None:
    """49 together with 52."""
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():

        def do_and_forbid(session: FaultySession, request: Request, proceed: Callable[[], None]) -> None:  # noqa: ARG001
            for look in ("stat", "list"):
                server.commits(look, "forbid", ALWAYS)
            session.muted = True
            proceed()
            session.cut()

        server.commits("rename", do_and_forbid)
        rig.run()
        rig.run()
        rig.delivered("alfa", settled=False)
        server.recovers()
        assert rig.run().code == 0
        rig.delivered("alfa")


@pytest.mark.parametrize(
    ("request_name", "does", "times"),
    [("remove", "", 0), ("remove", "refuse", ALWAYS), ("remove", "do, then cut", 1), ("stat", "cut", 1)],
    ids=["no such file", "FAILURE", "removal lost", "look lost"],
)
def test_a_whole_temp_that_is_gone_when_a_late_mailing_s_temp_is_dropped_is_in_doubt(
    rig: Rig, request_name: str, does: str, times: int
) -> None:
    """48, 75: a dialer that takes any name took it between the look and the deadline.

    Some servers answer FAILURE for a name that is not there; and a removal whose answer is lost says nothing.
    """
    rig.campaign("alfa", ROWS)
    with rig.faulty_server() as server, rig.dialer():
        program = rig.start(stop_at="before:Line.publish")
        assert program.wait_until_stopped()
        for temp in rig.stage.drop("alfa").iterdir():
            temp.unlink()
        server.commits(request_name, does, times, path=".part-")
        rig.clock.jump(52 * 60)
        program.send(signal.SIGCONT)
        program.wait()
        rig.clock.jump(-52 * 60)
        rig.run()
        rig.delivered(settled=False)
        assert rig.states() == {"alfa": "in doubt"}


def test_a_faulty_temp_whose_removal_is_lost_twice_is_withdrawn_by_the_next_run(rig: Rig) -> None:
    """41: nobody knows whether a dialer had it before; it is settled as any other doubt."""
    rig.campaign("alfa", ROWS)
    rig.settings(SFTP_VERIFY="hash")
    with rig.faulty_server() as server, rig.dialer():
        server.commits("write", "flip", at_byte=SIZE // 2)
        server.commits("remove", "cut", 2)
        assert rig.run().code == 4
        assert rig.states() == {"alfa": "withdrawing"}
        assert rig.run().code == 0
        rig.delivered("alfa")
        assert rig.leftovers() == []
        assert "a bug" not in rig.log()


def test_a_whole_temp_that_is_gone_when_the_server_cannot_be_asked_is_in_doubt(rig: Rig) -> None:
    """48, 75: a dialer that takes any name took it, and the line was lost before the rename was asked for."""
    rig.campaign("alfa", ROWS)
    with rig.sftp_line() as line, rig.dialer():
        program = rig.start(stop_at="before:Line.publish")
        assert program.wait_until_stopped()
        for temp in rig.stage.drop("alfa").iterdir():
            temp.unlink()
        line.cut()
        line.refuse()
        program.send(signal.SIGCONT)
        program.wait()
        line.accept()
        rig.run()
        rig.delivered(settled=False)
        assert rig.states() == {"alfa": "in doubt"}
