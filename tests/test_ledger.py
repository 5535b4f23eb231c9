"""The ledger, the lock, and what is kept on this PC for how long."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import threading
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
    assert entry["temps"] == 0, "nothing of it is left under a temp name"


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


def test_the_ledger_is_on_the_disk_before_the_rename(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the very moment of the rename, the program must know afterwards that it may have happened."""
    connect, opened = sqlite3.connect, list[sqlite3.Connection]()

    def watched(*args: Any, **how: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **how))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", watched)
    with contextlib.closing(mailing_pipeline.Ledger(ledger_path(stage), FakeClock())):
        (db,) = opened
        found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    assert found == [2, "persist"], "the commit itself is synced"


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
    on_its_way = "UPDATE mailings SET state = 'publishing', temp = ?, temp_id = 0, temps = 1"
    write_ledger(stage, on_its_way, f"{stage.remote_base}/a/.part-{{id}}")
    write_ledger(stage, "DELETE FROM runs")
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
# A ledger of the version before is taken over at its first use, and nothing that it knows is lost
# ---------------------------------------------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE IF NOT EXISTS mailings (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,
    campaign TEXT NOT NULL,
    state TEXT NOT NULL,
    resend INTEGER NOT NULL DEFAULT 0,
    folder TEXT NOT NULL,
    file TEXT NOT NULL,
    temp TEXT NOT NULL DEFAULT '',
    rows INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT '',
    pickup TEXT NOT NULL DEFAULT '',
    changed TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS at_most_once ON mailings (campaign, slot)
    WHERE resend = 0 AND state IN ('publishing', 'delivered');
CREATE INDEX IF NOT EXISTS by_file ON mailings (file);
PRAGMA user_version = 1;
"""
OLD_WITHDRAWN = "not known whether it was picked up: it was being withdrawn when the connection failed"
SENT = b"n\r\n1\r\n"  # what ONE makes
SOON = NOON + timedelta(minutes=5)
Row = dict[str, Any]


def old_entry(stage: Stage, campaign: str, state: str, at: datetime = NOON, **values: Any) -> Row:
    """A mailing as version 1 noted it."""
    return {
        "slot": f"{at:%Y-%m-%d %H}:00",
        "campaign": campaign,
        "state": state,
        "folder": f"{stage.remote_base}/{campaign}",
        "file": f"mailing_{campaign}_{at:%d-%m_%H-%M}.csv",
        "changed": at.astimezone().isoformat(timespec="milliseconds"),
    } | values


def old_run(stage: Stage, at: datetime, state: str = "done", **values: Any) -> Row:
    """A whole run as version 1 noted it: a mailing without a campaign."""
    return old_entry(stage, "", state, at) | {"folder": ".", "file": "", "message": "1 delivered"} | values


def old_ledger(stage: Stage, *entries: Row) -> None:
    """The ledger as the version before left it."""
    stage.output.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(ledger_path(stage))) as db, db:
        db.executescript(VERSION_1)
        for entry in entries:
            marks = ", ".join(f":{name}" for name in entry)
            db.execute(f"INSERT INTO mailings ({', '.join(entry)}) VALUES ({marks})", entry)


def old_doubt(stage: Stage, *temps: str, **values: Any) -> Path:
    """Version 1 was killed in the rename of 12:00; temps: the names it noted. Returns the final name's path."""
    stage.query("10_a", ONE)
    noted = "\n".join(f"{stage.remote_base}/a/{temp}" for temp in temps)
    doubt = old_entry(stage, "a", "publishing", temp=noted, rows=1, size_bytes=len(SENT), **values)
    eleven = old_entry(stage, "a", "delivered", NOON - HOUR, rows=1)
    later = [old_entry(stage, "b", "delivered", rows=7), old_entry(stage, "c", "held")]
    old_ledger(stage, eleven, doubt, *later)
    return stage.drop("a") / str(doubt["file"])


def states_of(stage: Stage, campaign: str) -> dict[str, str]:
    return {row["slot"][-5:]: row["state"] for row in stage.ledger() if row["campaign"] == campaign}


def test_a_slot_that_was_delivered_before_the_update_is_not_sent_again(stage: Stage) -> None:
    stage.query("10_a", ONE)
    old_ledger(stage, old_entry(stage, "a", "delivered", rows=1), old_run(stage, NOON))
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == []
    assert stage.deliver("--resend", now=SOON).verdicts == {"a": "delivered"}
    assert [row["resend"] for row in stage.ledger()] == [0, 1]


