"""Fictitious customers, phones and debts for the queries in ../queries: the same rows every time, dates around today.

    python sample_data/generate.py        creates and fills the tables in the database that PGHOST, PGDATABASE … name

Nobody in here exists. The CPFs have wrong check digits; the mobile numbers begin with 90, which no operator was ever
given. About one customer in twelve is awkward on purpose: see AWKWARD_NAMES, AWKWARD_PHONES and AWKWARD_NOTES.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

SEED = 20_261_222
CUSTOMERS = 24_000
SCHEMA_FILE = Path(__file__).with_name("schema.sql")

Row = tuple[Any, ...]


def words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = words(
    "Adriana Alessandra Álvaro Amélia Ana André Antônia Antônio Aparecida Beatriz Benício Bruna Caetano Camila "
    "Cândida Carlos Cecília César Cláudia Cristóvão Daniel Débora Edson Eduarda Elisângela Érica Fábio Fátima "
    "Fernanda Flávio Francisca Gabriel Geraldo Gonçalo Graça Gustavo Heloísa Iara Inês Isaías Jéssica João Joaquim "
    "José Josué Júlia Juraci Larissa Leandro Letícia Lívia Luís Luíza Magalí Márcia Márcio Marcos Maria Mário "
    "Matheus Mônica Natália Nícolas Otávio Patrícia Paulo Raíssa Raul Rejane Renata Roberto Rosângela Sebastião "
    "Sérgio Simone Sônia Tânia Tarcísio Teresa Thaís Ubiratã Valéria Vinícius Vitória Wagner Wellington Yara Zélia"
)
SURNAMES = words(
    "Abreu Almeida Alves Amorim Araújo Assunção Barbosa Barros Batista Bragança Brandão Brito Camargo Cardoso "
    "Carvalho Castelão Conceição Corrêa Couto Damião Dias Esteves Falcão Farias Fonseca Frazão Freitas Galvão "
    "Gonçalves Guimarães Gusmão Leitão Leão Lourenço Macêdo Magalhães Marçal Melo Mendonça Monção Moraes Moura "
    "Müller Muniz Nascimento Negrão Nóbrega Nunes Paixão Patrício Peçanha Pinheiro Queirós Quintão Rebouças Rocha "
    "Romão Salomão Sá Seixas Simão Tavares Teixeira Uchôa Valadão Vasconcelos Viegas Xavier Zanão"
)
PARTICLES = ("", "", "", "da ", "de ", "dos ", "e ")

AWKWARD_NAMES = (
    "Conceição; Filho & Cia",  # the delimiter
    'Antônio "Toninho" Brandão',  # quotes
    '"Mercearia São João"',  # quotes at both ends
    "Ana D'Ávila O'Neill",  # apostrophes
    "  João   Pedro  Assunção ",  # spaces around and between
    "Maria\tdas\tGraças",  # tabs
    "José da\r\nSilva Corrêa",  # a line break inside a name
    "Zoé 😀 Andrade",  # an emoji: four bytes in UTF-8, none in cp1252
    "Kenji 健二 Nakamura",  # not in cp1252 either
    "Jose\u0301 Decomposto",  # an accent as a character of its own
    "C:\\novo\\teste Ltda",  # backslashes, which COPY escapes
    "100% Motos, Peças",  # a per cent sign and a comma
    "NA",  # what pandas takes for missing
    "NULL",
    "\\N",  # what COPY takes for missing
    "=1+1 Comércio",  # what Excel takes for a formula
    "Márcio\u00a0Não-Separável",  # a no-break space
    "Bell\x07 Som",  # a control character
    "0012345",
    "-",
    "L'Hôtel €uro – “Aspas”",
)
AWKWARD_NOTES = (
    "ligar depois das 18h\nfalar com a esposa",
    'disse: "não devo"; desligou',
    "CLIENTE PEDIU BOLETO;\r\nENVIADO POR E-MAIL\r\n",
    "   ",
    "acordo 50%; ver c/ supervisão",
    "aniversário 🎂",
)
AWKWARD_PHONES = (
    "",
    "0",
    "não tem",
    "99999",
    "(00) 90000-0000",  # no such DDD
    "2390123456",  # nor this
    "11 0123-4567",  # no number begins with 0
    "11 7000-0000",  # a mobile number of before the ninth digit
    "119012345678",  # one digit too many
    "ramal 214",
    "recado: vizinha",
)
DDDS = words(
    "11 11 11 12 13 14 15 16 17 18 19 21 21 21 22 24 27 28 31 31 32 33 34 35 37 38 41 42 43 44 45 46 47 48 49 51 53 "
    "54 55 61 62 63 64 65 66 67 68 69 71 73 74 75 77 79 81 82 83 84 85 86 87 88 89 91 92 93 94 95 96 97 98 99"
)
PLACES = (
    ("São Paulo", "SP"),
    ("Ribeirão Preto", "SP"),
    ("Niterói", "RJ"),
    ("Vitória", "ES"),
    ("Belém", "PA"),
    ("Goiânia", "GO"),
    ("São Luís", "MA"),
    ("Florianópolis", "SC"),
    ("Maceió", "AL"),
    ("Jundiaí", "SP"),
)
STREETS = ("Rua das Acácias", "Av. Brasília", "Travessa do Açude", "Praça Sete de Março", "Rua D. Inês")
PRODUCTS = ("Cartão", "Crediário", "Empréstimo pessoal", "Consignado", "Veículo", None)

# How late a debt is, in days (negative: not due yet), and how many in a hundred debts are.
LATENESS = (
    ((-60, -6), 9),
    ((-5, -1), 11),
    ((0, 29), 18),
    ((30, 59), 24),
    ((60, 89), 10),
    ((90, 180), 16),
    ((181, 1500), 12),
)


def tables(today: date) -> dict[str, list[Row]]:
    """Every row of every table, in the order in which the tables must be filled."""
    rng = Random(SEED)
    clientes = list(_clientes(rng, today))
    contratos = list(_contratos(rng, today))
    late = [row for row in contratos if row[5] == "aberto" and row[4] < today]
    acordos = list(_acordos(rng, today, late))
    return {
        "clientes": clientes,
        "telefones": list(_telefones(rng)),
        "contratos": contratos,
        "acordos": acordos,
        "promessas": list(_promessas(rng, today, late)),
        "pagamentos": list(_pagamentos(rng, today, contratos)),
        "nao_perturbe": list(_nao_perturbe(rng, today, clientes)),
    }


def load(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Create the tables and fill them, in one transaction; returns the rows of each table.

    Raises psycopg's DuplicateTable, having changed nothing, if the tables are there already.
    """
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(SCHEMA_FILE.read_bytes())
        found = cursor.execute("SELECT current_date").fetchone()
        assert found is not None
        counts = {}
        for table, rows in tables(found[0]).items():
            with cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute(f"ANALYZE {table}".encode())
            counts[table] = len(rows)
    return counts


