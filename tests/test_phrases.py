"""LANGUAGE=pt: everything that an operator can meet has its phrase, and every phrase is met by somebody.

The texts are not kept in a list here: they are read from the program's own source, wherever it builds one.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from stage import NOON, Stage

import mailing_pipeline as mp

HOLE = "¤"  # what a text has where the program fills something in

# Strings of several words that are no operator's business, by the function that builds them, and why.
ELSEWHERE = {
    "parser": "--help and usage errors, before any setting is read",
    "Treatment.apply": "the reason column of …_rejected.csv is data",
    "Report.totals": "goes to the log, which is English",
    "open_log": "the log's own format",
    "Dispatch.conclude": "the log's line on a campaign",
}
CONSTANTS = {"PORTUGUESE", "PAGE_STYLE", "PAGE_SCRIPT", "LEDGER_SQL", "SQL_TOKEN"}
SQL = re.compile(
    r"(BEGIN|SELECT|SET|INSERT|UPDATE|DELETE|CREATE|PRAGMA|COPY \(|EXPLAIN|set_config)\b"
    r"|.* = \?|changed [<>B]|state IN|campaign <>"
)
MARKUP = re.compile(r"</?[a-z]|\[/?[a-z]*\]|\Abold ")
# Composed with join() or by adding lines, so that no expression shows them whole.
COMPOSED = [
    f"missing {HOLE}; not expected {HOLE}",
    *(f"08:00-20:00 {days}" for days in ("mon,tue,wed,thu,fri", "mon,tue,wed,thu,fri,sat", ",".join(mp.DAY_NAMES))),
]
TROUBLES = (mp.Verdict.HELD, mp.Verdict.FAILED, mp.Verdict.UNKNOWN, mp.Verdict.DELIVERED)  # what an alert can tell

TREE = ast.parse(Path(mp.__file__).read_text(encoding="utf-8"))
PARENT = {child: node for node in ast.walk(TREE) for child in ast.iter_child_nodes(node)}
SCOPES = (ast.FunctionDef, ast.ClassDef, ast.Module)
FAULTS = {name for name, kind in vars(mp).items() if isinstance(kind, type) and issubclass(kind, mp.PipelineError)}


def above(node: ast.AST) -> Iterator[ast.AST]:
    """node and what it stands in, from the inside out."""
    while node:
        yield node
        node = PARENT.get(node)  # type: ignore[assignment]


def called(node: ast.AST) -> str:
    """'log.info' for log.info(…), '' for what is no call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def place(node: ast.AST) -> str:
    """'Treatment.apply': where in the program node stands."""
    return ".".join(reversed([item.name for item in above(node) if isinstance(item, SCOPES[:2])]))


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """What stands in scope itself, not in the functions and classes inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, SCOPES):
            yield from own_nodes(child)


def bindings(name: ast.Name) -> list[ast.AST] | None:
    """The expressions that a variable is set to; None if something else sets it as well."""
    for scope in (item for item in above(name) if isinstance(item, SCOPES)):
        found, binders = list[ast.AST](), 0
        for node in own_nodes(scope):
            pairs: list[tuple[ast.AST, ast.AST]] = []
            if isinstance(node, ast.Assign):
                values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
                pairs = [(node.targets[0], value) for value in values]
            elif isinstance(node, ast.For) and isinstance(node.iter, (ast.Tuple, ast.List)):
                pairs = [(node.target, item) for item in flat(node.iter.elts)]
            for target, value in pairs:
                both = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    both = list(zip(target.elts, value.elts, strict=True))
                found += [its for one, its in both if isinstance(one, ast.Name) and one.id == name.id]
            binders += isinstance(node, ast.arg) and node.arg == name.id
            binders += isinstance(node, ast.comprehension) and name.id in names_in(node.target)
            binders += isinstance(node, ast.For) and not pairs and name.id in names_in(node.target)
        if found or binders:
            return None if binders else found
    return None


def names_in(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}


def is_part(node: ast.AST) -> bool:
    """Whether node is assigned to a variable that only serves to build other texts."""
    parent = PARENT[node]
    target = parent.targets[0] if isinstance(parent, ast.Assign) else None
    if not isinstance(target, ast.Name):
        return False
    scope = next(item for item in above(node) if isinstance(item, SCOPES))
    uses = [item for item in ast.walk(scope) if isinstance(item, ast.Name) and item.id == target.id]
    reads = [item for item in uses if isinstance(item.ctx, ast.Load)]
    return bool(reads) and all(isinstance(PARENT[item], (ast.FormattedValue, ast.BinOp)) for item in reads)


def flat(items: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The items of a tuple, those of *(["a"] if b else []) among them."""
    for item in items:
        if isinstance(item, ast.Starred):
            yield from (part for part in ast.walk(item) if isinstance(part, ast.Constant))
        else:
            yield item


