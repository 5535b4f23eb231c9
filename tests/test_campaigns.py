"""queries/NN_campaign.sql: the directives, the statements, and what is wrong with a file, before any query runs."""

from __future__ import annotations

import os
from datetime import datetime, time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from stage import PROJECT, Stage

from mailing_pipeline import (
    DIRECTIVES,
    BrokenQuery,
    Campaign,
    QueryFiles,
    Settings,
    SettingsFault,
    Text,
    choose,
    free_file_name,
    load_campaigns,
    load_settings,
    original_of,
    parse_campaign,
    parse_directives,
    render_file_name,
    shown,
    split_statements,
    start_times,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_settings(tmp_path)


def with_settings(folder: Path, text: str = "SFTP_BASE_DIR=/entrada\n") -> Settings:
    (folder / "config.env").write_text(text)
    return load_settings(folder / "config.env", {}, sends=False, knows_host=False)


def faults(text: str, settings: Settings, source: str = "10_a.sql") -> list[str]:
    """What is wrong with a query file. Each fault has its Portuguese, with other words."""
    found = parse_campaign(source, text, settings)
    assert isinstance(found, BrokenQuery)
    for fault in found.faults:
        assert fault.told("pt") != str(fault)
    return list(map(str, found.told))


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
    "hours": ("09:00-18:00", lambda c: c.hours.starts == start_times("09:00-18:00"), "9-18"),
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
    assert TABLE.keys() == DIRECTIVES.keys()


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
    assert campaign.hours.days == {1} and campaign.hours.starts_on(1) == (time(10), time(11))
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


SQL = "SELECT telefone_1, nome, cpf, valor FROM contatos WHERE dias_atraso > 30"


def misspelt(line: str, settings: Settings, sql: str = SQL) -> str:
    """The one fault of a query file with that line in front."""
    (fault,) = faults(f"-- a comment\n{line}\n{sql}", settings)
    return fault


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("-- min rows: 500", "min_rows"),
        ("-- Min. rows: 500", "min_rows"),
        ("-- min_rows = 500", "min_rows"),
        ("-- min_rows => 500", "min_rows"),
        ("-- min_rows 50", "min_rows"),
        ("-- min rows 50", "min_rows"),
        ("-- min_rows - 50", "min_rows"),
        ("-- min_rows – 50", "min_rows"),
        ("-- min_rows：50", "min_rows"),
        ("-- min_rows 500 contatos", "min_rows"),
        ("-- min_rows\t50", "min_rows"),
        ("-- min\u200b_rows: 50", "min_rows"),
        ("-- min-rows: 50", "min_rows"),
        ("-- minrows: 50", "min_rows"),
        ("-- MIN ROWS: 50", "min_rows"),
        ("-- min_row: cinquenta", "min_rows"),
        ("-- columns a;b", "columns"),
        ("-- columns telefone_1", "columns"),
        ("-- column: telefone_1", "columns"),
        ("-- colums: nome;cpf", "columns"),
        ("-- phone: telefone_1", "phones"),
        ("-- uniqe: cpf", "unique"),
        ("-- folders: /entrada/x", "folder"),
        ("-- folder /entrada/x", "folder"),
        ("-- folder = entrada/x", "folder"),
        ("-- max-drop: 70%", "max_drop"),
        ("-- max_drop 70", "max_drop"),
        ("-- hour: 09:00-18:00", "hours"),
        ("-- hour: 9h-18h", "hours"),
        ("-- hours 09:00-18:00", "hours"),
        ("-- day: mon-fri", "days"),
        ("-- days = seg-sex", "days"),
        ("-- Day: fri", "days"),
        ("-- time out: 300", "timeout"),
        ("-- enable: no", "enabled"),
        ("-- readonly: no", "read_only"),
        ("-- read only: no", "read_only"),
        ("-- file name: x_{campaign}.csv", "file_name"),
        ("-- campaigns: cobranca_30d", "campaign"),
        ("--- min_rows: 50", "min_rows"),
        ("-- -- min_rows: 50", "min_rows"),
        ("-- * min_rows: 50", "min_rows"),
        ('-- "min_rows": 50', "min_rows"),
        ("-- [min_rows] 50", "min_rows"),
        ("/* min_rows: 500 */", "min_rows"),
        ("/* -- unique: cpf */", "unique"),
        ("/** folder: /entrada/x **/", "folder"),
    ],
)
def test_a_misspelt_directive_is_a_fault_with_its_line_and_the_right_spelling(
    line: str, key: str, settings: Settings
) -> None:
    fault = misspelt(line, settings)
    assert fault.startswith("10_a.sql: line 2: ") and f"write '-- {key}: …'" in fault


