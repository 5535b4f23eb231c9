"""Bad input, by the thousand: nothing crashes, and what comes out is what a simple, slow reference says.

HYPOTHESIS_EXAMPLES sets the number of examples of each test: a few in the default suite, thousands in the long run
(README.md). A failing example is printed with how to repeat it.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from local_servers import LocalPostgres

import mailing_pipeline as program

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "150"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
fewer = settings(many, max_examples=max(1, EXAMPLES // 4))

ENOUGH = {
    "SFTP_HOST": "sftp.example.com",
    "SFTP_USER": "dialer",
    "SFTP_PASSWORD": "x",
    "SFTP_HOST_KEY": "SHA256:" + "A" * 43,
}
texts = st.text(st.characters(codec="utf-8"), max_size=60)


# config.env ----------------------------------------------------------------------------------------------------------


def read_config(folder: Path, data: bytes) -> program.Settings:
    path = folder / "config.env"
    path.write_bytes(data)
    return program.load_settings(path, {}, sends=True, knows_host=True)


@many
@given(data=st.one_of(st.binary(max_size=300), texts.map(str.encode)))
@example(data=b"\xef\xbb\xbfSFTP_HOST=\x00")
@example(data=b"SFTP_HOST='\n\n\n'x")
@example(data=b"export export=\r\r\n=\n'")
def test_any_bytes_as_config_are_settings_or_faults(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(program.SettingsFault) as raised:
        read_config(tmp_path, data)
    assert all(raised.value.lines)


@many
@given(
    values=st.dictionaries(
        st.sampled_from([*program.SETTING_FIELDS, "PGHOST", "PGPORT", "SFTP_PASWORD", "X"]),
        st.one_of(texts, st.from_regex(r"[0-9a-z:;,%{}\\/ .-]{0,20}", fullmatch=True)),
        max_size=8,
    )
)
def test_any_values_are_settings_or_faults_that_tell_no_secret(values: dict[str, str]) -> None:
    values = {key: f"canary{value}" if "PASS" in key and value else value for key, value in values.items()}
    try:
        made = program.parse_settings(ENOUGH | values, Path("/x"), "config.env", sends=True, knows_host=True)
    except program.SettingsFault as fault:
        event("faults")
        assert all(str(line).startswith("config.env: ") for line in fault.lines)
        assert "canary" not in str(fault)
    else:
        event("settings")
        assert "canary" not in repr(made)


@many
@given(value=texts)
@example(value="a#b $HOME ${x} 'c\" \\ é%d=")
def test_a_quoted_value_comes_back_as_it_was_written(tmp_path: Path, value: str) -> None:
    assume(value)
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    lines = [f"{key}='{text}'" for key, text in (ENOUGH | {"SFTP_PASSWORD": "@"}).items()]
    text = "\n".join(lines).replace("'@'", f"'{quoted}'")
    try:
        made = read_config(tmp_path, text.encode())
    except program.SettingsFault as fault:
        event("a fault")
        assert value not in str(fault) or len(value) < 8
    else:
        assert made.sftp_password == value


# Query files ---------------------------------------------------------------------------------------------------------

TAGS = ("", "x", "função", "_1")


def dollar_quoted(tag: str, text: str) -> str:
    return f"${tag}${text.replace('$', '')}${tag}$"


innards = st.text(st.sampled_from("ab;'\"\\$/*- \n{}%"), max_size=12)
strings = st.one_of(
    innards.map(lambda text: "'" + text.replace("'", "''") + "'"),
    innards.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    st.tuples(st.sampled_from(TAGS), innards).map(lambda pair: dollar_quoted(*pair)),
)
block_comments = st.recursive(
    st.text(st.sampled_from("a;'\"$- \n"), max_size=6).map(lambda text: f"/*{text}*/"),
    lambda inner: st.tuples(st.sampled_from("a;' "), inner).map(lambda pair: f"/*{pair[0]} {pair[1]} ;*/"),
    max_leaves=3,
)
blanks = st.one_of(
    st.sampled_from([" ", "\n", "\r\n", "\t "]),
    block_comments.map(lambda text: f" {text} "),
    st.text(st.sampled_from("a;'\"$/*"), max_size=6).map(lambda text: f" --{text}\n"),
)
aliases = st.text(st.sampled_from("a;'/*-\n$ "), min_size=1, max_size=6).map(lambda text: '"' + text + 'z"')


@st.composite
def selects(draw: Any) -> str:
    """One statement that PostgreSQL runs, as wild as its lexical rules allow."""
    text = "SELECT"
    for number in range(draw(st.integers(1, 3))):
        text += ("," if number else "") + draw(blanks) + draw(strings)
        if draw(st.booleans()):
            text += draw(blanks) + "AS" + draw(blanks) + draw(aliases)
    return text


@many
@given(
    statements=st.lists(selects(), min_size=1, max_size=4),
    between=st.lists(blanks, min_size=5, max_size=5),
    end=st.booleans(),
)
def test_statements_are_split_where_they_were_joined(statements: list[str], between: list[str], end: bool) -> None:
    text = between[4]
    for statement, blank in zip(statements, between, strict=False):
        text += statement + blank + ";" + blank
    text = text if end else text + "SELECT 1"
    found = [statement.text for statement in program.split_statements(text)]
    assert [statement.strip() for statement in found[: len(statements)]] == [
        (statement + blank).strip() for statement, blank in zip(statements, between, strict=False)
    ]
    assert len(found) == len(statements) + (not end)


@fewer
@given(statements=st.lists(selects(), min_size=1, max_size=4), blank=blanks)
def test_postgresql_counts_the_same_statements(
    oracle: psycopg.Connection[Any], statements: list[str], blank: str
) -> None:
    """The server itself is the judge of what a statement is."""
    text = f"{blank};{blank}".join(statements)
    cursor = oracle.execute(text.encode())
    results = 1
    while cursor.nextset():
        results += 1
    assert results == len(statements) == len(program.split_statements(text))


@pytest.fixture(scope="module")
def oracle(database: LocalPostgres) -> Any:
    with database.connect() as connection:
        yield connection


sqlish = st.text(st.sampled_from("SELCTcopy ;'\"$x1eE\\/*-\n(),:{}%\u00e7\ufeff"), max_size=80)


@many
@given(text=st.one_of(texts, sqlish))
@example(text="$" * 50)
@example(text="/*" * 1000)
@example(text="'" + "''" * 5000)
@example(text="E'" + "\\'" * 5000)
@example(text="$a$" + "$b$" * 3000)
def test_any_text_is_statements_or_one_fault_with_its_line(text: str) -> None:
    try:
        statements = program.split_statements(text)
    except ValueError as fault:
        assert re.match(r"line \d+: ", str(fault))
        return
    for statement in statements:
        assert statement.text in text
        assert text.count("\n", 0, text.index(statement.text)) + 1 <= statement.line or statement.text.count("\n") >= 0
    program.statement_faults(statements)


@many
@given(
    head=st.lists(
        st.tuples(st.sampled_from([*program.DIRECTIVES, "min-rows", "colums", "note", "FOLDER"]), texts), max_size=6
    ),
    tail=st.one_of(st.just("SELECT 1"), sqlish, texts),
    name=st.one_of(st.just("10_alfa.sql"), texts.map(lambda text: text + ".sql")),
)
def test_any_query_file_is_a_campaign_or_faults_with_its_name(
    head: list[tuple[str, str]], tail: str, name: str
) -> None:
    text = "".join(f"-- {key}: {value}\n" for key, value in head) + tail
    base = program.parse_settings(ENOUGH, Path("/x"), "config.env", sends=True, knows_host=True)
    found = program.parse_campaign(name, text, base)
    if isinstance(found, program.BrokenQuery):
        assert all(str(line).startswith(f"{name}: ") for line in found.told)
    else:
        assert re.fullmatch("[a-z0-9_]+", found.name)
        assert ".." not in found.folder.parts


# Phones --------------------------------------------------------------------------------------------------------------

AREAS = {
    *range(11, 20), 21, 22, 24, 27, 28, 31, 32, 33, 34, 35, 37, 38, *range(41, 50), 51, 53, 54, 55, *range(61, 70),
    71, 73, 74, 75, 77, 79, *range(81, 90), *range(91, 100),
}  # fmt: skip


def reference_phone(text: str) -> str:
    """Brazilian numbering, step by step, for a text that is one phone."""
    digits = "".join(character for character in text if character in "0123456789")
    candidates = [digits]
    if digits.startswith("55"):
        candidates.append(digits[2:])
    candidates += [candidate[1:] for candidate in candidates if candidate.startswith("0")]
    for number in candidates:
        mobile = len(number) == 11 and number[2] == "9"
        fixed = len(number) == 10 and number[2] in "2345"
        if (mobile or fixed) and int(number[:2]) in AREAS:
            return number
    return ""


numbers = st.from_regex(r"(\+?55 ?)?0?\(?[1-9][0-9]\)? ?9?[0-9]{4}[- .]?[0-9]{4}", fullmatch=True)


def cleaned_phones(cells: list[str]) -> list[str]:
    return program.clean_phones(pd.Series(cells, dtype=pd.ArrowDtype(pa_string()))).tolist()


@many
@given(cells=st.lists(numbers, min_size=1, max_size=20))
@example(cells=["5511980000001", "55 1133334444", "5533334444", "551133334444", "555533334444", "980000001"])
def test_phones_are_what_brazil_s_numbering_says(cells: list[str]) -> None:
    assert cleaned_phones(cells) == [reference_phone(cell) for cell in cells]


@many
@given(cells=st.lists(st.one_of(texts, st.text("0123456789+() -./,xr\u00a0\u200e", max_size=20)), min_size=1))
@example(cells=["١١٩٨٠٠٠٠٠٠١", "１１980000001", "\n", "", "05511980000001", "119\n80000001"])
def test_any_text_in_a_phone_column_is_a_phone_that_stands_in_it_or_nothing(cells: list[str]) -> None:
    cells = [cell.replace("\0", "") for cell in cells]
    cleaned = cleaned_phones(cells)
    assert all(phone in re.sub("[^0-9]", "", cell) for cell, phone in zip(cells, cleaned, strict=True))
    assert cleaned == [reference_phone(phone) for phone in cleaned]
    assert cleaned_phones(cleaned) == cleaned


@many
@given(cells=st.lists(st.one_of(numbers, texts), max_size=6), start=st.integers(0, 6), empty=st.booleans())
def test_digits_only_leaves_the_digits_of_each_cell_of_any_part_of_a_column(
    cells: list[str], start: int, empty: bool
) -> None:
    import pyarrow as pa

    column = pa.array(cells, pa.string()).slice(start, 0 if empty else None)
    assert program.digits_only(column).to_pylist() == [re.sub("[^0-9]", "", cell) for cell in column.to_pylist()]


def pa_string() -> Any:
    import pyarrow as pa

    return pa.string()


# CSV bytes -----------------------------------------------------------------------------------------------------------

FORMS = st.builds(
    program.CsvFormat,
    delimiter=st.sampled_from([";", ",", "|", "\t"]),
    encoding=st.sampled_from(program.ENCODINGS),
    header=st.just(True),
    newline=st.sampled_from(["\r\n", "\n"]),
)
spicy = st.text(
    st.sampled_from("ab1;,|\t\"'\\N\n\r\x0b\x1f\x7f\u0085\u00a0\u2028\ufeff\u0301\u0303\u037eç€😀 .=-"), max_size=8
)
cells = st.one_of(st.none(), spicy, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8))


@st.composite
def tables(draw: Any) -> list[list[str | None]]:
    width = draw(st.integers(1, 4))
    return list(draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=12)))


def copy_text(rows: Sequence[Sequence[str | None]]) -> bytes:
    """What PostgreSQL's COPY … TO STDOUT writes (manual, COPY, Text Format)."""
    escapes = str.maketrans(
        {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
    )
    lines = ["\t".join(r"\N" if cell is None else cell.translate(escapes) for cell in row) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


BREAKS = "".join(chr(n) for n in [*range(1, 32), 127, *range(128, 160), 0x2028, 0x2029])


def reference_cell(cell: str | None) -> str | None:
    """Control characters, with the blanks around them, become one space; blanks at the ends go."""
    if cell is None:
        return None
    return re.sub(f" *[{re.escape(BREAKS)}][ {re.escape(BREAKS)}]*", " ", cell).strip()


def reference_csv(rows: Sequence[Sequence[str | None]], columns: list[str], form: program.CsvFormat) -> bytes:
    """The whole table at once, by DataFrame.to_csv."""
    frame = pd.DataFrame([[reference_cell(cell) for cell in row] for row in rows], columns=columns, dtype=object)
    text: str = frame.to_csv(sep=form.delimiter, index=False, lineterminator=form.newline)
    if form.encoding in ("cp1252", "latin-1"):
        return reference_composed(text).encode(form.encoding, "replace")
    return text.encode(form.encoding)


def reference_composed(text: str) -> str:
    """Each letter as one character with the accents that follow it, where there is such a character."""
    clusters: list[str] = []
    for character in text:
        if clusters and clusters[-1][0].isalpha() and "\u0300" <= character <= "\u036f":
            clusters[-1] += character
        else:
            clusters.append(character)
    return "".join(unicodedata.normalize("NFC", part) if len(part) > 1 else part for part in clusters)


def program_csv(
    rows: Sequence[Sequence[str | None]], columns: list[str], form: program.CsvFormat, cuts: Sequence[int]
) -> bytes:
    """The program's way: blocks of COPY text, cut at any row."""
    campaign = program.parse_campaign("10_alfa.sql", "SELECT 1", base_settings())
    treatment = program.Treatment(campaign)
    out = b"\xef\xbb\xbf" if form.encoding == "utf-8-sig" else b""
    out += program.encoded(program.header_line(columns, form), form.encoding)[0]
    edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        kept, rejected = treatment.apply(program.to_frame(copy_text(rows[start:end]), columns))
        assert len(rejected) == 0
        out += program.encoded(program.to_csv(kept, form), form.encoding)[0]
    return out


def base_settings() -> program.Settings:
    return program.parse_settings(ENOUGH, Path("/x"), "config.env", sends=True, knows_host=True)


@many
@given(rows=tables(), form=FORMS, cuts=st.lists(st.integers(0, 12), max_size=3))
@example(rows=[["\\N"], [None], [""], ["\\"], ["\\\\N"]], form=program.CsvFormat(";", "utf-8", True, "\n"), cuts=[1, 2])
@example(rows=[["a;b", 'c"d'], ["x\r\ny", " z "]], form=program.CsvFormat(";", "latin-1", True, "\r\n"), cuts=[1])
def test_the_bytes_of_a_mailing_are_those_of_one_whole_table(
    rows: list[list[str | None]], form: program.CsvFormat, cuts: list[int]
) -> None:
    columns = [f'coluna {number};"é"' for number in range(len(rows[0]))]
    assert program_csv(rows, columns, form, cuts) == reference_csv(rows, columns, form)


@fewer
@given(rows=tables(), form=FORMS, cuts=st.lists(st.integers(0, 200), max_size=6), times=st.integers(10, 40))
def test_the_same_over_many_rows(
    rows: list[list[str | None]], form: program.CsvFormat, cuts: list[int], times: int
) -> None:
    """Pieces large enough for the fast writer, with a few cells among them that it refuses."""
    plain: list[list[str | None]] = [["abc"] * len(rows[0])] * times
    columns = [f"c{number}" for number in range(len(rows[0]))]
    mixed = plain + rows + plain
    assert program_csv(mixed, columns, form, cuts) == reference_csv(mixed, columns, form)


@many
@given(rows=tables())
def test_any_csv_reader_gets_the_cells_back(rows: list[list[str | None]]) -> None:
    columns = [f"c{number}" for number in range(len(rows[0]))]
    form = program.CsvFormat(";", "utf-8", True, "\r\n")
    read = pd.read_csv(
        io.BytesIO(program_csv(rows, columns, form, [])),
        sep=";",
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
    )
    assert read.to_numpy().tolist() == [[reference_cell(cell) or "" for cell in row] for row in rows]


LONGEST = 32
KEYS = ["", "a", "b", "ab", "é", "x" * LONGEST, "x" * (LONGEST - 1), "x" * (LONGEST + 1), "é" * LONGEST]


@many
@given(
    keys=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(["", "a", "b", "\x1f"])), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    unique=st.sampled_from(["um", "um, dois"]),
)
def test_unique_keeps_the_first_row_of_each_key_over_all_blocks(
    keys: list[tuple[str, str]], cuts: list[int], unique: str
) -> None:
    rows = [[first, second, str(number)] for number, (first, second) in enumerate(keys)]
    campaign = program.parse_campaign("10_alfa.sql", f"-- unique: {unique}\nSELECT 1", base_settings())
    treatment = program.Treatment(campaign)
    edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    kept: list[str] = []
    for start, end in itertools.pairwise(edges):
        kept += treatment.apply(program.to_frame(copy_text(rows[start:end]), ["um", "dois", "n"]))[0]["n"].tolist()
    expected, seen = [], set()
    for row in rows:
        key = tuple(reference_cell(cell) for cell in row[: unique.count(",") + 1])
        if not any(key) or key not in seen:
            expected.append(row[2])
        seen.add(key)
    assert kept == expected


PHONES = {"11987654321": "11987654321", "+55 (11) 3987-6543": "1139876543", "x": "", "": "", None: ""}


@many
@given(
    rows=st.lists(st.tuples(st.sampled_from(list(PHONES)), st.sampled_from(KEYS)), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_blocks_are_treated_as_row_by_row_work_would_treat_them(
    rows: list[tuple[str | None, str]], cuts: list[int]
) -> None:
    source = "-- phones: fone\n-- unique: chave\nSELECT 1"
    treatment = program.Treatment(program.parse_campaign("10_alfa.sql", source, base_settings()))
    edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    kept: list[list[str]] = []
    reasons: Counter[str] = Counter()
    for start, end in itertools.pairwise(edges):
        block = copy_text([[phone, key, str(n)] for n, (phone, key) in enumerate(rows[start:end], start)])
        frame, rejected = treatment.apply(program.to_frame(block, ["fone", "chave", "n"]))
        kept += frame.to_numpy().tolist()
        reasons.update(rejected["reason"] if len(rejected) else ())
    expected, seen = [], {""}
    for n, (phone, key) in enumerate(rows):
        if PHONES[phone] and (key == "" or key not in seen):
            expected.append([PHONES[phone], key, str(n)])
            seen.add(key)
    assert kept == expected
    assert reasons["no valid phone"] == sum(not PHONES[phone] for phone, _ in rows)
    assert sum(reasons.values()) == len(rows) - len(expected)


# File names ----------------------------------------------------------------------------------------------------------

DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)")
patterns = st.one_of(
    texts,
    st.lists(
        st.sampled_from(
            [
                "{campaign}",
                "mailing_",
                "%d-%m",
                "%H",
                "%M",
                "%Y",
                "%z",
                "%Z",
                "%p",
                "%j",
                "%s",
                "%e",
                ".csv",
                ".",
                "_",
                " ",
                "/",
                ":",
                "%",
                "{}",
                "%A",
                "con",
                "nul.",
                "%c",
                "%:z",
                "%-d",
            ]
        ),
        max_size=6,
    ).map(lambda parts: "".join(parts) + ".csv"),
)
ZONES = [UTC, timezone(timedelta(hours=-3), "-03"), timezone(timedelta(hours=-3), "Hora oficial do Brasil")]
moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.sampled_from(ZONES))
campaigns = st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True)


