"""The outcome of a run: exit code, table, JSON, log."""

from __future__ import annotations

import io
import re
import time
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from rich.console import Console
from stage import NOON, Stage

import mailing_pipeline as mp
from mailing_pipeline import ExitCode, Mailing, PipelineError, Report, State

ONE = "SELECT 1 AS n"
SLOT, START = "2026-12-22 12:00", datetime(2026, 12, 22, 12).astimezone()


def outcome(state: State, kind: type[PipelineError] | None = None, wide: bool = False) -> Mailing:
    """A campaign that ended so, with an error of that kind; wide: one that reaches every campaign."""
    error = kind(mp.text("the run was stopped"), wide=wide) if kind else None
    return Mailing(campaign="a", slot=SLOT, state=state, error=error)


SENT, ALREADY, EMPTY = outcome(State.DELIVERED), outcome(State.ALREADY), outcome(State.EMPTY, mp.Empty)
NOT_DUE, READY, HELD = outcome(State.NOT_DUE), outcome(State.READY), outcome(State.HELD, mp.Held)
QUERY, FOLDER = outcome(State.FAILED, mp.DatabaseError), outcome(State.FAILED, mp.DeliveryError)  # of one campaign
DATABASE, SERVER = (outcome(State.FAILED, kind, True) for kind in (mp.DatabaseError, mp.DeliveryError))
DOUBT, BUG = outcome(State.IN_DOUBT, mp.ConnectionLost, True), outcome(State.FAILED, mp.Bug)
FILE, DISK, STOPPED = (outcome(State.FAILED, kind) for kind in (PipelineError, mp.LocalFault, mp.Stopped))
REFUSED = outcome(State.DELIVERED, PipelineError)  # delivered, and the dialer put it into its error folder


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([SENT, SENT], 0),
        ([ALREADY, EMPTY, NOT_DUE], 0),
        ([READY], 0),
        ([SENT, HELD], 4),
        ([HELD], 4),
        ([QUERY], 4),
        ([QUERY, QUERY], 4),
        ([FOLDER], 4),
        ([SENT, QUERY], 4),
        ([SENT, FOLDER, ALREADY], 4),
        ([DATABASE, DATABASE], 5),
        ([SENT, DATABASE], 4),
        ([EMPTY, DATABASE], 4),
        ([SERVER, SERVER], 6),
        ([SERVER, HELD], 6),
        ([SENT, SERVER], 4),
        ([DOUBT], 6),
        ([SENT, DOUBT], 4),
        ([SENT, BUG], 1),
        ([DATABASE, BUG], 1),
        ([FILE], 4),
        ([FILE, SENT], 4),
        ([DISK], 4),
        ([STOPPED, SENT], 4),
        ([REFUSED], 4),
    ],
)
def test_the_exit_code_follows_from_the_outcomes(outcomes: list[Mailing], code: int) -> None:
    assert Report(START, 1.0, tuple(outcomes)).exit_code == code


def test_every_exit_code_has_its_meaning() -> None:
    assert [code.value for code in ExitCode] == list(range(8))
    meanings = [str(code.meaning) for code in ExitCode]
    assert meanings[0] == "everything due was delivered, already delivered, or empty where empty is allowed"
    assert meanings[7] == "manual run outside the hours"
    assert len(set(meanings)) == 8


@pytest.fixture
def mixed(stage: Stage) -> Stage:
    """One campaign of each kind."""
    stage.query("10_enviada", "SELECT telefone, nome FROM contatos UNION ALL SELECT '1', 'x'", phones="telefone")
    stage.query("20_vazia", f"{ONE} WHERE false")
    stage.query("30_retida", ONE, min_rows=5)
    stage.query("40_falha", "SELECT nome2 FROM contatos")
    stage.query("50_depois", ONE, hours="00:00-01:00")
    return stage