def test_a_slot_that_was_sent_twice_on_request_is_taken_over_whole(stage: Stage) -> None:
    stage.query("10_a", ONE)
    again = old_entry(stage, "a", "delivered", SOON, resend=1)
    old_ledger(stage, old_entry(stage, "a", "delivered"), again)
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}
    assert [row["file"] for row in stage.ledger()] == ["mailing_a_22-12_12-00.csv", again["file"]]


@pytest.mark.parametrize(("at_temp", "at_final"), [(True, False), (False, True), (True, True), (False, False)], ids=str)
def test_a_rename_in_doubt_from_before_the_update_is_settled_by_looking(
    stage: Stage, at_temp: bool, at_final: bool
) -> None:
    final = old_doubt(stage, ".part-0000000a")
    for path, there in ((final.with_name(".part-0000000a"), at_temp), (final, at_final)):
        if there:
            path.write_bytes(SENT)
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == ([final.name] if at_temp or at_final else [])
    assert states_of(stage, "a") == {"11:00": "delivered", "12:00": "delivered"}


def test_an_old_mailing_from_before_the_update_is_not_sent_in_a_later_slot(stage: Stage) -> None:
    final = old_doubt(stage, ".part-0000000a")
    final.with_name(".part-0000000a").write_bytes(SENT)
    assert stage.deliver(now=NOON + HOUR).verdicts == {"a": "delivered"}
    assert stage.files("a") == ["mailing_a_22-12_13-00.csv"]
    assert states_of(stage, "a") == {"11:00": "delivered", "12:00": "failed", "13:00": "delivered"}


@pytest.mark.parametrize("at", [SOON, NOON + HOUR], ids=["the same slot", "a later slot"])
def test_what_was_being_withdrawn_before_the_update_is_in_doubt_and_not_sent_again(stage: Stage, at: datetime) -> None:
    old_doubt(stage, ".part-0000000a", pickup=OLD_WITHDRAWN)
    result = stage.deliver(now=at)
    assert states_of(stage, "a")["12:00"] == "in doubt"
    if at is SOON:
        assert result.verdicts == {"a": "in doubt"} and result.exit_code != 0
        assert stage.files("a") == []
    else:
        assert result.verdicts == {"a": "delivered"}


def test_what_was_being_withdrawn_before_the_update_and_arrived_all_the_same_is_delivered(stage: Stage) -> None:
    final = old_doubt(stage, ".part-0000000a", pickup=OLD_WITHDRAWN)
    final.write_bytes(SENT)
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}
    told = stage.main(["--status", "--json"], now=SOON).json
    assert told["campaigns"]["a"]["2026-12-22 12:00"]["state"] == "delivered"
    assert "a" not in told["attention"], "nobody watched its pickup"


TEMPS = (".part-0000000a", ".part-7f000001", ".part-ffffffff")


def test_the_temps_of_earlier_tries_from_before_the_update_are_removed(stage: Stage) -> None:
    """Settling looks at the last one alone."""
    final = old_doubt(stage, *TEMPS)
    for temp in TEMPS:
        final.with_name(temp).write_bytes(SENT)
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == [final.name]
    assert [row for row in stage.ledger() if row["temps"]] == []


@pytest.mark.parametrize("state", ["delivered", "failed"])
def test_the_temps_of_a_mailing_that_was_settled_before_the_update_are_removed(stage: Stage, state: str) -> None:
    stage.query("10_a", ONE)
    left = "\n".join(f"{stage.remote_base}/a/{temp}" for temp in TEMPS)
    old_ledger(stage, old_entry(stage, "a", state, NOON - HOUR, temp=left), old_entry(stage, "b", "empty"))
    for temp in TEMPS:
        (stage.drop("a") / temp).write_bytes(SENT)
    assert stage.deliver(now=NOON).exit_code == 0
    assert stage.files("a") == ["mailing_a_22-12_12-00.csv"]


def test_the_temps_of_earlier_tries_are_no_troubles_of_their_own(stage: Stage) -> None:
    old_doubt(stage, *TEMPS).write_bytes(SENT)
    for _ in range(2):  # before and after they have been removed
        told = stage.main(["--status", "--json"], now=SOON).json
        stage.deliver(now=SOON)
    assert told["attention"] == {"c": "held"}
    assert told["campaigns"]["a"]["2026-12-22 12:00"]["state"] == "delivered"
    assert "failed" not in told["tally"]
    page = (stage.output / "status.html").read_text(encoding="utf-8")
    assert ">failed<" not in page.partition("<body")[2].replace("</b>", "<")


