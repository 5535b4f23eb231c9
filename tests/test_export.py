"""Query to CSV: what the server wrote is what the dialer reads, to the byte."""

from __future__ import annotations

import csv
import io
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stage import NOON, Result, Stage

import mailing_pipeline
from mailing_pipeline import (
    CsvFormat,
    Treatment,
    clean_phones,
    encoded,
    parse_campaign,
    parse_settings,
    tidy_name,
    to_csv,
    to_frame,
)

FINAL = "mailing_a_22-12_12-00.csv"


def export(stage: Stage, sql: str, **directives: Any) -> bytes:
    """The bytes that the dialer gets for a query."""
    stage.query("10_a", sql, **directives)
    result = stage.deliver(now=NOON)
    assert result.verdicts == {"a": "delivered"}, result.said
    found = stage.mailing("a")
    assert found == (stage.output / FINAL).read_bytes()  # the local copy
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few rows are a block of their own."""
    monkeypatch.setattr(mailing_pipeline, "BLOCK_BYTES", 100)


def copy_of_rejected(stage: Stage) -> list[list[str]]:
    text = (stage.output / "mailing_a_22-12_12-00_rejected.csv").read_bytes().decode()
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=";"))


# ---------------------------------------------------------------------------------------------------------------------
# Golden bytes
# ---------------------------------------------------------------------------------------------------------------------

GOLDEN_SQL = r"""
SELECT n, big, texto, num, sim, dia, quando, f, id20, b, nota FROM (VALUES
  (1, 11999887766::bigint, '011999887766', 1.10::numeric, true, date '2026-12-22', timestamp '2026-12-22 10:00:00',
      0.1::float8, 12345678901234567890::numeric, '\xdeadbeef'::bytea, 'plain'),
  (2, NULL, '00123', 100.00, false, '0044-03-15 BC', 'infinity', 1e20, 9007199254740993, NULL, NULL),
  (3, -9223372036854775808, 'NA', -0.50, NULL, 'infinity', '-infinity', 'NaN', 10000000000000000001, '', 'a;b'),
  (4, 9223372036854775807, 'NULL', 1e15, true, '9999-12-31', '1900-01-01 00:00:00.123456', -0.0, 0, '\x00', 'say "hi"'),
  (5, 0, '', 0.000, false, '0001-01-01', NULL, 'Infinity', 1, NULL, E'two\nlines\ttab\r\nend'),
  (6, 1, '\N', 1, true, NULL, NULL, 1, 1, NULL, '\N\n\\ C:\temp\new'),
  (7, 2, '  spaces  ', 1, true, NULL, NULL, 1, 1, NULL, E'\t \n'),
  (8, 3, 'nan', 1, true, NULL, NULL, 1, 1, NULL, 'José da Conceição 😀 – “x”'),
  (9, 4, '1e5', 1, true, NULL, NULL, 1, 1, NULL, 'a "b";c,d'),
  (10, 5, '=1+1', 1, true, NULL, NULL, 1, 1, NULL, '"')
) AS v (n, big, texto, num, sim, dia, quando, f, id20, b, nota) ORDER BY n
"""

GOLDEN = (
    "n;big;texto;num;sim;dia;quando;f;id20;b;nota\r\n"
    r"1;11999887766;011999887766;1.10;t;2026-12-22;2026-12-22 10:00:00;0.1;12345678901234567890;\xdeadbeef;plain"
    "\r\n"
    "2;;00123;100.00;f;0044-03-15 BC;infinity;1e+20;9007199254740993;;\r\n"
    r'3;-9223372036854775808;NA;-0.50;;infinity;-infinity;NaN;10000000000000000001;\x;"a;b"'
    "\r\n"
    r'4;9223372036854775807;NULL;1000000000000000;t;9999-12-31;1900-01-01 00:00:00.123456;0;0;\x00;"say ""hi"""'
    "\r\n"
    "5;0;;0.000;f;0001-01-01;;Infinity;1;;two lines tab end\r\n"
    r"6;1;\N;1;t;;;1;1;;\N\n\\ C:\temp\new"
    "\r\n"
    "7;2;spaces;1;t;;;1;1;;\r\n"
    "8;3;nan;1;t;;;1;1;;José da Conceição 😀 – “x”\r\n"
    '9;4;1e5;1;t;;;1;1;;"a ""b"";c,d"\r\n'
    '10;5;=1+1;1;t;;;1;1;;""""\r\n'
)


def test_every_value_is_the_text_that_postgres_wrote(stage: Stage) -> None:
    assert export(stage, GOLDEN_SQL) == GOLDEN.encode()