def test_the_table_shows_each_campaign_and_below_it_what_to_do(mixed: Stage) -> None:
    result = mixed.main(now=NOON)
    lines = result.stdout.splitlines()
    assert "2026-12-22 12:00" in lines[0]

    def line(name: str) -> str:
        return next(line for line in lines if line.strip().startswith(name + " "))

    assert re.search(r"delivered +3,000 +1 +\d+\.\d kB", line("enviada"))
    assert "empty" in line("vazia") and "held" in line("retida") and "failed" in line("falha")
    assert "not due" in line("depois")
    below = result.stdout[result.stdout.index("retida: held: ") :]
    assert "min_rows 5" in below and "    -> " in below and "nome2" in below
    assert lines[-1] == "exit code 4: some campaigns failed or were held"


def test_the_json_says_the_same(mixed: Stage) -> None:
    result = mixed.deliver(now=NOON)
    report = result.json
    assert (report["slot"], report["exit_code"]) == ("2026-12-22 12:00", 4)
    assert report["meaning"] == "some campaigns failed or were held"
    assert report["start"].startswith("2026-12-22T12:00:0") and report["seconds"] >= 0
    assert list(result.verdicts) == ["enviada", "vazia", "retida", "falha", "depois"]
    sent = result.campaigns["enviada"]
    assert (sent["rows"], sent["rejected"], sent["columns"]) == (3000, 1, 2)
    assert sent["size_bytes"] == len(mixed.mailing("enviada"))
    assert (sent["folder"], sent["file"]) == (f"{mixed.remote_base}/enviada", "mailing_enviada_22-12_12-00.csv")


def test_the_log_has_one_line_for_each_thing_that_is_true(mixed: Stage) -> None:
    mixed.main(now=NOON)
    (path,) = mixed.logs.iterdir()
    assert path.name == "mailing_pipeline_2026-12-22.log"
    log = path.read_text(encoding="utf-8")
    for count, text in ((1, "enviada: delivered"), (1, "vazia: empty"), (1, "retida: held"), (1, "falha: failed")):
        assert log.count(text) == count, text
    assert re.search(r"1 delivered.*exit code 4: some campaigns failed or were held", log)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (INFO|WARNING|ERROR) "
    assert all(re.match(stamp, line) for line in log.splitlines())


def test_the_log_of_a_day_is_continued(stage: Stage) -> None:
    stage.query("10_a", ONE)
    stage.main(now=NOON)
    before = stage.log()
    stage.main(now=NOON.replace(hour=14))
    assert stage.log().startswith(before) and stage.log().count("a: delivered") == 2
    stage.main(now=NOON.replace(day=23))
    assert len(list(stage.logs.iterdir())) == 2


def test_an_error_that_nobody_foresaw_ends_with_1_and_a_traceback_in_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = "11988887777;Ana"

    def broken(*_: object) -> None:
        raise RuntimeError(row)

    monkeypatch.setattr("mailing_pipeline.to_csv", broken)
    stage.query("10_a", ONE)
    result = stage.deliver()
    assert result.exit_code == 1
    assert "RuntimeError" in result.log and "mailing_pipeline.py" in result.log
    assert "developer" in result.campaigns["a"]["hint"]
    assert "11988887777" not in result.said + stage.everything_written()
    assert stage.files("a") == []


def test_a_log_folder_that_cannot_be_used_is_found_before_any_query(stage: Stage) -> None:
    (stage.folder / "logs").write_text("a file")
    stage.query("10_a", ONE)
    result = stage.main()
    assert result.exit_code == 2 and "LOG_DIR" in result.stderr
    assert stage.files("a") == [] and stage.ledger() == []


def test_in_portuguese_the_operator_reads_portuguese_and_the_log_stays_english(mixed: Stage) -> None:
    mixed.settings(LANGUAGE="pt")
    result = mixed.main(now=NOON)
    assert result.exit_code == 4
    for english in ("delivered", "held", "contacts", "exit code", "drop folder"):
        assert english not in result.stdout, english
    assert "entregue" in result.stdout and "código de saída 4" in result.stdout
    assert "enviada: delivered" in result.log


