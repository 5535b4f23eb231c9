"""Today's grid and what is made of it: --status, --status --json, and status.html, also as a browser shows it."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from rich.console import Console
from stage import NOON, Stage

import mailing_pipeline as mp

ZONE = datetime.fromisoformat("2026-12-22T00:00:00-03:00").tzinfo
TUESDAY = datetime(2026, 12, 22, 14, 5, tzinfo=ZONE)
SUNDAY = datetime(2026, 12, 20, 14, 5, tzinfo=ZONE)


def hours_of(days: str, first: clock_time, last: clock_time, *holidays: date) -> mp.Hours:
    return mp.Hours(mp.weekdays(days), {None: (first, last)}, frozenset(holidays))


HOURS = hours_of("mon-sat", clock_time(8), clock_time(20))
NAMES = ("cobranca_30d", "preventivo", "acordo_quebrado", "alto_valor", "cobranca_60d")


Entry = mp.Mailing | mp.PastRun


def moment(slot: str, minute: int) -> tuple[str, str]:
    """A slot and a time in it as the ledger writes them; '10' is today's slot of 10:00."""
    slot = slot if len(slot) > 2 else f"2026-12-22 {slot}:00"
    return slot, f"{slot[:13].replace(' ', 'T')}:{minute:02}:07.250-03:00"


def entry(slot: str, campaign: str, state: str, **values: Any) -> mp.Mailing:
    """A mailing in the ledger; `at` is the minute of its time."""
    slot, changed = moment(slot, values.pop("at", 3))
    own: dict[str, Any] = {
        "id": next(IDS),
        "slot": slot,
        "changed": changed,
        "folder": PurePosixPath("/entrada") / campaign,
    }
    return mp.Mailing(campaign=campaign, state=mp.State(state), **(own | values))


def run(slot: str, code: int = 0, at: int = 3, message: str = "", hint: str = "", started: bool = True) -> mp.PastRun:
    """How a run ended, in the ledger; started=False: before its campaigns could."""
    slot, changed = moment(slot, at)
    words = {"message": message, "hint": hint}
    return mp.PastRun(id=next(IDS), slot=slot, exit_code=code, started=started, changed=changed, **words)


def past(entries: Sequence[Entry]) -> mp.Past:
    """What the ledger knows."""
    mailings = [entry for entry in entries if isinstance(entry, mp.Mailing)]
    return mp.Past(mailings, [entry for entry in entries if isinstance(entry, mp.PastRun)])


IDS = itertools.count(1)


def campaign(name: str, hours: mp.Hours = HOURS) -> mp.Campaign:
    select = mp.Statement("SELECT 1", 1, ("SELECT",))
    csv = mp.CsvFormat(";", "utf-8", True, "\r\n")
    folder = PurePosixPath("/entrada") / name
    return mp.Campaign(
        name=name, source=f"{name}.sql", prelude=(), select=select, folder=folder, hours=hours, timeout_s=600, csv=csv,
        file_name="x.csv",
    )  # fmt: skip


CAMPAIGNS = [campaign(name) for name in NAMES]


def history(names: tuple[str, ...], now: datetime, days: int = 14) -> list[Entry]:
    """Every slot of the days before now delivered, and the runs themselves."""
    made: list[Entry] = []
    for back in range(days - 1, -1, -1):
        day = now - timedelta(days=back)
        for hour in range(8, 21):
            start = day.replace(hour=hour, minute=0)
            if start.weekday() == 6 or start > now:
                continue
            slot = mp.slot_of(start)
            for index, name in enumerate(names):
                usual = (900, 4800, 310, 12_400, 21_900)[index % 5]
                rows = round(usual * (1 + (hour * 37 + back * 91 + index * 53) % 61 / 200 - (hour - 8) / 40))
                made.append(entry(slot, name, "delivered", rows=rows, at=2 + index % 9))
            made.append(run(slot, at=12, message=f"{len(names)} delivered"))
    return made


def marks(entries: Sequence[Entry], name: str, now: datetime = TUESDAY, **how: Any) -> dict[str, str]:
    """The words of a campaign's cells by hour."""
    grid = mp.DayGrid(past(entries), how.get("campaigns", CAMPAIGNS), how.get("hours", HOURS), now)
    return {slot[11:13]: state.value for slot, (state, _) in grid.cells[name].items()}


# ---- The grid ----


OLD = [entry("2026-12-10 08:00", name, "delivered") for name in NAMES]  # so that what has no entry today was missed


SATURDAY_SHORT = mp.Hours(HOURS.days, mp.start_times("08:00-20:00, sat 08:00-13:00"))