@pytest.mark.usefixtures("small_blocks")
def test_blocks_leave_no_trace_in_the_bytes(stage: Stage) -> None:
    assert export(stage, GOLDEN_SQL) == GOLDEN.encode()


@pytest.mark.parametrize(
    ("directives", "expected"),
    [
        ({}, 'a;b\r\nção;"x;y"\r\n1;,|\r\n'.encode()),
        ({"delimiter": ","}, 'a,b\r\nção,x;y\r\n1,",|"\r\n'.encode()),
        ({"delimiter": "|"}, 'a|b\r\nção|x;y\r\n1|",|"\r\n'.encode()),
        ({"delimiter": "\\t"}, "a\tb\r\nção\tx;y\r\n1\t,|\r\n".encode()),
        ({"header": "no"}, 'ção;"x;y"\r\n1;,|\r\n'.encode()),
        ({"newline": "lf"}, 'a;b\nção;"x;y"\n1;,|\n'.encode()),
        ({"encoding": "utf-8-sig"}, '\ufeffa;b\r\nção;"x;y"\r\n1;,|\r\n'.encode()),
        ({"encoding": "utf-8-sig", "header": "no"}, '\ufeffção;"x;y"\r\n1;,|\r\n'.encode()),
        ({"encoding": "cp1252"}, 'a;b\r\nção;"x;y"\r\n1;,|\r\n'.encode("cp1252")),
        ({"encoding": "latin-1"}, 'a;b\r\nção;"x;y"\r\n1;,|\r\n'.encode("latin-1")),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["the query file", "config.env"])
def test_the_csv_is_written_as_it_was_asked_for(
    stage: Stage,
    directives: dict[str, Any],
    expected: bytes,
    where: str,
    small_blocks: None,  # noqa: ARG001
) -> None:
    sql = "SELECT * FROM (VALUES ('ção', 'x;y'), ('1', ',|')) AS v (a, b)"
    if where == "config.env":
        stage.settings(**{f"CSV_{key.upper()}": value for key, value in directives.items()})
        directives = {}
    assert export(stage, sql, **directives) == expected


def test_the_name_of_a_column_is_quoted_like_any_cell(stage: Stage) -> None:
    assert (
        export(stage, 'SELECT 1 AS "a;b", 2 AS "é ""x""", 3 AS "a b"')
        == "a;b".join(['"', '";"é ""x""";a b\r\n1;2;3\r\n']).encode()
    )


def test_a_single_empty_cell_is_a_row_that_readers_see(stage: Stage) -> None:
    assert export(stage, "SELECT * FROM (VALUES ('x'), (NULL), ('y')) AS v (a)") == b'a\r\nx\r\n""\r\ny\r\n'


@pytest.mark.usefixtures("small_blocks")
def test_many_columns_and_a_long_cell_pass(stage: Stage) -> None:
    columns = ", ".join(f"{n} AS c{n}" for n in range(400))
    rows = (
        export(stage, f"SELECT {columns}, repeat('x', 100000) AS longo FROM generate_series(1, 3)")
        .decode()
        .splitlines()
    )
    assert len(rows) == 4
    assert all(row.split(";")[:400] == [str(n) for n in range(400)] for row in rows[1:])
    assert all(row.endswith(";" + "x" * 100_000) for row in rows[1:])


@pytest.mark.usefixtures("small_blocks")
def test_characters_that_the_encoding_lacks_are_replaced_counted_and_reported(stage: Stage) -> None:
    rows = ", ".join(["('Ana? 😀', '€')", "('Łódź', 'ok?')"] * 3)
    stage.query("10_a", f"SELECT * FROM (VALUES {rows}) AS v (a, b)", encoding="cp1252", header="no")
    result = stage.deliver()
    assert stage.mailing("a") == b"Ana? ?;\x80\r\n?\xf3d?;ok?\r\n" * 3
    assert "9 characters" in result.campaigns["a"]["message"]


def test_characters_lost_in_the_header_are_counted_too(stage: Stage) -> None:
    stage.query("10_a", "SELECT 'x' AS \"café → nome\"", encoding="latin-1")
    result = stage.deliver()
    assert "1 characters are not in latin-1" in result.campaigns["a"]["message"]


def test_control_characters_and_line_breaks_inside_a_cell_become_one_space(stage: Stage) -> None:
    controls = [*range(1, 32), 127, *range(128, 160), 0x2028, 0x2029]
    values = ", ".join(f"({n}, 'a' || chr({n}) || 'b', 'x ' || chr({n}) || chr(10) || ' y')" for n in controls)
    lines = export(stage, f"SELECT * FROM (VALUES {values}) AS v (n, a, b) ORDER BY n").decode().split("\r\n")[1:-1]
    assert lines == [f"{n};a b;x y" for n in controls]


def test_the_names_of_columns_are_tidied_as_cells_are() -> None:
    names = (" nome ", "a\tb", "c \r\n d", "e\u2028\x07f", "\u00a0g\u00a0", "", "h  i")
    assert tuple(map(tidy_name, names)) == ("nome", "a b", "c d", "e f", "g", "", "h  i")
    cells = [[name] for name in names]
    assert tuple(as_frame(cells)["c"]) == tuple(map(tidy_name, names))


def as_frame(rows: list[list[str]]) -> pd.DataFrame:
    """Rows as the server writes them, and as the program reads them."""
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    return to_frame("".join("\t".join(row).translate(escapes) + "\n" for row in rows).encode(), ["c"])


@pytest.mark.usefixtures("small_blocks")
def test_a_byte_order_mark_in_the_data_stays_in_any_block(stage: Stage) -> None:
    """Arrow takes one at the beginning of a block for its own."""
    found = export(stage, "SELECT chr(65279) || n AS a, repeat('x', 60) AS b FROM generate_series(1, 2000) AS n")
    lines = found.decode().split("\r\n")[1:-1]
    assert [line.split(";")[0] for line in lines] == [f"\ufeff{n}" for n in range(1, 2001)]


@pytest.mark.parametrize("marks", [1, 2])
def test_a_block_may_begin_with_any_number_of_byte_order_marks(marks: int) -> None:
    assert as_frame([["\ufeff" * marks + "a"]])["c"].tolist() == ["\ufeff" * marks + "a"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_accents_that_combine_are_written_as_one_character_where_an_encoding_has_no_others(
    stage: Stage, encoding: str
) -> None:
    sql = r"SELECT U&'Joa\0303o' AS a, U&'C\0327e\0301sar x\0303 ?' AS b"
    stage.query("10_a", sql, encoding=encoding, header="no")
    result = stage.deliver()
    assert stage.mailing("a") == "João;Çésar x? ?\r\n".encode(encoding)
    assert "1 characters" in result.campaigns["a"]["message"]  # x̃ is no letter of theirs


def test_accents_that_combine_stay_as_the_server_wrote_them_in_utf_8(stage: Stage) -> None:
    found = export(stage, r"SELECT U&'Joa\0303o' AS a, U&'Jo\00E3o' AS b", header="no")
    assert found == "Joa\u0303o;João\r\n".encode()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_no_character_turns_into_a_delimiter_on_its_way_to_another_encoding(encoding: str) -> None:
    """U+037E is a Greek question mark that Unicode holds to be the same as a semicolon."""
    assert encoded("a\u037eb\u0301;c".encode(), encoding) == (b"a?b?;c", 2)


def nasty_rows(count: int) -> list[tuple[str, str, str]]:
    """Rows of text made to break a CSV or COPY reader; the same every time."""
    chance = random.Random(7)
    pieces = [
        "a",
        "é",
        ";",
        '"',
        "'",
        "\\",
        "\\N",
        "\\n",
        "\\t",
        "\t",
        "\n",
        "\r",
        " ",
        ",",
        "|",
        "😀",
        "0",
        "\x01",
        "\u2028",
    ]
    return [tuple("".join(chance.choices(pieces, k=chance.randrange(6))) for _ in range(3)) for _ in range(count)]  # type: ignore[misc]


def as_csv(rows: list[tuple[str, ...]], delimiter: str = ";", line_end: str = "\r\n") -> str:
    """Rows as Python's own csv module writes them."""
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator=line_end).writerows(rows)
    return out.getvalue()


def cleaned(cell: str) -> str:
    """A cell as the contract wants it, the slow and plain way."""
    return re.sub(r" *[\x01-\x1f\x7f-\x9f\u2028\u2029][ \x01-\x1f\x7f-\x9f\u2028\u2029]*", " ", cell).strip()


@pytest.mark.parametrize("block_bytes", [100, 5000, 4 << 20])
def test_text_made_to_break_readers_arrives_whole(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(mailing_pipeline, "BLOCK_BYTES", block_bytes)
    rows = nasty_rows(1500)
    with stage.database.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS feios; CREATE TABLE feios (n serial, a text, b text, c text)")
        with connection.cursor().copy("COPY feios (a, b, c) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    found = export(stage, "SELECT a, b, c FROM feios ORDER BY n", header="no")
    assert found.decode() == as_csv([tuple(map(cleaned, row)) for row in rows])


cell_text = st.text(
    st.sampled_from("aé;\"',|\\ 😀0-") | st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8
)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[cell_text] * n), max_size=150)),
    st.sampled_from([";", ",", "|", "\t"]),
    st.sampled_from(["\r\n", "\n"]),
)
def test_a_frame_is_written_as_pythons_csv_module_writes_it(
    rows: list[tuple[str, ...]], delimiter: str, line_end: str
) -> None:
    width = len(rows[0]) if rows else 2
    frame = pd.DataFrame(rows, columns=[str(n) for n in range(width)], dtype="str")
    form = CsvFormat(delimiter, "utf-8", True, line_end)
    assert to_csv(frame, form).decode() == as_csv(rows, delimiter, line_end)


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[st.none() | cell_text] * n), min_size=1, max_size=30)))
def test_a_block_of_copy_text_is_read_back_cell_by_cell(rows: list[tuple[str | None, ...]]) -> None:
    def escaped(cell: str | None) -> str:  # PostgreSQL manual, COPY, Text Format
        return r"\N" if cell is None else cell.replace("\\", "\\\\")

    block = "".join("\t".join(map(escaped, row)) + "\n" for row in rows).encode()
    frame = to_frame(block, ["same"] * len(rows[0]))
    found = [tuple("" if pd.isna(cell) else cell for cell in row) for row in frame.itertuples(index=False)]
    assert found == [tuple((cell or "").strip() for cell in row) for row in rows]
    assert list(frame.columns) == ["same"] * len(rows[0])