def typing_errors(word: str) -> set[str]:
    """Every word that one typing error makes of it."""
    made = {word[:n] + word[n + 1 :] for n in range(len(word))}
    made |= {word[:n] + word[n + 1 : n + 2] + word[n : n + 1] + word[n + 2 :] for n in range(len(word))}
    for letter in "aeqz1_- ":
        made |= {word[:n] + letter + word[n:] for n in range(len(word) + 1)}
        made |= {word[:n] + letter + word[n + 1 :] for n in range(len(word))}
    return made - {word}


@pytest.mark.parametrize("key", TABLE)
def test_every_single_typing_error_in_a_directive_is_told(key: str) -> None:
    for written in sorted(typing_errors(key)):
        given, found = parse_directives(f"-- {written}: {TABLE[key][0]}\nSELECT 1 AS a")
        if given:  # blanks around the key are no error
            assert written.strip() == key and not found
        else:
            assert [str(fault) for fault in found if f"'-- {key}: " in str(fault)], written


@pytest.mark.parametrize(
    ("written", "key"),
    [("dias", "days"), ("colunas", "columns"), ("horas", "hours"), ("syad", "days"), ("dasy1", "days"), ("", "days")],
)
def test_two_typing_errors_are_two(written: str, key: str) -> None:
    assert parse_directives(f"-- {written}: {TABLE[key][0]}\nSELECT 1 AS a") == ({}, [])


ORDINARY = """
Campanha: Cobrança 30 dias
Campanha: cobranca_30d
Colunas: telefone_1; nome; cpf
Coluna: telefone_1
Dias: 30 a 59
Dias: seg-sex
Dia: segunda
Limite: 5000
Horas: 08:00-20:00
Hora: 9
Horário: 08:00-20:00
Autor: Ana Souza
Autora: Beatriz
Data: 01/02/2026
Data de criação: 01/02/2026
Data da última alteração: 2026-02-01
Criado em: 2025-11-03
Criado por: Joao
Alterado por: Maria em 02/2026
Responsável: equipe de dados
Solicitante: Cobrança
Objetivo: selecionar clientes em atraso
Descrição: base do discador
Finalidade: discador
Fase: 2
Faixa: 30-59
Tempo: 3 min
Tempo médio: 40 s
Nome: cobranca_30d
Nome do arquivo: mailing_30d.csv
Versão: 2
Versão: 1.0
Unidade: Centro
Pasta: /entrada/x
Pasta de entrega: /entrada/x
Arquivo: cobranca.sql
Telefones: telefone_1, telefone_2
Telefone: 11 3333-4444
Fone: 3333-4444
Contato: dados@exemplo.com.br
Único: cpf
Únicos: cpf
Chave: cpf
Cabeçalho: sim
Separador: ;
Delimitador: ;
Codificação: utf-8
Mínimo: 50
Máximo: 200000
Mínimo de linhas: 50
Linhas: 500
Queda máxima: 70%
Ativo: sim
Habilitado: não
Somente leitura: sim
Obs: rodar depois da carga
Obs.: ver chamado 123
Observação: não alterar
Observações: nenhuma
Nota: valores em reais
Atenção: só clientes ativos
Importante: conferir antes
Aviso: base provisória
Fonte: DW
Origem: sistema de cobrança
Base: producao
Banco: dw
Servidor: db1
Esquema: cobranca
Tabela: contratos
Tabelas: contratos, clientes
Regra: um contrato por cliente
Regras: ver wiki
Filtro: dias_atraso > 30
Filtros: valor > 10
Ordem: valor desc
Prioridade: 1
Período: mensal
Periodicidade: diária
Frequência: de hora em hora
Agenda: seg a sab
Carteira: veículos
Produto: cartão
Cliente: Banco Exemplo
Projeto: Discador
Sistema: ERP
Área: Crédito
Setor: Cobrança
Empresa: Exemplo Ltda
Status: em produção
Situação: aberta
Tipo: preventivo
Grupo: A
Canal: voz
Discador: novo
Mailing: 30 dias
Lote: 7
Etapa: 1 de 3
Passo: 2
Parte: 1
Total: 3.500
Valor: 10,00
Exemplo: 11 98765-4321
Histórico: v1 criação
Ticket: 4521
Chamado: 4521
Revisão: 3
Revisado por: Carlos
Aprovado por: Gerência
Depende de: carga da noite
Pré-requisito: carga
Uso: interno
Confidencial: sim
Das: 8 às 20
das 8 às 20 h
dias uteis
horas 8 a 20
Owner: Ana, since 2024: all overdue
Author: Ana
Date: 2026-02-01
Created: 2026-02-01
Modified by: Ana
Purpose: overdue customers
Description: base for the dialer
Name: overdue_30d
File: x
File: 10_cobranca_30d.sql
File name: 10_cobranca_30d.sql
Filename: cobranca.sql
Version: 2
Phase: 2
Contact: data@example.com
Note: amounts in BRL
Notes: none
TODO: index
FIXME: slow on Mondays
Source: warehouse
Table: contratos
Schedule: hourly
Time: 08:00
Timing: 40 s
Limit: 5000
Rows: 500
Row count: 3500
Minimum: 50
Maximum: 200000
Drop: 70%
Path: /entrada/x
Directory: /entrada/x
Reader: dialer team
Leader: Ana
Read-only: this query changes nothing
Yours: Ana
Tours: 3 a day
unique, one row for each customer
unique customers first
unique per person
columns as the dialer wants them
columns, in the dialer's order
column order matters
phones cleaned, deduplicated
phones only from the last year
folder of the dialer
days overdue are counted from the due date
days: see below
days monitored by the team
Days - 30 to 59
columns * of the view
encoding isolated
hours are local
hour 10 is the busiest
header and footer are added by the dialer
headers are in Portuguese
campaign of the summer
campaigns run in name order
timeout is generous because the view is slow
encoding matters for the old dialer
enabled again since March
pickup takes a minute
min_rows is low because of holidays
min_rows below comes from last year's figures
max_drop of a Monday is larger
Min and max are guards
maximum rows per person
see https://wiki.example/x
valor::text
days::int
columns::text
max_rows::int
no
----------
==========
***
[x]
{campaign}
30 to 59 days overdue, the day's main mailing. The longest overdue are called first.
Reduced to digits and checked; who has no number left is not sent.
""".strip().splitlines()


