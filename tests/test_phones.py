"""A number is never made up: what comes out of a cell is one phone for certain, or nothing.

Google's libphonenumber is the judge over many thousand cells, made from what phone columns of real databases hold.
PHONE_CELLS sets how many; where this program differs from it on purpose, DIFFERENCES says why.
"""

from __future__ import annotations

import functools
import os
import random
import re
from collections.abc import Callable, Iterator

import pandas as pd
import phonenumbers
import pyarrow as pa
import pytest
from phonenumbers import PhoneNumberType

from mailing_pipeline import clean_phones

CELLS = int(os.environ.get("PHONE_CELLS", "20000"))


def clean(*cells: str) -> list[str]:
    return clean_phones(pd.Series(list(cells), dtype=pd.ArrowDtype(pa.string()))).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Cells of which each stands for a decision
# ---------------------------------------------------------------------------------------------------------------------

MOBILE, FIXED = "11987654321", "1132345678"


@pytest.mark.parametrize(
    ("cell", "phone"),
    [
        # a number that was a float once is certain; an old mobile does not become one by the zero behind the point
        ("11987654321.0", MOBILE),
        ("5511987654321,0", MOBILE),
        ("1132345678.00", FIXED),
        ("1199988776.0", ""),
        ("1198765432,0", ""),
        ("11987654321.5", ""),
        ("1.19998877E10", ""),
        ("1,1987654321E+10", ""),
        ("1132345678::real", ""),
        # extensions: the number before it, if it is one
        ("(11) 3234-5678 ramal 12", FIXED),
        ("(11) 3234-5678 (Ramal: 12)", FIXED),
        ("11 3234-5678, r.5", FIXED),
        ("1132345678 ext. 1234", FIXED),
        ("11 3234-5678 x5", FIXED),
        ("11 3234-5678 #5", FIXED),
        ("(11) 9998-8776 r.5", ""),
        ("11 3234-567 r 8", ""),
        ("11 3234-5678 ramal", ""),
        ("11 3234-5678 ramal 1234567", ""),
        # what is dialled before
        ("+55 11 98765-4321", MOBILE),
        ("+ 55 (11) 98765-4321", MOBILE),
        ("(+55) 11 98765-4321", MOBILE),
        ("+55 (0) 11 98765-4321", MOBILE),
        ("+55 (011) 98765-4321", MOBILE),
        ("0055 11 98765-4321", MOBILE),
        ("00551132345678", FIXED),
        ("0 11 98765-4321", MOBILE),
        ("(011) 3234-5678", FIXED),
        ("0 21 11 98765-4321", MOBILE),
        ("021 (11) 3234-5678", FIXED),
        ("0211132345678", FIXED),
        ("0xx11 3234-5678", FIXED),
        ("(0XX11) 3234-5678", FIXED),
        ("90 11 98765-4321", MOBILE),
        ("9015 11 98765-4321", MOBILE),
        ("0 55 11 98765-4321", MOBILE),  # 55 is a carrier too, and the number is the same
        ("21 11 98765-4321", ""),  # a carrier without the 0: two area codes
        ("9090 98765-4321", ""),  # a local collect call
        # no area code: nothing may stand in for it
        ("98765-4321", ""),
        ("+55 98765-4321", ""),
        ("+55 93234-5678", ""),
        ("0055 3234-5678", ""),
        ("93234-5678 1", ""),
        ("932345678 1", ""),
        ("3234-5678 12", ""),
        ("323456789 0", ""),
        # 55 is Brazil and the area code of Santa Maria. Without + or 00 the count of digits decides, as when dialling
        ("55 99234-5678 ramal 9", "55992345678"),
        ("55 3234-5678", "5532345678"),
        ("(55) 98765-4321", "55987654321"),
        ("5532345678", "5532345678"),
        ("55987654321", "55987654321"),
        ("551132345678", FIXED),
        ("5511987654321", MOBILE),
        ("55 55 98765-4321", "55987654321"),
        ("+55 55 98765-4321", "55987654321"),
        ("+5555987654321", "55987654321"),
        ("55 99 2345-6789", "9923456789"),
        # another country
        ("+51 987 654 321", ""),
        ("+41 91 234 56 78", ""),
        ("+11 98765-4321", ""),
        ("0051 987 654 321", ""),
        ("+1 202 555 0123", ""),
        ("0 54 11 2345-6789", ""),  # Argentina with a 0; no carrier has the code 54
        # two phones, or a phone and something else
        ("11 3234-5678 / 3234-5679", ""),
        ("11 3234-5678/5679", ""),
        ("11987654321 11987654322", ""),
        ("11987654321/1132345678", ""),
        ("11 3234-5678 12", ""),
        ("(11) 98765-432 1", ""),
        ("(11) 9876-5432 1", ""),
        ("Tel 1: (19) 3234-5678", ""),
        ("Cel: (11) 98765-4321", "11987654321"),
        ("telefone 19 3234-5678", "1932345678"),
        ("11 98765-4321 (recado com a mãe)", ""),
        ("11 98765-432O", ""),
        ("11 98765-43?1", ""),
        ("-22.29068467", ""),  # a latitude
        ("0800 123 4567", ""),
        # punctuation
        ("'11987654321", MOBILE),
        ('"11987654321"', MOBILE),
        ("11987654321;", MOBILE),
        ("11.98765.4321", MOBILE),
        ("11.987.654.321", MOBILE),
        ("11/98765-4321", MOBILE),
        ("11) 98765-4321", MOBILE),
        ("[11] 98765-4321", MOBILE),
        ("(11)9 8765 4321", MOBILE),
        ("(11) 9876-54321", MOBILE),
        ("11 32 34 56 78", FIXED),
        ("1198765-4321", MOBILE),
        ("119876-54321", MOBILE),
        ("11\u00a098765\u20114321", MOBILE),
        ("\u202a+55 11 98765-4321\u202c", MOBILE),
        ("\ufeff11987654321", MOBILE),
        ("11 98765–4321", MOBILE),
        ("11 98765_4321", ""),
        ("(11) 9876-5432_", ""),  # a form's mask, one digit short
        # digits of other scripts are not dropped: they are not understood
        ("11 ９3765-4321", ""),
        ("１１９８７６５４３２１", ""),
        ("11 98765-432١", ""),
        ("11 98765-4321²", ""),
        ("①11987654321", ""),
        # not in the numbering plan
        ("11 8765-4321", ""),
        ("11 7765-4321", ""),  # Nextel, whose network ended in 2018
        ("20 98765-4321", ""),
        ("11 198765432", ""),
        ("", ""),
        ("não tem", ""),
    ],
    ids=str,
)
def test_a_cell_is_one_phone_for_certain_or_it_is_none(cell: str, phone: str) -> None:
    assert clean(cell) == [phone]