def test_the_slots_of_a_day_come_from_the_operating_hours() -> None:
    assert list(marks(OLD, "preventivo")) == [f"{hour:02}" for hour in range(8, 21)]
    short = hours_of("tue", clock_time(8, 30), clock_time(10))
    assert list(marks(OLD, "preventivo", hours=short)) == ["08", "09", "10"]


def test_a_weekday_may_have_hours_of_its_own() -> None:
    saturday = datetime(2026, 12, 19, 14, 21, tzinfo=ZONE)
    assert list(marks(OLD, "preventivo", saturday, hours=SATURDAY_SHORT)) == [f"{hour:02}" for hour in range(8, 14)]
    done = past([*OLD, run("2026-12-19 13:00")])
    assert mp.DayGrid(done, CAMPAIGNS, SATURDAY_SHORT, saturday).overdue == ""
    assert mp.DayGrid(done, CAMPAIGNS, HOURS, saturday).overdue == "2026-12-19 14:00"


def test_slots_in_which_nothing_was_due_for_anybody_are_left_out() -> None:
    """As on the first day of somebody who runs round the clock: no wall of dashes from 00:00."""
    always = hours_of("mon-sun", clock_time(0), clock_time(23))
    first = [entry("14", name, "delivered", rows=5) for name in NAMES]
    campaigns = [campaign(name, always) for name in NAMES]
    assert list(marks(first, "preventivo", campaigns=campaigns, hours=always)) == [f"{h}" for h in range(14, 24)]
    late = [campaign(name, hours_of("mon-sat", clock_time(10), clock_time(12))) for name in NAMES]
    assert list(marks(OLD, "preventivo", campaigns=late)) == ["10", "11", "12"]


@pytest.mark.parametrize(
    "state, word",
    [
        *((same, same) for same in ("delivered", "empty", "held", "failed")),
        ("publishing", "in doubt"),
        ("withdrawing", "in doubt"),
        ("in doubt", "in doubt"),
        ("claimed", "running"),
        ("exported", "running"),
    ],
)
def test_each_state_of_the_ledger_has_its_mark(state: str, word: str) -> None:
    assert marks([entry("14", "preventivo", state)], "preventivo")["14"] == word


def test_what_a_killed_run_left_behind_is_running_no_longer() -> None:
    assert marks([entry("12", "preventivo", "claimed")], "preventivo")["12"] == "failed"


@pytest.mark.parametrize("pickup", mp.TROUBLED_PICKUPS)
def test_a_mailing_that_the_dialer_did_not_take_does_not_look_delivered(pickup: mp.Pickup) -> None:
    assert marks([entry("10", "preventivo", "delivered", pickup=pickup)], "preventivo")["10"] == "not taken"
    taken = entry("11", "preventivo", "delivered", pickup=mp.Pickup.TAKEN, picked_up="11:04:11")
    assert marks([taken], "preventivo")["11"] == "delivered"


def test_past_slots_without_an_entry_were_missed_and_the_others_are_still_to_come() -> None:
    others = [old for old in OLD if old.campaign != "preventivo"]
    found = marks([*others, entry("09", "preventivo", "delivered")], "preventivo")
    assert found["08"] == "not due"  # the campaign is new: its first entry is of 09:00
    assert [found[hour] for hour in ("09", "10", "13")] == ["delivered", "missed", "missed"]
    assert {found[f"{hour}"] for hour in range(14, 21)} == {"still to come"}


def test_on_the_first_day_nothing_was_missed() -> None:
    assert set(marks([], "preventivo").values()) == {"still to come"}


@pytest.mark.parametrize(
    "states, word",
    [
        (["failed", "delivered"], "delivered"),
        (["delivered", "failed"], "delivered"),
        (["held", "failed"], "failed"),
        (["failed", "empty"], "empty"),
        (["publishing", "failed"], "in doubt"),
        (["in doubt", "failed"], "in doubt"),
        (["failed", "claimed"], "running"),
    ],
)
def test_the_best_entry_of_a_slot_wins(states: list[str], word: str) -> None:
    assert marks([entry("14", "preventivo", state) for state in states], "preventivo")["14"] == word


def test_of_two_deliveries_the_later_counts() -> None:
    twice = [entry("14", "preventivo", "delivered", rows=rows) for rows in (10, 20)]
    found = mp.DayGrid(past(twice), CAMPAIGNS, HOURS, TUESDAY).cells["preventivo"]["2026-12-22 14:00"][1]
    assert found and found.rows == 20


