"""LANGUAGE=pt: every message has its Portuguese, with the same fields; every Portuguese is that of a message.

The templates are not kept in a list here: they are read from the program's own source, wherever it makes a message.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import psycopg
import pytest
from stage import NOON, Stage

import mailing_pipeline as mp

TREE = ast.parse(Path(mp.__file__).read_text(encoding="utf-8"))
PARENT = {child: node for node in ast.walk(TREE) for child in ast.iter_child_nodes(node)}
# First arguments of text() that stand for a word of State or the meaning of an ExitCode.
WORDS = {"self", "state", "mailing.state", "meaning", "pickup"}
# What is the same in both languages: nothing but fields, names of keys, and these words.
ONLY_NAMES = re.compile(r"[\W\d]*((\{\w+\}|SFTP|SFTP_\w+|ok|bytes)[\W\d]*)+")
SAME = {"login", "Mailings"}


def scope_of(node: ast.AST) -> ast.AST:
    while not isinstance(node, (ast.FunctionDef, ast.Module)):
        node = PARENT[node]
    return node


def constants(node: ast.AST) -> set[str] | None:
    """The strings that an expression may be; None if that is not known."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else None
    if isinstance(node, ast.IfExp):
        sides = constants(node.body), constants(node.orelse)
        return sides[0] | sides[1] if sides[0] is not None and sides[1] is not None else None
    if not isinstance(node, ast.Name):
        return None
    found: set[str] = set()
    for item in ast.walk(scope_of(node)):
        if isinstance(item, ast.Assign):
            for target in item.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = item.value.elts if isinstance(item.value, ast.Tuple) else [item.value]
                pairs = zip(names, values, strict=False)
                found |= set().union(*(constants(to) or set() for one, to in pairs if ast.unparse(one) == node.id))
    return found or None


