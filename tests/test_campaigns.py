"""queries/NN_campaign.sql: the directives, the statements, and what is wrong with a file, before any query runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from stage import Stage

from mailing_pipeline import (
    DIRECTIVES,
    Campaign,
    Settings,
    SettingsFault,
    choose,
    free_file_name,
    load_campaigns,
    load_settings,
    parse_campaign,
    render_file_name,
    split_statements,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_settings(tmp_path)


def with_settings(folder: Path, text: str = "SFTP_BASE_DIR=/entrada\n") -> Settings:
    (folder / "config.env").write_text(text)
    return load_settings(folder / "config.env", {}, sends=False, knows_host=False)


def faults(text: str, settings: Settings, source: str = "10_a.sql") -> list[str]:
    """What is wrong with a query file."""
    with pytest.raises(SettingsFault) as caught:
        parse_campaign(source, text, settings)
    return list(caught.value.faults)


# ---------------------------------------------------------------------------------------------------------------------
# Directives
# ---------------------------------------------------------------------------------------------------------------------

# directive -> a text, how the campaign shows what it means, and a text that is a fault
TABLE: dict[str, tuple[str, Any, str]] = {
    "campaign": ("outra_2", lambda c: c.name == "outra_2", "Outra"),
    "folder": ("/x/Y z", lambda c: c.folder == PurePosixPath("/x/Y z"), "/x/../y"),
    "columns": ("a; b,c", lambda c: c.columns == ("a", "b", "c"), "a;;b"),
    "phones": ("tel, tel_2", lambda c: c.phones == ("tel", "tel_2"), "tel,"),
    "unique": ("cpf;contrato", lambda c: c.unique == ("cpf", "contrato"), ";cpf"),
    "min_rows": ("50", lambda c: c.min_rows == 50, "50%"),
    "max_rows": ("200000", lambda c: c.max_rows == 200_000, "200,000"),
    "max_drop": ("70%", lambda c: c.max_drop == 70, "0.7"),
    "hours": ("09:00-18:00", lambda c: c.hours.starts == (time(9), time(18)), "9-18"),
    "days": ("mon-fri", lambda c: c.hours.days == frozenset(range(5)), "seg"),
    "timeout": ("300", lambda c: c.timeout_s == 300, "0"),
    "delimiter": ("|", lambda c: c.csv.delimiter == "|", "||"),
    "encoding": ("cp1252", lambda c: c.csv.encoding == "cp1252", "ascii"),
    "header": ("no", lambda c: c.csv.header is False, "none"),
    "newline": ("lf", lambda c: c.csv.newline == "\n", "unix"),
    "file_name": ("x_{campaign}_%H.txt", lambda c: c.file_name == "x_{campaign}_%H.txt", "x/{campaign}"),
    "read_only": ("no", lambda c: c.read_only is False, "off"),
    "enabled": ("no", lambda c: c.enabled is False, "0"),
    "pickup": ("30", lambda c: c.pickup_s == 30, "30 s"),
    "pickup_error_folder": ("/erros", lambda c: c.pickup_error_folder == PurePosixPath("/erros"), "/a/../b"),
}


def test_the_table_of_this_test_has_every_directive() -> None:
    assert list(TABLE) == list(DIRECTIVES)


@pytest.mark.parametrize("key", TABLE)
def test_a_directive_is_read(key: str, settings: Settings) -> None:
    text, holds, _ = TABLE[key]
    assert holds(parse_campaign("10_a.sql", f"-- {key}: {text}\nSELECT 1 AS a", settings))


@pytest.mark.parametrize("key", TABLE)
def test_a_directive_differs_from_its_default(key: str, settings: Settings) -> None:
    assert not TABLE[key][1](parse_campaign("10_a.sql", "SELECT 1 AS a", settings))


@pytest.mark.parametrize("key", TABLE)
def test_a_bad_directive_is_a_fault_with_file_line_and_key(key: str, settings: Settings) -> None:
    (fault,) = faults(f"-- a comment\n-- {key}: {TABLE[key][2]}\nSELECT 1 AS a", settings)
    assert fault.startswith(f"10_a.sql: line 2: {key}: ")


@pytest.mark.parametrize("key", TABLE)
def test_a_directive_without_a_value_is_a_fault(key: str, settings: Settings) -> None:
    (fault,) = faults(f"-- {key}:\nSELECT 1 AS a", settings)
    assert fault.startswith(f"10_a.sql: line 1: {key}: ")


@pytest.mark.parametrize("key", TABLE)
def test_a_directive_given_twice_is_a_fault(key: str, settings: Settings) -> None:
    text = TABLE[key][0]
    (fault,) = faults(f"-- {key}: {text}\n-- {key}: {text}\nSELECT 1 AS a", settings)
    assert fault == f"10_a.sql: line 2: {key}: given twice"


def test_without_directives_the_settings_hold(tmp_path: Path) -> None:
    text = "SFTP_BASE_DIR=/in\nCSV_DELIMITER=','\nCSV_ENCODING=latin-1\nCSV_HEADER=no\nCSV_NEWLINE=lf\n"
    text += "FILE_NAME={campaign}-%H.csv\nQUERY_TIMEOUT_SECONDS=7\nRUN_DAYS=tue\nRUN_HOURS=10:00-11:00\n"
    campaign = parse_campaign("007_a_b.sql", "SELECT 1 AS a", with_settings(tmp_path, text))
    assert (campaign.name, campaign.folder) == ("a_b", PurePosixPath("/in/a_b"))
    form = campaign.csv
    assert (form.delimiter, form.encoding, form.header, form.newline) == (",", "latin-1", False, "\n")
    assert (campaign.file_name, campaign.timeout_s) == ("{campaign}-%H.csv", 7)
    assert campaign.hours.days == {1} and campaign.hours.starts == (time(10), time(11))
    assert (campaign.columns, campaign.min_rows, campaign.max_rows, campaign.max_drop) == (None, None, None, None)
    assert campaign.read_only and campaign.enabled and not campaign.phones and not campaign.unique


@pytest.mark.parametrize(
    "line",
    [
        "--min_rows:5",
        "--  min_rows :  5  ",
        "   -- min_rows: 5",
        "-- MIN_ROWS: 5",
        "\t--\tmin_rows:\t5",
        "-- min_rows: 5\r",
    ],
)
def test_a_directive_may_be_spaced_freely(line: str, settings: Settings) -> None:
    assert parse_campaign("10_a.sql", f"{line}\nSELECT 1 AS a", settings).min_rows == 5


@pytest.mark.parametrize(
    ("line", "meant"),
    [("-- min_row: 5", "min_rows"), ("-- colums: a", "columns"), ("-- max-drop: 5%", "max_drop"), ("-- fone: a", None)],
)
def test_a_misspelt_directive_is_a_fault_and_another_comment_is_not(
    line: str, meant: str | None, settings: Settings
) -> None:
    text = f"{line}\nSELECT 1 AS a"
    if meant:
        assert faults(text, settings) == [
            f"10_a.sql: line 1: {line[3:].partition(':')[0]}: unknown; did you mean {meant}?"
        ]
    else:
        parse_campaign("10_a.sql", text, settings)


@pytest.mark.parametrize(
    "comment",
    ["-- Owner: Ana, since 2024: all overdue", "-- see https://wiki.example/x", "-- valor::text", "--", "-- no"],
)
def test_an_ordinary_comment_is_left_alone(comment: str, settings: Settings) -> None:
    plain = parse_campaign("10_a.sql", "\n\n\nSELECT 1 AS a", settings)
    found = parse_campaign("10_a.sql", f"{comment}\n\n{comment}\nSELECT 1 AS a -- {comment}\n{comment}", settings)
    assert (found.select.line, found.select.words) == (plain.select.line, plain.select.words)
    assert replace(found, select=plain.select) == plain


def test_a_directive_below_the_sql_is_a_fault(settings: Settings) -> None:
    (fault,) = faults("SELECT 1 AS a\n-- min_rows: 5", settings)
    assert fault.startswith("10_a.sql: line 2: min_rows: must stand above")


def test_a_comment_like_a_directive_inside_the_sql_is_left_alone(settings: Settings) -> None:
    found = parse_campaign("10_a.sql", "SELECT 'x\n-- note: 5\n' AS a", settings)
    assert found.select.text == "SELECT 'x\n-- note: 5\n' AS a"


def test_phones_and_unique_must_be_among_the_columns(settings: Settings) -> None:
    found = faults("-- columns: a;b\n-- phones: c\n-- unique: a, d\nSELECT 1 AS a, 2 AS b", settings)
    assert found == ["10_a.sql: phones: c is not one of columns:", "10_a.sql: unique: d is not one of columns:"]


def test_every_fault_of_every_file_is_reported_at_once(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "10_a.sql").write_text("-- min_rows: x\n-- max_rows: y\nSELECT 1; COMMIT")
    (tmp_path / "20_B.sql").write_text("SELECT 1 AS a")
    (tmp_path / "30_c.sql").write_bytes("SELECT 1 AS a;\nSELECT 'não' AS b".encode("latin-1"))
    (tmp_path / "40_d.sql").write_text("SELECT 1 AS a")
    (tmp_path / "50_d.sql").write_text("SELECT 1 AS a")
    with pytest.raises(SettingsFault) as caught:
        load_campaigns(tmp_path, settings)
    found = "\n".join(caught.value.faults)
    for told in (
        "10_a.sql: line 1",
        "10_a.sql: line 2",
        "10_a.sql: line 3",
        "20_B.sql: ",
        "30_c.sql: line 2: not UTF-8",
    ):
        assert told in found
    assert "50_d.sql: the name d is used by 40_d.sql" in found


# ---------------------------------------------------------------------------------------------------------------------
# Names, folders, order
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["10_Cobranca.sql", "10_cobrança.sql", "10_a-b.sql", "10_.sql", "10_a b.sql", "10_a.b.sql"]
)
def test_a_file_name_that_makes_no_campaign_is_a_fault(name: str, settings: Settings) -> None:
    (fault,) = faults("SELECT 1 AS a", settings, name)
    assert fault.startswith(f"{name}: ") and "-- campaign:" in fault
    assert parse_campaign(name, "-- campaign: nova\nSELECT 1 AS a", settings).name == "nova"


@pytest.mark.parametrize("folder", ["/a/../b", "..", "a\\b", "\\\\server\\x", "/a\x07b"])
def test_a_folder_upwards_or_with_a_backslash_is_a_fault(folder: str, settings: Settings) -> None:
    (fault,) = faults(f"-- folder: {folder}\nSELECT 1 AS a", settings)
    assert fault.startswith("10_a.sql: line 1: folder: ")


def test_two_campaigns_with_one_folder_are_a_fault(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "10_a.sql").write_text("SELECT 1 AS a")
    (tmp_path / "20_b.sql").write_text("-- folder: /Entrada/A/\nSELECT 1 AS a")
    with pytest.raises(SettingsFault, match=r"20_b\.sql: the folder .* is used by 10_a\.sql"):
        load_campaigns(tmp_path, settings)


def test_a_drop_folder_that_is_the_staging_folder_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "10_a.sql").write_text("SELECT 1 AS a")
    with pytest.raises(SettingsFault, match=r"10_a\.sql: .*SFTP_STAGING_DIR"):
        load_campaigns(tmp_path, with_settings(tmp_path, "SFTP_STAGING_DIR=/a\n"))


def test_campaigns_come_in_the_order_of_their_files_without_those_switched_off(
    tmp_path: Path, settings: Settings
) -> None:
    for name, text in {
        "20_b": "",
        "10_z": "",
        "30_a": "",
        "15_off": "-- enabled: no\n",
        "16_z": "-- enabled: no\n",
    }.items():
        (tmp_path / f"{name}.sql").write_text(f"{text}SELECT 1 AS a")
    (tmp_path / "notes.txt").write_text("not a query")
    assert [campaign.name for campaign in load_campaigns(tmp_path, settings)] == ["z", "b", "a"]


def test_a_folder_without_queries_is_a_fault(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(SettingsFault, match="QUERIES_DIR"):
        load_campaigns(tmp_path / "nowhere", settings)


def test_an_unknown_name_for_only_lists_the_known_ones(settings: Settings) -> None:
    campaigns = [parse_campaign(f"{name}.sql", "SELECT 1 AS a", settings) for name in ("a", "b")]
    assert [c.name for c in choose(campaigns, ["b"])] == ["b"]
    assert [c.name for c in choose(campaigns, ["b", "a"])] == ["a", "b"]
    assert choose(campaigns, []) == campaigns
    with pytest.raises(SettingsFault, match=r"x.*known: a, b"):
        choose(campaigns, ["a", "x"])


def test_final_names_hold_campaign_and_start_of_the_run() -> None:
    start = datetime(2026, 12, 22, 10, 7)
    assert (
        render_file_name("mailing_{campaign}_%d-%m_%H-%M.csv", "alto_valor", start)
        == "mailing_alto_valor_22-12_10-07.csv"
    )


def test_a_name_that_was_used_gets_a_number() -> None:
    used = {"a.csv", "a-2.csv", "b", "c.d.csv"}
    assert free_file_name("new.csv", used.__contains__) == "new.csv"
    assert free_file_name("a.csv", used.__contains__) == "a-3.csv"
    assert free_file_name("b", used.__contains__) == "b-2"
    assert free_file_name("c.d.csv", used.__contains__) == "c.d-2.csv"


# ---------------------------------------------------------------------------------------------------------------------
# Statements
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1;", ["SELECT 1"]),
        ("SELECT 1 ; \n\n ; -- end; here\n /* or ; here */ ;", ["SELECT 1"]),
        ("SET a = 1; SELECT 2", ["SET a = 1", "SELECT 2"]),
        ("SELECT ';' AS a; SELECT ';'';' AS b", ["SELECT ';' AS a", "SELECT ';'';' AS b"]),
        (r"SELECT E'\';' AS a; SELECT 2", [r"SELECT E'\';' AS a", "SELECT 2"]),
        (r"SELECT 'C:\'; SELECT 2", [r"SELECT 'C:\'", "SELECT 2"]),
        (r"SELECT case'\' ; SELECT 2", [r"SELECT case'\'", "SELECT 2"]),
        ('SELECT 1 AS ";"";"; SELECT 2', ['SELECT 1 AS ";"";"', "SELECT 2"]),
        ("SELECT $$;'$$; SELECT 2", ["SELECT $$;'$$", "SELECT 2"]),
        ("SELECT $fn$;$$;$fn$; SELECT 2", ["SELECT $fn$;$$;$fn$", "SELECT 2"]),
        ("SELECT a$1 FROM t$x; SELECT $1", ["SELECT a$1 FROM t$x", "SELECT $1"]),
        ("SELECT $1$2; SELECT 2", ["SELECT $1$2", "SELECT 2"]),
        ("SELECT 1 -- it's; fine\n; SELECT 2", ["SELECT 1 -- it's; fine", "SELECT 2"]),
        ("SELECT /* a /* b; */ ; */ 1; SELECT 2", ["SELECT /* a /* b; */ ; */ 1", "SELECT 2"]),
        ("SELECT 1 - -1 / 2 * 3", ["SELECT 1 - -1 / 2 * 3"]),
        ("SELECT 'a' 'b;' AS é; SELECT 2", ["SELECT 'a' 'b;' AS é", "SELECT 2"]),
        ("-- only; a comment", []),
        ("", []),
    ],
)
def test_a_file_is_split_where_postgres_would_split_it(text: str, statements: list[str]) -> None:
    assert [statement.text.strip() for statement in split_statements(text)] == statements


def test_a_statement_knows_its_line() -> None:
    found = split_statements("-- note\nSET a = 1;\n\n/* two\nlines */ SELECT 'x\ny';\r\n  SELECT 3")
    assert [statement.line for statement in found] == [2, 5, 7]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\nSELECT 'open", 2),
        ('SELECT 1 AS "open', 1),
        ("SELECT\n\n$x$ open $$", 3),
        ("SELECT E'open\\'", 1),
        ("SELECT 1 /* open /* */", 1),
        ("SELECT 1\n\\gexec", 2),
    ],
)
def test_what_does_not_end_is_a_fault_with_its_line(text: str, line: int, settings: Settings) -> None:
    (fault,) = faults(text, settings)
    assert fault.startswith(f"10_a.sql: line {line}: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no SQL statement"),
        ("-- columns: a\n/* nothing */ ;", "no SQL statement"),
        ("SELECT 1;\nCREATE TEMP TABLE x (a int)", "line 2: CREATE: the last statement must return"),
        ("UPDATE x SET a = 1", "line 1: UPDATE: the last statement must return"),
        ("SET work_mem = '1GB'", "the last statement must return"),
        ("COPY x TO STDOUT", "line 1: COPY"),
        ("SELECT 1;\ncopy (SELECT 1) to stdout", "line 2: COPY"),
        ("SELECT 1;\nCOMMIT;\nSELECT 2", "line 2: COMMIT"),
        ("SELECT 1; commit work; SELECT 2", "COMMIT"),
        ("ROLLBACK; SELECT 2", "ROLLBACK"),
        ("END; SELECT 2", "END"),
        ("ABORT; SELECT 2", "ABORT"),
        ("BEGIN; SELECT 2", "BEGIN"),
        ("START TRANSACTION; SELECT 2", "START"),
        ("PREPARE TRANSACTION 'x'; SELECT 2", "PREPARE"),
        ("SELECT 1; COMMIT AND CHAIN; SELECT 2", "COMMIT"),
        ("SELECT 1; ROLLBACK PREPARED 'TO'; SELECT 2", "ROLLBACK"),
    ],
)
def test_a_file_that_is_no_mailing_query_is_a_fault(text: str, told: str, settings: Settings) -> None:
    assert any(told in fault for fault in faults(text, settings))


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 AS a",
        "select 1 as a",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "VALUES (1)",
        "TABLE contatos",
        "(SELECT 1 AS a) UNION (SELECT 2)",
        "((VALUES (1)))",
        "UPDATE x SET a = 1 RETURNING a",
        "SET LOCAL work_mem = '64MB'; SELECT 1 AS a",
        "SAVEPOINT x; ROLLBACK TO SAVEPOINT x; SELECT 1 AS a",
        "SELECT 'COMMIT; COPY' AS a -- ROLLBACK",
        "DO $$ BEGIN PERFORM 1; END $$; SELECT 1 AS a",
    ],
)
def test_a_mailing_query_may_be_any_of_these(text: str, settings: Settings) -> None:
    assert isinstance(parse_campaign("10_a.sql", text, settings), Campaign)


def test_faults_in_queries_end_with_2_before_any_query_runs(stage: Stage) -> None:
    stage.query("10_a", "INSERT INTO escrita VALUES ('ran') RETURNING nota", read_only="no")
    stage.query("20_b", "SELECT 1 AS a;\nCOMMIT")
    stage.query("30_c", "SELECT 1 AS a", mim_rows=3)
    result = stage.run()
    assert result.exit_code == 2
    assert "20_b.sql: line 2: COMMIT" in result.stderr
    assert "30_c.sql: line 1: mim_rows: unknown; did you mean min_rows?" in result.stderr
    assert not stage.files("a") and not stage.ledger()
    with stage.database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM escrita WHERE nota = 'ran'").fetchone() == (0,)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff-- columns: a\r\nSELECT 'á'\r\n  AS a;\r\n-- end\r\n",
        "-- columns: a\nSELECT 'á' AS a; -- trailing",
        "-- columns: a\nSELECT 'á' AS a -- trailing, without semicolon",
        "-- columns: a\nSET LOCAL work_mem = '8MB'; SELECT 'á' AS a WHERE 'x%%' LIKE '%x%%';;",
        "-- columns: a\n(SELECT 'á' AS a)",
        "-- columns: a\nWITH v (a) AS (VALUES ('á')) TABLE v",
    ],
    ids=["BOM and CRLF", "trailing comment", "comment at the end", "percent", "parentheses", "with and table"],
)
def test_these_ways_to_write_a_query_all_work(stage: Stage, text: str) -> None:
    path = stage.query("10_a", "")
    path.write_bytes(text.encode())
    assert stage.deliver().verdicts == {"a": "delivered"}
    assert stage.cells("a") == [["a"], ["á"]]