def test_nothing_is_due_on_sundays_and_holidays() -> None:
    christmas = hours_of("mon-sat", clock_time(8), clock_time(20), date(2026, 12, 22))
    assert marks(OLD, "preventivo", SUNDAY) == {}
    assert marks(OLD, "preventivo", hours=christmas) == {}
    assert set(marks(OLD, "preventivo").values()) == {"missed", "still to come"}
    assert "Nothing is due today" in shown(OLD, now=SUNDAY) and "Nothing is due today" in page(OLD, now=SUNDAY)


def test_a_campaign_has_hours_of_its_own() -> None:
    own = campaign("preventivo", hours_of("mon-fri", clock_time(9, 30), clock_time(15)))
    both = [own, campaign("alto_valor")]
    found = marks(OLD, "preventivo", campaigns=both)
    assert [hour for hour in found if found[hour] != "not due"] == ["09", "10", "11", "12", "13", "14", "15"]
    assert set(marks(OLD, "preventivo", TUESDAY - timedelta(days=3), campaigns=both).values()) == {"not due"}


def test_what_was_sent_outside_the_hours_or_by_a_campaign_that_is_gone_is_shown() -> None:
    extra = [entry("07", "preventivo", "delivered"), entry("10", "antiga", "delivered")]
    assert marks(extra, "preventivo")["07"] == "delivered"
    assert marks(extra, "antiga")["10"] == "delivered"
    assert marks(extra, "antiga")["15"] == "not due"


def test_runs_are_not_campaigns() -> None:
    grid = mp.DayGrid(past([run("13"), run("14", 4)]), CAMPAIGNS, HOURS, TUESDAY)
    assert tuple(grid.cells) == NAMES
    assert grid.last_success and grid.last_success.slot == "2026-12-22 13:00"


@pytest.mark.parametrize(
    "last, now, overdue",
    [
        ("2026-12-22 14:00", "2026-12-22T14:30", ""),
        ("2026-12-22 13:00", "2026-12-22T14:10", ""),
        ("2026-12-22 13:00", "2026-12-22T14:21", "2026-12-22 14:00"),
        ("2026-12-22 20:00", "2026-12-23T08:10", ""),
        ("2026-12-22 19:00", "2026-12-23T02:00", "2026-12-22 20:00"),
        ("2026-12-19 20:00", "2026-12-21T08:19", ""),
        ("2026-12-19 19:00", "2026-12-20T15:00", "2026-12-19 20:00"),
        ("2026-12-24 20:00", "2026-12-26T08:19", ""),
    ],
)
def test_a_slot_is_overdue_when_nothing_came_of_it(last: str, now: str, overdue: str) -> None:
    hours = hours_of("mon-sat", clock_time(8), clock_time(20), date(2026, 12, 25))
    read = datetime.fromisoformat(now).replace(tzinfo=ZONE)
    assert mp.DayGrid(past([run(last)]), CAMPAIGNS, hours, read).overdue == overdue
    assert mp.DayGrid(past([entry(last, NAMES[0], "delivered")]), CAMPAIGNS, hours, read).overdue == overdue
    assert mp.DayGrid(mp.Past(), CAMPAIGNS, hours, read).overdue == ""


# ---- The terminal and monitoring ----


def bad_day() -> list[Entry]:
    """Two good weeks, and then nearly everything that can happen."""
    good = [e for e in history(NAMES, TUESDAY) if e.slot < "2026-12-22 09:00" or e.slot in BAD_DAY_GOOD_SLOTS]
    hint = "see whether the query's tables were loaded; if it is right, raise '-- max_drop:' for this campaign"
    query = '20_preventivo.sql: line 14: relation "faturas" does not exist (42P01)'
    down = 'database: connection to server at "10.0.0.5", port 5432 failed: timeout expired'
    made: list[Entry] = [
        entry("09", "cobranca_30d", "held", message="312 contacts, 65% fewer than the median of 896", hint=hint),
        entry("09", "preventivo", "failed", message=query, hint="correct the query; --check tries it without sending"),
        entry("09", "alto_valor", "empty"),
        entry("09", "cobranca_60d", "delivered", rows=21_904, pickup=mp.Pickup.REFUSED,
              message="refused by the dialer"),
        run("11", 5, message=down, hint="check PGHOST, PGPORT and the network", started=False),
        entry("13", "acordo_quebrado", "publishing", message="SFTP: the connection was lost during the rename",
              hint="the next run looks what became of it"),
        entry("14", "preventivo", "exported"),
    ]  # fmt: skip
    return sorted([*good, *made], key=lambda e: (e.slot, e.id))