def texts(node: ast.AST, seen: frozenset[str] = frozenset()) -> set[str]:
    """Every text that an expression can give, HOLE for what is not known here; empty for what is no text."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=parts):
            return {"".join(chosen) for chosen in itertools.product(*(texts(part, seen) for part in parts))}
        case ast.FormattedValue(value=value, format_spec=None):
            return texts(value, seen) or {HOLE}
        case ast.FormattedValue():
            return {HOLE}
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = texts(left, seen), texts(right, seen)
            return {a + b for a in first or {HOLE} for b in second or {HOLE}} if first or second else set()
        case ast.IfExp(body=body, orelse=other) | ast.BoolOp(values=[body, other]):
            first, second = texts(body, seen), texts(other, seen)
            return (first or {HOLE}) | (second or {HOLE}) if first or second else set()
        case ast.Attribute(attr="verdict"):
            return {verdict.value for verdict in TROUBLES}
        case ast.Name(id=name) if name not in seen:
            return set().union(*(texts(value, seen | {name}) for value in bindings(node) or []))
    return set()


def is_whole(node: ast.AST) -> bool:
    """Whether node is a string expression that is part of no larger one."""
    if not isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) or isinstance(node, ast.expr_context):
        return False
    parent = PARENT[node]
    if isinstance(parent, (ast.IfExp, ast.BoolOp)):  # "unknown" + ("; did you mean …" if near else "")
        return is_whole(parent) or not isinstance(PARENT[parent], (ast.BinOp, ast.FormattedValue))
    return not isinstance(parent, (ast.JoinedStr, ast.BinOp, ast.FormattedValue))


def assigned_names(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return set().union(*map(names_in, targets))


def is_technical(node: ast.AST) -> bool:
    """Whether node is a docstring, goes to the log, or is a pattern, SQL or HTML by its place."""
    parent = PARENT[node]
    if isinstance(parent, ast.Expr):
        return True
    for item in above(node):
        name = called(item)
        if name.startswith(("log.", "re.", "argparse.")):
            return True
        if isinstance(item, ast.Assert) or CONSTANTS & assigned_names(item):
            return True
    if called(parent) == "Rule" and isinstance(parent, ast.Call) and parent.args[0] is node:
        return True
    if isinstance(parent, ast.keyword) and parent.arg in ("style", "kind", "reason"):
        return True
    return any(place(node) == where or place(node).startswith(where + ".") for where in ELSEWHERE)


@functools.cache
def operator_texts() -> dict[str, int]:
    """Every text that the program can tell an operator, with the line of the source that it comes from."""
    found: dict[str, int] = {}
    for node in ast.walk(TREE):
        if is_whole(node) and not is_part(node) and not is_technical(node):
            for text in texts(node):
                if re.search(r"[a-z]{2}.* | .*[a-z]{2}|-> ", text) and not SQL.match(text) and not MARKUP.search(text):
                    found.setdefault(text, node.lineno)  # type: ignore[attr-defined]
    for text, line in words():
        if re.search(r"[A-Za-z]", text):
            found.setdefault(text, line)
    return found


def words() -> Iterator[tuple[str, int]]:
    """The texts of one word: they are known by the place where they stand."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call):
            told = node.args[:1] if called(node) in ("say", "translate", "Finding", "finding") else []
            told += node.args[:2] if called(node) in FAULTS | {"Finding"} else []
            told += [item.value for item in node.keywords if item.arg in ("message", "hint", "what")]
        elif isinstance(node, ast.Return) and node.value and place(node) == "live_progress.doing":
            told = [node.value]
        else:
            continue
        for item in told:
            yield from ((text, node.lineno) for text in texts(item))
    for word in [*mp.Verdict, *(mark.word for mark in mp.Mark), *(code.meaning for code in mp.ExitCode)]:
        yield str(word), 0


