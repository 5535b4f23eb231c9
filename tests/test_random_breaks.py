"""Connections that break at random moments under several workers: every mailing must arrive in that very run.

    RANDOM_BREAKS=100 RANDOM_BREAKS_SEED=20261222 python -m pytest tests/test_random_breaks.py      the long run

A break or two is what a line has on a bad day, and both servers can be reached again at once: no campaign may fail for
that, and no run give up. A round that fails prints the seed that repeats it.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator

import pytest
from conftest import LONG
from rig.faulty_sftp import Fault
from rig.programs import Program
from rig.theatre import Rig

pytest_plugins = ["rig.plugin"]

ROUNDS = int(os.environ.get("RANDOM_BREAKS", "20" if LONG else "4"))
FIRST_SEED = int(os.environ.get("RANDOM_BREAKS_SEED") or random.SystemRandom().randrange(10**9))
NAMES = [f"c{number}" for number in range(12)]


def breaks(chance: random.Random) -> Iterator[Fault]:
    """One to four requests of the SFTP protocol at which the connection breaks, and at most one hang-up in a login.

    A server that hangs up on a login twice is taken for one that refuses the password.
    """
    for _ in range(chance.choice([1, 2, 3, 3, 4])):
        request = chance.choice(["open", "write", "close", "stat", "stat", "rename", "rename", "remove", "subsystem"])
        if request == "subsystem":
            yield Fault(request, "cut", 1, "", None, chance.choice([1, 2, 3]))
        else:
            yield Fault(request, chance.choice(["cut", "do, then cut"]), 1, "", None, chance.randrange(14))
    if chance.random() < 0.5:
        yield Fault("password", chance.choice(["cut", "hang up"]), 1, "", None, 1)


def chance_of(number: int) -> random.Random:
    """What a round draws from."""
    seed = FIRST_SEED + number
    print(f"RANDOM_BREAKS_SEED={seed} RANDOM_BREAKS=1 python -m pytest tests/test_random_breaks.py")
    return random.Random(seed)


def arrived_as_if_nothing_had_happened(rig: Rig, program: Program) -> None:
    assert program.code == 0, rig.log()
    rig.delivered(*NAMES)
    for _ in range(3):  # a break may hit the removal of a temp, and another one the next run's
        if not rig.leftovers():
            break
        assert "a temp file may stay until the next run" in rig.log()
        rig.run()
    assert rig.leftovers() == [], rig.log()
    rig.delivered(*NAMES)
    assert "internal error" not in rig.log()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_line_to_the_dialer_that_breaks_costs_no_mailing(rig: Rig, number: int) -> None:
    chance = chance_of(number)
    rig.settings(QUERY_WORKERS=chance.choice([1, 2, 6]))
    for name in NAMES:
        rig.campaign(name, chance.choice([50, 500, 5000]))
    with rig.faulty_server() as server, rig.dialer():
        server.faults += breaks(chance)
        arrived_as_if_nothing_had_happened(rig, rig.run())
        assert "grants no more" not in rig.log(), "a connection that breaks is not scarce"


@contextlib.contextmanager
def connection_limit(rig: Rig, most: int) -> Iterator[None]:
    rig.stage.execute(f"ALTER ROLE mailing CONNECTION LIMIT {most}")
    try:
        yield
    finally:
        rig.stage.execute("ALTER ROLE mailing CONNECTION LIMIT -1")


@pytest.mark.parametrize("number", range(ROUNDS))
def test_database_sessions_that_break_cost_no_mailing(rig: Rig, number: int) -> None:
    """The line is cut, or an administrator ends sessions: all, the snapshot's, the latest; they may be scarce, too."""
    chance = chance_of(number)
    most = chance.choice([-1, -1, -1, 2, 3, 5])
    rig.settings(QUERY_WORKERS=chance.choice([2, 4, 6]), RETRY_FIRST_SECONDS=1, RETRY_MAX_SECONDS=2)
    for name in NAMES:
        rig.campaign(name, chance.choice([50, 5000]), pause_s=chance.choice([0, 0.1, 0.3, 0.8]))
    with rig.database_line() as line, rig.dialer(), connection_limit(rig, most):
        program = rig.start()
        for _ in range(chance.choice([1, 1, 2])):
            time.sleep(chance.uniform(0.02, 0.6))
            found = rig.backends()
            idle = [pid for pid, state in found if state == "idle in transaction"]
            hit = chance.choice(["line", [pid for pid, _ in found], idle[:1], [pid for pid, _ in found][-1:]])
            if hit == "line":
                line.cut()
            for backend in hit if isinstance(hit, list) else []:
                rig.terminate(backend)
        arrived_as_if_nothing_had_happened(rig, program.wait())
        assert most > 0 or "grants no more" not in rig.log(), "a connection that breaks is not scarce"
