"""Feeds a call centre's dialer: SQL in PostgreSQL -> pandas -> CSV -> the SFTP folder of each campaign.

The Windows Task Scheduler starts this program every hour from 08:00 to 20:00, Monday to Saturday. It runs
`queries/*.sql`, turns each result into a timestamped CSV and puts it into the folder that the dialer
watches for that campaign. The dialer sees the file and starts calling people at once, with nobody looking.

Vocabulary
    campaign     one .sql file, and the dialer campaign it feeds    cobranca_30d
    mailing      the rows of one campaign in one run, as a CSV      mailing_cobranca_30d_22-12_10-00.csv
    drop folder  the SFTP folder that the dialer watches            /entrada/cobranca_30d
    slot         the clock hour a run belongs to                    2026-12-22 10:00
    temp name    what a mailing is called until it is whole         .part-5f0c2a91
    final name   what the dialer looks for                          mailing_cobranca_30d_22-12_10-00.csv
    delivered    the complete file has its final name in the drop folder
    held         a guard refused the mailing; nothing was sent
    in doubt     it may have reached the dialer, and nobody can tell yet; never sent again
    ledger       what was delivered, kept across runs and crashes   output/ledger.sqlite3

Promises
    1. Each campaign and slot reaches the dialer at most once, complete, in its own folder, in its hours.
    2. A file is uploaded under a temp name, checked, and only then renamed; a final name is never overwritten.
    3. A lost reply to the rename is settled by looking, in this run or the next, never by sending again.
    4. Every value is the text that PostgreSQL wrote: no number or date of Python's comes near it.
    5. An empty, collapsed, exploded or reshaped mailing is held, and said so.
    6. One campaign's failure never stops the others. One run at a time on a PC.
    7. No password, phone, CPF or row appears in a log or message.

How it is built
    `Run.plan` finds the campaigns of the slot. A worker claims one after the other, and takes each mailing from
    its query to its final name, in one straight line, `Line.bring`:

        read, treat, write -> judge -> send, verify -> (commit) -> publish, note

    Only a query that writes (`read_only: no`) has something to commit. A rename whose reply was lost is settled
    by looking: `Line.settle`, called by `publish` and, for what an earlier run or another PC left behind, by
    `settle_leftovers` before anything else is done with that campaign. Whatever a worker meets ends in
    `Run._conclude`, as a `State`. At the run's deadline, and at Ctrl+C, `Stop` ends every wait of ours with
    `Stopped`: what is not out by then fails and its temp is removed, a rename without an answer is in doubt, and
    nothing is renamed any more. Where a wait that is not ours goes on all the same, the watchdog breaks the SFTP
    connection, and at last ends the process.

    Workers share four things, each with its own lock inside: the database, the SFTP connection, the ledger,
    the stop. What a campaign is in a run is one record, a `Mailing`. Reports, page, alerts and the exit code
    are computed from these records.

    With LEDGER several PCs share the work: a claim is then held by the PC's session with PostgreSQL. The PC that
    takes over a campaign first settles what its last holder left. A PC that has lost its session can note nothing
    of what it held, and so publishes nothing of it.

Exit codes
    0  everything due was delivered, already delivered, or empty where empty is allowed
    1  a bug (traceback in the log)
    2  settings, ledger or usage wrong, or no usable query file: nothing was started
    3  another run is active
    4  some campaigns failed or were held
    5  database: nothing could be exported
    6  SFTP: nothing could be delivered
    7  manual run outside the hours
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import difflib
import errno
import functools
import gc
import hashlib
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import os
import random
import re
import secrets
import signal
import socket
import sqlite3
import statistics
import sys
import threading
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from dataclasses import replace as dataclass_replace
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from enum import IntEnum, StrEnum
from html import escape
from pathlib import Path, PurePosixPath
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
)

# psycopg, paramiko, pandas and rich take about a second to import. Each is imported where it is
# first used, so that `--help` and a wrong setting answer at once, and the rest loads while the
# server works.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import paramiko
    import psycopg
    import pyarrow as pa
    from dotenv.parser import Binding
    from psycopg.pq.abc import PGconn, PGresult
    from rich.console import Console
    from rich.table import Table

__version__ = "1.1.0"
PROGRAM = "mailing_pipeline"
log = logging.getLogger(PROGRAM)
T = TypeVar("T")

# -------------------------------------------------------------------------------------------------
# Words: what a person is told is a template and its values; English for the log
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A message: a template in English, whose fields the values fill. str() is the English.

    Values are filled in and never translated, unless they are Texts themselves; a list of them
    stands in a row. Whole numbers are counts (12,345 or 12.345), times are written as people write
    them; a port or an exit code is given as str.
    """

    template: str
    values: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.told("en")

    def told(self, language: str) -> str:
        """The message in that language: 'en' or 'pt'."""
        template = PORTUGUESE[self.template] if language == "pt" else self.template
        values = {name: shown(value, language) for name, value in self.values.items()}
        return template.format(**values)


def text(template: str, **values: object) -> Text:
    """A message; every template has its Portuguese in PORTUGUESE, with the same fields."""
    return Text(template, values)


def in_a_row(parts: Sequence[Text]) -> Text:
    """Several messages in one line."""
    return functools.reduce(lambda one, then: text("{first}; {then}", first=one, then=then), parts)


def contacts(count: int) -> Text:
    """'1 contact', '4,812 contacts'."""
    if count == 1:
        return text("{count} contact", count=count)
    return text("{count} contacts", count=count)


def shown(value: object, language: str) -> str:
    """A value inside a message."""
    pt = language == "pt"
    if isinstance(value, Text):
        return value.told(language)
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item, language) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "." if pt else ",")
    if isinstance(value, datetime):
        return f"{value:%d/%m/%Y %H:%M}" if pt else f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, date):
        return f"{value:%d/%m/%Y}" if pt else str(value)
    return str(value)


FOREIGN_CHARS = 300
MOMENT = r"(?<!\d)(\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?)(?!\d)"
LONG_NUMBER = r"\d(?:[\s.()/_,;:|‐-―−-]{0,4}\d){7,}"


def masked(told: str) -> str:
    """told without runs of eight or more digits (phones, CPFs, contracts), however punctuated.

    A moment (2026-12-22 12:00:05) stays.
    """
    return re.sub(f"{MOMENT}|{LONG_NUMBER}", lambda found: found[1] or "…", told)


def printable(told: str, instead: str) -> str:
    """told with instead in place of each character that cannot be shown."""
    return "".join(character if character.isprintable() else instead for character in told)


def foreign(told: object, hidden: Iterable[str] = ()) -> str:
    """A text of a server, a library or a lock file, fit for console, log, ledger and page.

    hidden: this run's secrets. They go, and so do passwords in URLs, unprintable characters (ESC,
    bidi marks, line breaks) and long numbers; what is longer than FOREIGN_CHARS is cut.
    """
    kept = str(told)
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        pattern = re.escape(secret)
        if len(secret) <= 3:  # it stands in half of all words: it goes where it stands alone
            pattern = rf"(?<!\w){pattern}(?!\w)"
        kept = re.sub(pattern, "…", kept)
    kept = re.sub(r"://[^\s/@]+@", "://…@", kept[: 20 * FOREIGN_CHARS])
    kept = re.sub(r"(?i)\b(pass\w*|pwd)(\s*[=:]\s*)('[^']*'|[^\s']+)", r"\1\2…", kept)
    kept = masked(" ".join(printable(kept, " ").split()))
    return kept if len(kept) <= FOREIGN_CHARS else kept[:FOREIGN_CHARS] + "…"


def address(host: str, port: object, hidden: Iterable[str] = ()) -> str:
    """host:port of a server: an IP address is no long number, and no password stands before @."""
    user, _, bare = host.rpartition("@")
    if not re.fullmatch(r"[\w.,:/%-]*", bare):
        bare = foreign(bare, hidden)
    return f"…@{bare}:{port}" if user else f"{bare}:{port}"


# --------------------------------------------------------------------------------------------------
# Errors: what went wrong, whether trying again can help, and what a person should do
# --------------------------------------------------------------------------------------------------


class ExitCode(IntEnum):
    """How a run ended; `meaning` is the sentence that --help, README and log use."""

    meaning: Text

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        made = int.__new__(cls, code)
        made._value_, made.meaning = code, text(meaning)
        return made

    OK = 0, "everything due was delivered, already delivered, or empty where empty is allowed"
    BUG = 1, "a bug (traceback in the log)"
    USAGE = 2, "settings, ledger or usage wrong, or no usable query file: nothing was started"
    BUSY = 3, "another run is active"
    PARTIAL = 4, "some campaigns failed or were held"
    DATABASE = 5, "database: nothing could be exported"
    SFTP = 6, "SFTP: nothing could be delivered"
    OUTSIDE_HOURS = 7, "manual run outside the hours"


# How many more times an error is worth trying; AGAIN: as many as RETRY_ATTEMPTS says.
AGAIN, ONCE_MORE, TWICE_MORE, NEVER = sys.maxsize, 1, 2, 0


