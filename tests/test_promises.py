"""The promises of the program's docstring, one test each: the program runs as a process, the dialer is the judge."""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import timedelta
from typing import Any

from stage import NOON, FakeClock, Stage

import mailing_pipeline

PHONE, CPF, PASSWORD = "11987654321", "12345678901", "s3cret-Canary"
ONE = "SELECT 1 AS n"


def test_promise_1_each_campaign_and_slot_reaches_the_dialer_at_most_once_complete_in_its_folder_in_its_hours(
    stage: Stage,
) -> None:
    names = ("cobranca_30d", "preventivo", "alto_valor")
    for number, name in enumerate(names, 1):
        stage.query(f"{number}0_{name}", f"SELECT telefone, '{name}' AS campanha FROM contatos WHERE id % 3 < {number}")
    stage.query("90_cedo", ONE, hours="00:00-01:00")
    with stage.dialer() as dialer:
        for minutes in (0, 1, 59, 60):  # three times in the slot of noon, once in the next
            clock = FakeClock(NOON + timedelta(minutes=minutes), frozen=True, naps=False)
            assert stage.deliver(clock=clock).exit_code == 0
        arrivals = dialer.record
    assert Counter(arrival.campaign for arrival in arrivals) == dict.fromkeys(names, 2)
    noted = {(entry["campaign"], entry["file"]): entry["sha256"] for entry in stage.ledger()}
    assert {(arrival.campaign, arrival.name): arrival.sha256 for arrival in arrivals} == noted
    for arrival in arrivals:
        lines = arrival.path.read_text().splitlines()
        assert len(lines) == 1 + 1000 * (1 + names.index(arrival.campaign))
        assert all(line.endswith(f";{arrival.campaign}") for line in lines[1:])


def test_promise_2_a_file_is_uploaded_under_a_temp_name_checked_and_renamed_and_nothing_is_overwritten(
    stage: Stage,
) -> None:
    stage.query("10_a", "SELECT telefone, nome, cpf FROM contatos")
    stage.query("20_b", ONE)
    theirs = stage.drop("b") / "mailing_b_22-12_12-00.csv"
    theirs.write_text("theirs")
    with stage.dialer(pattern="*", take=False) as dialer:
        assert stage.deliver(now=NOON).verdicts == {"a": "delivered", "b": "held"}
        seen = [arrival for arrival in dialer.record if arrival.campaign == "a"]
    assert [re.sub("[0-9a-f]{8}$", "*", arrival.name) for arrival in seen] == [".part-*", "mailing_a_22-12_12-00.csv"]
    assert seen[1].sha256 == stage.ledger()[0]["sha256"], "whole at the first instant"
    assert theirs.read_text() == "theirs" and stage.files("b") == [theirs.name]


def test_promise_3_after_a_kill_at_any_moment_the_next_run_settles_and_nothing_is_sent_twice(stage: Stage) -> None:
    """A few moments here; tests/test_random_kills.py has hundreds."""
    stage.query("10_a", "SELECT telefone, nome FROM contatos")
    stage.query("20_b", "SELECT telefone, nome, cpf FROM contatos")
    with stage.dialer() as dialer:
        for number, moment_s in enumerate((0.6, 0.8, 1.0, 1.2)):
            process = stage.start("--resend") if number else stage.start()
            time.sleep(moment_s)
            process.kill()
            process.wait()
            assert stage.deliver(now=None).exit_code == 0
        arrivals = dialer.record
    names = Counter((arrival.campaign, arrival.name) for arrival in arrivals)
    assert set(names.values()) == {1}
    sent = {(entry["campaign"], entry["file"]) for entry in stage.ledger() if entry["state"] == "delivered"}
    assert set(names) == sent, "the ledger knows of every file that arrived, and of no other"
    whole = {entry["sha256"] for entry in stage.ledger() if entry["state"] == "delivered"}
    assert {arrival.sha256 for arrival in arrivals} == whole
    assert stage.files("a") == stage.files("b") == []
    once = Counter((e["campaign"], e["slot"]) for e in stage.ledger() if e["state"] == "delivered" and not e["resend"])
    assert set(once.values()) == {1}


def test_promise_4_every_value_is_the_text_that_postgres_wrote(stage: Stage) -> None:
    stage.query(
        "10_a",
        "SELECT '011999887766' AS t, NULL::bigint AS n, 12345678901234567890 AS id, 1.10 AS v,"
        " '0044-03-15 BC'::date AS d, 'NaN'::float8 AS f, 'NA' AS nome",
    )
    assert stage.run().exit_code == 0
    assert stage.mailing("a") == (
        b"t;n;id;v;d;f;nome\r\n011999887766;;12345678901234567890;1.10;0044-03-15 BC;NaN;NA\r\n"
    )


