"""What keeps a mailing from being sent: its rows, its columns, the hour, the folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stage import NOON, FakeClock, Result, Stage

from mailing_pipeline import Campaign, Empty, Held, load_settings, parse_campaign, rows_objection

EMPTY = "empty"
PEOPLE = "SELECT telefone, nome, cpf FROM contatos WHERE id <= {}"


def campaign(folder: Path, **directives: Any) -> Campaign:
    (folder / "config.env").write_text("")
    settings = load_settings(folder / "config.env", {}, sends=False, knows_host=False)
    head = "".join(f"-- {key}: {value}\n" for key, value in directives.items())
    return parse_campaign("10_a.sql", head + "SELECT 1 AS n", settings)


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "rows", "past", "told"),  # None: it is sent; EMPTY: nothing is sent, and all is well
    [
        ({}, 1, [], None),
        ({"min_rows": 50}, 50, [], None),
        ({"min_rows": 50}, 49, [], "min_rows 50"),
        ({"min_rows": 50}, 0, [], "min_rows 50"),
        ({"min_rows": 0}, 0, [], EMPTY),
        ({}, 0, [100], EMPTY),
        ({"max_drop": "70%"}, 0, [], EMPTY),
        ({"max_drop": "70%"}, 0, [100], "max_drop 70%"),
        ({"max_drop": "100%"}, 0, [100], "max_drop 100%"),
        ({"max_drop": "70%"}, 30, [100], None),
        ({"max_drop": "70%"}, 29, [100], "max_drop 70%"),
        ({"max_drop": "70%"}, 1, [], None),
        ({"max_drop": "70%"}, 30, [100, 100, 1, 1, 100], None),
        ({"max_drop": "70%"}, 29, [100, 100, 1, 1, 100], "71%"),
        ({"max_drop": "0%"}, 99, [100], "max_drop 0%"),
        ({"max_drop": "100%"}, 1, [1_000_000], None),
        ({}, 1, [1_000_000], None),
    ],
)
def test_the_number_of_rows_is_judged(
    tmp_path: Path, directives: dict[str, Any], rows: int, past: Sequence[int], told: str | None
) -> None:
    found = rows_objection(rows, 0, campaign(tmp_path, **directives), past)
    if told is None:
        assert found is None
    elif told is EMPTY:
        assert isinstance(found, Empty)
    else:
        assert isinstance(found, Held) and told in str(found.message) and found.hint


@pytest.mark.parametrize("directives", [{}, {"min_rows": 0}, {"max_drop": "100%"}], ids=str)
def test_every_row_rejected_is_held_whatever_the_guards_say(tmp_path: Path, directives: dict[str, Any]) -> None:
    found = rows_objection(0, 7, campaign(tmp_path, **directives), [])
    assert isinstance(found, Held) and "rejected" in str(found.message) and found.hint


def judged(stage: Stage, sql: str, **directives: Any) -> dict[str, object]:
    """The report's entry of a campaign that is to be held, beside one that is delivered."""
    stage.query("10_a", sql, **directives)
    stage.query("20_b", "SELECT 1 AS n")
    result = stage.deliver(now=NOON)
    assert result.verdicts == {"a": "held", "b": "delivered"}, result.said
    assert result.exit_code == 4
    assert stage.files("a") == [] and len(stage.files("b")) == 1
    assert {entry["campaign"]: entry["state"] for entry in stage.ledger()} == {"a": "held", "b": "delivered"}
    assert result.log.count("a: held") == 1
    return result.campaigns["a"]


@pytest.mark.parametrize("directives", [{}, {"min_rows": 0}], ids=str)
def test_an_empty_mailing_is_fine_where_no_minimum_is_set(stage: Stage, directives: dict[str, Any]) -> None:
    stage.query("10_a", PEOPLE.format(0), **directives)
    result = stage.deliver()
    assert result.exit_code == 0 and result.verdicts == {"a": "empty"}
    assert stage.files("a") == []
    assert stage.ledger()[0]["state"] == "empty"


def test_an_empty_mailing_is_held_where_a_minimum_is_set(stage: Stage) -> None:
    entry = judged(stage, PEOPLE.format(0), min_rows=1)
    assert "0 contacts" in str(entry["message"]) and entry["hint"]