class PipelineError(Exception):
    """Something a person can understand.

    message names the culprit (file, line, key, folder), hint says what to do. Severity is two
    questions: tries, how many more times it is worth while, and wide, whether it reaches beyond
    one mailing: the server or the login itself, so that it would meet every campaign.
    """

    exit_code = ExitCode.PARTIAL
    more: tuple[Text, ...] = ()  # other faults that were found with it
    scarce = False  # the server has no more sessions or channels, and is not down
    settings: Settings | None = None  # what could be read of them, to tell somebody

    def __init__(
        self, message: Text, hint: Text | None = None, *, tries: int = NEVER, wide: bool = False
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.tries, self.wide = message, hint, tries, wide

    @property
    def lines(self) -> list[Text]:
        """What a person is told, a line each, the hint last."""
        hint = [text("    -> {hint}", hint=self.hint)] if self.hint else []
        return [*self.faults, *hint]

    @property
    def faults(self) -> tuple[Text, ...]:
        """Every fault that was found, without the hint."""
        return (self.message, *self.more)


class SettingsFault(PipelineError):
    """Settings, queries, ledger or usage are wrong, all told at once: nothing was started."""

    exit_code = ExitCode.USAGE

    def __init__(
        self,
        *faults: Text,
        hint: Text | None = None,
        tries: int = NEVER,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(faults[0], hint, tries=tries)
        self.more, self.settings = faults[1:], settings

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


class UsageFault(SettingsFault):
    """The command line asks for something that does not exist."""


class Busy(PipelineError):
    """Another run holds the lock."""

    exit_code = ExitCode.BUSY


class OutsideHours(PipelineError):
    """A manual run outside the operating hours."""

    exit_code = ExitCode.OUTSIDE_HOURS


class DatabaseError(PipelineError):
    """PostgreSQL refused, failed or fell silent."""

    exit_code = ExitCode.DATABASE


class DeliveryError(PipelineError):
    """The SFTP server refused, failed or fell silent."""

    exit_code = ExitCode.SFTP


class ConnectionLost(DeliveryError):
    """The SFTP connection broke: whether the last request was carried out is not known."""


class MayBeOut(DeliveryError):
    """A whole file is gone, and nobody can tell whether the dialer has it: in doubt, never sent again."""


class LocalFault(PipelineError):
    """This PC's own disk or ledger failed."""


class ClaimLost(LocalFault):
    """The session with the shared ledger broke, and with it went what this PC had claimed: others may have it now."""


class Held(PipelineError):
    """A guard refused the mailing."""


class Empty(PipelineError):
    """There is nobody to call, which is allowed."""

    exit_code = ExitCode.OK


class Stopped(PipelineError):
    """The run is being ended: by its deadline or by the operator."""


class Bug(PipelineError):
    """An error that nobody foresaw."""

    exit_code = ExitCode.BUG


def bug(error: Exception) -> Bug:
    """error's type and places go to the log; its text does not, which may quote a row."""
    log.error(
        "a bug: %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    )
    message = text("internal error ({kind})", kind=type(error).__name__)
    return Bug(message, text("send the log of today to the developer"))


# -------------------------------------------------------------------------------------------------
# Time: slots, hours, what stops a run, and the one loop that tries again
# -------------------------------------------------------------------------------------------------


class Clock:
    """Where whatever a run decides takes its time and chance from. Tests pass another one."""

    def now(self) -> datetime:
        """The wall clock, local, with its offset."""
        return datetime.now().astimezone()

    def steady_s(self) -> float:
        """Seconds on a clock that nobody sets."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Sleep for timeout_s, or until event is set; whether it is.

        In short waits: on Windows Ctrl+C ends none.
        """
        until_s = self.steady_s() + timeout_s
        while not event.wait(min(0.5, max(0.0, until_s - self.steady_s()))):
            if self.steady_s() >= until_s:
                return False
        return True

    def jitter(self) -> float:
        """A random factor, so that programs that failed together do not come back together."""
        return random.uniform(0.5, 1.0)


def slot_of(now: datetime) -> str:
    """The clock hour that now belongs to, as the ledger writes it: at 10:23 '2026-12-22 10:00'."""
    return f"{now:%Y-%m-%d %H}:00"


DAYS = (text("mon"), text("tue"), text("wed"), text("thu"), text("fri"), text("sat"), text("sun"))
Span = tuple[clock_time, clock_time]  # the first and the last start of a day
Starts = Mapping[int | None, Span]  # by weekday (0 = Monday); None: every weekday without its own


@dataclass(frozen=True, slots=True)
class Hours:
    """When mailings may be sent: weekdays, the first and last starts of each, days off.

    keys are the settings that say so, of the days and of the hours, as messages name them.
    """

    days: frozenset[int]
    starts: Starts = field(hash=False)
    holidays: frozenset[date] = frozenset()
    keys: tuple[str, str] = ("RUN_DAYS", "RUN_HOURS")

    def starts_on(self, weekday: int) -> Span | None:
        """The first and the last start of that weekday; None: nothing is sent on it."""
        return self.starts.get(weekday, self.starts.get(None)) if weekday in self.days else None

    def starts_of(self, day: date) -> Span | None:
        """The first and the last start of that date; None: a day off."""
        return None if day in self.holidays else self.starts_on(day.weekday())

    def slots(self, day: date) -> list[str]:
        """The slots that are due on that date, as the ledger writes them."""
        starts = self.starts_of(day)
        hours = range(starts[0].hour, starts[1].hour + 1) if starts else ()
        return [f"{day} {hour:02}:00" for hour in hours]

    def inside(self, now: datetime) -> bool:
        """Whether now is inside. The last start names a slot: with 20:00, 20:59 is still inside."""
        starts = self.starts_of(now.date())
        return starts is not None and starts[0] <= now.time() and now.hour <= starts[1].hour

    def why_not(self, now: datetime) -> Text | None:
        """Why now is outside: a day off, the weekday, or the hour; None while it is inside."""
        if self.inside(now):
            return None
        if now.date() in self.holidays:
            return text("{day} is a holiday (HOLIDAYS)", day=now.date())
        day, key = DAYS[now.weekday()], self.keys[now.weekday() in self.days]
        told = "it is {day} {time}: runs {hours} ({key})"
        return text(told, day=day, time=f"{now:%H:%M}", hours=self.told(), key=key)

    def told(self) -> list[Text]:
        """For a person: mon-fri 08:00-20:00, sat 08:00-13:00."""
        parts = []
        for starts, same in itertools.groupby(range(7), self.starts_on):
            days = [DAYS[day] for day in same]
            told = text("{first}-{last}", first=days[0], last=days[-1])
            if starts:
                span = f"{starts[0]:%H:%M}-{starts[1]:%H:%M}"
                told = told if len(days) > 1 else days[0]
                parts.append(text("{days} {hours}", days=told, hours=span))
        return parts

    @property
    def fault(self) -> Text | None:
        """Weekdays that have hours of their own, and on which nothing runs all the same."""
        days = [DAYS[day] for day in range(7) if day in self.starts.keys() - self.days]
        told = "has hours for {days}, which {key} leaves out"
        return text(told, days=days, key=self.keys[0]) if days else None


class Stop:
    """The end of a run: its deadline, and whatever else stops it. Every wait of ours ends here.

    Measured by the wall clock and by the steady one, whichever is further: a PC that slept, or a
    clock set back, must not make an old mailing look young.
    """

    def __init__(self, clock: Clock, minutes: float) -> None:
        self.clock, self.seconds = clock, minutes * 60
        self.start, self._steady_start = clock.now(), clock.steady_s()
        told = text("the run's deadline of {minutes} minutes has passed", minutes=f"{minutes:g}")
        hint = text("see in the log what took so long; RUN_DEADLINE_MINUTES is the limit")
        self._event, self._why = threading.Event(), (told, hint)

    def left_s(self) -> float:
        """Seconds until the run must be over; negative after it."""
        wall_s = (self.clock.now() - self.start).total_seconds()
        return self.seconds - max(wall_s, self.clock.steady_s() - self._steady_start)

    def end(self, reason: Text | None = None) -> None:
        """End every wait of the run, for that reason or for its deadline."""
        if reason:
            self._why = reason, text("the next run starts afresh; nothing old is sent")
        self._event.set()

    @property
    def error(self) -> Stopped | None:
        """Why the run must not go on; None while it may."""
        is_over = self._event.is_set() or self.left_s() <= 0
        return Stopped(*self._why) if is_over else None

    def check(self) -> None:
        """Raise Stopped if the run must not go on."""
        if error := self.error:
            raise error

    def sleep(self, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile (Stopped)."""
        self.clock.wait(self._event, max(0.0, min(seconds, self.left_s())))
        self.check()

    @contextlib.contextmanager
    def turn(self, turns: threading.Semaphore) -> Iterator[None]:
        """One of the turns, as soon as there is one (Stopped)."""
        while not turns.acquire(timeout=0.5):
            self.check()
        try:
            yield
        finally:
            turns.release()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patiently the retry loop tries: attempts in all, first and longest pause in seconds."""

    attempts: int
    first_s: float
    max_s: float


RETRY_BUDGET_S = 30  # time for an attempt, at the least


def retry(action: Callable[[], T], policy: RetryPolicy, stop: Stop, who: str) -> T:
    """The result of action, tried again as long as its PipelineError says that this is worth while.

    Pauses double from first_s to max_s, with jitter. No attempt starts later than
    attempts * max_s (or RETRY_BUDGET_S) after the first failure, nor beyond the deadline. action
    must be safe to repeat. Raises the last error.
    """
    failures, limited, until_s = 0, 0, None
    while True:
        stop.check()
        try:
            return action()
        except PipelineError as error:
            failures += 1
            limited += error.tries != AGAIN
            now_s = stop.clock.steady_s()
            if until_s is None:
                until_s = now_s + policy.attempts * max(policy.max_s, RETRY_BUDGET_S)
            # what others failed by does not count against an error that is worth a few tries
            most = min(policy.attempts - 1, failures - limited + error.tries)
            pause_s = min(policy.max_s, policy.first_s * 2 ** (failures - 1)) * stop.clock.jitter()
            if failures > most or pause_s > min(until_s - now_s, stop.left_s()):
                error.tries = NEVER  # spent, also for those who are handed this error afterwards
                raise
            told = "{who}: retry {number} of {most} in {seconds} s: {reason}"
            pause, why = f"{pause_s:.1f}", error.message
            log.warning(text(told, who=who, number=failures, most=most, seconds=pause, reason=why))
            stop.sleep(pause_s)


# -------------------------------------------------------------------------------------------------
# Settings: config.env and the environment -> Settings, or every fault at once
# -------------------------------------------------------------------------------------------------

ENCODINGS = ("utf-8", "utf-8-sig", "cp1252", "latin-1")
LANGUAGES = ("en", "pt")
# libpq reads these from the environment alone; every other PG* name is a connection option of its.
LIBPQ_ENVIRONMENT = ("PGSERVICEFILE", "PGSYSCONFDIR", "PGTZ")
LINE_END = re.compile(r"\r\n|\r|\n")  # and no other, for PostgreSQL as for editors
Parser = Callable[[str], Any]  # of a value's text; raises Wrong


class Wrong(ValueError):
    """A text that cannot be read; told says what it must be, never what it is."""

    def __init__(self, told: Text) -> None:
        super().__init__(str(told))
        self.told = told


def attempt(parse: Callable[..., T], *arguments: object) -> tuple[T | None, Text | None]:
    """What parse makes of its arguments, or what it says is wrong."""
    try:
        return parse(*arguments), None
    except Wrong as error:
        return None, error.told


def insist(sound: object, told: Text) -> None:
    """Raise Wrong(told) unless that is so."""
    if not sound:
        raise Wrong(told)


def at(place: object, fault: Text) -> Text:
    """A fault with its place: a file, a line of it, a key."""
    return text("{place}: {fault}", place=place, fault=fault)


def at_line(line: int, fault: Text) -> Text:
    """A fault with its line."""
    return at(text("line {line}", line=str(line)), fault)


UNSEEN = text("holds a character that cannot be seen; type it anew")


def visible(written: str) -> str:
    """A name or path without what nobody sees, which comes along from a web page or a mail."""
    insist(written.isprintable(), UNSEEN)
    return written


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from low to high."""
    told = text("must be a whole number from {low} to {high}", low=str(low), high=str(high))

    def parse(written: str) -> int:
        insist(re.fullmatch("[0-9]+", written) and low <= int(written) <= high, told)
        return int(written)

    return parse


def one_of(*words: str, **meanings: Any) -> Parser:
    """A parser that takes only these words, in any case; a word means itself, unless given."""
    known = dict(zip(words, words, strict=True)) | meanings

    def parse(written: str) -> Any:
        insist(written.lower() in known, text("must be one of: {choices}", choices=list(known)))
        return known[written.lower()]

    return parse


yes_no = one_of(yes=True, no=False)


def one_character(written: str) -> str:
    r"""A CSV delimiter: one ASCII character (or \t)."""
    written = "\t" if written == r"\t" else written
    told = text(r"must be one character such as ; or , or | or \t")
    insist(re.fullmatch(r"[!#-/:-@[-`{-~\t]", written), told)  # but for the quote and the blank
    return written


DAY_RUNS = {str(name): {day} for day, name in enumerate(DAYS)} | {
    f"{DAYS[first]}-{DAYS[last]}": {*range(first, last + 1)}
    for first, last in itertools.combinations_with_replacement(range(7), 2)
}


def weekdays(written: str) -> frozenset[int]:
    """'mon-sat' or 'mon,wed-fri' as weekday numbers, Monday = 0."""
    try:
        return frozenset().union(*(DAY_RUNS[part.strip()] for part in written.lower().split(",")))
    except KeyError:
        told = text("must be days from Monday to Sunday, such as mon-sat or mon,wed,fri")
        raise Wrong(told) from None


TIME = "((?:[01][0-9]|2[0-3]):[0-5][0-9])"
SPAN = re.compile(rf"\s*(?:(\D*\S)\s+)?{TIME}\s*-\s*{TIME}\s*")


def start_times(written: str) -> Starts:
    """'08:00-20:00, sat 08:00-13:00' as first and last starts by weekday."""
    starts: dict[int | None, Span] = {}
    for part in re.split(r"(?<=\d)\s*,", written):  # 'mon,wed 09:00-12:00' is one part
        found = SPAN.fullmatch(part)
        days: Iterable[int | None] = weekdays(found[1]) if found and found[1] else (None,)
        if not found or found[2] > found[3] or starts.keys() & days:
            told = "must be hours such as 08:00-20:00 or 08:00-20:00, sat 08:00-13:00; no day twice"
            raise Wrong(text(told))
        span = clock_time.fromisoformat(found[2]), clock_time.fromisoformat(found[3])
        starts |= dict.fromkeys(days, span)
    return starts


def dates(written: str) -> frozenset[date]:
    """'2026-12-25,2027-01-01' as dates."""
    try:
        return frozenset(map(date.fromisoformat, written.replace(",", " ").split()))
    except ValueError:
        raise Wrong(text("must be dates such as 2026-12-25,2027-01-01")) from None


def remote_path(written: str) -> PurePosixPath:
    """A path on the SFTP server: always with /, never upwards."""
    told = "must be a path with / such as /entrada/cobranca_30d, with neither .. nor backslash"
    upwards = ".." in written.split("/")
    insist(written and "\\" not in written and not upwards and written.isprintable(), text(told))
    return PurePosixPath(re.sub("^/+", "/", written))  # two would make another path of one folder


USUAL_NAME = "mailing_{campaign}_%d-%m_%H-%M.csv"
MAILING_ENDINGS = (".csv", ".txt")
# What Windows takes for a device is no name of a file, whatever its ending.
LEGAL_NAME = re.compile(
    r"(?!(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])\s*(?:\.|$))"
    r'[^\\/:*?"<>|%{}\x00-\x1f]{0,199}[^\\/:*?"<>|%{}\x00-\x1f. ]',
    re.IGNORECASE,
)


def file_name_pattern(written: str, campaign: str = "campaign") -> str:
    """A file name with {campaign} and strftime's codes that is legal on Windows and everywhere.

    Its ending tells a mailing from what else lies in the output folder. Many dialers overlook a
    name that begins with a dot.
    """
    some_time = datetime(2026, 12, 22, 10).astimezone()
    visible(written)
    try:
        sample = render_file_name(written, campaign, some_time)
    except ValueError:  # UnicodeError, and on Windows a code that its strftime lacks
        sample = ""
    is_mailing = sample.lower().endswith(MAILING_ENDINGS) and not sample.startswith(".")
    told = "must give a legal file name that ends in .csv or .txt, such as {example}"
    insist(is_mailing and LEGAL_NAME.fullmatch(sample), text(told, example=USUAL_NAME))
    told = "must hold {{campaign}} or the hour (%H), so that two mailings do not share a name"
    insist("{campaign}" in written or "%H" in written, text(told))
    return written


def temp_name_pattern(written: str) -> str:
    """What a mailing is called until it is whole: with {id}, and not as dialers expect one."""
    sample = visible(written).replace("{id}", "0f1e2d3c")
    is_temp = sample != written and not sample.lower().endswith(MAILING_ENDINGS)
    told = "must be a legal file name with {{id}} and without .csv, such as .part-{{id}}"
    insist(is_temp and LEGAL_NAME.fullmatch(sample), text(told))
    return written


def fingerprints(written: str) -> tuple[str, ...]:
    """SSH host keys' fingerprints, separated by blanks, as --check and ssh-keygen -l print them.

    Both add the kind of the key in brackets.
    """
    found = re.sub(r"=?(\([\w@.-]+\)|,|\s|$)", " ", written).split()
    told = "must look like SHA256: and 43 characters; --check prints the one it sees"
    for one in found:
        insist(re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", one), text(told))
    return tuple(dict.fromkeys(found))


def connection_string(written: str) -> Mapping[str, str]:
    """libpq's options in a connection string; none of an empty text."""
    from psycopg import ProgrammingError, conninfo

    try:
        return {key: str(value) for key, value in conninfo.conninfo_to_dict(written).items()}
    except ProgrammingError:  # whose text may quote the password
        told = "must be a libpq connection string such as host=pg dbname=x user=x password=…"
        raise Wrong(text(told)) from None


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """How a mailing is written."""

    delimiter: str
    encoding: str
    header: bool
    newline: str


def setting(default: str, parse: Parser = str, *, secret: bool = False) -> Any:
    """One line of config.env; its key is the field's name in capitals."""
    return field(repr=not secret, metadata={"default": default, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of config.env, parsed. config.env.example says what each is for."""

    folder: Path  # of config.env: relative paths start here
    libpq: Mapping[str, str] = field(repr=False)  # libpq's connection options, by its own keywords
    libpq_environment: Mapping[str, str] = field(repr=False)

    sftp_host: str = setting("", visible)
    sftp_port: int = setting("22", whole_number(1, 65535))
    sftp_user: str = setting("", visible)
    sftp_password: str = setting("", visible, secret=True)
    sftp_key_file: str = setting("", visible)
    sftp_key_passphrase: str = setting("", visible, secret=True)
    sftp_host_key: tuple[str, ...] = setting("", fingerprints)  # any of them
    sftp_base_dir: PurePosixPath = setting("/", remote_path)
    sftp_staging_dir: PurePosixPath | None = setting("", lambda at: remote_path(at) if at else None)
    sftp_temp_name: str = setting(".part-{id}", temp_name_pattern)
    sftp_compress: bool = setting("no", yes_no)
    sftp_verify: str = setting("size", one_of("size", "hash"))
    queries_dir: str = setting("queries", visible)
    output_dir: str = setting("output", visible)
    log_dir: str = setting("logs", visible)
    file_name: str = setting(USUAL_NAME, file_name_pattern)
    csv_delimiter: str = setting(";", one_character)
    csv_encoding: str = setting("utf-8", one_of(*ENCODINGS))
    csv_header: bool = setting("yes", yes_no)
    csv_newline: str = setting("crlf", one_of(crlf="\r\n", lf="\n"))
    run_days: frozenset[int] = setting("mon-sat", weekdays)
    run_hours: Starts = setting("08:00-20:00", start_times)
    holidays: frozenset[date] = setting("", dates)
    query_workers: int = setting("4", whole_number(1, 32))
    query_timeout_seconds: int = setting("600", whole_number(1, 86400))
    retry_attempts: int = setting("5", whole_number(1, 100))
    retry_first_seconds: int = setting("2", whole_number(0, 3600))
    retry_max_seconds: int = setting("60", whole_number(0, 3600))
    connect_timeout_seconds: int = setting("30", whole_number(1, 300))
    run_deadline_minutes: int = setting("50", whole_number(1, 54))
    pickup_timeout_seconds: int = setting("0", whole_number(0, 3600))
    retention_days: int = setting("7", whole_number(1, 3650))
    # of the PostgreSQL that several PCs share
    ledger: Mapping[str, str] = setting("", connection_string, secret=True)
    max_replica_lag_seconds: int = setting("0", whole_number(0, 86400))
    language: str = setting("en", one_of(*LANGUAGES))
    alert_urls: str = setting("", secret=True)
    heartbeat_url: str = setting("", secret=True)

    def local(self, path: str) -> Path:
        """path, relative to the folder of config.env."""
        return self.folder / path

    @property
    def output(self) -> Path:
        return self.local(self.output_dir)

    def output_of(self, options: Options) -> Path:
        """Where mailings are written: those of a rehearsal in a folder of their own."""
        return self.output / "dry-run" if options.dry_run else self.output

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be told, whoever quotes it."""
        passwords = self.libpq.get("password", ""), self.ledger.get("password", "")
        login = self.sftp_password, self.sftp_key_passphrase
        return (*passwords, *login, *self.alert_urls.split(), self.heartbeat_url)

    @property
    def ledger_path(self) -> Path:
        return self.output / "ledger.sqlite3"

    @property
    def has_ledger(self) -> bool:
        """Whether there is one to look into."""
        return bool(self.ledger) or self.ledger_path.exists()

    @property
    def hours(self) -> Hours:
        return Hours(self.run_days, self.run_hours, self.holidays)

    @property
    def csv(self) -> CsvFormat:
        return CsvFormat(self.csv_delimiter, self.csv_encoding, self.csv_header, self.csv_newline)

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.retry_attempts, self.retry_first_seconds, self.retry_max_seconds)


SETTING_FIELDS = {item.name.upper(): item for item in fields(Settings) if item.metadata}


def libpq_options() -> dict[str, str]:
    """libpq's own table: environment name -> connection keyword (PGHOST -> host)."""
    from psycopg import pq

    options = pq.Conninfo.get_defaults()
    return {option.envvar.decode(): option.keyword.decode() for option in options if option.envvar}


def known_keys() -> list[str]:
    """What may stand in config.env, or in the environment for it."""
    return [*SETTING_FIELDS, *libpq_options(), *LIBPQ_ENVIRONMENT]


# What the SFTP server cannot be reached without: keys of which one must be set.
SFTP_NEEDS = {
    "SFTP_HOST": text("missing"),
    "SFTP_USER": text("missing"),
    "SFTP_HOST_KEY": text("missing; run with --check to see the server's fingerprint"),
    "SFTP_PASSWORD, SFTP_KEY_FILE": text("set one of the two, or both if both are wanted"),
}


def parse_settings(
    values: Mapping[str, str],
    folder: Path,
    source: str,
    *,
    sends: bool,
    knows_host: bool,
    faults: Iterable[Text] = (),
) -> Settings:
    """Settings from raw texts by key; an empty text is the default.

    sends: whether the run will reach for the SFTP server, so that its settings are needed.
    knows_host: whether SFTP_HOST_KEY is needed as well (--check goes without, to print it).
    Raises SettingsFault with every fault, those found before among them, each with its key and
    never its value; source is the file to name.
    """
    options, known = libpq_options(), known_keys()
    given = {key: value for key, value in values.items() if value}
    faults = [*faults]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key.upper(), known, 1, 0)
            faults.append(at(key, text("unknown setting; did you mean {near}?", near=near)))
    for keys, fault in SFTP_NEEDS.items() if sends else ():
        if not given.keys() & keys.split(", ") and (knows_host or keys != "SFTP_HOST_KEY"):
            faults.append(at(keys, fault))
    parsed: dict[str, Any] = {}
    for key, item in SETTING_FIELDS.items():
        parse, default = item.metadata["parse"], item.metadata["default"]
        parsed[item.name], wrong = attempt(parse, given.get(key, default))
        if wrong:  # what can be read all the same is needed, to tell somebody
            faults.append(at(key, wrong))
            parsed[item.name] = parse(default)
    settings = Settings(
        folder=folder,
        libpq={options[key]: value for key, value in given.items() if key in options},
        libpq_environment={key: given[key] for key in LIBPQ_ENVIRONMENT if key in given},
        **parsed,
    )
    if settings.hours.fault and not faults:
        faults.append(at("RUN_HOURS", settings.hours.fault))
    if faults:
        raise SettingsFault(*(at(source, fault) for fault in faults), settings=settings)
    return settings


def read_utf8(path: Path) -> str:
    """The text of a file, with or without BOM. Raises Wrong."""
    try:
        data = path.read_bytes().replace(b"\0", b"\xff")  # no text holds either
        written = data.decode("utf-8-sig")
    except OSError as error:
        raise Wrong(text("cannot be read: {why}", why=error.strerror)) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        told = text("not a text in UTF-8 (ANSI or UTF-16?); save the file as UTF-8 in the editor")
        raise Wrong(at_line(line, told)) from None
    if "\r" in written and "\n" not in written:
        told = text("ends in CR alone; save the file with Windows (CRLF) or Unix (LF) line ends")
        raise Wrong(at_line(1, told))
    return written


def load_settings(
    path: Path, environ: Mapping[str, str], *, sends: bool, knows_host: bool
) -> Settings:
    """Read config.env; a real environment variable of the same name wins. Raises SettingsFault."""
    try:
        values, faults = parse_env(read_utf8(path))
    except Wrong as error:
        missing = text("not found; copy config.env.example to config.env and fill it in")
        raise SettingsFault(at(path, error.told if path.exists() else missing)) from None
    own = {key: environ[key] for key in known_keys() if environ.get(key)}
    if environ.get("LANGUAGE") not in LANGUAGES:  # gettext's own variable too, as 'pt_BR:pt'
        own.pop("LANGUAGE", None)
    values |= own
    folder, name = path.parent, path.name  # resolve() fails on some of Windows' mapped drives
    return parse_settings(values, folder, name, sends=sends, knows_host=knows_host, faults=faults)


def parse_env(written: str) -> tuple[dict[str, str], list[Text]]:
    """The values of a config.env by key, each line as python-dotenv reads it, and their faults."""
    from dotenv.parser import parse_stream  # what dotenv_values(interpolate=False) reads with

    values: dict[str, str] = {}
    faults = []
    for number, line in enumerate(LINE_END.split(written), 1):
        for binding in parse_stream(io.StringIO(line)):
            fault = line_fault(line, binding)
            if binding.key in values:
                fault = at(binding.key, text("set twice"))
            elif binding.key and binding.value is not None:
                values[binding.key] = binding.value
            if fault:
                faults.append(at_line(number, fault))
    return values, faults


def line_fault(line: str, binding: Binding) -> Text | None:
    """What is wrong with a line of config.env that dotenv took as binding; it is never quoted."""
    named = re.match(r"\s*(?:export\s+)?([\w.-]+)\s*=\s*(.*)", line)
    key, written = named.groups() if named else ("", "")
    # one backslash is left of two
    is_share = re.match(r"'\\\\[^\\']+\\", written) and "PASS" not in key
    if binding.error and written.startswith(("'", '"')):
        told = "a quote inside the value ends it, or the last is missing; for one write \\'"
    elif binding.error or (binding.key and binding.value is None):
        return text("not of the form KEY=value")
    elif is_share or (written.startswith('"') and not (binding.value or "").isprintable()):
        told = "these quotes change what follows a backslash; use others or none"
    elif "PASS" in key and re.match(r"[^'\"].*\s#", written):
        told = "what follows ' #' is a comment; put the value between single quotes"
    else:
        return None
    return at(key, text(told))


# -------------------------------------------------------------------------------------------------
# Campaigns: queries/NN_campaign.sql -> Campaign; a faulty file costs its own campaign only
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement; its words are those outside quotes and comments, in capitals."""

    text: str
    line: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One query file, ready to run. None among the guards means that the guard is off."""

    name: str
    source: str  # the file's name, for messages
    prelude: tuple[Statement, ...]
    select: Statement
    folder: PurePosixPath
    hours: Hours
    timeout_s: int
    csv: CsvFormat
    file_name: str
    columns: tuple[str, ...] | None = None
    phones: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    min_rows: int | None = None
    max_rows: int | None = None
    max_drop: int | None = None  # per cent
    read_only: bool = True
    enabled: bool = True
    pickup_s: int = 0
    pickup_error_folder: PurePosixPath | None = None


@dataclass(frozen=True, slots=True)
class BrokenQuery:
    """A query file with faults: its campaign fails, the others run."""

    source: str  # the file's name
    name: str  # the campaign that it would feed, as far as can be told
    faults: tuple[Text, ...]  # without the file's name
    enabled: bool = True

    @property
    def told(self) -> tuple[Text, ...]:
        """Its faults, each with the file's name."""
        return tuple(at(self.source, fault) for fault in self.faults)


Query = Campaign | BrokenQuery


@dataclass(frozen=True, slots=True)
class QueryFiles:
    """What lies in the folder of the query files, each in the order of the files' names."""

    queries: tuple[Query, ...] = ()
    notes: tuple[Text, ...] = ()  # what lies there and is not read, and why: a sentence each

    @property
    def campaigns(self) -> list[Campaign]:
        """Those that are sound."""
        return [query for query in self.queries if isinstance(query, Campaign)]

    @property
    def broken(self) -> list[BrokenQuery]:
        return [query for query in self.queries if isinstance(query, BrokenQuery)]


def campaign_name(written: str) -> str:
    """A campaign's name, which becomes part of file names and folders."""
    told = "must have only a-z, 0-9 and _; rename the file or add '-- campaign: name'"
    insist(re.fullmatch(r"[a-z0-9_]+", written), text(told))
    return written


def names(written: str) -> tuple[str, ...]:
    """Column names, separated by ; or ,"""
    found = tuple(visible(name.strip()) for name in re.split("[;,]", written))
    insist(all(found), text("must be column names separated by ; or ,"))
    return found


def percent(written: str) -> int:
    """'70%' as 70."""
    told = text("must be a percentage such as 70%")
    insist(re.fullmatch(r"([0-9]{1,2}|100)\s*%", written), told)
    return int(written.rstrip("% \t"))


# Directives that stand in for a setting, by its field, and are written as it is.
STAND_INS = {
    "hours": "run_hours",
    "days": "run_days",
    "timeout": "query_timeout_seconds",
    "delimiter": "csv_delimiter",
    "encoding": "csv_encoding",
    "header": "csv_header",
    "newline": "csv_newline",
    "file_name": "file_name",
    "pickup": "pickup_timeout_seconds",
}
# A query file's own settings; the others but the first two are fields of Campaign.
DIRECTIVES: dict[str, Parser] = {
    "campaign": campaign_name,
    "folder": remote_path,
    "columns": names,
    "phones": names,
    "unique": names,
    "min_rows": whole_number(0, 100_000_000),
    "max_rows": whole_number(1, 100_000_000),
    "max_drop": percent,
    "read_only": yes_no,
    "enabled": yes_no,
    "pickup_error_folder": remote_path,
    **{key: SETTING_FIELDS[name.upper()].metadata["parse"] for key, name in STAND_INS.items()},
}
# Without them a wrong mailing goes out. What a guard refuses is an objection: see Guards.
GUARDS = tuple(key for key in DIRECTIVES if key.startswith(("min_", "max_")))


# ----- Statements, after PostgreSQL's own lexical rules (manual, 4.1; src/backend/parser/scan.l)

# Blanks are six, and every character beyond ASCII belongs to a word. Strings apart by a line end
# are one: also the second half of an E'…' has backslashes.
SPACE = r"[ \t\n\r\f\v]"
ESCAPED = r"'(?:[^'\\]|\\.|'')*+'"
ACROSS_LINES = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:" + SPACE + r"|--[^\n\r]*+[\n\r])*+"
BEYOND = r"[^\x00-\x7f]"  # a range up to U+10FFFF takes Python 2 ms to compile
TAG = f"(?:(?:[A-Za-z_]|{BEYOND})(?:[A-Za-z0-9_]|{BEYOND})*+)?"
SQL_TOKEN = re.compile(
    rf"""(?P<space>{SPACE}++)
      | (?P<comment>--[^\n\r]*+)
      | (?P<block>/\*)
      | (?P<quoted>[eE]{ESCAPED}(?:(?:{ACROSS_LINES}){ESCAPED})*+(?!(?:{ACROSS_LINES})')
        | '(?:[^']|'')*+' | "(?:[^"]|"")*+" | \$(?P<tag>{TAG})\$.*?\$(?P=tag)\$)
      | (?P<open>[eE]?['"]|\${TAG}\$|\\)
      | (?P<word>(?:[A-Za-z_]|{BEYOND})(?:[A-Za-z0-9_$]|{BEYOND})*+
        | [0-9](?:[A-Za-z0-9_.]|{BEYOND})*+ | .)""",
    re.VERBOSE | re.DOTALL,
)


BRACKETS = {"(": 1, ")": -1}
ROUTINE = BRACKETS | {"CASE": 1, "END": -1}


class Token(NamedTuple):
    """A comment or a part of a statement: where it stands in the text, its first and last line.

    word is what it says in capitals: a string is '', a comment nothing.
    """

    word: str
    begin: int
    end: int
    line: int
    last_line: int


def end_of_block_comment(sql: str, start: int) -> int:
    """Where the comment that begins at start ends; PostgreSQL's nest. -1 if it does not end."""
    depth = 0
    for found in re.compile(r"/\*|\*/").finditer(sql, start):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return -1


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of an SQL file, its comments among them. Every character is looked at once.

    Raises Wrong with the line of a quote or comment that does not end, and of psql's commands.
    """
    end, line = 0, 1
    while found := SQL_TOKEN.match(sql, end):
        begin, end, kind = found.start(), found.end(), found.lastgroup
        if kind == "block":
            end = end_of_block_comment(sql, begin)
        if kind == "open" or end < 0:
            raise Wrong(at_line(line, text("a quote or comment without end, or psql's backslash")))
        first = line
        line += sql.count("\n", begin, end) + sql.count("\r", begin, end)
        line -= sql.count("\r\n", begin, end)
        if kind == "word":
            yield Token(found[0].upper(), begin, end, first, line)
        elif kind != "space":
            yield Token("''" if kind == "quoted" else "", begin, end, first, line)


def split_statements(sql: str) -> list[Statement]:
    """The statements of an SQL file, without their semicolons; comments alone are none.

    A semicolon ends no statement inside brackets (CREATE RULE) nor in the BEGIN ATOMIC … END of a
    routine: psql draws the same line (its psqlscan.l). Raises Wrong with the line of whatever does
    not end.
    """
    statements: list[Statement] = []
    words: list[str] = []
    begin, line, depth, steps = 0, 1, 0, BRACKETS
    for token in tokens(sql):
        if not token.word:
            continue
        if token.word == ";" and not depth:
            if words:
                statements.append(Statement(sql[begin : token.begin], line, tuple(words)))
            words, steps = [], BRACKETS
            continue
        if not words:
            begin, line = token.begin, token.line
        words.append(token.word)
        if words[0] == "CREATE" and words[-2:] == ["BEGIN", "ATOMIC"]:
            steps, depth = ROUTINE, 1
        else:
            depth = max(0, depth + steps.get(token.word, 0))
    if depth:
        raise Wrong(at_line(line, text("a bracket or BEGIN ATOMIC is not closed")))
    if words:
        statements.append(Statement(sql[begin:], line, tuple(words)))
    return statements


def statement_faults(statements: Sequence[Statement]) -> list[Text]:
    """What keeps these statements from being a mailing query, each with its line."""
    if not statements:
        return [text("empty: no SQL statement; the last one must be the SELECT of the mailing")]
    faults = []
    for statement in statements:
        if fault := statement_fault(statement, is_last=statement is statements[-1]):
            faults.append(at_line(statement.line, fault))
    return faults


ENDS = ("COMMIT", "ROLLBACK", "END", "ABORT", "BEGIN", "START")
READS = ("SELECT", "WITH", "VALUES", "TABLE")
CHANGES = ("INSERT", "UPDATE", "DELETE", "MERGE")


def statement_fault(statement: Statement, is_last: bool) -> Text | None:
    """Why a statement has no place in a query file; None if it has."""
    words = statement.words
    command = next((word for word in words if word != "("), "(")
    ends = command in ENDS and "TO" not in words[:4]
    returns = command in READS or (command in CHANGES and "RETURNING" in words)
    if ends or words[:2] == ("PREPARE", "TRANSACTION"):
        told = "remove it; the program opens and ends the transaction itself"
    elif command == "COPY":
        told = "remove it and leave the SELECT; the program copies the result itself"
    elif not all(map(str.isprintable, words)):
        return UNSEEN
    elif is_last and not returns:
        told = "the last statement must return the mailing's rows (SELECT …)"
    else:
        return None
    return at(command, text(told))


# ----- Directives: the leading comments that are meant for the program, and those that look so


class Comment(NamedTuple):
    """A line of a comment, marks included."""

    text: str
    line: int
    leads: bool  # no SQL stands above it
    block: bool  # it stands between /* */


def comment_lines(sql: str) -> Iterator[Comment]:
    """The comments that begin a line, above the SQL also those behind one another."""
    leads, busy_line = True, 0  # the last line with SQL on it
    with contextlib.suppress(Wrong):  # split_statements tells of what does not end
        for token in tokens(sql):
            if token.word:
                leads, busy_line = False, token.last_line
            elif token.line > busy_line:
                block = sql.startswith("/*", token.begin)
                lines = LINE_END.split(sql[token.begin : token.end])
                for number, line in enumerate(lines, token.line):
                    yield Comment(line, number, leads, block)


DIRECTIVE = re.compile(r"--\s*([A-Za-z_]+)\s*:(?!:)(.*)")


def parse_directives(sql: str) -> tuple[dict[str, Any], list[Text]]:
    """The leading `-- key: value` lines of a query file, parsed, and what is wrong with them."""
    found: dict[str, Any] = {}
    faults = []
    for comment in comment_lines(sql):
        line = DIRECTIVE.fullmatch(comment.text.rstrip())
        key, value = (line[1].lower(), line[2].strip()) if line else ("", "")
        if comment.block or key not in DIRECTIVES:
            fault = meant_as_directive(comment)
        elif not comment.leads:
            fault = at(key, text("must stand above the first SQL line, or it has no effect"))
        elif key in found:
            fault = at(key, text("given twice"))
        else:
            found[key], wrong = attempt(DIRECTIVES[key], value)
            fault = at(key, wrong) if wrong else None
        if fault:
            faults.append(at_line(comment.line, fault))
    return {key: value for key, value in found.items() if value is not None}, faults


BETWEEN = r"[\s._-]+"  # the words of a key
# A key of so many words, as it is written; what ends it; the separator; the value.
NEARLY_DIRECTIVE = (
    rf"([^\W_]++(?:{BETWEEN}[^\W_]++){{%d}})[\"'`\])}}*_.]*+\s*+(?!::)((?:[:=>–—-]\s*)*)(.*)"
)


def meant_as_directive(comment: Comment) -> Text | None:
    """What to say of a comment that was meant to have an effect; None of an ordinary one."""
    line = printable(comment.text, " ").removesuffix("*/")
    line = unicodedata.normalize("NFKC", line).rstrip()
    line = re.sub(r"^[\W_]+", "", line)
    for joints in range(4):  # the longest key has two, and a typing error adds one
        if found := re.fullmatch(NEARLY_DIRECTIVE % joints, line):
            written = re.sub(BETWEEN, "_", found[1].lower())
            for key in DIRECTIVES:
                if is_nearly(written, key) and is_meant(key, comment.leads, *found.groups()):
                    return at(found[1], text("has no effect so; write '-- {key}: …'", key=key))
    return None


def is_nearly(written: str, key: str) -> bool:
    """Whether that is the key, or what one typing error makes of it.

    A letter too many, wrong or missing, or two that changed places.
    """
    while key and written[:1] == key[:1]:
        written, key = written[1:], key[1:]
    return written in (key[1:], key[1::-1] + key[2:]) or written[1:] in (key, key[1:])


def is_meant(key: str, leads: bool, written: str, separator: str, value: str) -> bool:
    """Whether a comment that begins with (nearly) that key was meant as a directive, or is prose.

    A guard is told whatever its value, another only if the value can be read or the key is right.
    """
    exact, assigned = written.lower() == key, re.search("[:=]", separator) is not None
    if key in GUARDS:
        return value[:1].isdigit() or (leads and assigned)
    readable = attempt(DIRECTIVES[key], value)[1] is None
    if key == "hours" and re.match(r"\d\d?[h:]", value):  # else calls are at the wrong time
        return leads
    if assigned:
        return leads and (readable or exact)
    return leads and readable and exact and re.match(r"\S*[;_/\d]", value) is not None


# ----- Files


def parse_campaign(source: str, sql: str, settings: Settings) -> Query:
    """A query file as a Campaign, or every fault of it; source is its file name."""
    given, faults = parse_directives(sql)
    keys = "days:" if "days" in given else "RUN_DAYS", "hours:" if "hours" in given else "RUN_HOURS"
    own = {name: given.pop(key) for key, name in STAND_INS.items() if key in given}
    settings = dataclass_replace(settings, **own)
    hours = dataclass_replace(settings.hours, keys=keys)
    name = given.pop("campaign", name_in(source))
    folder = settings.sftp_base_dir / given.pop("folder", name)
    statements, unsplit = attempt(split_statements, sql)
    if fault := attempt(campaign_name, name)[1]:
        faults.append(at("campaign", fault))
    if fault := attempt(file_name_pattern, settings.file_name, name)[1]:
        faults.append(at("file_name", fault))
    if hours.fault and (keys == ("days:", "hours:") or not hours.told()):
        faults.append(at("hours", hours.fault))
    faults += column_faults(given)
    faults += [unsplit] if unsplit else statement_faults(statements or [])
    if faults or not statements:
        return BrokenQuery(source, name, tuple(faults), given.get("enabled", True))
    return Campaign(
        name=name,
        source=source,
        prelude=tuple(statements[:-1]),
        select=statements[-1],
        folder=folder,
        hours=hours,
        timeout_s=settings.query_timeout_seconds,
        csv=settings.csv,
        file_name=settings.file_name,
        pickup_s=settings.pickup_timeout_seconds,
        **given,
    )


def name_in(source: str) -> str:
    """The campaign that a file's name tells."""
    return re.sub(r"^\d+_|\.sql$", "", source, flags=re.IGNORECASE)


def column_faults(given: Mapping[str, Any]) -> list[Text]:
    """The columns that phones: and unique: name and columns: does not."""
    faults = []
    for key in ("phones", "unique") if "columns" in given else ():
        for column in given.get(key, ()):
            if column not in given["columns"]:
                faults.append(at(key, text("{column} is not one of columns:", column=column)))
    return faults


# How Explorer, OneDrive (the name of the PC), macOS and Linux name a copy, also a copy's copy.
COPY = re.compile(
    r"(?:[Cc][oó]pia de |[Cc]opy of )?(.+?)"
    r"(?:[ -]+(?:[Cc][oó]pia|[Cc]opy)| ?\([^()]*\)| \d+|-[A-Z0-9]+)*"
)


def original_of(stem: str) -> str:
    """The name that a copy was made from, as its own tells; stem itself if it is no copy's."""
    found = COPY.fullmatch(unicodedata.normalize("NFC", stem))
    return found[1] if found else stem


QUERY_NAME = re.compile(r"(?is)\w.*\.sql" if os.name == "nt" else r"(?s)\w.*\.sql")


def read_query(path: Path, present: Collection[str], settings: Settings) -> Query:
    """What a query file holds. Raises Wrong if it is not to be read; present: the files' names."""
    told = "its name must begin with a letter or digit and end in .sql, in small letters"
    insist(QUERY_NAME.fullmatch(path.name), text(told))
    insist(not path.is_dir(), text("it is a folder"))
    original = original_of(path.stem) + path.suffix
    told = "it looks like a copy of {original}; delete it, or give it a name of its own"
    is_copy = original != path.name and original in present
    insist(not is_copy, text(told, original=original))
    source = printable(path.name, "?")
    try:
        query = parse_campaign(source, read_utf8(path), settings)
    except Wrong as error:
        return BrokenQuery(source, name_in(source), (error.told,))
    insist(query.enabled, text("its line 'enabled: no' switches it off"))
    return query


def load_campaigns(folder: Path, settings: Settings) -> QueryFiles:
    """What lies in the folder of the query files. Raises SettingsFault if nothing can be used."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        told = "{folder}: cannot be read: {why} (QUERIES_DIR)"
        raise SettingsFault(text(told, folder=str(folder), why=error.strerror)) from None
    queries: list[Query] = []
    notes: list[Text] = []
    present = [path.name for path in paths]
    for path in paths:
        if re.search(r"(?i)^\d+_|\.sql", path.name):
            query, why = attempt(read_query, path, present, settings)
            if query:
                queries.append(query)
            else:
                file = printable(path.name, "?")
                notes.append(text("{file} is not read: {why}", file=file, why=why))
    files = QueryFiles(tuple(without_clashes(queries, settings.sftp_staging_dir)), tuple(notes))
    if not files.campaigns:
        told = "{folder}: no query file that can be used; one for each campaign (QUERIES_DIR)"
        faults = [fault for query in files.broken for fault in query.told]
        raise SettingsFault(text(told, folder=str(folder)), *faults, *notes)
    return files


def without_clashes(queries: Sequence[Query], staging: PurePosixPath | None) -> Iterator[Query]:
    """The same; broken are also those that share a name or folder with another.

    Both sides are at fault: which of them was meant, nobody knows.
    """
    users = {f"folder {staging or ''}".lower(): ["SFTP_STAGING_DIR"]}
    for query in queries:
        for key in own_things(query):
            users.setdefault(key, []).append(query.source)
    for query in queries:
        faults = query.faults if isinstance(query, BrokenQuery) else ()
        for key, what in own_things(query).items():
            if others := [user for user in users[key] if user != query.source]:
                told = "{what} is used by {others} too; each needs its own"
                faults += (text(told, what=what, others=others),)
        yield BrokenQuery(query.source, query.name, faults) if faults else query


def own_things(query: Query) -> dict[str, Text]:
    """What a campaign shares with no other, by a key to compare it.

    Without regard to capitals: some servers (Windows) take /Entrada and /entrada for one folder.
    """
    things = {f"name {query.name}".lower(): text("the name {name}", name=query.name)}
    if isinstance(query, Campaign):
        things[f"folder {query.folder}".lower()] = text("the folder {path}", path=query.folder)
    return things


def choose(files: QueryFiles, only: Collection[str]) -> QueryFiles:
    """The query files of the campaigns that --only names, or all. Raises UsageFault."""
    known = [query.name for query in files.queries]
    if unknown := [name for name in only if name not in known]:
        told = "--only {unknown}: no such campaign; known: {known}"
        raise UsageFault(text(told, unknown=unknown, known=known))
    chosen = tuple(query for query in files.queries if query.name in (only or known))
    return dataclass_replace(files, queries=chosen)


def render_file_name(pattern: str, campaign: str, start: datetime) -> str:
    """The final name: strftime's codes and {campaign} filled in."""
    return start.strftime(pattern.replace("{campaign}", campaign))


def rejected_name(name: str) -> str:
    """The file beside a mailing that keeps its rejected rows."""
    return f"{PurePosixPath(name).stem}_rejected.csv"


def free_file_name(name: str, used: Callable[[str], bool]) -> str:
    """name, or name-2, name-3 … before the extension: the first that was never used."""
    path = PurePosixPath(name)
    numbered = (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if not used(free))


# --------------------------------------------------------------------------------------------------
# Mailing: what a campaign is in a run. The one record: the ledger stores it, everything else is computed from it
# --------------------------------------------------------------------------------------------------


class State(StrEnum):
    """A mailing's fate: the word that the ledger holds and an operator reads, and a terminal's letter and style."""

    letter: str
    style: str

    def __new__(cls, word: str, letter: str = ".", style: str = "default") -> State:
        made = str.__new__(cls, word)
        made._value_, made.letter, made.style = word, letter, style
        return made

    CLAIMED = "claimed"  # before its query
    EXPORTED = "exported"  # whole on this PC's disk
    PUBLISHING = "publishing"  # its rename may have happened
    # its temp is being removed: after a rename, or an upload, that nobody could look after
    WITHDRAWING = "withdrawing"
    DELIVERED = "delivered", "+", "green"
    # nobody can tell whether the dialer has it: never sent again
    IN_DOUBT = "in doubt", "?", "bold magenta"
    EMPTY = "empty", "0", "cyan"
    HELD = "held", "H", "yellow"
    FAILED = "failed", "X", "bold red"
    # Of a run's report only: there is nothing to note
    ALREADY = "already delivered"
    READY = "would be sent", "+", "green"
    NOT_DUE = "not due", "-", "dim"
    # Of the grid only: read off an entry, or off its absence
    RUNNING = "running", ">", "blue"
    NOT_TAKEN = "not taken", "T", "bold yellow"  # by the dialer, or refused
    MISSED = "missed", "!", "bold red"
    COMING = "still to come", ".", "dim"

    def told(self, language: str) -> str:
        """Its word, for the operator."""
        return text(self).told(language)


# how a killed run leaves them
UNSETTLED = (State.CLAIMED, State.EXPORTED, State.PUBLISHING, State.WITHDRAWING)
MAY_BE_OUT = (State.PUBLISHING, State.WITHDRAWING, State.IN_DOUBT)


class Pickup(StrEnum):
    """What the dialer did with a delivered file, where that is watched."""

    UNWATCHED = ""
    TAKEN = "picked up"
    LEFT = "not picked up"
    REFUSED = "refused by the dialer"
    UNKNOWN = "not known whether it was picked up"


UNNOTED = {"noted": False}
# Of a mailing that is exported.
FIGURES = ("columns", "rows", "rejected", "replaced", "size_bytes", "sha256", "seconds")
TROUBLED_PICKUPS = (Pickup.LEFT, Pickup.REFUSED, Pickup.UNKNOWN)


@dataclass(slots=True, kw_only=True)
class Mailing:
    """A campaign in a run: where it goes, what it holds, how far it came.

    Changed by its own worker alone.
    """

    campaign: str
    slot: str
    state: State
    id: int = 0  # in the ledger; 0: not noted there
    resend: bool = False
    folder: PurePosixPath = PurePosixPath()  # the drop folder
    file: str = ""  # the final name
    temp: str = ""  # the path of its temp names: /entrada/x/.part-{id}
    temp_id: int = 0  # of the first temp that may be on the server; the next one's is one more
    temps: int = 0  # how many may be there
    columns: int = 0
    rows: int = 0
    rejected: int = 0
    replaced: int = 0  # characters that the encoding lacks
    size_bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0
    message: str = ""  # what the operator was told
    hint: str = ""
    pickup: Pickup = Pickup.UNWATCHED
    picked_up: str = ""  # 10:02:45
    pc: str = ""  # which brought it, or settled what became of it
    changed: str = ""  # local time with offset

    # Of the run alone, not noted in the ledger
    error: PipelineError | None = field(default=None, metadata=UNNOTED)
    # a rename that the server may still carry out
    unanswered: bool = field(default=False, metadata=UNNOTED)
    began_s: float = field(default=0.0, metadata=UNNOTED)  # on the steady clock
    sent_bytes: int = field(default=0, metadata=UNNOTED)
    # its temp is acknowledged, and was not taken away
    is_whole: bool = field(default=False, metadata=UNNOTED)
    stamp: tuple[int, int] = field(default=(0, 0), metadata=UNNOTED)  # of its file on this PC
    # of the last delivered ones, for a rehearsal
    past_rows: Sequence[int] = field(default=(), metadata=UNNOTED)

    @property
    def final(self) -> PurePosixPath:
        """The whole path of the final name."""
        return self.folder / self.file

    @property
    def temp_paths(self) -> list[PurePosixPath]:
        """The temps that may be on the server, the last one being the mailing itself."""
        numbers = range(self.temp_id, self.temp_id + self.temps)
        return [
            PurePosixPath(self.temp.replace("{id}", f"{number & 0xFFFFFFFF:08x}"))
            for number in numbers
        ]

    @property
    def part(self) -> PurePosixPath:
        """The temp that is, or was, to be renamed."""
        return self.temp_paths[-1]

    @property
    def is_trouble(self) -> bool:
        """Whether it needs, or needed, a person."""
        troubled = (State.HELD, State.FAILED, *MAY_BE_OUT)
        return self.state in troubled or self.pickup in TROUBLED_PICKUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """How a run ended, in the ledger."""

    id: int
    slot: str
    exit_code: int
    started: bool  # whether it came to its campaigns; else the message says why not
    message: str
    hint: str
    pc: str = ""
    changed: str
    campaign: ClassVar = ""  # what it has in common with a mailing, for those who tell of both

    @property
    def is_trouble(self) -> bool:
        """Whether the whole run failed before its campaigns could."""
        return not self.started

    @property
    def state(self) -> State:
        return State.FAILED if self.is_trouble else State.DELIVERED


# --------------------------------------------------------------------------------------------------
# Ledger: what was promised before a rename, and what came of it
# --------------------------------------------------------------------------------------------------

LEDGER_VERSION = 3
LOCK_PATIENCE_S = 60  # with a program that holds the file, from the first time it is met in a run
IN_MEMORY = Path(":memory:")
PC = socket.gethostname()
LEDGER_SQL = """
CREATE TABLE IF NOT EXISTS mailings (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,                   -- 2026-12-22 10:00
    campaign TEXT NOT NULL,
    state TEXT NOT NULL,
    resend INTEGER NOT NULL DEFAULT 0,    -- 1: sent although the slot had been delivered (--resend)
    folder TEXT NOT NULL,                 -- the drop folder
    file TEXT NOT NULL,                   -- the final name
    temp TEXT NOT NULL DEFAULT '',        -- the path of its temp names, {id} being eight hexadecimal digits
    temp_id INTEGER NOT NULL DEFAULT 0,   -- the first of them
    temps INTEGER NOT NULL DEFAULT 0,     -- how many may be on the server
    columns INTEGER NOT NULL DEFAULT 0,
    rows INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0,  -- characters that the encoding lacks
    size_bytes INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',     -- what the operator was told
    hint TEXT NOT NULL DEFAULT '',
    pickup TEXT NOT NULL DEFAULT '',      -- what the dialer did with it
    picked_up TEXT NOT NULL DEFAULT '',   -- when
    pc TEXT NOT NULL DEFAULT '',          -- which brought it
    changed TEXT NOT NULL                 -- local time with offset
);
CREATE UNIQUE INDEX IF NOT EXISTS once ON mailings (campaign, slot)
    WHERE resend = 0 AND state IN ('publishing', 'withdrawing', 'delivered', 'in doubt');
CREATE INDEX IF NOT EXISTS by_file ON mailings (lower(file));
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,
    exit_code INTEGER NOT NULL,
    started INTEGER NOT NULL,             -- 0: it ended before any campaign had an outcome
    message TEXT NOT NULL,
    hint TEXT NOT NULL,
    pc TEXT NOT NULL DEFAULT '',
    changed TEXT NOT NULL
);
"""
# By the version that is found. In the first one runs were mailings without a campaign, and temps
# stood in one column, a line each.
LEDGER_UPDATES = {
    1: """
ALTER TABLE mailings RENAME TO old_mailings;
DROP INDEX IF EXISTS at_most_once;
DROP INDEX IF EXISTS by_file;
""",
    2: """
ALTER TABLE mailings ADD COLUMN pc TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN pc TEXT NOT NULL DEFAULT '';
""",
}


class Ledger:
    """The record of deliveries, kept across runs and crashes; what is noted is on the disk before a call returns.

    This is one PC's, in SQLite; SharedLedger is that of several, in PostgreSQL; a rehearsal's is
    IN_MEMORY. looks: nothing is to be noted, so that a ledger that cannot be written will do.
    Raises SettingsFault when it is opened, LocalFault afterwards.
    """

    is_shared = False
    has_lost = False  # whatever was held
    stop: Stop | None = None  # of the run that uses it; once it is over, nothing is waited for
    _is_ours = "1 = 1"  # in SQL: whether this PC still holds the campaign of an entry

    def __init__(self, path: Path, clock: Clock, looks: bool = False) -> None:
        self.path, self.clock = path, clock
        self._lock, self._held_since_s = threading.RLock(), 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as undo:
                self._db = sqlite3.connect(
                    path, timeout=10, isolation_level=None, check_same_thread=False
                )
                undo.callback(self._db.close)
                self._db.row_factory = sqlite3.Row
                # The commit itself is synced, in a quarter of the time: DELETE leaves the folder's entry
                # to the system, and a power failure can undo what was noted (sqlite.org, synchronous).
                self._pragma("journal_mode = PERSIST")
                self._pragma("synchronous = FULL")
                if (damage := self._pragma("quick_check")) != "ok":
                    raise sqlite3.DatabaseError(damage)
                self._prepare(looks)
                undo.pop_all()
        except (sqlite3.Error, OSError) as error:
            raise SettingsFault(
                text(
                    "{path}: the ledger cannot be used ({reason}). Free the disk, make the file "
                    "writable and close other programs that hold it; if it is damaged, restore it or move it away "
                    "with the CSVs beside it",
                    path=path,
                    reason=foreign(error),
                )
            ) from None

    def _pragma(self, asked: str) -> Any:
        row = self._db.execute(f"PRAGMA {asked}").fetchone()
        return row and row[0]

    def _prepare(self, looks: bool) -> None:
        """Make the tables, or take over those of an older version.

        A read-only or full disk shows here.
        """
        version = self._pragma("user_version")
        if not version and self.path != IN_MEMORY:
            self._refuse_beside_mailings()
        if version > LEDGER_VERSION:
            raise SettingsFault(
                text("{path}: the ledger is of a newer version of this program", path=self.path)
            )
        if looks and version == LEDGER_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        version = self._pragma("user_version")  # another program may have been first
        for statement in (LEDGER_UPDATES.get(version, "") + LEDGER_SQL).split(";"):
            self._db.execute(statement)
        if version == 1:
            self._take_over()
        self._pragma(f"user_version = {LEDGER_VERSION}")
        self._db.execute("COMMIT")

    def _refuse_beside_mailings(self) -> None:
        """A new ledger beside old mailings would know nothing of what this slot has delivered."""
        for file in sorted(self.path.parent.iterdir()):
            if file.suffix.lower() in MAILING_ENDINGS:
                raise SettingsFault(
                    text(
                        "{path}: the ledger is gone, but {folder} holds mailings ({file} …): what this slot has "
                        "delivered is unknown. Restore the file; or, to begin a new one, move those CSVs elsewhere",
                        path=self.path,
                        folder=self.path.parent,
                        file=file.name,
                    )
                )

    def _take_over(self) -> None:
        """Everything that version 1 knew."""
        unused_ids = itertools.count(-1, -1)
        for row in self._db.execute("SELECT * FROM old_mailings ORDER BY id").fetchall():
            if row["campaign"]:
                self._take_over_mailing(dict(row), unused_ids)
            else:
                code = ExitCode.OK if row["state"] == "done" else ExitCode.PARTIAL
                started = row["file"] != "fault"
                told = {name: row[name] for name in ("slot", "message", "hint", "changed")}
                self._insert("runs", told | {"exit_code": code, "started": started})
        self._db.execute("DROP TABLE old_mailings")

    def _take_over_mailing(self, entry: dict[str, Any], unused_ids: Iterator[int]) -> None:
        *earlier, last = entry.pop("temp").split("\n")
        pickup = entry.pop("pickup")
        # one more entry for each, or nobody would ever remove it; of no slot: none shows it
        for temp in earlier:
            unseen = {"id": next(unused_ids), "state": State.EMPTY, "slot": "", "file": ""}
            self._insert("mailings", entry | unseen | temp_columns(temp))
        if entry["state"] == "started":
            entry["state"] = State.CLAIMED
        elif entry["state"] == State.PUBLISHING and pickup:
            entry["state"], pickup = State.WITHDRAWING, ""
        kind = next(kind for kind in reversed(Pickup) if pickup.startswith(kind))
        if kind is Pickup.TAKEN:
            entry["picked_up"] = pickup.rpartition(" ")[2]
        elif kind in TROUBLED_PICKUPS:
            entry["message"] = entry["message"] or pickup
        self._insert("mailings", entry | {"pickup": kind} | temp_columns(last))

    def close(self) -> None:
        self._db.close()

    def claim(self, mailing: Mailing) -> None:
        """A new entry."""
        mailing.changed, mailing.pc = self._now(), PC
        values = stored(mailing)
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        held = f"(SELECT CAST(? AS TEXT) AS campaign) AS held WHERE {self._is_ours}"
        sql = f"INSERT INTO mailings ({names}) SELECT {marks} FROM {held} RETURNING id"
        mailing.id = self._if_ours(mailing, sql, (*values.values(), mailing.campaign))

    def hold(self, campaigns: Sequence[str]) -> str:
        """The first of these campaigns that no other PC is at work on: ours until `release`.

        '': there is none.
        """
        return campaigns[0]

    def release(self, campaign: str) -> None:
        """Let other PCs have a campaign."""

    @contextlib.contextmanager
    def holding(self, campaign: str) -> Iterator[bool]:
        """Hold a campaign until the block ends; whether no other PC has it."""
        held = self.hold([campaign])
        try:
            yield bool(held)
        finally:
            if held:
                self.release(campaign)

    def probe(self) -> Text | None:
        """For --check: whether entries can be made; what somebody should know."""
        return None

    def still_ours(self, mailing: Mailing) -> None:
        """As late as can be before a request that another PC must not meet: its entry was noted just now.

        Raises ClaimLost if this PC stood still meanwhile.
        """

    def note(self, mailing: Mailing, **values: Any) -> None:
        """Set fields of a mailing, here and in its entry; on the disk when it returns."""
        values["changed"] = self._now()
        columns = ", ".join(f"{name} = ?" for name in values)
        sql = f"UPDATE mailings SET {columns} WHERE id = ? AND {self._is_ours} RETURNING id"
        self._if_ours(mailing, sql, (*values.values(), mailing.id))
        # not before: the record must not know more than the disk
        for name, value in values.items():
            setattr(mailing, name, value)

    def _if_ours(self, mailing: Mailing, sql: str, values: Sequence[Any]) -> int:
        """The number of the entry that sql has written.

        Raises ClaimLost if this PC does not hold its campaign.
        """
        with self._lock:  # or who waits for it would dial again, in vain, one after the other
            rows = [] if self.has_lost else self._execute(sql, values)
        if not rows:
            message = text("{campaign}: another PC may be at work on it", campaign=mailing.campaign)
            raise ClaimLost(message, LOST_HINT, wide=True)
        return int(rows[0]["id"])

    def mailings(self, where: str, *values: Any) -> list[Mailing]:
        """The entries for which the SQL condition holds, oldest first."""
        rows = self._execute(f"SELECT * FROM mailings WHERE {where} ORDER BY id", values)
        return [mailing_of(row) for row in rows]

    def unsettled(self, campaign: str = "") -> list[Mailing]:
        """What earlier runs left behind (of that campaign): on its way, in doubt, or with a temp on the server."""
        where = f"({is_any(UNSETTLED)} OR temps > 0) AND ? IN ('', campaign)"
        return self.mailings(where, campaign)

    def in_slot(self, slot: str, campaign: str) -> list[Mailing]:
        """What reached the dialer, or may have, in this slot or, by another PC, in one that has begun since."""
        where = (
            f"slot BETWEEN ? AND ? AND campaign = ? AND {is_any((State.DELIVERED, *MAY_BE_OUT))}"
        )
        return self.mailings(where, slot, max(slot, slot_of(self.clock.now())), campaign)

    def settled(self, slot: str) -> set[int]:
        """The numbers of the slot's entries of which it is known what came."""
        return {entry.id for entry in self.mailings(f"slot = ? AND NOT {is_any(UNSETTLED)}", slot)}

    def verdicts_elsewhere(self, slot: str, campaign: str) -> list[Mailing]:
        """That other PCs brought it as far as its guards in this slot, which answers for this PC too."""
        where = "slot = ? AND campaign = ? AND pc NOT IN ('', ?) AND state IN ('held', 'empty')"
        return self.mailings(where, slot, campaign, PC)

    def past_rows(self, campaign: str) -> list[int]:
        """The rows of the campaign's last ten delivered mailings."""
        sql = "SELECT rows FROM mailings WHERE campaign = ? AND state = 'delivered' ORDER BY id DESC LIMIT 10"
        return [row["rows"] for row in self._execute(sql, (campaign,))]

    def last_delivered(self, campaign: str) -> Mailing | None:
        """The campaign's latest delivered mailing."""
        last = "SELECT max(id) FROM mailings WHERE campaign = ? AND state = 'delivered'"
        return next(iter(self.mailings(f"id = ({last})", campaign)), None)

    def knows_file(self, name: str) -> bool:
        """Whether a mailing ever had this name."""
        sql = "SELECT 1 FROM mailings WHERE lower(file) = lower(?) LIMIT 1"
        return bool(self._execute(sql, (name,)))

    def files_before(self, moment: datetime) -> set[str]:
        """The names of the mailings that were last touched before that moment."""
        sql = "SELECT DISTINCT file FROM mailings WHERE changed < ? AND file <> ''"
        return {row["file"] for row in self._execute(sql, (moment.isoformat(),))}

    def note_run(self, run: PastRun) -> None:
        """How a whole run ended."""
        values = asdict(run)
        del values["id"]
        self._insert("runs", values)

    def runs(self, since: str) -> list[PastRun]:
        """The runs that ended after that time, oldest first."""
        rows = self._execute("SELECT * FROM runs WHERE changed > ? ORDER BY id", (since,))
        return [PastRun(**(row | {"started": bool(row["started"])})) for row in rows]

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="milliseconds")

    def _insert(self, table: str, values: Mapping[str, Any]) -> int:
        marks = ", ".join("?" * len(values))
        sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks}) RETURNING id"
        return int(self._execute(sql, tuple(values.values()))[0]["id"])

    def _execute(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        """The one place at which the ledger is asked, in the SQL that both engines speak; ? stands for a value."""
        given = [as_column(value) for value in values]
        with self._lock:
            while True:
                try:
                    found = [dict(row) for row in self._db.execute(sql, given)]
                    self._held_since_s = 0.0
                    return found
                except sqlite3.IntegrityError:  # the index `once`
                    raise Held(text("this slot's mailing is out already")) from None
                except sqlite3.Error as error:
                    if self._is_waited_for(error):
                        continue
                    message = text("{path}: {reason}", path=self.path, reason=foreign(error))
                    hint = text("free the disk, and close other programs that hold the ledger")
                    raise LocalFault(message, hint) from error

    def _is_waited_for(self, error: sqlite3.Error) -> bool:
        """Whether another program holds the file, and may let go of it yet: a viewer, a backup, a scanner."""
        code = getattr(error, "sqlite_errorcode", 0)  # Python's own errors have none
        if code & 0xFF != sqlite3.SQLITE_BUSY or (self.stop and self.stop.error):
            return False
        now_s = self.clock.steady_s()
        if not self._held_since_s:
            self._held_since_s = now_s
            log.warning(text("{path}: another program holds it; waiting for it", path=self.path))
        return now_s - self._held_since_s < LOCK_PATIENCE_S


# a session that is silent for so long loses its claims: its PC sleeps, hangs, or is cut off
LEDGER_SESSION_S = 30
LEDGER_BEAT_S = 10
LEDGER_ANSWER_S = 10
# some three minutes: a server restarts, a replica is promoted
LEDGER_PATIENCE = RetryPolicy(20, 1, 10)
LEDGER_POLL_S = 2  # between two looks at what other PCs hold
CLOCK_TOLERANCE_S = 60
LOST_HINT = text(
    "nothing to do: whichever PC reaches the ledger carries on, and looks first what became of it"
)
CHECK_LEDGER = text("check LEDGER and the network; is PostgreSQL running, in version 14 or newer?")
NO_POOLER = text(
    "let LEDGER name PostgreSQL's own host and port: through a pooler two PCs may send the same mailing"
)
# What stands in LEDGER_SQL, as PostgreSQL calls it.
POSTGRES_WORDS = {
    "INTEGER PRIMARY KEY": "INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "TEXT": 'TEXT COLLATE "C"',
}
SHARED_LEDGER_SQL = functools.reduce(
    lambda sql, word: sql.replace(*word),
    POSTGRES_WORDS.items(),
    f"""
SELECT pg_advisory_xact_lock(hashtext('{PROGRAM}')); -- PCs come at the same minute
DO $$ BEGIN IF to_regnamespace('{PROGRAM}') IS NULL THEN CREATE SCHEMA {PROGRAM}; END IF; END $$;
{LEDGER_SQL}
COMMENT ON TABLE mailings IS '{LEDGER_VERSION}';
""",
)


def lock_of(campaign: str) -> str:
    """The key of a campaign's advisory lock, in SQL; one table's keys are no other's."""
    return f"hashtextextended({campaign}, 'mailings'::regclass::oid::bigint)"


class SharedLedger(Ledger):
    """The ledger of several PCs, in the schema mailing_pipeline of a PostgreSQL of its own login.

    A claim is an entry together with an advisory lock on its campaign, which the session holds. The
    session beats; when its PC dies, sleeps, hangs or is cut off, PostgreSQL ends it
    (idle_session_timeout), the lock is free, and whoever takes it settles the entry by looking. A
    new session, after one that broke, holds nothing.
    """

    is_shared = True
    _is_ours = (
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1"
        f" AND (classid::bigint << 32 | objid::bigint) = {lock_of('campaign')})"
    )

    def __init__(self, settings: Settings, clock: Clock, looks: bool = False) -> None:
        self.settings, self.clock = settings, clock
        self.where = address(
            settings.ledger.get("host", "localhost"), settings.ledger.get("port", "5432")
        )
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._session: psycopg.Connection[dict[str, Any]] | None = None
        try:
            if self._value("to_regclass('mailings')") is None:
                # who looks sees empty tables, which go with the session
                self._execute(("BEGIN;" if looks else "") + SHARED_LEDGER_SQL, ())
            if self._value("obj_description('mailings'::regclass)") != str(LEDGER_VERSION):
                template = "{path}: the ledger is of another version of this program"
                raise SettingsFault(text(template, path=self.where))
            if not looks:
                self._check_rights()
                self._check_clock()
        except PipelineError as error:
            self.close()
            raise SettingsFault(*error.lines, tries=error.tries) from None
        threading.Thread(target=self._beat, name="ledger", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._session:
                self._session.close()

    def hold(self, campaigns: Sequence[str]) -> str:
        sql = f"SELECT name FROM unnest(?::text[]) AS name WHERE pg_try_advisory_lock({lock_of('name')}) LIMIT 1"
        found = self._execute(sql, [list(campaigns)])
        return str(found[0]["name"]) if found else ""

    @property
    def has_lost(self) -> bool:  # type: ignore[override]
        return self._session is None or self._session.closed

    def release(self, campaign: str) -> None:
        with contextlib.suppress(LocalFault):  # without its session it is released already
            if not self.has_lost:
                self._execute(f"SELECT pg_advisory_unlock({lock_of('?::text')})", [campaign])

    def probe(self) -> Text | None:
        entry = (
            "(slot, campaign, state, folder, file, changed) VALUES ('', '', 'empty', '', '', '')"
        )
        self._execute(f"BEGIN; INSERT INTO mailings {entry}; ROLLBACK", ())
        told = text("shared, in PostgreSQL at {where}", where=self.where)
        waits = self._value("current_setting('synchronous_standby_names')")
        if "," not in self.settings.ledger.get("host", "") or waits:
            return told
        hint = "set synchronous_standby_names there, or a failover forgets the last deliveries"
        return in_a_row([told, text(hint)])

    def still_ours(self, mailing: Mailing) -> None:
        gone_s = (self.clock.now() - datetime.fromisoformat(mailing.changed)).total_seconds()
        if not -1 < gone_s < LEDGER_SESSION_S / 2:
            template = "this PC stood still for {seconds} s: others may have its claims"
            raise ClaimLost(text(template, seconds=round(gone_s)), LOST_HINT, wide=True)

    def _check_rights(self) -> None:
        """Whether entries may be made and changed: nothing is."""
        for table in ("mailings", "runs"):
            self._execute(f"INSERT INTO {table} (slot) SELECT slot FROM {table} WHERE false", ())
            self._execute(f"UPDATE {table} SET slot = slot WHERE false", ())

    def _check_clock(self) -> None:
        """A slot is an hour of this PC's clock: one that is wrong would send a slot's mailings a second time."""
        now = self.clock.now()
        theirs_s = self._value("extract(epoch FROM clock_timestamp())::float")
        wrong_s = round(now.timestamp() - theirs_s)
        if abs(wrong_s) > CLOCK_TOLERANCE_S:
            template = "this PC's clock is {seconds} s off that of the ledger's server; nothing was sent. Set the clock"
            raise SettingsFault(text(template, seconds=wrong_s))
        for latest in self.mailings("id = (SELECT max(id) FROM mailings)"):
            then = datetime.fromisoformat(latest.changed)
            # a zone that was wrong once can be set right
            is_recent = now - then < timedelta(days=1)
            if is_recent and then.utcoffset() != then.astimezone().utcoffset():
                template = (
                    "this PC's time zone is not that of the latest entry, by {pc}; nothing was sent. "
                    "Set the zone; where the entry's was wrong, wait a day"
                )
                raise SettingsFault(text(template, pc=latest.pc))

    def _value(self, expression: str) -> Any:
        """What the server says of an expression."""
        return self._execute(f"SELECT {expression} AS value", ())[0]["value"]

    def _beat(self) -> None:
        while not self._closed.wait(LEDGER_BEAT_S):
            with self._lock, contextlib.suppress(PipelineError):
                if not self.has_lost:
                    self._value("1")

    def _execute(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        import psycopg

        given = [as_column(value) for value in values]
        with self._lock:
            try:
                session = self._connected()
                self._allow_answer(session)
                cursor = session.execute(sql.replace("?", "%s").encode(), given or None)
                return cursor.fetchall() if cursor.description else []
            except psycopg.errors.UniqueViolation:
                raise Held(text("this slot's mailing is out already")) from None
            # the second: a schema that this user may not look into is none to it
            except (
                psycopg.errors.InsufficientPrivilege,
                psycopg.errors.InvalidSchemaName,
            ) as error:
                raise LocalFault(self._told(error), self._cure()) from None
            except psycopg.ProgrammingError as error:
                raise LocalFault(self._told(error), CHECK_LEDGER) from None
            # broken, ended by the server, silent, or a primary no more
            except psycopg.Error as error:
                if self._session:
                    self._session.close()
                own = self.settings.ledger
                names = [own[key] for key in ("user", "dbname") if key in own]
                # a wrong password stays wrong
                fault = connect_error(str(error), self.where, names=names)
                hint = NO_POOLER if fault.hint is POOLER_OPTIONS else CHECK_LEDGER
                raise ClaimLost(self._told(error), hint, tries=fault.tries, wide=True) from None

    def _connected(self) -> psycopg.Connection[dict[str, Any]]:
        """The session; a new one, which holds nothing, where it broke. Raises psycopg.Error."""
        from psycopg.rows import dict_row

        if self._session and not self.has_lost:
            return self._session
        limits = {
            "idle_session_timeout": f"{LEDGER_SESSION_S}s",
            "idle_in_transaction_session_timeout": f"{LEDGER_SESSION_S}s",
            "statement_timeout": f"{LEDGER_ANSWER_S}s",
            "synchronous_commit": "on",
            "search_path": PROGRAM,
        }
        set_up = " ".join(f"-c {name}={value}" for name, value in limits.items())
        options: dict[str, Any] = {
            # nobody looks at the stop while it dials: the watchdog must not find it at that
            "connect_timeout": min(self.settings.connect_timeout_seconds, LEDGER_ANSWER_S),
            "application_name": f"{PROGRAM} ledger",
            "target_session_attrs": "read-write",  # of several hosts the one that is primary now
            **self.settings.ledger,
            "client_encoding": "UTF8",
            "options": f"{self.settings.ledger.get('options', '')} {set_up}",
        }
        connect = bounded_connection().connect
        self._session = connect(
            **options, autocommit=True, prepare_threshold=None, row_factory=dict_row
        )
        self._refuse_pooler(self._session, list(limits))
        return self._session

    def _refuse_pooler(self, session: psycopg.Connection[Any], limits: Sequence[str]) -> None:
        """Whether the session has what its login asked for: a pooler's has not, or is another one the next time.

        Without search_path the tables would be others than those of a PC that has no pooler.
        """
        self._allow_answer(session)
        sql = "SELECT FROM pg_settings WHERE source = 'client' AND name = ANY(%s)"
        if session.execute(sql, [limits]).rowcount != len(limits):
            session.close()
            template = (
                "ledger at {where}: a pooler answers there, whose session is not this PC's own"
            )
            raise LocalFault(text(template, where=self.where), NO_POOLER)

    def _allow_answer(self, session: psycopg.Connection[Any]) -> None:
        """Wait for what is asked next so long and no longer."""
        session.look = functools.partial(self._look, time.monotonic() + LEDGER_ANSWER_S)  # type: ignore[attr-defined]

    @staticmethod
    def _look(limit_s: float) -> None:
        import psycopg

        if time.monotonic() > limit_s:
            raise psycopg.OperationalError("no answer in time")

    def _told(self, error: psycopg.Error) -> Text:
        reason = foreign(error.diag.message_primary or error, self.settings.secrets)
        return text("ledger at {where}: {reason}", where=self.where, reason=reason)

    def _cure(self) -> Text:
        user = self._session.info.user if self._session else ""
        sql = f'CREATE SCHEMA {PROGRAM} AUTHORIZATION "{user}"'
        if self._value(f"to_regnamespace('{PROGRAM}')"):  # another user made it
            sql = "; ".join(
                f'GRANT ALL ON {what} {PROGRAM} TO "{user}"'
                for what in ("SCHEMA", "ALL TABLES IN SCHEMA")
            )
        return text("let the database administrator run: {sql}", sql=sql)


def open_ledger(settings: Settings, clock: Clock, looks: bool = False) -> Ledger:
    """The ledger that LEDGER names, or this PC's own."""
    if settings.ledger:
        return SharedLedger(settings, clock, looks)
    return Ledger(settings.ledger_path, clock, looks)


def refuse_unknown_mailings(folder: Path, ledger: Ledger, slot: str) -> None:
    """A mailing of this slot of which the ledger does not know: it is not the one that the slot began with.

    LEDGER was set or emptied meanwhile, its database made anew, a backup restored: what went out
    would go out again. Raises SettingsFault.
    """

    def is_of_slot(path: Path) -> bool:
        with contextlib.suppress(OSError, ValueError):  # it may go at this moment
            return slot_of(datetime.fromtimestamp(path.stat().st_mtime)) == slot
        return False

    mailings = [path for path in folder.glob("*") if path.suffix.lower() in MAILING_ENDINGS]
    rejected = {rejected_name(path.name) for path in mailings}
    for path in mailings:
        known = path.name in rejected or not is_of_slot(path) or ledger.knows_file(path.name)
        if not known:
            template = (
                "{path}: a mailing of this hour that the ledger does not know: it may have been sent "
                "already. Was LEDGER changed, or the ledger made anew? Put it back as it was; or wait "
                "for the next hour; or move the file elsewhere"
            )
            raise SettingsFault(text(template, path=path))


def is_any(states: Iterable[State]) -> str:
    """In SQL: whether an entry is in one of these states."""
    return f"state IN ({', '.join(map(repr, map(str, states)))})"


def as_column(value: Any) -> Any:
    """A value as the ledger takes it."""
    if isinstance(value, (bool, IntEnum)):
        return int(value)
    return str(value) if isinstance(value, (PurePosixPath, StrEnum)) else value


def stored(mailing: Mailing) -> dict[str, Any]:
    """A mailing's fields but its number, as the ledger takes them."""
    named = [item.name for item in fields(Mailing) if item.name != "id" and not item.metadata]
    return {name: as_column(getattr(mailing, name)) for name in named}


def mailing_of(row: Mapping[str, Any]) -> Mailing:
    """An entry of the ledger as the record that it is."""
    typed = {
        "state": State(row["state"]),
        "pickup": Pickup(row["pickup"]),
        "folder": PurePosixPath(row["folder"]),
    }
    return Mailing(**(dict(row) | typed | {"resend": bool(row["resend"])}))


def temp_columns(path: str) -> dict[str, Any]:
    """A temp's whole path, as version 1 noted it, in the columns of today."""
    found = re.fullmatch(r"(.*\.part-)([0-9a-f]{8})", path)
    return {"temp": found[1] + "{id}", "temp_id": int(found[2], 16), "temps": 1} if found else {}


@contextlib.contextmanager
def only_run(path: Path, who: str, clock: Clock, wait_s: float) -> Iterator[None]:
    """One run at a time: SQLite's write lock on a small file, which the system releases when a process dies.

    who describes this run for the one that finds the lock taken. Waits up to wait_s seconds, then
    raises Busy.
    """
    until_s, told = clock.steady_s() + wait_s, ""
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, timeout=0, isolation_level=None)
            held.callback(db.close)
            while holder := other_holder(db, who):
                if clock.steady_s() >= until_s:
                    message = text("another run is active: {holder}", holder=holder)
                    raise Busy(message, text("wait until it has ended; it delivers by itself"))
                if holder != told:
                    log.info(text("waiting for another run to end: {holder}", holder=holder))
                    told = holder
                clock.wait(threading.Event(), 1)
        except (sqlite3.Error, OSError) as error:
            template = (
                "{path}: the lock cannot be used: {reason}; make OUTPUT_DIR writable, or delete this file "
                "if it is damaged"
            )
            raise SettingsFault(text(template, path=path, reason=foreign(error))) from None
        yield


def other_holder(db: sqlite3.Connection, who: str) -> str:
    """Whose the lock is; '': it is ours now.

    Readers may look while the second BEGIN IMMEDIATE holds it, so the name is committed first.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE IF NOT EXISTS holder (who TEXT)")
        db.execute("DELETE FROM holder")
        db.execute("INSERT INTO holder VALUES (?)", (who,))
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        return ""
    except sqlite3.DatabaseError as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if "locked" not in str(error):
            raise
    with contextlib.suppress(sqlite3.Error, TypeError):
        return foreign(db.execute("SELECT who FROM holder").fetchone()[0])
    return "?"


# --------------------------------------------------------------------------------------------------
# Database: the sessions of a run and the snapshot that all of them read. The one seam for psycopg
# --------------------------------------------------------------------------------------------------


MOST = 64


class Pool(Generic[T]):
    """Sessions or channels for threads: a free one, a new one, or the next to come back.

    Scarce is not down: a server that refuses one more while others are in use is used with those.
    """

    def __init__(self, stop: Stop, what: Text) -> None:
        self.stop, self.what = stop, what
        self.changed = threading.Condition(threading.RLock())
        self.made = 0  # in use and free
        self._free: list[T] = []
        self._most = MOST  # what the server grants, as far as we know
        self._why: Text | None = None  # it grants no more, if that is to be told yet

    def take(self, make: Callable[[], T]) -> T:
        """One for this thread alone, until given back.

        Raises what make raises if none is there at all.
        """
        while True:
            with self.changed:
                while not self._free and self.made >= self._most:
                    self.changed.wait(0.5)
                    self.stop.check()
                if self._free:
                    self._tell_turns()
                    return self._free.pop()
                self.made += 1
            try:
                return make()
            except BaseException as error:
                with self.changed:
                    self._lose(1)
                    if not (isinstance(error, PipelineError) and error.scarce and self.made):
                        raise
                    self._most, self._why = self.made, error.message

    def _tell_turns(self) -> None:
        """Not before one is taken in turn: the others may all be in the middle of being refused."""
        if self._why:
            template = (
                "the server grants no more than {count} {what}, mailings take turns: {reason}"
            )
            log.warning(text(template, count=self._most, what=self.what, reason=self._why))
            self._why = None

    def give_back(self, item: T | None) -> None:
        """For the next one; None: it broke."""
        with self.changed:
            if item is None:
                self._lose(1)
            else:
                self._free.append(item)
                self.changed.notify_all()

    def empty(self) -> list[T]:
        """Those that nobody uses, which are not handed out any more."""
        with self.changed:
            free, self._free = self._free, []
            self._lose(len(free))
            return free

    def _lose(self, count: int) -> None:
        self.made -= count
        if not self.made:  # a new connection may be granted more
            self._most, self._why = MOST, None
        self.changed.notify_all()


CANCEL_TIMEOUT_S = 3
LOCK_TIMEOUT_S = 30  # no mailing queues behind someone's ALTER TABLE until its statement_timeout
GRACE_S = 15  # what a server may take beyond statement_timeout to say so: then it counts as frozen
BLOCK_BYTES = 4 << 20  # pandas takes some 5 ms a block, whatever is in it
PROBE_TIMEOUT_S = 3

LATER = text("it is tried again by itself; if it stays so, ask the database administrator")
CHECK_NETWORK = text("check PGHOST, PGPORT and the network; is PostgreSQL running?")
CHECK_LOGIN = text("check PGUSER, PGPASSWORD (or .pgpass) and PGDATABASE")
WRITES_HINT = text("the query writes; if it must (temp tables), add '-- read_only: no'")
CHECK_SETTINGS = text("check the PG… settings in config.env")
LOCKED = text("another session locks a table of this query; ask who changes it at this hour")
TOO_LONG = text("the query took too long: see its plan, or raise '-- timeout:' (seconds)")
CANCELLED = text("somebody cancelled it before its time was over; ask the database administrator")
POOLER_OPTIONS = text(
    "take PGOPTIONS and the like out of config.env, or set the pooler's ignore_startup_parameters"
)
REFUSED = text("the connection was refused")
TIMED_OUT = text("no answer in time")
NAME_UNKNOWN = text("this name is unknown")
PASSWORD_WRONG = text("the password or the user is wrong")


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the tables that classify foreign errors: by text or SQLSTATE, for SFTP also by class.

    says: words of our own for what people meet every week; None: the server's or library's words.
    """

    pattern: str
    tries: int
    hint: Text
    says: Text | None = None
    kind: str = ""  # a pattern of the names of its classes
    wide: bool = False  # it would meet every campaign
    sound: bool = False  # SFTP: it is the server's answer, and the connection is of use


# A server, a role or a pooler that has no session left, in the languages of PostgreSQL that we
# meet. Pgpool-II says so where TLS is asked for.
SCARCE = Rule(
    r"too many|connection limit|max_client_conn|response during SSL"
    r"|reserv|muit[ao]s|demasiad[ao]s|zu viele|trop de",
    AGAIN,
    LATER,
)
# While connecting libpq gives no SQLSTATE. What no rule knows is worth another try (reset, starting
# up, shutting down), but for what `refuses_login`.
CONNECT_RULES = (
    SCARCE,
    Rule(r"password|senha|authentication failed", NEVER, CHECK_LOGIN, PASSWORD_WRONG),
    Rule(r"pg_hba", NEVER, text("ask the database administrator to let this PC in (pg_hba.conf)")),
    Rule(r"unsupported startup parameter", NEVER, POOLER_OPTIONS),
    Rule(
        r"certificate|does not support SSL|invalid .*value|invalid (integer|port|connection)"
        r"|definition of service|codec not available",
        NEVER,
        CHECK_SETTINGS,
    ),
    Rule(r"Connection refused|10061|Conexão recusada", AGAIN, CHECK_NETWORK, REFUSED),
    Rule(
        r"translate host name|getaddrinfo|Name or service not known",
        AGAIN,
        CHECK_NETWORK,
        NAME_UNKNOWN,
    ),
    Rule(r"timeout expired|timed out|10060", AGAIN, CHECK_NETWORK, TIMED_OUT),
    Rule(r"", AGAIN, CHECK_NETWORK),
)
LOGIN_REFUSED = Rule(r"", NEVER, CHECK_LOGIN)

# PostgreSQL manual, Appendix A. The first pattern that fits the SQLSTATE and what is said with it
# decides; the last fits all.
SQLSTATE_RULES = (
    Rule(
        r"08P01 .*statement pooling",  # PgBouncer, of every BEGIN
        NEVER,
        text("have the pooler's pool_mode set to transaction or session for this PGUSER"),
        wide=True,
    ),
    Rule(r"28...|3D000", NEVER, CHECK_LOGIN, wide=True),
    Rule(
        r"08(000|001|003|006|P01)|40001|40P01|40003|53000|53300|57P0[1235]|25P03|72000",
        AGAIN,
        LATER,
    ),
    Rule(r"55P03", AGAIN, LOCKED),
    Rule(r"57014", ONCE_MORE, TOO_LONG),
    Rule(r"53100|53200|55006|58030|XX000", ONCE_MORE, LATER),
    Rule(r"25006", NEVER, WRITES_HINT),
    Rule(r"42501", NEVER, text("ask for SELECT on that table for this PGUSER")),
    Rule(r"42...|0A...", NEVER, text("correct the query; --check tries it without sending")),
    Rule(
        r"22021",
        NEVER,
        text(
            "the database holds bytes of another encoding: say which, PGCLIENTENCODING=LATIN1 or WIN1252"
        ),
    ),
    Rule(r"", NEVER, text("run the query in an SQL tool to see more (values are not logged)")),
)

# Seconds that a replica is behind. One that has replayed all it received is not behind while
# somebody sends.
LAG = """CASE WHEN NOT pg_is_in_recovery() THEN 0
  WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
  ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float END"""

# Messages of these classes name tables, columns, limits and servers; others may quote a row, and
# only the name of their class is told. Those of the second list are told where they speak of the
# query's own text.
TELLING_CLASSES = ("08", "25", "28", "3D", "40", "53", "55", "57")
TELLING_OF_THE_QUERY = ("0A", "42", "54")


def refuses_login(told: str, names: Iterable[str]) -> bool:
    """Whether the server itself speaks, and of our user or our database: the login is wrong.

    PostgreSQL quotes them in every language, and in no message about something that passes but
    SCARCE. Two blanks stand behind its word for FATAL, and in none of libpq's own messages.
    """
    quote = r"[\"'«»“”„‘’‚「」\ufffd]"
    own = "|".join(map(re.escape, names))
    return bool(re.search(rf":  .*{quote}\s?({own})\s?{quote}", told))


def connect_error(
    told: str, where: str, hidden: Iterable[str] = (), names: Iterable[str] = ()
) -> DatabaseError:
    """What was said while connecting to `where`, classified. names: our user and our database."""
    rule = next(rule for rule in CONNECT_RULES if re.search(rule.pattern, told, re.IGNORECASE))
    if rule.tries == AGAIN and rule is not SCARCE and refuses_login(told, names):
        rule = LOGIN_REFUSED
    reason = rule.says or foreign(told, hidden)
    message = text("database at {where}: {reason}", where=where, reason=reason)
    error = DatabaseError(message, rule.hint, tries=rule.tries, wide=True)
    error.scarce = rule is SCARCE
    return error


def place_in(source: str, line: int) -> Text | str:
    """A query file and, where it is known, the line."""
    return text("{file}: line {line}", file=source, line=str(line)) if line else source


def quotes_only(told: str, sql: str) -> bool:
    """Whether all that a message quotes stands in the query's own text, and so in no row."""
    return all(quoted in sql for quoted in re.findall(r"[\"«»“”„]([^\"«»“”„]+)[\"«»“”„]", told))


def query_error(
    error: psycopg.Error, where: Text | str, sql: str = "", hidden: Iterable[str] = ()
) -> DatabaseError:
    """An error of the server inside a query file, classified; without SQLSTATE the connection was lost."""
    code, told = error.sqlstate or "", error.diag.message_primary or ""
    if not code:
        message = text("{where}: the connection to the database was lost", where=where)
        return DatabaseError(message, CHECK_NETWORK, tries=AGAIN)
    rule = next(rule for rule in SQLSTATE_RULES if re.match(rule.pattern, f"{code} {told}"))
    # From within a function or a cast (to_tsquery(name), name::regclass, RAISE), whose text and
    # code are anybody's: it may quote a row, or mean another server.
    inside = bool(error.diag.context)
    own = error.diag.statement_position or quotes_only(told, sql)
    tells = code[:2] in TELLING_CLASSES or (own and code[:2] in TELLING_OF_THE_QUERY)
    if inside or not tells:
        told = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    reason = foreign(told, hidden)
    message = text("{where}: {reason} ({code})", where=where, reason=reason, code=code)
    return DatabaseError(message, rule.hint, tries=rule.tries, wide=rule.wide and not inside)


def greeting(host: str, port: int, question: bytes = b"") -> bytes:
    """The first bytes that whatever listens there says, after question; empty if it says nothing."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), PROBE_TIMEOUT_S) as sock,
    ):
        sock.settimeout(PROBE_TIMEOUT_S)
        sock.sendall(question)
        return sock.recv(4)
    return b""


@functools.cache
def bounded_connection() -> type[psycopg.Connection[Any]]:
    """psycopg's Connection; each time that psycopg comes round in a wait (every 0.1 s) it calls `look`.

    A frozen backend ignores statement_timeout, and on Windows closing the socket from another
    thread wakes nobody: this ends any wait, on every system, and execute and copy are used as by
    everybody.
    """
    import psycopg

    class BoundedConnection(psycopg.Connection[Any]):
        look: Callable[[], None] = staticmethod(lambda: None)

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            return super().wait(self._looking(gen), *args, **options)

        def _looking(self, gen: Any) -> Generator[Any, Any, Any]:
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    self.look()
                    wanted = gen.send(ready)
            except StopIteration as end:
                return end.value

    return BoundedConnection


READ_ONLY = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Session:
    """A connection inside a campaign's transaction.

    After any error it must be closed, not reused.
    """

    def __init__(self, connection: psycopg.Connection[Any], stop: Stop, settings: Settings) -> None:
        self.connection, self.stop, self.hidden = connection, stop, settings.secrets
        self.patience_s = settings.connect_timeout_seconds
        self.source, self.timeout_s, self._limit_s = "", self.patience_s, 0.0
        self._is_proven = False
        self.encoding = (connection.pgconn.parameter_status(b"client_encoding") or b"UTF8").decode()
        connection.look = self._look  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connection; a query under way is cancelled, or the server would go on with it."""
        import psycopg

        if self.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            with contextlib.suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        self.connection.close()

    def begin(self, source: str, read_only: bool) -> None:
        """Open the transaction for a query file, if none is.

        BEGIN goes out alone: behind Pgpool-II what is sent with it goes astray. A pooler that has
        no connection free lets it wait, or breaks it off: scarce.
        """
        import psycopg

        if self.connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return
        self.source, self.timeout_s = source, self.patience_s
        try:
            self.run(READ_ONLY if read_only else "BEGIN READ WRITE")
        except DatabaseError as error:
            if error.tries != NEVER:
                error.tries, error.scarce = AGAIN, True
            raise

    def prepare(self, campaign: Campaign) -> None:
        """Everything that the mailing's statement needs before it."""
        self.timeout_s = campaign.timeout_s
        # Whatever the prelude set, the texts that follow are read as they were written.
        texts = {"client_encoding": self.encoding, "standard_conforming_strings": "on"}
        limits = {
            "statement_timeout": f"{campaign.timeout_s}s",
            "lock_timeout": f"{min(LOCK_TIMEOUT_S, campaign.timeout_s)}s",
            "DateStyle": "ISO",
        }
        self._prove({**limits, **self.lasting, **texts}, campaign)
        for statement in campaign.prelude:
            self.run(statement.text, statement.line)
            self.set_local(texts)

    @property
    def lasting(self) -> dict[str, str]:
        """What keeps a transaction open until its mailing is out, or until the run is over."""
        names = ["idle_in_transaction_session_timeout"]
        if self.connection.info.server_version >= 170000:
            names.append("transaction_timeout")
        return dict.fromkeys(names, "0")

    def set_local(self, values: Mapping[str, str]) -> tuple[Any, ...]:
        """Set these for the transaction; the values as the server shows them."""
        return self.row(*(f"set_config('{key}', '{value}', true)" for key, value in values.items()))

    def row(self, *expressions: str) -> tuple[Any, ...]:
        """What the server says of these."""
        return self.run(f"SELECT {', '.join(expressions)}").fetchone() or ()

    def _prove(self, values: Mapping[str, str], campaign: Campaign) -> None:
        """Set these, and look once in each session whether they hold: poolers share statements out."""
        wanted = self.set_local(values)
        if self._is_proven:
            return
        names = (*values, "transaction_isolation")
        *found, isolation = self.row(*(f"current_setting('{name}')" for name in names))
        if wanted != tuple(found) or (campaign.read_only and isolation != "repeatable read"):
            template = "{file}: its transaction is not the one that was begun (transaction_isolation: {found})"
            hint = text(
                "a pooler shares one session's statements out: switch off its load balancing for PGUSER"
            )
            raise DatabaseError(text(template, file=self.source, found=isolation), hint, wide=True)
        self._is_proven = True

    def run(self, sql: str, line: int = 0) -> psycopg.Cursor[Any]:
        """The last result of sql, which stands in the source from that line on."""
        with self._asking(sql, line):
            return self.connection.execute(self._bytes(sql))

    def commit(self) -> None:
        """Keep what the query wrote, but no temp tables: behind a pooler they meet somebody else."""
        self.run("DISCARD TEMP")
        self.run("COMMIT")

    def _bytes(self, sql: str) -> bytes:
        return sql.encode(self.connection.info.encoding, "replace")

    def columns(self, select: Statement) -> tuple[str, ...]:
        """The names of the columns that the mailing's statement would return; nothing is planned yet."""
        from psycopg import generators

        with self._asking(select.text, select.line):
            pgconn = self.connection.pgconn
            pgconn.send_prepare(b"", self._bytes(select.text))
            self._ended(self.connection.wait(generators.execute(pgconn)))
            pgconn.send_describe_prepared(b"")
            described = self._ended(self.connection.wait(generators.execute(pgconn)))
        names = [described.fname(index) or b"" for index in range(described.nfields)]
        encoding = self.connection.info.encoding
        return tuple(tidy_name(name.decode(encoding, "replace")) for name in names)

    @contextlib.contextmanager
    def copy(self, select: Statement) -> Iterator[Iterator[bytearray]]:
        """The mailing's rows as the server's own text (COPY, text format), in blocks of whole rows.

        The query is under way when the block begins: the server works while pandas is imported.
        """
        sql = f"COPY ({select.text}\n) TO STDOUT (ENCODING '{self.encoding}')"
        with (
            self._asking(sql, select.line),
            self.connection.cursor() as cursor,
            cursor.copy(self._bytes(sql)) as copy,
        ):
            blocks, encoding = self._blocks(copy), self.connection.info.encoding
            if self.encoding != "UTF8":
                blocks = (bytearray(block.decode(encoding, "replace").encode()) for block in blocks)
            yield blocks

    def _blocks(self, copy: psycopg.Copy) -> Iterator[bytearray]:
        """copy.read() waits for a row; what came with it is taken from libpq.

        `for row in copy` takes twice as long.
        """
        from psycopg import generators

        pgconn, block, size = self.connection.pgconn, bytearray(), 0
        handed_s = time.monotonic()
        while row := copy.read():
            block += row
            before = 0
            while before < len(block) < BLOCK_BYTES and size >= 0:
                before = len(block)
                size, arrived = pgconn.get_copy_data(1)
                while size > 0:
                    block += arrived
                    size, arrived = pgconn.get_copy_data(1)
                if size == 0:  # what has come meanwhile needs no wait either
                    pgconn.consume_input()
            if size < 0:  # libpq has seen the end, which copy.read() would ask for in vain
                self._ended(self.connection.wait(generators.fetch_many(pgconn)))
                break
            # A query that trickles shows what it has, once a second.
            if len(block) >= BLOCK_BYTES or time.monotonic() - handed_s > 1:
                self._look()
                yield block
                block, handed_s = bytearray(), time.monotonic()
        if block:
            yield block

    @staticmethod
    def _ended(results: Sequence[PGresult]) -> PGresult:
        """The last result of a request of libpq's. Raises psycopg.Error."""
        from psycopg import errors, pq

        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(results[-1])
        return results[-1]

    @contextlib.contextmanager
    def _asking(self, sql: str, line: int) -> Iterator[None]:
        """The seam: psycopg's errors -> DatabaseError, with the line of the query file."""
        import psycopg

        self._limit_s = self.stop.clock.steady_s() + self.timeout_s + GRACE_S
        try:
            yield
        except psycopg.Error as error:
            position = int(error.diag.statement_position or 0)
            line += sql[: position - 1].count("\n") if position and line else 0
            fault = query_error(error, place_in(self.source, line), sql, self.hidden)
            # A statement_timeout has the same SQLSTATE.
            if error.sqlstate == "57014" and self.stop.clock.steady_s() < self._limit_s - GRACE_S:
                fault.hint = CANCELLED
            raise fault from None

    def _look(self) -> None:
        """Whether the wait under way may go on. Raises Stopped or DatabaseError."""
        self.stop.check()
        if self.stop.clock.steady_s() > self._limit_s:
            message = text("{where}: the database fell silent", where=self.source)
            raise DatabaseError(message, LATER, tries=ONCE_MORE)


def login_notes(pgconn: PGconn) -> list[Text]:
    """What somebody should know about a connection that works."""
    notes = []
    server = pgconn.hostaddr.decode()
    if server and not ipaddress.ip_address(server).is_loopback and not pgconn.ssl_in_use:
        notes.append(
            text(
                "the line to PostgreSQL is not encrypted: PGSSLMODE=verify-full with PGSSLROOTCERT"
            )
        )
    if pgconn.parameter_status(b"is_superuser") == b"on":
        notes.append(text("PGUSER is a superuser: a role that can only SELECT cannot do harm"))
    return notes


class Server:
    """One of the two servers that a run needs.

    The first contact is one retry budget for all campaigns, whoever comes first.
    """

    name: ClassVar[str]

    def __init__(self, settings: Settings, stop: Stop) -> None:
        self.settings, self.stop = settings, stop
        # once a whole retry budget was spent on it, or it refused our login
        self.down: PipelineError | None = None
        self._first_contact, self._is_reached = threading.Lock(), False

    def open(self) -> None:
        """Connect, unless that was done."""
        raise NotImplementedError

    def reach(self) -> None:
        """See that it can be used. Raises why not."""
        with self._first_contact:
            if self.down:
                raise self.down
            if not self._is_reached:
                try:
                    retry(self.open, self.settings.retry_policy, self.stop, self.name)
                except PipelineError as error:
                    self.down = error
                    raise
                self._is_reached = True


class Database(Server):
    """The sessions of one run, and the snapshot that all its queries read.

    One session, the holder, exports the snapshot and stays open; the others import it. They all go
    to the host that the holder reached, since a snapshot lives on one server.
    """

    name = "database"

    def __init__(self, settings: Settings, stop: Stop) -> None:
        super().__init__(settings, stop)
        self._lock = threading.RLock()
        self._sessions: Pool[Session] = Pool(stop, text("database sessions"))
        self._holder: Session | None = None
        self._snapshot = ""
        self._lag: PipelineError | None = None  # of the snapshot
        self._pin: dict[str, str] = {}
        self.notes: list[Text] = []  # nothing is wrong, but somebody should know
        self._is_probing = False
        self._vain_logins = 0  # in a row

    def open(self) -> None:
        """Connect the holder and export the snapshot. Raises DatabaseError."""
        with self._lock:
            if self._holder:
                return
            self._pin = {}
            holder = self._holder = self._connect()
            pgconn = holder.connection.pgconn
            self._pin = {key: getattr(pgconn, key).decode() for key in ("host", "hostaddr", "port")}
            for note in login_notes(pgconn):
                self._note(note)
            try:
                self._lag = self._lag_objection(holder)
                holder.begin("snapshot", read_only=True)
                holder.set_local(holder.lasting)  # an idle transaction is what the holder is
                (self._snapshot,) = holder.row("pg_export_snapshot()")
            except DatabaseError as error:
                if error.tries == AGAIN:
                    self._forget()
                    raise
                self._go_alone(holder, error.message)

    def _lag_objection(self, session: Session) -> Held | None:
        """Why what this session reads is too old to call people by; None if it is not."""
        most_s = self.settings.max_replica_lag_seconds
        (lag_s,) = session.row(LAG) if most_s else (0,)
        if lag_s is None:
            why = text("the database is a replica, and nobody knows how far it is behind")
            return Held(why, LATER)
        if lag_s <= most_s:
            return None
        template = (
            "the database is a replica and {seconds} s behind (MAX_REPLICA_LAG_SECONDS={most})"
        )
        return Held(text(template, seconds=round(lag_s), most=str(most_s)), LATER)

    def probe(self, campaigns: Sequence[Campaign]) -> None:
        """Log in for each of these campaigns at the same time.

        Raises DatabaseError; scarce is a note.

        Notes are for --check from now on, and not for the log.
        """
        self._is_probing = True
        self.open()
        with contextlib.ExitStack() as sessions:
            for count, campaign in enumerate(campaigns):
                try:
                    sessions.callback(self._begun(campaign).close)
                except DatabaseError as error:
                    if not error.scarce:
                        raise
                    template = "the server grants {count} of {wanted} database sessions: mailings take turns"
                    count = max(1, count)  # the snapshot's will be given up
                    return self._note(text(template, count=count, wanted=len(campaigns)))

    def _note(self, note: Text) -> None:
        """Say this once in a run."""
        if note in self.notes:
            return
        self.notes.append(note)
        if not self._is_probing:
            log.warning(note)

    @contextlib.contextmanager
    def session(self, campaign: Campaign) -> Iterator[Session]:
        """A session in the campaign's transaction, on the run's snapshot.

        What is not committed is undone.
        """
        self.open()
        session, sound = self._sessions.take(lambda: self._new(campaign)), False
        try:
            session.begin(campaign.source, campaign.read_only)
            snapshot = self._snapshot if campaign.read_only else ""
            if snapshot:
                self._import(session, snapshot)
            session.prepare(campaign)
            if lag := self._lag if snapshot else self._lag_objection(session):
                raise lag
            yield session
            with contextlib.suppress(PipelineError):  # the rows are here: what is gone costs nobody
                session.run("ROLLBACK")
                session.run("DISCARD ALL")  # PREPARE, SET, temp tables and locks outlive a ROLLBACK
                sound = True
        finally:
            if session.connection.broken:  # what idles went with it, and would cost a try each
                for idle in self._sessions.empty():
                    idle.close()
            if not sound:
                session.close()
            self._sessions.give_back(session if sound else None)

    def _new(self, campaign: Campaign) -> Session:
        """A new session; for the only one that a server grants, the snapshot's is given up."""
        snapshot = self._snapshot
        try:
            return self._begun(campaign)
        except DatabaseError as error:
            # Pgpool-II lets a login wait for ever; a blip looks the same, but not twice.
            self._vain_logins += 1
            error.scarce |= error.tries == AGAIN and self._vain_logins > 1
            if self._sessions.made > 1 or not error.scarce or not snapshot:
                raise
            self._give_up(snapshot, error.message)
            return self._begun(campaign)

    def _begun(self, campaign: Campaign) -> Session:
        """A new session in the campaign's transaction: a pooler grants it with BEGIN, not with the login."""
        session = self._connect()
        try:
            session.begin(campaign.source, campaign.read_only)
        except BaseException:
            session.close()
            raise
        self._vain_logins = 0
        return session

    def close(self) -> None:
        """Close every idle session; those in use are closed by their users."""
        for session in self._sessions.empty():
            session.close()
        self._forget()

    def _import(self, session: Session, snapshot: str) -> None:
        """Make the session see the run's snapshot; else the next try sees another one, or its own."""
        try:
            session.run(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        except DatabaseError as error:
            if error.tries == AGAIN:
                raise
            self._give_up(snapshot, error.message)
            message = text(
                "{file}: the shared snapshot cannot be read any more", file=session.source
            )
            raise DatabaseError(message, LATER, tries=AGAIN) from None

    def _go_alone(self, holder: Session, reason: Text) -> None:
        self._note(text("no common snapshot, each query sees its own: {reason}", reason=reason))
        self._snapshot = ""
        holder.close()

    def _give_up(self, snapshot: str, reason: Text) -> None:
        """Do without a snapshot that others cannot reach; what went with its holder is made anew."""
        with self._lock:
            holder = self._holder
            if holder and self._snapshot == snapshot:
                try:
                    holder.run("SELECT 1")
                except PipelineError:
                    return self._forget()
                self._go_alone(holder, reason)

    def _forget(self) -> None:
        with self._lock:
            if self._holder:
                self._holder.close()
                self._holder = None

    def _connect(self) -> Session:
        """A new session. Raises DatabaseError."""
        import psycopg

        settings = self.settings
        defaults: dict[str, Any] = {
            "connect_timeout": settings.connect_timeout_seconds,
            "application_name": PROGRAM,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,
        }
        os.environ.update(settings.libpq_environment)  # libpq reads these nowhere else
        options = defaults | dict(settings.libpq) | self._pin | {"client_encoding": "UTF8"}
        try:
            connection = bounded_connection().connect(
                **options, autocommit=True, prepare_threshold=None
            )
            if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
                self._say_encoding(connection)
        except psycopg.Error as error:
            if "," in settings.libpq.get("host", ""):
                self._forget()  # another host may serve: then with a snapshot of its own
            raise self._fault(error) from None
        return Session(connection, self.stop, settings)

    def _say_encoding(self, connection: psycopg.Connection[Any]) -> None:
        """This database does not know what its bytes are: PGCLIENTENCODING says it."""
        encoding = self.settings.libpq.get("client_encoding", "UTF8")
        if encoding.upper() not in ("SQL_ASCII", "AUTO"):
            connection.execute("SELECT set_config('client_encoding', %s, false)", [encoding])

    def _fault(self, refusal: psycopg.Error) -> DatabaseError:
        """Why no connection came about; an SSH server on that port is told as that."""
        settings, told, names = self.settings, str(refusal), []
        if pgconn := refusal.pgconn:
            names = [name.decode("utf-8", "replace") for name in (pgconn.user, pgconn.db)]
            if "\ufffd" in told:  # before a login a Windows server speaks in its own bytes
                told = pgconn.error_message.decode("cp1252", "replace")
        host, port = settings.libpq.get("host", ""), settings.libpq.get("port", "5432")
        where = address(host or "localhost", port, settings.secrets)
        error = connect_error(told, where, settings.secrets, names)
        may_be_ssh = error.tries == AGAIN and port.isdigit()
        if may_be_ssh and greeting(host or "localhost", int(port)) == b"SSH-":
            template = "database at {where}: an SSH (SFTP) server answers there, not PostgreSQL"
            return DatabaseError(text(template, where=where), CHECK_NETWORK, wide=True)
        return error


# --------------------------------------------------------------------------------------------------
# Treatment: blocks of COPY text -> DataFrame of strings -> phones, unique -> CSV bytes
# --------------------------------------------------------------------------------------------------

# C0 but for the tabs and line feeds of COPY, DEL, C1, U+2028, U+2029
CONTROLS = "\x01-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"
CONTROLS_INSIDE = f" *[{CONTROLS}][ {CONTROLS}]*"
BYTE_ORDER_MARK = "\ufeff".encode()


def tidy_name(name: str) -> str:
    """A column's name, tidied as cells are: stripped, line breaks and control characters inside are one space."""
    return re.sub(CONTROLS_INSIDE, " ", re.sub("[\t\n]", "\r", name)).strip()


def to_frame(block: bytes | bytearray, columns: Sequence[str]) -> pd.DataFrame:
    r"""A block of COPY text as a DataFrame of strings, one column per name; no value is interpreted, NULL is missing.

    Cells are stripped; line breaks and control characters inside a cell become one space. COPY
    writes a tab, a line feed or a backslash of the data as \t, \n and \\, so that tabs part cells
    and line feeds rows, and NULL as \N (PostgreSQL manual, COPY, Text Format).
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.match_substring_regex(pa.array([block], pa.binary()), r"\\[^N]")[0].as_py():
        # A backslash of the data becomes NUL for now, which never occurs in PostgreSQL's text.
        block = re.sub(rb"\\[bfnrtv]", b"\x01", block.replace(b"\\\\", b"\0"))
    tidy = looks_tidy(block, len(columns))
    if not tidy:  # RE2: a sixth of the time of Python's re, and outside the interpreter lock
        cells = pa.array([bytes(block)], pa.string())
        block = pc.replace_substring_regex(cells, CONTROLS_INSIDE, " ")[0].as_buffer().to_pybytes()
    frame: pd.DataFrame = read_cells(block, len(columns)).to_pandas(types_mapper=pd.ArrowDtype)
    if b"\0" in block:
        frame = frame.apply(lambda column: column.str.replace("\0", "\\", regex=False))
    if not tidy:
        frame = frame.apply(lambda column: column.str.strip())
    frame.columns = pd.Index(columns)  # names may be any text, and come twice
    return frame


def read_cells(block: bytes | bytearray, columns: int) -> pa.Table:
    r"""The cells between tabs and line feeds, as they stand there; \N is NULL."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    if block.startswith(BYTE_ORDER_MARK):
        block = BYTE_ORDER_MARK + block  # Arrow drops one; what the server wrote is data
    numbered = [str(index) for index in range(columns)]
    return pa_csv.read_csv(
        pa.BufferReader(block),
        pa_csv.ReadOptions(column_names=numbered, block_size=len(block) + 1, use_threads=False),
        pa_csv.ParseOptions(
            delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False
        ),
        pa_csv.ConvertOptions(
            column_types=dict.fromkeys(numbered, pa.string()),
            null_values=[r"\N"],
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )


# Phones. A number is never made up: a cell is one phone as people write it, or it is none. Only in
# a cell that is one for certain are the digits looked at by themselves.

# Anatel, Plano Geral de Códigos Nacionais: the area codes in use.
AREA_CODES = "1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9]"
# Anatel, Resolução 749/2022: mobile numbers have nine digits beginning with 9, fixed ones eight
# beginning with 2 to 5.
PHONE = rf"(?P<number>(?:{AREA_CODES})(?:9\d{{8}}|[2-5]\d{{7}}))"
# Carriers that are dialled before an area code (0 21 11 …), and how forms leave the choice open
# (0xx11 …).
CARRIERS = "1[245]|2[1-35]|31|4[13]|[56]5|99|(?i:xx)"

# Blanks and dashes in all their Unicode shapes, and the invisible characters that messengers copy
# along with a phone.
BLANK = r"\p{Zs}\p{Cf}"
DASH = rf"{BLANK}\p{{Pd}}\x{{2212}}."  # between the digits of a number
GAP = rf"{DASH}/()\[\]"  # around an area code, and around what is dialled before it


def dialled_before(gap: str) -> str:
    """What may stand before an area code: +55, 0055 or 55; 0 or 90 (a collect call), with or without a carrier."""
    country = rf"(?:(?:\+|00)?{gap}55{gap})?"
    return rf"{country}(?:(?:0|90){gap}(?:(?:{CARRIERS}){gap})?)?"


# A number apart from its area code, (11) 98 765-4321, may be divided anywhere but before its last
# digit; one that is written together with it only as in 1198765-4321. `93234-5678 1` lacks an area
# code, and is nobody's phone in 93.
APART = rf"[{GAP}]+(?:9(?:[{DASH}]*\d){{7}}\d|[2-5](?:[{DASH}]*\d){{6}}\d)"
TOGETHER = rf"9\d{{3}}[{DASH}]*\d[{DASH}]*\d{{4}}|[2-5]\d{{3}}[{DASH}]*\d{{4}}"
OPENED, CLOSED = rf"""[{BLANK}'"(\[]*""", rf"""[{GAP},;:'"]*"""
WRITTEN = f"^{OPENED}{dialled_before(f'[{GAP}]*')}(?:{AREA_CODES})(?:{APART}|{TOGETHER}){CLOSED}$"
DIALLED = f"^{dialled_before('')}{PHONE}$"  # a phone's digits can be read in one way only
# What may stand before a phone: its kind, in words. What may stand behind it: an extension; the
# zero of a column that was numeric once.
EXTENSION = rf"(?i:ramal|ram|ext|r|x|#)[{BLANK}.:-]*\d{{1,6}}[{BLANK})\]]*$"
KIND = rf"^{OPENED}(?i:telefone|tel|celular|cel|fone|fixo|whatsapp|whats|zap|residencial|comercial)[{BLANK}.:-]+"
WAS_A_FLOAT = r"^(\d+)[.,]00?$"


def clean_phones(cells: pd.Series[str]) -> pd.Series[str]:
    """Brazilian phone numbers as area code and number, digits only; what is none for certain becomes empty."""
    import pandas as pd
    import pyarrow.compute as pc

    phones = texts(cells)
    # few: looking costs a fifth of reading
    others = pc.invert(pc.match_substring_regex(phones, f"^{PHONE}?$"))
    phones = pc.replace_with_mask(phones, others, read_phones(phones.filter(others)))
    return pd.Series(pd.arrays.ArrowExtensionArray(phones), index=cells.index)


def read_phones(cells: pa.StringArray) -> pa.StringArray:
    """The phones that people wrote."""
    import pyarrow.compute as pc

    cells = pc.replace_substring_regex(cells, f"{WAS_A_FLOAT}|{EXTENSION}|{KIND}", r"\1")
    is_phone = pc.match_substring_regex(cells, WRITTEN)
    # null where there is none
    numbers = pc.struct_field(pc.extract_regex(digits_only(cells), DIALLED), "number")
    return pc.if_else(is_phone, pc.fill_null(numbers, ""), "")


REASON = text("reason")  # the name of the column that says why a row was rejected


class Treatment:
    """What happens to every row of one mailing once its cells are tidy, in this order: phones, unique.

    The keys seen so far are kept as sorted 64-bit hashes: 8 bytes a key, so that memory hardly
    grows with rows. Two keys of one mailing collide once in about 10 million mailings of 2 million
    rows; a collision rejects one row.
    """

    def __init__(self, campaign: Campaign, language: str = "en") -> None:
        import numpy as np

        self.phones, self.unique = campaign.phones, campaign.unique
        self.reason, self.no_phone = REASON.told(language), text("no valid phone").told(language)
        duplicate = text("duplicate {columns}", columns=", ".join(campaign.unique))
        self.duplicate = duplicate.told(language)
        self._seen = np.array([np.iinfo(np.int64).max])  # so that every key has a place before it

    def apply(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows to send; and those rejected, as they came, with a last column that says why."""
        import numpy as np

        treated = frame.copy(deep=False)
        for name in self.phones:
            treated[name] = clean_phones(frame[name])
        called = np.ones(len(frame), bool)
        if self.phones:
            called = np.any([treated[name].array != "" for name in self.phones], axis=0)
        kept = called & ~self._repeated(treated, called)
        if kept.all():
            return treated, frame[:0]
        rejected = frame[~kept]
        why = np.where(called[~kept], self.duplicate, self.no_phone)
        # the query may have a column of that name too
        rejected.insert(frame.shape[1], self.reason, why, allow_duplicates=True)
        return treated[kept], rejected

    def _repeated(self, frame: pd.DataFrame, among: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Which rows among those have a key that a row before them had; an empty key is nobody's."""
        import numpy as np
        import pandas as pd
        import pyarrow.compute as pc

        if not self.unique:
            return np.zeros(len(frame), bool)
        keys = pc.binary_join_element_wise(*[texts(frame[name]) for name in self.unique], "\x1f")
        filled = pc.not_equal(keys, "\x1f" * (len(self.unique) - 1)).to_numpy(zero_copy_only=False)
        repeated: np.ndarray[Any, Any] = among & filled
        hashes = pd.Series(np.fromiter(map(hash, keys.to_pylist()), np.int64, len(keys)))
        firsts = hashes[repeated].drop_duplicates().sort_values()  # in this block
        places = np.searchsorted(self._seen, firsts)
        new = self._seen[places] != firsts
        self._seen = np.insert(self._seen, places[new], firsts[new])
        repeated[firsts.index[new]] = False
        return repeated


def to_csv(frame: pd.DataFrame, form: CsvFormat) -> bytes:
    """A treated block as CSV text in UTF-8, RFC 4180 with minimal quoting, without the header line.

    The bytes are those of DataFrame.to_csv, in a tenth of its time. Arrow's own CSV writer is as
    fast as this, but writes no quotes or quotes everything.
    """
    import pyarrow.compute as pc

    if frame.empty:
        return b""
    columns = [
        quoted(texts(cells), form.delimiter, lone=frame.shape[1] == 1) for _, cells in frame.items()
    ]
    columns[-1] = pc.binary_join_element_wise(columns[-1], form.newline, "")
    lines, _ = flat(pc.binary_join_element_wise(*columns, form.delimiter))
    return lines.tobytes()


def header_line(columns: Sequence[str], form: CsvFormat) -> bytes:
    """The CSV's first line, quoted like any other."""
    import pandas as pd

    return to_csv(pd.DataFrame([columns], dtype=str), form)


ACCENTED = re.compile("[^\\W\\d_][\u0300-\u036f]+")  # a letter and the accents that combine with it


def encoded(utf8: bytes, encoding: str) -> tuple[bytes, int]:
    """utf8 in the campaign's encoding, and how many characters it lacks, which became '?'.

    Encodings of one byte have no combining accents: a + ~ is written as ã there. UTF-8 stays as the
    server wrote it.
    """
    if encoding in ("utf-8", "utf-8-sig"):
        return utf8, 0
    characters = utf8.decode()
    # begins U+0300 to U+033F in UTF-8, and nothing else; rare, and looking costs nothing
    if b"\xcc" in utf8:
        characters = ACCENTED.sub(lambda found: unicodedata.normalize("NFC", found[0]), characters)
    data = characters.encode(encoding, "replace")
    return data, data.count(b"?") - utf8.count(b"?")


# For speed: whole blocks and columns as bytes in a row. Done plainly, the treatment of the
# benchmark's rows takes 2.5 times as long: 1.2 without looks_tidy, 1.5 with cells asked for quotes
# one by one, 1.7 with pandas' own methods for texts, 1.04 with a regular expression for
# digits_only.


def looks_tidy(block: bytes | bytearray, columns: int) -> bool:
    """Whether no cell of a block of COPY text can need stripping; False may be a false alarm.

    No control character but the tabs and line feeds of the format, no blank beside one of those,
    and none of the bytes that begin (or are) DEL, C1 and Unicode's other blanks.
    """
    import numpy as np

    data = np.frombuffer(block, np.uint8)
    blanks = np.flatnonzero(data == ord(" "))
    return bool(
        np.count_nonzero(data < ord(" ")) == np.count_nonzero(data == ord("\n")) * columns
        and (data[blanks - 1] > ord(" ")).all()
        and (data[blanks + 1] > ord(" ")).all()
        and not any(byte in block for byte in (b"\x7f", b"\xe1", b"\xe2", b"\xe3"))
        and (b"\xc2" not in block or (data[np.flatnonzero(data == 0xC2) + 1] > 0xA0).all())
    )


def texts(cells: pd.Series[str]) -> pa.StringArray:
    """A column as Arrow's own array, NULL as the empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(cells.array)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pc.fill_null(pc.cast(array, pa.string()), "")


def quoted(column: pa.StringArray, delimiter: str, lone: bool) -> pa.StringArray:
    """The column with quotes around the cells that need them.

    A lone empty one does, or its line would be empty.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    data, places = flat(column)
    if not lone and not any(mark in data.tobytes() for mark in (b'"', delimiter.encode())):
        return column
    special = np.flatnonzero((data == ord('"')) | (data == ord(delimiter)))
    needs = (np.diff(places) == 0) & lone
    needs[np.searchsorted(places, special, "right") - 1] = True
    doubled = pc.replace_substring(column.filter(pa.array(needs)), '"', '""')
    return pc.replace_with_mask(
        column, pa.array(needs), pc.binary_join_element_wise('"', doubled, '"', "")
    )


def digits_only(cells: pa.StringArray) -> pa.StringArray:
    """The cells without anything but 0 to 9."""
    import numpy as np
    import pyarrow as pa

    data, places = flat(cells)
    digit = data - np.uint8(ord("0")) <= 9  # what is less than "0" wraps around
    kept_before = np.concatenate([[0], np.cumsum(digit)]).astype(np.int32)
    return pa.StringArray.from_buffers(
        len(cells), pa.py_buffer(kept_before[places]), pa.py_buffer(data[digit])
    )


def flat(cells: pa.StringArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The bytes of all cells in a row, and where each cell begins in them and the last one ends."""
    import numpy as np

    _, offsets, data = cells.buffers()
    places = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    return np.frombuffer(data or b"", np.uint8)[places[0] : places[-1]], places - places[0]


# --------------------------------------------------------------------------------------------------
# This PC's disk: a file appears under its name only when it is whole
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is whole: written as .part, flushed to disk, renamed.

    Left by an error, nothing stays behind. Raises LocalFault.
    """
    part = path.with_name(path.name + ".part")
    try:
        with local_faults(part):
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            patient_replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


class MailingFiles(contextlib.ExitStack):
    """A mailing's CSV and, beside it, its rejected rows, while they are written; the figures go into its record.

    Left without `keep`, nothing stays behind.
    """

    def __init__(self, folder: Path, mailing: Mailing, form: CsvFormat) -> None:
        super().__init__()
        self.folder, self.mailing, self.form = folder, mailing, form
        self._sha256 = hashlib.sha256()
        self._rejects: BinaryIO | None = None

    def begin(self, columns: Sequence[str]) -> None:
        """The mailing's file, with the names of its columns."""
        mailing, form = self.mailing, self.form
        mailing.columns, mailing.rows, mailing.rejected, mailing.replaced = len(columns), 0, 0, 0
        self._file = self.enter_context(whole_file(self.folder / mailing.file))
        if form.encoding == "utf-8-sig":
            self._add(BYTE_ORDER_MARK)
        if form.header:
            self._add(header_line(columns, form))

    def write(self, kept: pd.DataFrame, rejected: pd.DataFrame) -> None:
        """A treated block."""
        self._add(to_csv(kept, self.form))
        self.mailing.rows += len(kept)
        if not len(rejected):
            return
        lines = to_csv(rejected, self.form)
        if not self._rejects:
            path = self.folder / rejected_name(self.mailing.file)
            self._rejects = self.enter_context(whole_file(path))
            lines = header_line(list(rejected.columns), self.form) + lines
        self._rejects.write(encoded(lines, self.form.encoding)[0])
        self.mailing.rejected += len(rejected)

    def keep(self) -> None:
        """Both files whole, under their names; the mailing's size and SHA-256 are known."""
        size_bytes = self._file.tell()
        self.close()
        self.mailing.size_bytes, self.mailing.sha256 = size_bytes, self._sha256.hexdigest()
        self.mailing.stamp = size_and_time(self.folder / self.mailing.file)

    def _add(self, csv_lines: bytes) -> None:
        data, lacking = encoded(csv_lines, self.form.encoding)
        self._file.write(data)
        self._sha256.update(data)
        self.mailing.replaced += lacking


def size_and_time(path: Path) -> tuple[int, int]:
    """A file's size and time, by which one that was changed is known."""
    with local_faults(path):
        facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def patient_replace(source: Path, target: Path) -> None:
    """os.replace, patient for three seconds with a target or source that another Windows program holds open."""
    for pause_s in (0.1, 0.2, 0.4, 0.8, 1.5, None):
        try:
            return os.replace(source, target)
        except OSError as error:
            if pause_s is None or getattr(error, "winerror", None) not in (5, 32, 33):
                raise
            time.sleep(pause_s)


@contextlib.contextmanager
def local_faults(path: Path) -> Iterator[None]:
    """The seam for this PC's disk: OSError -> LocalFault."""
    try:
        yield
    except OSError as error:
        reason = (
            text("the disk is full")
            if error.errno == errno.ENOSPC
            else foreign(error.strerror or error)
        )
        hint = text("free space on this PC's disk, and close programs that hold the file open")
        raise LocalFault(text("{path}: {reason}", path=path, reason=reason), hint) from error


# --------------------------------------------------------------------------------------------------
# Drop folders: one SFTP login, a channel for each worker. The one seam for paramiko
# --------------------------------------------------------------------------------------------------

SFTP_TIMEOUT_S = 60  # a request without any reply for so long means a dead connection
# some servers scan a file, or copy it elsewhere, before they answer its CLOSE
CLOSE_TIMEOUT_S = 300
IN_FLIGHT = 64  # writes without an answer yet, as OpenSSH's own client has them
# The longest write that OpenSSH's sftp-server takes (sftp-common.h, SFTP_MAX_MSG_LENGTH, less 1
# KB): with it an upload takes two thirds of the time. Others get a write that goes out in one SSH
# packet of 32 KB: ProFTPD mixes the halves of what two channels send. Some take 16 KB, or less.
OPENSSH_WRITE_BYTES, WRITE_BYTES, SHORTEST_WRITE_BYTES = 255 << 10, 31 << 10, 4 << 10
CHUNK_BYTES = OPENSSH_WRITE_BYTES  # what is read at a time: none of it is copied to be written
# servers that show a file, or its size, a little after its CLOSE
LOOK_PAUSES_S = (0.2, 0.5, 1.3, 0)
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # PostgreSQL answers it with S or N

NETWORK = text("check SFTP_HOST, SFTP_PORT and the network; is the SFTP server running?")
DISK = text("see whether the server's disk is full or its quota used up")
CHECK_SFTP_LOGIN = text(
    "check SFTP_USER and SFTP_PASSWORD or SFTP_KEY_FILE (old servers refuse RSA keys: make an ed25519 key)"
)
HUNG_UP = text(
    "check the network, SFTP_USER and SFTP_PASSWORD: some servers hang up on a wrong password, "
    "or where SFTP is not allowed"
)
NEW_PASSWORD = text("the server wants a new password: set one there, then SFTP_PASSWORD")
NO_SFTP = text(
    "ask the server's administrator whether this user may use SFTP (subsystem, shell, owner of the home)"
)
OLD_SERVER = text(
    "the server offers only outdated algorithms (SHA-1); its administrator must update it"
)
NO_FOLDER = text("create the folder on the server, or correct '-- folder:' or SFTP_STAGING_DIR")
NO_ACCESS = text(
    "ask the server's administrator for write access to the folder; if it is there, set another SFTP_TEMP_NAME"
)
NO_RENAME = text(
    "let this user rename files there; SFTP_STAGING_DIR, if set, must be on the drop folder's disk"
)
LET_READ = text("let this user read the file")
LET_LIST = text("let this user list the folder, or look at its files")
LACKS = text("the server lacks this operation")
PASSWORD_EXPIRED = text("the password has expired")
LOGIN_WRONG = text("the user, the password or the key is wrong")
NOT_THERE, NOT_ALLOWED = text("no such file or folder"), text("no permission")

# Measured with paramiko 5: login errors are SSHExceptions; OpenSSH tells disk full, quota, exists
# and cross-device alike as OSError("Failure") without an errno. The first row that fits decides.
SFTP_RULES = (
    Rule(r"(?i)timeout", AGAIN, NETWORK, TIMED_OUT, kind="AuthenticationException"),
    Rule(r"(?i)shut down|EOF", ONCE_MORE, HUNG_UP, kind="AuthenticationException"),
    Rule(r"", NEVER, CHECK_SFTP_LOGIN, LOGIN_WRONG, kind="AuthenticationException"),
    Rule(r"", NEVER, OLD_SERVER, kind="IncompatiblePeer"),
    Rule(r"info request", NEVER, NEW_PASSWORD, PASSWORD_EXPIRED, kind="SSHException"),
    Rule(r"", NEVER, NO_FOLDER, NOT_THERE, kind="FileNotFoundError", sound=True),
    Rule(r"", NEVER, NO_ACCESS, NOT_ALLOWED, kind="PermissionError", sound=True),
    Rule(r"(?i)unsupported|not supported", NEVER, LACKS, kind="OSError", sound=True),
    Rule(r"", AGAIN, NETWORK, REFUSED, kind="ConnectionRefusedError"),
    Rule(r"", AGAIN, NETWORK, TIMED_OUT, kind="TimeoutError"),
    Rule(r"", AGAIN, NETWORK, NAME_UNKNOWN, kind="gaierror"),
    Rule(r"", AGAIN, NETWORK, text("the connection was lost"), kind="EOFError|ConnectionError"),
    Rule(r"", AGAIN, NETWORK, kind="SSHException|SFTPError"),
    Rule(r"(?i)socket|closed|\[(Errno|WinError)", AGAIN, NETWORK, kind="OSError"),
    Rule(r"", TWICE_MORE, DISK, kind="OSError", sound=True),
)


def is_answer(error: Exception) -> bool:
    """Whether the server said no, or what nobody understands, over a line that is sound."""
    return type(error).__name__ in ("OSError", "PermissionError", "FileNotFoundError", "SFTPError")


def sftp_error(
    error: Exception,
    doing: Text,
    hidden: Iterable[str] = (),
    where: str = "",
    refused: Text | None = None,
) -> DeliveryError:
    """error while doing something on the server, classified.

    where: the server itself, if it is about that; refused: what to do where its answer was no.
    """
    kinds, told = str(type(error).__mro__), str(error)
    rule = next(
        rule for rule in SFTP_RULES if re.search(rule.kind, kinds) and re.search(rule.pattern, told)
    )
    reason = rule.says or foreign(error, hidden) or type(error).__name__
    server = text("SFTP at {where}", where=where) if where else "SFTP"
    message = text("{server}: {doing}: {reason}", server=server, doing=doing, reason=reason)
    kind = DeliveryError if rule.sound else ConnectionLost
    is_refused = rule.sound and rule.says is not NOT_THERE
    hint = refused if refused and is_refused else rule.hint
    return kind(message, hint, tries=rule.tries, wide=bool(where))


# ----- The connection: dialled, its host key a pinned one, logged in

# paramiko has them still; they are not offered
WEAK = {"ciphers": ["3des-cbc"], "macs": ["hmac-md5", "hmac-md5-96", "hmac-sha1-96"]}
OUTDATED = re.compile("sha1$|^ssh-(rsa|dss)$|cbc|arcfour|md5|^hmac-sha1")
# What both sides must have in common, in the words of OpenSSH's settings, and paramiko's name for
# what we know of it.
ALGORITHMS = {
    "KexAlgorithms": ("kex_algo_list", "preferred_kex"),
    "HostKeyAlgorithms": ("server_key_algo_list", "preferred_keys"),
    "Ciphers": ("server_encrypt_algo_list", "preferred_ciphers"),
    "MACs": ("server_mac_algo_list", "preferred_macs"),
}


# What a login needs for each of SSH's methods.
LOGIN_SETTINGS = {
    "publickey": "SFTP_KEY_FILE",
    "password": "SFTP_PASSWORD",
    "keyboard-interactive": "SFTP_PASSWORD",
}


@functools.cache
def transport_class() -> type[Any]:
    """paramiko's Transport, which also tells what the server offers."""
    import paramiko

    usual: Any = paramiko.Transport

    class Transport(usual):  # type: ignore[misc]
        curve = "curve25519-sha256"  # by the name of RFC 8731
        _kex_info = usual._kex_info | {curve: usual._kex_info[f"{curve}@libssh.org"]}
        _preferred_kex = (curve, *usual._preferred_kex)
        # GCM first: it spares the separate MAC.
        _preferred_ciphers = tuple(
            sorted(usual._preferred_ciphers, key=lambda name: "gcm" not in name)
        )
        offers: Mapping[str, Sequence[str]] = {}

        def _really_parse_kex_init(self, *message: Any, **how: Any) -> Mapping[str, Sequence[str]]:
            self.offers = super()._really_parse_kex_init(*message, **how)
            return self.offers

    return Transport


@functools.cache
def auth_handler_class() -> type[Any]:
    """paramiko's, for a whole login: it asks for the service of logging in once.

    The plain one asks for it again before each method, which some servers refuse.
    """
    import paramiko
    import paramiko.auth_handler

    usual: Any = paramiko.auth_handler.AuthHandler

    class AuthHandler(usual):  # type: ignore[misc]
        _has_asked = False

        def _request_auth(self) -> None:
            if not self._has_asked:
                self._has_asked = True
                super()._request_auth()
                return
            granted = paramiko.Message()
            granted.add_string("ssh-userauth")
            granted.rewind()
            self._parse_service_accept(granted)

    return AuthHandler


def key_kind(algorithm: str) -> str:
    """The kind of key that signs so: an RSA key has several algorithms."""
    return "ssh-rsa" if algorithm.startswith("rsa-") else algorithm


class SftpLogin(Server):
    """The connection that all workers share: dialled by its first use, and again after it broke."""

    name = "SFTP"

    def __init__(self, settings: Settings, stop: Stop) -> None:
        super().__init__(settings, stop)
        self.server = settings.sftp_host, settings.sftp_port
        self.where = address(*self.server, settings.secrets)
        self.transport: Any = None
        self._dialling, self._is_over = threading.Lock(), False
        self._hang_ups = 0  # on logins, in a row

    @property
    def is_up(self) -> bool:
        return bool(self.transport and self.transport.is_active())

    def ready(self, *, logged_in: bool = True) -> Any:
        """The connection, whose host key is a pinned one. Without logged_in no password is sent."""
        with self._dialling:
            if self.down:
                raise self.down
            try:
                with self._translated(text("login"), self.where):
                    return self._connected(logged_in)
            except BaseException as error:
                self.close()
                # nobody sends a refused password again, nor one that was hung up on twice
                if isinstance(error, DeliveryError) and error.wide:
                    if error.tries <= self._hang_ups:
                        error.tries, self.down = NEVER, error
                    self._hang_ups += error.tries == ONCE_MORE
                raise

    def _connected(self, logged_in: bool) -> Any:
        """The connection that is up, or a new one. Raises what paramiko raises, too."""
        if self._is_over:
            raise ConnectionLost(text("the run is over"))
        transport = self.transport if self.is_up else self._dial()
        if logged_in and not transport.is_authenticated():
            self._log_in(transport)
            self._hang_ups = 0
        return transport

    def close(self) -> None:
        """Close the connection at once, whatever state it is in. The next use dials again."""
        transport, self.transport = self.transport, None
        if transport:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)
            transport.close()

    def shut(self) -> None:
        """Close the connection for good: every request from now on fails at once."""
        self._is_over = True
        self.close()

    @contextlib.contextmanager
    def _translated(
        self, doing: Text, where: str = "", refused: Text | None = None
    ) -> Iterator[None]:
        """The seam for paramiko: its exceptions -> DeliveryError."""
        import paramiko

        try:
            yield
        except (OSError, EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
            raise sftp_error(error, doing, self.settings.secrets, where, refused) from error

    def _fault(self, what: Text, hint: Text) -> DeliveryError:
        """What is wrong with the server itself or with our login."""
        message = text("SFTP at {where}: {what}", where=self.where, what=what)
        return DeliveryError(message, hint, wide=True)

    def _dial(self) -> Any:
        """Ask for the server's host keys, kind by kind, until one is pinned."""
        seen: dict[str, str] = {}
        kinds: Sequence[str] = ()
        pinned = self.settings.sftp_host_key
        while not seen or kinds:
            transport = self._connect(kinds)
            fingerprint = transport.get_remote_server_key().fingerprint
            if not pinned or fingerprint in pinned:
                return transport
            seen[key_kind(transport.host_key_type)] = fingerprint
            kinds = [
                kind
                for kind in transport.preferred_keys
                if kind in transport.offers["server_key_algo_list"] and key_kind(kind) not in seen
            ]
        keys = ", ".join(f"{fingerprint} ({kind})" for kind, fingerprint in seen.items())
        hint = text(
            "do not go on: ask the server's administrator whether the key was changed; no password was sent"
        )
        template = "the server shows another host key than SFTP_HOST_KEY: {keys}"
        raise self._fault(text(template, keys=keys), hint)

    def _connect(self, kinds: Sequence[str]) -> Any:
        """A new connection; kinds: of host keys to ask for, if not any."""
        import paramiko

        self.close()
        limit_s = self.settings.connect_timeout_seconds
        sock = socket.create_connection(self.server, limit_s)
        # small requests would wait for Nagle's algorithm
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport = transport_class()(sock, disabled_algorithms=WEAK)
        transport.banner_timeout = transport.auth_timeout = limit_s
        transport.use_compression(self.settings.sftp_compress)
        if kinds:
            transport.get_security_options().key_types = kinds
        try:
            transport.start_client(timeout=limit_s)  # returns silently after its timeout
        except paramiko.SSHException as error:
            self._explain(transport, error)
            raise
        return transport

    def _explain(self, transport: Any, error: Exception) -> None:
        """Raise what paramiko does not know: another server's port, or the algorithms that the server offers."""
        if "banner" in str(error) and greeting(*self.server, SSL_REQUEST) in (b"S", b"N"):
            hint = text("check SFTP_PORT: SFTP's port is mostly 22")
            raise self._fault(text("PostgreSQL answers there, not an SFTP server"), hint)
        for name, (theirs, ours) in ALGORITHMS.items():
            offered, known = transport.offers.get(theirs, ()), getattr(transport, ours)
            if offered and not set(offered) & set(known):
                hint = text("its administrator can allow one of: {known}", known=known)
                if all(map(OUTDATED.search, offered)):
                    hint = OLD_SERVER
                theirs = foreign(", ".join(offered))
                template = "no {name} in common; the server offers {offered}"
                raise self._fault(text(template, name=name, offered=theirs), hint)

    def _log_in(self, transport: Any) -> None:
        """Log in by what config.env has, each method once, as the server asks for them.

        Some want two of them.
        """
        import paramiko

        transport.auth_handler = handler = auth_handler_class()(transport)
        ways = self._ways(handler)
        wanted: Sequence[str] = ()
        while not transport.is_authenticated():
            method = next((method for method in ways if not wanted or method in wanted), None)
            if not method:
                raise self._wants(", ".join(wanted), wanted)
            was_asked_for, answered = method in wanted, threading.Event()
            ask, what = ways.pop(method)
            try:
                ask(self.settings.sftp_user, what, answered)
                wanted = handler.wait_for_response(answered)
            except paramiko.BadAuthenticationType as error:
                if not any(error.allowed_types):  # refused, and no other way is left
                    raise
                wanted = error.allowed_types
                if not was_asked_for:
                    ways[method] = ask, what  # not now, perhaps later

    def _ways(self, handler: Any) -> dict[str, tuple[Callable[..., None], Any]]:
        """The methods for which config.env has something, and what that is."""
        asked, password = list[str](), self.settings.sftp_password

        def answer(_title: str, _text: str, fields: Sequence[tuple[str, bool]]) -> list[str]:
            """What a server that asks questions gets: the password to the first one."""
            asked.extend(question for question, _ in fields)
            if len(asked) > 1:  # a one-time code, or a new password in place of an expired one
                raise self._wants(asked[-1])
            return [password] * len(fields)

        ways: dict[str, tuple[Callable[..., None], Any]] = {}
        if self.settings.sftp_key_file:
            ways["publickey"] = handler.auth_publickey, load_key(self.settings)
        if password:
            ways["password"] = handler.auth_password, password
            ways["keyboard-interactive"] = handler.auth_interactive, answer
        return ways

    def _wants(self, what: str, methods: Iterable[str] = ()) -> DeliveryError:
        """A login that lacks a setting, or cannot be served unattended."""
        keys = filter(None, map(LOGIN_SETTINGS.get, methods))
        lacking = [key for key in dict.fromkeys(keys) if not getattr(self.settings, key.lower())]
        hint = text("ask the server's administrator for a login that needs nothing else")
        if lacking:
            hint = text("set {keys}, or {ask}", keys=lacking, ask=hint)
        # a question may quote the answer to the one before
        what = foreign(what, self.settings.secrets)
        return self._fault(text("login: the server wants {what}", what=what), hint)


def load_key(settings: Settings) -> paramiko.PKey:
    """The private key of SFTP_KEY_FILE. Raises DeliveryError, which reaches every campaign."""
    import paramiko

    path = settings.local(settings.sftp_key_file)
    passphrase = settings.sftp_key_passphrase.encode() or None
    try:
        return paramiko.PKey.from_path(path, passphrase)  # type: ignore[arg-type]  # paramiko wants bytes
    except FileNotFoundError:
        reason, hint = text("not found"), text("correct SFTP_KEY_FILE")
    except OSError as error:
        reason, hint = text("cannot be read: {reason}", reason=foreign(error.strerror)), LET_READ
    # what cryptography says of a passphrase varies
    except (paramiko.SSHException, ValueError, TypeError) as error:
        asks = bool(passphrase) or "pass" in str(error).lower()
        reason, hint = what_no_key_is(path.read_bytes(), asks)
    raise DeliveryError(
        text("SFTP_KEY_FILE: {path}: {reason}", path=path, reason=reason), hint, wide=True
    )


def what_no_key_is(content: bytes, asks_for_passphrase: bool) -> tuple[Text, Text]:
    """What a file holds that is not a private key which can be used, and what to do."""
    if content.startswith(b"PuTTY-User-Key-File"):
        return text("is a key of PuTTY"), text("in PuTTYgen: Conversions, Export OpenSSH key")
    if content.startswith((b"ssh-", b"ecdsa-", b"---- BEGIN SSH2 PUBLIC KEY")):
        return text("is the public half of a key"), text(
            "name the private key: the file without .pub"
        )
    if asks_for_passphrase and b"PRIVATE KEY" in content:
        return text("the passphrase does not open it"), text("check SFTP_KEY_PASSPHRASE")
    return text("is no private key that paramiko knows"), text(
        "make one with: ssh-keygen -t ed25519"
    )


def break_off(channel: Any) -> None:
    """Close a channel whose connection may be broken, too, or stuck in an exchange of keys."""
    import paramiko

    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.close()


def start_sftp(transport: Any, limit_s: float) -> Any:
    """A new channel, and SFTP on it."""
    channel = transport.open_session(timeout=limit_s)
    # invoke_subsystem() has no timeout: it waits for ever for a server that stays silent.
    limit = threading.Timer(limit_s, break_off, [channel])
    limit.daemon = True
    limit.start()
    try:
        channel.settimeout(limit_s)
        channel.invoke_subsystem("sftp")
        client = client_class()(channel)
        channel.settimeout(SFTP_TIMEOUT_S)
        return client
    finally:
        limit.cancel()


# ----- What is asked of the server


@functools.cache
def client_class() -> type[Any]:
    """paramiko's SFTPClient, which no reply of a server breaks.

    Texts and names are read leniently ("não encontrado" in cp1252). A reply that is cut short is an
    SFTPError: paramiko's own fills it up with zeros, for hours if it says that it holds four
    billion attributes.
    """
    import paramiko

    class Reply(paramiko.Message):
        def get_text(self) -> str:
            return self.get_string().decode("utf-8", "replace")

        def get_bytes(self, n: int) -> bytes:
            data = self.packet.read(n)
            if len(data) < n:
                raise paramiko.SFTPError("a reply was cut short")
            return data

    class Client(paramiko.SFTPClient):
        def _request(self, kind: int, *values: Any) -> tuple[int, paramiko.Message]:
            kind, message = super()._request(kind, *values)  # type: ignore[misc]
            return kind, Reply(message.get_remainder())

        def _convert_status(self, msg: paramiko.Message) -> None:
            no_text = bytes(4)  # some servers leave it out
            super()._convert_status(Reply(msg.get_remainder() + no_text))  # type: ignore[misc]

    return Client


def attributes(client: Any, path: PurePosixPath) -> paramiko.SFTPAttributes | None:
    """What the server tells of a name, where anything may be lacking; None if it is not there.

    Some servers refuse to tell, or refuse it of a name that is not there: then the folder's list
    does.
    """
    try:
        return client.stat(str(path))  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except Exception as refused:
        if not is_answer(refused):
            raise
    entries = client.listdir_attr(str(path.parent))
    return next((entry for entry in entries if entry.filename == path.name), None)


def create(client: Any, path: PurePosixPath) -> bytes:
    """The handle of a new file.

    Where the server knows no exclusive creation, the random name is the guard.
    """
    import paramiko
    from paramiko import sftp

    flags, nothing = sftp.SFTP_FLAG_WRITE | sftp.SFTP_FLAG_CREATE, paramiko.SFTPAttributes()
    try:
        _, reply = client._request(sftp.CMD_OPEN, str(path), flags | sftp.SFTP_FLAG_EXCL, nothing)
    except OSError as refused:
        if type(refused) is not OSError or attributes(client, path):
            raise
        _, reply = client._request(sftp.CMD_OPEN, str(path), flags | sftp.SFTP_FLAG_TRUNC, nothing)
    handle: bytes = reply.get_binary()
    return handle


def close_file(client: Any, handle: bytes) -> None:
    """The server's answer to CLOSE, which may take a while: some scan a file first, or copy it elsewhere."""
    from paramiko.sftp import CMD_CLOSE

    channel = client.get_channel()
    channel.settimeout(CLOSE_TIMEOUT_S)
    try:
        client._request(CMD_CLOSE, handle)
    finally:
        channel.settimeout(SFTP_TIMEOUT_S)


class Writer:
    """Writes into an open file, IN_FLIGHT requests at a time; takes the status of each by its number.

    Servers may answer in another order (threaded ones do). paramiko's own pipelined file waits for
    its answers in order, throws the others away and then waits for ever for what it threw away.
    """

    def __init__(self, client: Any) -> None:
        self.client, self._waiting = client, 0
        self._refused: Exception | None = None

    def write(self, handle: bytes, chunks: Iterable[bytes], longest: int) -> None:
        """Send chunks, in pieces that the server takes. Raises the first refusal, after all answers."""
        from paramiko.sftp import CMD_WRITE, int64

        sent = 0
        for chunk in chunks:
            for start in range(0, len(chunk), longest):
                piece = chunk[start : start + longest]
                self.client._async_request(self, CMD_WRITE, handle, int64(sent), piece)
                sent += len(piece)
                self._waiting += 1
                self._take(IN_FLIGHT)
        self._take(0)

    def _take(self, most: int) -> None:
        """Take answers until no more than most are missing; after a refusal, until none is."""
        while self._waiting > (0 if self._refused else most):
            self.client._read_response()
        if self._refused:
            raise self._refused

    def _async_response(self, _kind: int, message: paramiko.Message, _number: int) -> None:
        """paramiko's client hands over the answer to one of our requests."""
        self._waiting -= 1
        try:
            self.client._convert_status(message)
        except (OSError, EOFError) as error:
            self._refused = self._refused or error


def gone(temp: PurePosixPath) -> MayBeOut:
    """What a whole temp means that is not there any more: a dialer or server that takes any name has it."""
    message = text("{path} was whole and is gone: it may have been activated", path=temp)
    return MayBeOut(message, text("set SFTP_STAGING_DIR: something takes files of any name"))


class DropFolders(SftpLogin):
    """The SFTP server's folders, over one login and a channel for each thread that asks at the same time.

    Knows nothing of retrying: every method raises DeliveryError, classified; ConnectionLost says
    that nobody knows whether the request was carried out.
    """

    def __init__(self, settings: Settings, stop: Stop) -> None:
        super().__init__(settings, stop)
        self._channels: Pool[Any] = Pool(stop, text("SFTP channels"))
        self._longest_write = 0  # of this server; 0: this login has not had SFTP yet

    def open(self) -> None:
        """Dial and log in, unless that was done."""
        with self._client(text("login")):
            pass

    def host_key(self) -> str:
        """The host key that the server shows, with its kind; no password is sent."""
        key = self.ready(logged_in=False).host_key
        return f"{key.fingerprint} ({key.get_name()})"

    def size(self, path: PurePosixPath) -> int | None:
        """The size of a file in bytes, None if there is none."""
        with self._client(text("looking for {path}", path=path), LET_LIST) as client:
            found = attributes(client, path)
        if found and found.st_size is None:
            return self.read_back(path)[0]
        return found.st_size if found else None

    def check_folder(self, folder: PurePosixPath) -> None:
        """Raise DeliveryError unless folder is a directory.

        Never created: a misspelt one would be fed for ever.
        """
        with self._client(text("drop folder {path}", path=folder), NO_FOLDER) as client:
            try:
                mode = client.stat(str(folder)).st_mode or 0
            except Exception as error:
                if not is_answer(error):
                    raise
                client.listdir(str(folder))
                return
        if mode & 0o170000 not in (0, 0o040000):  # some servers tell no type
            message = text("drop folder {path}: is not a folder", path=folder)
            raise DeliveryError(message, text("correct '-- folder:' in the query file"))

    def send(self, temp: PurePosixPath, chunks: Iterable[bytes]) -> None:
        """Write chunks into a new file, every write acknowledged, and close it.

        Whether it stands there is for `wait_until_whole` to tell: a refused or lost CLOSE says
        nothing about that.
        """
        acknowledged = False
        try:
            with self._client(text("writing {path}", path=temp)) as client:
                with self._translated(text("creating {path}", path=temp), refused=NO_ACCESS):
                    handle = create(client, temp)
                self._write(client, handle, chunks)
                acknowledged = True
                close_file(client, handle)
        except DeliveryError as error:
            if not acknowledged:
                raise
            template = "the last byte was acknowledged, looking what is there: {reason}"
            log.warning(text(template, reason=error.message))

    def wait_until_whole(self, temp: PurePosixPath, size_bytes: int) -> None:
        """A file that was acknowledged whole stands there in its whole size: now, or a little later.

        Raises MayBeOut if it is gone: a dialer or server that takes files of any name has it.
        """
        for pause_s in LOOK_PAUSES_S:
            size = self.size(temp)
            if size == size_bytes:
                return
            self.stop.sleep(pause_s)
        if size is None:
            raise gone(temp)
        message = text(
            "{path}: {sent} bytes sent, {arrived} arrived", path=temp, sent=size_bytes, arrived=size
        )
        raise DeliveryError(message, DISK, tries=TWICE_MORE)

    def read_back(self, path: PurePosixPath, most: int = 1 << 62) -> tuple[int, str]:
        """The size and SHA-256 of a file as it stands on the server, up to most bytes of it."""
        digest, size = hashlib.sha256(), 0
        doing = text("reading {path} back", path=path)
        with self._client(doing, LET_READ) as client, client.open(str(path), "rb") as file:
            if most < 1 << 62:
                file.prefetch(most, IN_FLIGHT)
            while size < most and (chunk := file.read(min(CHUNK_BYTES, most - size))):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def rename(
        self, temp: PurePosixPath, final: PurePosixPath, begin: Callable[[], None] = lambda: None
    ) -> None:
        """Plain rename, which OpenSSH refuses where final exists. posix_rename would overwrite it.

        begin: called last, with a channel in hand, since dialling and waiting for one take time;
        where it raises, nothing was asked for.
        """
        doing = text("renaming {path} to {name}", path=temp, name=final.name)
        try:
            with self._client(doing, NO_RENAME) as client:
                begin()
                client.rename(str(temp), str(final))
        except DeliveryError as error:
            if isinstance(error.__cause__, PermissionError):
                # a virus scanner on the server may hold the file for some seconds
                error.tries = TWICE_MORE
            raise

    def remove(self, path: PurePosixPath) -> bool:
        """Remove a file; whether it was there."""
        with self._client(text("removing {path}", path=path)) as client:
            try:
                client.remove(str(path))
            except FileNotFoundError:
                return False
        return True

    def clear(self, path: PurePosixPath) -> None:
        """See that no such file is there, whether there was one or not."""
        try:
            self.remove(path)
        except ConnectionLost:
            raise
        except DeliveryError:
            if self.size(path) is not None:
                raise

    def _write(self, client: Any, handle: bytes, chunks: Iterable[bytes]) -> None:
        """Every byte acknowledged. A server that fails gets shorter writes from then on."""
        from paramiko.sftp import CMD_CLOSE

        longest = self._longest_write
        try:
            Writer(client).write(handle, chunks, longest)
        except BaseException as error:
            self._longest_write = max(SHORTEST_WRITE_BYTES, min(WRITE_BYTES, longest // 2))
            if not isinstance(error, (TimeoutError, EOFError)):
                # Only told: closing for an answer would wait for the same silent server.
                client._async_request(type(None), CMD_CLOSE, handle)
            raise

    @contextlib.contextmanager
    def _client(self, doing: Text, refused: Text | None = None) -> Iterator[Any]:
        """A channel of this thread's own, until the block ends; one that broke is not used again."""
        with self._channels.changed:
            if self.down:
                raise self.down
            if not self.is_up:
                self._channels.empty()
        try:
            client = self._channels.take(self._open_channel)
        except DeliveryError:
            self._close_unused()
            raise
        is_sound = False  # in the middle of a request, for all we know
        try:
            with self._translated(doing, refused=refused):
                yield client
            is_sound = True
        except PipelineError as error:
            is_sound = not isinstance(error, ConnectionLost)
            raise
        finally:
            self._give_back(client, is_sound)

    def _give_back(self, client: Any, is_sound: bool) -> None:
        channel = client.get_channel()
        is_sound = is_sound and not channel.closed
        self._channels.give_back(client if is_sound else None)
        if not is_sound:
            break_off(channel)
            if channel.get_transport() is self.transport:
                self._close_unused()

    def _close_unused(self) -> None:
        """After trouble the connection is given up, unless others are using it."""
        with self._channels.changed:
            self._channels.empty()
            if not self._channels.made:
                self.close()

    def _open_channel(self) -> Any:
        """A new channel with SFTP on it. It is counted already: nobody closes its connection.

        A refusal leaves the connection sound: the server has no more of them, or none at all.
        """
        transport = self.ready()
        has_served = self._longest_write > 0
        doing = text("logged in, but SFTP does not start")
        if has_served:
            doing = text("a new channel")
        try:
            with self._translated(doing, self.where):
                client = start_sftp(transport, self.settings.connect_timeout_seconds)
        except ConnectionLost as error:
            transport.join(0.2)  # a connection that dies closes its channels first
            error.scarce = transport.is_active()
            if not has_served:
                error.hint = NO_SFTP
            if error.scarce or not has_served:
                error.tries = ONCE_MORE
            raise
        if not has_served:
            is_openssh = "OpenSSH" in transport.remote_version
            self._longest_write = OPENSSH_WRITE_BYTES if is_openssh else WRITE_BYTES
        return client


# --------------------------------------------------------------------------------------------------
# Guards: whether a mailing may be sent. Values in, an objection out
# --------------------------------------------------------------------------------------------------

MANY_REJECTED = 0.1  # of all rows: from there on it is told beside the result
CHECK_QUERY = text(
    "check the query and the data; if the number is right, change the guard in the query file"
)
CHECK_COLUMNS = text(
    "correct the query's column names, or its 'columns:' line if the dialer's layout really changed"
)


def layout_objection(columns: Sequence[str], campaign: Campaign) -> Held | None:
    """Why columns are not what the dialer expects; None if they are."""
    twice = [name for name, count in Counter(columns).items() if count > 1]
    absent = [name for name in (*campaign.phones, *campaign.unique) if name not in columns]
    if not columns:
        reason = text("the query returns no columns")
    elif twice:
        reason = text("column {name} comes twice", name=foreign(twice[0]))
    elif campaign.columns is not None and tuple(columns) != campaign.columns:
        what = in_a_row(changed_columns(columns, campaign.columns))
        reason = text("the columns changed: {what}", what=what)
    elif absent:
        template = "phones: or unique: names the column {name}, which the query does not return"
        reason = text(template, name=foreign(absent[0]))
    else:
        return None
    return Held(reason, CHECK_COLUMNS)


def changed_columns(columns: Sequence[str], expected: Sequence[str]) -> list[Text]:
    """What differs, in words."""
    missing = [foreign(name) for name in expected if name not in columns]
    extra = [foreign(name) for name in columns if name not in expected]
    found = [text("missing {names}", names=missing)] if missing else []
    found += [text("not expected {names}", names=extra)] if extra else []
    return found or [text("another order: {names}", names=[foreign(name) for name in columns])]


def rows_objection(
    rows: int, rejected: int, campaign: Campaign, past_rows: Sequence[int]
) -> PipelineError | None:
    """Why that many rows are not sent: Held, or Empty; None if they may be.

    past_rows: of the last delivered mailings. max_rows is not among these: an export that grows
    beyond it is stopped then and there.
    """
    hint, found, most = CHECK_QUERY, contacts(rows), campaign.max_drop
    usual = statistics.median(past_rows) if past_rows else 0
    if not rows and rejected:
        reason = text("every row was rejected ({rows})", rows=rejected)
        hint = text(
            "see in the _rejected.csv why; check the phones: and unique: lines and the query"
        )
    elif rows < (campaign.min_rows or 0):
        template = "{contacts}, fewer than min_rows {least}"
        reason = text(template, contacts=found, least=campaign.min_rows)
    elif most is not None and usual and (not rows or rows * 100 < usual * (100 - most)):
        template = "{contacts}, {share} below the usual {usual} (max_drop {most}%)"
        share, usual = f"{1 - rows / usual:.0%}", round(usual)
        reason = text(template, contacts=found, share=share, usual=usual, most=most)
    else:
        return None if rows else Empty(text("nobody to call"))
    return Held(reason, hint)


def time_objection(campaign: Campaign, stop: Stop, ignore_hours: bool) -> PipelineError | None:
    """Why it is too late (or too early) to publish a mailing of this run now; None if it is not."""
    reason = None if ignore_hours else campaign.hours.why_not(stop.clock.now())
    if reason:
        return Held(reason, text("nothing to do: it is not sent late"))
    return stop.error


# --------------------------------------------------------------------------------------------------
# Bring: one mailing's way from its query to its final name, in one straight line
# --------------------------------------------------------------------------------------------------

WITHDRAWN = text(
    "not known whether it was picked up: it was being withdrawn when the connection failed"
)
GONE = text("its temp is gone, and it does not stand under its final name")
IN_DOUBT_HINT = text("the next run looks whether the dialer got it, and never sends it twice")
UPLOADS = 2  # at a time: beside one that waits for its server's answers, another uses the line
NOT_OVERWRITTEN = text(
    "somebody else puts files there, or the dialer does not take them; nothing was overwritten"
)
NEVER_AGAIN = text(
    "ask who runs the dialer whether it has the file; it is not sent again in this slot"
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    dry_run: bool = False
    check: bool = False
    status: bool = False
    scheduled: bool = False
    only: Sequence[str] = ()
    resend: bool = False
    ignore_hours: bool = False
    config: str | None = None
    json: bool = False


class Line:
    """The straight line, which every worker walks with one mailing at a time, and the four things they share.

    Four things: the database, the drop folders, the ledger, the stop. In a --dry-run the line ends
    before anything is sent.
    """

    def __init__(self, settings: Settings, options: Options, stop: Stop, ledger: Ledger) -> None:
        self.settings, self.options, self.stop, self.ledger = settings, options, stop, ledger
        self.slot = slot_of(stop.start)
        self.database, self.drops = Database(settings, stop), DropFolders(settings, stop)
        self._uploads = threading.Semaphore(UPLOADS)

    # The line itself

    def bring(self, campaign: Campaign, mailing: Mailing, query_turn: contextlib.ExitStack) -> None:
        """A claimed mailing from its query to its final name.

        A guard that needs the whole mailing belongs in `rows_objection`, one of the clock in
        `time_objection`, one of the layout in `layout_objection`; one that stops an export that
        grows too large, in `write`.

        query_turn is given back as soon as the query is read. Raises PipelineError, Held and Empty
        among them; a mailing whose state is PUBLISHING or WITHDRAWING then is in doubt, and is
        never sent again.
        """
        # the session of a query that writes, until the mailing is out
        with contextlib.ExitStack() as writing:
            with query_turn:  # read, treat, write
                session = self._retry(lambda: self.read(campaign, mailing, writing), campaign.name)
            self.note_exported(mailing)
            self.judge(campaign, mailing)
            if self.options.dry_run:
                mailing.state = State.READY
                return None
            with self.stop.turn(self._uploads):  # send, verify: under a temp name
                self._retry(lambda: self.send(mailing), campaign.name)
            remarks = self.remarks(campaign, mailing)
            if not session:
                return self.publish(campaign, mailing, remarks)
            self.judge_moment(campaign, mailing)
            with changes_kept("perhaps"):
                session.commit()
            with changes_kept("certainly"):
                self.publish(campaign, mailing, remarks)

    def read(
        self, campaign: Campaign, mailing: Mailing, writing: contextlib.ExitStack
    ) -> Session | None:
        """The query's rows, treated and written: the whole mailing on this PC's disk. One attempt.

        Returns the session of a query that writes, which stays open in `writing`; else None.
        """
        self.database.reach()
        with contextlib.ExitStack() as reading:
            session = reading.enter_context(self.database.session(campaign))
            columns = session.columns(campaign.select)
            if objection := layout_objection(columns, campaign):
                raise objection
            with session.copy(campaign.select) as blocks:
                self.write(campaign, mailing, columns, blocks)
            if campaign.read_only:
                return None
            writing.push(reading.pop_all())
            return session

    def write(
        self,
        campaign: Campaign,
        mailing: Mailing,
        columns: tuple[str, ...],
        blocks: Iterable[bytearray],
    ) -> None:
        """Every block through treatment into the CSV, the rejected rows into one beside it."""
        folder = self.settings.output_of(self.options)
        treatment = Treatment(campaign, self.settings.language)
        with MailingFiles(folder, mailing, campaign.csv) as files:
            files.begin(columns)
            for block in blocks:
                kept, rejected = treatment.apply(to_frame(block, columns))
                files.write(kept, rejected)
                if campaign.max_rows is not None and mailing.rows > campaign.max_rows:
                    too_many = text("more than max_rows {most} contacts", most=campaign.max_rows)
                    raise Held(too_many, CHECK_QUERY)
            files.keep()

    def note_exported(self, mailing: Mailing) -> None:
        """What the mailing holds, in the ledger before it is anywhere else: settling a doubt needs it."""
        told, figures = "{campaign}: exported {figures}", figures_of(mailing)
        log.info(text(told, campaign=mailing.campaign, figures=figures))
        values = {name: getattr(mailing, name) for name in FIGURES}
        self.ledger.note(mailing, state=State.EXPORTED, **values)

    def judge(self, campaign: Campaign, mailing: Mailing) -> None:
        """The guards that needed the whole mailing. Raises Held, Empty or Stopped."""
        past_rows = mailing.past_rows or self.ledger.past_rows(campaign.name)
        if objection := rows_objection(mailing.rows, mailing.rejected, campaign, past_rows):
            raise objection
        if not self.options.dry_run:
            self.judge_moment(campaign, mailing)

    def judge_moment(self, campaign: Campaign | None, mailing: Mailing) -> None:
        """Raise Held or Stopped if it is too late to publish the mailing."""
        if late := self.too_late(mailing, campaign):
            raise late

    def send(self, mailing: Mailing) -> None:
        """The mailing whole under a temp name, seen there and checked. One attempt.

        A failed one leaves no temp behind, unless the connection is lost: then it goes at the end,
        or in the next run. A temp that was acknowledged whole is looked for, never sent again
        blindly.
        """
        self.drops.reach()
        try:
            if not mailing.is_whole:
                self.drops.check_folder(mailing.folder)
                if self.drops.size(mailing.final) is not None:
                    raise Held(text("{path} is already there", path=mailing.final), NOT_OVERWRITTEN)
                self.note_new_temp(mailing)
                self.drops.send(mailing.part, self._chunks(mailing))
                mailing.is_whole = True
            self.drops.wait_until_whole(mailing.part, mailing.size_bytes)
            if self.settings.sftp_verify == "hash":
                self.verify(mailing)
        except (ConnectionLost, MayBeOut, Stopped):
            raise
        except BaseException as error:
            if found := self.withdraw_unpublished(mailing):
                raise found from None
            mailing.is_whole = False
            if mailing.state is not State.WITHDRAWING:
                self.drop_temps(mailing)
            elif isinstance(error, PipelineError):
                error.tries = NEVER
            raise

    def verify(self, mailing: Mailing) -> None:
        """What stands on the server is what was sent, byte by byte."""
        try:
            arrived = self.drops.read_back(mailing.part, mailing.size_bytes)
        except DeliveryError:
            # MayBeOut if it was taken meanwhile
            self.drops.wait_until_whole(mailing.part, mailing.size_bytes)
            raise
        if arrived != (mailing.size_bytes, mailing.sha256):
            message = text("{path}: what arrived is not what was sent (SHA-256)", path=mailing.part)
            raise DeliveryError(message, DISK, tries=TWICE_MORE)

    def publish(self, campaign: Campaign, mailing: Mailing, remarks: Sequence[Text]) -> None:
        """The rename, noted before and after.

        From here on it may be out: a lost reply is settled by looking.
        """
        left = mailing.temps > 1  # of earlier tries; the last one becomes the mailing
        try:
            self._rename(mailing, campaign)
        except DeliveryError as error:
            template = "{campaign}: the rename is in doubt, looking: {reason}"
            log.warning(text(template, campaign=mailing.campaign, reason=error.message))
            self.settle(mailing, campaign, error)
            left = True  # OpenSSH links, then unlinks
        told = "; ".join(remark.told(self.settings.language) for remark in remarks)
        self.ledger.note(
            mailing, state=State.DELIVERED, message=told, temps=mailing.temps if left else 0
        )

    # What became of a rename that nobody saw

    def settle(self, mailing: Mailing, campaign: Campaign | None, error: PipelineError) -> None:
        """Find out whether a mailing was published by looking, and publish it if nothing else happened.

        Returns if it was. Raises why not (error itself, if nothing better is known) with the entry
        `exported` again; or, with the entry as it is, what keeps the program from knowing.
        """
        try:
            published = self._retry(lambda: self._resolve(mailing, campaign), mailing.campaign)
        except DeliveryError as refused:
            if isinstance(refused, (ConnectionLost, MayBeOut)) or refused.wide:
                raise
            error = refused
            published = self._withdraw(mailing)
        if not published:
            self.ledger.note(mailing, state=State.EXPORTED)
            raise error

    def _resolve(self, mailing: Mailing, campaign: Campaign | None) -> bool:
        """Whether the mailing is published now. One attempt.

        Only the temp there: it was not, and is renamed now unless late. Neither there: it was, and
        the dialer has taken it, unless we had begun to withdraw it. A temp beside the final name is
        OpenSSH's link without its unlink: it goes after `delivered` is noted, or it would be
        renamed once the dialer has taken the file.
        """
        final_size, temp_size = self.drops.size(mailing.final), self.drops.size(mailing.part)
        if final_size == mailing.size_bytes:
            return True
        if temp_size is None:
            if final_size is None and mailing.state is State.PUBLISHING:
                return True
            raise MayBeOut(WITHDRAWN if mailing.state is State.WITHDRAWING else GONE, NEVER_AGAIN)
        if final_size is None and mailing.state is not State.WITHDRAWING:
            with contextlib.suppress(Held, Stopped):  # too late
                self._rename(mailing, campaign)
                return True
        return self._withdraw(mailing)

    def _rename(self, mailing: Mailing, campaign: Campaign | None) -> None:
        """Ask for the rename.

        Raises what `too_late` says, by the clock as late as can be; the entry then is what it was.
        Raises DeliveryError; the ledger then says `exported` if certainly nothing happened: every
        rename of this mailing was answered by a refusal, and its temp can still be read.
        """

        def begin() -> None:
            before = mailing.state
            self.judge_moment(campaign, mailing)
            self.ledger.note(mailing, state=State.PUBLISHING)
            try:
                self.judge_moment(campaign, mailing)  # another program may have held the ledger
            except PipelineError:
                self.ledger.note(mailing, state=before)
                raise
            self.ledger.still_ours(mailing)

        try:
            self.drops.rename(mailing.part, mailing.final, begin)
        except DeliveryError as error:
            mailing.unanswered |= isinstance(error, ConnectionLost) or error.wide
            with contextlib.suppress(DeliveryError):
                if not mailing.unanswered and self._is_untouched(mailing):
                    self.ledger.note(mailing, state=State.EXPORTED)
            raise

    def _is_untouched(self, mailing: Mailing) -> bool:
        """Whether the temp is no other file yet.

        Read, not looked at: rclone tells the size of a file that is gone.
        """
        if self.drops.size(mailing.final) == mailing.size_bytes:
            return False
        return self.drops.read_back(mailing.part, 1)[0] == 1

    def _withdraw(self, mailing: Mailing) -> bool:
        """Take the temp away, so that no request still under way can publish it; whether one did before."""
        before = mailing.state
        if before is State.EXPORTED:  # none is under way: the temp goes with the others
            return False
        # or a lost reply would look as if the dialer had taken it
        self.ledger.note(mailing, state=State.WITHDRAWING)
        self.ledger.still_ours(mailing)
        try:
            removed = self.drops.remove(mailing.part)
        except DeliveryError as error:
            # not allowed to: nothing was removed
            if error.tries == NEVER and not isinstance(error, ConnectionLost):
                self.ledger.note(mailing, state=before)
            raise
        if not removed and before is not State.WITHDRAWING:
            return True
        mailing.is_whole = False
        published = self.drops.size(mailing.final) == mailing.size_bytes
        if not published and not removed:
            raise MayBeOut(WITHDRAWN, NEVER_AGAIN)
        return published

    def too_late(self, mailing: Mailing, campaign: Campaign | None) -> PipelineError | None:
        """Why a mailing, of this run or an earlier one, may not be published now; None if it may."""
        if campaign is None:
            return Held(text("its campaign is gone"))
        if campaign.folder != mailing.folder:
            return Held(text("its campaign has another drop folder now"))
        if mailing.slot != self.slot:
            return Held(text("its slot {slot} is over", slot=datetime.fromisoformat(mailing.slot)))
        return time_objection(campaign, self.stop, self.options.ignore_hours)

    def settle_leftovers(self, campaigns: Mapping[str, Campaign]) -> None:
        """What an earlier run left, before anything else.

        Raises DeliveryError if the server is out of reach.
        """
        for name in dict.fromkeys(mailing.campaign for mailing in self.ledger.unsettled()):
            with self.ledger.holding(name) as ours:
                if ours:
                    self.settle_campaign(name, campaigns.get(name))

    def settle_campaign(self, name: str, campaign: Campaign | None) -> None:
        """What earlier runs left of a campaign that we hold.

        Raises DeliveryError if the server is out of reach.
        """
        leftovers = self.ledger.unsettled(name)
        if leftovers:
            self.drops.reach()
        for mailing in leftovers:
            try:
                self._settle_leftover(mailing, campaign)
            except PipelineError as error:
                template, why = "{campaign}: {file} stays in doubt: {reason}", error.message
                log.error(text(template, campaign=name, file=mailing.file, reason=why))
                if error.wide or isinstance(error, Stopped):
                    raise
            except Exception as error:  # nothing about one entry ends a run
                bug(error)

    def _settle_leftover(self, mailing: Mailing, campaign: Campaign | None) -> None:
        if mailing.state in UNSETTLED:
            state, error = self._fate(mailing, campaign)
            outcome = error.message if error else text(state)
            template, name = "{campaign}: {file} of an earlier run: {outcome}", mailing.campaign
            log.warning(text(template, campaign=name, file=mailing.file, outcome=outcome))
            told = as_told(error, self.settings.language)
            self.ledger.note(mailing, state=state, pc=PC, **told)
        self.drop_temps(mailing)

    def _fate(
        self, mailing: Mailing, campaign: Campaign | None
    ) -> tuple[State, PipelineError | None]:
        """What became of a mailing that an earlier run left on its way."""
        writes = campaign is not None and not campaign.read_only
        if mailing.state not in MAY_BE_OUT:
            failed = PipelineError(text("the run was interrupted before publishing"))
            if writes and mailing.state is State.EXPORTED:  # its COMMIT comes before `publishing`
                failed = with_changes_kept(failed, "perhaps")
            return State.FAILED, failed
        mailing.unanswered = True
        error = self.too_late(mailing, campaign) or Held(text("it was withdrawn"))
        try:
            self.settle(mailing, campaign, error)
            return State.DELIVERED, None
        except MayBeOut as unknown:
            return State.IN_DOUBT, unknown
        except (Held, DeliveryError) as refused:
            if mailing.state in MAY_BE_OUT:
                raise
            told = text("not published: {reason}", reason=refused.message)
            failed = PipelineError(told, refused.hint)
            return State.FAILED, with_changes_kept(failed, "certainly") if writes else failed

    # Temps on the server

    def note_new_temp(self, mailing: Mailing) -> None:
        """In the ledger before it is on the server, so that a killed run's temp is found and removed."""
        folder = self.settings.sftp_staging_dir or mailing.folder
        first = mailing.temp_id or secrets.randbits(32)
        temp = str(folder / self.settings.sftp_temp_name)
        self.ledger.note(mailing, temp=temp, temp_id=first, temps=mailing.temps + 1)

    def withdraw_unpublished(self, mailing: Mailing) -> MayBeOut | None:
        """Take a whole temp away that is not to be published any more; what to say if somebody took it before.

        Looked for first: a removal that is refused, or whose answer is lost, tells nothing of that.
        Where the server cannot be asked, the next run withdraws it: a dialer that takes any name
        may have it. A mailing without an entry of ours is left alone: its entry may know more.
        """
        if mailing.state is not State.EXPORTED or not mailing.is_whole or not mailing.id:
            return None
        was_there = False
        try:
            was_there = self.drops.size(mailing.part) is not None
            return None if was_there and self.drops.remove(mailing.part) else gone(mailing.part)
        except PipelineError as error:
            if error.wide or isinstance(error, (ConnectionLost, Stopped)):
                if was_there:
                    self.drop_temps(mailing)
                if mailing.temps:
                    self.ledger.note(mailing, state=State.WITHDRAWING)
            return None  # where it was refused, drop_temps tries again, and says so

    def drop_temps(self, mailing: Mailing) -> None:
        """Remove a mailing's temps; what cannot be removed now, the next run removes."""
        if not mailing.temps or self.drops.down:
            return
        try:
            for temp in mailing.temp_paths:
                self.drops.clear(temp)
            # The next one gets a name that none of these had: a late request must not meet it.
            self.ledger.note(mailing, temp_id=mailing.temp_id + mailing.temps, temps=0)
        except PipelineError as error:
            template = "{campaign}: a temp file may stay until the next run: {reason}"
            log.warning(text(template, campaign=mailing.campaign, reason=error.message))

    # Small steps

    def _retry(self, action: Callable[[], T], who: str) -> T:
        return retry(action, self.settings.retry_policy, self.stop, who)

    def _chunks(self, mailing: Mailing) -> Iterator[bytes]:
        """The mailing's bytes from the local disk, which somebody may have changed since they were written.

        A file that is touched while it is sent goes out anew: what is in it afterwards says nothing
        of what was read.
        """
        path, mailing.sent_bytes, digest = self.settings.output / mailing.file, 0, hashlib.sha256()
        with local_faults(path), open(path, "rb") as file:
            touched = size_and_time(path) != mailing.stamp  # only what is sent tells if it differs
            while chunk := file.read(CHUNK_BYTES):
                self.stop.check()
                if touched:
                    digest.update(chunk)
                yield chunk
                mailing.sent_bytes += len(chunk)
            same = size_and_time(path) == mailing.stamp
        if touched:
            same = digest.hexdigest() == mailing.sha256
        if not same:
            message = text("{path} was changed on this PC before it was sent", path=path)
            hint = text("leave the files in the output folder alone while a run is on")
            raise LocalFault(message, hint, tries=NEVER if touched else ONCE_MORE)

    def remarks(self, campaign: Campaign, mailing: Mailing) -> list[Text]:
        """What is worth a word although the mailing is sent."""
        remarks = mailing_remarks(campaign, mailing)
        last = self.ledger.last_delivered(campaign.name) if campaign.pickup_s else None
        with contextlib.suppress(DeliveryError):  # a remark costs no mailing
            if last and self.drops.size(last.final) is not None:
                told = "the dialer has not taken the previous mailing {file}"
                remarks.insert(0, text(told, file=last.file))
        for remark in remarks:
            log.warning(text("{campaign}: {message}", campaign=campaign.name, message=remark))
        return remarks


@contextlib.contextmanager
def changes_kept(how: Literal["perhaps", "certainly"]) -> Iterator[None]:
    """An error in the block says so too: whom the query has marked as sent was not called."""
    try:
        yield
    except PipelineError as error:
        raise with_changes_kept(error, how) from None


def with_changes_kept(error: PipelineError, how: Literal["perhaps", "certainly"]) -> PipelineError:
    """The error, telling too what became of the query's own changes."""
    told = copy.copy(error)  # the original may be told of others too
    template = "{reason}; what its query wrote may be kept all the same"
    if how == "certainly":
        template = "{reason}; what its query wrote is kept all the same"
    told.message = text(template, reason=error.message)
    return told


def mailing_remarks(campaign: Campaign, mailing: Mailing) -> list[Text]:
    """What treatment did to a mailing that somebody should know."""
    remarks = []
    if mailing.replaced:
        template = "{count} characters are not in {encoding} and became '?'"
        remarks.append(text(template, count=mailing.replaced, encoding=campaign.csv.encoding))
    total = mailing.rows + mailing.rejected
    if mailing.rejected and mailing.rejected >= MANY_REJECTED * total:
        template = "{rejected} of {total} rows were rejected: see {file}"
        remarks.append(
            text(template, rejected=mailing.rejected, total=total, file=rejected_name(mailing.file))
        )
    return remarks


def as_told(error: PipelineError | None, language: str) -> dict[str, str]:
    """An error as the ledger keeps it: what the operator was told."""
    hint = error.hint if error else None
    return {
        "message": "\n".join(fault.told(language) for fault in error.faults) if error else "",
        "hint": hint.told(language) if hint else "",
    }


# --------------------------------------------------------------------------------------------------
# Report: exit code, table and JSON, computed from the mailings of a run; what a terminal shows
# --------------------------------------------------------------------------------------------------


def tell(console: Console, sentence: str, hint: str = "", style: str = "") -> None:
    """A sentence for a person, and below it what to do. Brackets and colons are no markup."""
    from rich.text import Text as Styled

    console.print(Styled(sentence, style), soft_wrap=True)
    if hint:
        console.print(Styled(f"    -> {hint}"), soft_wrap=True)


Problem = tuple[str, str, str]  # who has it, what it is, what to do


def print_problems(console: Console, problems: Iterable[Problem]) -> None:
    """Each problem once, with all who have it."""
    together: dict[tuple[str, str], list[str]] = {}
    for who, what, hint in problems:
        together.setdefault((what, hint), []).append(who)
    for (what, hint), everybody in together.items():
        tell(console, f"{', '.join(everybody)}: {what}", hint)


def worst(errors: Sequence[PipelineError], passed: Collection[ExitCode] = ()) -> ExitCode:
    """The code of a whole run: 5 and 6 only if a stage failed and nothing passed it."""
    codes = {error.exit_code for error in errors} - {ExitCode.OK}
    stages = {error.exit_code for error in errors if error.wide}.difference(passed)
    decisive = codes & {ExitCode.BUG, ExitCode.USAGE} | stages & {ExitCode.DATABASE, ExitCode.SFTP}
    return min(decisive, default=ExitCode.PARTIAL if codes else ExitCode.OK)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    start: datetime
    seconds: float
    mailings: tuple[Mailing, ...]
    folder: Path | None = None  # of the CSVs of a rehearsal

    @property
    def slot(self) -> str:
        return slot_of(self.start)

    @property
    def exit_code(self) -> ExitCode:
        """The code of the whole run."""
        states = {mailing.state for mailing in self.mailings}
        passed = {ExitCode.SFTP} if State.DELIVERED in states else set()
        if states & {State.DELIVERED, State.READY, State.EMPTY, State.HELD}:
            passed.add(ExitCode.DATABASE)
        return worst([mailing.error for mailing in self.mailings if mailing.error], passed)

    @property
    def totals(self) -> Text:
        """'5 delivered, 1 held'."""
        counts = []
        for state, count in Counter(mailing.state for mailing in self.mailings).items():
            counts.append(text("{count} {state}", count=count, state=text(state)))
        return text("{counts}", counts=counts) if counts else text("nothing due")

    def as_json(self) -> dict[str, Any]:
        """The report as what --json prints."""
        return {
            "slot": self.slot,
            "start": self.start.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            **code_json(self.exit_code),
            **({"folder": str(self.folder)} if self.folder else {}),
            "campaigns": [stored(entry) | {"verdict": entry.state} for entry in self.mailings],
        }


def code_json(code: ExitCode) -> dict[str, Any]:
    """An exit code as every --json has it."""
    return {"exit_code": code.value, "meaning": str(code.meaning)}


def closing_line(code: ExitCode) -> Text:
    """The last thing that every call says."""
    return text("exit code {code}: {meaning}", code=str(code.value), meaning=code.meaning)


def written(number: str, language: str) -> str:
    """1,234.5 as that language writes it."""
    return number.translate(str.maketrans(",.", ".,")) if language == "pt" else number


def human_size(size_bytes: int, language: str) -> str:
    """1536 as '1.5 kB' or '1,5 kB'."""
    from rich import filesize

    return written(filesize.decimal(size_bytes), language)


def print_report(report: Report, console: Console, language: str) -> None:
    """The table of results, the paths, then every problem with what to do."""
    slot = text("Slot {slot}", slot=datetime.fromisoformat(report.slot))
    tell(console, slot.told(language), style="italic")
    console.print(result_table(report, language), end="")
    tell(console, "")
    width = max((len(mailing.campaign) for mailing in report.mailings), default=0)
    problems = []
    for mailing in report.mailings:
        path = mailing.final if report.folder else mailing.folder
        tell(console, f"{mailing.campaign:<{width}}  {path}")
        if mailing.message:
            what = f"{mailing.state.told(language)}: {mailing.message}"
            problems.append((mailing.campaign, what, mailing.hint))
    tell(console, "")
    print_problems(console, problems)
    if report.folder:
        tell(console, text("the CSVs are in {folder}", folder=report.folder).told(language))
    tell(console, closing_line(report.exit_code).told(language))


def result_table(report: Report, language: str) -> Table:
    """It fits 80 columns: a campaign's name alone may break. Brackets in a name are no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text as Styled

    dry = report.folder is not None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(text("campaign").told(language), overflow="fold")
    table.add_column(text("result").told(language), no_wrap=True)
    last = text("columns") if dry else text("seconds")
    for head in (text("contacts"), text("rejected"), text("size"), last):
        table.add_column(head.told(language), justify="right", no_wrap=True)
    for mailing in report.mailings:
        state = Styled(mailing.state.told(language), mailing.state.style)
        counts = [shown(count, language) for count in (mailing.rows, mailing.rejected)]
        size, seconds = human_size(mailing.size_bytes, language), f"{mailing.seconds:.1f}"
        end = shown(mailing.columns, language) if dry else written(seconds, language)
        table.add_row(Styled(mailing.campaign), state, *counts, size, end)
    return table


def at_work(mailing: Mailing) -> bool:
    """Whether a worker has it now."""
    return mailing.began_s > 0 and mailing.state in UNSETTLED


def doing(mailing: Mailing, language: str) -> Text:
    """What a campaign is at: its outcome, or the upload, the query, or nothing yet."""
    if mailing.state not in UNSETTLED:
        return text(mailing.state)
    if not mailing.began_s:
        return text("waiting")
    if mailing.sent_bytes:
        sent, size = (human_size(n, language) for n in (mailing.sent_bytes, mailing.size_bytes))
        return text("sending {sent} of {size}", sent=sent, size=size)
    if mailing.size_bytes:
        return text("ready")
    if mailing.rows:
        return text("reading, {contacts}", contacts=contacts(mailing.rows))
    return text("the query is running")


def progress_table(mailings: Iterable[Mailing], now_s: float, language: str) -> Table:
    """A line per campaign with the time gone; those at work first, as a low terminal is full soon."""
    from rich.table import Table
    from rich.text import Text as Styled

    lines = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left"):
        lines.add_column(justify=justify, no_wrap=True)
    for mailing in sorted(mailings, key=at_work, reverse=True):
        minutes, seconds = divmod(int(now_s - mailing.began_s), 60)
        gone = f"{minutes}:{seconds:02}" if at_work(mailing) else ""
        told = doing(mailing, language).told(language)
        lines.add_row(Styled(mailing.campaign), gone, Styled(told))
    return lines


def live_progress(
    console: Console | None, mailings: Collection[Mailing], language: str, clock: Clock
) -> contextlib.AbstractContextManager[object]:
    """On a terminal, a line per campaign that shows what is going on, until the block ends."""
    if console is None or not console.is_terminal or not mailings:
        return contextlib.nullcontext()
    from rich.live import Live

    def table() -> Table:
        return progress_table(mailings, clock.steady_s(), language)

    return Live(get_renderable=table, console=console, transient=True, vertical_overflow="crop")


# --------------------------------------------------------------------------------------------------
# Run: workers over the campaigns that are due, and an end to everything
# --------------------------------------------------------------------------------------------------

PICKUP_POLL_S = 2
INTERRUPT_GRACE_S = 1.5  # Windows ends a process 5 s after its window is closed
STOP_GRACE_S = 20  # what the run may take after its deadline to end by itself
MOST_LOSSES = 5  # of a claim, for a ledger that breaks again and again
BROKEN_HINT = text("correct the file, and try it with --check")
SEE_PAGE = text("the status page shows what came of it")
BY_OPERATOR = text("stopped by the operator")
START_AGAIN = text("start the program again; it sends only what is missing")


class Run:
    """The mailings of one run and the workers that bring them."""

    def __init__(self, line: Line, files: QueryFiles) -> None:
        self.line, self.files = line, files
        self.mailings: dict[str, Mailing] = {}  # by campaign; a broken query's by its file
        self._waiting: dict[str, Campaign] = {}  # by name, in file order
        self._taking, self._naming = threading.Lock(), threading.Lock()
        self._query_turns = threading.Semaphore(line.settings.query_workers)
        self._names: set[str] = set()  # of this run's mailings
        # entries of this slot of which it was known before this run what came
        self._settled: set[int] = set()
        self._losses: Counter[str] = Counter()  # claims of a campaign that were lost
        self._error: PipelineError | None = None  # why what waits is not taken

    def plan(self) -> None:
        """A mailing for each campaign: due ones wait for a worker to claim them, the others have their outcome.

        What other PCs have under way is no outcome yet: who holds the campaign decides.
        """
        ledger = self.line.ledger
        look = functools.partial(ledger.settled, self.line.slot)
        self._settled = retry(look, LEDGER_PATIENCE, self.line.stop, "ledger")
        first_look = self._undecided if ledger.is_shared else self._outcome_before_start
        for campaign in self.files.campaigns:
            mailing = self.mailings[campaign.name] = first_look(campaign)
            if mailing.state is State.CLAIMED:
                self._waiting[campaign.name] = campaign
        for broken in self.files.broken:
            self._fail_broken(broken)

    def work(self) -> None:
        """Everything that waits to its outcome, by QUERY_WORKERS workers and two who upload meanwhile."""
        line = self.line
        if not self._waiting:
            return
        count = min(line.settings.query_workers + UPLOADS, len(self._waiting))
        workers = [
            threading.Thread(target=self._work, name=f"worker-{n}", daemon=True)
            for n in range(count)
        ]
        if not line.options.dry_run:  # log in while the first query runs
            workers.append(threading.Thread(target=self._log_in, name="login", daemon=True))
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.5)
        except KeyboardInterrupt:
            line.stop.end(BY_OPERATOR)
            wait_for_all(workers, INTERRUPT_GRACE_S)  # a rename that is under way may end
            line.drops.shut()
            wait_for_all(workers, INTERRUPT_GRACE_S)

    def end(self) -> None:
        """What no worker could bring to an end gets its outcome from what is noted; connections are closed."""
        error = self.line.stop.error or self._error or Stopped(text("the run was stopped"))
        for campaign in list(self._waiting.values()):
            self._give_up(campaign, error)
        for mailing in self.mailings.values():
            if mailing.state in UNSETTLED:
                with contextlib.suppress(LocalFault):
                    self._conclude(mailing, error)
        if self.line.ledger.is_shared and not self.line.ledger.has_lost:
            with contextlib.suppress(PipelineError):
                self._look_again()
        self.line.database.close()
        self.line.drops.close()

    def report(self, folder: Path | None = None) -> Report:
        """What the run did until now; folder: of a rehearsal's CSVs."""
        stop = self.line.stop
        seconds = (stop.clock.now() - stop.start).total_seconds()
        return Report(stop.start, seconds, tuple(self.mailings.values()), folder)

    def _undecided(self, campaign: Campaign) -> Mailing:
        return Mailing(
            campaign=campaign.name, slot=self.line.slot, state=State.CLAIMED, folder=campaign.folder
        )

    def _outcome_before_start(self, campaign: Campaign) -> Mailing:
        """A mailing that is due, or that has its outcome already."""
        line, options, language = self.line, self.line.options, self.line.settings.language
        mailing = self._undecided(campaign)
        before = line.ledger.in_slot(line.slot, campaign.name)
        # a rehearsal runs it all the same, and says so afterwards
        at_any_hour = options.ignore_hours or options.dry_run
        if any(entry.state in MAY_BE_OUT for entry in before):
            message = text("the server does not tell what became of this slot's mailing")
            error = DeliveryError(message, IN_DOUBT_HINT, wide=line.drops.down is not None)
            mailing.state, mailing.error = State.IN_DOUBT, error
            mailing.message, mailing.hint = as_told(error, language).values()
            return mailing
        if before:
            mailing.resend = options.resend and all(entry.id in self._settled for entry in before)
            return mailing if mailing.resend else already(before[-1])
        if not at_any_hour and (reason := campaign.hours.why_not(line.stop.start)):
            mailing.state, mailing.message = State.NOT_DUE, reason.told(language)
            return mailing
        return self._verdict_elsewhere(campaign) or mailing

    def _verdict_elsewhere(self, campaign: Campaign) -> Mailing | None:
        """What another PC's guards said of it; for a manual run, since it began."""
        line, verdict = self.line, None
        for entry in line.ledger.verdicts_elsewhere(line.slot, campaign.name):
            if line.options.scheduled or entry.id not in self._settled:
                verdict = dataclass_replace(entry, id=0)  # that PC notes it
        if verdict and verdict.state is State.HELD:
            verdict.error = Held(text("{message}", message=verdict.message))
        return verdict

    def _begin(self, campaign: Campaign) -> Mailing | None:
        """The mailing of a campaign that we hold, claimed; None if another PC has brought it meanwhile.

        Where the ledger is this PC's own, a second call changes nothing.
        """
        line, ledger, name = self.line, self.line.ledger, campaign.name
        if ledger.is_shared:
            line.settle_campaign(name, campaign)
            if not ledger.unsettled(name):
                line.drop_temps(self.mailings[name])  # what we were sending while we lost it
            self.mailings[name] = self._outcome_before_start(campaign)
        mailing = self.mailings[name]
        if mailing.state is not State.CLAIMED:
            if pc := mailing.pc:
                told = "{campaign}: {state} ({pc})"
                log.info(text(told, campaign=name, state=text(mailing.state), pc=pc))
            return None
        if not mailing.file:
            self._claim(campaign, mailing)
        return mailing

    def _claim(self, campaign: Campaign, mailing: Mailing) -> None:
        """Its name and its entry."""
        if mailing.resend:
            template = "{campaign}: was delivered in this slot; is to be sent again (--resend)"
            log.warning(text(template, campaign=campaign.name))
        with self._naming:
            name = render_file_name(campaign.file_name, campaign.name, self.line.stop.start)
            mailing.file = free_file_name(name, self._is_used)
            self._names |= {mailing.file.lower(), rejected_name(mailing.file).lower()}
        self.line.ledger.claim(mailing)

    def _is_used(self, name: str) -> bool:
        """In any case, as Windows has it; a mailing's rejected rows need a name too."""
        ours = {name.lower(), rejected_name(name).lower()} & self._names
        return bool(ours) or self.line.ledger.knows_file(name)

    def _fail_broken(self, broken: BrokenQuery) -> None:
        """A query file with faults fails, as a campaign does."""
        ledger, error = self.line.ledger, PipelineError(in_a_row(broken.told), BROKEN_HINT)
        mailing = Mailing(campaign=broken.name, slot=self.line.slot, state=State.CLAIMED)
        self.mailings[broken.source] = mailing
        with contextlib.suppress(ClaimLost), ledger.holding(broken.name) as ours:
            if ours:
                ledger.claim(mailing)
            self._conclude(mailing, error)
        if mailing.state is State.CLAIMED:  # the ledger was lost meanwhile
            self._conclude_unnoted(mailing, error)

    def _next(self) -> tuple[Campaign, contextlib.ExitStack] | None:
        """The next campaign in file order that no other PC holds, with its turn to query; None if there is none."""
        ledger, stop = self.line.ledger, self.line.stop
        with self._taking:
            while self._waiting and not self._error:
                with contextlib.ExitStack() as turn:
                    turn.enter_context(stop.turn(self._query_turns))
                    hold = functools.partial(ledger.hold, list(self._waiting))
                    if held := retry(hold, LEDGER_PATIENCE, stop, "ledger"):
                        campaign = self._waiting.pop(held)
                        if not ledger.is_shared:
                            # here, so that names and entries are in file order
                            self._begin(campaign)
                        return campaign, turn.pop_all()
                stop.sleep(LEDGER_POLL_S)
        return None

    def _work(self) -> None:
        """A worker's life: one mailing after the other.

        Whatever happens to one, the others go on.
        """
        try:
            while taken := self._next():
                self._bring(*taken)
        except PipelineError as error:
            self._error = error  # what waits is concluded at the run's end
        except Exception as error:
            self._error = bug(error)

    def _bring(self, campaign: Campaign, turn: contextlib.ExitStack) -> None:
        """A campaign that we hold, to its outcome; to the end of the queue again if we lose it meanwhile."""
        name, lost = campaign.name, False
        try:
            with turn:
                if mailing := self._begin(campaign):
                    self._conclude(mailing, self._attempt(campaign, mailing, turn))
        except ClaimLost as error:
            log.warning(text("{campaign}: {message}", campaign=name, message=error.message))
            self._losses[name] += 1
            lost = self._losses[name] < MOST_LOSSES
            if not lost:
                self._conclude_unnoted(self.mailings[name], error)
        except PipelineError as error:
            self._conclude_unnoted(self.mailings[name], error)
        except Exception as error:
            self._conclude_unnoted(self.mailings[name], bug(error))
        self.line.ledger.release(name)
        if lost:  # not before it is released, or another worker of ours may hold it by then
            self._waiting[name] = campaign

    def _attempt(
        self, campaign: Campaign, mailing: Mailing, turn: contextlib.ExitStack
    ) -> PipelineError | None:
        """What kept a claimed mailing from its final name; None: nothing. Raises ClaimLost."""
        line, clock = self.line, self.line.stop.clock
        mailing.began_s = clock.steady_s()
        try:
            if line.drops.down:
                # Where both are down that is told as the database, whichever was found first.
                line.database.reach()
                raise line.drops.down
            line.bring(campaign, mailing, turn)
        except ClaimLost:
            raise
        except PipelineError as error:
            for kind, server in ((DatabaseError, line.database), (DeliveryError, line.drops)):
                if error.wide and isinstance(error, kind):
                    server.down = error
            # At the deadline it is the watchdog that breaks the connection.
            ended = line.stop.error if isinstance(error, ConnectionLost) else None
            return ended or error
        except Exception as error:
            return bug(error)
        return None

    def _give_up(self, campaign: Campaign, error: PipelineError) -> None:
        """What nobody took up before this run's end; another PC may still be at work on it."""
        try:
            if isinstance(self._error, LocalFault):
                raise self._error  # not once more for each campaign
            with self.line.ledger.holding(campaign.name) as ours:
                if ours:
                    if mailing := self._begin(campaign):
                        self._conclude(mailing, error)
                    return
            busy = text("another PC was still at work on it when this run ended")
            error = Stopped(busy, SEE_PAGE)
        except PipelineError as fault:
            self._error = fault
        self._conclude_unnoted(self.mailings[campaign.name], error)

    def _conclude_unnoted(self, mailing: Mailing, error: PipelineError) -> None:
        """The outcome of what could not be claimed (again); an earlier entry of it is for others to conclude."""
        mailing.id = 0
        self._conclude(mailing, error)

    def _look_again(self) -> None:
        """What did not come through here another PC may have brought meanwhile.

        That this PC's query file has a fault stays so.
        """
        before = self._settled if self.line.options.resend else set()
        for name in (campaign.name for campaign in self.files.campaigns):
            if self.mailings[name].state in (State.FAILED, State.IN_DOUBT):
                found = self.line.ledger.in_slot(self.line.slot, name)
                if found and found[-1].state is State.DELIVERED and found[-1].id not in before:
                    self.mailings[name] = already(found[-1])

    def _conclude(self, mailing: Mailing, error: PipelineError | None) -> None:
        """A mailing's outcome, in record, ledger and log.

        Raises ClaimLost: it is others' then; LocalFault if a withdrawal could not be noted.
        """
        line = self.line
        if error and mailing.state is State.DELIVERED:
            template = "{campaign}: after its delivery: {reason}"
            log.warning(text(template, campaign=mailing.campaign, reason=error.message))
            error = None
        if error:
            error = line.withdraw_unpublished(mailing) or error
            mailing.error, mailing.state = error, state_after(mailing, error)
            mailing.message, mailing.hint = as_told(error, line.settings.language).values()
        if mailing.began_s:
            mailing.seconds = round(line.stop.clock.steady_s() - mailing.began_s, 3)
        try:
            if mailing.id:
                self._note_outcome(mailing)
        except ClaimLost:
            raise
        except PipelineError as fault:
            template = "{campaign}: the ledger could not note it, the next run looks: {reason}"
            log.error(text(template, campaign=mailing.campaign, reason=fault.message))
        log_outcome(mailing)

    def _note_outcome(self, mailing: Mailing) -> None:
        """Where a rename may have happened the entry says so still: the next run settles it first."""
        values = {name: getattr(mailing, name) for name in (*FIGURES, "message", "hint")}
        if mailing.state is not State.IN_DOUBT or isinstance(mailing.error, MayBeOut):
            values["state"] = mailing.state
            self.line.drop_temps(mailing)
        self.line.ledger.note(mailing, **values)

    def _log_in(self) -> None:
        try:
            self.line.drops.reach()
        except PipelineError as error:
            log.error(error.message)
        except Exception as error:
            self.line.drops.down = bug(error)


def wait_for_all(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Until every thread has ended, for that time at the most."""
    until_s = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))


def already(entry: Mailing) -> Mailing:
    """What a run says of a mailing that is out already; its entry is left as it is."""
    return dataclass_replace(entry, state=State.ALREADY, message="", hint="", id=0)


def state_after(mailing: Mailing, error: PipelineError) -> State:
    """The state that an error leaves an undelivered mailing in; one that may be out stays in doubt."""
    if mailing.state in MAY_BE_OUT or isinstance(error, MayBeOut):
        return State.IN_DOUBT
    if isinstance(error, (Held, Empty)):
        return State.HELD if isinstance(error, Held) else State.EMPTY
    return State.FAILED


def figures_of(mailing: Mailing) -> Text:
    """What a mailing holds, for the log."""
    file, size, some = mailing.file, mailing.size_bytes, contacts(mailing.rows)
    if not mailing.rejected:
        return text("{file}: {contacts}, {size} bytes", file=file, contacts=some, size=size)
    template = "{file}: {contacts}, {rejected} rejected, {size} bytes"
    return text(template, file=file, contacts=some, rejected=mailing.rejected, size=size)


def log_outcome(mailing: Mailing) -> None:
    """One line in the log."""
    error = mailing.error
    parts: list[Text] = [figures_of(mailing)] if mailing.size_bytes else []
    if error:
        parts += [part for part in (error.message, error.hint) if part]
    level = logging.ERROR if error and error.exit_code else logging.INFO
    who, state = mailing.campaign, text(mailing.state)
    told = text("{campaign}: {state}", campaign=who, state=state)
    if parts:
        what = in_a_row(parts)
        told = text("{campaign}: {state}: {what}", campaign=who, state=state, what=what)
    log.log(level, told)


@contextlib.contextmanager
def watchdog(stop: Stop, drops: DropFolders) -> Iterator[None]:
    """End a hung run: at the deadline break its SFTP connection, STOP_GRACE_S later the process.

    Every wait of our own looks at the stop; this is for those of others (a driver, a library, a
    disk).
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if stop.left_s() > 0:
                continue
            log.error(text("the run's deadline has passed: ending it"))
            stop.end()
            if over.wait(INTERRUPT_GRACE_S):  # who notices removes its temp
                return
            drops.shut()
            if not over.wait(STOP_GRACE_S):
                told = "exit code 4: the run did not end by itself {seconds} s after its deadline"
                log.critical(text(told, seconds=STOP_GRACE_S))
                logging.shutdown()
                os._exit(ExitCode.PARTIAL)
            return

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def run(
    settings: Settings,
    files: QueryFiles,
    options: Options,
    clock: Clock,
    console: Console | None = None,
) -> Report:
    """Deliver every campaign that is due in this slot.

    Raises PipelineError only before anything was exported.
    """
    stop = Stop(clock, settings.run_deadline_minutes)
    who = f"process {os.getpid()}, started {stop.start:%Y-%m-%d %H:%M:%S}"
    who += " by the Task Scheduler" if options.scheduled else " by hand"
    lock, wait_s = settings.output / "run.lock", stop.left_s() if options.scheduled else 0
    with contextlib.ExitStack() as held:
        held.enter_context(only_run(lock, who, clock, wait_s))
        ledger = retry(lambda: open_ledger(settings, clock), LEDGER_PATIENCE, stop, "ledger")
        held.callback(ledger.close)
        ledger.stop = stop
        refuse_unknown_mailings(settings.output, ledger, slot_of(stop.start))
        line = Line(settings, options, stop, ledger)
        this = Run(line, choose(files, options.only))
        with watchdog(stop, line.drops):
            try:
                remove_old_files(settings, ledger, clock)
                line.settle_leftovers({campaign.name: campaign for campaign in files.campaigns})
            except (DeliveryError, Stopped) as error:
                line.drops.down = error  # nothing can be delivered: no query runs
            # they are settled before anything else is done with their campaigns
            except ClaimLost as error:
                log.warning(error.message)
            this.plan()
            with live_progress(console, this.mailings.values(), settings.language, clock):
                this.work()
                if not stop.error:
                    watch_pickups(this)
            this.end()
        return this.report()


def rehearse(
    settings: Settings,
    files: QueryFiles,
    options: Options,
    clock: Clock,
    console: Console | None = None,
) -> Report:
    """The --dry-run: the same line up to its last steps, without SFTP and ledger; the CSVs go to output/dry-run."""
    stop = Stop(clock, settings.run_deadline_minutes)
    folder = settings.output_of(options)
    with local_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    line = Line(settings, options, stop, Ledger(IN_MEMORY, clock))
    this = Run(line, choose(files, options.only))
    this.plan()
    delivered = look_back(settings, clock, this.mailings.values())
    with (
        watchdog(stop, line.drops),
        live_progress(console, this.mailings.values(), settings.language, clock),
    ):
        this.work()
        this.end()
    for campaign in this.files.campaigns:
        mailing = this.mailings[campaign.name]
        if mailing.state is State.READY:
            is_out = campaign.name in delivered
            remarks = rehearsal_remarks(campaign, mailing, stop, options, is_out)
            mailing.message = "; ".join(remark.told(settings.language) for remark in remarks)
    return this.report(folder)


def look_back(settings: Settings, clock: Clock, mailings: Iterable[Mailing]) -> set[str]:
    """What a rehearsal takes from the ledger: the usual rows, and which campaigns this slot has delivered already."""
    delivered: set[str] = set()
    if settings.has_ledger:
        with contextlib.closing(open_ledger(settings, clock, looks=True)) as ledger:
            for mailing in mailings:
                mailing.past_rows = ledger.past_rows(mailing.campaign)
                if ledger.in_slot(mailing.slot, mailing.campaign):
                    delivered.add(mailing.campaign)
    return delivered


def rehearsal_remarks(
    campaign: Campaign, mailing: Mailing, stop: Stop, options: Options, delivered: bool
) -> list[Text]:
    """What would keep a rehearsed mailing from being sent now, and what treatment did to it."""
    remarks = mailing_remarks(campaign, mailing)
    if delivered and not options.resend:
        told = text("this slot has been delivered already: a run would not send it again")
        remarks.insert(0, told)
    if objection := time_objection(campaign, stop, options.ignore_hours):
        remarks.insert(0, text("not at this hour: {reason}", reason=objection.message))
    return remarks


def watch_pickups(this: Run) -> None:
    """After everything is published: wait until the dialer has taken each file whose campaign asks for it."""
    watched = [
        campaign
        for campaign in this.files.campaigns
        if campaign.pickup_s and this.mailings[campaign.name].state is State.DELIVERED
    ]
    stop = this.line.stop
    began_s = stop.clock.steady_s()

    def is_open(campaign: Campaign) -> bool:
        waited_s = stop.clock.steady_s() - began_s
        return not settle_pickup(this.line, campaign, this.mailings[campaign.name], waited_s)

    try:
        while watched := list(filter(is_open, watched)):
            stop.sleep(PICKUP_POLL_S)
    except Stopped as error:
        log.warning(text("pickups are not watched any more: {reason}", reason=error.message))
    except KeyboardInterrupt:
        stop.end(BY_OPERATOR)


def settle_pickup(line: Line, campaign: Campaign, mailing: Mailing, waited_s: float) -> bool:
    """Whether it is known what the dialer did with a mailing; then it is noted."""
    is_late, errors = waited_s > campaign.pickup_s, campaign.pickup_error_folder
    refused = errors and line.settings.sftp_base_dir / errors / mailing.file
    try:
        if refused and line.drops.size(refused) is not None:
            note_pickup(line, mailing, Pickup.REFUSED, text("refused by the dialer"))
        elif line.drops.size(mailing.final) is None:
            note_pickup(line, mailing, Pickup.TAKEN)
        elif is_late:
            why = text("not picked up within {seconds} s", seconds=campaign.pickup_s)
            note_pickup(line, mailing, Pickup.LEFT, why)
        else:
            return False
    except DeliveryError as error:
        if not is_late:
            return False
        why = text("not known whether it was picked up: {reason}", reason=error.message)
        note_pickup(line, mailing, Pickup.UNKNOWN, why)
    return True


def note_pickup(line: Line, mailing: Mailing, pickup: Pickup, why: Text | None = None) -> None:
    """In ledger, report and log; a file that the dialer refused makes the run partial."""
    values: dict[str, Any] = {"pickup": pickup}
    if why:
        fault = PipelineError(
            why, text("see in the dialer why; the file is complete, and is not sent again")
        )
        values |= as_told(fault, line.settings.language)
        mailing.error = fault if pickup is Pickup.REFUSED else mailing.error
        template = "{campaign}: {file}: {reason}"
        log.error(text(template, campaign=mailing.campaign, file=mailing.file, reason=why))
    else:
        time = values["picked_up"] = f"{line.stop.clock.now():%H:%M:%S}"
        template = "{campaign}: {file}: picked up at {time}"
        log.info(text(template, campaign=mailing.campaign, file=mailing.file, time=time))
    try:
        with line.ledger.holding(mailing.campaign):
            line.ledger.note(mailing, **values)
    except LocalFault as error:
        template = "{campaign}: the ledger could not note it: {reason}"
        log.error(text(template, campaign=mailing.campaign, reason=error.message))


def remove_old_files(settings: Settings, ledger: Ledger, clock: Clock) -> None:
    """Delete local CSVs, which hold personal data, after RETENTION_DAYS; only files that this program wrote."""
    oldest = clock.now() - timedelta(days=settings.retention_days)
    ours = ledger.files_before(oldest)
    ours |= {rejected_name(name) for name in ours}
    stale = [path for path in settings.output.glob("*") if path.name.removesuffix(".part") in ours]
    for path in (settings.output / "dry-run").glob("*"):
        with contextlib.suppress(OSError):  # it may go at this moment
            is_mailing = path.name.lower().removesuffix(".part").endswith(MAILING_ENDINGS)
            stale += [path] if is_mailing and path.stat().st_mtime < oldest.timestamp() else []
    for path in stale:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            template = "{path}: too old, but cannot be deleted: {reason}"
            log.warning(text(template, path=path, reason=foreign(error.strerror)))


# --------------------------------------------------------------------------------------------------
# Check: looking without sending
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the --check list; error: what is wrong."""

    what: Text
    told: Text
    error: PipelineError | None = None
    is_note: bool = False  # nothing is wrong, but somebody should know

    @property
    def hint(self) -> Text | None:
        return self.error.hint if self.error else None


def finding(what: Text, action: Callable[..., Text | None], *values: Any) -> Finding:
    """What action says of values, or the error that it raised."""
    try:
        return Finding(what, action(*values) or text("ok"))
    except PipelineError as error:
        return Finding(what, in_a_row(error.faults), error)


WRITES = re.compile(
    r"^\s*(->\s*)?(Insert|Update|Delete|Merge) on |^\s*(->\s*)?LockRows\b", re.MULTILINE
)


def check_query(database: Database, campaign: Campaign) -> Text:
    """Plan a campaign's query without running it, and compare its columns with what the dialer expects."""
    with database.session(campaign) as session:
        columns = session.columns(campaign.select)
        if objection := layout_objection(columns, campaign):
            raise objection
        rows = session.run(f"EXPLAIN {campaign.select.text}", campaign.select.line).fetchall()
    plan = "\n".join(str(row[0]) for row in rows)
    calls = re.search(r"\b(NEXT|SET)VAL \(", " ".join(campaign.select.words))
    if campaign.read_only and (WRITES.search(plan) or calls):
        where = place_in(campaign.source, campaign.select.line)
        template = "{where}: the query writes or locks, in a read-only transaction"
        raise DatabaseError(text(template, where=where), WRITES_HINT)
    if campaign.columns:
        return text("{count} columns", count=len(columns))
    template = "{count} columns, no 'columns:' line: {names}"
    return text(template, count=len(columns), names=foreign(";".join(columns)))


PROBE = b"probe of mailing_pipeline --check; may be deleted\r\n"


def check_folder(drops: DropFolders, folder: PurePosixPath) -> Text:
    """Whatever a delivery asks of the server, with a probe under names that no dialer's pattern matches.

    With a staging folder all of it happens there: the dialer takes any name.
    """
    settings = drops.settings
    drops.check_folder(folder)
    names = [settings.sftp_temp_name.replace("{id}", secrets.token_hex(4)) for _ in range(2)]
    probe, renamed = ((settings.sftp_staging_dir or folder) / name for name in names)
    left = None  # one that may not be removed is said, not hidden
    try:
        drops.size(renamed)  # of a file that is not there
        drops.send(probe, [PROBE])
        drops.wait_until_whole(probe, len(PROBE))
        if settings.sftp_verify == "hash":
            drops.read_back(probe)
        drops.rename(probe, renamed)
    finally:
        for path in (probe, renamed):
            try:
                drops.clear(path)
            except DeliveryError as error:
                left, template = path, "{path} may stay on the server: {reason}"
                log.warning(text(template, path=path, reason=error.message))
    if left:
        return text("exists, can write, can rename, but not remove: {path} stays there", path=left)
    if settings.sftp_staging_dir:
        return text(
            "exists; SFTP_STAGING_DIR takes files and renames; the move into this folder was not tried"
        )
    return text("exists, can write, can rename")


def check(settings: Settings, files: QueryFiles, clock: Clock) -> list[Finding]:
    """Everything that a run needs, one by one; nothing is sent, and nothing stays behind."""
    stop = Stop(clock, settings.run_deadline_minutes)
    database, drops = Database(settings, stop), DropFolders(settings, stop)
    found = [Finding(text("settings"), text("ok"))]
    found += [*check_pc(settings.folder), *check_telling(settings), *check_files(files)]
    found.append(finding(text("ledger"), check_ledger, settings, clock))
    with contextlib.closing(database), contextlib.closing(drops), watchdog(stop, drops):
        several = files.campaigns[: settings.query_workers]
        login = finding(text("database login"), database.probe, several)
        found.append(login)
        for campaign in () if login.error else files.campaigns:
            what = text("query {file}", file=campaign.source)
            found.append(finding(what, check_query, database, campaign))
        found += [Finding(login.what, note, is_note=True) for note in database.notes]
        return found + check_sftp(drops, files.campaigns)


def check_ledger(settings: Settings, clock: Clock) -> Text | None:
    """Open it as a run does, and write into it what does not stay."""
    with contextlib.closing(open_ledger(settings, clock)) as ledger:
        refuse_unknown_mailings(settings.output, ledger, slot_of(clock.now()))
        return ledger.probe()


# In Windows' notation: everyone, users, authenticated, interactive, guests, anonymous, a domain's
# users.
ALLOWS_OTHERS = re.compile(r"\(A;[^)]*;(WD|BU|AU|IU|BG|AN|DU|S-1-5-21-[-\d]+-513)\)")


def check_pc(folder: Path) -> list[Finding]:
    """Whether the folder with passwords and customers' data is where others reach it: notes, for a run works there."""
    notes = []
    if is_open_to_others(folder):
        notes.append(
            text("other users of this PC may open it; README.md says how to keep it to this user")
        )
    if any(part.startswith("OneDrive") for part in folder.parts):
        notes.append(
            text("OneDrive uploads what is in it, customers' data too: move it out of there")
        )
    if is_on_network(folder):
        notes.append(text("it is on the network: move it to this PC's own disk"))
    return [Finding(text("folder {path}", path=folder), note, is_note=True) for note in notes]


def is_open_to_others(folder: Path) -> bool:
    """Whether somebody but this user, administrators and the system may read or change what is there."""
    if os.name != "nt":
        return bool(folder.stat().st_mode & 0o077)
    import ctypes

    advapi = ctypes.WinDLL("advapi32")  # type: ignore[attr-defined,unused-ignore]
    access, words = ctypes.c_void_p(), ctypes.c_wchar_p()
    file, rights = 1, 4  # SE_FILE_OBJECT, DACL_SECURITY_INFORMATION
    unused = [None] * 4
    advapi.GetNamedSecurityInfoW(str(folder), file, rights, *unused, ctypes.byref(access))
    convert = advapi.ConvertSecurityDescriptorToStringSecurityDescriptorW
    if access:
        convert(access, 1, rights, ctypes.byref(words), None)
    return bool(ALLOWS_OTHERS.search(words.value or ""))


def is_on_network(folder: Path) -> bool:
    """Whether Windows has it from another computer: a drive letter can hide that, not from `resolve`."""
    return folder.resolve().anchor.startswith("\\\\")


def check_telling(settings: Settings) -> Iterator[Finding]:
    """Whether ALERT_URLS and HEARTBEAT_URL can be used.

    Neither is shown, and nobody is told anything.
    """
    if urls := settings.alert_urls.split():
        import apprise

        numbers = [
            str(number)
            for number, url in enumerate(urls, 1)
            if apprise.Apprise.instantiate(url) is None
        ]
        told = text("apprise cannot use URL {numbers}: wrong kind, or incomplete", numbers=numbers)
        what = text("{key}", key="ALERT_URLS")
        yield Finding(what, told, is_note=True) if numbers else Finding(what, text("ok"))
    if url := settings.heartbeat_url:
        is_url = bool(re.match(r"(?i)https?://[^/\s]", url))
        told = text("ok") if is_url else text("it must begin with https://")
        yield Finding(text("{key}", key="HEARTBEAT_URL"), told, is_note=not is_url)


def check_files(files: QueryFiles) -> list[Finding]:
    """What is wrong with query files, and what lies there and is not read."""
    found = [Finding(text("queries"), text("{count} campaigns", count=len(files.campaigns)))]
    for broken in files.broken:
        error = PipelineError(in_a_row(broken.faults))
        found.append(Finding(text("query {file}", file=broken.source), error.message, error))
    return found + [Finding(text("queries"), note, is_note=True) for note in files.notes]


def check_host_key(drops: DropFolders) -> Text:
    """The host key that the server shows: the pinned one, if one is."""
    key = drops.host_key()
    told = text("the server shows {key}", key=key)
    if not drops.settings.sftp_host_key:
        template = "if the server's administrator confirms it, set SFTP_HOST_KEY={key}"
        raise SettingsFault(told, hint=text(template, key=key.partition(" ")[0]))
    return told


def check_sftp(drops: DropFolders, campaigns: Sequence[Campaign]) -> list[Finding]:
    """Host key, login and each drop folder."""
    found = [finding(text("SFTP host key"), check_host_key, drops)]
    if not found[0].error:
        found.append(finding(text("SFTP login"), drops.open))
    for campaign in () if found[-1].error else campaigns:
        what = text("folder {path}", path=campaign.folder)
        found.append(finding(what, check_folder, drops, campaign.folder))
    return found


def findings_code(findings: Sequence[Finding]) -> ExitCode:
    """The exit code that a run with the same faults would have."""
    return worst([line.error for line in findings if line.error])


def print_findings(findings: Sequence[Finding], console: Console, language: str) -> None:
    """The --check list."""
    for line in findings:
        mark, style = (text("NOTE"), "yellow") if line.is_note else (text("ok"), "green")
        if line.error:
            mark, style = text("FAULT"), "red"
        console.print(f"[{style}]{mark.told(language):5}[/]", end=" ")
        hint = line.hint.told(language) if line.hint else ""
        tell(console, text("{what}: {told}", what=line.what, told=line.told).told(language), hint)
    tell(console, closing_line(findings_code(findings)).told(language))


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The list as --json has it."""
    lines = []
    for line in findings:
        told = {"message": str(line.told), "hint": str(line.hint or "")}
        lines.append({"what": str(line.what), "ok": not line.error} | told)
    return code_json(findings_code(findings)) | {"checks": lines}


# --------------------------------------------------------------------------------------------------
# Status: today's grid and two weeks of trends, for the terminal, a browser and monitoring systems
# --------------------------------------------------------------------------------------------------

PAGE_DAYS = 14
PROBLEMS_SHOWN = 10
OVERDUE_MINUTES = 20  # a slot that nothing came of is overdue so long after its start
SLOT_WIDTH = 5  # of a slot on the terminal: four characters and a blank
WORKING = (State.DELIVERED, State.EMPTY)
NEED_A_PERSON = (State.HELD, State.FAILED, State.NOT_TAKEN, State.IN_DOUBT)
SERVED = (*WORKING, State.HELD)  # a held mailing's run took place: another would not help
Entry = Mailing | PastRun
Cell = tuple[State, Mailing | None]
NOT_DUE: Cell = (State.NOT_DUE, None)


@dataclass(frozen=True, slots=True)
class Past:
    """The ledger of the last PAGE_DAYS: mailings and runs, oldest first."""

    mailings: Sequence[Mailing] = ()
    runs: Sequence[PastRun] = ()

    @property
    def entries(self) -> list[Entry]:
        return [*self.mailings, *self.runs]


def recent(ledger: Ledger, now: datetime) -> Past:
    """What the ledger knows of the last PAGE_DAYS."""
    since = (now - timedelta(days=PAGE_DAYS)).isoformat()
    return Past(ledger.mailings("changed > ?", since), ledger.runs(since))


def state_in_grid(entry: Entry, now: datetime) -> State:
    """An entry's state in the grid. What a killed run left behind has failed after an hour."""
    if entry.state in (State.CLAIMED, State.EXPORTED):
        is_young = now - datetime.fromisoformat(entry.changed) < timedelta(hours=1)
        return State.RUNNING if is_young else State.FAILED
    if entry.state in MAY_BE_OUT:
        return State.IN_DOUBT
    return State.NOT_TAKEN if entry.state is State.DELIVERED and entry.is_trouble else entry.state


def whose(entry: Entry, language: str) -> str:
    """What a person reads before an entry."""
    return entry.campaign or text("the whole run").told(language)


@dataclass(frozen=True, slots=True)
class Trouble:
    """An entry that needed a person; is_over: its campaign has worked since."""

    entry: Entry
    state: State
    is_over: bool = False

    def told(self, language: str) -> Problem:
        again = f" ({text('works again').told(language)})" if self.is_over else ""
        what = f"{self.entry.slot[11:]} {self.state.told(language)}{again}"
        told = ": ".join(filter(None, (what, self.entry.message)))
        return whose(self.entry, language), told, self.entry.hint


def troubles_of(past: Past, now: datetime) -> list[Trouble]:
    """What needed a person, newest first.

    What came after what is told by the order of the entries: the clock may have been wrong.
    """
    troubles, working = [], set[str]()
    for entry in reversed(past.entries):
        state = state_in_grid(entry, now)
        if state in NEED_A_PERSON:
            troubles.append(Trouble(entry, state, entry.campaign in working))
        elif state in WORKING:
            working.add(entry.campaign)
    troubles.sort(key=lambda trouble: (trouble.entry.changed, trouble.entry.id), reverse=True)
    return troubles


def due_after(served: str, hours: Hours, now: datetime) -> list[str]:
    """The slots due after the one that was served, in the weeks before now and those to come."""
    days = (now.date() + timedelta(days=offset) for offset in range(-PAGE_DAYS, PAGE_DAYS + 1))
    slots = itertools.chain.from_iterable(hours.slots(day) for day in days)
    return [slot for slot in slots if slot > served]


def overdue_at(slot: str) -> datetime:
    """When a slot that nothing came of is overdue: local, without offset, as browsers read it."""
    return datetime.fromisoformat(slot) + timedelta(minutes=OVERDUE_MINUTES)


def telling_entries(entries: Iterable[Mailing]) -> dict[tuple[str, str], Mailing]:
    """The entry that tells of each campaign and slot.

    What reached the dialer comes before what may have, and that before the latest.
    """
    rank = {State.DELIVERED: 2} | dict.fromkeys(MAY_BE_OUT, 1)
    telling = sorted(entries, key=lambda entry: rank.get(entry.state, 0))
    return {(entry.campaign, entry.slot): entry for entry in telling}


@dataclass(frozen=True)
class DayGrid:
    """Today: campaigns down, slots across; only slots in which something was due, or happened."""

    past: Past
    campaigns: Sequence[Campaign]
    hours: Hours
    now: datetime

    @functools.cached_property
    def cells(self) -> dict[str, dict[str, Cell]]:
        """A cell for each campaign and slot of today.

        A past slot without an entry was missed only if the campaign has an earlier entry: what is
        new, or is run by another PC, has missed nothing. Outside the hours: only what was sent.
        """
        today, current = self.now.date(), slot_of(self.now)
        regular = {*self.hours.slots(today)}
        due = {item.name: regular & {*item.hours.slots(today)} for item in self.campaigns}
        telling = telling_entries(self.past.mailings)
        sent = [key for key in telling if key[1][:10] == current[:10]]
        first = {entry.campaign: entry.slot for entry in reversed(self.past.mailings)}

        def cell(name: str, slot: str) -> Cell:
            if entry := telling.get((name, slot)):
                return state_in_grid(entry, self.now), entry
            if slot not in due.get(name, ()) or slot < min(current, first.get(name, current)):
                return NOT_DUE
            return (State.MISSED if slot < current else State.COMING), None

        names = dict.fromkeys([*due, *(name for name, _ in sent)])
        slots = sorted(regular | {slot for _, slot in sent})
        slots = [slot for slot in slots if any(cell(name, slot) != NOT_DUE for name in names)]
        return {name: {slot: cell(name, slot) for slot in slots} for name in names}

    @property
    def slots(self) -> list[str]:
        return list(next(iter(self.cells.values()), ()))

    @property
    def tally(self) -> dict[State, int]:
        """How often each state occurs."""
        counts = Counter[State]()
        for cells in self.cells.values():
            counts.update(state for state, _ in cells.values())
        return counts

    @functools.cached_property
    def troubles(self) -> list[Trouble]:
        return troubles_of(self.past, self.now)

    @property
    def todays(self) -> dict[str, Trouble]:
        """Today's latest trouble of each campaign, and of whole runs."""
        today = f"{self.now:%Y-%m-%d}"
        todays = [trouble for trouble in self.troubles if trouble.entry.slot[:10] == today]
        return {trouble.entry.campaign: trouble for trouble in reversed(todays)}

    @property
    def attention(self) -> dict[str, State]:
        """The campaigns that need a person: today's trouble is not over."""
        latest = self.todays.items()
        return {name: trouble.state for name, trouble in latest if name and not trouble.is_over}

    @property
    def last_run(self) -> PastRun | None:
        return self.past.runs[-1] if self.past.runs else None

    @property
    def last_success(self) -> PastRun | None:
        return next((run for run in reversed(self.past.runs) if run.exit_code == ExitCode.OK), None)

    @functools.cached_property
    def due(self) -> str:
        """The first slot that nothing has come of yet, past or to come; '' where there is none."""
        served = [entry.slot for entry in self.past.mailings if entry.state in SERVED]
        served += [run.slot for run in self.past.runs if run.exit_code == ExitCode.OK]
        # of a clock that was ahead it says nothing
        served = [slot for slot in served if slot <= slot_of(self.now)]
        known = min((entry.slot for entry in self.past.entries), default="~")
        slots = due_after(max(served, default=""), self.hours, self.now)
        return next((slot for slot in slots if slot >= known), "")

    @property
    def overdue(self) -> str:
        """The slot that is due, if something should have come of it by now; else ''."""
        now = self.now.replace(tzinfo=None)
        return self.due if self.due and overdue_at(self.due) <= now else ""

    @property
    def look(self) -> State:
        """The banner's colour: green only if the last run ended well and nobody needs a person."""
        code = self.last_run.exit_code if self.last_run else ExitCode.PARTIAL
        if self.overdue or code not in (ExitCode.OK, ExitCode.PARTIAL):
            return State.FAILED
        return State.DELIVERED if code == ExitCode.OK and not self.attention else State.HELD


def status_json(grid: DayGrid) -> dict[str, Any]:
    """The grid for monitoring systems; its words are English in every language."""

    def told(state: State, entry: Mailing | None) -> dict[str, Any]:
        return (stored(entry) if entry else {}) | {"state": state}

    campaigns = {}
    for name, cells in grid.cells.items():
        campaigns[name] = {slot: told(*cell) for slot, cell in cells.items()}
    return {
        "now": grid.now.isoformat(timespec="seconds"),
        "last_run": grid.last_run and grid.last_run.changed,
        "last_successful_run": grid.last_success and grid.last_success.changed,
        "overdue_slot": grid.overdue or None,
        "attention": grid.attention,
        "tally": grid.tally,
        "campaigns": campaigns,
    }


def run_lines(grid: DayGrid) -> list[Text]:
    """When the last run was; if it did not end well, also how, and when the last good one was."""
    last, good = grid.last_run, grid.last_success
    lines = [text("No successful run yet")]
    if good:
        lines = [text("Last successful run: {time}", time=datetime.fromisoformat(good.changed))]
    if last and last is not good:
        outcome, time = last.message.partition("\n")[0], datetime.fromisoformat(last.changed)
        lines.insert(0, text("Last run: {time}: {outcome}", time=time, outcome=outcome))
    return lines


def overdue_line(grid: DayGrid) -> Text:
    """What is said once the slot that is due is overdue."""
    template = "The slot {slot} is overdue: nothing was delivered. Double-click run_pipeline.bat to run now"
    return text(template, slot=datetime.fromisoformat(grid.due))


def short_number(count: int, language: str) -> str:
    """4812 as 4.8k, 48120 as 48k, 1481200 as 1.5M: four characters at the most."""
    if count < 1000:
        return str(count)
    value, unit = (count / 1e3, "k") if count < 999_500 else (count / 1e6, "M")
    return written(f"{value:.1f}" if value < 9.95 else f"{value:.0f}", language) + unit


def print_status(grid: DayGrid, console: Console, language: str) -> None:
    """The grid, what its letters mean, how the last runs went, and the reason of each trouble."""
    print_grid(grid, console, language)
    legend = []
    for state, count in grid.tally.items():
        legend.append(f"{state.letter} {state.told(language)} {count}")
    console.print("\n" + "   ".join(legend), markup=False, highlight=False)
    for line in run_lines(grid):
        tell(console, line.told(language))
    if grid.overdue:
        tell(console, overdue_line(grid).told(language), style="bold red")
    if grid.todays:
        tell(console, "")
        print_problems(console, [trouble.told(language) for trouble in grid.todays.values()])


def print_grid(grid: DayGrid, console: Console, language: str) -> None:
    """Today's grid; slots that do not fit beside each other stand below each other."""
    from rich.text import Text as Styled

    width = max(map(len, grid.cells), default=0)
    most = max(1, (console.width - width) // SLOT_WIDTH)
    for start in range(0, len(grid.slots), most):
        slots = grid.slots[start : start + most]
        heads = [f"{slot[11:13]:>{SLOT_WIDTH}}" for slot in slots]
        tell(console, f"{f'{grid.now:%d/%m}':<{width}}{''.join(heads)}")
        for name, cells in grid.cells.items():
            line = Styled(f"{name:<{width}}")
            for state, entry in map(cells.__getitem__, slots):
                told = state.letter
                if entry and state is State.DELIVERED:
                    told = short_number(entry.rows, language)
                line.append(f"{told:>{SLOT_WIDTH}}", state.style)
            console.print(line, soft_wrap=True)
    if not grid.slots:
        tell(console, text("Nothing is due today").told(language))


# light-dark() and color-mix(): where an old browser lacks them, the page is plain but whole.
PAGE_STYLE = """
:root{color-scheme:light dark;--bg:light-dark(#fff,#14171a);--text:light-dark(#1b1f24,#e4e8ec);
 --soft:light-dark(#57606a,#a3abb5);--line:light-dark(#d0d7de,#3a4149)}
*{box-sizing:border-box}ul{list-style:none;padding:0}small{font-size:.8rem}.soft{color:var(--soft)}p{margin:.3rem 0}
body{max-width:84rem;margin:auto;padding:1rem;background:var(--bg);color:var(--text);overflow-wrap:anywhere;
 font:15px/1.45 system-ui,sans-serif}
h1,h2{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .5rem}
#run{border:1px solid;border-left-width:.4rem;border-radius:.4rem;padding:.6rem .8rem;margin:.6rem 0;font-weight:600}
.box{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem}
table{border-spacing:0;width:100%;font-size:.85rem;line-height:1.25;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .4rem;border:solid var(--line);border-width:0 0 1px 1px;text-align:center;white-space:nowrap}
tr:last-child>*{border-bottom:0}thead th{border-bottom:1px solid var(--line)!important}
th:first-child{position:sticky;left:0;border-left:0;background:var(--bg);text-align:left;white-space:normal;
 min-width:clamp(6.5rem,30vw,10.5rem)}
.signs{display:flex;flex-wrap:wrap;gap:.4rem}.chip{padding:.05rem .5rem;border-radius:1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.6rem}
.cards li,.problems li{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .7rem}
.problems li{margin:.5rem 0}.problems p{white-space:pre-line}
svg{display:block;width:100%;height:2.6rem;border-bottom:1px solid var(--line)}
path{vector-effect:non-scaling-stroke;stroke:currentColor;stroke-width:1.2}
#run.HELD{border-color:light-dark(#c98500,#f5d67b)}
td,.chip,#run{background:color-mix(in srgb,currentColor 13%,var(--bg))}
td.COMING,td.NOT_DUE{background:none}
.COMING,.NOT_DUE{color:var(--soft)}
.DELIVERED{color:light-dark(#14532d,#a5e0b2)}
.EMPTY{color:light-dark(#0b5563,#a0dbe6)}
.HELD{color:light-dark(#6b4500,#f5d67b)}
.FAILED,.MISSED{color:light-dark(#a10d0d,#ffb0b0)}
.NOT_TAKEN{color:light-dark(#8a3a00,#ffc08a)}
.IN_DOUBT{color:light-dark(#6a1bb0,#dcbcff)}
.RUNNING{color:light-dark(#0b4fa0,#a9d0ff)}
"""

# The page is static: the reader's clock tells how old it is, and whether a slot is overdue.
PAGE_SCRIPT = """
const get = id => document.getElementById(id), {run, due} = get("run").dataset;
const age = (Date.now() - new Date(run)) / 6e4;
const unit = age < 90 ? "minute" : age < 2880 ? "hour" : "day";
const ago = Math.round(-age / {minute: 1, hour: 60, day: 1440}[unit]);
const words = new Intl.RelativeTimeFormat(document.documentElement.lang);
get("ago").textContent = run && ` (${words.format(ago, unit)})`;
get("late").hidden = !(Date.now() >= new Date(due));
if (!get("late").hidden) get("run").className = "FAILED";
setTimeout(() => location.reload(), 3e5);
"""


def html(told: Text, language: str) -> str:
    """A text, as a page has it."""
    return escape(told.told(language))


def status_page(grid: DayGrid, language: str) -> str:
    """One self-contained HTML page. Of the mailings it holds counts and names."""
    title, today = html(text("Mailings"), language), html(text("Today"), language)
    tally = [chip(state, language, f" {count}") for state, count in grid.tally.items()]
    cards = [trend_card(name, grid.past.mailings, grid.now, language) for name in grid.cells]
    problems = [page_problem(trouble, language) for trouble in grid.troubles[:PROBLEMS_SHOWN]]
    trend, latest = text("Contacts delivered in two weeks"), text("Latest problems")
    generated = html(text("Generated {time}", time=grid.now), language)
    none = f"<li>{html(text('none in two weeks'), language)}"
    return f"""<!DOCTYPE html>
<html lang="{"pt-BR" if language == "pt" else "en"}"><head><meta charset="utf-8">
<title>{title}</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>{PAGE_STYLE}</style></head><body><header><h1>{title}</h1>
{banner(grid, language)}</header><main>
<h2>{today}, {grid.now:%d/%m}</h2>
<ul class="signs">{"".join(tally)}</ul>
{page_table(grid, language, today)}
<h2>{html(trend, language)}</h2><ul class="cards">{"".join(cards)}</ul>
<h2>{html(latest, language)}</h2>
<ul class="problems">{"".join(problems) or none}</ul>
</main><p class="soft">{generated} · {PROGRAM} {__version__}</p>
<script>{PAGE_SCRIPT}</script></body></html>
"""


def banner(grid: DayGrid, language: str) -> str:
    """How the last run went, who needs attention, and what is overdue by the reader's clock."""
    told = run_lines(grid)
    if grid.attention:
        names = [f"{name} ({state.told(language)})" for name, state in grid.attention.items()]
        told.append(text("Need attention: {campaigns}", campaigns=names))
    lines = [html(line, language) for line in told]
    lines[0] += '<span id="ago"></span>'
    run = grid.last_run.changed if grid.last_run else ""
    due = overdue_at(grid.due).isoformat() if grid.due else ""
    late = html(overdue_line(grid), language) if grid.due else ""
    lines.append(f'<span id="late"{"" if grid.overdue else " hidden"}>{late}</span></p>')
    opening = f'<p id="run" class="{grid.look.name}" data-run="{run}" data-due="{due}">'
    return opening + "<br>".join(lines)


def chip(state: State, language: str, more: str = "") -> str:
    """A state as an item of a list."""
    return f'<li><b class="chip {state.name}">{html(text(state), language)}{more}</b>'


def page_table(grid: DayGrid, language: str, label: str) -> str:
    """Today's grid."""
    if not grid.slots:
        return f"<p>{html(text('Nothing is due today'), language)}</p>"
    lines = [f'<tr><th scope="col">{html(text("campaign"), language)}']
    lines += [f'<th scope="col">{slot[11:]}' for slot in grid.slots]
    for name, cells in grid.cells.items():
        breaking = escape(name).replace("_", "_<wbr>")
        lines.append(f'\n<tr><th scope="row">{breaking}')
        lines += [page_cell(*cell, language) for cell in cells.values()]
    box = f'<div class="box" tabindex="0" role="region" aria-label="{label}">'
    return f"{box}<table>{''.join(lines)}</table></div>"


def page_cell(state: State, entry: Mailing | None, language: str) -> str:
    """A cell of the grid: its state, or its rows with the time or the state below."""
    word, time = html(text(state), language), ""
    if entry:
        time = f"{datetime.fromisoformat(entry.changed):%H:%M}"
    told = {State.COMING: "", State.NOT_DUE: "–"}.get(state, word)
    if entry and entry.state is State.DELIVERED:
        below = time if state is State.DELIVERED else word
        told = f"<b>{shown(entry.rows, language)}</b><br><small>{below}</small>"
    return f'<td class="{state.name}" title="{word} {time}">{told}'


def trend_card(name: str, mailings: Iterable[Mailing], now: datetime, language: str) -> str:
    """What a campaign delivered in two weeks: a bar for each slot, as high as its rows."""
    own = [entry for entry in mailings if entry.campaign == name]
    rows = {entry.slot: entry.rows for entry in own if entry.state is State.DELIVERED}
    first = datetime.fromisoformat(f"{now:%Y-%m-%d}") - timedelta(days=PAGE_DAYS)
    figures, bars = text("nothing delivered in two weeks"), ""
    if rows:
        latest, median = list(rows.values())[-1], round(statistics.median(rows.values()))
        figures = text("latest {latest}, median {median}", latest=latest, median=median)
    for slot, count in rows.items():
        hour = (datetime.fromisoformat(slot) - first) // timedelta(hours=1)
        bars += f"M{hour} 40v-{round(38 * count / max(1, *rows.values()))}"
    return (
        f'<li><b>{escape(name)}</b><br><small class="soft">{html(figures, language)}</small>'
        f'<svg aria-hidden="true" preserveAspectRatio="none" viewBox="0 0 {(PAGE_DAYS + 1) * 24} 40">'
        f'<path class="DELIVERED" d="{bars}"/></svg>\n'
    )


def page_problem(trouble: Trouble, language: str) -> str:
    """What needed a person, and what to do."""
    entry = trouble.entry
    time = shown(datetime.fromisoformat(entry.changed), language)
    again = html(text("works again"), language) if trouble.is_over else ""
    hint = f"<p>→ {escape(entry.hint)}</p>" if entry.hint else ""
    return (
        f"{chip(trouble.state, language)} <b>{escape(whose(entry, language))}</b> "
        f'<small class="soft">{time} {again}</small><p>{escape(entry.message)}</p>{hint}'
    )


# --------------------------------------------------------------------------------------------------
# Aftermath: page, alerts and heartbeat, for those who are not looking. Nothing here can fail a run
# --------------------------------------------------------------------------------------------------

ALERT_EVERY = 4  # a trouble is told when it begins, then every so many runs, then when it is over
TELL_TIMEOUT_S = 20


def is_ours(entry: Entry) -> bool:
    """Whether this PC brought it, or nobody has yet."""
    return entry.pc in ("", PC)


def before_run(known: Past, mailings: Iterable[Mailing], start: datetime) -> Past:
    """What was there before a run that began at start; of other PCs, what was there before its own entries."""
    own = {mailing.campaign: mailing.id for mailing in mailings if mailing.id}
    moment = start.isoformat()

    def is_earlier(entry: Mailing) -> bool:
        if entry.id >= own.get(entry.campaign, entry.id + 1):
            return False
        return entry.changed <= moment or not is_ours(entry)

    return Past(list(filter(is_earlier, known.mailings)), known.runs)


def alert_lines(
    this: Past, before: Past, now: datetime, language: str
) -> tuple[list[str], list[str]]:
    """What is told after a run: trouble that begins or goes on, and what works again."""

    def streak(entry: Entry) -> int:
        """For how many entries in a row its campaign has been in trouble already."""
        earlier = [past for past in before.entries if past.campaign == entry.campaign]
        return len(list(itertools.takewhile(lambda past: past.is_trouble, reversed(earlier))))

    troubled, working = [], []
    for trouble in reversed(troubles_of(this, now)):
        if streak(trouble.entry) % ALERT_EVERY == 0:
            who, what, hint = trouble.told(language)
            troubled += [f"{who}: {what}", *([f"    -> {hint}"] if hint else [])]
    for entry in this.entries:
        if state_in_grid(entry, now) in WORKING and streak(entry):
            working.append(f"{whose(entry, language)}: {text('works again').told(language)}")
    return troubled, working


def missed_slots(before: Past, hours: Hours, now: datetime) -> list[str]:
    """The slots since the last run in which one was due: the PC was off, or the task disabled."""
    due = due_after(before.runs[-1].slot, hours, now) if before.runs else []
    return [f"{datetime.fromisoformat(slot):%d/%m %H:%M}" for slot in due if slot < slot_of(now)]


def failure(action: Callable[[], object]) -> str:
    """Why an action failed, or ''; in TELL_TIMEOUT_S, whatever the other side trickles."""
    why = [str(TIMED_OUT)]

    def act() -> None:
        try:
            why[0] = "" if action() else "refused"
        except Exception as error:
            why[0] = type(error).__name__  # its text may quote a URL

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(TELL_TIMEOUT_S)
    return why[0]


def send_alert(urls: str, title: str, body: str) -> None:
    """One message in plain text to every apprise URL; no URL is ever logged."""

    def send() -> object:
        import apprise

        plain = apprise.NotifyFormat.TEXT
        return apprise.Apprise(urls.split()).notify(title=title, body=body, body_format=plain)

    if why := failure(send):
        template = "the alert could not be sent ({reason}): check ALERT_URLS"
        log.error(text(template, reason=why))


def fetch_heartbeat(url: str) -> None:
    """Tell a monitor that this run ended well."""
    import urllib.request

    if why := failure(lambda: urllib.request.urlopen(url, timeout=TELL_TIMEOUT_S).close() is None):
        log.warning(text("HEARTBEAT_URL could not be fetched: {reason}", reason=why))


def aftermath(
    settings: Settings, files: QueryFiles, end: Report | PipelineError, clock: Clock
) -> None:
    """After a run, however it ended: its entry in the ledger, the page, alerts, the heartbeat."""
    now, before, language = clock.now(), Past(), settings.language
    start, mailings = now, tuple[Mailing, ...]()
    if isinstance(end, Report):
        start, mailings = end.start, end.mailings
        told = {"message": end.totals.told(language), "hint": ""}
    else:
        told = as_told(end, language)
    run = PastRun(
        id=0,
        slot=slot_of(start),
        exit_code=end.exit_code,
        started=isinstance(end, Report),
        pc=PC,
        changed=now.isoformat(timespec="milliseconds"),
        **told,
    )
    try:
        with contextlib.closing(open_ledger(settings, clock)) as ledger:
            known = recent(ledger, now)
            before = before_run(known, mailings, start)
            ledger.note_run(run)
        past = Past(known.mailings, [*known.runs, run])
        grid = DayGrid(past, files.campaigns, settings.hours, now)
        with whole_file(settings.output / "status.html") as page:
            page.write(status_page(grid, language).encode())
    except PipelineError as error:
        log.warning(text("the status page was not written: {reason}", reason=error.message))
    except Exception as error:
        bug(error)
    # what another brought, that one tells
    alert(settings, Past(list(filter(is_ours, mailings)), (run,)), before, now)
    if settings.heartbeat_url and end.exit_code == ExitCode.OK:
        fetch_heartbeat(settings.heartbeat_url)


def alert(settings: Settings, this: Past, before: Past, now: datetime) -> None:
    """Tell of trouble that begins, goes on or is over; before: what was known before this run."""
    language = settings.language
    # a PC's own runs' trouble
    ours = Past(before.mailings, list(filter(is_ours, before.runs)))
    troubled, working = alert_lines(this, ours, now, language)
    if missed := missed_slots(before, settings.hours, now):
        no_run = text("no run in the slots {slots}", slots=missed)
        troubled.append(no_run.told(language))
        log.warning(no_run)
    if not settings.alert_urls or not (troubled or working):
        return
    title = text("mailings need a person") if troubled else text("mailings work again")
    if troubled:
        calming = text("the next hourly run tries again by itself; nothing is ever sent twice")
        troubled.append(calming.told(language))
    body = "\n".join(troubled + working)
    send_alert(settings.alert_urls, f"{PROGRAM}: {title.told(language)}", body)


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def config_path(named: str | None) -> Path:
    """The settings: what --config names, or config.env beside the program."""
    return Path(named or Path(__file__).with_name("config.env")).absolute()


def early_language(argv: Sequence[str] | None, environ: Mapping[str, str]) -> str:
    """The operator's language before the settings are read: for --help and early faults."""
    if (wanted := environ.get("LANGUAGE", "")) in LANGUAGES:
        return wanted
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", nargs="?")
    told = ""
    with contextlib.suppress(OSError):
        told = config_path(early.parse_known_args(argv)[0].config).read_text("utf-8-sig", "replace")
    found = re.search(rf"(?mi)^\s*LANGUAGE\s*=\s*['\"]?({'|'.join(LANGUAGES)})\b", told)
    return found[1].lower() if found else "en"


def parser(language: str = "en") -> argparse.ArgumentParser:
    """The options, in the words of --help and README."""

    def say(template: str) -> str:
        return text(template).told(language)

    words = ARGPARSE_PORTUGUESE if language == "pt" else {}
    # argparse asks gettext, by this name.
    argparse._ = lambda message: words.get(message, message)  # type: ignore[attr-defined]
    codes = "\n".join(f"  {code.value}  {code.meaning.told(language)}" for code in ExitCode)
    made = argparse.ArgumentParser(
        prog=f"{PROGRAM}.py",
        description=say(
            "Run queries/*.sql in PostgreSQL and deliver each result as a CSV to its campaign's SFTP folder."
        ),
        epilog=f"{say('exit codes:')}\n{codes}",
        formatter_class=functools.partial(
            argparse.RawDescriptionHelpFormatter, max_help_position=20, width=100
        ),
        allow_abbrev=False,
    )
    one_of = made.add_mutually_exclusive_group()
    for group, option, meaning in (
        (one_of, "--dry-run", say("export and judge everything, send nothing (output/dry-run)")),
        (one_of, "--check", say("test settings, queries, logins and folders; send nothing")),
        (one_of, "--status", say("show what was delivered today")),
        (
            made,
            "--scheduled",
            say("started by the Task Scheduler: plain output, quiet outside the hours"),
        ),
        (made, "--only", say("only this campaign (may be repeated)")),
        (made, "--resend", say("also what this slot has delivered already, under a new name")),
        (made, "--ignore-hours", say("run by hand outside the operating hours")),
        (made, "--config", say("the settings (default: config.env beside the program)")),
        (made, "--json", say("the report as one JSON object on stdout")),
        (made, "--version", say("show program's version number and exit")),
    ):
        group.add_argument(option, help=meaning, **OPTIONS.get(option, {"action": "store_true"}))
    return made


# The options that are more than a switch.
OPTIONS: dict[str, dict[str, Any]] = {
    "--only": {"action": "append", "default": [], "metavar": "CAMPAIGN"},
    "--config": {"metavar": "FILE"},
    "--version": {"action": "version", "version": f"{PROGRAM} {__version__}"},
}


def stamp(moment: datetime) -> str:
    """2026-12-22 12:00:05.123-03:00"""
    return moment.isoformat(" ", "milliseconds")


class LineFormatter(logging.Formatter):
    """Local time with its offset, and one line per fact."""

    def __init__(self, language: str) -> None:
        self.language = language

    def format(self, record: logging.LogRecord) -> str:
        told = record.getMessage()
        if isinstance(record.msg, Text):
            told = record.msg.told(self.language)
        time = stamp(datetime.fromtimestamp(record.created).astimezone())
        return f"{time} {record.levelname} {told}"


LOG_LOCK_AT = 1 << 30  # far behind the last line: nobody is kept from reading
LOG_LOCK_S = 1


class DayLog(logging.FileHandler):
    """The log of a day, to which two runs may write at once.

    On Windows appending is two steps, seeking the end and writing: a lock keeps others out meanwhile.
    """

    def emit(self, record: logging.LogRecord) -> None:
        is_locked = self._lock_byte("LK_NBLCK")
        super().emit(record)
        if is_locked:
            self._lock_byte("LK_UNLCK")

    def _lock_byte(self, mode: str) -> bool:
        """Lock a byte against other processes, or let go of it; False if they hold it, and where there is no need."""
        if sys.platform != "win32" or not self.stream:
            return False
        import msvcrt

        file, until_s = self.stream.fileno(), time.monotonic() + LOG_LOCK_S
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                os.lseek(file, LOG_LOCK_AT, os.SEEK_SET)
                msvcrt.locking(file, getattr(msvcrt, mode), 1)
                return True
            time.sleep(0.001)
        return False


def open_log(settings: Settings, clock: Clock, *, console: bool) -> None:
    """Log to one file a day, by name: renaming a log that is open elsewhere fails on Windows.

    Raises SettingsFault.
    """
    now = clock.now()
    path = settings.local(settings.log_dir) / f"{PROGRAM}_{now:%Y-%m-%d}.log"
    started = f"{stamp(now)} INFO {PROGRAM} {__version__} started\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(started)  # a full disk shows here; logging would swallow it
        log.handlers = [DayLog(path, encoding="utf-8")]
    except OSError as error:
        reason = foreign(error.strerror)
        fault = text(
            "{path}: cannot be written: {reason}; make LOG_DIR writable", path=path, reason=reason
        )
        raise SettingsFault(fault) from None
    if console and sys.stderr:
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.handlers[1].setFormatter(LineFormatter(settings.language))
    log.handlers[0].setFormatter(LineFormatter("en"))
    log.propagate = False
    log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full log disk must not stop a delivery half-way


def make_console(options: Options) -> Console | None:
    """Standard output for a person; plain text where nobody looks; None if it is not for a person."""
    from rich.console import Console

    class PatientConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program with 1
            raise BrokenPipeError

    if options.json or not sys.stdout:
        return None
    if options.scheduled or not sys.stdout.isatty():
        return PatientConsole(force_terminal=False, no_color=True, width=120)
    return PatientConsole()


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """What cannot be shown (a full disk behind stdout, a reader that went away) changes nothing."""
    try:
        yield
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        log.warning(text("not everything could be shown: standard output cannot be written"))


def show(
    outcome: T,
    printed: Callable[[T, Console, str], None],
    as_json: Callable[[T], dict[str, Any]],
    console: Console | None,
    language: str,
) -> None:
    """An outcome: on the console, or as one JSON object in ASCII, which every reader takes."""
    with showing():
        if console:
            printed(outcome, console, language)
        elif sys.stdout:
            print(json.dumps(as_json(outcome)))


def missing_packages() -> list[str]:
    """The packages that this Python lacks, by the names that pip knows."""
    modules = ["psycopg", "dotenv", "paramiko", "pandas", "pyarrow", "rich", "apprise"]
    packages = {"psycopg": "psycopg[binary]", "dotenv": "python-dotenv"}
    missing = (module for module in modules if importlib.util.find_spec(module) is None)
    return [packages.get(module, module) for module in missing]


def load(options: Options, environ: Mapping[str, str]) -> tuple[Settings, QueryFiles]:
    """Settings and query files. Raises SettingsFault with every fault of both."""
    if missing := missing_packages():
        message = text(
            "this Python ({path}) lacks the packages {names}", path=sys.executable, names=missing
        )
        cure = text("start run_pipeline.bat, or: python -m pip install -r requirements.txt")
        raise SettingsFault(message, hint=cure)
    path, sends = config_path(options.config), not (options.dry_run or options.status)
    faults: list[Text] = []
    try:
        settings = load_settings(path, environ, sends=sends, knows_host=not options.check)
    except SettingsFault as error:
        if error.settings is None:
            raise
        settings, faults = error.settings, error.lines
    try:
        files = load_campaigns(settings.local(settings.queries_dir), settings)
        choose(files, options.only)
    except SettingsFault as error:
        raise type(error)(*faults, *error.lines, settings=settings) from None
    if faults:
        broken = itertools.chain.from_iterable(query.told for query in files.broken)
        raise SettingsFault(*faults, *broken, settings=settings)
    return settings, files


def show_status(options: Options, settings: Settings, files: QueryFiles, clock: Clock) -> ExitCode:
    """--status."""
    now, past = clock.now(), Past()
    if settings.has_ledger:
        with contextlib.closing(open_ledger(settings, clock, looks=True)) as ledger:
            past = recent(ledger, now)
    grid = DayGrid(past, files.campaigns, settings.hours, now)
    show(grid, print_status, status_json, make_console(options), settings.language)
    return ExitCode.OK


def show_check(options: Options, settings: Settings, files: QueryFiles, clock: Clock) -> ExitCode:
    """--check."""
    findings = check(settings, choose(files, options.only), clock)
    show(findings, print_findings, findings_json, make_console(options), settings.language)
    return findings_code(findings)


def deliver(options: Options, settings: Settings, files: QueryFiles, clock: Clock) -> ExitCode:
    """A run, or its rehearsal. Raises PipelineError."""
    reason = settings.hours.why_not(clock.now())
    if reason and not (options.ignore_hours or options.dry_run):
        if options.scheduled:
            log.info(text("outside the hours, nothing to do: {reason}", reason=reason))
            return ExitCode.OK
        hint = text("wait, or use --ignore-hours if you really want to start calls now")
        raise OutsideHours(reason, hint)
    for note in files.notes:
        log.info(note)
    console = make_console(options)
    report = (rehearse if options.dry_run else run)(settings, files, options, clock, console)
    template = "slot {slot}: {totals} in {seconds} s; {outcome}"
    slot, seconds = datetime.fromisoformat(report.slot), f"{report.seconds:.1f}"
    outcome = closing_line(report.exit_code)
    log.info(text(template, slot=slot, totals=report.totals, seconds=seconds, outcome=outcome))
    if not options.dry_run:
        aftermath(settings, files, report, clock)
    show(report, print_report, Report.as_json, console, settings.language)
    return report.exit_code


def act(options: Options, environ: Mapping[str, str], clock: Clock, language: str) -> ExitCode:
    """The one thing that the options ask for; an error that stops all of it is told here.

    language: the operator's, as far as it is known before the settings are.
    """
    settings: Settings | None = None
    files = QueryFiles()
    try:
        settings, files = load(options, environ)
        if options.status:
            return show_status(options, settings, files, clock)
        open_log(settings, clock, console=not sys.stdout or not sys.stdout.isatty())
        return (show_check if options.check else deliver)(options, settings, files, clock)
    except PipelineError as found:
        fault = found
    except KeyboardInterrupt:
        fault = Stopped(BY_OPERATOR, START_AGAIN)
    except Exception as found:
        fault = bug(found)
    settings = settings or fault.settings
    looks = options.check or options.status or options.dry_run
    by_hand = isinstance(fault, (Busy, OutsideHours, UsageFault)) and not options.scheduled
    if settings and not (looks or by_hand):
        if not log.handlers:
            with contextlib.suppress(SettingsFault):
                open_log(settings, clock, console=False)
        with contextlib.suppress(KeyboardInterrupt):
            aftermath(settings, files, fault, clock)
    tell_fault(fault, settings.language if settings else language, options.json)
    return fault.exit_code


def tell_fault(fault: PipelineError, language: str, as_json: bool) -> None:
    """What stopped everything: in the log in English, on stderr in the operator's language."""
    lines = [*fault.lines, closing_line(fault.exit_code)]
    for line in lines if log.handlers else ():
        log.error(line)
    is_told = any(getattr(handler, "stream", None) is sys.stderr for handler in log.handlers)
    with showing():
        if sys.stderr and not is_told:
            print("\n".join(line.told(language) for line in lines), file=sys.stderr)
        if sys.stdout and as_json:
            told = as_told(fault, "en")
            outcome = {"error": told["message"], "hint": told["hint"]}
            print(json.dumps(code_json(fault.exit_code) | outcome))


def hasten() -> None:
    """Set this Python to short runs of many threads; timed or profiled on workload a of tests/benchmark.py."""
    # A worker that has its server's answer waits up to 5 ms for the interpreter: 5 to 10% of a run.
    sys.setswitchinterval(0.0005)
    # What libraries make as they are imported stays: looking through it for garbage is 3% of a run.
    gc.set_threshold(20_000, 20, 20)
    # 60 ms of each start, for a part of ssh_config that is not read here; paramiko does without it.
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> int:
    """Run the program; returns its exit code.

    Nothing is raised but argparse's SystemExit (code 2 for wrong usage).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a cp1252 console must not stop a run
    for library in ("paramiko", "apprise"):  # what they log may quote; what matters they return
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    hasten()
    environ = os.environ if environ is None else environ
    language = early_language(argv, environ)
    options = Options(**vars(parser(language).parse_args(argv)))
    return act(options, environ, clock or Clock(), language)


CLOSE_GRACE_S = 4.5


def interrupt(*_: object) -> None:
    """Ended from outside: as with Ctrl+C."""
    raise KeyboardInterrupt


def heed_closing_window() -> object:
    """On Windows, end the run in order when its window is closed; keep what it returns until then.

    Windows ends a process 5 s after the close (learn.microsoft.com, HandlerRoutine), or at once
    when the handler returns, as the C runtime's does after raising SIGBREAK: ours waits for the
    run.
    """
    import _thread
    import ctypes

    def closing(event: int) -> int:
        if event == 0:  # Ctrl+C, which Python handles; 1 break, 2 close, 5 log-off, 6 shutdown
            return 0
        _thread.interrupt_main()
        time.sleep(CLOSE_GRACE_S)
        return 1

    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)(closing)  # type: ignore[attr-defined,unused-ignore]
    ctypes.WinDLL("kernel32").SetConsoleCtrlHandler(handler, 1)  # type: ignore[attr-defined,unused-ignore]
    return handler


def end(code: int) -> NoReturn:
    """End the process at once: an interpreter that takes itself apart first needs another 80 ms."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # `showing` has said so
            if stream:
                stream.flush()
    os._exit(code)


# --------------------------------------------------------------------------------------------------
# Portuguese: what an operator meets, template by template
# --------------------------------------------------------------------------------------------------

ARGPARSE_PORTUGUESE = {
    "usage: ": "uso: ",
    "options": "opções",
    "show this help message and exit": "mostra esta ajuda e termina",
    "%(prog)s: error: %(message)s\n": "%(prog)s: erro: %(message)s\n",
    "argument %(argument_name)s: %(message)s": "opção %(argument_name)s: %(message)s",
    "unrecognized arguments: %s": "opções desconhecidas: %s",
    "expected one argument": "falta o valor",
    "not allowed with argument %s": "não pode ser usada junto com %s",
    "ignored explicit argument %r": "não aceita um valor",
}

PORTUGUESE: dict[str, str] = {
    "{first}; {then}": "{first}; {then}",
    "{count} contact": "{count} contato",
    "{count} contacts": "{count} contatos",
    "everything due was delivered, already delivered, or empty where empty is allowed": (
        "tudo o que estava previsto foi entregue, já estava entregue ou veio vazio onde isso é "
        "permitido"
    ),
    "a bug (traceback in the log)": "um erro do programa (detalhes no log)",
    "settings, ledger or usage wrong, or no usable query file: nothing was started": (
        "configuração, registro de entregas ou modo de uso com erro, ou nenhuma consulta "
        "utilizável: nada foi iniciado"
    ),
    "another run is active": "outra execução está em andamento",
    "some campaigns failed or were held": "algumas campanhas falharam ou foram retidas",
    "database: nothing could be exported": "banco de dados: nada pôde ser exportado",
    "SFTP: nothing could be delivered": "SFTP: nada pôde ser entregue",
    "manual run outside the hours": "execução manual fora do horário",
    "    -> {hint}": "    -> {hint}",
    "internal error ({kind})": "erro interno ({kind})",
    "send the log of today to the developer": "envie o log de hoje ao desenvolvedor",
    "mon": "segunda",
    "tue": "terça",
    "wed": "quarta",
    "thu": "quinta",
    "fri": "sexta",
    "sat": "sábado",
    "sun": "domingo",
    "{day} is a holiday (HOLIDAYS)": "{day} é feriado (HOLIDAYS)",
    "has hours for {days}, which {key} leaves out": (
        "tem horário para {days}, fora dos dias de {key}"
    ),
    "it is {day} {time}: runs {hours} ({key})": (
        "hoje é {day}, {time}: o horário é {hours} ({key})"
    ),
    "the run's deadline of {minutes} minutes has passed": (
        "o prazo de {minutes} minutos da execução se esgotou"
    ),
    "must be a path with / such as /entrada/cobranca_30d, with neither .. nor backslash": (
        "deve ser um caminho com / como /entrada/cobranca_30d, sem .. e sem barra invertida"
    ),
    "must give a legal file name that ends in .csv or .txt, such as {example}": (
        "deve resultar em um nome de arquivo válido que termine em .csv ou .txt, como {example}"
    ),
    "must hold {{campaign}} or the hour (%H), so that two mailings do not share a name": (
        "deve conter {{campaign}} ou a hora (%H), para que dois mailings não tenham o mesmo nome"
    ),
    "must be a legal file name with {{id}} and without .csv, such as .part-{{id}}": (
        "deve ser um nome de arquivo válido, com {{id}} e sem .csv no final, como .part-{{id}}"
    ),
    "a quote inside the value ends it, or the last is missing; for one write \\'": (
        "uma aspa dentro do valor o encerra, ou falta a última; para uma escreva \\'"
    ),
    "these quotes change what follows a backslash; use others or none": (
        "estas aspas alteram o que vem depois da barra invertida; use outras ou nenhuma"
    ),
    "what follows ' #' is a comment; put the value between single quotes": (
        "o que vem depois de ' #' é comentário; ponha o valor entre aspas simples"
    ),
    "remove it; the program opens and ends the transaction itself": (
        "remova; o próprio programa abre e encerra a transação"
    ),
    "the last statement must return the mailing's rows (SELECT …)": (
        "o último comando deve retornar as linhas do mailing (SELECT …)"
    ),
    "it looks like a copy of {original}; delete it, or give it a name of its own": (
        "parece uma cópia de {original}; apague, ou dê um nome próprio"
    ),
    "{folder}: no query file that can be used; one for each campaign (QUERIES_DIR)": (
        "{folder}: nenhum arquivo de consulta que possa ser usado; ponha um por campanha "
        "(QUERIES_DIR)"
    ),
    "--only {unknown}: no such campaign; known: {known}": (
        "--only {unknown}: campanha inexistente; as conhecidas são: {known}"
    ),
    "must be a whole number from {low} to {high}": ("deve ser um número inteiro de {low} a {high}"),
    "must be days from Monday to Sunday, such as mon-sat or mon,wed,fri": (
        "deve ter dias de segunda a domingo, como mon-sat ou mon,wed,fri (em inglês)"
    ),
    "must be hours such as 08:00-20:00 or 08:00-20:00, sat 08:00-13:00; no day twice": (
        "deve ser um horário como 08:00-20:00 ou 08:00-20:00, sat 08:00-13:00 (em inglês); "
        "nenhum dia duas vezes"
    ),
    "must look like SHA256: and 43 characters; --check prints the one it sees": (
        "deve ser SHA256: e mais 43 caracteres; --check mostra a que o servidor apresenta"
    ),
    "{folder}: cannot be read: {why} (QUERIES_DIR)": (
        "{folder}: não pode ser lida: {why} (QUERIES_DIR)"
    ),
    "{who}: retry {number} of {most} in {seconds} s: {reason}": (
        "{who}: nova tentativa {number} de {most} em {seconds} s: {reason}"
    ),
    "has no effect so; write '-- {key}: …'": "não tem efeito assim; escreva '-- {key}: …'",
    "{column} is not one of columns:": "{column} não está em columns:",
    "{what} is used by {others} too; each needs its own": (
        "{what}: também em uso por {others}; deve pertencer a uma só campanha"
    ),
    "{first}-{last}": "de {first} a {last}",
    "{days} {hours}": "{days} {hours}",
    "the run was stopped": "a execução foi interrompida",
    "the next run starts afresh; nothing old is sent": (
        "a próxima execução começa do zero; nada antigo é enviado"
    ),
    "see in the log what took so long; RUN_DEADLINE_MINUTES is the limit": (
        "veja no log o que demorou tanto; RUN_DEADLINE_MINUTES é o limite"
    ),
    "line {line}": "linha {line}",
    "holds a character that cannot be seen; type it anew": (
        "contém um caractere invisível; digite de novo"
    ),
    "must be one of: {choices}": "deve ser um destes valores: {choices}",
    "must be one character such as ; or , or | or \\t": (
        "deve ser um caractere como ; ou , ou | ou \\t"
    ),
    "must be dates such as 2026-12-25,2027-01-01": "deve ter datas como 2026-12-25,2027-01-01",
    "must be a libpq connection string such as host=pg dbname=x user=x password=…": (
        "deve ser uma connection string da libpq, como host=pg dbname=x user=x password=…"
    ),
    "{place}: {fault}": "{place}: {fault}",
    "unknown setting; did you mean {near}?": "configuração desconhecida; você quis dizer {near}?",
    "missing": "não definido",
    "missing; run with --check to see the server's fingerprint": (
        "não definido; execute com --check para ver a impressão digital do servidor"
    ),
    "set one of the two, or both if both are wanted": (
        "defina um dos dois, ou os dois se o servidor pedir ambos"
    ),
    "not found; copy config.env.example to config.env and fill it in": (
        "não encontrado; copie config.env.example para config.env e preencha"
    ),
    "cannot be read: {why}": "não pode ser lido: {why}",
    "not a text in UTF-8 (ANSI or UTF-16?); save the file as UTF-8 in the editor": (
        "não é um texto em UTF-8 (talvez ANSI ou UTF-16); salve o arquivo como UTF-8 no editor"
    ),
    "ends in CR alone; save the file with Windows (CRLF) or Unix (LF) line ends": (
        "termina só com CR; salve o arquivo com fim de linha do Windows (CRLF) ou do Unix (LF)"
    ),
    "set twice": "definido duas vezes",
    "not of the form KEY=value": "não está na forma CHAVE=valor",
    "must have only a-z, 0-9 and _; rename the file or add '-- campaign: name'": (
        "deve ter apenas a-z, 0-9 e _; renomeie o arquivo ou acrescente '-- campaign: nome'"
    ),
    "must be column names separated by ; or ,": ("deve ter nomes de colunas separados por ; ou ,"),
    "must be a percentage such as 70%": "deve ser uma porcentagem como 70%",
    "a quote or comment without end, or psql's backslash": (
        "aspas ou comentário sem fim, ou barra invertida do psql"
    ),
    "a bracket or BEGIN ATOMIC is not closed": "um parêntese ou BEGIN ATOMIC não se fecha",
    "empty: no SQL statement; the last one must be the SELECT of the mailing": (
        "vazio: nenhum comando SQL; o último deve ser o SELECT do mailing"
    ),
    "remove it and leave the SELECT; the program copies the result itself": (
        "remova e deixe o SELECT; o próprio programa copia o resultado"
    ),
    "must stand above the first SQL line, or it has no effect": (
        "deve ficar acima da primeira linha de SQL, ou não tem efeito"
    ),
    "given twice": "aparece duas vezes",
    "its name must begin with a letter or digit and end in .sql, in small letters": (
        "o nome deve começar com letra ou algarismo e terminar em .sql, em minúsculas"
    ),
    "it is a folder": "é uma pasta",
    "its line 'enabled: no' switches it off": "a linha 'enabled: no' o desativa",
    "{file} is not read: {why}": "{file} não é lido: {why}",
    "the name {name}": "o nome {name}",
    "the folder {path}": "a pasta {path}",
    "claimed": "em andamento",
    "exported": "exportado",
    "publishing": "em publicação",
    "withdrawing": "em retirada",
    "delivered": "entregue",
    "in doubt": "em dúvida",
    "empty": "vazio",
    "held": "retido",
    "failed": "falhou",
    "already delivered": "já entregue",
    "would be sent": "seria enviado",
    "not due": "não previsto",
    "running": "em andamento",
    "not taken": "não coletado",
    "missed": "perdido",
    "still to come": "a seguir",
    "picked up": "coletado",
    "not picked up": "não coletado",
    "refused by the dialer": "recusado pelo discador",
    "not known whether it was picked up": "não se sabe se foi coletado",
    (
        "{path}: the ledger cannot be used ({reason}). Free the disk, make "
        "the file writable and close other programs that hold it; if it is damaged, restore it "
        "or move it away with the CSVs beside it"
    ): (
        "{path}: o registro de entregas não pode ser usado ({reason}). "
        "Libere espaço no disco, permita a gravação do arquivo e feche outros programas que o "
        "usem; se estiver danificado, restaure-o ou mova-o dali com os CSVs ao lado dele"
    ),
    "{path}: the ledger is of a newer version of this program": (
        "{path}: o registro de entregas é de uma versão mais nova deste programa"
    ),
    (
        "{path}: the ledger is gone, but {folder} holds mailings ({file} …): what this slot "
        "has delivered is unknown. Restore the file; or, to begin a new one, move those CSVs "
        "elsewhere"
    ): (
        "{path}: o registro de entregas sumiu, mas {folder} contém mailings ({file} …): não se "
        "sabe o que este horário já entregou. Restaure o arquivo; ou, para começar um novo, "
        "mova esses CSVs para outro lugar"
    ),
    "{campaign}: another PC may be at work on it": (
        "{campaign}: outro computador pode estar cuidando dela"
    ),
    "this slot's mailing is out already": "o mailing deste horário já saiu",
    "{path}: {reason}": "{path}: {reason}",
    "free the disk, and close other programs that hold the ledger": (
        "libere espaço no disco, e feche outros programas que usem o registro de entregas"
    ),
    "{path}: another program holds it; waiting for it": (
        "{path}: outro programa o está usando; aguardando"
    ),
    (
        "nothing to do: whichever PC reaches the ledger carries on, and looks first what "
        "became of it"
    ): (
        "nada a fazer: o computador que alcançar o registro de entregas continua, e antes "
        "verifica o que aconteceu"
    ),
    "check LEDGER and the network; is PostgreSQL running, in version 14 or newer?": (
        "confira LEDGER e a rede; o PostgreSQL está no ar, na versão 14 ou mais nova?"
    ),
    (
        "let LEDGER name PostgreSQL's own host and port: through a pooler two PCs may send the "
        "same mailing"
    ): (
        "indique em LEDGER o host e a porta do próprio PostgreSQL: por um pooler, dois "
        "computadores podem enviar o mesmo mailing"
    ),
    "shared, in PostgreSQL at {where}": "compartilhado, no PostgreSQL em {where}",
    "set synchronous_standby_names there, or a failover forgets the last deliveries": (
        "defina synchronous_standby_names lá, ou um failover esquece as últimas entregas"
    ),
    "this PC stood still for {seconds} s: others may have its claims": (
        "este computador ficou parado por {seconds} s: outro pode ter assumido as suas campanhas"
    ),
    "{path}: the ledger is of another version of this program": (
        "{path}: o registro de entregas é de outra versão deste programa"
    ),
    (
        "{path}: the lock cannot be used: {reason}; make OUTPUT_DIR writable, or delete this "
        "file if it is damaged"
    ): (
        "{path}: a trava não pode ser usada: {reason}; permita a gravação em OUTPUT_DIR, ou "
        "apague este arquivo se estiver danificado"
    ),
    "{file}: {contacts}, {rejected} rejected, {size} bytes": (
        "{file}: {contacts}, {rejected} rejeitados, {size} bytes"
    ),
    (
        "The slot {slot} is overdue: nothing was delivered. Double-click run_pipeline.bat to "
        "run now"
    ): (
        "O horário {slot} está atrasado: nada foi entregue. Dê dois cliques em "
        "run_pipeline.bat para executar agora"
    ),
    "slot {slot}: {totals} in {seconds} s; {outcome}": (
        "horário {slot}: {totals} em {seconds} s; {outcome}"
    ),
    "the database is a replica and {seconds} s behind (MAX_REPLICA_LAG_SECONDS={most})": (
        "o banco de dados é uma réplica atrasada {seconds} s (MAX_REPLICA_LAG_SECONDS={most})"
    ),
    "the server shows another host key than SFTP_HOST_KEY: {keys}": (
        "o servidor apresenta outra chave que a de SFTP_HOST_KEY: {keys}"
    ),
    "phones: or unique: names the column {name}, which the query does not return": (
        "phones: ou unique: cita a coluna {name}, que a consulta não retorna"
    ),
    "{contacts}, fewer than min_rows {least}": "{contacts}, menos que min_rows {least}",
    "{campaign}: {file} of an earlier run: {outcome}": (
        "{campaign}: {file} de uma execução anterior: {outcome}"
    ),
    "{count} characters are not in {encoding} and became '?'": (
        "{count} caracteres não existem em {encoding} e viraram '?'"
    ),
    "{rejected} of {total} rows were rejected: see {file}": (
        "{rejected} de {total} linhas foram rejeitadas: veja {file}"
    ),
    "{campaign}: {file}: picked up at {time}": "{campaign}: {file}: coletado às {time}",
    "{campaign}: {file}: {reason}": "{campaign}: {file}: {reason}",
    "the alert could not be sent ({reason}): check ALERT_URLS": (
        "o alerta não pôde ser enviado ({reason}): confira ALERT_URLS"
    ),
    (
        "this PC's clock is {seconds} s off that of the ledger's server; nothing was sent. Set "
        "the clock"
    ): (
        "o relógio deste computador difere {seconds} s do relógio do servidor do registro de "
        "entregas; nada foi enviado. Acerte o relógio"
    ),
    "{file}: its transaction is not the one that was begun (transaction_isolation: {found})": (
        "{file}: sua transação não é a que foi iniciada (transaction_isolation: {found})"
    ),
    "{campaign}: was delivered in this slot; is to be sent again (--resend)": (
        "{campaign}: já foi entregue neste horário; será enviado de novo (--resend)"
    ),
    "{campaign}: after its delivery: {reason}": "{campaign}: depois da entrega: {reason}",
    "not known whether it was picked up: {reason}": "não se sabe se foi coletado: {reason}",
    "{campaign}: the ledger could not note it: {reason}": (
        "{campaign}: o registro de entregas não pôde anotar: {reason}"
    ),
    (
        "this PC's time zone is not that of the latest entry, by {pc}; nothing was sent. Set "
        "the zone; where the entry's was wrong, wait a day"
    ): (
        "o fuso horário deste computador não é o da última entrada, de {pc}; nada foi enviado. "
        "Acerte o fuso; se o da entrada estava errado, espere um dia"
    ),
    "no {name} in common; the server offers {offered}": (
        "nada em comum em {name}; o servidor oferece {offered}"
    ),
    "the last byte was acknowledged, looking what is there: {reason}": (
        "o último byte foi confirmado; verificando o que está lá: {reason}"
    ),
    "{campaign}: the rename is in doubt, looking: {reason}": (
        "{campaign}: a troca do nome está em dúvida, verificando: {reason}"
    ),
    "{campaign}: a temp file may stay until the next run: {reason}": (
        "{campaign}: um arquivo temporário pode ficar até a próxima execução: {reason}"
    ),
    "{campaign}: {state} ({pc})": "{campaign}: {state} ({pc})",
    "{campaign}: the ledger could not note it, the next run looks: {reason}": (
        "{campaign}: o registro de entregas não pôde anotar; a próxima execução verifica: {reason}"
    ),
    "exit code 4: the run did not end by itself {seconds} s after its deadline": (
        "código de saída 4: a execução não terminou sozinha {seconds} s depois do prazo"
    ),
    "{path}: too old, but cannot be deleted: {reason}": (
        "{path}: antigo demais, mas não pode ser apagado: {reason}"
    ),
    "the server grants no more than {count} {what}, mailings take turns: {reason}": (
        "o servidor não concede mais que {count} {what}, os mailings se revezam: {reason}"
    ),
    "{campaign}: {file} stays in doubt: {reason}": (
        "{campaign}: {file} continua em dúvida: {reason}"
    ),
    "the server grants {count} of {wanted} database sessions: mailings take turns": (
        "o servidor concede {count} de {wanted} sessões de banco de dados: os mailings se revezam"
    ),
    (
        "{path}: a mailing of this hour that the ledger does not know: it may have been sent "
        "already. Was LEDGER changed, or the ledger made anew? Put it back as it was; or wait "
        "for the next hour; or move the file elsewhere"
    ): (
        "{path}: um mailing desta hora que o registro de entregas não conhece: pode já ter sido "
        "enviado. LEDGER foi alterado, ou o registro foi criado de novo? Volte ao que era; ou "
        "espere a próxima hora; ou mova o arquivo para outro lugar"
    ),
    "ledger at {where}: a pooler answers there, whose session is not this PC's own": (
        "registro de entregas em {where}: quem responde ali é um pooler, cuja sessão não é só "
        "deste computador"
    ),
    "ledger at {where}: {reason}": "registro de entregas em {where}: {reason}",
    "let the database administrator run: {sql}": (
        "peça ao administrador do banco que execute: {sql}"
    ),
    "another run is active: {holder}": "outra execução está em andamento: {holder}",
    "wait until it has ended; it delivers by itself": (
        "espere até ela terminar; ela faz a entrega sozinha"
    ),
    "waiting for another run to end: {holder}": "aguardando outra execução terminar: {holder}",
    "it is tried again by itself; if it stays so, ask the database administrator": (
        "a tentativa se repete sozinha; se continuar assim, fale com o administrador do banco "
        "de dados"
    ),
    "check PGHOST, PGPORT and the network; is PostgreSQL running?": (
        "confira PGHOST, PGPORT e a rede; o PostgreSQL está no ar?"
    ),
    "check PGUSER, PGPASSWORD (or .pgpass) and PGDATABASE": (
        "confira PGUSER, PGPASSWORD (ou .pgpass) e PGDATABASE"
    ),
    "the query writes; if it must (temp tables), add '-- read_only: no'": (
        "a consulta grava dados; se for preciso (tabelas temporárias), acrescente '-- "
        "read_only: no'"
    ),
    "check the PG… settings in config.env": "confira as configurações PG… em config.env",
    "another session locks a table of this query; ask who changes it at this hour": (
        "outra sessão bloqueia uma tabela desta consulta; veja quem a altera neste horário"
    ),
    "the query took too long: see its plan, or raise '-- timeout:' (seconds)": (
        "a consulta demorou demais: veja o plano de execução, ou aumente '-- timeout:' (segundos)"
    ),
    "somebody cancelled it before its time was over; ask the database administrator": (
        "alguém a cancelou antes do tempo; fale com o administrador do banco de dados"
    ),
    "the connection was refused": "a conexão foi recusada",
    "no answer in time": "sem resposta a tempo",
    "this name is unknown": "este nome é desconhecido",
    "the password or the user is wrong": "a senha ou o usuário está errado",
    "ask the database administrator to let this PC in (pg_hba.conf)": (
        "peça ao administrador do banco de dados que autorize este PC (pg_hba.conf)"
    ),
    (
        "take PGOPTIONS and the like out of config.env, or set the pooler's "
        "ignore_startup_parameters"
    ): (
        "tire PGOPTIONS e semelhantes de config.env, ou defina ignore_startup_parameters no pooler"
    ),
    "have the pooler's pool_mode set to transaction or session for this PGUSER": (
        "peça que pool_mode do pooler seja transaction ou session para este PGUSER"
    ),
    "ask for SELECT on that table for this PGUSER": (
        "peça permissão de SELECT nessa tabela para este PGUSER"
    ),
    "correct the query; --check tries it without sending": (
        "corrija a consulta; --check a testa sem enviar nada"
    ),
    (
        "the database holds bytes of another encoding: say which, PGCLIENTENCODING=LATIN1 or "
        "WIN1252"
    ): ("o banco guarda bytes de outra codificação: diga qual, PGCLIENTENCODING=LATIN1 ou WIN1252"),
    "run the query in an SQL tool to see more (values are not logged)": (
        "execute a consulta em uma ferramenta SQL para ver mais (o log não guarda valores)"
    ),
    "database at {where}: {reason}": "banco de dados em {where}: {reason}",
    "{file}: line {line}": "{file}: linha {line}",
    "{where}: the connection to the database was lost": (
        "{where}: a conexão com o banco de dados foi perdida"
    ),
    "{where}: {reason} ({code})": "{where}: {reason} ({code})",
    "a pooler shares one session's statements out: switch off its load balancing for PGUSER": (
        "um pooler distribui os comandos de uma sessão: desligue o balanceamento dele para PGUSER"
    ),
    "{where}: the database fell silent": "{where}: o banco de dados parou de responder",
    "the line to PostgreSQL is not encrypted: PGSSLMODE=verify-full with PGSSLROOTCERT": (
        "a conexão com o PostgreSQL não é criptografada: PGSSLMODE=verify-full com PGSSLROOTCERT"
    ),
    "PGUSER is a superuser: a role that can only SELECT cannot do harm": (
        "PGUSER é superusuário: um papel que só pode fazer SELECT não causa danos"
    ),
    "database sessions": "sessões de banco de dados",
    "the database is a replica, and nobody knows how far it is behind": (
        "o banco de dados é uma réplica, e não se sabe quanto está atrasada"
    ),
    "{file}: the shared snapshot cannot be read any more": (
        "{file}: o snapshot comum não pode mais ser lido"
    ),
    "no common snapshot, each query sees its own: {reason}": (
        "sem snapshot comum, cada consulta vê o seu: {reason}"
    ),
    "database at {where}: an SSH (SFTP) server answers there, not PostgreSQL": (
        "banco de dados em {where}: quem responde ali é um servidor SSH (SFTP), não o PostgreSQL"
    ),
    "reason": "motivo",
    "no valid phone": "nenhum telefone válido",
    "duplicate {columns}": "repetição de {columns}",
    "the disk is full": "o disco está cheio",
    "free space on this PC's disk, and close programs that hold the file open": (
        "libere espaço no disco deste PC, e feche os programas que mantêm o arquivo aberto"
    ),
    "check SFTP_HOST, SFTP_PORT and the network; is the SFTP server running?": (
        "confira SFTP_HOST, SFTP_PORT e a rede; o servidor SFTP está no ar?"
    ),
    "see whether the server's disk is full or its quota used up": (
        "veja se o disco do servidor está cheio ou a cota esgotada"
    ),
    (
        "check SFTP_USER and SFTP_PASSWORD or SFTP_KEY_FILE (old servers refuse RSA keys: make "
        "an ed25519 key)"
    ): (
        "confira SFTP_USER e SFTP_PASSWORD ou SFTP_KEY_FILE (servidores antigos recusam chaves "
        "RSA: crie uma ed25519)"
    ),
    (
        "check the network, SFTP_USER and SFTP_PASSWORD: some servers hang up on a wrong "
        "password, or where SFTP is not allowed"
    ): (
        "confira a rede, SFTP_USER e SFTP_PASSWORD: alguns servidores desligam diante de senha "
        "errada, ou onde o SFTP não é permitido"
    ),
    "the server wants a new password: set one there, then SFTP_PASSWORD": (
        "o servidor exige uma senha nova: defina-a lá e depois em SFTP_PASSWORD"
    ),
    (
        "ask the server's administrator whether this user may use SFTP (subsystem, shell, "
        "owner of the home)"
    ): (
        "pergunte ao administrador do servidor se este usuário pode usar SFTP (subsistema, "
        "shell, dono da pasta pessoal)"
    ),
    "the server offers only outdated algorithms (SHA-1); its administrator must update it": (
        "o servidor só oferece algoritmos ultrapassados (SHA-1); o administrador precisa "
        "atualizá-lo"
    ),
    "create the folder on the server, or correct '-- folder:' or SFTP_STAGING_DIR": (
        "crie a pasta no servidor, ou corrija '-- folder:' ou SFTP_STAGING_DIR"
    ),
    (
        "ask the server's administrator for write access to the folder; if it is there, set "
        "another SFTP_TEMP_NAME"
    ): (
        "peça ao administrador do servidor acesso de gravação à pasta; se já houver, defina "
        "outro SFTP_TEMP_NAME"
    ),
    (
        "let this user rename files there; SFTP_STAGING_DIR, if set, must be on the drop "
        "folder's disk"
    ): (
        "permita que este usuário renomeie arquivos ali; SFTP_STAGING_DIR, se definido, deve "
        "ficar no mesmo disco que a pasta de entrega"
    ),
    "let this user read the file": "permita que este usuário leia o arquivo",
    "let this user list the folder, or look at its files": (
        "deixe este usuário listar a pasta, ou consultar os arquivos dela"
    ),
    "the server lacks this operation": "o servidor não oferece esta operação",
    "the connection was lost": "a conexão caiu",
    "the password has expired": "a senha expirou",
    "the user, the password or the key is wrong": "o usuário, a senha ou a chave está errada",
    "no such file or folder": "arquivo ou pasta inexistente",
    "no permission": "sem permissão",
    "SFTP at {where}": "SFTP em {where}",
    "{server}: {doing}: {reason}": "{server}: {doing}: {reason}",
    "the run is over": "a execução terminou",
    "SFTP at {where}: {what}": "SFTP em {where}: {what}",
    (
        "do not go on: ask the server's administrator whether the key was changed; no password "
        "was sent"
    ): (
        "não prossiga: pergunte ao administrador do servidor se a chave foi trocada; nenhuma "
        "senha foi enviada"
    ),
    "check SFTP_PORT: SFTP's port is mostly 22": (
        "confira SFTP_PORT: a porta do SFTP costuma ser 22"
    ),
    "PostgreSQL answers there, not an SFTP server": (
        "quem responde ali é o PostgreSQL, não um servidor SFTP"
    ),
    "its administrator can allow one of: {known}": (
        "o administrador dele pode permitir um destes: {known}"
    ),
    "ask the server's administrator for a login that needs nothing else": (
        "peça ao administrador do servidor um acesso que não exija mais nada"
    ),
    "set {keys}, or {ask}": "defina {keys}, ou {ask}",
    "login: the server wants {what}": "login: o servidor exige {what}",
    "not found": "não encontrado",
    "correct SFTP_KEY_FILE": "corrija SFTP_KEY_FILE",
    "cannot be read: {reason}": "não pode ser lido: {reason}",
    "SFTP_KEY_FILE: {path}: {reason}": "SFTP_KEY_FILE: {path}: {reason}",
    "is a key of PuTTY": "é uma chave do PuTTY",
    "in PuTTYgen: Conversions, Export OpenSSH key": (
        "no PuTTYgen: Conversions, Export OpenSSH key"
    ),
    "is the public half of a key": "é a metade pública de uma chave",
    "name the private key: the file without .pub": ("indique a chave privada: o arquivo sem .pub"),
    "the passphrase does not open it": "a senha da chave não a abre",
    "check SFTP_KEY_PASSPHRASE": "confira SFTP_KEY_PASSPHRASE",
    "is no private key that paramiko knows": "não é uma chave privada que o paramiko conheça",
    "make one with: ssh-keygen -t ed25519": "crie uma com: ssh-keygen -t ed25519",
    "{path} was whole and is gone: it may have been activated": (
        "{path} estava completo e sumiu: pode ter sido ativado"
    ),
    "set SFTP_STAGING_DIR: something takes files of any name": (
        "defina SFTP_STAGING_DIR: algo coleta arquivos de qualquer nome"
    ),
    "SFTP channels": "canais SFTP",
    "looking for {path}": "busca por {path}",
    "drop folder {path}": "pasta de entrega {path}",
    "drop folder {path}: is not a folder": "pasta de entrega {path}: não é uma pasta",
    "correct '-- folder:' in the query file": "corrija '-- folder:' no arquivo da consulta",
    "creating {path}": "criação de {path}",
    "writing {path}": "gravação de {path}",
    "{path}: {sent} bytes sent, {arrived} arrived": (
        "{path}: {sent} bytes enviados, {arrived} recebidos"
    ),
    "reading {path} back": "releitura de {path} no servidor",
    "renaming {path} to {name}": "troca do nome de {path} para {name}",
    "removing {path}": "remoção de {path}",
    "login": "login",
    "a new channel": "um canal novo",
    "logged in, but SFTP does not start": "login feito, mas o SFTP não inicia",
    ("check the query and the data; if the number is right, change the guard in the query file"): (
        "confira a consulta e os dados; se o número estiver certo, ajuste o limite no arquivo "
        "da consulta"
    ),
    (
        "correct the query's column names, or its 'columns:' line if the dialer's layout "
        "really changed"
    ): (
        "corrija os nomes das colunas na consulta, ou a linha 'columns:' se o layout do "
        "discador mudou mesmo"
    ),
    "nothing to do: it is not sent late": "nada a fazer: o mailing não é enviado com atraso",
    "the query returns no columns": "a consulta não retorna nenhuma coluna",
    "column {name} comes twice": "a coluna {name} aparece duas vezes",
    "the columns changed: {what}": "as colunas mudaram: {what}",
    "missing {names}": "falta {names}",
    "not expected {names}": "não prevista: {names}",
    "another order: {names}": "outra ordem: {names}",
    "every row was rejected ({rows})": "todas as linhas foram rejeitadas ({rows})",
    "see in the _rejected.csv why; check the phones: and unique: lines and the query": (
        "veja o motivo no _rejected.csv; confira as linhas phones: e unique: e a consulta"
    ),
    "{contacts}, {share} below the usual {usual} (max_drop {most}%)": (
        "{contacts}, {share} abaixo dos {usual} habituais (max_drop {most}%)"
    ),
    "nobody to call": "ninguém para ligar",
    "not known whether it was picked up: it was being withdrawn when the connection failed": (
        "não se sabe se foi coletado: estava sendo retirado quando a conexão falhou"
    ),
    "its temp is gone, and it does not stand under its final name": (
        "o arquivo temporário sumiu, e ele não está com o nome final"
    ),
    "the next run looks whether the dialer got it, and never sends it twice": (
        "a próxima execução verifica se o discador o recebeu, e nunca o envia duas vezes"
    ),
    ("somebody else puts files there, or the dialer does not take them; nothing was overwritten"): (
        "alguém mais põe arquivos lá, ou o discador não os coleta; nada foi sobrescrito"
    ),
    "ask who runs the dialer whether it has the file; it is not sent again in this slot": (
        "pergunte a quem cuida do discador se ele tem o arquivo; não é enviado de novo neste "
        "horário"
    ),
    "more than max_rows {most} contacts": "mais que max_rows {most} contatos",
    "{campaign}: exported {figures}": "{campaign}: exportado {figures}",
    "{path} is already there": "{path} já está lá",
    "{path}: what arrived is not what was sent (SHA-256)": (
        "{path}: o que chegou não é o que foi enviado (SHA-256)"
    ),
    "its campaign is gone": "a campanha não existe mais",
    "its campaign has another drop folder now": "a campanha agora tem outra pasta de entrega",
    "its slot {slot} is over": "o horário dele, {slot}, já passou",
    "it was withdrawn": "foi retirada",
    "not published: {reason}": "não publicado: {reason}",
    "the run was interrupted before publishing": (
        "a execução foi interrompida antes da publicação"
    ),
    "{path} was changed on this PC before it was sent": (
        "{path} foi alterado neste PC antes de ser enviado"
    ),
    "leave the files in the output folder alone while a run is on": (
        "não mexa nos arquivos da pasta output durante uma execução"
    ),
    "the dialer has not taken the previous mailing {file}": (
        "o discador ainda não coletou o mailing anterior {file}"
    ),
    "{campaign}: {message}": "{campaign}: {message}",
    "{reason}; what its query wrote may be kept all the same": (
        "{reason}; o que a consulta gravou pode ter ficado gravado mesmo assim"
    ),
    "{reason}; what its query wrote is kept all the same": (
        "{reason}; o que a consulta gravou fica mesmo assim"
    ),
    "{count} {state}": "{count} {state}",
    "{counts}": "{counts}",
    "nothing due": "nada previsto",
    "exit code {code}: {meaning}": "código de saída {code}: {meaning}",
    "Slot {slot}": "Horário {slot}",
    "the CSVs are in {folder}": "os CSVs estão em {folder}",
    "campaign": "campanha",
    "result": "resultado",
    "columns": "colunas",
    "seconds": "seg.",
    "contacts": "contatos",
    "rejected": "rejeit.",
    "size": "tamanho",
    "waiting": "aguardando",
    "sending {sent} of {size}": "enviando {sent} de {size}",
    "ready": "pronto",
    "reading, {contacts}": "lendo, {contacts}",
    "the query is running": "consulta em execução",
    "correct the file, and try it with --check": "corrija o arquivo, e teste-o com --check",
    "the status page shows what came of it": "a página de situação mostra o que aconteceu",
    "stopped by the operator": "execução interrompida pelo operador",
    "start the program again; it sends only what is missing": (
        "inicie o programa de novo; ele envia só o que falta"
    ),
    "the server does not tell what became of this slot's mailing": (
        "o servidor não informa o que aconteceu com o mailing deste horário"
    ),
    "{message}": "{message}",
    "another PC was still at work on it when this run ended": (
        "outro computador ainda cuidava dela quando esta execução terminou"
    ),
    "{file}: {contacts}, {size} bytes": "{file}: {contacts}, {size} bytes",
    "{campaign}: {state}: {what}": "{campaign}: {state}: {what}",
    "{campaign}: {state}": "{campaign}: {state}",
    "the run's deadline has passed: ending it": "o prazo da execução se esgotou: encerrando",
    "this slot has been delivered already: a run would not send it again": (
        "este horário já foi entregue: uma execução não o enviaria de novo"
    ),
    "not at this hour: {reason}": "não neste horário: {reason}",
    "pickups are not watched any more: {reason}": "a coleta não é mais acompanhada: {reason}",
    "not picked up within {seconds} s": "não coletado em {seconds} s",
    "see in the dialer why; the file is complete, and is not sent again": (
        "veja o motivo no discador; o arquivo está completo e não é enviado de novo"
    ),
    "ok": "ok",
    "{where}: the query writes or locks, in a read-only transaction": (
        "{where}: a consulta grava ou bloqueia dados, em uma transação somente de leitura"
    ),
    "{count} columns": "{count} colunas",
    "{count} columns, no 'columns:' line: {names}": (
        "{count} colunas, sem a linha 'columns:': {names}"
    ),
    "exists, can write, can rename, but not remove: {path} stays there": (
        "existe, grava, renomeia, mas não apaga: {path} fica lá"
    ),
    ("exists; SFTP_STAGING_DIR takes files and renames; the move into this folder was not tried"): (
        "existe; SFTP_STAGING_DIR permite gravar e renomear; a passagem para esta pasta não "
        "foi testada"
    ),
    "exists, can write, can rename": "existe, permite gravar e renomear",
    "{path} may stay on the server: {reason}": "{path} pode ficar no servidor: {reason}",
    "settings": "configuração",
    "ledger": "registro de entregas",
    "database login": "login no banco de dados",
    "query {file}": "consulta {file}",
    "folder {path}": "pasta {path}",
    "other users of this PC may open it; README.md says how to keep it to this user": (
        "outros usuários deste PC podem abri-la; o README.md diz como deixá-la só para este usuário"
    ),
    "OneDrive uploads what is in it, customers' data too: move it out of there": (
        "o OneDrive envia para a nuvem o que está nela, também dados de clientes: tire-a de lá"
    ),
    "it is on the network: move it to this PC's own disk": (
        "ela está na rede: mova-a para o disco deste computador"
    ),
    "apprise cannot use URL {numbers}: wrong kind, or incomplete": (
        "o apprise não consegue usar a URL {numbers}: tipo errado, ou incompleta"
    ),
    "{key}": "{key}",
    "it must begin with https://": "deve começar com https://",
    "queries": "consultas",
    "{count} campaigns": "{count} campanhas",
    "SFTP host key": "chave do servidor SFTP",
    "if the server's administrator confirms it, set SFTP_HOST_KEY={key}": (
        "se o administrador do servidor a confirmar, defina SFTP_HOST_KEY={key}"
    ),
    "the server shows {key}": "o servidor apresenta {key}",
    "SFTP login": "login no SFTP",
    "NOTE": "AVISO",
    "FAULT": "FALHA",
    "{what}: {told}": "{what}: {told}",
    "the whole run": "a execução inteira",
    "works again": "já normalizado",
    "No successful run yet": "Nenhuma execução com êxito até agora",
    "Last successful run: {time}": "Última execução com êxito: {time}",
    "Last run: {time}: {outcome}": "Última execução: {time}: {outcome}",
    "Nothing is due today": "Não há nada previsto para hoje",
    "Mailings": "Mailings",
    "Today": "Hoje",
    "Contacts delivered in two weeks": "Contatos entregues em duas semanas",
    "Latest problems": "Últimos problemas",
    "Generated {time}": "Gerado em {time}",
    "none in two weeks": "nenhum em duas semanas",
    "Need attention: {campaigns}": "Precisa de atenção: {campaigns}",
    "nothing delivered in two weeks": "nada entregue em duas semanas",
    "latest {latest}, median {median}": "último {latest}, mediana {median}",
    "HEARTBEAT_URL could not be fetched: {reason}": (
        "HEARTBEAT_URL não pôde ser acessada: {reason}"
    ),
    "the status page was not written: {reason}": "a página de status não foi gravada: {reason}",
    "no run in the slots {slots}": "nenhuma execução nos horários {slots}",
    "mailings need a person": "os mailings precisam de atenção",
    "mailings work again": "os mailings voltaram ao normal",
    "the next hourly run tries again by itself; nothing is ever sent twice": (
        "a próxima execução tenta de novo sozinha; nada é enviado duas vezes"
    ),
    (
        "Run queries/*.sql in PostgreSQL and deliver each result as a CSV to its campaign's "
        "SFTP folder."
    ): (
        "Executa queries/*.sql no PostgreSQL e entrega cada resultado como CSV na pasta SFTP "
        "da campanha."
    ),
    "exit codes:": "códigos de saída:",
    "export and judge everything, send nothing (output/dry-run)": (
        "exporta e avalia tudo, não envia nada (output/dry-run)"
    ),
    "test settings, queries, logins and folders; send nothing": (
        "testa configuração, consultas, logins e pastas; não envia nada"
    ),
    "show what was delivered today": "mostra o que foi entregue hoje",
    "started by the Task Scheduler: plain output, quiet outside the hours": (
        "iniciado pelo Agendador de Tarefas: saída simples, sem aviso fora do horário"
    ),
    "only this campaign (may be repeated)": "só esta campanha (pode ser repetida)",
    "also what this slot has delivered already, under a new name": (
        "também o que este horário já entregou, com outro nome"
    ),
    "run by hand outside the operating hours": ("execução manual fora do horário de funcionamento"),
    "the settings (default: config.env beside the program)": (
        "a configuração (padrão: config.env ao lado do programa)"
    ),
    "the report as one JSON object on stdout": ("o relatório como um objeto JSON na saída padrão"),
    "show program's version number and exit": "mostra a versão do programa e termina",
    "{path}: cannot be written: {reason}; make LOG_DIR writable": (
        "{path}: não é possível gravar: {reason}; permita a gravação em LOG_DIR"
    ),
    "not everything could be shown: standard output cannot be written": (
        "nem tudo pôde ser mostrado: a saída padrão não pode ser gravada"
    ),
    "this Python ({path}) lacks the packages {names}": (
        "a este Python ({path}) faltam os pacotes {names}"
    ),
    "start run_pipeline.bat, or: python -m pip install -r requirements.txt": (
        "inicie run_pipeline.bat, ou: python -m pip install -r requirements.txt"
    ),
    "outside the hours, nothing to do: {reason}": "fora do horário, nada a fazer: {reason}",
    "wait, or use --ignore-hours if you really want to start calls now": (
        "espere, ou use --ignore-hours se quiser mesmo iniciar as chamadas agora"
    ),
}


if __name__ == "__main__":
    # what it writes is for this user; on Windows the folder's rights say so (run_pipeline.bat)
    os.umask(0o077)
    # numpy's linear algebra, which nothing here uses, starts a thread per core: a tenth of a short
    # run's CPU time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, interrupt)
    kept = heed_closing_window() if os.name == "nt" else None
    end(main())