def test_promise_5_an_empty_collapsed_exploded_or_reshaped_mailing_is_held_and_said_so(stage: Stage) -> None:
    queries: dict[str, dict[str, Any]] = {
        "vazio": {"min_rows": 1},
        "caido": {"max_drop": "50%"},
        "explodido": {"max_rows": 2000},
        "mudado": {"columns": "telefone;nome"},
    }
    for number, (name, directives) in enumerate(queries.items(), 1):
        stage.query(f"{number}0_{name}", "SELECT telefone, nome FROM contatos LIMIT 1000", **directives)
    assert stage.deliver(now=NOON).exit_code == 0
    rest = {"vazio": "LIMIT 0", "caido": "LIMIT 100", "explodido": "LIMIT 3000"}
    for number, (name, directives) in enumerate(queries.items(), 1):
        columns = "telefone, cpf" if name == "mudado" else "telefone, nome"
        stage.query(f"{number}0_{name}", f"SELECT {columns} FROM contatos {rest.get(name, '')}", **directives)
    with stage.dialer(take=False) as dialer:
        before = len(dialer.record)
        result = stage.deliver(now=NOON + timedelta(hours=1))
        assert len(dialer.record) == before
    assert result.exit_code == 4 and result.verdicts == dict.fromkeys(queries, "held")
    for name, told in {"vazio": "min_rows", "caido": "max_drop", "explodido": "max_rows", "mudado": "columns"}.items():
        assert told in result.campaigns[name]["message"] and result.campaigns[name]["hint"]
        assert f"{name}: held" in result.log


def test_promise_6_one_campaigns_failure_never_stops_the_others_and_one_run_is_active_at_a_time(stage: Stage) -> None:
    stage.query("10_quebrada", "SELECT nothing")
    stage.query("20_sem_pasta", ONE, drop=False)
    stage.query("30_lenta", "SELECT 1 AS n, pg_sleep(1.5) AS s")
    stage.query("40_boa", ONE)
    with stage.dialer() as dialer:
        runs = [stage.start("--json") for _ in range(3)]
        results = [stage.end(process) for process in runs]
        arrived = Counter(arrival.campaign for arrival in dialer.record)
    codes = sorted(result.exit_code for result in results)
    assert codes[-1] == 4 and set(codes) <= {3, 4} and 3 in codes
    slots = {entry["slot"] for entry in stage.ledger()}
    assert arrived == {"lenta": len(slots), "boa": len(slots)}


def test_promise_7_no_password_phone_cpf_or_row_appears_in_a_log_or_message(stage: Stage) -> None:
    row = f"SELECT '{PHONE}' AS telefone, '{CPF}' AS cpf, 'Maria Fictícia' AS nome"
    stage.query("10_boa", row, phones="telefone", unique="cpf")
    stage.query("20_texto", f"SELECT (telefone || 'x')::bigint AS n FROM ({row}) AS x")
    stage.query("30_chave", f"SELECT telefone::int AS n FROM ({row}) AS x")
    stage.query("40_rejeitada", f"SELECT 'x{PHONE}9' AS telefone, '{CPF}' AS cpf", phones="telefone", min_rows=1)
    stage.query("50_literal", f"SELECT '{PHONE}' + '{CPF}x'")
    stage.query("60_erro", f"DO $$ BEGIN RAISE EXCEPTION 'row: {PHONE} {CPF} Maria Fictícia'; END $$; {ONE}")
    stage.query("70_data", f"SELECT to_date('{CPF}', 'YYYY-MM-DD') AS d, '{PHONE}'::date AS e")
    wrong_login = {"SFTP_PASSWORD": PASSWORD, "SFTP_KEY_FILE": None}
    for values in ({}, {"PGPASSWORD": PASSWORD}, wrong_login, {"RUN_DAYS": PASSWORD}):
        stage.settings(**{key: value for key, value in values.items() if value or key in stage.values})
        for options in (["--resend"], ["--dry-run"], ["--check"], ["--status"]):
            result = stage.main(options)
            told = result.said + stage.everything_written()
            for secret in (PHONE, CPF, PASSWORD, "Maria"):
                assert secret not in told, (values, options, secret)


def test_every_promise_of_the_docstring_has_its_test() -> None:
    promises = (mailing_pipeline.__doc__ or "").partition("Promises")[2].partition("Exit codes")[0]
    numbers = re.findall(r"(?m)^    (\d)\. ", promises)
    tests = [name for name in globals() if name.startswith("test_promise_")]
    assert numbers and [name.split("_")[2] for name in tests] == numbers