# ---------------------------------------------------------------------------------------------------------------------
# Phones
# ---------------------------------------------------------------------------------------------------------------------

AREA_CODES = {
    *(11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 24, 27, 28, 31, 32, 33, 34, 35, 37, 38),
    *(41, 42, 43, 44, 45, 46, 47, 48, 49, 51, 53, 54, 55, 61, 62, 63, 64, 65, 66, 67, 68, 69),
    *(71, 73, 74, 75, 77, 79, 81, 82, 83, 84, 85, 86, 87, 88, 89, 91, 92, 93, 94, 95, 96, 97, 98, 99),
}


def clean(*phones: str) -> list[str]:
    return list(clean_phones(pd.Series(list(phones), dtype=pd.ArrowDtype(__import__("pyarrow").string()))))


def test_all_67_area_codes_are_known_and_no_other() -> None:
    assert len(AREA_CODES) == 67
    codes = [f"{n:02}" for n in range(100)]
    expected = [f"{code}988887777" if int(code) in AREA_CODES else "" for code in codes]
    assert clean(*(f"{code}988887777" for code in codes)) == expected


@pytest.mark.parametrize(
    "prefix", ["", "+55", "55", "0", "+55 ", "(0", "+55 ("], ids=["none", "+55", "55", "0", "+55 space", "(0", "+55 ("]
)
@pytest.mark.parametrize("number", ["988887777", "98888-7777", "9 8888 7777", "33224455", "2222-4444", "5999.1234"])
@pytest.mark.parametrize("area", ["11", "55", "21"])
def test_a_valid_phone_becomes_area_code_and_number(prefix: str, number: str, area: str) -> None:
    assert clean(f"{prefix}{area}) {number}") == [area + re.sub(r"\D", "", number)]