def test_a_mailing_of_only_rejected_rows_is_held(stage: Stage) -> None:
    entry = judged(stage, "SELECT '123' AS t", phones="t")
    assert (entry["rows"], entry["rejected"]) == (0, 1)
    assert "rejected" in str(entry["message"]) and entry["hint"]


def test_a_campaign_that_suddenly_has_nobody_to_call_has_collapsed(stage: Stage) -> None:
    result = deliver_hourly(stage, [100, 0], max_drop="70%")
    assert result.verdicts == {"a": "held"} and result.exit_code == 4
    assert "0 contacts, 100% below the usual 100" in result.campaigns["a"]["message"]


def test_too_few_rows_are_held(stage: Stage) -> None:
    assert "49 contacts, fewer than min_rows 50" in str(judged(stage, PEOPLE.format(49), min_rows=50)["message"])


def test_rejected_rows_do_not_count_for_the_minimum(stage: Stage) -> None:
    sql = "SELECT CASE WHEN id <= 40 THEN telefone END AS t FROM contatos WHERE id <= 60"
    assert judged(stage, sql, min_rows=50, phones="t")["message"]


def test_too_many_rows_are_held(stage: Stage) -> None:
    assert "max_rows 50" in str(judged(stage, PEOPLE.format(51), max_rows=50)["message"])


def test_too_many_rows_are_held_before_all_of_them_are_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import mailing_pipeline

    monkeypatch.setattr(mailing_pipeline, "BLOCK_BYTES", 1000)
    sql = "SELECT n, CASE WHEN n > 100000 THEN pg_sleep(60) END AS s FROM generate_series(1, 200000) AS n"
    assert "max_rows 500" in str(judged(stage, sql, max_rows=500)["message"])


def deliver_hourly(stage: Stage, rows: Sequence[int], **directives: Any) -> Result:
    """One run an hour, with so many rows each; the last result."""
    for hour, count in enumerate(rows):
        stage.query("10_a", PEOPLE.format(count), **directives)
        result = stage.deliver(now=NOON + timedelta(hours=hour))
    return result


def test_a_mailing_that_fell_too_far_below_its_last_ten_is_held(stage: Stage) -> None:
    """The first two of twelve are out of memory, and one odd hour does not move a median."""
    result = deliver_hourly(stage, [5, 5, *[100] * 4, 1000, *[100] * 5, 29], max_drop="70%")
    assert result.verdicts == {"a": "held"} and result.exit_code == 4
    assert "29 contacts, 71% below the usual 100" in result.campaigns["a"]["message"]
    assert len(stage.files("a")) == 12


def test_a_fall_within_max_drop_is_sent(stage: Stage) -> None:
    assert deliver_hourly(stage, [100, 30], max_drop="70%").verdicts == {"a": "delivered"}


def test_held_mailings_are_no_measure_for_the_next(stage: Stage) -> None:
    result = deliver_hourly(stage, [100, 10, 10, 10, 10], max_drop="70%")
    assert result.verdicts == {"a": "held"}


# ---------------------------------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "directives", "told"),
    [
        ("SELECT 1 AS a, 2 AS c", {"columns": "a;b"}, "missing b; not expected c"),
        ("SELECT 1 AS a", {"columns": "a;b"}, "missing b"),
        ("SELECT 1 AS a, 2 AS b, 3 AS c", {"columns": "a;b"}, "not expected c"),
        ("SELECT 1 AS b, 2 AS a", {"columns": "a;b"}, "order"),
        ('SELECT 1 AS "A", 2 AS b', {"columns": "a;b"}, "missing a; not expected A"),
        ("SELECT 1 AS a, 2 AS a", {}, "column a comes twice"),
        ("SELECT 1 AS a, 2 AS b, 3 AS a", {"columns": "a;b;a"}, "column a comes twice"),
        ("SELECT 1 AS a", {"phones": "tel"}, "tel"),
        ("SELECT 1 AS a", {"unique": "a, cpf"}, "cpf"),
        ("SELECT FROM contatos", {}, "no columns"),
    ],
)
def test_a_layout_that_changed_is_held(stage: Stage, sql: str, directives: dict[str, Any], told: str) -> None:
    assert told in str(judged(stage, sql, **directives)["message"])