BAD_DAY_GOOD_SLOTS = ("2026-12-22 10:00", "2026-12-22 12:00")


def shown(entries: Sequence[Entry], encoding: str = "utf-8", language: str = "en", now: datetime = TUESDAY) -> str:
    """What --status prints in 80 columns."""
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    grid = mp.DayGrid(past(entries), CAMPAIGNS, HOURS, now)
    mp.print_status(grid, Console(file=file, width=80, force_terminal=False), language)
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_the_grid_fits_a_console_of_80_columns(encoding: str, language: str) -> None:
    if encoding == "ascii" and language == "pt":
        pytest.skip("Portuguese needs more than ASCII; the program replaces what a console lacks")
    lines = shown(bad_day(), encoding, language).splitlines()
    assert lines[0].split() == ["22/12", *(f"{hour:02}" for hour in range(8, 21))]
    table = lines[: lines.index("")]
    assert len(table) == 1 + len(NAMES) and all(line.startswith(NAMES) for line in table[1:])  # no name was folded
    assert all(len(line) <= 80 for line in lines[: lines.index("") + 3])


def test_the_grid_shows_rows_signs_and_the_last_successful_run() -> None:
    text = shown(bad_day())
    assert re.search(r"^cobranca_30d +1.1k +H +\d{3} +! +\d{3} +! +\. ", text, re.MULTILINE)
    assert re.search(r"^cobranca_60d +\d\dk +T ", text, re.MULTILINE)
    assert "Last successful run: 2026-12-22 12:12" in text
    assert "The slot 2026-12-22 13:00 is overdue" in text
    assert "overdue" not in shown(history(NAMES, TUESDAY))


@pytest.mark.parametrize(
    "rows, text",
    [
        *((0, "0"), (999, "999"), (1000, "1.0k"), (4812, "4.8k"), (9949, "9.9k"), (9950, "10k"), (48_120, "48k")),
        *((999_499, "999k"), (999_500, "1.0M"), (1_481_200, "1.5M"), (100_000_000, "100M")),
    ],
)
def test_rows_are_abbreviated_to_four_characters(rows: int, text: str) -> None:
    assert mp.short_number(rows, "en") == text
    assert mp.short_number(rows, "pt") == text.replace(".", ",")


LONG_NAMES = tuple(f"campanha_de_cobranca_com_nome_comprido_{number}" for number in range(10, 50))


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("width", [80, 120])
def test_forty_campaigns_with_long_names_stay_readable(width: int, language: str) -> None:
    """Slots that do not fit go into a second table below; no column is squeezed, no name folded."""
    entries = [entry(f"{hour:02}", name, "delivered", rows=48_120) for hour in range(8, 14) for name in LONG_NAMES]
    file = io.StringIO()
    grid = mp.DayGrid(past(entries), [campaign(name) for name in LONG_NAMES], HOURS, TUESDAY)
    mp.print_status(grid, Console(file=file, width=width, force_terminal=False), language)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and len(lines) < 100
    heads = [line.split()[1:] for line in lines if line.startswith("22/12")]
    assert list(itertools.chain(*heads)) == [f"{hour:02}" for hour in range(8, 21)]
    assert len(heads) == (2 if width == 80 else 1)
    for name in LONG_NAMES:
        assert sum(line.startswith(f"{name} ") for line in lines) == len(heads)


def test_brackets_and_colons_in_a_name_are_no_markup() -> None:
    strange = "[/x][red]:red_circle:"
    text = shown([entry("10", strange, "held", message=f"{strange} 1", hint=f"{strange} 2")])
    assert re.search(rf"^{re.escape(strange)} +H", text, re.MULTILINE)
    assert f"{strange}: 10:00 held: {strange} 1\n    -> {strange} 2\n" in text


def test_the_status_tells_why_something_is_held_and_what_to_do() -> None:
    lines = shown(bad_day()).splitlines()
    at = lines.index("acordo_quebrado: 13:00 in doubt: SFTP: the connection was lost during the rename")
    assert lines[at + 1] == "    -> the next run looks what became of it"
    assert "cobranca_30d: 09:00 held (works again): 312 contacts, 65% fewer than the median of 896" in lines
    assert "cobranca_60d: 09:00 not taken (works again): refused by the dialer" in lines
    assert "the whole run: 11:00 failed (works again): database: connection" in "\n".join(lines)
    same = [entry("14", name, "held", message="too few", hint="look") for name in NAMES[:3]]
    assert f"{', '.join(NAMES[:3])}: 14:00 held: too few\n    -> look\n" in shown(same)
    fault = run("14", 5, 20, message="no database", hint="check PGHOST", started=False)
    assert "the whole run: 14:00 failed: no database\n    -> check PGHOST\n" in shown([*history(NAMES, TUESDAY), fault])