def fictitious_cpf(rng: Random) -> str:
    """11 digits whose last is not the check digit that belongs there."""
    digits = [int(digit) for digit in f"{rng.randrange(10**9):09d}"]
    for _ in range(2):
        digits.append(check_digit(digits))
    digits[-1] = (digits[-1] + rng.randrange(1, 10)) % 10
    return "".join(map(str, digits))


def check_digit(digits: Sequence[int]) -> int:
    """The next check digit of a CPF."""
    return (
        sum(digit * weight for digit, weight in zip(digits, range(len(digits) + 1, 1, -1), strict=True)) * 10 % 11 % 10
    )


def _clientes(rng: Random, today: date) -> Iterator[Row]:
    people: list[tuple[str, str]] = []
    for cliente_id in range(1, CUSTOMERS + 1):
        if people and rng.random() < 0.03:  # registered twice, by somebody with caps lock on
            cpf, nome = rng.choice(people)
            nome = nome.upper()
        else:
            cpf, nome = fictitious_cpf(rng), _name(rng)
        people.append((cpf, nome))
        cidade, uf = rng.choice(PLACES)
        yield (
            cliente_id,
            cpf,
            nome,
            None if rng.random() < 0.1 else today - timedelta(days=rng.randrange(18 * 365, 90 * 365)),
            None if rng.random() < 0.4 else f"cliente{cliente_id}@exemplo.invalid",
            _address(rng),
            cidade,
            uf,
            None if rng.random() < 0.25 else rng.randrange(1001),
            rng.choice(AWKWARD_NOTES) if rng.random() < 0.15 else None,
        )


def _name(rng: Random) -> str:
    if rng.random() < 0.04:
        return rng.choice(AWKWARD_NAMES)
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(PARTICLES)}{rng.choice(SURNAMES)} {rng.choice(SURNAMES)}"


def _address(rng: Random) -> str | None:
    if rng.random() < 0.05:
        return None
    street = f"{rng.choice(STREETS)}, {rng.randrange(1, 3000)}"
    return f"{street}\nBloco {rng.randrange(1, 20)}; ap. {rng.randrange(11, 200)}" if rng.random() < 0.1 else street