class Recorded(str):
    """A Portuguese phrase without words, so that a translation keeps only what had none; notes that it was used."""

    used: set[str]
    english: str

    def format(self, *args: object, **kwargs: object) -> str:
        self.used.add(self.english)
        return super().format(*args, **kwargs)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Makes translate() drop every phrase that it knows; the English templates that were used."""
    patterns, found = [], set[str]()
    order = sorted(mp.PORTUGUESE, key=lambda english: -len(english.replace("{}", "")))
    for english, (pattern, _) in zip(order, mp.phrase_patterns(), strict=True):
        bare = Recorded(" ".join(["{}"] * english.count("{}")))
        bare.used, bare.english = found, english
        patterns.append((pattern, bare))
    monkeypatch.setattr(mp, "phrase_patterns", lambda: patterns)
    return found


def left_over(text: str) -> list[str]:
    """The words of text that no phrase covers; needs the fixture `used`. Names of keys, files and options are none."""
    rest = re.sub(r"\S*[A-Z_/.*%\\]\S*|--\w[\w-]*|\d\S*", " ", mp.translate(text, "pt"))
    return re.findall(r"[a-z]{2,}", rest)


@pytest.mark.usefixtures("used")
def test_every_text_has_its_phrase() -> None:
    english = {text: line for text, line in operator_texts().items() if left_over(text)}
    assert not english, "\n".join(f"line {line}: {text!r}: {left_over(text)}" for text, line in english.items())


def test_every_phrase_is_used(used: set[str]) -> None:
    for text in [*operator_texts(), *COMPOSED]:
        mp.translate(text, "pt")
    assert sorted(mp.PORTUGUESE.keys() - used) == []


def test_the_walk_finds_what_it_should() -> None:
    """A sample of every way in which the program builds a text: else the tests above could pass by seeing nothing."""
    found = operator_texts()
    assert {place(node) for node in ast.walk(TREE)} >= ELSEWHERE.keys()
    assert len(found) > 200
    for text in (
        f"must be a whole number from {HOLE} to {HOLE}",  # a parser's ValueError
        f"{HOLE}: {HOLE}: unknown setting; did you mean {HOLE}?",  # joined with +
        "run the query in an SQL tool to see more; ask the database administrator",  # a Rule's hint with a constant
        f"{HOLE}: the folder {HOLE} is used by {HOLE} too; each needs its own",  # a word from the loop's tuple
        f"{HOLE} contacts, {HOLE} below the usual {HOLE} (max_drop {HOLE}%)",  # a variable in an f-string
        "SFTP_KEY_FILE: ¤: the passphrase does not open it",
        "already delivered", "still to come", "rejected", "remote path", "waiting", "ledger", "FAULT", "ready",
        "everything due was delivered, already delivered, or empty where empty is allowed",
    ):  # fmt: skip
        assert text in found, text


@pytest.mark.parametrize("english", mp.PORTUGUESE)
def test_a_phrase_keeps_its_places(english: str) -> None:
    """As many places as in English; one at the beginning or end stays there, since more text may stand before it."""
    portuguese = mp.PORTUGUESE[english]
    places = [name for _, name, _, _ in string.Formatter().parse(portuguese) if name is not None]
    numbers = [int(name) if name else number for number, name in enumerate(places)]
    count = english.count("{}")
    assert sorted(numbers) == list(range(count))
    assert english.startswith("{}") == bool(re.match(r"\{0?\}", portuguese))
    assert english.endswith("{}") == bool(re.search(rf"\{{({count - 1})?\}}\Z", portuguese))
    told = mp.translate(english.replace("{}", HOLE), "pt")
    assert told == portuguese.format(*[HOLE] * count)  # no other phrase comes before it
    assert not re.search(r"\b(o|a) (o|a)\b|  (?!-)", portuguese.strip())


# Rendered texts -------------------------------------------------------------------------------------------------------

ENGLISH = re.compile(
    r"\b(the|is|was|were|and|are|or|of|with|has|have|by|from|this|that|than|then|it|its|must|not|ask|check|see|free|"
    r"folder|file|query|queries|column|row|contacts|server|missing|held|failed|delivered|run|slot|dialer|campaign|"
    r"unknown|sent|found|another|which|would|too|twice)\b",
    re.IGNORECASE,
)
# What stays as it is in a Portuguese sentence: quoted texts, keys of config.env and query files, options, paths, files.
NAMES = r"'[^']*'|\"[^\"]*\"|--\w[\w-]*|\S*[_/\\%;…{}]\S*|\bPG\w+|\w+\.\w+|" + rf"\b({'|'.join(mp.DIRECTIVES)}):"
TOLD = "relação inexistente"  # by a server, in its own language


def settings(tmp_path: Path, **values: str) -> mp.Settings:
    return mp.parse_settings(values, tmp_path, "config.env", sends=False, knows_host=False)


def faults_of(action: Any) -> list[str]:
    """The faults that action raises, one a line."""
    with pytest.raises(mp.SettingsFault) as caught:
        action()
    return list(caught.value.faults)


def wrong_settings(folder: Path) -> Iterator[str]:
    """A fault of every setting that can have one, and of the file itself."""
    wrong = dict.fromkeys(mp.SETTING_FIELDS, "\x01 \\..?x")
    yield from faults_of(lambda: mp.parse_settings(wrong, folder, "config.env", sends=True, knows_host=True))
    yield from faults_of(lambda: mp.parse_settings({"X": "1"}, folder, "config.env", sends=True, knows_host=True))
    for key, value in (
        ("SFTP_HOTS", "x"), ("RUN_DAYS", "sat-mon"), ("RUN_HOURS", "20:00-08:00"), ("FILE_NAME", "con.csv"),
        ("FILE_NAME", "lista.csv"), ("FILE_NAME", "lista_%H"), ("CSV_DELIMITER", "xx"),
    ):  # fmt: skip
        values = {key: value}
        yield from faults_of(lambda v=values: mp.parse_settings(v, folder, "config.env", sends=False, knows_host=False))
    path = folder / "config.env"
    for data in (b"A\nLANGUAGE=pt\nLANGUAGE=pt\nSFTP_PASSWORD=abc #def\n", b"A=\xff"):
        path.write_bytes(data)
        yield from faults_of(lambda: mp.load_settings(path, {}, sends=False, knows_host=True))
    yield from faults_of(lambda: mp.load_settings(folder / "none.env", {}, sends=False, knows_host=True))


def wrong_queries(folder: Path) -> Iterator[str]:
    """A fault of every kind that a query file can have."""
    for sql in (
        "", "SELECT 'x", "/* SELECT 1", "\\d", "COMMIT", "COPY t TO STDOUT", "((", "UPDATE t SET a = 1",
        "SELECT 1\n-- min_rows: 3", "-- min_row: 3\nSELECT 1", "-- min_rows:\nSELECT 1",
        "-- min_rows: 1\n-- min_rows: 1\nSELECT 1", "-- phones: a\n-- columns: b\nSELECT 1", "-- max_drop: x\nSELECT 1",
        "-- campaign: A B\nSELECT 1", "-- columns: a;;b\nSELECT 1", "-- folder: a\\b\nSELECT 1",
    ):  # fmt: skip
        yield from faults_of(lambda s=sql: mp.parse_campaign("10_x y.sql", s, settings(folder)))
    yield from faults_of(lambda: mp.load_campaigns(folder, settings(folder)))
    (folder / "10_a.sql").write_text("SELECT 1")
    (folder / "20_a.sql").write_text("SELECT 1")
    yield from faults_of(lambda: mp.load_campaigns(folder, settings(folder)))
    yield from faults_of(lambda: mp.choose([campaign(folder)], ["b"]))


def campaign(folder: Path, **directives: object) -> mp.Campaign:
    head = "".join(f"-- {key}: {value}\n" for key, value in directives.items())
    return mp.parse_campaign("10_a.sql", f"{head}SELECT 1", settings(folder))


def errors() -> Iterator[str]:
    """Every class of database and SFTP error, its message and hint."""
    for text in ("senha incorreta", 'role "x" não existe', "sem entrada em pg_hba.conf", "invalid port", "recusada"):
        error = mp.connect_error(f"conexão: {text}".replace("invalid port", 'banco de dados "x" não existe'))
        yield from (error.message, error.hint)
    for code in ("", "28P01", "57P01", "55P03", "57014", "53100", "25006", "42501", "42P01", "99999"):
        error = mp.query_error(code, TOLD, "10_a.sql", 7)
        yield from (error.message.replace("error (", "("), error.hint)
    sftp = "drop folder /e/a", "looking for /e/a.csv", "creating /e/.part-1", "renaming /e/.part-1 to a.csv"
    kinds: list[Exception] = [FileNotFoundError(2, TOLD), PermissionError(13, TOLD), EOFError(), OSError("Failure")]
    for doing, kind in itertools.product(sftp, kinds):
        fault, _ = mp.sftp_error(kind, f"SFTP: {doing}")
        yield from (fault.message, fault.hint)


def refusals(folder: Path) -> Iterator[str]:
    """Every guard's objection, and how an alert tells it."""
    shape = campaign(folder, columns="a;b")
    for columns in ((), ("a", "a"), ("b", "a"), ("a", "c"), ("a",), ("a", "b", "c")):
        yield from mp.layout_objection(columns, shape) or ()
    yield from mp.layout_objection(("b",), campaign(folder, phones="a")) or ()
    for rows in (10, 5000, 60):
        guarded = campaign(folder, min_rows=50, max_rows=4000, max_drop="50%")
        yield from mp.rows_objection(rows, guarded, [1400]) or ()
    deadline = mp.Deadline(mp.Clock(), 0)
    yield from mp.time_objection(campaign(folder, hours="03:00-03:00"), deadline, False) or ()
    yield from mp.time_objection(campaign(folder), deadline, True) or ()
    yield f"runs {campaign(folder).hours}"