@pytest.mark.parametrize("state", ["started", "exported"])
def test_a_mailing_that_was_interrupted_before_the_update_is_made_anew(stage: Stage, state: str) -> None:
    stage.query("10_a", ONE)
    left = f"{stage.remote_base}/a/{TEMPS[0]}"
    old_ledger(stage, old_entry(stage, "a", state, temp=left))
    (stage.drop("a") / TEMPS[0]).write_bytes(SENT)
    assert stage.deliver(now=SOON).verdicts == {"a": "delivered"}
    assert stage.files("a") == ["mailing_a_22-12_12-05.csv"]
    interrupted, _ = stage.ledger()
    assert interrupted["state"] == "failed" and "interrupted" in interrupted["message"]


@pytest.mark.parametrize("looks_first", [["--status"], ["--dry-run"], []], ids=str)
def test_rows_from_before_the_update_still_guard_max_drop(stage: Stage, looks_first: list[str]) -> None:
    stage.query("10_a", ONE, max_drop="70%")
    hours = [old_entry(stage, "a", "delivered", NOON - n * HOUR, rows=100) for n in (3, 2, 1)]
    old_ledger(stage, *hours, old_run(stage, NOON - HOUR))
    if looks_first:
        result = stage.main([*looks_first, "--json"], now=NOON)
        assert looks_first == ["--status"] or result.verdicts == {"a": "held"}
    result = stage.deliver(now=NOON)
    assert result.verdicts == {"a": "held"} and stage.files("a") == []
    assert "below the usual 100" in result.campaigns["a"]["message"]


@pytest.mark.parametrize("options", [["--status"], ["--dry-run"]], ids=str)
def test_a_first_use_that_only_looks_loses_nothing_either(stage: Stage, options: list[str]) -> None:
    final = old_doubt(stage, TEMPS[0])
    final.write_bytes(SENT)
    looked = stage.main([*options, "--json"], now=SOON)
    assert looked.exit_code == 0
    if options == ["--status"]:
        assert looked.json["campaigns"]["a"]["2026-12-22 12:00"]["state"] == "in doubt"
    else:
        assert "delivered already" in looked.campaigns["a"]["message"]
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}
    assert stage.files("a") == [final.name]


def seen_before_the_update(stage: Stage) -> None:
    """A morning with everything that a person was told then."""
    stage.settings(RUN_HOURS="08:00-20:00")
    for name in ("10_a", "20_b", "30_c"):
        stage.query(name, ONE)
    ten, eleven = NOON - 2 * HOUR, NOON - HOUR
    fault = {"file": "fault", "message": "the database is down", "hint": "check PGHOST"}
    old_ledger(
        stage,
        old_run(stage, NOON - 3 * HOUR, "failed", **fault),
        old_entry(stage, "a", "delivered", ten, rows=123, pickup="picked up at 10:02:45"),
        old_entry(stage, "b", "empty", ten),
        old_run(stage, ten),
        old_entry(stage, "a", "delivered", eleven, rows=124, pickup="not picked up within 30 s"),
        old_entry(stage, "b", "held", eleven, message="1 contacts, fewer than min_rows 5", hint="check it"),
        old_entry(stage, "c", "failed", eleven, message="30_c.sql: line 1: broken", hint="mend it"),
        old_run(stage, eleven, "failed", message="1 delivered, 1 held, 1 failed"),
    )


def test_status_still_shows_what_was_before_the_update(stage: Stage) -> None:
    seen_before_the_update(stage)
    told = stage.main(["--status", "--json"], now=NOON).json
    ten, eleven = "2026-12-22 10:00", "2026-12-22 11:00"
    cells = told["campaigns"]
    taken, left = cells["a"][ten], cells["a"][eleven]
    assert (taken["state"], taken["rows"]) == ("delivered", 123)
    assert (taken["pickup"], taken["picked_up"]) == ("picked up", "10:02:45")
    assert (left["state"], left["rows"], left["pickup"]) == ("not taken", 124, "not picked up")
    assert (cells["b"][ten]["state"], cells["b"][eleven]["state"]) == ("empty", "held")
    assert cells["b"][eleven]["message"].endswith("min_rows 5") and cells["b"][eleven]["hint"] == "check it"
    assert (cells["c"][eleven]["state"], cells["c"][eleven]["hint"]) == ("failed", "mend it")
    assert told["last_run"] == (NOON - HOUR).astimezone().isoformat(timespec="milliseconds")
    assert told["last_successful_run"] == (NOON - 2 * HOUR).astimezone().isoformat(timespec="milliseconds")
    shown = stage.main(["--status"], now=NOON).stdout
    assert "123" in shown and "fewer than min_rows 5" in shown and "30_c.sql: line 1: broken" in shown