def test_ordinary_comments_in_two_languages_are_left_alone(settings: Settings) -> None:
    plain = parse_campaign("10_a.sql", SQL, settings)
    assert len(ORDINARY) > 190
    for words in ORDINARY:
        if words.partition(":")[0] in DIRECTIVES:
            continue  # then it is one
        for comment in (f"-- {words}", f"--{words}", f"/* {words} */", f"/*\n * {words}\n */", f"-- {words.upper()}"):
            given, found = parse_directives(f"{comment}\n{SQL}\n{comment}\n")
            assert not given and not found, (comment, [str(fault) for fault in found])
    commented = parse_campaign("10_a.sql", f"--\n\n-- no\n\n{SQL} -- columns: x\n--", settings)
    assert commented.select.words == plain.select.words and commented.columns is None


def test_the_sample_queries_have_no_faults_and_no_comment_that_looks_like_a_directive(settings: Settings) -> None:
    paths = sorted((PROJECT / "queries").glob("*.sql"))
    assert len(paths) > 5
    for path in paths:
        assert isinstance(parse_campaign(path.name, path.read_text(encoding="utf-8"), settings), Campaign)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_where_editors_and_postgresql_end_them(end: str, settings: Settings) -> None:
    text = f"-- a comment{end}-- min_rows: 5{end}\nSELECT 1 AS a"
    assert parse_campaign("10_a.sql", text, settings).min_rows == 5


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_no_other_character_ends_a_line(character: str, settings: Settings) -> None:
    """Seen: a working `-- folder:` hidden in the middle of a comment, after a character that no editor shows."""
    text = f"-- a comment{character}-- folder: /outra\nSELECT 1 AS a"
    assert parse_campaign("10_a.sql", text, settings).folder == PurePosixPath("/entrada/a")


@pytest.mark.parametrize("block", ["/* Campanha: 30 dias */", "/*\n * Autor: Ana\n * /* nested */\n */", "/**/ "])
def test_a_block_comment_may_stand_above_the_directives(block: str, settings: Settings) -> None:
    found = parse_campaign("10_a.sql", f"{block}\n-- min_rows: 5\n/* b */\n-- max_rows: 9\nSELECT 1 AS a", settings)
    assert (found.min_rows, found.max_rows) == (5, 9)


