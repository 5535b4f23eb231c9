"""The ledger, the lock, and what is kept on this PC for how long."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stage import NOON, FakeClock, Result, Stage, forbidden

import mailing_pipeline

ONE = "SELECT 1 AS n"
HOUR = timedelta(hours=1)
INSERT_SQL = "INSERT INTO escrita VALUES ('{}') RETURNING nota"


def ledger_path(stage: Stage) -> Path:
    return stage.output / "ledger.sqlite3"


def write_ledger(stage: Stage, sql: str, *values: object) -> None:
    """Change the ledger behind the program's back."""
    with contextlib.closing(sqlite3.connect(ledger_path(stage))) as db, db:
        db.execute(sql, values)


# ---------------------------------------------------------------------------------------------------------------------
# What is noted
# ---------------------------------------------------------------------------------------------------------------------


def test_a_delivery_is_noted_with_everything_that_identifies_it(stage: Stage) -> None:
    stage.query("10_a", "SELECT telefone FROM contatos UNION ALL SELECT '1'", phones="telefone")
    assert stage.deliver(now=NOON).exit_code == 0
    (entry,) = stage.ledger()
    content = stage.mailing("a")
    import hashlib

    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert (entry["slot"], entry["campaign"], entry["state"]) == ("2026-12-22 12:00", "a", "delivered")
    assert (entry["folder"], entry["file"]) == (f"{stage.remote_base}/a", "mailing_a_22-12_12-00.csv")
    assert (entry["rows"], entry["rejected"], entry["size_bytes"]) == (3000, 1, len(content))
    assert entry["changed"].startswith("2026-12-22T12:0") and re.search(r"[+-]\d\d:\d\d$", entry["changed"])
    assert entry["temp"] == ""


def test_every_end_of_a_campaign_is_noted(stage: Stage) -> None:
    stage.query("10_sent", ONE)
    stage.query("20_empty", f"{ONE} WHERE false")
    stage.query("30_held", ONE, min_rows=5)
    stage.query("40_failed", "SELECT broken")
    assert stage.deliver().exit_code == 4
    states = {entry["campaign"]: entry["state"] for entry in stage.ledger()}
    assert states == {"sent": "delivered", "empty": "empty", "held": "held", "failed": "failed"}
    failed = stage.ledger()[3]
    assert "broken" in failed["message"] and failed["hint"]


def test_the_ledger_is_on_the_disk_before_the_rename(stage: Stage) -> None:
    """Killed in the very moment of the rename, the program must know afterwards that it may have happened."""
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    with contextlib.closing(mailing_pipeline.Ledger(ledger_path(stage), FakeClock())) as ledger:
        found = ledger._db.execute("PRAGMA synchronous").fetchone()[0]  # no outside view of this exists
    assert found == 2