def test_the_page_still_shows_what_was_before_the_update(stage: Stage) -> None:
    seen_before_the_update(stage)
    assert stage.deliver(now=NOON).exit_code == 0
    page = (stage.output / "status.html").read_text(encoding="utf-8")
    for told in (
        "123",
        "124",
        "fewer than min_rows 5",
        "30_c.sql: line 1: broken",
        "the database is down",
        "check PGHOST",
    ):
        assert told in page, told
    assert "not picked up within 30 s" in page, "how long it was waited for is part of what was told"


def test_an_hour_without_a_run_is_noticed_across_the_update(stage: Stage) -> None:
    stage.query("10_a", ONE)
    old_ledger(stage, old_entry(stage, "a", "delivered", NOON - 2 * HOUR), old_run(stage, NOON - 2 * HOUR))
    assert "no run in the slots 22/12 11:00" in stage.deliver(now=NOON).log


def test_a_name_that_was_used_before_the_update_is_not_used_again(stage: Stage) -> None:
    """The dialer may have kept it in mind, and the ledger must tell the two apart."""
    stage.query("10_a", ONE)
    old_ledger(stage, old_entry(stage, "a", "failed"))
    assert stage.deliver(now=NOON).verdicts == {"a": "delivered"}
    assert stage.files("a") == ["mailing_a_22-12_12-00-2.csv"]


def test_local_mailings_from_before_the_update_are_deleted_after_retention_days(stage: Stage) -> None:
    stage.settings(RETENTION_DAYS=3)
    stage.query("10_a", ONE)
    old = old_entry(stage, "a", "delivered", NOON - timedelta(days=4))
    old_ledger(stage, old)
    csv, rejects = (stage.output / str(old["file"]).replace(".csv", end) for end in (".csv", "_rejected.csv"))
    for path in (csv, rejects):
        path.write_text("old")
    assert stage.deliver(now=NOON).exit_code == 0
    assert not csv.exists() and not rejects.exists()


def test_two_programs_that_meet_an_old_ledger_at_once_take_it_over_once(stage: Stage) -> None:
    """The hourly run and somebody's --status, in the first minute after the update."""
    final = old_doubt(stage, TEMPS[0])
    final.write_bytes(SENT)
    write_ledger(stage, "UPDATE mailings SET pickup = 'picked up at 11:00:09' WHERE slot LIKE '%11:00'")
    opened = []

    def use() -> None:
        with contextlib.closing(mailing_pipeline.Ledger(ledger_path(stage), FakeClock(), looks=True)) as ledger:
            opened.append(ledger.past_rows("b"))

    with contextlib.closing(sqlite3.connect(ledger_path(stage), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        users = [threading.Thread(target=use) for _ in range(2)]
        for user in users:
            user.start()
        time.sleep(0.5)  # both have seen an old ledger, and wait to write
        db.execute("ROLLBACK")
    for user in users:
        user.join()
    assert opened == [[7], [7]]
    picked, doubt = stage.ledger()[:2]
    assert (picked["pickup"], picked["picked_up"]) == ("picked up", "11:00:09")
    assert (doubt["state"], doubt["temp_id"], doubt["temps"]) == ("publishing", 10, 1)
    assert stage.deliver(now=SOON).verdicts == {"a": "already delivered"}


def test_a_ledger_of_a_newer_version_stops_the_run_and_stays_as_it_is(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.deliver(now=NOON)
    write_ledger(stage, "PRAGMA user_version = 99")
    before = ledger_path(stage).read_bytes()
    stopped_before_any_query(stage, "newer version")
    assert ledger_path(stage).read_bytes() == before


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
    assert re.search(rf"process {running.pid}, started .*\d\d:\d\d:\d\d.* by hand", second.stderr)
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
