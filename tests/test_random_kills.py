"""Fault 64, and 59 many times: programs, lines, backends and sftp-servers killed at random moments; the dialer judges.

A round: 4 to 6 campaigns, a program that is hit by what this round's kind says, then run again to the end, then again
in the next slot. Nothing may arrive twice, in parts, or not at all.

    RANDOM_KILLS=300 RANDOM_FAULTS=300 TWO_AT_ONCE=100 python -m pytest tests/test_random_kills.py     the long run
    RANDOM_KILLS_SEED=… RANDOM_KILLS=1 …                          one round again, as the message of its failure says

Chance decides the moments; the seed repeats what was drawn, and the machine's own timing only nearly so. The figures of
every run are printed at its end (-rP), and appended to the file that RANDOM_KILLS_FIGURES names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from conftest import LONG
from rig.programs import Program
from rig.proxy import Proxy
from rig.theatre import Rig, until

import mailing_pipeline

pytest_plugins = ["rig.plugin"]

ROUNDS = int(os.environ.get("RANDOM_KILLS", "20" if LONG else "4"))
FAULTY_ROUNDS = int(os.environ.get("RANDOM_FAULTS", "8" if LONG else "3"))
TWO_AT_ONCE = int(os.environ.get("TWO_AT_ONCE", "10" if LONG else "4"))
SEED = int(os.environ.get("RANDOM_KILLS_SEED") or random.SystemRandom().randrange(10**9))
FILE = "tests/test_random_kills.py"
LONGEST_S = 1.6  # from a program's start to its hit; most runs are over by then

pytestmark = pytest.mark.timeout(120 + 12 * (ROUNDS + FAULTY_ROUNDS + TWO_AT_ONCE))


@dataclass
class Figures:
    """What a run of rounds came to."""

    seed: int
    rounds: int = 0
    programs: int = 0
    judged: int = 0  # deliveries
    ended: Counter[str] = field(default_factory=Counter)  # exit codes, -9 for a kill
    faults: Counter[str] = field(default_factory=Counter)  # those that hit something
    unknowable: int = 0  # mailings of which nobody can know whether they arrived
    violations: int = 0

    def tell(self, what: str, seconds: float) -> None:
        """Print, and append to RANDOM_KILLS_FIGURES."""
        said = {"what": what, "seconds": round(seconds), **vars(self)}
        print(json.dumps(said))
        if place := os.environ.get("RANDOM_KILLS_FIGURES"):
            with open(place, "a", encoding="utf-8") as file:
                file.write(json.dumps(said) + "\n")


@dataclass
class Scene:
    """What a fault may hit."""

    rig: Rig
    program: Program
    database: Proxy
    sftp: Proxy


def kill_program(scene: Scene) -> int:
    alive = scene.program.running
    scene.program.kill()
    return alive and scene.program.code == -9


def interrupt(scene: Scene) -> int:
    """Ctrl+C."""
    alive = scene.program.running
    scene.program.send(signal.SIGINT)
    return alive


def cut_sftp(scene: Scene) -> int:
    return scene.sftp.cut()


def cut_database(scene: Scene) -> int:
    return scene.database.cut()


def terminate_backends(scene: Scene) -> int:
    pids = [pid for pid, _ in scene.rig.backends()]
    for pid in pids:
        scene.rig.terminate(pid)
    return len(pids)


def kill_sftp_server(scene: Scene) -> int:
    return scene.rig.openssh().kill_sessions("sftp-server")


def kill_connection(scene: Scene) -> int:
    return scene.rig.openssh().kill_sessions("sshd")


def restart_postgres(scene: Scene) -> int:
    scene.rig.stage.database.restart("immediate")
    return 1


FAULTS: dict[str, Callable[[Scene], int]] = {
    "kill -9": kill_program,
    "Ctrl+C": interrupt,
    "SFTP line cut": cut_sftp,
    "database line cut": cut_database,
    "backends terminated": terminate_backends,
    "sftp-server killed": kill_sftp_server,
    "sshd's session killed": kill_connection,
    "PostgreSQL crashed": restart_postgres,
}
# Alone, and together: what a round does, one after the other, at moments of its own.
KINDS = [
    ["kill -9"],
    ["kill -9"],
    ["SFTP line cut"],
    ["database line cut"],
    ["backends terminated"],
    ["sftp-server killed"],
    ["sshd's session killed"],
    ["PostgreSQL crashed"],
    ["Ctrl+C"],
    ["Ctrl+C", "SFTP line cut"],
    ["PostgreSQL crashed", "kill -9"],
    ["SFTP line cut", "kill -9"],
    ["backends terminated", "kill -9"],
    ["sftp-server killed", "SFTP line cut", "database line cut"],
    ["SFTP line cut", "backends terminated", "sftp-server killed", "kill -9"],
]


def prepare(rig: Rig, chance: random.Random, number: int) -> list[str]:
    """4 to 6 campaigns of a round, with names, sizes and pauses of its own; their names."""
    for path in rig.stage.queries.glob("*.sql"):
        path.unlink()
    rig.sizes.clear()
    rig.stage.drops.clear()
    names = [f"r{number}_{letter}" for letter in "abcdef"[: chance.randint(4, 6)]]
    for name in names:
        rows = chance.choice([1, 50, 400, 3_000, 12_000])
        rig.campaign(name, rows, pause_s=chance.choice([0, 0, 0, 0.1, 0.3]), min_rows=rows, max_rows=rows)
    rig.settings(
        QUERY_WORKERS=chance.choice([1, 2, 4]),
        SFTP_VERIFY=chance.choice(["size", "size", "hash"]),
        SFTP_COMPRESS=chance.choice(["no", "no", "yes"]),
        PICKUP_TIMEOUT_SECONDS=chance.choice([0, 0, 3]),
    )
    return names


def slow_down(line: Proxy, chance: random.Random) -> None:
    line.delay(chance.choice([0, 0.001, 0.003, 0.01]), chance.choice(["up", "down", None]))


def hit(scene: Scene, kind: list[str], chance: random.Random, figures: Figures) -> None:
    """Commit the faults of a kind, each at its moment."""
    moments = sorted(chance.uniform(0.02, LONGEST_S) ** chance.choice([1, 2]) for _ in kind)
    start = time.monotonic()
    for name, moment in zip(kind, moments, strict=True):
        scene.program.ended.wait(max(0, start + moment - time.monotonic()))
        figures.faults[name] += bool(FAULTS[name](scene))


def to_the_end(rig: Rig, figures: Figures) -> None:
    """Run again until it ended well: a run that was hit may have used up its tries."""
    for _ in range(3):
        program = rig.run("--scheduled")
        figures.programs += 1
        figures.ended[str(program.code)] += 1
        in_doubt = mailing_pipeline.slot_of(rig.clock.now()) in unknowable(rig).values()
        if program.code == (4 if in_doubt else 0):
            return
    pytest.fail(f"still not everything delivered:\n{rig.log()}")


def unknowable(rig: Rig) -> dict[str, str]:
    """Campaigns of which nobody can know whether they arrived, with the slot of it: in doubt for good.

    A rename lost its reply, and so did the removal of its temp; neither name is there.
    """
    told = str(mailing_pipeline.WITHDRAWN)
    return {row["campaign"]: row["slot"] for row in rig.ledger if (row["state"], row["message"]) == ("in doubt", told)}


def judge(rig: Rig, names: list[str], slots: int, seed: int, figures: Figures) -> None:
    """Everything exactly once, complete, and nothing left over."""
    dialer = rig._dialer
    assert dialer is not None
    arrivals = dialer.record
    figures.judged += len(arrivals)
    broken = rig.violations()
    counted = Counter(arrival.campaign for arrival in arrivals)
    unknown = unknowable(rig)
    figures.unknowable += len(unknown)
    broken += [
        f"{name} arrived {counted[name]} times in {slots} slots"
        for name in names
        if counted[name] != slots - (name in unknown)
    ]
    broken += [f"left over: {name}" for name in rig.leftovers() if name.startswith(".part-")]
    figures.violations += len(broken)
    again = f"RANDOM_KILLS_SEED={seed} RANDOM_KILLS=1 RANDOM_FAULTS=1 TWO_AT_ONCE=1 python -m pytest {FILE}"
    assert not broken, f"{broken}\nagain: {again}\n{rig.log()}\n{json.dumps(rig.ledger, indent=1)}"


def forget_what_was_written(rig: Rig) -> None:
    """Each round is judged on its own; the ledger and the log of the one before would only make it slower."""
    for path in [*rig.stage.output.glob("*"), *rig.stage.logs.glob("*")]:
        if path.is_file():
            path.unlink()


def test_random_kills_at_random_moments(rig: Rig) -> None:
    """64."""
    figures, start = Figures(SEED), time.monotonic()
    print(f"RANDOM_KILLS_SEED={SEED}")
    rig.openssh()
    with rig.database_line() as database, rig.sftp_line() as sftp:
        for number in range(ROUNDS):
            seed = SEED + number
            chance = random.Random(seed)
            names = prepare(rig, chance, number)
            for line in (database, sftp):
                slow_down(line, chance)
            with rig.dialer():
                program = rig.start("--scheduled", constants={"UPLOADS": chance.choice([1, 2, 4])})
                hit(Scene(rig, program, database, sftp), chance.choice(KINDS), chance, figures)
                program.wait(60)
                figures.programs += 1
                figures.ended[str(program.code)] += 1
                for line in (database, sftp):
                    line.delay(0)
                to_the_end(rig, figures)
                rig.clock.jump(3600, steady_too=True)
                to_the_end(rig, figures)
                judge(rig, names, 2, seed, figures)
            rig.clock.jump(-3600, steady_too=False)
            clear(rig)
            figures.rounds += 1
    figures.tell("random kills", time.monotonic() - start)


# What the server does, at any request of the protocol. Hash mode: a server that stores something else is found out. Not
# here, because nobody can find it out: a server that says OK to a rename and does not do it.
WRONGS = {
    "open": ["do, then refuse", "refuse", "forbid", "cut", "hang", "ignore", "do, then cut", "do, then hang"],
    "write": ["refuse", "cut", "hang", "ignore", "do, then cut", "pretend", "flip", "store less", "store, then cut"],
    "fstat": ["refuse", "forbid", "cut", "hang"],
    "close": ["refuse", "cut", "hang", "do, then cut", "do, then hang"],
    "stat": ["refuse", "forbid", "cut", "hang", "ignore"],
    "read": ["refuse", "cut", "hang"],
    "rename": [
        "do, then refuse",
        "refuse",
        "forbid",
        "cut",
        "hang",
        "ignore",
        "do, then cut",
        "do, then hang",
        "do, then ignore",
    ],
    "remove": ["do, then refuse", "refuse", "forbid", "cut", "hang", "do, then cut"],
    "session": ["refuse", "hang", "cut"],
    "subsystem": ["refuse", "hang", "cut"],
    "init": ["hang", "cut"],
    "password": ["hang", "cut", "hang up"],
}


def test_random_faults_of_the_server(rig: Rig) -> None:
    """38 to 56, several at once and after each other, and kill -9 among them."""
    figures, start = Figures(SEED), time.monotonic()
    print(f"RANDOM_KILLS_SEED={SEED}")
    impatient = {"SFTP_TIMEOUT_S": 0.6, "UPLOADS": 4}
    with rig.faulty_server() as server:
        for number in range(FAULTY_ROUNDS):
            seed = SEED + number
            chance = random.Random(seed)
            names = prepare(rig, chance, number)
            rig.settings(SFTP_VERIFY="hash")
            with rig.dialer(take=chance.random() < 0.8):
                for _ in range(chance.randint(1, 2)):
                    before = server.committed
                    for _ in range(chance.randint(1, 4)):
                        request = chance.choice([*WRONGS, "rename", "rename"])
                        server.commits(request, chance.choice(WRONGS[request]), chance.choice([1, 1, 1, 2, 100]))
                        server.faults[-1].skip = chance.choice([0, 0, 1, 2, 5])
                    program = rig.start("--scheduled", constants=impatient, connect_timeout_s=2)
                    if chance.random() < 0.3:
                        program.ended.wait(chance.uniform(0.05, 1))
                        figures.faults["kill -9"] += program.running
                        program.kill()
                    program.wait(90)
                    figures.programs += 1
                    figures.ended[str(program.code)] += 1
                    figures.faults["server's faults"] += server.committed - before
                server.recovers()
                to_the_end(rig, figures)
                rig.clock.jump(3600, steady_too=True)
                to_the_end(rig, figures)
                judge(rig, names, 2, seed, figures)
            rig.clock.jump(-3600, steady_too=False)
            clear(rig)
            for drop in rig.stage.drops.values():
                shutil.rmtree(drop)
            figures.rounds += 1
    figures.tell("random faults of the server", time.monotonic() - start)


def clear(rig: Rig) -> None:
    """The end of a round: what it wrote is looked through for canaries and bugs, and removed."""
    assert rig.leaks() == []
    assert "a bug" not in rig.log(), rig.log()
    rig.close()
    rig._started.clear()
    forget_what_was_written(rig)


@pytest.mark.skipif(ROUNDS < 100, reason="takes a minute each: part of the long run (RANDOM_KILLS=300)")
@pytest.mark.parametrize("what", ["backend", "sftp-server"])
def test_a_real_minute_of_deadline_with_nothing_shortened(rig: Rig, what: str) -> None:
    """12, 44, 60: frozen until the end; the process is gone by its deadline plus 30 s."""
    rig.campaign("alfa", 40_000, pause_s=1 if what == "backend" else 0, timeout=3600)
    rig.settings(RUN_DEADLINE_MINUTES=1)
    with rig.sftp_line() as line, rig.dialer():
        line.limit(1_000_000, "up")
        start = time.monotonic()
        program = rig.start(as_in_the_field=True)
        if what == "backend":
            frozen = [rig.busy_backend()]
        else:
            until(rig.leftovers, "the upload has begun")
            frozen = [process.pid for process in rig.openssh().sessions() if process.name() == what]
        with rig.frozen(*frozen):
            program.wait(60 + 30 - (time.monotonic() - start))
        assert program.code in (4, 6)
        assert "deadline" in program.output
        rig.delivered()


def test_two_or_three_programs_at_once(rig: Rig) -> None:
    """59: started within milliseconds, by hand and by the scheduler, some of them killed."""
    figures, start = Figures(SEED), time.monotonic()
    print(f"RANDOM_KILLS_SEED={SEED}")
    for number in range(TWO_AT_ONCE):
        seed = SEED + number
        chance = random.Random(seed)
        names = prepare(rig, chance, number)
        with rig.dialer():
            programs = []
            for _ in range(chance.randint(2, 3)):
                programs.append(rig.start(*chance.choice([["--scheduled"], []])))
                time.sleep(chance.choice([0, 0, 0.005, 0.05]))
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0.05, 1))
                chance.choice(programs).send(signal.SIGKILL)
                figures.faults["kill -9"] += 1
            for program in programs:
                program.wait(60)
                figures.ended[str(program.code)] += 1
            figures.programs += len(programs)
            assert {program.code for program in programs} <= {0, 3, -9}
            to_the_end(rig, figures)
            judge(rig, names, 1, seed, figures)
        clear(rig)
        figures.rounds += 1
    figures.tell("two at once", time.monotonic() - start)