def messages() -> Iterator[tuple[ast.Call, str]]:
    """Every place at which the program makes a message, with the template that it takes there."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("text", "say"):
            first = node.args[0]
            if ast.unparse(first) in WORDS or getattr(scope_of(node), "name", "") == "say":
                continue
            found = constants(first)
            assert found, f"line {node.lineno}: text({ast.unparse(first)}): which template is that?"
            yield from ((node, template) for template in found)


def templates() -> set[str]:
    """Everything that the program can say."""
    words = {*mp.State, *filter(None, mp.Pickup), *(code.meaning.template for code in mp.ExitCode)}
    return {template for _, template in messages()} | {str(word) for word in words}


def fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def test_every_message_has_its_portuguese() -> None:
    assert sorted(templates() - mp.PORTUGUESE.keys()) == []


def test_every_portuguese_is_that_of_a_message() -> None:
    assert sorted(mp.PORTUGUESE.keys() - templates()) == []


def test_the_walk_sees_the_messages() -> None:
    """Else the tests above could pass by seeing nothing."""
    assert len(templates()) > 300
    assert {"{contacts}, fewer than min_rows {least}", "already delivered", "another run is active"} <= templates()


def test_every_field_of_a_message_is_given() -> None:
    wanted: dict[ast.Call, list[set[str]]] = {}
    for call, template in messages():
        wanted.setdefault(call, []).append(fields_of(template))
    for call, fields in wanted.items():  # several, where a function uses one variable for several templates
        assert {str(item.arg) for item in call.keywords} in fields, f"line {call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("english", mp.PORTUGUESE)
def test_the_portuguese_has_the_same_fields_and_is_another_text(english: str) -> None:
    portuguese = mp.PORTUGUESE[english]
    assert fields_of(portuguese) == fields_of(english)
    assert portuguese != english or ONLY_NAMES.fullmatch(english) or english in SAME
    assert not re.search(r"\b(o|a) (o|a)\b|  (?!-)", portuguese.strip())


# What fills the fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["query 1.sql", "held", "failed", "a bug (traceback in the log)", "1,234.5", "{x}"])
def test_a_value_is_never_translated(value: str) -> None:
    told = mp.text("drop folder {path}", path=PurePosixPath("/entrada") / value)
    assert told.told("pt") == f"pasta de entrega /entrada/{value}"
    assert str(told) == f"drop folder /entrada/{value}"


@pytest.mark.parametrize(
    ("value", "english", "portuguese"),
    [
        (1_234_567, "1,234,567", "1.234.567"),
        (999, "999", "999"),
        ("5432", "5432", "5432"),  # a port
        (date(2026, 12, 25), "2026-12-25", "25/12/2026"),
        (datetime(2026, 12, 22, 10, 5), "2026-12-22 10:05", "22/12/2026 10:05"),
        (mp.text("held"), "held", "retido"),
        (["a", mp.text("held")], "a, held", "a, retido"),
    ],
)
def test_numbers_dates_and_messages_are_told_in_the_language(value: Any, english: str, portuguese: str) -> None:
    assert (mp.shown(value, "en"), mp.shown(value, "pt")) == (english, portuguese)


# What the functions themselves say ------------------------------------------------------------------------------------

ENGLISH = re.compile(
    r"\b(the|is|was|were|and|are|or|of|with|has|have|by|from|this|that|than|then|it|its|must|not|ask|check|see|free|"
    r"folder|file|query|queries|column|row|contacts|server|missing|held|failed|delivered|run|slot|dialer|campaign|"
    r"unknown|sent|found|another|which|would|too|twice)\b",
    re.IGNORECASE,
)
# What stays as it is in a Portuguese sentence: quoted texts, keys of config.env and query files, options, paths, files.
NAMES = r"'[^']*'|\"[^\"]*\"|--\w[\w-]*|\S*[_/\\%;…{}]\S*|\bPG\w+|\w+\.\w+|" + rf"\b({'|'.join(mp.DIRECTIVES)}):"
TOLD = "relação inexistente"  # by a server, in its own language


def assert_no_english(told: str) -> None:
    for line in told.splitlines():
        assert not ENGLISH.search(re.sub(NAMES, " ", line)), line


def settings(folder: Path, **values: str) -> mp.Settings:
    return mp.parse_settings(values, folder, "config.env", sends=False, knows_host=False)


def faults_of(action: Callable[[], object]) -> list[mp.Text]:
    """The faults that action raises."""
    with pytest.raises(mp.SettingsFault) as caught:
        action()
    return list(caught.value.lines)


def wrong_settings(folder: Path) -> Iterator[mp.Text]:
    """A fault of every setting that can have one, and of the file itself."""
    wrong = dict.fromkeys(mp.SETTING_FIELDS, "\x01 \\..?x")
    yield from faults_of(lambda: mp.parse_settings(wrong, folder, "config.env", sends=True, knows_host=True))
    yield from faults_of(lambda: mp.parse_settings({"X": "1"}, folder, "config.env", sends=True, knows_host=True))
    for key, value in (
        ("SFTP_HOTS", "x"), ("RUN_DAYS", "sat-mon"), ("RUN_HOURS", "20:00-08:00"), ("FILE_NAME", "con.csv"),
        ("FILE_NAME", "lista.csv"), ("FILE_NAME", "lista_%H"), ("CSV_DELIMITER", "xx"),
    ):  # fmt: skip
        yield from faults_of(lambda k=key, v=value: settings(folder, **{k: v}))  # type: ignore[misc]
    path = folder / "config.env"
    for data in (b"A\nLANGUAGE=pt\nLANGUAGE=pt\nSFTP_PASSWORD=abc #def\n", b"A=\xff"):
        path.write_bytes(data)
        yield from faults_of(lambda: mp.load_settings(path, {}, sends=False, knows_host=True))
    yield from faults_of(lambda: mp.load_settings(folder / "none.env", {}, sends=False, knows_host=True))


def wrong_queries(folder: Path) -> Iterator[mp.Text]:
    """A fault of every kind that a query file can have."""
    for sql in (
        "", "SELECT 'x", "/* SELECT 1", "\\d", "COMMIT", "COPY t TO STDOUT", "((", "UPDATE t SET a = 1",
        "SELECT 1\n-- min_rows: 3", "-- min_row: 3\nSELECT 1", "-- min_rows:\nSELECT 1",
        "-- min_rows: 1\n-- min_rows: 1\nSELECT 1", "-- phones: a\n-- columns: b\nSELECT 1", "-- max_drop: x\nSELECT 1",
        "-- campaign: A B\nSELECT 1", "-- columns: a;;b\nSELECT 1", "-- folder: a\\b\nSELECT 1",
    ):  # fmt: skip
        found = mp.parse_campaign("10_x y.sql", sql, settings(folder))
        assert isinstance(found, mp.BrokenQuery)
        yield from found.told


def campaign(folder: Path, **directives: object) -> Any:
    head = "".join(f"-- {key}: {value}\n" for key, value in directives.items())
    return mp.parse_campaign("10_a.sql", f"{head}SELECT 1", settings(folder))


def errors() -> Iterator[mp.PipelineError]:
    """Every class of database and SFTP error."""
    for told in ("senha incorreta", 'role "x" não existe', "sem entrada em pg_hba.conf", "recusada"):
        yield mp.connect_error(f"conexão: {told}", "10.0.0.1:5432")
    for code in ("", "28P01", "57P01", "55P03", "57014", "53100", "25006", "42501", "42P01"):
        error = psycopg.Error(TOLD)
        error.sqlstate = code
        yield mp.query_error(error, mp.place_in("10_a.sql", 7))
    kinds: list[Exception] = [FileNotFoundError(2, TOLD), PermissionError(13, TOLD), EOFError(), OSError(TOLD)]
    doing = mp.text("drop folder {path}", path="/e/a"), mp.text("creating {path}", path="/e/.part-1")
    for kind in kinds:
        yield from (mp.sftp_error(kind, what) for what in doing)
        yield mp.sftp_error(kind, mp.text("login"), where="10.0.0.1:22")


def refusals(folder: Path) -> Iterator[mp.PipelineError | None]:
    """Every guard's objection."""
    shape = campaign(folder, columns="a;b")
    for columns in ((), ("a", "a"), ("b", "a"), ("a", "c"), ("a",), ("a", "b", "c")):
        yield mp.layout_objection(columns, shape)
    yield mp.layout_objection(("b",), campaign(folder, phones="a"))
    guarded = campaign(folder, min_rows=50, max_drop="50%")
    for rows, rejected in ((10, 0), (60, 0), (0, 0), (0, 7)):
        yield mp.rows_objection(rows, rejected, guarded, [1400])
    yield mp.rows_objection(0, 0, campaign(folder), [])
    stop = mp.Stop(mp.Clock(), 0)
    yield mp.time_objection(campaign(folder, hours="03:00-03:00"), stop, False)
    yield mp.time_objection(campaign(folder), stop, True)