@pytest.mark.parametrize(
    "phone",
    [
        *("", "abc", "0", "+55", "988887777", "33224455", "1188887777", "1163224455", "1113224455"),
        *("11888877776", "119888877771", "11933224455y1", "1198888777", "20988887777", "01098888777"),
        *("+1 202 555 0123", "11988887777/11977776666", "5520988887777", "550", "00000000000"),
    ],
)
def test_an_invalid_phone_becomes_empty(phone: str) -> None:
    assert clean(phone) == [""]


@pytest.mark.usefixtures("small_blocks")
def test_a_row_without_any_valid_phone_is_rejected_counted_and_kept_aside(stage: Stage) -> None:
    sql = """SELECT * FROM (VALUES ('(11) 98888-7777', 'x', 'Ana'), ('123', '+55 21 3322-4455', 'Bia'),
             ('', NULL, 'Caio'), ('11988887776', '', 'Davi'), ('1', '2', 'Eva; "E"')) AS v (t1, t2, nome)"""
    assert export(stage, sql, phones="t1, t2") == (
        b"t1;t2;nome\r\n11988887777;;Ana\r\n;2133224455;Bia\r\n11988887776;;Davi\r\n"
    )
    assert copy_of_rejected(stage) == [
        ["t1", "t2", "nome", "reason"],
        ["", "", "Caio", "no valid phone"],
        ["1", "2", 'Eva; "E"', "no valid phone"],
    ]
    (entry,) = stage.ledger()
    assert (entry["rows"], entry["rejected"]) == (3, 2)