def test_a_layout_that_changed_is_found_before_the_query_runs(stage: Stage) -> None:
    assert judged(stage, "SELECT pg_sleep(60) AS a", columns="b")["message"]


def test_the_expected_columns_are_sent(stage: Stage) -> None:
    stage.query("10_a", 'SELECT 1 AS a, 2 AS "Óleo B"', columns="a; Óleo B")
    assert stage.deliver().verdicts == {"a": "delivered"}


# ---------------------------------------------------------------------------------------------------------------------
# Hours
# ---------------------------------------------------------------------------------------------------------------------

TUESDAY, SUNDAY = datetime(2026, 12, 22), datetime(2026, 12, 27)
HOURS = [  # a moment, and what an operator is told who starts a run then; None: it sends
    (TUESDAY.replace(hour=7, minute=59, second=59), "08:00-20:00"),
    (TUESDAY.replace(hour=8), None),
    (TUESDAY.replace(hour=20), None),
    (TUESDAY.replace(hour=20, minute=58), None),
    (TUESDAY.replace(hour=21), "08:00-20:00"),
    (TUESDAY.replace(hour=0), "08:00-20:00"),
    (datetime(2026, 12, 26, 10), None),  # a Saturday
    (SUNDAY.replace(hour=10), "it is sun 10:00: runs mon-sat 08:00-20:00 (RUN_DAYS)"),
    (datetime(2026, 12, 25, 10), "2026-12-25 is a holiday (HOLIDAYS)"),
]


@pytest.fixture
def office(stage: Stage) -> Stage:
    """The stage with the hours of the contract."""
    stage.settings(RUN_DAYS=None, RUN_HOURS=None, HOLIDAYS="2026-12-25")
    stage.query("10_a", "SELECT 1 AS n")
    return stage


@pytest.mark.parametrize(("now", "told"), HOURS, ids=[f"{now:%a %d %H:%M}" for now, _ in HOURS])
def test_mailings_are_sent_inside_the_hours_only(office: Stage, now: datetime, told: str | None) -> None:
    by_hand = office.main(now=now)
    assert by_hand.exit_code == (7 if told else 0)
    assert len(office.files("a")) == (0 if told else 1)
    if told:
        assert "--ignore-hours" in by_hand.stderr and told in by_hand.stderr
        scheduled = office.main(["--scheduled"], now=now)
        assert scheduled.exit_code == 0 and not scheduled.stderr.count("exit code 7")
        assert office.files("a") == [] and office.ledger() == []


def test_the_last_minute_of_the_last_slot_is_inside(office: Stage) -> None:
    assert office.deliver(clock=FakeClock(TUESDAY.replace(hour=20, minute=59, second=30), frozen=True)).exit_code == 0
    assert len(office.files("a")) == 1


def test_hours_can_be_ignored_by_hand(office: Stage) -> None:
    result = office.deliver("--ignore-hours", now=SUNDAY)
    assert result.exit_code == 0 and result.verdicts == {"a": "delivered"}


@pytest.mark.parametrize(
    ("directives", "now", "due"),
    [
        ({"hours": "09:00-18:00"}, TUESDAY.replace(hour=8, minute=30), False),
        ({"hours": "09:00-18:00"}, TUESDAY.replace(hour=9), True),
        ({"hours": "09:00-18:00"}, TUESDAY.replace(hour=18, minute=40), True),
        ({"hours": "09:00-18:00"}, TUESDAY.replace(hour=19), False),
        ({"hours": "09:30-18:00"}, TUESDAY.replace(hour=9, minute=29), False),
        ({"days": "mon-fri"}, datetime(2026, 12, 26, 10), False),
        ({"days": "sat"}, datetime(2026, 12, 26, 10), True),
        ({"days": "tue"}, TUESDAY.replace(hour=10), True),
    ],
    ids=str,
)
def test_a_campaign_can_have_hours_of_its_own(
    office: Stage, directives: dict[str, Any], now: datetime, due: bool
) -> None:
    office.query("20_b", "SELECT 1 AS n", **directives)
    result = office.deliver(now=now)
    assert result.exit_code == 0
    assert result.verdicts == {"a": "delivered", "b": "delivered" if due else "not due"}
    assert len(office.files("b")) == due