def test_a_fault_in_a_block_comment_names_its_own_line(settings: Settings) -> None:
    (fault,) = faults(f"/* Autor: Ana\n\n   min_rows: 500\n*/\n{SQL}", settings)
    assert fault == "10_a.sql: line 3: min_rows: has no effect so; write '-- min_rows: …'"


@pytest.mark.parametrize("comment", ["-- min rows: 500", "/* min_rows: 500 */", "-- min_rows = 500"])
def test_a_guard_is_looked_for_below_the_sql_too(comment: str, settings: Settings) -> None:
    (fault,) = faults(f"{SQL}\n{comment}", settings)
    assert fault.startswith("10_a.sql: line 2: ") and "write '-- min_rows: …'" in fault


def test_a_directive_below_the_sql_is_a_fault(settings: Settings) -> None:
    (fault,) = faults("SELECT 1 AS a\n-- min_rows: 5", settings)
    assert fault.startswith("10_a.sql: line 2: min_rows: must stand above")


def test_a_comment_like_a_directive_inside_the_sql_is_left_alone(settings: Settings) -> None:
    found = parse_campaign("10_a.sql", "SELECT 'x\n-- min_rows: 5\n' AS a, -- max_rows: 5\n1", settings)
    assert found.min_rows is None and found.max_rows is None


def test_the_hours_of_a_campaign_may_differ_by_weekday(settings: Settings) -> None:
    hours = parse_campaign("10_a.sql", f"-- hours: 09:00-18:00, sat 08:00-13:00\n{SQL}", settings).hours
    assert shown(hours.told(), "en") == "mon-fri 09:00-18:00, sat 08:00-13:00"
    assert hours.keys == ("RUN_DAYS", "hours:")
    hours = parse_campaign("10_a.sql", f"-- days: mon,wed\n{SQL}", settings).hours
    assert shown(hours.told(), "en") == "mon 08:00-20:00, wed 08:00-20:00"
    assert hours.keys == ("days:", "RUN_HOURS")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("-- days: mon-fri\n-- hours: 08:00-20:00, sat 08:00-13:00", "hours: has hours for sat, which days: leaves"),
        ("-- hours: sun 08:00-12:00", "hours: has hours for sun, which RUN_DAYS leaves"),
    ],
)
def test_hours_of_a_day_on_which_a_campaign_never_runs_are_a_fault(lines: str, told: str, settings: Settings) -> None:
    assert faults(f"{lines}\n{SQL}", settings) == [f"10_a.sql: {told} out"]


def test_a_campaign_may_have_hours_for_a_day_that_the_settings_leave_out_for_now(tmp_path: Path) -> None:
    """Or RUN_DAYS=mon-fri for a week would break every campaign that knows of Saturday."""
    narrow = with_settings(tmp_path, "RUN_DAYS=mon-fri\n")
    found = parse_campaign("10_a.sql", f"-- hours: 08:00-20:00, sat 08:00-13:00\n{SQL}", narrow)
    assert shown(found.hours.told(), "en") == "mon-fri 08:00-20:00"


def test_phones_and_unique_must_be_among_the_columns(settings: Settings) -> None:
    found = faults("-- columns: a;b\n-- phones: c\n-- unique: a, d\nSELECT 1 AS a, 2 AS b", settings)
    assert found == ["10_a.sql: phones: c is not one of columns:", "10_a.sql: unique: d is not one of columns:"]


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


# ---------------------------------------------------------------------------------------------------------------------
# The folder of the query files
# ---------------------------------------------------------------------------------------------------------------------

SOUND = "SELECT 1 AS a"