# ---------------------------------------------------------------------------------------------------------------------
# Many thousand cells
# ---------------------------------------------------------------------------------------------------------------------

# {0} to {3} are the parts of a phone: area code, first part of the number, last part, and one more digit or two.
READABLE = (
    *("{0}{1}{2}", "({0}) {1}-{2}", "({0}){1}-{2}", "{0} {1} {2}", "{0}-{1}-{2}", "{0}.{1}.{2}", "{0} {1}{2}"),
    *("0{0}{1}{2}", "(0{0}) {1}-{2}", "0 {0} {1}-{2}", "0xx{0} {1}-{2}", "(0XX{0}) {1}-{2}", "{0}/{1}-{2}"),
    *("+55 {0} {1}-{2}", "+55{0}{1}{2}", "+55 ({0}) {1}-{2}", "55{0}{1}{2}", "55 {0} {1}-{2}", "(55) {0} {1}-{2}"),
    *("0055{0}{1}{2}", "0055 {0} {1} {2}", "+55 (0{0}) {1}-{2}", "+55 (0) {0} {1}-{2}", "(+55 {0}) {1}-{2}"),
    *("0 21 {0} {1}-{2}", "041{0}{1}{2}", "0 (15) {0} {1}-{2}", "90 {0} {1}-{2}", "90{0}{1}{2}", "9021 {0} {1}{2}"),
    *("({0}) {1}-{2} ramal {3}", "{0} {1}-{2} r.{3}", "{0}{1}{2} x{3}", "({0}) {1}-{2} (ramal {3})"),
    *("{0}{1}{2}.0", "{0}{1}{2},0", "55{0}{1}{2}.0", "'{0}{1}{2}", "{0}{1}{2};", "\u202a+55 {0} {1}\u2011{2}\u202c"),
    *("{0}\u00a0{1}\u2013{2}", "({0} ) {1} - {2}", "{0}) {1}-{2}", " {0} {1}{2}  "),
)
UNREADABLE = (
    *("{1}-{2}", "{1}{2}", "+55 {1}-{2}", "{1}-{2} {3}", "{1}{2} {3}", "{0} {1}-{2} {3}", "{0}{1}{2}{3}"),
    *("+51 {0} {1}-{2}", "+1 {0}{1}{2}", "00{0} {1}-{2}", "+{0} {1}-{2}", "{0}{1}{2}E{3}", "{0}{1}{2}.{3}5"),
    *("Tel {3}: ({0}) {1}-{2}", "({0}) {1}-{2} / {1}-{3}", "{0}{1}{2} {0}{1}{2}", "{0} {1}-{2} falar com Ana"),
    *("{0}{1}.{3}", "{0} {2}", "{3} {0} {1}-{2}", "{0}{1}{2}::real", "-{0}.{1}{2}", "({0}) {1}-{2}_", "{0} {1}-xx{3}"),
)
AREAS = (*range(11, 20), 21, 22, 24, 27, 31, 38, 41, 43, 49, 51, 54, 55, 55, 61, 69, 71, 79, 81, 85, 91, 93, 99)
DIRT = "0123456789955 ()-.,/+#xr'_Ea\u00a0\u2011\uff11\u0661"


