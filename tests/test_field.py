"""What the field really has: faulty files, hostile servers, odd data, people in a hurry.

Silent campaigns, rehearsals, texts of others, values, small things: what the dialer got, what was told.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import select
import socket
import subprocess
import threading
import time
import venv
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_servers import free_port
from paramiko import sftp as codes
from rig.faulty_sftp import ALWAYS, Fault, FaultyServer, FaultySession, Request
from rig.theatre import until
from stage import NOON, PROGRAM, FakeClock, Result, Stage, clean_environ
from test_aftermath import Listener

import mailing_pipeline

ONE = "SELECT 1 AS n"
PEOPLE = "SELECT telefone, nome FROM contatos WHERE id <= {}"
HOUR = timedelta(hours=1)
SATURDAY = datetime(2026, 12, 26, 12, 0)
CANARY = "s3cret-Canary"
posix = pytest.mark.skipif(os.name == "nt", reason="needs names, shells and terminals as POSIX has them")
ENOUGH_CHARS = 700  # a message of the program's own words, a few names, and 300 characters of somebody else's


@pytest.fixture
def alerts(stage: Stage) -> Iterator[Listener]:
    """Where the alerts of this stage arrive."""
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stage.settings(ALERT_URLS=f"json://{listener.address}/")
    yield listener
    listener.server.shutdown()
    thread.join()
    listener.server.server_close()


@pytest.fixture
def faulty(stage: Stage, tmp_path: Path) -> Iterator[FaultyServer]:
    """An SFTP server that commits faults, in place of the sound one."""
    with FaultyServer(tmp_path / "faulty") as server:
        stage.use(server)
        yield server


def page(stage: Stage) -> str:
    """The status page, as a reader sees its words."""
    return html.unescape((stage.output / "status.html").read_text(encoding="utf-8"))


def places(stage: Stage, result: Result, alerts: Listener) -> dict[str, str]:
    """Everything that a person may look at after a run, by where."""
    return {
        "console": result.stdout,
        "log": result.log,
        "ledger": json.dumps(stage.ledger(), ensure_ascii=False, default=str),
        "page": page(stage),
        "alert": "\n".join(alerts.told),
    }


def last_line(told: str) -> str:
    return told.strip().splitlines()[-1]


def states(stage: Stage) -> dict[str, str]:
    """The latest state of each campaign in the ledger."""
    return {row["campaign"]: row["state"] for row in stage.ledger()}


# ---------------------------------------------------------------------------------------------------------------------
# Silent campaigns: a faulty file costs its own campaign, and everybody hears of it
# ---------------------------------------------------------------------------------------------------------------------

ACCENTS = "SELECT 1 AS n -- não\n"
BROKEN_FILES = {
    "a directive that cannot be read": ("20_ruim.sql", b"-- folder: x\n-- min_rows: muitas\nSELECT 1 AS n\n", "line 2"),
    "a misspelt directive": ("20_ruim.sql", b"-- min rows: 500\nSELECT 1 AS n\n", "line 1"),
    "no query at all": ("20_ruim.sql", b"-- folder: x\n", "SELECT"),
    "nothing that returns rows": ("20_ruim.sql", b"SELECT 1;\nSET work_mem = '1MB';\n", "line 2"),
    "an empty file": ("70_novo.sql", b"", "empty"),
    "blanks and line ends alone": ("70_novo.sql", b"\r\n  \r\n", "empty"),
    "a BOM alone": ("70_novo.sql", b"\xef\xbb\xbf", "empty"),
    "a file in ANSI": ("20_ruim.sql", b"\n" + ACCENTS.encode("cp1252"), "line 2"),
    "a file in UTF-16": ("20_ruim.sql", ACCENTS.encode("utf-16"), "UTF-16"),
    "a file in UTF-16 without a BOM": ("20_ruim.sql", ACCENTS.encode("utf-16-le"), "UTF-16"),
    "a name with a blank": ("20_nova campanha.sql", b"SELECT 1 AS n\n", "nova campanha"),
    "a name with an accent": ("20_cobrança.sql", b"SELECT 1 AS n\n", "cobrança"),
    "lines that end in CR alone": ("20_ruim.sql", b"-- min_rows: 5\rSELECT 1 AS n\r", "CR"),
    "a NUL character": ("20_ruim.sql", b"SELECT 1 AS n\nFROM contatos\0\n-- all of it\n", "line 2"),
    "a file name that cannot be seen": ("20_ruim.sql", b"-- file_name: a\x1b[31m.csv\nSELECT 1 AS n\n", "line 1"),
    "a folder that cannot be seen": ("20_ruim.sql", "-- folder: /a\u202eb\nSELECT 1 AS n\n".encode(), "line 1"),
    "a thousand statements": ("20_ruim.sql", b"a;" * 200_000, "20_ruim.sql"),
    "a transaction that it ends itself": ("20_ruim.sql", b"SELECT 1;\nCOMMIT;\nSELECT 1 AS n\n", "line 2"),
    "SQL that the server cannot read": ("20_ruim.sql", b"SELECT 1 AS n,\nFROM contatos\n", "line 2"),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_a_faulty_query_file_costs_its_own_campaign_and_is_told_everywhere(
    stage: Stage, alerts: Listener, kind: str
) -> None:
    name, data, told = BROKEN_FILES[kind]
    stage.query("10_a", ONE)
    (stage.queries / name).write_bytes(data)
    stage.make_drop("ruim")
    stage.query("90_z", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 4, result.said
    assert [len(stage.files(campaign)) for campaign in ("a", "ruim", "z")] == [1, 0, 1]
    for place, said in places(stage, result, alerts).items():
        assert name in said and told in said, f"{place}: {said}"
        assert "\x1b" not in said and "\u202e" not in said, place
    assert [row["state"] for row in stage.ledger()].count("failed") == 1
    assert max(len(row["message"]) for row in stage.ledger()) < ENOUGH_CHARS


@posix
def test_a_file_name_that_nobody_can_read_is_told_in_letters_that_everybody_can(stage: Stage, alerts: Listener) -> None:
    stage.query("10_a", ONE)
    (stage.queries / "20_x\x1b[31m\n\u202e.sql").write_text(ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 4 and len(stage.files("a")) == 1
    for place, said in places(stage, result, alerts).items():
        assert "20_x" in said and not UNWANTED.search(said), place
    assert stage.main(["--status"], now=NOON).exit_code == 0


@pytest.mark.parametrize("kind", ["an empty file", "a file in ANSI", "a misspelt directive", "a name with a blank"])
def test_a_faulty_query_file_is_told_by_rehearsals_and_concerns_only_those_who_ask_for_it(
    stage: Stage, kind: str
) -> None:
    name, data, told = BROKEN_FILES[kind]
    stage.query("10_a", ONE)
    (stage.queries / name).write_bytes(data)
    for options in (["--check"], ["--dry-run"], ["--dry-run", "--json"]):
        looked = stage.main(options, now=NOON)
        assert looked.exit_code == 4 and name in looked.stdout and told in looked.stdout, looked.said
    for options in (["--check", "--only", "a"], ["--dry-run", "--only", "a"], ["--only", "a"]):
        assert stage.main(options, now=NOON).exit_code == 0
    broken = re.sub(r"^\d+_|\.sql$", "", name)
    alone = stage.main(["--only", broken], now=NOON + HOUR)
    assert alone.exit_code == 4 and name in alone.stdout and len(stage.files("a")) == 1, alone.said


def test_two_campaigns_with_one_folder_both_fail_and_the_others_are_delivered(stage: Stage, alerts: Listener) -> None:
    stage.query("10_a", ONE, folder=stage.remote_base / "juntos")
    stage.query("20_b", ONE, folder=stage.remote_base / "Juntos")
    stage.query("30_c", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 4
    assert states(stage) == {"a": "failed", "b": "failed", "c": "delivered"}
    assert stage.files("a") == [] == stage.files("b") and len(stage.files("c")) == 1
    for place, said in places(stage, result, alerts).items():
        assert "10_a.sql" in said and "20_b.sql" in said, place


def test_two_campaigns_with_one_name_both_fail_and_the_others_are_delivered(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.query("20_b", ONE, campaign="a", folder="b")
    stage.query("30_c", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 4 and "10_a.sql" in result.log and "20_b.sql" in result.log
    assert [path.name for path in stage.base.rglob("*.csv")] == ["mailing_c_22-12_12-00.csv"]


def test_where_no_query_file_can_be_used_nothing_is_started_and_every_fault_is_told(
    stage: Stage, alerts: Listener
) -> None:
    (stage.queries / "10_a.sql").write_bytes(b"")
    stage.query("20_b", ONE, min_rows="muitas")
    result = stage.run("--scheduled")
    assert result.exit_code == 2
    for said in (result.stderr, result.log, page(stage), "\n".join(alerts.told)):
        assert "10_a.sql" in said and "20_b.sql: line 1" in said


def test_a_broken_campaign_is_not_told_by_alert_every_hour_and_its_mending_is(stage: Stage, alerts: Listener) -> None:
    stage.query("10_a", ONE)
    stage.query("20_b", ONE, min_rows="muitas")
    for hour in range(3):
        assert stage.main(now=NOON + hour * HOUR).exit_code == 4
    assert len(alerts.posted) == 1
    stage.query("20_b", ONE)
    assert stage.main(now=NOON + 3 * HOUR).exit_code == 0
    assert len(alerts.posted) == 2 and "b: works again" in alerts.told[1]


def lay_down_what_is_not_read(stage: Stage) -> list[str]:
    """Files that look like queries and are none; their names."""
    stage.query("10_a", ONE)
    names = ["20_nova.sql.txt", "10_a - Copia.sql", "10_a (1).sql", "40_pausa.sql", "50_x.sql.bak"]
    names += ["30_y.SQL"] if os.name != "nt" else []
    for name in names:
        (stage.queries / name).write_text("-- enabled: no\nSELECT 1 AS n\n" if "pausa" in name else ONE)
    return names


def test_what_looks_like_a_query_and_is_not_read_is_named(stage: Stage) -> None:
    names = lay_down_what_is_not_read(stage)
    looked, ran = stage.main(["--check"], now=NOON), stage.main(now=NOON)
    assert (looked.exit_code, ran.exit_code) == (0, 0), looked.said
    for name in names:
        assert name in looked.stdout and name in ran.log, name
    assert [row["campaign"] for row in stage.ledger()] == ["a"]


def test_only_and_dry_run_name_what_is_not_read_too(stage: Stage) -> None:
    names = lay_down_what_is_not_read(stage)
    for options in (["--dry-run"], ["--only", "a"]):
        assert all(name in stage.main(options, now=NOON).log for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Silent campaigns: collapses
# ---------------------------------------------------------------------------------------------------------------------


def test_zero_rows_are_a_collapse_where_there_is_a_usual_number(stage: Stage, alerts: Listener) -> None:
    stage.query("10_a", PEOPLE.format(100), max_drop="70%")
    assert stage.main(now=NOON).exit_code == 0
    stage.query("10_a", PEOPLE.format(0), max_drop="70%")
    rehearsed = stage.main(["--dry-run"], now=NOON + HOUR)
    result = stage.main(now=NOON + HOUR)
    assert rehearsed.exit_code == result.exit_code == 4 and len(stage.files("a")) == 1
    assert "held" in rehearsed.stdout
    for place, said in places(stage, result, alerts).items():
        assert "100" in said and "held" in said, place


def test_zero_rows_without_a_usual_number_are_empty(stage: Stage) -> None:
    stage.query("10_a", PEOPLE.format(0), max_drop="70%")
    assert stage.deliver(now=NOON).verdicts == {"a": "empty"}


@pytest.mark.parametrize("guards", [{}, {"min_rows": 0}, {"max_drop": "100%"}, {"max_rows": 9}], ids=str)
def test_a_mailing_whose_every_row_was_rejected_is_held(stage: Stage, guards: dict[str, Any]) -> None:
    stage.query("10_a", "SELECT '123' AS t FROM generate_series(1, 7)", phones="t", **guards)
    result = stage.main(now=NOON)
    assert result.exit_code == 4 and states(stage) == {"a": "held"} and stage.files("a") == []
    assert "7" in result.stdout and "every row was rejected" in result.stdout and "rejected" in result.log


def test_many_rejected_rows_are_told_beside_a_delivered_mailing(stage: Stage) -> None:
    sql = "SELECT CASE WHEN id <= 40 THEN telefone ELSE '123' END AS t FROM contatos WHERE id <= 100"
    stage.query("10_a", sql, phones="t")
    result = stage.main(now=NOON)
    assert result.exit_code == 0 and len(stage.cells("a")) == 41
    for said in (result.stdout, result.log):
        assert "60 of 100 rows were rejected" in said and "_rejected.csv" in said
    stage.settings(LANGUAGE="pt")
    assert "60 de 100" in stage.main(now=NOON + HOUR).stdout


# ---------------------------------------------------------------------------------------------------------------------
# Silent campaigns: a typing error, a day off
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cobranca_30", "COBRANCA", "10_cobranca.sql", ""])
def test_a_typing_error_behind_only_by_hand_alarms_nobody(stage: Stage, alerts: Listener, name: str) -> None:
    stage.query("10_cobranca", ONE)
    assert stage.main(now=NOON).exit_code == 0
    before = page(stage)
    result = stage.main(["--only", name], now=NOON + timedelta(minutes=1))
    assert result.exit_code == 2 and "cobranca" in result.stderr
    assert alerts.posted == [] and page(stage) == before
    status = stage.main(["--json", "--status"], now=NOON + timedelta(minutes=2))
    assert "--only" not in status.stdout


def test_a_typing_error_behind_only_of_the_task_scheduler_is_alarmed(stage: Stage, alerts: Listener) -> None:
    stage.query("10_cobranca", ONE)
    assert stage.main(["--scheduled", "--only", "cobranca_30"], now=NOON).exit_code == 2
    assert "cobranca_30" in alerts.told[0] and "cobranca_30" in page(stage)


SHORT_SATURDAY = "08:00-20:00, sat 08:00-13:00"
DAYS_OFF = {
    "a holiday": ({"HOLIDAYS": "2026-12-22"}, NOON, ("2026-12-22", "HOLIDAYS"), ("22/12/2026", "feriado")),
    "a weekday": ({"RUN_DAYS": "mon,wed-fri"}, NOON, ("tue", "RUN_DAYS"), ("terça", "RUN_DAYS")),
    "a Sunday": ({"RUN_DAYS": "mon-sat"}, SATURDAY + 24 * HOUR, ("sun", "RUN_DAYS"), ("domingo", "RUN_DAYS")),
    "a Saturday's own hours": (
        {"RUN_DAYS": "mon-sat", "RUN_HOURS": SHORT_SATURDAY},
        SATURDAY + 2 * HOUR,
        ("sat", "08:00-13:00", "RUN_HOURS"),
        ("sábado", "08:00-13:00"),
    ),
}


@pytest.mark.parametrize("kind", DAYS_OFF)
@pytest.mark.parametrize("language", ["en", "pt"])
def test_why_nothing_runs_by_hand_is_told_with_the_day(stage: Stage, kind: str, language: str) -> None:
    values, now, english, portuguese = DAYS_OFF[kind]
    stage.settings(**values, LANGUAGE=language)
    stage.query("10_a", ONE)
    result = stage.main(now=now)
    assert result.exit_code == 7 and stage.files("a") == []
    assert all(word in result.stderr for word in (portuguese if language == "pt" else english)), result.stderr


@pytest.mark.parametrize("kind", DAYS_OFF)
def test_why_nothing_runs_by_the_task_scheduler_stands_in_the_log(stage: Stage, kind: str) -> None:
    values, now, english, _ = DAYS_OFF[kind]
    stage.settings(**values)
    stage.query("10_a", ONE)
    result = stage.main(["--scheduled"], now=now)
    assert result.exit_code == 0 and stage.files("a") == []
    assert all(word in result.log for word in english), result.log


@pytest.mark.parametrize(
    ("directives", "told"),
    [({"days": "wed-fri"}, ("tue", "days:")), ({"hours": "13:00-18:00"}, ("12:00", "13:00-18:00", "hours:"))],
    ids=str,
)
def test_why_one_campaign_is_not_due_is_told_in_the_table(
    stage: Stage, directives: dict[str, Any], told: tuple[str, ...]
) -> None:
    stage.query("10_a", ONE, **directives)
    stage.query("20_b", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 0 and stage.files("a") == [] and len(stage.files("b")) == 1
    assert all(word in result.stdout for word in told), result.stdout


@pytest.mark.parametrize("where", ["RUN_HOURS", "hours:"])
@pytest.mark.parametrize(
    ("now", "sent"),
    [(SATURDAY + HOUR, 1), (SATURDAY + 1.75 * HOUR, 1), (SATURDAY + 2 * HOUR, 0), (SATURDAY - 22 * HOUR, 1)],
    ids=["13:00", "13:45", "14:00", "Friday 14:00"],
)
def test_saturdays_may_end_earlier(stage: Stage, where: str, now: datetime, sent: int) -> None:
    directives: dict[str, Any] = {}
    stage.settings(RUN_DAYS="mon-sat")
    if where == "RUN_HOURS":
        stage.settings(RUN_HOURS=SHORT_SATURDAY)
    else:
        directives = {"hours": SHORT_SATURDAY}
    stage.query("10_a", ONE, **directives)
    stage.main(now=now)
    assert len(stage.files("a")) == sent


@pytest.mark.parametrize(("hours", "missed"), [(SHORT_SATURDAY, False), ("08:00-20:00", True)])
def test_hours_that_a_saturday_does_not_have_were_not_missed(
    stage: Stage, alerts: Listener, hours: str, missed: bool
) -> None:
    stage.settings(RUN_DAYS="mon-sat", RUN_HOURS=hours)
    stage.query("10_a", ONE)
    stage.main(now=SATURDAY + HOUR)
    status = stage.main(["--status", "--json"], now=SATURDAY + 7 * HOUR)
    assert ("missed" in status.stdout) is missed, status.stdout
    stage.main(now=SATURDAY + 44 * HOUR)  # Monday, 08:00
    assert ("26/12 14:00" in "".join(alerts.told)) is missed
    assert "27/12" not in "".join(alerts.told)


# ---------------------------------------------------------------------------------------------------------------------
# Rehearsals change nothing; a run commits at the last moment
# ---------------------------------------------------------------------------------------------------------------------

QUEUE = """
DROP TABLE IF EXISTS fila, diario CASCADE;
CREATE TABLE fila (id serial PRIMARY KEY, telefone text, enviado boolean NOT NULL DEFAULT false);
INSERT INTO fila (telefone) SELECT telefone FROM contatos WHERE id <= 5;
CREATE TABLE diario (fila_id integer REFERENCES fila (id) DEFERRABLE INITIALLY DEFERRED);
GRANT ALL ON fila, diario, fila_id_seq TO mailing;
"""
MARK = "UPDATE fila SET enviado = true WHERE NOT enviado RETURNING telefone"
WRITERS = {
    "UPDATE": MARK,
    "INSERT": "INSERT INTO fila (telefone) SELECT telefone FROM contatos WHERE id <= 3 RETURNING telefone",
    "DELETE": "DELETE FROM fila RETURNING telefone",
    "WITH": f"WITH marcados AS ({MARK}) SELECT telefone FROM marcados",
    "before the SELECT": "UPDATE fila SET enviado = true;\nSELECT telefone FROM fila",
    "TRUNCATE before it": "CREATE TEMP TABLE t AS SELECT telefone FROM fila; DELETE FROM fila; SELECT * FROM t",
}


@pytest.fixture
def queue(stage: Stage) -> Iterator[Callable[[], list[Any]]]:
    """A table that queries may write; what is in it."""
    stage.execute(QUEUE)

    def rows() -> list[Any]:
        with stage.database.connect() as connection:
            return connection.execute("SELECT id, telefone, enviado FROM fila ORDER BY id").fetchall()

    yield rows
    stage.execute("DROP TABLE fila, diario CASCADE")


Queue = Callable[[], list[Any]]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("option", ["--dry-run", "--check"])
def test_looking_leaves_what_a_query_would_write_as_it_was(
    stage: Stage, queue: Queue, option: str, writer: str
) -> None:
    stage.query("10_a", WRITERS[writer], read_only="no")
    before = queue()
    assert stage.main([option], now=NOON).exit_code == 0
    assert queue() == before
    assert stage.main(now=NOON).exit_code == 0
    assert queue() != before and len(stage.files("a")) == 1


def test_check_takes_no_number_from_a_sequence(stage: Stage, queue: Queue) -> None:
    """A sequence is not rolled back: whoever runs the query has used its numbers."""
    stage.query("10_a", "SELECT nextval('fila_id_seq') AS n", read_only="no")
    assert queue() and stage.main(["--check"], now=NOON).exit_code == 0
    stage.main(now=NOON)
    assert stage.cells("a") == [["n"], ["6"]]


def held_by_min_rows(stage: Stage) -> None:
    stage.query("10_a", MARK, read_only="no", min_rows=50)


def with_a_missing_folder(stage: Stage) -> None:
    stage.query("10_a", MARK, read_only="no", drop=False)


def with_its_name_taken(stage: Stage) -> None:
    stage.query("10_a", MARK, read_only="no")
    (stage.drop("a") / "mailing_a_22-12_12-00.csv").write_text("of somebody else")


def with_a_character_column_twice(stage: Stage) -> None:
    stage.query("10_a", MARK + ", telefone", read_only="no")


def with_an_error_in_a_row(stage: Stage) -> None:
    stage.query("10_a", MARK + ", 1 / (id - 4) AS n", read_only="no")


@pytest.mark.parametrize(
    "prepare",
    [
        held_by_min_rows,
        with_a_missing_folder,
        with_its_name_taken,
        with_a_character_column_twice,
        with_an_error_in_a_row,
    ],
)
def test_a_mailing_that_is_not_sent_leaves_what_its_query_wrote_as_it_was(
    stage: Stage, queue: Queue, prepare: Callable[[Stage], None]
) -> None:
    before = queue()
    prepare(stage)
    stage.query("20_b", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 4 and states(stage)["b"] == "delivered", result.said
    assert queue() == before


def test_hours_that_end_while_the_query_runs_leave_what_it_wrote_as_it_was(stage: Stage, queue: Queue) -> None:
    before = queue()
    clock = FakeClock(NOON + timedelta(minutes=59, seconds=59), naps=False)
    stage.query("10_a", f"SELECT pg_sleep(1.5);\n{MARK}", read_only="no", hours="08:00-12:00")
    result = stage.main(clock=clock)
    assert result.exit_code == 4 and states(stage) == {"a": "held"} and stage.files("a") == []
    assert queue() == before


def test_what_the_server_refuses_to_commit_is_not_sent(stage: Stage, queue: Queue) -> None:
    """A constraint that is looked at only then."""
    before = queue()
    stage.query("10_a", f"INSERT INTO diario VALUES (999);\n{MARK}", read_only="no")
    result = stage.main(now=NOON)
    assert result.exit_code == 4 and states(stage) == {"a": "failed"}
    assert stage.files("a") == [] and queue() == before


def test_a_lost_upload_is_tried_again_and_what_the_query_wrote_is_kept_once(
    stage: Stage, faulty: FaultyServer, queue: Queue
) -> None:
    stage.query("10_a", MARK, read_only="no")
    faulty.commits("write", "cut", times=2)
    assert stage.main(now=NOON).exit_code == 0
    assert len(stage.cells("a")) == 6 and all(row[2] for row in queue())


def test_a_lost_answer_to_the_rename_keeps_what_the_query_wrote(
    stage: Stage, faulty: FaultyServer, queue: Queue
) -> None:
    stage.query("10_a", MARK, read_only="no")
    faulty.commits("rename", "do, then cut")
    assert stage.main(now=NOON).exit_code == 0
    assert len(stage.cells("a")) == 6 and all(row[2] for row in queue())


def test_a_refused_rename_comes_after_the_commit(stage: Stage, faulty: FaultyServer, queue: Queue) -> None:
    """At most once: people who were marked and not called are the safe side."""
    stage.query("10_a", MARK, read_only="no")
    faulty.commits("rename", "forbid", times=ALWAYS)
    assert stage.main(clock=FakeClock(NOON)).exit_code in (4, 6)
    assert stage.files("a") == [] and all(row[2] for row in queue())


def test_a_role_that_only_reads_by_default_may_write_where_the_file_says_so(stage: Stage, queue: Queue) -> None:
    stage.execute("ALTER ROLE mailing SET default_transaction_read_only = on")
    try:
        stage.query("10_a", MARK, read_only="no")
        assert [stage.main([option], now=NOON).exit_code for option in ("--check", "--dry-run")] == [0, 0]
        assert stage.main(now=NOON).exit_code == 0
    finally:
        stage.execute("ALTER ROLE mailing RESET default_transaction_read_only")
    assert all(row[2] for row in queue())


NEEDS_TO_WRITE = {
    "FOR UPDATE": "SELECT telefone FROM fila FOR UPDATE",
    "FOR SHARE": "SELECT telefone FROM fila FOR SHARE",
    "FOR UPDATE inside": "SELECT telefone FROM (SELECT telefone FROM fila FOR NO KEY UPDATE) AS f",
    "INSERT": "INSERT INTO fila (telefone) VALUES ('1') RETURNING telefone",
    "UPDATE inside": f"WITH m AS ({MARK}) SELECT telefone FROM m",
    "nextval": "SELECT telefone, nextval('fila_id_seq') AS n FROM fila",
    "nextval with its schema": "SELECT telefone, pg_catalog.nextval('fila_id_seq') AS n FROM fila",
    "setval": "SELECT setval('fila_id_seq', 100) AS n",
}


@pytest.mark.parametrize("kind", NEEDS_TO_WRITE)
def test_check_finds_what_needs_to_write_and_its_hint_is_true(stage: Stage, queue: Queue, kind: str) -> None:
    assert queue()
    stage.query("10_a", ONE)
    stage.query("20_b", NEEDS_TO_WRITE[kind])
    looked, ran = stage.main(["--check"], now=NOON), stage.main(now=NOON)
    assert looked.exit_code == ran.exit_code == 4, looked.said
    assert last_line(looked.stdout) == last_line(ran.stdout)
    assert "20_b.sql: line 1" in looked.stdout and "read_only: no" in looked.stdout, looked.stdout
    stage.query("20_b", NEEDS_TO_WRITE[kind], read_only="no")
    assert [stage.main(options, now=NOON + HOUR).exit_code for options in (["--check"], [])] == [0, 0]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id AS nextval FROM fila",
        "SELECT id AS \"nextval\", 'nextval()' AS n FROM fila",
        "SELECT 'Insert on fila' AS n",
        "SELECT 'x\n  LockRows' AS n",
    ],
)
def test_check_finds_nothing_where_a_run_finds_nothing(stage: Stage, queue: Queue, sql: str) -> None:
    assert queue()
    stage.query("10_a", sql)
    looked, ran = stage.main(["--check"], now=NOON), stage.main(now=NOON)
    assert (looked.exit_code, ran.exit_code) == (0, 0), looked.said


def faults_of_runs() -> dict[str, Callable[[Stage], None]]:
    """What is prepared on a stage with the good campaigns a and b."""

    def one_bad_query(stage: Stage) -> None:
        stage.query("20_b", "SELECT broken")

    def only_bad_queries(stage: Stage) -> None:
        stage.query("10_a", "SELECT broken")
        stage.query("20_b", "SELECT broken")

    def one_bad_file(stage: Stage) -> None:
        stage.query("20_b", ONE, min_rows="muitas")

    def a_bad_file_and_a_bad_query(stage: Stage) -> None:
        stage.query("10_a", "SELECT broken")
        stage.query("20_b", ONE, min_rows="muitas")

    def wrong_columns_everywhere(stage: Stage) -> None:
        stage.query("10_a", ONE, columns="m")
        stage.query("20_b", ONE, columns="m")

    def one_missing_folder(stage: Stage) -> None:
        stage.drop("b").rmdir()

    def no_folder_at_all(stage: Stage) -> None:
        stage.drop("a").rmdir()
        stage.drop("b").rmdir()

    def a_bad_query_and_a_missing_folder(stage: Stage) -> None:
        stage.query("10_a", "SELECT broken")
        stage.drop("b").rmdir()

    def a_wrong_database_password(stage: Stage) -> None:
        stage.settings(PGPASSWORD="wrong")

    def a_database_that_is_down(stage: Stage) -> None:
        stage.settings(PGPORT=free_port())

    def a_server_that_is_down(stage: Stage) -> None:
        stage.settings(SFTP_PORT=free_port())

    def both_down(stage: Stage) -> None:
        stage.settings(PGPORT=free_port(), SFTP_PORT=free_port())

    def another_host_key(stage: Stage) -> None:
        stage.settings(SFTP_HOST_KEY="SHA256:" + "A" * 43)

    def a_missing_setting(stage: Stage) -> None:
        stage.settings(SFTP_USER=None)

    def no_usable_file(stage: Stage) -> None:
        stage.query("10_a", ONE, min_rows="muitas")
        stage.query("20_b", "")

    return {name: prepare for name, prepare in locals().items() if callable(prepare)}


FAULTS_OF_RUNS = faults_of_runs()


@pytest.mark.parametrize("fault", FAULTS_OF_RUNS)
def test_check_ends_as_a_run_with_the_same_fault_does(stage: Stage, fault: str) -> None:
    stage.settings(RETRY_ATTEMPTS=1)
    stage.query("10_a", ONE)
    stage.query("20_b", ONE)
    FAULTS_OF_RUNS[fault](stage)
    looked, ran = stage.main(["--check"], now=NOON), stage.main(now=NOON)
    assert ran.exit_code != 0
    assert looked.exit_code == ran.exit_code, f"{looked.stdout}\n{ran.stdout}"
    assert last_line(looked.stdout or looked.stderr) == last_line(ran.stdout or ran.stderr)


def test_a_rehearsal_tells_replaced_characters_and_where_the_files_are(stage: Stage) -> None:
    stage.query("10_a", "SELECT 'João 日本' AS nome", encoding="cp1252")
    result = stage.main(["--dry-run"], now=NOON)
    assert result.exit_code == 0
    assert "2 characters are not in cp1252" in result.stdout
    (written,) = (stage.output / "dry-run").iterdir()
    assert str(written.parent) in result.stdout and written.name in result.stdout
    assert written.read_bytes() == "nome\r\nJoão ??\r\n".encode("cp1252")
    assert stage.main(["--dry-run", "--json"], now=NOON).json["folder"] == str(written.parent)


@pytest.mark.parametrize(("language", "told"), [("en", "delivered already"), ("pt", "já foi entregue")])
def test_a_rehearsal_tells_what_this_slot_has_delivered_already(stage: Stage, language: str, told: str) -> None:
    stage.settings(LANGUAGE=language)
    stage.query("10_a", ONE)
    assert told not in stage.main(["--dry-run"], now=NOON).stdout
    stage.main(now=NOON)
    stage.query("20_b", ONE)
    rehearsed = stage.main(["--dry-run"], now=NOON + timedelta(minutes=5))
    assert rehearsed.exit_code == 0 and rehearsed.stdout.count(told) == 1, rehearsed.stdout
    assert told not in stage.main(["--dry-run"], now=NOON + HOUR).stdout


def test_a_slot_that_failed_is_not_told_as_delivered_in_a_rehearsal(stage: Stage) -> None:
    stage.query("10_a", ONE, min_rows=5)
    stage.main(now=NOON)
    stage.query("10_a", ONE)
    assert "delivered already" not in stage.main(["--dry-run"], now=NOON + timedelta(minutes=5)).stdout


# ---------------------------------------------------------------------------------------------------------------------
# Texts of others: what an SFTP server says
# ---------------------------------------------------------------------------------------------------------------------

Does = Callable[[FaultySession, Request, Callable[[], None]], None]
NOT_FOUND = "Arquivo não encontrado".encode("cp1252")
ANSWERS = ("stat", "open", "rename", "remove")


def speaking(words: bytes, refusal: int | None = None) -> Does:
    """A request is carried out, or refused with that code; its status text is `words`."""

    def does(session: FaultySession, _: Request, proceed: Callable[[], None]) -> None:
        sound, files = session._send_status, session.server
        session._send_status = lambda number, code, _=None: sound(number, code, words)
        if refusal is not None:
            session.server = SimpleNamespace(**dict.fromkeys(ANSWERS, lambda *_: refusal))  # type: ignore[assignment]
        try:
            proceed()
        finally:
            session._send_status, session.server = sound, files

    return does


def test_a_server_that_says_everything_in_cp1252_gets_its_mailings(stage: Stage, faulty: FaultyServer) -> None:
    for request in ("stat", "lstat", "open", "write", "close", "rename", "remove"):
        faulty.commits(request, speaking(NOT_FOUND), times=ALWAYS)
    stage.query("10_a", ONE)
    stage.query("20_b", ONE)
    assert stage.main(["--check"], now=NOON).exit_code == 0
    assert stage.main(now=NOON).exit_code == 0
    assert len(stage.files("a")) == len(stage.files("b")) == 1
    assert faulty.committed > 10


REFUSALS = {
    "no such file": codes.SFTP_NO_SUCH_FILE,
    "no permission": codes.SFTP_PERMISSION_DENIED,
    "failure": codes.SFTP_FAILURE,
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("request_name", ANSWERS)
def test_a_refusal_in_cp1252_costs_its_campaign_at_the_most(
    stage: Stage, faulty: FaultyServer, request_name: str, refusal: str
) -> None:
    code = REFUSALS[refusal]
    if (request_name, refusal) == ("remove", "no such file"):
        pytest.skip("a server that says so of a file that is there cannot be tidied up")
    where = "/a/" if request_name in ("open", "rename", "remove") else "/a"
    faulty.commits(request_name, speaking(NOT_FOUND, code), times=ALWAYS, path=where)
    if request_name == "remove":
        faulty.commits("rename", speaking(NOT_FOUND, codes.SFTP_FAILURE), times=ALWAYS, path="/a/")
    stage.query("10_a", ONE)
    stage.query("20_b", ONE)
    for hour in range(3):
        result = stage.main(clock=FakeClock(NOON + hour * HOUR))
        assert result.exit_code in (0, 4), result.said
        assert len(stage.files("b")) == hour + 1
    assert "UnicodeDecodeError" not in stage.log() and "bug" not in stage.log()
    faulty.recovers()
    assert stage.main(clock=FakeClock(NOON + 3 * HOUR)).exit_code == 0
    assert stage.files("a") and not [name for name in stage.files("a") if not name.endswith(".csv")]


def test_an_entry_that_cannot_be_settled_does_not_stop_later_runs(stage: Stage, faulty: FaultyServer) -> None:
    """Its rename had no answer, and since then every question about it is refused in cp1252."""
    refused = speaking("Permissão negada".encode("cp1252"), codes.SFTP_PERMISSION_DENIED)
    stage.query("10_a", ONE)
    stage.query("20_b", ONE)
    faulty.commits("rename", "cut", path="/a/")
    faulty.faults.append(Fault("stat", refused, ALWAYS, "/a/mailing_a_22-12_12-00", None, skip=1))
    faulty.commits("list", refused, times=ALWAYS)
    faulty.commits("remove", refused, times=ALWAYS, path="/a/")
    for hour in range(3):
        result = stage.main(clock=FakeClock(NOON + hour * HOUR))
        assert result.exit_code in (0, 4), result.said
        assert len(stage.files("b")) == hour + 1, result.said
        first = next(row for row in stage.ledger() if row["campaign"] == "a")
        assert first["state"] in ("publishing", "withdrawing")
    assert "bug" not in stage.log()
    faulty.recovers()
    assert stage.main(clock=FakeClock(NOON + 3 * HOUR)).exit_code == 0
    assert not [row for row in stage.ledger() if row["state"] in ("publishing", "withdrawing")]


def noise(password: str) -> str:
    """What a hostile server may say: a password, colours, a bell, a bidi mark, a line of its own, and no end."""
    return (
        f"denied for {password} \x1b[31m\x9b1m\a‮\r\n2026-12-22 12:00:00 INFO a: delivered\n"
        f"sftp://coletor:{CANARY}@host/ 11 98765-4321 "
    )


UNWANTED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]|98765-4321")


def assert_bounded_and_clean(stage: Stage, password: str, alerts: Listener, *results: Result) -> None:
    """Nothing of the noise came out anywhere, and no message is long."""
    told = "\n".join([*(result.said for result in results), *alerts.told])
    everywhere = told + stage.everything_written().encode("latin-1").decode("utf-8", "replace")
    for secret in (password, CANARY):
        assert secret not in everywhere, everywhere[max(0, everywhere.index(secret) - 200) :][:300]
    texts = told + page(stage) + json.dumps(stage.ledger(), ensure_ascii=False, default=str)
    assert not (found := UNWANTED.search(texts)), repr(texts[max(0, found.start() - 200) : found.end() + 50])
    assert "\n2026-12-22 12:00:00 INFO" not in told
    assert max(len(row["message"]) for row in stage.ledger()) < ENOUGH_CHARS
    assert max(map(len, alerts.told)) < 3 * ENOUGH_CHARS
    assert max(map(len, stage.log().splitlines())) < 2 * ENOUGH_CHARS
    assert (stage.output / "status.html").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("request_name", "length"),
    [
        ("stat", 0),
        ("open", 0),
        ("rename", 0),
        ("rename", 500_000),
        pytest.param("open", 15_000_000, marks=pytest.mark.long),
    ],
)
def test_what_an_sftp_server_says_is_bounded_and_clean(
    stage: Stage, faulty: FaultyServer, alerts: Listener, request_name: str, length: int
) -> None:
    password = str(faulty.password)
    words = noise(password).encode() + b"x" * length
    for name in (request_name, "list"):
        faulty.commits(name, speaking(words, codes.SFTP_FAILURE), times=ALWAYS)
    stage.settings(ALERT_URLS=f"json://{alerts.address}/", RETRY_ATTEMPTS=2)
    stage.query("10_a", ONE)
    shown = stage.main(clock=FakeClock(NOON))
    as_json = stage.main(["--json"], clock=FakeClock(NOON + HOUR))
    looked = stage.main(["--check"], clock=FakeClock(NOON + HOUR))
    assert shown.exit_code in (4, 6) and as_json.exit_code in (4, 6) and looked.exit_code in (4, 6)
    assert faulty.committed
    assert_bounded_and_clean(stage, password, alerts, shown, as_json, looked)
    told = as_json.campaigns["a"]["message"]
    assert len(told) < ENOUGH_CHARS and "1." not in told


def test_a_host_key_question_to_a_hostile_banner_is_bounded_and_clean(
    stage: Stage, faulty: FaultyServer, alerts: Listener
) -> None:
    faulty.banner = "SSH-1.0-\x1b[31m‮" + "x" * 200
    stage.settings(ALERT_URLS=f"json://{alerts.address}/", RETRY_ATTEMPTS=1, CONNECT_TIMEOUT_SECONDS=3)
    stage.query("10_a", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 6
    assert_bounded_and_clean(stage, str(faulty.password), alerts, result)


# ---------------------------------------------------------------------------------------------------------------------
# Texts of others: what PostgreSQL says
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shouting(stage: Stage) -> Iterator[Callable[[str, str], str]]:
    """Makes a function grita() that raises an SQL expression with a SQLSTATE; the query that calls it."""

    def make(told: str, sqlstate: str) -> str:
        stage.execute(
            "CREATE OR REPLACE FUNCTION grita(nome text) RETURNS text LANGUAGE plpgsql AS $body$\n"
            f"BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}', MESSAGE = {told}; END $body$"
        )
        return "SELECT grita(nome) AS n FROM contatos WHERE id = 1"

    yield make
    stage.execute("DROP FUNCTION IF EXISTS grita(text)")


def as_sql(told: str) -> str:
    """A string of SQL, whatever is in it."""
    written = "".join(letter if letter.isalnum() else f"\\U{ord(letter):08X}" for letter in told)
    return f"E'{written}'"


@pytest.mark.parametrize("length", [0, 15_000_000], ids=["short", "15 MB"])
@pytest.mark.parametrize("sqlstate", ["P0001", "55000", "57014", "53400", "28000", "42P01"])
def test_what_a_database_says_is_bounded_and_clean(
    stage: Stage, alerts: Listener, shouting: Callable[[str, str], str], sqlstate: str, length: int
) -> None:
    password = stage.values["PGPASSWORD"]
    stage.settings(RETRY_ATTEMPTS=1)
    stage.query("10_a", shouting(f"{as_sql(noise(password))} || repeat('x', {length})", sqlstate))
    shown = stage.main(clock=FakeClock(NOON))
    as_json = stage.main(["--json"], clock=FakeClock(NOON + HOUR))
    assert shown.exit_code in (4, 5) and as_json.exit_code in (4, 5)
    assert sqlstate in as_json.campaigns["a"]["message"]
    assert_bounded_and_clean(stage, password, alerts, shown, as_json)


def test_what_a_function_remarks_is_told_nowhere(stage: Stage) -> None:
    told = as_sql(noise(CANARY))
    remark = f"DO $$ BEGIN RAISE WARNING '%', {told}; RAISE NOTICE '%', {told}; RAISE INFO '%', {told}; END $$"
    stage.query("10_a", f"{remark};\n{ONE}")
    result = stage.main(now=NOON)
    assert result.exit_code == 0 and len(stage.files("a")) == 1
    assert CANARY not in result.said + stage.everything_written()


QUOTES_A_ROW = {
    "to_tsquery": "SELECT to_tsquery(nome)::text AS n FROM contatos",
    "regclass": "SELECT nome::regclass::text AS n FROM contatos",
    "regtype": "SELECT nome::regtype::text AS n FROM contatos",
    "to_regclass with a dot": "SELECT ('x.' || nome || '.y.z.w')::regclass::text AS n FROM contatos",
    "a number": "SELECT nome::integer AS n FROM contatos",
    "json": "SELECT nome::json AS n FROM contatos",
    "a date": "SELECT nome::date AS n FROM contatos",
    "regprocedure": "SELECT (nome || '(')::regprocedure::text AS n FROM contatos",
}


@pytest.mark.parametrize("kind", QUOTES_A_ROW)
def test_an_error_that_quotes_a_row_is_told_by_its_class(stage: Stage, alerts: Listener, kind: str) -> None:
    stage.query("10_a", QUOTES_A_ROW[kind])
    result = stage.main(now=NOON)
    assert result.exit_code == 4
    for place, said in places(stage, result, alerts).items():
        assert "10_a.sql" in said, place
        assert "Pessoa" not in said and "pessoa" not in said and "Fict" not in said, f"{place}: {said}"


@pytest.mark.parametrize("sqlstate", ["42P01", "42601", "54000", "0A000", "P0001", "22023", "55000", "57014", "40001"])
def test_an_error_that_a_function_raises_over_a_row_is_told_by_its_class(
    stage: Stage, alerts: Listener, shouting: Callable[[str, str], str], sqlstate: str
) -> None:
    stage.settings(RETRY_ATTEMPTS=1)
    stage.query("10_a", shouting("'cliente ' || nome || ' bloqueado'", sqlstate))
    result = stage.main(now=NOON)
    assert result.exit_code == 4
    for place, said in places(stage, result, alerts).items():
        assert sqlstate in said, f"{place}: {said}"
        assert "Fict" not in said, f"{place}: {said}"


@pytest.mark.parametrize("sqlstate", ["28000", "28P01", "3D000", "08006", "57P01", "53300", "58030", "XX000"])
def test_an_error_that_a_function_raises_costs_its_campaign_alone(
    stage: Stage, shouting: Callable[[str, str], str], sqlstate: str
) -> None:
    """A foreign table whose own server refuses the login, for instance."""
    stage.settings(RETRY_ATTEMPTS=1, QUERY_WORKERS=1)
    stage.query("10_a", shouting("'of another server'", sqlstate))
    stage.query("20_b", ONE)
    looked, ran = stage.main(["--check"], now=NOON), stage.main(now=NOON)
    assert (looked.exit_code, ran.exit_code) == (0, 4), ran.said
    assert states(stage) == {"a": "failed", "b": "delivered"}


@pytest.mark.parametrize("sql", ["SELECT telefonee\nFROM contatos", "SELECT telefone\nFROM contatoss"])
def test_an_error_about_the_querys_own_text_is_told_in_full(stage: Stage, sql: str) -> None:
    stage.query("10_a", sql)
    result = stage.main(now=NOON)
    wrong = "telefonee" if "telefonee" in sql else "contatoss"
    assert wrong in result.stdout and f"line {sql[: sql.index(wrong)].count(chr(10)) + 1}" in result.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Texts of others: secrets where nobody expects them, long numbers, names with brackets
# ---------------------------------------------------------------------------------------------------------------------

MISPLACED = {
    "a URL in PGDATABASE": {"PGDATABASE": f"postgresql://user:{CANARY}@host/db"},
    "a URL in PGHOST": {"PGHOST": f"postgresql://user:{CANARY}@host/db"},
    "a connection string in PGHOST": {"PGHOST": f"password={CANARY} host=127.0.0.1"},
    "a connection string in PGDATABASE": {"PGDATABASE": f"host=127.0.0.1 password='{CANARY}' dbname=x"},
    "a user with its password": {"PGUSER": f"mailing:{CANARY}@host", "PGHOST": f"mailing:{CANARY}@host"},
    "a URL in SFTP_HOST": {"SFTP_HOST": f"sftp://coletor:{CANARY}@127.0.0.1"},
    "a login in SFTP_HOST": {"SFTP_HOST": f"coletor:{CANARY}@127.0.0.1"},
}


@pytest.mark.parametrize("kind", MISPLACED)
@pytest.mark.parametrize("option", ["", "--check"])
def test_a_password_in_the_wrong_setting_is_not_told(stage: Stage, alerts: Listener, kind: str, option: str) -> None:
    stage.settings(**MISPLACED[kind], RETRY_ATTEMPTS=1, CONNECT_TIMEOUT_SECONDS=3)
    stage.query("10_a", ONE)
    result = stage.main([option] if option else [], now=NOON)
    assert result.exit_code in (2, 5, 6), result.said
    assert CANARY not in result.said + stage.everything_written() + "".join(alerts.told)


NUMBERS = ["11{0}98765{0}4321", "(11){0}98765{0}4321", "900{0}000{0}000{0}01", "9{0}0{0}0{0}0{0}0{0}0{0}0{0}1"]
GAPS = [*" -./_,;:|", "–", "—", "\u00a0", "\u202f", "\u2011", "\u2212", " - ", " / ", " – ", ", "]


@pytest.mark.parametrize("gap", GAPS, ids=ascii)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_long_number_is_masked_however_it_is_parted(number: str, gap: str) -> None:
    told = mailing_pipeline.masked(f"cliente {number.format(gap)} bloqueado")
    assert re.sub(r"\D", "", told) == "" and told.startswith("cliente") and told.endswith("bloqueado"), told


@pytest.mark.parametrize("kept", ["line 12", "2026-12-22", "127.0.0.1:5432", "10:02:45", "port 54321"])
def test_short_numbers_are_left_alone(kept: str) -> None:
    assert kept in mailing_pipeline.masked(f"at {kept} it was refused") or kept.startswith(("2026", "127"))


@pytest.mark.parametrize("folder", ["[/x]", "[red]", "[bold]x[/bold]", "[link=file:///etc]", "[x", ":warning:"])
def test_names_that_look_like_markup_are_names(stage: Stage, folder: str) -> None:
    stage.query("10_a", ONE, folder=stage.remote_base / folder, file_name="[red]{campaign}[] %H.csv")
    for options in (["--check"], ["--dry-run"], []):
        result = stage.main(options, now=NOON)
        assert result.exit_code == 0, result.said
        assert str(stage.remote_base / folder) in result.stdout, result.stdout
    assert stage.files("a") == ["[red]a[] 12.csv"]
    assert "[red]a[] 13.csv" in stage.main(["--dry-run"], now=NOON + HOUR).stdout
    assert stage.main(["--status"], now=NOON).exit_code == 0


@pytest.mark.parametrize("column", ["[/x]", "[red]n", "</td><script>"])
def test_columns_that_look_like_markup_are_told_as_they_are(stage: Stage, column: str) -> None:
    stage.query("10_a", f'SELECT 1 AS "{column}"', columns="n")
    looked, ran = stage.main(["--check"], now=NOON), stage.main(now=NOON)
    assert looked.exit_code == ran.exit_code == 4
    assert column in looked.stdout and column in ran.stdout
    assert stage.main(["--status"], now=NOON).exit_code == 0
    assert "<script>" not in (stage.output / "status.html").read_text(encoding="utf-8").replace("<script>\n", "")


def test_who_finds_another_run_is_told_since_when_it_is_there(stage: Stage) -> None:
    stage.query("10_a", f"SELECT pg_sleep(3);\n{ONE}")
    other = stage.start()
    until(lambda: states(stage), "the other run has begun")
    result = stage.run()
    assert result.exit_code == 3 and str(other.pid) in result.stderr
    assert re.search(r"started \d{4}-\d\d-\d\d \d\d:\d\d", result.stderr), result.stderr
    assert stage.end(other).exit_code == 0


def test_alerts_are_plain_text(stage: Stage, alerts: Listener) -> None:
    stage.query("10_a", 'SELECT 1 AS "<b>n</b>", 2 AS "*m* &amp; _o_"', columns="n")
    stage.main(now=NOON)
    assert "<b>n</b>" in alerts.told[0] and "*m* &amp; _o_" in alerts.told[0]


def test_a_monitor_that_trickles_holds_nobody_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailing_pipeline, "TELL_TIMEOUT_S", 1)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as monitor:

        def trickle() -> None:
            with contextlib.suppress(OSError), monitor.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.1):
                    connection.sendall(b"x")

        threading.Thread(target=trickle, daemon=True).start()
        stage.settings(HEARTBEAT_URL=f"http://127.0.0.1:{monitor.getsockname()[1]}/{CANARY}")
        stage.query("10_a", ONE)
        began = time.monotonic()
        result = stage.main(now=NOON)
        over.set()
    assert result.exit_code == 0 and time.monotonic() - began < 10
    assert "HEARTBEAT_URL" in result.log and CANARY not in result.said


# ---------------------------------------------------------------------------------------------------------------------
# A reader that goes away, a disk that is full
# ---------------------------------------------------------------------------------------------------------------------

ENDS = {
    "delivered": ([], 0),
    "held": ([], 4),
    "check": (["--check"], 0),
    "status": (["--status"], 0),
    "json": (["--json"], 0),
    "status as JSON": (["--status", "--json"], 0),
    "settings": ([], 2),
}


def prepare_end(stage: Stage, kind: str) -> tuple[list[str], int]:
    options, code = ENDS[kind]
    stage.query("10_a", ONE, min_rows=5 if kind == "held" else 1)
    for number in range(20):  # more lines than one buffer of a pipe needs to notice
        stage.query(f"{20 + number}_b{number}", ONE)
    if kind == "settings":
        stage.settings(RUN_DAYS="seg-sex")
    return options, code


@posix
@pytest.mark.parametrize("kind", ENDS)
def test_a_reader_that_goes_away_changes_no_exit_code(stage: Stage, kind: str) -> None:
    options, code = prepare_end(stage, kind)
    command = [*stage.command(*options)]
    script = '"$@" | head -1 > /dev/null; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command], env=clean_environ(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if not options:
        assert len(stage.ledger()) == (0 if code == 2 else 21)


@posix
@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_standard_output_changes_no_exit_code(stage: Stage, kind: str, stream: str) -> None:
    options, code = prepare_end(stage, kind)
    with open("/dev/full", "w") as full:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run(stage.command(*options), env=clean_environ(), text=True, timeout=60, **streams)
    assert done.returncode == code, done.stderr or done.stdout
    assert "Traceback" not in f"{done.stderr}{done.stdout}"
    if "--json" in options and stream == "stdout":
        assert "cannot be written" in done.stderr


@posix
@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams_change_no_exit_code(stage: Stage, closed: str) -> None:
    stage.query("10_a", ONE)
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *stage.command()], env=clean_environ(), capture_output=True, timeout=60
    )
    assert done.returncode == 0 and len(stage.files("a")) == 1
    assert not list(stage.folder.glob("[0-9]"))


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(stage: Stage) -> Iterator[None]:
    """A table with names that need their accents."""
    stage.execute(
        "CREATE TABLE pessoas (nome text); INSERT INTO pessoas VALUES ('João Fictício'), ('Ana Fictícia');"
        "GRANT SELECT ON pessoas TO mailing"
    )
    yield
    stage.execute("DROP TABLE pessoas")


FIND_JOAO = "SELECT nome, 'Praça' AS lugar FROM pessoas WHERE nome = 'João Fictício'"
RECODINGS = {
    "SET": "SET client_encoding = 'LATIN1'",
    "SET TO": "SET client_encoding TO latin1",
    "SET LOCAL": "SET LOCAL client_encoding = 'WIN1252'",
    "SET SESSION": "SET SESSION client_encoding = 'LATIN1'",
    "SET NAMES": "SET NAMES 'LATIN1'",
    "set_config": "SELECT set_config('client_encoding', 'LATIN1', false)",
    "set_config local": "SELECT pg_catalog.set_config('client_encoding', 'LATIN1', true)",
    "DO": "DO $$ BEGIN SET client_encoding = 'LATIN1'; END $$",
    "DO with EXECUTE": "DO $$ BEGIN EXECUTE 'SET NAMES ''LATIN1'''; END $$",
    "RESET ALL": "RESET ALL",
    "twice": "SET NAMES 'LATIN1'; SET NAMES 'SQL_ASCII'",
    "upper case in quotes": "SET \"client_encoding\" = 'LATIN1'",
}


@pytest.mark.parametrize("kind", RECODINGS)
@pytest.mark.usefixtures("people")
def test_an_encoding_that_the_file_sets_spoils_no_accent(stage: Stage, kind: str) -> None:
    stage.settings(QUERY_WORKERS=1)
    stage.query("10_a", f"{RECODINGS[kind]};\n{FIND_JOAO}")
    stage.query("20_b", FIND_JOAO)  # in the same session, perhaps
    assert stage.main(["--check"], now=NOON).exit_code == 0
    assert stage.main(now=NOON).exit_code == 0
    assert stage.cells("a") == stage.cells("b") == [["nome", "lugar"], ["João Fictício", "Praça"]]


@pytest.mark.usefixtures("people")
def test_an_encoding_that_the_role_brings_spoils_no_accent(stage: Stage) -> None:
    stage.execute("ALTER ROLE mailing SET client_encoding = 'LATIN1'")
    try:
        stage.query("10_a", f"RESET client_encoding;\n{FIND_JOAO}")
        stage.query("20_b", FIND_JOAO)
        assert stage.main(now=NOON).exit_code == 0
    finally:
        stage.execute("ALTER ROLE mailing RESET client_encoding")
    assert stage.cells("a") == stage.cells("b") == [["nome", "lugar"], ["João Fictício", "Praça"]]


@pytest.mark.usefixtures("people")
def test_an_encoding_that_the_mailings_own_statement_sets_spoils_no_accent(stage: Stage) -> None:
    stage.query("10_a", "SELECT nome FROM pessoas, set_config('client_encoding', 'LATIN1', true) ORDER BY nome DESC")
    assert stage.main(now=NOON).exit_code == 0
    assert stage.cells("a") == [["nome"], ["João Fictício"], ["Ana Fictícia"]]


def test_a_statement_between_two_settings_is_read_as_it_was_written(stage: Stage) -> None:
    sql = "SET NAMES 'LATIN1';\nCREATE TEMP TABLE t AS SELECT 'João' AS nome;\nSET NAMES 'WIN1252';\nSELECT * FROM t"
    stage.query("10_a", sql, read_only="no")
    assert stage.main(now=NOON).exit_code == 0
    assert stage.cells("a") == [["nome"], ["João"]]


@pytest.mark.parametrize(
    "before",
    [
        "SET standard_conforming_strings = off;\n",
        "SET LOCAL standard_conforming_strings TO off;\n",
        "SELECT set_config('standard_conforming_strings', 'off', false);\n",
        "",
    ],
)
def test_backslashes_are_backslashes_whatever_the_file_or_the_role_sets(stage: Stage, before: str) -> None:
    if not before:
        stage.execute("ALTER ROLE mailing SET standard_conforming_strings = off")
    try:
        stage.query("10_a", before + r"SELECT 'C:\nova\' AS caminho, 'b' AS n")
        result = stage.main(now=NOON)
    finally:
        stage.execute("ALTER ROLE mailing RESET standard_conforming_strings")
    assert result.exit_code == 0, result.said
    assert stage.cells("a") == [["caminho", "n"], ["C:\\nova\\", "b"]]


LEAVINGS = {
    "PREPARE": ("PREPARE p AS SELECT 1;", "PREPARE p AS SELECT 2; SELECT 1 AS n"),
    "advisory locks": (
        "SELECT pg_advisory_lock(4711);",
        "SELECT 1 + count(*) AS n FROM pg_locks WHERE objid = 4711 AND pid = pg_backend_pid()",
    ),
    "settings": (
        "SET search_path = pg_catalog; SET TimeZone = 'Asia/Tokyo'; SET work_mem = '3MB';",
        "SELECT (current_setting('work_mem') <> '3MB')::int AS n FROM contatos WHERE id = 1",
    ),
    "temp tables": ("CREATE TEMP TABLE t (n int);", "CREATE TEMP TABLE t (n int); SELECT 1 AS n"),
    "cursors": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1;", "DECLARE c CURSOR WITH HOLD FOR SELECT 1; SELECT 1 AS n"),
    "LISTEN": ("LISTEN canal;", "SELECT 1 + count(*) AS n FROM pg_listening_channels()"),
    "a role": ("SET ROLE mailing;", "SELECT (current_setting('role') = 'none')::int AS n"),
    "a seed": ("SET enable_seqscan = off;", "SELECT (current_setting('enable_seqscan') = 'on')::int AS n"),
}


@pytest.mark.parametrize("read_only", ["yes", "no"])
@pytest.mark.parametrize("kind", LEAVINGS)
def test_what_outlives_a_transaction_does_not_meet_the_next_campaign(stage: Stage, kind: str, read_only: str) -> None:
    first, second = LEAVINGS[kind]
    if read_only == "yes" and kind in ("temp tables", "LISTEN"):
        pytest.skip("not allowed in a read-only transaction")
    stage.settings(QUERY_WORKERS=1)
    stage.query("10_a", first + "\nSELECT 1 AS n", read_only=read_only)
    stage.query("20_b", second, read_only=read_only)
    result = stage.main(now=NOON)
    assert result.exit_code == 0, result.said
    assert stage.cells("b") == [["n"], ["1"]]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_parted_accents_are_joined_where_the_encoding_lacks_them(stage: Stage, encoding: str) -> None:
    sql = "SELECT U&'Joa\\0303o' AS U&\"Prac\\0327a\", U&'Ange\\0301lica' AS n"
    stage.query("10_a", sql, encoding=encoding)
    entry = stage.deliver(now=NOON).campaigns["a"]
    assert stage.mailing("a") == "Praça;n\r\nJoão;Angélica\r\n".encode(encoding)
    assert entry["replaced"] == 0


@pytest.mark.parametrize("header", ["yes", "no"])
def test_the_first_cell_is_treated_as_any_other(stage: Stage, header: str) -> None:
    """U+FEFF there is no byte order mark."""
    stage.query("10_a", "SELECT U&'\\FEFFabc' AS a, U&'\\FEFFabc' AS b FROM generate_series(1, 2)", header=header)
    assert stage.deliver(now=NOON).verdicts == {"a": "delivered"}
    lines = stage.mailing("a").decode().split("\r\n")[1 if header == "yes" else 0 : -1]
    assert len(set(lines)) == 1 and len(set(lines[0].split(";"))) == 1, lines
    assert lines[0].split(";")[0].endswith("abc")


def test_the_first_cell_of_a_later_block_is_treated_as_any_other(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailing_pipeline, "BLOCK_BYTES", 100)
    stage.query("10_a", "SELECT U&'\\FEFFabc' AS a FROM generate_series(1, 500)")
    assert stage.deliver(now=NOON).verdicts == {"a": "delivered"}
    assert len(set(stage.mailing("a").decode().split("\r\n")[1:-1])) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Small things that people met: ports mixed up, names misspelt
# ---------------------------------------------------------------------------------------------------------------------

NETWORK_WORDS = {"refused": {"en": "refused", "pt": "recusada"}, "unknown": {"en": "unknown", "pt": "desconhecido"}}


def hurried(stage: Stage, language: str, **values: object) -> None:
    stage.settings(LANGUAGE=language, RETRY_ATTEMPTS=1, CONNECT_TIMEOUT_SECONDS=3, **values)
    stage.query("10_a", ONE)


@pytest.mark.parametrize("option", ["", "--check"])
@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_port_of_the_database_given_for_sftp_is_told_as_that(stage: Stage, language: str, option: str) -> None:
    hurried(stage, language, SFTP_PORT=stage.database.port)
    result = stage.main([option] if option else [], now=NOON)
    assert result.exit_code == 6
    told = result.stdout
    assert "PostgreSQL" in told and "SFTP_PORT" in told and f"{stage.database.port}" in told, told
    assert "banner" not in told


@pytest.mark.parametrize("option", ["", "--check"])
@pytest.mark.parametrize("mode", ["prefer", "disable", "require"])
@pytest.mark.parametrize("language", ["en", "pt"])
def test_an_ssh_port_given_for_the_database_is_told_as_that(
    stage: Stage, language: str, mode: str, option: str
) -> None:
    hurried(stage, language, PGPORT=stage.sftp.port, PGSSLMODE=mode)
    result = stage.main([option] if option else [], now=NOON)
    assert result.exit_code == 5
    told = result.stdout
    assert "SSH" in told and "PGPORT" in told and f"{stage.sftp.port}" in told, told


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("kind", NETWORK_WORDS)
@pytest.mark.parametrize("server", ["database", "SFTP"])
def test_a_server_out_of_reach_is_told_in_words_of_our_own(stage: Stage, server: str, kind: str, language: str) -> None:
    host_key, port_key, code = ("PGHOST", "PGPORT", 5) if server == "database" else ("SFTP_HOST", "SFTP_PORT", 6)
    host, port = "127.0.0.1" if kind == "refused" else "servidor.invalid", free_port()
    hurried(stage, language, **{host_key: host, port_key: port})
    result = stage.main(now=NOON)
    assert result.exit_code == code
    assert f"{host}:{port}" in result.stdout and NETWORK_WORDS[kind][language] in result.stdout, result.stdout
    assert host_key in result.stdout
    for foreign_words in ("Errno", "gaierror", "getaddrinfo", "translate host", "Name or service", "TCP/IP"):
        assert foreign_words not in result.said
    if language == "pt":
        assert "refused" not in result.stdout and "unknown" not in result.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Small things that people met: a Python without the packages, host keys as --check prints them
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the standard library alone, as a system's own."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.mark.parametrize(
    "options", [[], ["--check"], ["--dry-run"], ["--status"], ["--scheduled"], ["--json"]], ids=str
)
def test_missing_packages_are_told_with_the_command_and_without_a_traceback(
    stage: Stage, bare_python: Path, options: list[str]
) -> None:
    stage.query("10_a", ONE)
    command = [str(bare_python), *stage.command(*options)[1:]]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    for word in ("psycopg", "paramiko", "pandas", "python-dotenv", "pip install -r requirements.txt"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    if options == ["--json"]:
        assert json.loads(done.stdout)["exit_code"] == 2


def test_missing_packages_are_told_in_the_operators_language(stage: Stage, bare_python: Path) -> None:
    stage.settings(LANGUAGE="pt")
    command = [str(bare_python), *stage.command()[1:]]
    for environ in ({}, {"LANGUAGE": "pt"}):
        done = subprocess.run(command, env=clean_environ() | environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "faltam" in done.stderr and "lacks" not in done.stderr, done.stderr


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_needs_no_packages(bare_python: Path, option: str) -> None:
    command = [str(bare_python), str(PROGRAM), option]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "mailing_pipeline" in done.stdout


OTHER_KEY = "SHA256:" + "A" * 43


@pytest.mark.parametrize(
    "written",
    [
        "{key} (ssh-ed25519)",
        f"{OTHER_KEY} {{key}}",
        f"{OTHER_KEY} (ssh-rsa) {{key}} (ssh-ed25519)",
        "{key}\t(ED25519)",
        f"{{key}},{OTHER_KEY}",
    ],
)
def test_host_keys_are_taken_as_they_are_printed(stage: Stage, written: str) -> None:
    stage.settings(SFTP_HOST_KEY=written.format(key=stage.values["SFTP_HOST_KEY"]))
    stage.query("10_a", ONE)
    assert stage.main(now=NOON).exit_code == 0
    assert len(stage.files("a")) == 1


def test_what_check_prints_of_a_host_key_can_be_pasted(stage: Stage) -> None:
    stage.settings(SFTP_HOST_KEY=None)
    stage.query("10_a", ONE)
    looked = stage.main(["--check"], now=NOON)
    assert looked.exit_code == 2
    shown = re.search(r"the server shows (SHA256:.*)", looked.stdout)
    advised = re.search(r"SFTP_HOST_KEY=(\S+)", looked.stdout)
    assert shown and advised
    for hour, found in enumerate((shown, advised)):
        stage.settings(SFTP_HOST_KEY=found.group(1).strip())
        assert stage.main(now=NOON + hour * HOUR).exit_code == 0


def test_another_key_than_any_of_those_given_stops_at_once(stage: Stage) -> None:
    stage.settings(SFTP_HOST_KEY=f"{OTHER_KEY} (ssh-rsa) {OTHER_KEY[:-1]}B (ssh-ed25519)")
    stage.query("10_a", ONE)
    result = stage.main(now=NOON)
    assert result.exit_code == 6 and stage.files("a") == []
    assert stage.sftp.fingerprint in result.stdout and " retry " not in result.log


# ---------------------------------------------------------------------------------------------------------------------
# Small things that people met: a query that trickles
# ---------------------------------------------------------------------------------------------------------------------


def frames_on_a_terminal(stage: Stage, *options: str) -> tuple[int, str]:
    """Exit code and everything that a terminal of 100 columns is sent."""
    import pty  # POSIX alone has it

    leader, follower = pty.openpty()
    environ = clean_environ() | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        stage.command(*options), stdin=follower, stdout=follower, stderr=follower, env=environ, cwd=stage.elsewhere
    )
    os.close(follower)
    seen, end = b"", time.monotonic() + 60
    with contextlib.suppress(OSError):  # the other side is gone
        while time.monotonic() < end:
            if select.select([leader], [], [], 0.1)[0]:
                seen += os.read(leader, 65536)
    os.close(leader)
    return process.wait(30), seen.decode("utf-8", "replace")


@posix
def test_a_query_that_trickles_shows_its_contacts_and_the_time_gone(stage: Stage) -> None:
    # PostgreSQL itself sends nothing before 8 KB are together.
    stage.query("10_a", "SELECT rpad('x', 9000) AS n, pg_sleep(0.75) AS s FROM generate_series(1, 12)")
    code, frames = frames_on_a_terminal(stage)
    assert code == 0, frames
    counts = {int(count) for count in re.findall(r"reading, (\d+) contact", frames)}
    assert len(counts) >= 3 and max(counts) <= 12, frames
    assert len(set(re.findall(r"0:0\d", frames))) >= 4


@posix
def test_a_terminal_shows_names_with_brackets_as_they_are(stage: Stage) -> None:
    stage.query("10_a", ONE, folder=stage.remote_base / "[/x]")
    stage.query("20_b", 'SELECT 1 AS "[/b]"', columns="n")
    code, frames = frames_on_a_terminal(stage)
    assert code == 4 and "[/x]" in frames and "[/b]" in frames and len(stage.files("a")) == 1