def test_in_portuguese_faults_are_portuguese_too(stage: Stage) -> None:
    stage.settings(LANGUAGE="pt")
    stage.query("10_a", ONE)
    result = stage.main(["--only", "x"])
    assert result.exit_code == 2
    assert "código de saída 2" in result.stderr and "exit code" not in result.stderr
    assert "known" not in result.stderr and "--only x" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The table on narrow and wide terminals
# ---------------------------------------------------------------------------------------------------------------------

LONG_NAMES = [f"campanha_de_cobranca_com_nome_comprido_{number}" for number in range(10, 50)]
STRANGE = "[/x][red]:red_circle:[bold"  # what rich would take for markup and pictures


def printed(outcomes: list[Mailing], width: int, language: str = "en") -> list[str]:
    """The lines of the report on a terminal of that width."""
    file = io.StringIO()
    is_rehearsal = any(mailing.state is State.READY for mailing in outcomes)
    report = Report(START, 1.0, tuple(outcomes), Path("output/dry-run") if is_rehearsal else None)
    mp.print_report(report, Console(file=file, width=width, force_terminal=False), language)
    return file.getvalue().splitlines()


def delivered(name: str, folder: str, **values: Any) -> Mailing:
    usual: dict[str, Any] = {"rows": 1_234_567, "rejected": 1234, "size_bytes": 123_456_789, "seconds": 12.34}
    usual |= {"state": State.DELIVERED, "pickup": mp.Pickup.TAKEN, "picked_up": "12:00:07"}
    usual |= {"slot": SLOT, "folder": PurePosixPath(folder), "file": f"mailing_{name}.csv"}
    return Mailing(campaign=name, **usual | values)


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("state", [State.ALREADY, State.READY])
def test_forty_long_campaigns_stay_readable(width: int, language: str, state: State) -> None:
    """No column is squeezed: a long path stands below the table, whole, and a long name breaks once at the most."""
    folder = "/entrada/" + "pasta_muito_comprida/" * 5
    outcomes = [delivered(name, f"{folder}{name}", state=state) for name in LONG_NAMES]
    lines = printed(outcomes, width, language)
    table = lines[: lines.index("") + 1]
    assert any("───" in line for line in table)
    assert max(map(len, table)) <= width
    assert len(table) <= 5 + 2 * len(LONG_NAMES) and len(lines) <= len(table) + len(LONG_NAMES) + 3
    rows = "1.234.567" if language == "pt" else "1,234,567"
    assert sum(rows in line for line in table) == len(LONG_NAMES)
    for line in lines:
        assert not re.fullmatch(r" *\S{1,2} *", line), line
    for name in LONG_NAMES:
        path = f"{folder}{name}/mailing_{name}.csv" if state is State.READY else f"{folder}{name}"
        assert f"{name}  {path}" in lines


@pytest.mark.parametrize("width", [80, 120])
def test_below_the_table_stands_where_each_mailing_went(width: int) -> None:
    lines = printed([delivered("preventivo", "/entrada/preventivo")], width)
    table, path = [line for line in lines if "preventivo" in line]
    assert path == "preventivo  /entrada/preventivo"
    assert table.split() == [*("preventivo", "delivered", "1,234,567", "1,234", "123.5", "MB", "12.3")]


@pytest.mark.parametrize("width", [80, 120])
def test_brackets_and_colons_are_no_markup(width: int) -> None:
    outcome = delivered("a", f"/entrada/{STRANGE}", state=State.HELD, message=STRANGE, hint=STRANGE)
    lines = printed([outcome], width)
    assert any(line.rstrip().endswith(f"/entrada/{STRANGE}") for line in lines)
    assert f"a: held: {STRANGE}" in lines and f"    -> {STRANGE}" in lines


def test_a_folder_with_brackets_does_not_end_a_run(stage: Stage) -> None:
    folder = f"{stage.remote_base}/[/x]"
    stage.make_drop("a", "[/x]")
    stage.query("10_a", ONE, drop=False, folder=folder)
    result = stage.main(now=NOON)
    assert (result.exit_code, len(stage.files("a"))) == (0, 1)
    assert folder in result.stdout


