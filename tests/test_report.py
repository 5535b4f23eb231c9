"""The outcome of a run: exit code, table, JSON, log."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from stage import NOON, Stage

from mailing_pipeline import ExitCode, Outcome, Report, Verdict

ONE = "SELECT 1 AS n"
D, S, P = ExitCode.DATABASE, ExitCode.SFTP, ExitCode.PARTIAL


def outcome(verdict: Verdict, code: ExitCode = ExitCode.OK, stage: bool = False) -> Outcome:
    return Outcome(campaign="a", verdict=verdict, exit_code=code, stage=stage)


SENT, ALREADY, EMPTY = (outcome(verdict) for verdict in (Verdict.DELIVERED, Verdict.ALREADY, Verdict.EMPTY))
NOT_DUE, READY, HELD = outcome(Verdict.NOT_DUE), outcome(Verdict.READY), outcome(Verdict.HELD, P)
QUERY, FOLDER = outcome(Verdict.FAILED, D), outcome(Verdict.FAILED, S)  # one campaign's own failure
DATABASE, SERVER = outcome(Verdict.FAILED, D, True), outcome(Verdict.FAILED, S, True)  # the whole stage
UNKNOWN, BUG = outcome(Verdict.UNKNOWN, S, True), outcome(Verdict.FAILED, ExitCode.BUG)


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
        ([UNKNOWN], 6),
        ([SENT, UNKNOWN], 4),
        ([SENT, BUG], 1),
        ([DATABASE, BUG], 1),
    ],
)
def test_the_exit_code_follows_from_the_outcomes(outcomes: list[Outcome], code: int) -> None:
    assert Report("2026-12-22 12:00", datetime(2026, 12, 22, 12).astimezone(), 1.0, tuple(outcomes)).exit_code == code


def test_every_exit_code_has_its_meaning() -> None:
    assert [code.value for code in ExitCode] == list(range(8))
    assert ExitCode.OK.meaning == "everything due was delivered, already delivered, or empty where empty is allowed"
    assert ExitCode.OUTSIDE_HOURS.meaning == "manual run outside the hours"
    assert len({code.meaning for code in ExitCode}) == 8


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

    assert re.search(r"delivered +3,000 +1 +\d+\.\d KB", line("enviada"))
    assert "empty" in line("vazia") and "held" in line("retida") and "failed" in line("falha")
    assert "not due" in line("depois")
    below = result.stdout[result.stdout.index("retida: held: ") :]
    assert "min_rows 5" in below and "    -> " in below and "nome2" in below
    assert lines[-1] == "exit code 4: some campaigns failed or were held"


def test_the_json_says_the_same(mixed: Stage) -> None:
    result = mixed.deliver(now=NOON)
    report = result.json
    assert (report["slot"], report["exit_code"]) == ("2026-12-22 12:00", 4)
    assert report["meaning"] == ExitCode.PARTIAL.meaning
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