def test_rejected_rows_are_in_the_report(stage: Stage) -> None:
    stage.query("10_a", "SELECT * FROM (VALUES ('11988887777'), ('1')) AS v (t)", phones="t")
    entry = stage.deliver().campaigns["a"]
    assert (entry["rows"], entry["rejected"]) == (1, 1)


def test_rejected_rows_of_a_query_with_a_column_reason_keep_their_columns(stage: Stage) -> None:
    export(stage, "SELECT '1' AS t, 'x' AS reason, 'y' AS z UNION ALL SELECT '11988887777', 'k', 'l'", phones="t")
    assert copy_of_rejected(stage) == [["t", "reason", "z", "reason"], ["1", "x", "y", "no valid phone"]]


def test_reasons_are_told_in_the_language_of_the_settings() -> None:
    settings = parse_settings({}, Path(), "config.env", sends=False, knows_host=False)
    campaign = parse_campaign("10_a.sql", "-- phones: t\n-- unique: t, n\nSELECT 1", settings)
    frame = to_frame(b"x\t1\n11988887777\t2\n11988887777\t2\n", ["t", "n"])
    for language, column, reasons in (
        ("en", "reason", ["no valid phone", "duplicate t, n"]),
        ("pt", "motivo", ["nenhum telefone válido", "repetição de t, n"]),
    ):
        kept, rejected = Treatment(campaign, language).apply(frame)
        assert kept.to_numpy().tolist() == [["11988887777", "2"]]
        assert rejected.columns[-1] == column
        assert rejected[column].tolist() == list(reasons)


def test_a_phone_column_may_have_any_name(stage: Stage) -> None:
    sql = "SELECT '(11) 98888-7777' AS self, '11988887777' AS \"a b\""
    assert export(stage, sql, phones="self, a b") == b"self;a b\r\n11988887777;11988887777\r\n"


def test_columns_that_are_no_phones_are_not_touched(stage: Stage) -> None:
    assert export(stage, "SELECT '(11) 98888-7777' AS t, '+55 x' AS u", phones="t") == b"t;u\r\n11988887777;+55 x\r\n"


# ---------------------------------------------------------------------------------------------------------------------
# Unique
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_the_first_row_of_each_key_is_kept_over_the_whole_mailing(stage: Stage) -> None:
    found = export(stage, "SELECT n % 700 AS chave, n FROM generate_series(1, 3000) AS n ORDER BY n", unique="chave")
    assert found.decode().splitlines()[1:] == [f"{n % 700};{n}" for n in range(1, 701)]
    (entry,) = stage.ledger()
    assert (entry["rows"], entry["rejected"]) == (700, 2300)
    assert copy_of_rejected(stage)[1] == ["1", "701", "duplicate chave"]


def test_a_key_of_two_columns_is_both_of_them(stage: Stage) -> None:
    rows = "('a', 'bc', 1), ('ab', 'c', 2), ('a', 'bc', 3), ('a', '', 4), ('', 'a', 5), ('a', '', 6)"
    found = export(stage, f"SELECT * FROM (VALUES {rows}) AS v (x, y, n)", unique="x, y")
    assert [line.split(";")[2] for line in found.decode().splitlines()[1:]] == ["1", "2", "4", "5"]


@pytest.mark.usefixtures("small_blocks")
def test_an_empty_key_is_nobodys_duplicate(stage: Stage) -> None:
    found = export(stage, "SELECT NULL AS cpf, n FROM generate_series(1, 50) AS n", unique="cpf")
    assert len(found.splitlines()) == 51


def test_keys_are_compared_after_phones_are_cleaned_and_without_the_rejected(stage: Stage) -> None:
    rows = "('x', '1', 1), ('11988887777', '1', 2), ('+55 (11) 98888-7777', '2', 3), (' 11988887776 ', '1 ', 4)"
    found = export(stage, f"SELECT * FROM (VALUES {rows}) AS v (t, cpf, n)", phones="t", unique="cpf")
    assert [line.split(";")[2] for line in found.decode().splitlines()[1:]] == ["2", "3"]
    assert [row[-1] for row in copy_of_rejected(stage)[1:]] == ["no valid phone", "duplicate cpf"]