# ---- What the banner says ----

DONE, PARTIAL = run("13"), run("13", 4, message="4 delivered, 1 held")
BROKEN = run("14", 5, message="no database", started=False)
LEFT = mp.Pickup.LEFT


@pytest.mark.parametrize(
    "today, look",
    [
        ([entry("13", "a", "delivered"), DONE], "DELIVERED"),
        ([entry("13", "a", "empty"), DONE], "DELIVERED"),
        ([entry("12", "a", "held"), entry("13", "a", "delivered"), DONE], "DELIVERED"),
        ([entry("13", "a", "held"), entry("13", "b", "delivered"), PARTIAL], "HELD"),
        ([entry("13", "a", "held"), DONE], "HELD"),  # and then a run of other campaigns alone
        ([entry("13", "a", "failed"), entry("13", "b", "delivered"), PARTIAL], "HELD"),
        ([entry("13", "a", "publishing"), entry("13", "b", "delivered"), PARTIAL], "HELD"),
        ([entry("13", "a", "in doubt"), entry("13", "b", "delivered"), PARTIAL], "HELD"),
        ([entry("13", "a", "delivered", pickup=LEFT), DONE], "HELD"),
        ([entry("13", "a", "held"), DONE, entry("14", "a", "exported")], "HELD"),
        ([entry("13", "a", "delivered"), PARTIAL], "HELD"),
        ([entry("13", "a", "failed"), entry("13", "b", "failed"), PARTIAL], "FAILED"),
        ([entry("13", "a", "delivered"), DONE, BROKEN], "FAILED"),
        ([entry("11", "a", "delivered"), run("11")], "FAILED"),  # 12:00 and 13:00 are overdue
        ([], "HELD"),
    ],
)
def test_the_banner_is_green_only_where_nothing_needs_a_person(today: list[Entry], look: str) -> None:
    text = mp.status_page(mp.DayGrid(past(today), [campaign("a"), campaign("b")], HOURS, TUESDAY), "en")
    assert re.findall('<p id="run" class="(.*?)"', text) == [look]


@pytest.mark.parametrize("ahead", ["2026-12-22 15:00", "2027-12-22 10:00"], ids=["an hour", "a year"])
def test_what_a_clock_that_was_ahead_has_written_hides_no_trouble(ahead: str) -> None:
    """It was set right at 14:00: what failed then does not work again, and a run that is missing is missed."""
    wrong = [*history(NAMES[:1], TUESDAY - timedelta(hours=1)), entry(ahead, NAMES[0], "delivered"), run(ahead)]
    right = [entry("14", NAMES[0], "failed"), run("14", 4)]
    grid = mp.DayGrid(past(wrong + right), CAMPAIGNS, HOURS, TUESDAY)
    assert grid.attention == {NAMES[0]: "failed"}
    assert mp.DayGrid(past(wrong + right), CAMPAIGNS, HOURS, TUESDAY.replace(minute=25)).overdue == "2026-12-22 14:00"
    works = [entry("14", NAMES[0], "delivered", at=9), run("14", at=9)]
    grid = mp.DayGrid(past(wrong + right + works), CAMPAIGNS, HOURS, TUESDAY.replace(minute=25))
    assert (grid.attention, grid.overdue) == ({}, "")


def test_the_banner_says_what_is_the_matter() -> None:
    day = [entry("13", "preventivo", "held"), entry("13", "alto_valor", "delivered")]
    one = page([*day, run("13", 4, message="1 delivered, 1 held")])
    assert "Need attention: preventivo (held)<br>" in one
    assert 'Last run: 2026-12-22 13:03: 1 delivered, 1 held<span id="ago"></span><br>No successful run yet' in one
    two = page([*day, entry("13", "acordo_quebrado", "publishing")], language="pt")
    assert "Precisa de atenção: preventivo (retido), acordo_quebrado (em dúvida)<br>" in two
    many = page([entry("13", name, "failed") for name in FORTY], FORTY)
    assert f"Need attention: {', '.join(f'{n} (failed)' for n in FORTY)}<br>" in many
    assert "attention" not in page(history(NAMES, TUESDAY))