def rendered(folder: Path) -> list[str]:
    told = [*wrong_settings(folder), *wrong_queries(folder), *errors(), *refusals(folder)]
    alerts = [f"alto_valor: {verdict}: {text}" for verdict in TROUBLES for text in told[::7]]
    holder = "process 4711, started 2026-12-22 10:00:01 by hand"
    return [*told, *alerts, *(f"another run is active: {text}" for text in (holder, "another run"))]


def test_rendered_texts_are_portuguese(tmp_path: Path) -> None:
    """What the functions themselves produce, filled in as in real life."""
    texts = rendered(tmp_path)
    assert len(texts) > 130
    for text in texts:
        told = mp.translate(text, "pt")
        bare = re.sub(NAMES, " ", told)
        assert not ENGLISH.search(bare), f"{text}\n{told}"


@pytest.mark.parametrize(
    ("english", "portuguese"),
    [
        ("more than max_rows 4,000 contacts", "mais que max_rows 4.000 contatos"),
        ("a: held: 10 contacts, fewer than min_rows 50", "a: retido: 10 contatos, menos que min_rows 50"),
        ("a.env: SFTP_VERIFY: must be one of: a, b", "a.env: SFTP_VERIFY: deve ser um destes valores: a, b"),
        ("sending 1.5 MB of 3.2 MB, 500 B/s", "enviando 1,5 MB de 3,2 MB, 500 B/s"),
        ("Slot 2026-12-22 10:00", "Horário 22/12/2026 10:00"),
        ("a.env: A: missing\na.env: B: set twice", "a.env: A: não definido\na.env: B: definido duas vezes"),
        # what is one word is a name: of a campaign, a column, a file
        ("column campaign comes twice", "a coluna campaign aparece duas vezes"),
        ("empty: failed: the columns changed: missing size", "empty: falhou: as colunas mudaram: falta size"),
        ("SFTP: drop folder /e/a: not a phrase", "SFTP: pasta de entrega /e/a: not a phrase"),  # the server's own words
        ("", ""),
    ],
)  # fmt: skip
def test_translate(english: str, portuguese: str) -> None:
    assert mp.translate(english, "pt") == portuguese
    assert mp.translate(english, "en") == english