@pytest.mark.usefixtures("small_blocks")
def test_blocks_without_any_row_to_send_leave_the_others_as_they_are(stage: Stage) -> None:
    phone = "CASE WHEN n > 40 THEN '1198888' || 1000 + n % 25 END AS t"
    found = export(stage, f"SELECT {phone}, n AS cpf FROM generate_series(1, 90) AS n", phones="t", unique="t")
    assert found.count(b"\n") == 1 + 25
    (entry,) = stage.ledger()
    assert (entry["rows"], entry["rejected"]) == (25, 65)


def test_two_ways_to_write_a_phone_are_one_key(stage: Stage) -> None:
    rows = "('11988887777', 1), ('+55 (11) 98888-7777', 2)"
    assert export(stage, f"SELECT * FROM (VALUES {rows}) AS v (t, n)", phones="t", unique="t").count(b"\n") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Transactions and sessions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(stage: Stage) -> Iterator[Stage]:
    """The stage, where a test may change the role's own settings."""
    yield stage
    stage.execute("ALTER ROLE mailing RESET ALL")


def test_a_session_is_set_up_as_promised(role: Stage) -> None:
    role.execute("ALTER ROLE mailing SET DateStyle = 'German, DMY'")
    role.execute("ALTER ROLE mailing SET statement_timeout = '1h'")
    role.settings(QUERY_TIMEOUT_SECONDS="77", PGCLIENTENCODING="LATIN1")
    names = "statement_timeout lock_timeout DateStyle client_encoding application_name transaction_read_only"
    columns = ", ".join(f"current_setting('{name}') AS {name}" for name in names.split())
    export(role, f"SELECT {columns}, date '2026-12-22' AS dia, '😀' AS rosto")
    cells = role.cells("a")[1]
    assert cells[:2] == ["77s", "30s"] and cells[2].startswith("ISO")
    assert cells[3:] == ["UTF8", "mailing_pipeline", "on", "2026-12-22", "😀"]


def test_every_query_is_read_only_unless_its_file_says_otherwise(stage: Stage) -> None:
    insert = "WITH x AS (INSERT INTO escrita VALUES ('by_query_{}') RETURNING nota) SELECT * FROM x"
    stage.query("10_a", insert.format("a"))
    stage.query("20_b", insert.format("b"), read_only="no")
    result = stage.deliver()
    assert result.verdicts == {"a": "failed", "b": "delivered"} and result.exit_code == 4
    assert "10_a.sql" in result.campaigns["a"]["message"] and "read_only: no" in result.campaigns["a"]["hint"]
    with stage.database.connect() as connection:
        written = connection.execute("SELECT nota FROM escrita WHERE nota LIKE 'by_query%'").fetchall()
    assert written == [("by_query_b",)]


def test_a_file_with_temp_tables_says_read_only_no(stage: Stage) -> None:
    sql = "CREATE TEMP TABLE t AS SELECT 7 AS n;\nSET LOCAL work_mem = '8MB';\n"
    sql += "SELECT n, current_setting('work_mem') AS m FROM t"
    assert export(stage, sql, read_only="no") == b"n;m\r\n7;8MB\r\n"
    assert stage.deliver("--resend").verdicts == {"a": "delivered"}  # the temp table is gone


def test_one_campaigns_set_does_not_reach_the_next(stage: Stage) -> None:
    stage.settings(QUERY_WORKERS=1)
    stage.query("10_a", "SET work_mem = '9MB'; SET DateStyle = 'German'; SELECT 1 AS n")
    stage.query("20_b", "SET work_mem = '9MB'; SET DateStyle = 'German'; SELECT 1 AS n", read_only="no")
    stage.query("30_c", "SELECT current_setting('work_mem') AS m, date '2026-12-22' AS d")
    assert stage.deliver().exit_code == 0
    assert stage.cells("c")[1] == ["4MB", "2026-12-22"]


def who_moves_while_a_query_sleeps(stage: Stage) -> threading.Thread:
    """A customer who goes from group a to group b while the first query is under way."""

    def move() -> None:
        with stage.database.connect() as connection:
            for _ in range(500):
                sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                if connection.execute(sql).fetchone() != (0,):
                    connection.execute("UPDATE pessoas SET grupo = 'b'")
                    return
                time.sleep(0.01)

    thread = threading.Thread(target=move)
    thread.start()
    return thread