def test_what_the_functions_say_is_portuguese(tmp_path: Path) -> None:
    """Filled in as in real life."""
    told = [*wrong_settings(tmp_path), *wrong_queries(tmp_path)]
    for error in [*errors(), *refusals(tmp_path)]:
        told += error.lines if error else []
    assert len(told) > 100
    for message in told:
        assert_no_english(message.told("pt"))


# The program itself ---------------------------------------------------------------------------------------------------


def test_a_run_in_portuguese(stage: Stage) -> None:
    """The table, a held mailing with its hint, the page; the log stays English, and states and verdicts."""
    stage.settings(LANGUAGE="pt")
    stage.query("10_entregue", "SELECT telefone, nome FROM contatos")
    stage.query("20_retida", "SELECT telefone FROM contatos LIMIT 3", min_rows=50)
    result = stage.run()
    assert result.exit_code == 4
    for told in ("Horário ", "campanha", "resultado", "contatos", "entregue", "3.000", "retido"):
        assert told in result.stdout
    assert "20_retida".partition("_")[2] + ": retido: 3 contatos, menos que min_rows 50" in result.stdout
    assert "    -> confira a consulta e os dados" in result.stdout
    assert "código de saída 4: algumas campanhas falharam ou foram retidas" in result.stdout
    assert_no_english(result.stdout)
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
    stage.query("10_a", "SELECT 1")
    result = stage.run()
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert "config.env: RUN_DAYS: deve ter dias de segunda a domingo, como mon-sat ou mon,wed,fri (em inglês)" in lines
    assert "config.env: SFTP_HOST: não definido" in lines
    assert lines[-1].startswith("código de saída 2: ")
    assert "must be days from Monday to Sunday" in result.log