def test_after_a_run_that_held_something_page_and_status_say_so(stage: Stage) -> None:
    stage.query("10_enviada", "SELECT 1 AS n")
    stage.query("20_retida", "SELECT 1 AS n", min_rows=5)
    stage.main(now=NOON)
    text = (stage.output / "status.html").read_text(encoding="utf-8")
    assert '<p id="run" class="HELD"' in text and "Need attention: retida (held)" in text
    told = stage.main(["--status"], now=NOON).stdout
    assert re.search(r"^retida: 12:00 held: .*min_rows 5\n    -> check the query", told, re.MULTILINE)


def test_monitoring_gets_the_same_grid_as_json() -> None:
    found = json.loads(json.dumps(mp.status_json(mp.DayGrid(past(bad_day()), CAMPAIGNS, HOURS, TUESDAY))))
    assert found["now"] == "2026-12-22T14:05:00-03:00"
    assert found["last_successful_run"].startswith("2026-12-22T12:12")
    assert found["last_run"] == found["last_successful_run"]
    assert found["overdue_slot"] == "2026-12-22 13:00"
    assert found["attention"] == {"acordo_quebrado": "in doubt"}
    assert found["campaigns"]["preventivo"]["2026-12-22 20:00"] == {"state": "still to come"}
    held = found["campaigns"]["cobranca_30d"]["2026-12-22 09:00"]
    assert (held["state"], held["message"]) == ("held", "312 contacts, 65% fewer than the median of 896")
    assert sum(found["tally"].values()) == 13 * len(NAMES)


# ---- The page as text ----


def page(
    entries: Sequence[Entry], names: tuple[str, ...] = NAMES, language: str = "en", now: datetime = TUESDAY
) -> str:
    return mp.status_page(mp.DayGrid(past(entries), [campaign(name) for name in names], HOURS, now), language)


FORTY = tuple(f"{name}_{region}" for region in ("sul", "sp", "rj", "ne", "norte", "mg", "df", "co") for name in NAMES)


def forty_bad_campaigns() -> list[Entry]:
    """Forty campaigns over two weeks, and today every one fails with long words."""
    now = TUESDAY.replace(hour=20, minute=59)
    old = [e for e in history(FORTY, now) if not e.slot.startswith("2026-12-22")]
    words = {"message": "m" * 400, "hint": "h" * 200}
    return old + [entry(f"{hour:02}", name, "failed", **words) for hour in range(8, 21) for name in FORTY]


def test_forty_campaigns_stay_under_200_kb() -> None:
    now = TUESDAY.replace(hour=20, minute=59)
    for entries in (history(FORTY, now), forty_bad_campaigns()):
        assert len(page(entries, FORTY, now=now).encode()) < 200_000


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_page_is_valid_html(language: str) -> None:
    import html5lib  # type: ignore[import-untyped]

    for entries in ([], bad_day(), history(NAMES, TUESDAY)):
        text = page(entries, language=language)
        html5lib.HTMLParser(strict=True).parse(text)  # raises at the first error
        assert re.search(f'<html lang="{"pt-BR" if language == "pt" else "en"}">', text)
        assert "<title>" in text and '<meta name="viewport"' in text
        slots = 13 if entries else 7  # on the first day only what is still to come
        assert text.count("<th scope=") == 1 + slots + len(NAMES)


def test_every_value_is_escaped() -> None:
    evil = '<script>alert("1")</script>&{}\'"'
    bad = entry("10", evil, "held", message=evil, hint=evil)
    refused = entry("11", evil, "delivered", pickup=mp.Pickup.REFUSED, message=evil, rows=3)
    for language in ("en", "pt"):
        text = page([bad, refused, run("11", 5, message=evil, hint=evil, started=False)], language=language)
        assert text.count("<script>") == 1
        assert "alert(" not in text.replace("alert(&quot;1&quot;)", "")
        assert text.count("&lt;script&gt;") >= 7


def test_the_page_asks_nobody_for_anything() -> None:
    text = page(bad_day())
    assert not re.search(r"https?:|//\w|@import|<(img|iframe|object|embed|form|base)\b|fetch\(|XMLHttp|src=", text)
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert not re.search(r"url\((?!data:)", text)


def test_the_page_tells_the_last_ten_problems_newest_first_with_what_to_do() -> None:
    many = [
        entry(f"{hour:02}", name, "failed", message=f"{name} at {hour}", hint="do it", at=minute)
        for hour in (9, 10, 11)
        for minute, name in enumerate(NAMES)
    ]
    problems = page([*many, entry("12", "alto_valor", "delivered", rows=5)]).partition("Latest problems")[2]
    told = re.findall(r"<p>(\w+ at \d+)</p><p>→ do it</p>", problems)
    assert told == [f"{e.campaign} at {int(e.slot[11:13])}" for e in reversed(many)][:10]
    assert problems.count("works again") == 2  # alto_valor's