def _telefones(rng: Random) -> Iterator[Row]:
    telefone_id = 0
    for cliente_id in range(1, CUSTOMERS + 1):
        for prioridade in range(1, 1 + rng.choices((0, 1, 2, 3, 4), (2, 38, 40, 15, 5))[0]):
            telefone_id += 1
            numero = rng.choice(AWKWARD_PHONES) if rng.random() < 0.05 else _phone(rng)
            yield telefone_id, cliente_id, numero, prioridade, rng.random() < 0.96


def _phone(rng: Random) -> str:
    """A number that can be dialled, in one of the ways in which people type it."""
    ddd = rng.choice(DDDS)
    start, end = (f"90{rng.randrange(1000):03d}" if rng.random() < 0.85 else "2000"), f"{rng.randrange(10_000):04d}"
    form = rng.choices(
        (
            "{0}{1}{2}",
            "({0}) {1}-{2}",
            "+55 {0} {1}-{2}",
            "+55{0}{1}{2}",
            "0{0}{1}{2}",
            "0{0} {1} {2}",
            " {0}.{1}.{2} ",
        ),
        (60, 14, 7, 6, 6, 4, 3),
    )[0]
    return form.format(ddd, start, end)


def _contratos(rng: Random, today: date) -> Iterator[Row]:
    spans, weights = zip(*LATENESS, strict=True)
    number = 1_234
    for cliente_id in range(1, CUSTOMERS + 1):
        for _ in range(rng.choices((1, 2, 3), (82, 15, 3))[0]):
            number += rng.randrange(1, 900)
            produto = rng.choice(PRODUCTS)
            contrato = f"{rng.randrange(10**12):012d}{number:08d}" if produto == "Consignado" else f"{number:010d}"
            vencimento = today - timedelta(days=rng.randint(*rng.choices(spans, weights)[0]))
            situacao = rng.choices(("aberto", "liquidado", "cancelado"), (88, 10, 2))[0]
            yield contrato, cliente_id, produto, _amount(rng, produto), vencimento, situacao


def _amount(rng: Random, produto: str | None) -> str:
    """Reais as text, for money is never a float; most are some hundreds, and what was lent for a car is more."""
    cents = int(rng.lognormvariate(8.9 if produto == "Veículo" else 6.6, 0.9) * 100) + 100
    return f"{cents // 100}.{cents % 100:02d}"


def _acordos(rng: Random, today: date, late: list[Row]) -> Iterator[Row]:
    for acordo_id, row in enumerate(rng.sample(late, len(late) * 14 // 100), start=1):
        parcelas = rng.choice((2, 3, 4, 6, 10, 12, 24))
        parcela = f"{float(row[3]) / parcelas:.2f}"
        situacao = rng.choices(("vigente", "quebrado", "cumprido"), (45, 50, 5))[0]
        days = rng.randrange(3, 70) if situacao == "quebrado" else -rng.randrange(1, 30)
        vence = today - timedelta(days=days)
        yield acordo_id, row[0], vence - timedelta(days=rng.randrange(10, 60)), parcelas, parcela, vence, situacao


def _promessas(rng: Random, today: date, late: list[Row]) -> Iterator[Row]:
    for promessa_id, row in enumerate(rng.sample(late, 2_500), start=1):
        days = rng.choices((0, rng.randrange(1, 40), -rng.randrange(1, 15)), (8, 60, 32))[0]
        para_dia = today - timedelta(days=days)
        told = datetime.combine(para_dia - timedelta(days=rng.randrange(1, 8)), time(rng.randrange(8, 20), 30))
        yield promessa_id, row[0], told, para_dia, rng.choice((row[3], None))


def _pagamentos(rng: Random, today: date, contratos: list[Row]) -> Iterator[Row]:
    pagamento_id = 0
    for contrato, _, _, valor, vencimento, situacao in contratos:
        just_paid = situacao == "aberto" and rng.random() < 0.02  # paid, and not booked yet
        if situacao == "liquidado" or just_paid:
            pagamento_id += 1
            pago_em = today - timedelta(days=rng.randrange(3)) if just_paid else min(vencimento, today)
            yield pagamento_id, contrato, pago_em, valor


def _nao_perturbe(rng: Random, today: date, clientes: list[Row]) -> Iterator[Row]:
    for cpf in sorted({row[1] for row in rng.sample(clientes, CUSTOMERS // 50)}):
        yield cpf, today - timedelta(days=rng.randrange(900)), rng.choice(("Procon", "telefone", "e-mail", None))


def main() -> int:
    if "PGDATABASE" not in os.environ and "PGSERVICE" not in os.environ:
        print("Name the database first, in PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD.", file=sys.stderr)
        return 2
    import psycopg

    with psycopg.connect() as connection:
        for table, count in load(connection).items():
            print(f"{table:14}{count:>8,}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