def lay(folder: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with these query files."""
    folder = folder / "consultas"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def broken(files: QueryFiles) -> dict[str, list[str]]:
    """The faults of each broken file by its name; each has its Portuguese."""
    for query in files.broken:
        assert all(fault.told("pt") != str(fault) for fault in query.faults)
    return {query.source: list(map(str, query.faults)) for query in files.broken}


def notes(files: QueryFiles) -> list[str]:
    """What is said of the files that are not read; each sentence has its Portuguese."""
    assert all(note.told("pt") != str(note) for note in files.notes)
    return list(map(str, files.notes))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-- min_rows: x\n-- max_rows: y\nSELECT 1; COMMIT", "line 1: min_rows: must be a whole number"),
        ("", "empty: no SQL statement"),
        ("-- nome: não\nSELECT 'ção' AS a".encode("cp1252"), "line 1: not a text in UTF-8 (ANSI"),
        (b"SELECT 1\n\n-- \x81\x8d\xff", "line 3: not a text in UTF-8"),
        ("SELECT 1 AS a".encode("utf-16"), "line 1: not a text in UTF-8 (ANSI or UTF-16"),
        ("SELECT 1 AS a".encode("utf-16-le"), "line 1: not a text in UTF-8 (ANSI or UTF-16"),
        ("SELECT 1 AS a".encode("utf-16-be"), "line 1: not a text in UTF-8 (ANSI or UTF-16"),
        ("SELECT 1;\nSELECT 'a\0b' AS a", "line 2: not a text in UTF-8"),
        ("-- columns: a\rSELECT 1 AS a\r", "line 1: ends in CR alone"),
    ],
)
def test_a_faulty_file_costs_its_own_campaign_only(
    tmp_path: Path, settings: Settings, text: str | bytes, told: str
) -> None:
    files = load_campaigns(lay(tmp_path, {"10_a.sql": SOUND, "20_b.sql": text, "30_c.sql": SOUND}), settings)
    assert [campaign.name for campaign in files.campaigns] == ["a", "c"]
    (query,) = files.broken
    assert (query.source, query.name) == ("20_b.sql", "b")
    assert broken(files)["20_b.sql"][0].startswith(told)
    assert not files.notes


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path, settings: Settings) -> None:
    text = "-- min_rows: x\n-- max_rows: y\n-- uniqe: a\nSELECT 1 AS a; COMMIT"
    found = broken(load_campaigns(lay(tmp_path, {"10_a.sql": SOUND, "20_b.sql": text}), settings))
    assert [fault.partition(":")[0] for fault in found["20_b.sql"]] == ["line 1", "line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    ("name", "text", "campaign"),
    [
        ("20_b c.sql", SOUND, "b c"),
        ("20_b (2).sql", SOUND, "b (2)"),
        ("20_B.sql", SOUND, "B"),
        ("20_b c.sql", "-- campaign: bc\nCOMMIT", "bc"),
        ("20_b.sql", "-- campaign: bc\nSELECT 'ção'".encode("cp1252"), "b"),
    ],
)
def test_a_broken_file_names_the_campaign_that_it_would_feed(
    tmp_path: Path, settings: Settings, name: str, text: str | bytes, campaign: str
) -> None:
    files = load_campaigns(lay(tmp_path, {"10_a.sql": SOUND, name: text}), settings)
    assert [query.name for query in files.broken] == [campaign]
    assert [query.source for query in files.broken] == [name]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (SOUND, f"-- campaign: a\n{SOUND}", ["the name a is used by", "the folder /entrada/a is used by"]),
        (SOUND, f"-- folder: /Entrada/A/\n{SOUND}", ["the folder /"]),
        (SOUND, "-- campaign: a\nCOMMIT", ["the name a is used by"]),
    ],
    ids=["name", "folder", "a name that a faulty file has too"],
)
def test_two_campaigns_with_one_name_or_folder_are_both_at_fault(
    tmp_path: Path, settings: Settings, first: str, second: str, told: list[str]
) -> None:
    files = load_campaigns(lay(tmp_path, {"10_a.sql": first, "20_b.sql": second, "30_c.sql": SOUND}), settings)
    assert [campaign.name for campaign in files.campaigns] == ["c"]
    found = broken(files)
    for source, other in (("10_a.sql", "20_b.sql"), ("20_b.sql", "10_a.sql")):
        said = [fault for fault in found[source] if other in fault]
        assert [fault.startswith(start) for fault, start in zip(said, told, strict=True)] == [True] * len(told)


def test_a_drop_folder_that_is_the_staging_folder_breaks_its_campaign(tmp_path: Path) -> None:
    settings = with_settings(tmp_path, "SFTP_STAGING_DIR=/A\n")
    files = load_campaigns(lay(tmp_path, {"10_a.sql": SOUND, "20_b.sql": SOUND}), settings)
    assert [campaign.name for campaign in files.campaigns] == ["b"]
    assert broken(files) == {"10_a.sql": ["the folder /a is used by SFTP_STAGING_DIR too; each needs its own"]}


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        ("10_x - Copia", "10_x"),
        ("10_x - Cópia", "10_x"),
        ("10_x - Co\u0301pia", "10_x"),
        ("10_x - Copia (2)", "10_x"),
        ("10_x - Copy", "10_x"),
        ("10_x - Copy (3)", "10_x"),
        ("10_x - Copia - Copia", "10_x"),
        ("10_x-Copia", "10_x"),
        ("Cópia de 10_x", "10_x"),
        ("Copy of 10_x", "10_x"),
        ("10_x (2)", "10_x"),
        ("10_x(1)", "10_x"),
        ("10_x (cópia)", "10_x"),
        ("10_x (conflicted copy 2026-12-01)", "10_x"),
        ("10_x copy 2", "10_x"),
        ("10_x 2", "10_x"),
        ("10_x-DESKTOP-AB12", "10_x"),
        ("10_x-NOTE07", "10_x"),
        ("10_x-DESKTOP-AB12-2", "10_x"),
        ("10_x", "10_x"),
        ("10_x_copia", "10_x_copia"),
        ("10_cobranca_30d", "10_cobranca_30d"),
        ("10_a b", "10_a b"),
        ("10_a-b", "10_a-b"),
    ],
)
def test_a_copy_is_known_by_its_name(copy: str, original: str) -> None:
    assert original_of(copy) == original


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("10_a - Copia.sql", SOUND, "it looks like a copy of 10_a.sql; "),
        ("10_a (2).sql", "no SQL at all", "it looks like a copy of 10_a.sql; "),
        ("10_a-DESKTOP-AB12.sql", SOUND, "it looks like a copy of 10_a.sql; "),
        ("70_nova.sql.txt", SOUND, "its name must begin with a letter or digit and end in .sql"),
        ("70_nova.sql.bak", SOUND, "its name must begin with a letter or digit and end in .sql"),
        ("70_nova.txt", SOUND, "its name must begin with a letter or digit and end in .sql"),
        ("70_nova", SOUND, "its name must begin with a letter or digit and end in .sql"),
        (".70_nova.sql.swp", SOUND, "its name must begin with a letter or digit"),
        ("._10_a.sql", b"\0\5\x16\7", "its name must begin with a letter or digit"),
        ("70_nova.sql", f"-- enabled: no\n{SOUND}", "its line 'enabled: no' switches it off"),
        ("70_nova.sql", "-- enabled: no\n-- min_rows: x\nnot written yet", "its line 'enabled: no' switches it off"),
        ("10_a.SQL", SOUND, "its name must begin with a letter or digit and end in .sql"),
    ],
)
def test_a_file_that_is_not_read_is_named_and_costs_nothing(
    tmp_path: Path, settings: Settings, name: str, text: str | bytes, why: str
) -> None:
    if os.name == "nt" and name.endswith(".SQL"):
        pytest.skip("Windows knows no difference: there it is read")
    files = load_campaigns(lay(tmp_path, {"10_a.sql": SOUND, name: text}), settings)
    assert [campaign.source for campaign in files.campaigns] == ["10_a.sql"]
    assert not files.broken
    (note,) = notes(files)
    assert note.startswith(f"{name} is not read: {why}")


def test_a_folder_that_is_named_like_a_query_is_not_read(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, {"10_a.sql": SOUND})
    (folder / "20_b.sql").mkdir()
    (folder / "antigas").mkdir()
    assert notes(load_campaigns(folder, settings)) == ["20_b.sql is not read: it is a folder"]


def test_other_files_in_the_folder_are_nobodys_business(tmp_path: Path, settings: Settings) -> None:
    files = load_campaigns(lay(tmp_path, {"10_a.sql": SOUND, "LEIAME.txt": "x", "Thumbs.db": b"\0"}), settings)
    assert not files.notes and not files.broken


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_file_name_that_cannot_be_shown_is_told_with_question_marks(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, {"10_a.sql": SOUND, "20_\x1b[31m.sql": SOUND})
    Path(os.fsdecode(os.fsencode(folder) + b"/30_\xff.sql")).write_text(SOUND)
    assert list(broken(load_campaigns(folder, settings))) == ["20_?[31m.sql", "30_?.sql"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_opened_is_a_fault_of_its_own(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, {"10_a.sql": SOUND, "20_b.sql": SOUND})
    (folder / "20_b.sql").chmod(0)
    assert "cannot be read" in broken(load_campaigns(folder, settings))["20_b.sql"][0]


def test_a_link_to_nowhere_is_a_fault_of_its_own(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, {"10_a.sql": SOUND})
    try:
        (folder / "20_b.sql").symlink_to("nowhere")
    except OSError:
        pytest.skip("this account may make no links")
    assert broken(load_campaigns(folder, settings))["20_b.sql"][0].startswith("cannot be read: ")


def test_campaigns_come_in_the_order_of_their_files_without_those_switched_off(
    tmp_path: Path, settings: Settings
) -> None:
    off = f"-- enabled: no\n{SOUND}"
    named = {"20_b": SOUND, "10_z": SOUND, "30_a": SOUND, "15_off": off, "16_z": off, "17_x": "", "05_y": ""}
    files = load_campaigns(lay(tmp_path, {f"{name}.sql": text for name, text in named.items()}), settings)
    assert [campaign.name for campaign in files.campaigns] == ["z", "b", "a"]
    assert [query.name for query in files.broken] == ["y", "x"]
    assert [note.partition(" ")[0] for note in notes(files)] == ["15_off.sql", "16_z.sql"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, ["no query file that can be used"]),
        ({"10_a.sql": f"-- enabled: no\n{SOUND}"}, ["no query file", "10_a.sql is not read: its line 'enabled: no'"]),
        ({"10_a.sql": "SELECT 1;\nCOMMIT"}, ["no query file", "10_a.sql: line 2: COMMIT: remove it"]),
        ({"10_a.sql.txt": SOUND}, ["no query file", "10_a.sql.txt is not read: "]),
        ({"10_a.sql": SOUND, "20_a.sql": SOUND}, ["10_a.sql: the name", "10_a.sql: the folder", "20_a.sql: the name"]),
    ],
    ids=["empty", "switched off", "broken", "not read", "two of one name"],
)
def test_without_one_usable_query_nothing_starts_and_every_reason_is_told(
    tmp_path: Path, settings: Settings, files: dict[str, str | bytes], told: list[str]
) -> None:
    with pytest.raises(SettingsFault) as caught:
        load_campaigns(lay(tmp_path, files), settings)
    said = str(caught.value)
    assert "QUERIES_DIR" in said and all(words in said for words in told)
    assert all(isinstance(fault, Text) and fault.told("pt") != str(fault) for fault in caught.value.lines)


def test_a_folder_that_is_missing_is_a_fault(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(SettingsFault, match=r"nowhere.*QUERIES_DIR"):
        load_campaigns(tmp_path / "nowhere", settings)


def test_a_run_without_one_usable_query_ends_with_2_before_any_query_runs(stage: Stage) -> None:
    stage.query("20_b", "SELECT 1 AS a;\nCOMMIT")
    stage.query("30_c", "SELECT 1 AS a", mim_rows=3)
    result = stage.run()
    assert result.exit_code == 2
    assert "20_b.sql: line 2: COMMIT" in result.stderr
    assert "30_c.sql: line 1: mim_rows: has no effect so; write '-- min_rows: …'" in result.stderr
    assert not stage.ledger()


def test_only_takes_the_named_campaigns_and_knows_the_broken_ones(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, {"10_a.sql": SOUND, "20_b.sql": SOUND, "30_c.sql": "", "40_d.sql": "", "5_e.sql.txt": ""})
    files = load_campaigns(folder, settings)
    assert choose(files, []) == files
    chosen = choose(files, ["c", "b"])
    assert ([c.name for c in chosen.campaigns], [b.name for b in chosen.broken]) == (["b"], ["c"])
    assert chosen.notes == files.notes != ()
    with pytest.raises(SettingsFault, match=r"--only x: no such campaign; known: a, b, c, d$"):
        choose(files, ["a", "x"])


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


ROUTINE = """CREATE OR REPLACE FUNCTION pg_temp.f(n int) RETURNS int LANGUAGE sql BEGIN ATOMIC
  SELECT CASE WHEN n > 0 THEN 1 END; SELECT CASE n WHEN 1 THEN CASE n WHEN 1 THEN 2 END END;
END; SELECT 2"""
RULE = """CREATE RULE r AS ON INSERT TO a DO ALSO (INSERT INTO b VALUES (1); INSERT INTO c VALUES (2);); SELECT 2"""


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
        (
            "SELECT E'a' -- and\n  -- so on\n 'b\\';c' AS a; SELECT 2",
            ["SELECT E'a' -- and\n  -- so on\n 'b\\';c' AS a", "SELECT 2"],
        ),
        ("SELECT E'a'\r'\\'' ; SELECT 2", ["SELECT E'a'\r'\\''", "SELECT 2"]),
        ("SELECT E'a' 'b\\' ; SELECT 2", ["SELECT E'a' 'b\\'", "SELECT 2"]),
        ("SELECT 'a'\n'b\\' ; SELECT 2", ["SELECT 'a'\n'b\\'", "SELECT 2"]),
        ("-- a\rSELECT 1; -- b\rSELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT a\u00a0$$;SELECT 2", ["SELECT a\u00a0$$", "SELECT 2"]),
        (ROUTINE, [ROUTINE.rpartition(";")[0], "SELECT 2"]),
        (RULE, [RULE.rpartition(";")[0], "SELECT 2"]),
        ("CREATE TABLE begin (atomic int); SELECT 2", ["CREATE TABLE begin (atomic int)", "SELECT 2"]),
        ("-- only; a comment", []),
        ("", []),
    ],
)
def test_a_file_is_split_where_postgres_would_split_it(text: str, statements: list[str]) -> None:
    assert [statement.text.strip() for statement in split_statements(text)] == statements


def test_a_statement_knows_its_line() -> None:
    found = split_statements("-- note\nSET a = 1;\n\n/* two\nlines */ SELECT 'x\ny';\r\n  SELECT 3;\r\rSELECT 4")
    assert [statement.line for statement in found] == [2, 5, 7, 9]


# a piece of a long file -> how many statements each of it makes
LONG = {"a;": 1, "a;\n": 1, "/**/a;": 1, "--a\n;": 0, "--a\r;": 0, "$a;": 1, "E'a'\n;": 1, "('a');": 1, "é\u2028;": 1}


class Counted(str):
    """A text that knows how many characters of it were looked through."""

    looked = 0

    def count(self, sub: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        end = len(self) if end is None else end
        self.looked += end - start
        return super().count(sub, start, end)


@pytest.mark.parametrize("piece", LONG)
def test_a_long_file_is_looked_through_once(piece: str) -> None:
    """The work, not the time: lines were once counted from the top for each statement, 32 s for 400 KB."""
    text = Counted(piece * (40_000 // len(piece)))
    found = split_statements(text)
    assert len(found) == LONG[piece] * (len(text) // len(piece))
    assert 0 < text.looked <= 3 * len(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\nSELECT 'open", 2),
        ('SELECT 1 AS "open', 1),
        ("SELECT\n\n$x$ open $$", 3),
        ("SELECT E'open\\'", 1),
        ("SELECT 1 /* open /* */", 1),
        ("SELECT 1\n\\gexec", 2),
        ("SELECT (\n1 + (2)\n; SELECT 2", 1),
        ("SELECT E'a'\n\n'b\\'", 1),
    ],
)
def test_what_does_not_end_is_a_fault_with_its_line(text: str, line: int, settings: Settings) -> None:
    (fault,) = faults(text, settings)
    assert fault.startswith(f"10_a.sql: line {line}: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty: no SQL statement"),
        (" \r\n\n", "empty: no SQL statement"),
        ("-- nothing yet", "empty: no SQL statement"),
        ("# a comment\nSELECT 1", "line 1: #: the last statement must return"),
        ("SELECT\u00a01 AS a", "line 1: holds a character that cannot be seen"),
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


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff-- columns: a\r\nSELECT 'á'\r\n  AS a;\r\n-- end\r\n",
        "-- columns: a\nSELECT 'á' AS a; -- trailing",
        "-- columns: a\nSELECT 'á' AS a -- trailing, without semicolon",
        "-- columns: a\nSET LOCAL work_mem = '8MB'; SELECT 'á' AS a WHERE 'x%%' LIKE '%x%%';;",
        "-- columns: a\n(SELECT 'á' AS a)",
        "-- columns: a\nWITH v (a) AS (VALUES ('á')) TABLE v",
        "-- columns: a\nSELECT E'\\u00e1' -- on\n  '' AS a; -- and\rSELECT E''\n'\\u00e1' AS a",
        f"-- read_only: no\n-- columns: a\n{ROUTINE.rpartition(';')[0]};\nSELECT translate('x', 'x', 'á') AS a",
        "-- read_only: no\n-- columns: a\nCREATE TEMP TABLE t (a text); CREATE TEMP TABLE u (a text);\n"
        "CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO u VALUES ('á'); DELETE FROM t;);\n"
        "INSERT INTO t VALUES ('x'); SELECT a FROM u",
    ],
    ids=[
        "BOM and CRLF",
        "trailing comment",
        "comment at the end",
        "percent",
        "parentheses",
        "with and table",
        "strings that go on",
        "a routine in SQL",
        "a rule with brackets",
    ],
)
def test_these_ways_to_write_a_query_all_work(stage: Stage, text: str) -> None:
    path = stage.query("10_a", "")
    path.write_bytes(text.encode())
    assert stage.deliver().verdicts == {"a": "delivered"}
    assert stage.cells("a") == [["a"], ["á"]]