def test_the_page_tells_trend_latest_and_median() -> None:
    entries = history(NAMES, TUESDAY)
    rows = [e.rows for e in past(entries).mailings if e.campaign == "alto_valor"]
    told = f"latest {rows[-1]:,}, median {statistics.median(rows):,.0f}"
    assert told in page(entries)
    assert told.replace(",", ".").replace(". ", ", ").replace("latest", "último").replace("median", "mediana") in page(
        entries, language="pt"
    )
    assert page([]).count("nothing delivered in two weeks") == len(NAMES)


def test_a_trend_has_a_bar_for_each_slot_as_high_as_its_rows() -> None:
    slots = ("2026-12-08 08:00", "2026-12-22 10:00", "2026-12-22 11:00")
    entries = [
        entry(slot, "alto_valor", "delivered", rows=rows) for slot, rows in zip(slots, (50, 100, 0), strict=True)
    ]
    assert re.findall('d="(M.*?)"', page(entries, ("alto_valor",))) == ["M8 40v-19M346 40v-38M347 40v-0"]


@pytest.mark.parametrize(
    "now, due",
    [
        (TUESDAY, "2026-12-22T15:20:00"),
        (TUESDAY.replace(hour=20), "2026-12-23T08:20:00"),
        (datetime(2026, 12, 24, 20, 5, tzinfo=ZONE), "2026-12-26T08:20:00"),  # Christmas
        (datetime(2026, 12, 26, 13, 5, tzinfo=ZONE), "2026-12-28T08:20:00"),  # Saturday has ended
    ],
)
def test_the_page_computes_nothing_but_compares_with_the_clock(now: datetime, due: str) -> None:
    """The moment from which something is overdue is written by the program."""
    hours = mp.Hours(HOURS.days, SATURDAY_SHORT.starts, frozenset({date(2026, 12, 25)}))
    text = mp.status_page(mp.DayGrid(past(history(NAMES, now)), CAMPAIGNS, hours, now), "en")
    assert re.findall('data-due="(.*?)"', text) == [due]
    assert not re.search(r"getHours|getDay|holiday", mp.PAGE_SCRIPT)


def test_without_its_script_the_page_still_tells_what_is_overdue() -> None:
    assert "Last successful run: 2026-12-22 12:12" in page(bad_day())
    assert 'id="late">The slot 2026-12-22 13:00 is overdue' in page(bad_day())
    assert 'id="late" hidden>The slot 2026-12-22 15:00 is overdue' in page(history(NAMES, TUESDAY))


def test_the_portuguese_page_has_no_english_left() -> None:
    text = page(bad_day(), language="pt")
    read = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]+>", " ", text, flags=re.DOTALL)
    english = re.findall(r"\b(?:the|run|slot|last|latest|today|held|failed|delivered|missed|due|weeks)\b", read, re.I)
    told = " ".join(e.message + e.hint for e in bad_day())
    assert [word for word in english if word not in told] == []
    assert "Última execução com êxito: 22/12/2026 12:12" in read


# ---- The page in a browser ----