def parts_of_a_phone(chance: random.Random) -> tuple[str, str, str, str]:
    """Area code, first and last part of a mobile or fixed number of today, and one more digit or two."""
    first = chance.choice(["9", ""]) + str(chance.randrange(2000, 6000))
    return str(chance.choice(AREAS)), first, f"{chance.randrange(10000):04}", str(chance.randrange(100))


def spoilt(cell: str, chance: random.Random) -> str:
    """A cell with one to three characters added, changed or gone."""
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(cell) + 1)
        cell = cell[:place] + chance.choice(["", chance.choice(DIRT)]) + cell[place + chance.randrange(2) :]
    return cell


def written_cells(count: int) -> Iterator[tuple[str, str]]:
    """Cells as people write phones, and the phone; the same every time."""
    chance = random.Random(11)
    for _ in range(count):
        parts = parts_of_a_phone(chance)
        yield chance.choice(READABLE).format(*parts), "".join(parts[:3])


def any_cells(count: int) -> Iterator[str]:
    """Cells of every kind, most of them no phone; the same every time."""
    chance = random.Random(12)
    for _ in range(count):
        parts = parts_of_a_phone(chance)
        if chance.randrange(4) == 0:  # older numbers, which had no ninth digit, or seven digits only
            parts = (parts[0], str(chance.randrange(100, 10000)), *parts[2:])
        cell = chance.choice(chance.choice([READABLE, UNREADABLE])).format(*parts)
        yield spoilt(cell, chance) if chance.randrange(2) else cell


def judged(cell: str) -> str:
    """The Brazilian mobile or fixed phone that libphonenumber sees in a cell."""
    try:
        number = phonenumbers.parse(cell, "BR")
    except phonenumbers.NumberParseException:
        return ""
    people = (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE, PhoneNumberType.FIXED_LINE_OR_MOBILE)
    if number.country_code != 55 or phonenumbers.number_type(number) not in people:
        return ""
    return str(phonenumbers.national_significant_number(number))


def groups(cell: str) -> str:
    """'2 5 4' for (11) 98765-4321, '0 2 5 4' for (011) 98765-4321: how many digits stand together."""
    found = re.findall("0(?=[1-9])|[0-9]+", cell)
    return " ".join("0" if digits == "0" else str(len(digits)) for digits in found)


# How people divide a phone, without and with what is dialled before it.
USUAL = {
    *("10", "11", "2 8", "2 9", "2 4 4", "2 5 4", "2 1 4 4", "2 4 5", "6 4", "7 4", "6 5", "0 2 4 4", "0 2 5 4"),
    *("12", "13", "2 10", "2 11", "4 4 4", "4 5 4", "2 2 8", "2 2 9", "2 2 4 4", "2 2 5 4", "8 4", "9 4"),
}


def is_divided_by_brackets(cell: str, phone: str) -> bool:
    """Whether something else than blanks, dashes and dots stands between the digits of the number."""
    behind_the_first_digit = rf"(?:[0-9][^0-9]*){{1,{len(phone) - 3}}}"
    return bool(re.search(rf"[0-9][^0-9]*[^0-9\s.\u2011\u2013-][^0-9]*{behind_the_first_digit}$", cell))