# The program itself ---------------------------------------------------------------------------------------------------


def test_a_run_in_portuguese(stage: Stage) -> None:
    """The table, a held mailing with its hint, the page; log, ledger and JSON stay English."""
    stage.settings(LANGUAGE="pt")
    stage.query("10_entregue", "SELECT telefone, nome FROM contatos")
    stage.query("20_retida", "SELECT telefone FROM contatos LIMIT 3", min_rows=50)
    result = stage.run()
    assert result.exit_code == 4
    for told in ("Horário ", "campanha", "resultado", "contatos", "pasta de entrega", "entregue", "3.000", "retido"):
        assert told in result.stdout
    assert "20_retida".partition("_")[2] + ": retido: 3 contatos, menos que min_rows 50" in result.stdout
    assert "    -> confira a consulta e os dados" in result.stdout
    assert "código de saída 4: algumas campanhas falharam ou foram retidas" in result.stdout
    assert not ENGLISH.search(re.sub(r"\S*[_/]\S*", "", result.stdout))
    assert re.search(r"retida: held: .*3 contacts, fewer than min_rows 50", result.log)
    page = (stage.output / "status.html").read_text(encoding="utf-8")
    assert '<html lang="pt-BR">' in page
    assert "Últimos problemas" in page and "3 contatos, menos que min_rows 50" in page
    assert {entry["state"] for entry in stage.ledger()} == {"delivered", "held"}
    status = stage.run("--status")
    assert "Última execução com êxito" in status.stdout or "Nenhuma execução com êxito" in status.stdout
    assert stage.main(["--json", "--dry-run"]).verdicts == {"entregue": "would be sent", "retida": "held"}