def test_a_problem_of_several_campaigns_is_told_once() -> None:
    held = [delivered(name, "/", state=State.HELD, message="too few", hint="look") for name in ("a", "b")]
    assert printed([*held, delivered("c", "/")], 80)[-3:-1] == ["a, b: held: too few", "    -> look"]


@pytest.mark.parametrize(
    ("count", "english", "portuguese"),
    [
        (0, "0 contacts", "0 contatos"),
        (1, "1 contact", "1 contato"),
        (2, "2 contacts", "2 contatos"),
        (4812, "4,812 contacts", "4.812 contatos"),
    ],
)
def test_contacts_are_counted_as_people_count(count: int, english: str, portuguese: str) -> None:
    assert (mp.contacts(count).told("en"), mp.contacts(count).told("pt")) == (english, portuguese)


@pytest.mark.parametrize(
    ("size_bytes", "told"),
    [
        *((0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1536, "1.5 kB"), (999_949, "999.9 kB")),
        *((123_456_789, "123.5 MB"), (2_500_000_000, "2.5 GB")),
    ],
)
def test_sizes_are_told_as_people_tell_them(size_bytes: int, told: str) -> None:
    assert mp.human_size(size_bytes, "en") == told
    assert mp.human_size(size_bytes, "pt") == told.replace(".", ",")


# ---------------------------------------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------------------------------------


def campaign(name: str, state: State = State.CLAIMED, gone_s: float | None = None, **values: Any) -> Mailing:
    """A campaign that a worker took that long ago; None: it waits."""
    return Mailing(campaign=name, slot=SLOT, state=state, began_s=10_000 - gone_s if gone_s else 0.0, **values)


def watched(mailings: list[Mailing], width: int = 80, language: str = "en") -> list[str]:
    """The lines of the progress on a terminal of that width."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=False)
    console.print(mp.progress_table(mailings, 10_000, language))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_progress_shows_what_each_campaign_is_at_and_the_time_gone() -> None:
    exported: dict[str, Any] = {"state": State.EXPORTED, "size_bytes": 3_200_000, "rows": 1}
    mailings = [
        campaign("a", State.DELIVERED, 12.0, size_bytes=3_200_000, sent_bytes=3_200_000),
        campaign("b", gone_s=61.9, **exported, sent_bytes=1_500_000),
        campaign("c", gone_s=9.2, rows=1),
        campaign("d", gone_s=3600.0),
        campaign("e"),
        campaign("f", gone_s=75.0, **exported),
    ]
    assert watched(mailings) == [
        "b 1:01 sending 1.5 MB of 3.2 MB",
        "c 0:09 reading, 1 contact",
        "d 60:00 the query is running",
        "f 1:15 ready",
        "a delivered",
        "e waiting",
    ]
    assert watched(mailings[2:4], language="pt") == ["c 0:09 lendo, 1 contato", "d 60:00 consulta em execução"]


def test_on_a_low_terminal_progress_shows_those_at_work_first() -> None:
    over = [campaign(name, State.DELIVERED, 9.0) for name in LONG_NAMES[:20]]
    work = [campaign(name, gone_s=5.0, rows=4812) for name in LONG_NAMES[20:24]]
    lines = watched([*over, *work, *(campaign(name) for name in LONG_NAMES[24:])])
    assert lines[:4] == [f"{name} 0:05 reading, 4,812 contacts" for name in LONG_NAMES[20:24]]


def test_a_terminal_shows_the_rows_of_a_slow_query_while_it_runs() -> None:
    clock = mp.Clock()
    mailing = Mailing(campaign="a", slot=SLOT, state=State.CLAIMED, rows=1, began_s=clock.steady_s() - 75)
    file = io.StringIO()
    console = Console(file=file, width=80, height=25, force_terminal=True)
    with mp.live_progress(console, [mailing], "en", clock):
        time.sleep(0.3)
    assert re.search(r"a +1:15 +reading, 1 contact\b", file.getvalue())