def test_faults_of_a_query_file_in_portuguese(stage: Stage) -> None:
    stage.settings(LANGUAGE="pt")
    stage.query("10_a", "SELECT 1\n-- min_rows: 3")
    stage.query("20_b", "SELECT 1 AS n")
    result = stage.run()
    assert result.exit_code == 4
    assert "linha 2: min_rows: deve ficar acima da primeira linha de SQL, ou não tem efeito" in result.stdout
    assert_no_english(result.stdout)


def test_check_in_portuguese(stage: Stage) -> None:
    stage.settings(LANGUAGE="pt")
    stage.query("10_a", "SELECT telefone FROM contatos")
    stage.query("20_b", "SELECT telefone FROM contatos", drop=False)
    result = stage.run("--check")
    assert result.exit_code == 4
    assert_no_english(result.stdout)
    assert re.search(r"ok +configuração: ok\n", result.stdout)
    assert re.search(r"ok +consultas: 2 campanhas\n", result.stdout)
    assert re.search(r"ok +registro de entregas: ", result.stdout)
    assert re.search(r"ok +consulta 10_a\.sql: 1 coluna[^:]*, sem a linha 'columns:': telefone", result.stdout)
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
        "retida: 12:00 retido: 3 contatos, menos que min_rows 50",
        "    -> confira a consulta e os dados; se o número estiver certo, ajuste o limite no arquivo da consulta",
        "a próxima execução tenta de novo sozinha; nada é enviado duas vezes",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--help"], "códigos de saída:"),
        (["--dryrun"], "erro: opções desconhecidas: --dryrun"),
        (["--only"], "erro: opção --only: falta o valor"),
        (["--check", "--status"], "erro: opção --status: não pode ser usada junto com opção --check"),
    ],
)
def test_help_and_wrong_usage_follow_the_language(stage: Stage, options: list[str], told: str) -> None:
    stage.settings(LANGUAGE="pt")
    in_config = stage.run(*options)
    assert told.replace("opção --check", "--check") in (in_config.stdout + in_config.stderr).replace(
        "opção --check", "--check"
    )
    stage.settings(LANGUAGE="en")
    by_environment = stage.run(*options, LANGUAGE="pt")
    assert by_environment.stdout == in_config.stdout and by_environment.stderr == in_config.stderr
    assert "uso: " in in_config.stdout + in_config.stderr


def test_what_goes_to_a_redirected_stderr_follows_the_language_and_the_log_does_not(stage: Stage) -> None:
    stage.settings(LANGUAGE="pt")
    stage.query("10_a", "SELECT 1 AS n")
    stage.query("20_b", "SELECT 1 AS n", min_rows=5)
    result = stage.run()
    assert "a: entregue: mailing_a_" in result.stderr and "1 contato, menos que min_rows 5" in result.stderr
    assert "a: delivered: mailing_a_" in result.log and "b: held: " in result.log
    assert "delivered" not in result.stderr