def test_faults_of_the_settings_in_portuguese(stage: Stage) -> None:
    """Also when the fault is one of several, and in a query file."""
    stage.settings(LANGUAGE="pt", RUN_DAYS="seg-sab", SFTP_HOST=None)
    stage.query("10_a", "SELECT 1\n-- min_rows: 3")
    result = stage.run()
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert "config.env: RUN_DAYS: deve ter dias como mon-sat ou mon,wed,fri (em inglês)" in lines
    assert "config.env: SFTP_HOST: não definido" in lines
    assert "10_a.sql: linha 2: min_rows: deve ficar acima da primeira linha de SQL, ou não tem efeito" in lines
    assert lines[-1] == "código de saída 2: configuração, consultas ou modo de uso com erro"
    assert "must be days such as" in result.log


def test_check_in_portuguese(stage: Stage) -> None:
    stage.settings(LANGUAGE="pt")
    stage.query("10_a", "SELECT telefone FROM contatos")
    stage.query("20_b", "SELECT telefone FROM contatos", drop=False)
    result = stage.run("--check")
    assert result.exit_code == 6
    assert re.search(r"ok +configuração e consultas: 2 campanhas", result.stdout)
    assert re.search(r"ok +registro de entregas: ", result.stdout)
    assert re.search(r"ok +consulta 10_a\.sql: 1 colunas, sem a linha 'columns:': telefone", result.stdout)
    assert re.search(r"ok +pasta \S+/a: existe, permite gravar e renomear", result.stdout)
    assert re.search(r"FALHA +pasta \S+/b: SFTP: pasta de entrega \S+/b: ", result.stdout)
    assert "    -> crie a pasta no servidor, ou corrija '-- folder:'" in result.stdout


def test_an_alert_in_portuguese(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(mp, "send_alert", lambda _, title, body: sent.append(f"{title}\n{body}"))
    stage.settings(LANGUAGE="pt", ALERT_URLS="json://localhost")
    stage.query("10_retida", "SELECT telefone FROM contatos LIMIT 3", min_rows=50)
    stage.main(now=NOON)
    (alert,) = sent
    assert alert.splitlines() == [
        "mailing_pipeline: os mailings precisam de atenção",
        "retida: retido: 3 contatos, menos que min_rows 50",
        "    -> confira a consulta e os dados; se o número estiver certo, ajuste o limite no arquivo da consulta",
        "a próxima execução tenta de novo sozinha; nada é enviado duas vezes",
    ]


def test_a_page_path_is_no_phrase() -> None:
    """A drop folder or file that reads like a phrase stays as it is."""
    assert mp.translate(f"drop folder {PurePosixPath('/entrada/held')}", "pt") == "pasta de entrega /entrada/held"