@many
@given(pattern=patterns, campaign=campaigns, moment=moments)
@example(pattern="{campaign}.csv", campaign="nul", moment=datetime(2026, 12, 22, 10, tzinfo=UTC))
def test_an_accepted_file_name_is_legal_at_any_time_for_any_campaign(
    pattern: str, campaign: str, moment: datetime
) -> None:
    """Legal on Windows and on every SFTP server, and nothing that the program itself uses."""
    base = base_settings()
    made = program.parse_campaign(f"10_{campaign}.sql", f"-- file_name: {pattern}\nSELECT 1", base)
    if isinstance(made, program.BrokenQuery):
        event("refused")
        return
    event("accepted")
    name = program.render_file_name(made.file_name, made.name, moment)
    assert name
    assert not re.search(r'[\\/:*?"<>|\x00-\x1f]', name)
    assert not name.startswith(".")
    assert not name.endswith((".", " "))
    assert not DEVICES.match(name)
    assert name not in (".", "..")
    assert not name.endswith(".part")
    assert all(unicodedata.category(character) != "Cs" for character in name)


@many
@given(name=st.from_regex(r"[a-z]{1,3}(\.[a-z]{1,3}){0,2}", fullmatch=True), taken=st.integers(0, 30))
def test_a_name_that_is_used_gets_a_number_and_never_another_campaign_s_name(name: str, taken: int) -> None:
    used: list[str] = []
    for _ in range(taken + 1):
        used.append(program.free_file_name(name, used.__contains__))
    assert len(set(used)) == taken + 1
    assert used[0] == name
    extension = "." + name.rpartition(".")[2] if "." in name else ""
    assert all(one.endswith(extension) for one in used)


# Masking -------------------------------------------------------------------------------------------------------------


@many
@given(before=texts, number=numbers, after=texts)
def test_no_phone_survives_masking(before: str, number: str, after: str) -> None:
    assume(not re.search(r"\d\W*$", before) and not re.search(r"^\W*\d", after))
    digits = re.sub(r"\D", "", number)
    assert digits not in re.sub(r"[^\w…]", "", program.masked(f"{before} {number} {after}"))