def test_the_ledger_itself_refuses_a_second_delivery_of_a_slot(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    copy = "INSERT INTO mailings (slot, campaign, state, folder, file, changed) VALUES (?, 'a', ?, '', '', '')"
    for state in ("delivered", "publishing"):
        with pytest.raises(sqlite3.IntegrityError):
            write_ledger(stage, copy, "2026-12-22 12:00", state)
    write_ledger(stage, copy, "2026-12-22 13:00", "delivered")


# ---------------------------------------------------------------------------------------------------------------------
# What is in doubt is settled first
# ---------------------------------------------------------------------------------------------------------------------


def left_in_doubt(stage: Stage, now: datetime = NOON) -> tuple[Path, Path]:
    """A run that was killed between its note `publishing` and the reply to the rename; temp and final name."""
    stage.query("10_a", ONE)
    assert stage.deliver(now=now).exit_code == 0
    (entry,) = stage.ledger()
    temp, final = stage.drop("a") / ".part-00000000", stage.drop("a") / entry["file"]
    remote_temp = f"{stage.remote_base}/a/{temp.name}"
    write_ledger(stage, "UPDATE mailings SET state = 'publishing', temp = ? WHERE campaign = 'a'", remote_temp)
    write_ledger(stage, "DELETE FROM mailings WHERE campaign = ''")
    return temp, final


def next_run(stage: Stage, now: datetime) -> Result:
    result = stage.deliver(now=now)
    assert result.exit_code == 0, result.said
    assert [name for name in stage.files("a") if name.startswith(".part")] == []
    return result


def test_a_rename_that_happened_counts_as_delivered(stage: Stage) -> None:
    _, final = left_in_doubt(stage)
    assert next_run(stage, NOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == [final.name]
    assert stage.ledger()[0]["state"] == "delivered"


def test_a_mailing_that_the_dialer_has_taken_counts_as_delivered(stage: Stage) -> None:
    _, final = left_in_doubt(stage)
    final.unlink()
    assert next_run(stage, NOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == []


def test_a_link_without_its_unlink_loses_the_temp(stage: Stage) -> None:
    """OpenSSH renames by link and unlink."""
    temp, final = left_in_doubt(stage)
    os.link(final, temp)
    assert next_run(stage, NOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == [final.name]


def test_a_rename_that_never_happened_is_done_in_the_same_slot(stage: Stage) -> None:
    temp, final = left_in_doubt(stage)
    final.rename(temp)
    with stage.dialer(take=False) as dialer:
        assert next_run(stage, NOON + timedelta(minutes=5)).verdicts == {"a": "already delivered"}
        assert [arrival.name for arrival in dialer.record] == [final.name]
    assert stage.files("a") == [final.name]


def test_an_old_mailing_is_never_sent_in_a_later_slot(stage: Stage) -> None:
    temp, final = left_in_doubt(stage)
    final.rename(temp)
    with stage.dialer(take=False) as dialer:
        assert next_run(stage, NOON + HOUR).verdicts == {"a": "delivered"}
        assert [arrival.name for arrival in dialer.record] == ["mailing_a_22-12_13-00.csv"]
    assert [entry["state"] for entry in stage.ledger()] == ["failed", "delivered"]


def test_what_is_in_doubt_is_settled_also_for_campaigns_that_do_not_run_now(stage: Stage) -> None:
    left_in_doubt(stage)
    stage.query("20_b", ONE)
    assert stage.deliver("--only", "b", now=NOON).verdicts == {"b": "delivered"}
    assert stage.ledger()[0]["state"] == "delivered"


def test_a_mailing_in_doubt_stays_so_while_the_server_is_out_of_reach(stage: Stage) -> None:
    from local_servers import free_port

    left_in_doubt(stage)
    port = stage.values["SFTP_PORT"]
    stage.settings(SFTP_PORT=free_port(), RETRY_ATTEMPTS=2)
    result = stage.deliver(now=NOON)
    assert result.exit_code == 6
    assert stage.ledger()[0]["state"] == "publishing" and len(stage.ledger()) <= 2
    stage.settings(SFTP_PORT=port)
    assert next_run(stage, NOON).verdicts == {"a": "already delivered"}


# ---------------------------------------------------------------------------------------------------------------------
# A ledger that cannot be used stops the run before any query
# ---------------------------------------------------------------------------------------------------------------------


def stopped_before_any_query(stage: Stage, told: str) -> None:
    """A run that ends with 2, naming the ledger and what to do; no query has run."""
    stage.query("10_a", INSERT_SQL.format(told), read_only="no")
    result = stage.deliver(now=NOON + HOUR)
    assert result.exit_code == 2, result.said
    assert "ledger.sqlite3" in result.stderr and told in result.stderr
    assert len(stage.files("a")) == 1
    with stage.database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM escrita WHERE nota = %s", (told,)).fetchone() == (0,)


def test_a_damaged_ledger_stops_the_run(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    data = bytearray(ledger_path(stage).read_bytes())
    data[100:2000] = b"x" * 1900
    ledger_path(stage).write_bytes(data)
    stopped_before_any_query(stage, "restore")


def test_a_file_that_is_no_ledger_stops_the_run(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    ledger_path(stage).write_text("this is no database, but somebody saved it under this name\n" * 20)
    stopped_before_any_query(stage, "not a database")


def test_a_ledger_that_is_gone_while_its_mailings_are_there_stops_the_run(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    ledger_path(stage).unlink()
    stopped_before_any_query(stage, "Restore")


def test_mailings_with_another_ending_are_known_as_mailings_too(stage: Stage) -> None:
    stage.settings(FILE_NAME="mailing_{campaign}_%d-%m_%H-%M.TXT")
    stage.query("10_a", ONE)
    assert stage.deliver(now=NOON).exit_code == 0
    ledger_path(stage).unlink()
    stopped_before_any_query(stage, "Restore")


@pytest.mark.parametrize("options", [["--status"], ["--dry-run"]])
def test_looking_writes_nothing_into_the_ledger(stage: Stage, options: list[str]) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    with contextlib.closing(sqlite3.connect(ledger_path(stage), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")  # nobody else can write now
        result = stage.main([*options, "--json"], now=NOON)
    assert result.exit_code == 0, result.said
    assert '"a"' in result.stdout


def test_a_ledger_that_another_program_holds_stops_the_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **how: connect(path, **how | {"timeout": 0.2})
    )  # not ten seconds
    with contextlib.closing(connect(ledger_path(stage), isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        stopped_before_any_query(stage, "locked")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user who is bound by permission bits")
def test_a_ledger_that_cannot_be_written_stops_the_run(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    with forbidden(ledger_path(stage), 0o444), forbidden(stage.output):
        stopped_before_any_query(stage, "writable")


def test_a_folder_in_place_of_the_ledger_stops_the_run(stage: Stage) -> None:
    stage.query("10_a", ONE)
    ledger_path(stage).mkdir(parents=True)
    result = stage.main()
    assert result.exit_code == 2 and "ledger.sqlite3" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# One run at a time
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(stage: Stage) -> subprocess.Popen[str]:
    """A run whose query takes two seconds, under way."""
    stage.query("10_a", "SELECT 1 AS n, pg_sleep(2) AS s")
    process = stage.start("--json")
    wait_for_query(stage)
    return process


def wait_for_query(stage: Stage) -> None:
    with stage.database.connect() as connection:
        for _ in range(2000):
            sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            if connection.execute(sql).fetchone() != (0,):
                return
            time.sleep(0.01)
    raise AssertionError("no query began")


def test_a_second_run_says_who_holds_the_lock_and_ends_with_3(stage: Stage, running: subprocess.Popen[str]) -> None:
    second = stage.main()
    assert second.exit_code == 3
    assert re.search(rf"process {running.pid}, started 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d by hand", second.stderr)
    assert stage.end(running).verdicts == {"a": "delivered"}
    assert len(stage.files("a")) == 1


def test_a_scheduled_run_waits_for_the_one_before(stage: Stage, running: subprocess.Popen[str]) -> None:
    second = stage.deliver("--scheduled")
    assert second.exit_code == 0
    assert stage.end(running).verdicts == {"a": "delivered"}
    assert len(stage.files("a")) == len(stage.ledger())  # once, or, at the turn of the hour, once in each slot
    assert f"process {running.pid}" in second.log


def test_a_scheduled_run_waits_no_longer_than_its_deadline(stage: Stage, running: subprocess.Popen[str]) -> None:
    second = stage.deliver("--scheduled", clock=FakeClock(NOON))
    assert second.exit_code == 3
    assert stage.end(running).exit_code == 0


def test_the_lock_of_a_killed_run_is_free(stage: Stage, running: subprocess.Popen[str]) -> None:
    running.kill()
    running.wait()
    stage.query("10_a", ONE)
    assert stage.deliver().verdicts == {"a": "delivered"}


def test_looking_needs_no_lock(stage: Stage, running: subprocess.Popen[str]) -> None:
    stage.query("10_a", ONE)
    assert stage.main(["--status"]).exit_code == 0
    assert stage.main(["--dry-run"]).exit_code == 0
    assert stage.main(["--check"]).exit_code == 0
    assert stage.end(running).exit_code == 0


# ---------------------------------------------------------------------------------------------------------------------
# RETENTION_DAYS
# ---------------------------------------------------------------------------------------------------------------------


def age(path: Path, days: float) -> None:
    """Make a file look as if it had been written so many days ago."""
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def local_files(stage: Stage) -> set[str]:
    found = {path.relative_to(stage.output).as_posix() for path in stage.output.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("ledger", "run.lock", "status"))}


def test_local_mailings_are_deleted_after_retention_days_and_only_they(stage: Stage) -> None:
    stage.settings(RETENTION_DAYS=3)
    stage.query("10_a", "SELECT '11988887777' AS t UNION ALL SELECT '1'", phones="t")
    start = datetime.now().replace(hour=12) - timedelta(days=10)
    stage.deliver(now=start)
    first = stage.ledger()[0]["file"]
    rejected = first.replace(".csv", "_rejected.csv")
    assert local_files(stage) == {first, rejected}
    strangers = {"lista da Ana.csv", "mailing_a_old.csv", "notes.txt", "sub/mailing_b.csv"}
    (stage.output / "sub").mkdir()
    for name in strangers:
        (stage.output / name).write_text("not ours")
        age(stage.output / name, 100)
    (stage.output / f"{first}.part").write_text("a leftover")
    stage.deliver(now=start + timedelta(days=2, hours=23))
    assert {first, rejected} <= local_files(stage)
    result = stage.deliver(now=start + timedelta(days=3, hours=1))
    assert result.exit_code == 0
    assert local_files(stage) & {first, rejected, f"{first}.part"} == set()
    assert strangers <= local_files(stage)
    assert len(stage.files("a")) == 3, "what the dialer was given is not ours to delete"
    assert "cannot be deleted" not in result.log


def test_rehearsed_mailings_are_deleted_too(stage: Stage) -> None:
    stage.settings(RETENTION_DAYS=3)
    stage.query("10_a", ONE)
    stage.main(["--dry-run"])
    (name,) = local_files(stage)
    age(stage.output / name, 2)
    stage.deliver()
    assert name in local_files(stage)
    age(stage.output / name, 4)
    stage.deliver("--resend")
    assert name not in local_files(stage)


def test_a_file_that_goes_while_old_ones_are_looked_for_stops_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.query("10_a", ONE)
    stage.main(["--dry-run"])
    real = Path.stat

    def stat(path: Path, **how: Any) -> os.stat_result:
        if path.parent.name == "dry-run":
            path.unlink(missing_ok=True)
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    assert stage.deliver().exit_code == 0


def test_leftovers_of_yesterday_are_never_sent(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.output.mkdir()
    stage.deliver(now=NOON - timedelta(days=1))
    for name in ("mailing_a_22-12_12-00.csv.part", "mailing_a_21-12_18-00.csv"):
        (stage.output / name).write_text("old")
    with stage.dialer() as dialer:
        assert stage.deliver(now=NOON).exit_code == 0
        assert [arrival.size_bytes for arrival in dialer.record][-1] == len(b"n\r\n1\r\n")