class Browser:
    """Headless Chromium, driven through its DevTools pipe, where messages end with a zero byte. One start for all."""

    def __init__(self, program: str, folder: Path) -> None:
        ours, its = os.pipe(), os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
        command = [program, *flags.split(), f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its[0]} 4>&{ours[1]}', "bash", *command],
            pass_fds=(its[0], ours[1]), env={**os.environ, "HOME": str(folder)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(its[0])
        os.close(ours[1])
        self._in, self._out = os.fdopen(ours[0], "rb"), os.fdopen(its[1], "wb")
        self._ids, self._session = itertools.count(1), ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setTimezoneOverride", timezoneId="America/Sao_Paulo")
        self._clock = ""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._in.close()
        self._out.close()

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """The reply to a command; what happens meanwhile is kept in events."""
        message: dict[str, Any] = {"id": next(self._ids), "method": method, "params": values}
        self._out.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        self._out.flush()
        while True:
            reply = self._next()
            if reply.get("id") == message["id"]:
                assert "error" not in reply, (method, reply["error"])
                return dict(reply["result"])
            self.events.append(reply)

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            text += byte
        return dict(json.loads(text))

    def show(self, path: Path, width: int, scheme: str, now: datetime) -> None:
        """Open a page at a width, in light or dark, at a moment."""
        if self._clock:
            self.ask("Page.removeScriptToEvaluateOnNewDocument", identifier=self._clock)
        clock = "{const R = Date; Date = class extends R {constructor(...a) {a.length ? super(...a) : super(NOW)}"
        clock = (clock + " static now() {return NOW}}}").replace("NOW", str(int(now.timestamp() * 1000)))
        self._clock = self.ask("Page.addScriptToEvaluateOnNewDocument", source=clock)["identifier"]
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        until = time.monotonic() + 20
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < until, "the page does not load"
            self.events.append(self._next())

    def value(self, script: str) -> Any:
        """What a piece of JavaScript returns."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def happened(self, *methods: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") in methods]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program or os.name == "nt":
        reason = "needs a browser: apt-get install chromium --no-install-recommends"
        pytest.fail(reason) if os.environ.get("CI", "").lower() == "true" else pytest.skip(reason)
    with Browser(str(program), tmp_path_factory.mktemp("chromium")) as started:
        yield started


OVERFLOWING = """(() => {
  const wide = document.documentElement.clientWidth;
  const inBox = node => node.closest(".box") && !node.matches(".box");
  const over = node => !inBox(node) && node.getBoundingClientRect().right > wide + 0.5;
  const out = [...document.querySelectorAll("body *")].filter(over);
  return [document.documentElement.scrollWidth - wide, ...out.map(n => n.outerHTML.slice(0, 80))];
})()"""

# The lowest contrast of any text against what lies behind it, as WCAG 2 counts it, and whose it is.
LOWEST_CONTRAST = """(() => {
  const pixel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => { pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = node => { for (; node; node = node.parentElement) {
    const c = rgba(getComputedStyle(node).backgroundColor); if (c[3] === 255) return c; } return [0, 0, 0]; };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const found = [];
  for (const node of document.querySelectorAll("body, body *")) {
    const style = getComputedStyle(node), text = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (text && !["SCRIPT", "TITLE", "title"].includes(node.tagName))
      found.push([ratio(rgba(style.color), behind(node)), node.outerHTML.slice(0, 90)]);
    if (node.tagName === "path") found.push([ratio(rgba(style.stroke), behind(node)) * 1.5, "path " + style.stroke]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
})()"""  # a line needs 3:1, text 4.5:1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_renders_without_overflow_errors_or_faint_text(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    long = "campanha_de_cobranca_com_um_nome_muito_comprido_que_nao_acaba_nunca"
    broken = entry("13", long, "failed", message="m" * 300, hint="h" * 300)
    pages = {
        "a bad day": page([*bad_day(), broken, entry("10", long, "held")]),
        "a good day": page(history(NAMES, TUESDAY), language="pt"),
        "the first day": page([]),
    }
    for name, text in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        browser.show(path, width, scheme, TUESDAY)
        assert browser.value(OVERFLOWING) == [0], name
        ratio, where = browser.value(LOWEST_CONTRAST)
        assert ratio >= 4.5, (name, ratio, where)
        assert browser.value("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)"
        )
        slots = 7 if name == "the first day" else 13
        assert browser.value("document.querySelectorAll('tbody td').length") >= slots * len(NAMES)
        assert browser.happened("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
        asked = [event["params"]["request"]["url"] for event in browser.happened("Network.requestWillBeSent")]
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.parametrize(
    "minutes, look, ago, late",
    [
        (1, "DELIVERED", "(há 1 minuto)", ""),
        (50, "DELIVERED", "(há 50 minutos)", ""),
        (75, "FAILED", "(há 75 minutos)", "22/12/2026 15:00"),
        (24 * 60, "FAILED", "(há 24 horas)", "22/12/2026 15:00"),
        (5 * 24 * 60 - 120, "FAILED", "(há 5 dias)", "22/12/2026 15:00"),
    ],
)
def test_the_words_turn_red_when_a_slot_is_overdue_at_the_moment_of_reading(
    browser: Browser, tmp_path: Path, minutes: int, look: str, ago: str, late: str
) -> None:
    path = tmp_path / "status.html"
    path.write_text(page(history(NAMES, TUESDAY), language="pt"), encoding="utf-8")
    run = datetime(2026, 12, 22, 14, 12, 7, tzinfo=ZONE)
    browser.show(path, 1280, "light", run + timedelta(minutes=minutes))
    assert browser.value('document.getElementById("run").className') == look
    assert browser.value('document.getElementById("ago").textContent').strip() == ago
    told = browser.value('(late => late.hidden ? "" : late.textContent)(document.getElementById("late"))')
    assert told.startswith(f"O horário {late} está atrasado") if late else told == ""