# Where libphonenumber reads a phone and this program none, none where this program reads one, or another: why, and
# which cells (and phones of libphonenumber's) that is true of. The first that is true counts.
THEIRS_ALONE: dict[str, Callable[[str, str], object]] = {
    "was a float: the zero behind the point is no digit of the phone": lambda cell, _: re.search("[.,]0+$", cell),
    "Nextel, whose network ended in 2018": lambda _, theirs: theirs[2] == "7",
    "digits of another script": lambda cell, _: any(digit.isdigit() for digit in cell if digit > "9"),
    "letters, a form's empty place, or an extension of seven digits": lambda cell, _: re.search("[A-Za-z_#]", cell),
    "a minus sign or the like before it: a latitude, a balance": lambda cell, _: re.match(r"\W*[-\u2011.,;/)]", cell),
    "divided as no phone is: it may be two things": lambda cell, _: groups(cell) not in USUAL,
    "brackets, commas, slashes inside the number": is_divided_by_brackets,
    "a plus sign without 55": lambda cell, _: "+" in cell,
}
OURS_ALONE = {
    "a float": r"^[0-9]+[.,]00?$",
    "extensions as they are called in Brazil": r"(?i)[^a-z](r|ram|ramal)[\s.:-]*[0-9]+[\s)]*$",
    "0055, as dialled abroad: libphonenumber wants a carrier in it": r"^[ ('\u202a]*0\W*0\W*5\W*5",
}


def why(cell: str, ours: str, theirs: str) -> str:
    """The reason on purpose for a difference, or '' if there is none."""
    if ours:
        return next((reason for reason, pattern in OURS_ALONE.items() if re.search(pattern, cell)), "")
    return next((reason for reason, is_true in THEIRS_ALONE.items() if is_true(cell, theirs)), "")


@pytest.fixture(scope="module")
def many() -> list[tuple[str, str, str]]:
    """Cells, what this program reads in them, and what libphonenumber does."""
    cells = list(any_cells(CELLS))
    return list(zip(cells, clean(*cells), map(judged, cells), strict=True))


def test_every_way_that_people_write_a_phone_is_read() -> None:
    cells, phones = zip(*written_cells(CELLS), strict=True)
    read = zip(cells, clean(*cells), phones, strict=True)
    assert [(cell, ours, phone) for cell, ours, phone in read if ours != phone] == []


def test_libphonenumber_reads_the_same_or_the_difference_is_on_purpose(many: list[tuple[str, str, str]]) -> None:
    reasons = {(cell, ours, theirs): why(cell, ours, theirs) for cell, ours, theirs in many if ours != theirs}
    assert [difference for difference, reason in reasons.items() if not reason] == []
    assert set(reasons.values()) == {*THEIRS_ALONE, *OURS_ALONE}, "a reason that no cell needs"
    assert sum(ours == theirs != "" for _, ours, theirs in many) > len(many) / 10


BEFORE = re.compile("(?:(?:00)?55)?(?:(?:0|90)(?:1[245]|2[1-35]|31|4[13]|[56]5|99)?)?")


def test_a_number_is_never_made_up(many: list[tuple[str, str, str]]) -> None:
    """It is one of Brazil's, its digits stand in the cell side by side, and every other digit there has its meaning."""
    found = [(cell, ours) for cell, ours, _ in many if ours]
    assert len(found) > len(many) / 10
    for cell, phone in found:
        assert judged("+55" + phone) == phone
        bare = re.sub(r"(?i)(^[0-9]+)[.,]00?$|[a-z#][^a-z0-9]*[0-9]{1,6}[^0-9a-z]*$", r"\1", cell)
        before, _, after = re.sub("[^0-9]", "", bare).rpartition(phone)
        assert BEFORE.fullmatch(before) and not after, cell


@functools.cache
def is_a_phone(digits: str) -> bool:
    return bool(re.fullmatch("[1-9][0-9](9[0-9]{8}|[2-5][0-9]{7})", digits)) and judged("+55" + digits) == digits


def test_no_row_of_digits_can_be_read_as_two_phones() -> None:
    dialled = ["", "55", "0055"]
    carriers = ["", *(str(n) for n in range(100) if BEFORE.fullmatch(f"0{n}") and n > 9 and n != 90)]
    before = [*dialled, *(f"{one}{zero}{carrier}" for one in dialled for zero in ("0", "90") for carrier in carriers)]
    areas = [str(n) for n in range(11, 100) if is_a_phone(f"{n}987654321")]
    assert (len(carriers), len(areas)) == (14, 67)
    for area in areas:
        for number in ("932345678", "994945678", "987654321", "32345678", "21212121", "55555555"):
            rows = [first + area + number for first in before]
            for row in rows:
                read = {row.removeprefix(first) for first in before if row.startswith(first)}
                assert {phone for phone in read if is_a_phone(phone)} == {area + number}
            assert set(clean(*rows)) == {area + number}