def test_a_campaign_outside_its_own_hours_can_be_sent_by_hand(office: Stage) -> None:
    office.query("20_b", "SELECT 1 AS n", hours="09:00-10:00")
    assert office.deliver("--ignore-hours", "--only", "b", now=NOON).verdicts == {"b": "delivered"}


def while_a_query_sleeps(stage: Stage, act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as a query is under way."""

    def watch() -> None:
        with stage.database.connect() as connection:
            for _ in range(1000):
                sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                if connection.execute(sql).fetchone() != (0,):
                    act()
                    return
                time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def run_that_sleeps(stage: Stage, clock: FakeClock, seconds: float, *options: str) -> Result:
    """A run during whose query the PC is suspended for so long."""
    stage.query("10_a", "SELECT 1 AS n, pg_sleep(0.4) AS s")
    thread = while_a_query_sleeps(stage, lambda: clock.advance(seconds))
    result = stage.deliver(*options, clock=clock)
    thread.join()
    return result


def test_what_was_read_inside_the_hours_is_not_published_outside(office: Stage) -> None:
    result = run_that_sleeps(office, FakeClock(TUESDAY.replace(hour=20, minute=30), naps=False), 31 * 60)
    assert result.exit_code == 4 and result.verdicts == {"a": "held"}
    assert office.files("a") == []
    assert "21:0" in result.campaigns["a"]["message"]


def test_nothing_is_published_after_the_runs_deadline(office: Stage) -> None:
    office.settings(RUN_DEADLINE_MINUTES=20)
    result = run_that_sleeps(office, FakeClock(NOON, naps=False), 21 * 60)
    assert result.exit_code == 4 and "delivered" not in result.verdicts.values()
    assert office.files("a") == []
    assert "deadline" in result.campaigns["a"]["message"]


def test_a_suspended_pc_within_the_deadline_publishes(office: Stage) -> None:
    assert run_that_sleeps(office, FakeClock(NOON, naps=False), 10 * 60).verdicts == {"a": "delivered"}


def test_a_manual_run_that_ignores_the_hours_still_has_its_deadline(office: Stage) -> None:
    result = run_that_sleeps(office, FakeClock(NOON, naps=False), 51 * 60, "--ignore-hours")
    assert office.files("a") == [] and result.exit_code == 4


# ---------------------------------------------------------------------------------------------------------------------
# Folder and name
# ---------------------------------------------------------------------------------------------------------------------


def test_a_missing_drop_folder_fails_its_campaign_alone_and_is_never_created(stage: Stage) -> None:
    stage.query("10_a", "SELECT 1 AS n", drop=False)
    stage.query("20_b", "SELECT 1 AS n")
    result = stage.deliver()
    assert result.exit_code == 4
    assert result.verdicts["a"] in ("held", "failed") and result.verdicts["b"] == "delivered"
    entry = result.campaigns["a"]
    assert f"{stage.remote_base}/a" in entry["message"] and "create the folder" in entry["hint"]
    assert not (stage.base / "a").exists()
    assert "retry" not in result.log


def test_a_file_in_place_of_the_drop_folder_fails_its_campaign_alone(stage: Stage) -> None:
    stage.query("10_a", "SELECT 1 AS n", drop=False)
    stage.query("20_b", "SELECT 1 AS n")
    (stage.base / "a").write_text("not a folder")
    result = stage.deliver()
    assert result.exit_code == 4 and result.verdicts["b"] == "delivered"
    assert f"{stage.remote_base}/a" in result.campaigns["a"]["message"]
    assert (stage.base / "a").read_text() == "not a folder"


def test_a_final_name_that_exists_is_never_overwritten(stage: Stage) -> None:
    stage.query("10_a", "SELECT 1 AS n")
    stage.query("20_b", "SELECT 1 AS n")
    there = stage.drop("a") / "mailing_a_22-12_12-00.csv"
    there.write_bytes(b"somebody else's")
    result = stage.deliver(now=NOON)
    assert result.exit_code == 4 and result.verdicts == {"a": "held", "b": "delivered"}
    assert f"{stage.remote_base}/a/mailing_a_22-12_12-00.csv" in result.campaigns["a"]["message"]
    assert there.read_bytes() == b"somebody else's" and stage.files("a") == [there.name]
    assert "retry" not in result.log