@pytest.mark.parametrize(("read_only", "twice"), [("yes", False), ("no", True)])
def test_all_queries_of_a_run_see_one_snapshot(stage: Stage, read_only: str, twice: bool) -> None:
    stage.execute("DROP TABLE IF EXISTS pessoas; CREATE TABLE pessoas AS SELECT 'Ana' AS nome, 'a' AS grupo")
    stage.settings(QUERY_WORKERS=1)
    stage.query("10_a", "SELECT nome FROM pessoas, pg_sleep(2) WHERE grupo = 'a'")
    stage.query("20_b", "SELECT nome FROM pessoas WHERE grupo = 'b'", read_only=read_only)
    thread = who_moves_while_a_query_sleeps(stage)
    result = stage.deliver()
    thread.join()
    assert result.verdicts == {"a": "delivered", "b": "delivered" if twice else "empty"}


def test_a_server_without_snapshots_is_used_without_and_the_log_says_so(stage: Stage) -> None:
    stage.execute("REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC")
    try:
        stage.query("10_a", "SELECT 1 AS n")
        result = stage.deliver()
    finally:
        stage.execute("GRANT EXECUTE ON FUNCTION pg_export_snapshot() TO PUBLIC")
    assert result.verdicts == {"a": "delivered"}
    assert "snapshot" in result.log


@pytest.mark.parametrize(("workers", "together"), [(1, False), (2, True)])
def test_query_workers_says_how_many_queries_run_at_a_time(stage: Stage, workers: int, together: bool) -> None:
    stage.settings(QUERY_WORKERS=workers)
    times = (
        "extract(epoch FROM clock_timestamp()) AS de, pg_sleep(0.4) AS s, extract(epoch FROM clock_timestamp()) AS ate"
    )
    for name in ("10_a", "20_b"):
        stage.query(name, f"SELECT {times}")
    assert stage.deliver().exit_code == 0
    a, b = (stage.cells(name)[1] for name in ("a", "b"))
    assert (float(b[0]) < float(a[2])) is together
    assert together or float(a[2]) <= float(b[0])  # in the order of the files


# ---------------------------------------------------------------------------------------------------------------------
# Faults of the database
# ---------------------------------------------------------------------------------------------------------------------


def fails(stage: Stage, sql: str, **directives: Any) -> Result:
    """A run of a query that fails beside one that does not."""
    stage.query("10_a", sql, **directives)
    stage.query("20_b", "SELECT 1 AS n")
    result = stage.deliver()
    assert result.verdicts == {"a": "failed", "b": "delivered"}, result.said
    assert result.exit_code == 4
    assert not stage.files("a")
    assert not list(stage.output.glob("*_a_*")), "a failed query leaves no local file"
    return result


@pytest.mark.parametrize(
    ("sql", "place", "told"),
    [
        ("SELECT 1 AS n,\n       nome2\nFROM contatos", "10_a.sql: line 2", "nome2"),
        ("\n\nSELECT 1\nFROM nowhere", "10_a.sql: line 4", "nowhere"),
        ("SET LOCAL work_mem = '8MB';\n\nSELECT n\nFRM x", "10_a.sql: line 4", "syntax error"),
        ("SET LOCAL nonsense_here = 1;\nSELECT 1 AS n", "10_a.sql: line 1", "nonsense_here"),
        ("SELECT 1 AS n, pg_read_file('x')", "10_a.sql", "permission denied"),
    ],
)
def test_a_broken_query_is_told_with_file_and_line(stage: Stage, sql: str, place: str, told: str) -> None:
    message = fails(stage, sql).campaigns["a"]["message"]
    assert message.startswith(place) and told in message


@pytest.mark.usefixtures("small_blocks")
def test_a_query_that_fails_after_many_rows_sends_nothing(stage: Stage) -> None:
    message = fails(stage, "SELECT telefone, 1 / (2500 - id) AS x FROM contatos").campaigns["a"]["message"]
    assert "10_a.sql" in message and "division by zero" in message


def test_an_error_that_quotes_a_value_is_told_without_it(stage: Stage) -> None:
    result = fails(stage, "SELECT (cpf || 'x')::bigint AS n FROM contatos")
    assert "22P02" in result.campaigns["a"]["message"]
    assert "9000000" not in result.said and "invalid input syntax" not in result.said


@pytest.mark.parametrize("by", ["directive", "setting"])
def test_a_query_that_takes_too_long_is_ended_and_tried_once_more(stage: Stage, by: str) -> None:
    stage.settings(QUERY_TIMEOUT_SECONDS=1 if by == "setting" else 600)
    result = fails(stage, "SELECT pg_sleep(30) AS n", **({"timeout": 1} if by == "directive" else {}))
    assert "57014" in result.campaigns["a"]["message"] and "timeout" in result.campaigns["a"]["hint"]
    assert result.log.count("a: retry") == 1 and "retry 1 of 1" in result.log


def test_a_locked_table_is_waited_for_and_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailing_pipeline, "LOCK_TIMEOUT_S", 1)
    stage.execute("DROP TABLE IF EXISTS trancada; CREATE TABLE trancada AS SELECT 1 AS n")
    stage.query("10_a", "SELECT n FROM trancada")
    with stage.database.connect(autocommit=False) as connection:
        connection.execute("LOCK TABLE trancada IN ACCESS EXCLUSIVE MODE")
        timer = threading.Timer(1.6, connection.rollback)
        timer.start()
        result = stage.deliver()
        timer.join()
    assert result.verdicts == {"a": "delivered"}
    assert "55P03" in result.log and "retry 1 of 4" in result.log


@pytest.mark.usefixtures("small_blocks")
def test_each_statement_of_a_file_has_the_whole_timeout(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As statement_timeout counts it."""
    monkeypatch.setattr(mailing_pipeline, "GRACE_S", 0)
    stage.query("10_a", "SELECT pg_sleep(0.7); SELECT pg_sleep(0.7); SELECT 1 AS n", timeout=1)
    assert stage.deliver().verdicts == {"a": "delivered"}


def test_a_query_whose_connection_is_ended_is_run_again_whole(stage: Stage) -> None:
    stage.query(
        "10_a", "SELECT n, pg_sleep(CASE WHEN n = 900 THEN 0.5 ELSE 0 END) AS s FROM generate_series(1, 1000) AS n"
    )

    def end() -> None:
        with stage.database.connect() as connection:
            for _ in range(500):
                sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                if connection.execute(sql).fetchone() != (0,):
                    return
                time.sleep(0.01)

    thread = threading.Thread(target=end)
    thread.start()
    result = stage.deliver()
    thread.join()
    assert result.verdicts == {"a": "delivered"}
    assert [row[0] for row in stage.cells("a")] == ["n", *map(str, range(1, 1001))]
    assert "retry 1 of 4" in result.log


def test_a_wrong_database_password_is_never_retried_and_nothing_else_is_tried(stage: Stage) -> None:
    stage.settings(PGPASSWORD="s3cret-Canary")
    stage.query("10_a", "SELECT 1 AS n")
    stage.query("20_b", "SELECT 1 AS n")
    before = stage.database.log_text().count("password authentication failed")
    result = stage.deliver()
    assert result.exit_code == 5 and result.verdicts == {"a": "failed", "b": "failed"}
    assert "retry" not in result.log
    assert "PGPASSWORD" in result.campaigns["a"]["hint"]
    assert "s3cret-Canary" not in result.said + stage.everything_written()
    # libpq itself asks twice in one attempt: it may try with and without TLS.
    assert 1 <= stage.database.log_text().count("password authentication failed") - before <= 2


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"PGDATABASE": "nowhere"}, "PGDATABASE"),
        ({"PGUSER": "nobody_here"}, "PGUSER"),
        ({"PGSSLMODE": "verify-full"}, "PG"),
        ({"PGSSLMODE": "nonsense"}, "PG"),
    ],
    ids=str,
)
def test_a_wrong_database_setting_fails_the_whole_stage_at_once(
    stage: Stage, values: dict[str, str], hint: str
) -> None:
    stage.settings(**values)
    stage.query("10_a", "SELECT 1 AS n")
    result = stage.deliver()
    assert result.exit_code == 5 and "retry" not in result.log
    assert hint in result.campaigns["a"]["hint"]


def test_an_unreachable_database_costs_one_retry_budget_and_ends_with_5(stage: Stage) -> None:
    from local_servers import free_port

    stage.settings(PGPORT=free_port(), RETRY_ATTEMPTS=3)
    for name in ("10_a", "20_b", "30_c"):
        stage.query(name, "SELECT 1 AS n")
    result = stage.deliver()
    assert result.exit_code == 5
    assert set(result.verdicts.values()) == {"failed"}
    assert result.log.count(" retry ") == 2 and "PGHOST" in result.campaigns["c"]["hint"]
    assert [entry["state"] for entry in stage.ledger()] == ["failed"] * 3


def test_a_file_in_place_of_the_output_folder_is_told(stage: Stage, tmp_path: Path) -> None:
    stage.query("10_a", "SELECT 1 AS n")
    (tmp_path / "file").write_text("")
    stage.settings(OUTPUT_DIR=tmp_path / "file")
    result = stage.main()
    assert result.exit_code == 2 and "OUTPUT_DIR" in result.stderr
