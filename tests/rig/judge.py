"""The judge: the dialer's record against the ledger. Exit codes and logs are no witnesses here.

Each campaign and slot 0 or 1 times, complete (size and SHA-256 equal to the ledger's, every row there), in its folder,
in its hours; what the ledger calls delivered has arrived, and nothing else has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from local_servers import Arrival

Row = Mapping[str, Any]


def violations(
    arrivals: Sequence[Arrival],
    ledger: Sequence[Row],
    clock: Callable[[float], datetime],
    hours: tuple[int, int] = (8, 20),
    settled: bool = True,
) -> list[str]:
    """What broke the promise, one sentence each; empty if it was kept.

    settled: the last run has ended by itself, so that nothing may be in doubt any more.
    """
    rows = {(Path(row["folder"]).name, row["file"]): row for row in ledger}
    found = []
    counted: Counter[tuple[str, str]] = Counter()
    for arrival in arrivals:
        where = f"{arrival.campaign}/{arrival.name}"
        row = rows.get((arrival.campaign, arrival.name))
        if row is None:
            found.append(f"{where} arrived, and the ledger does not know it")
            continue
        if not row["resend"]:
            counted[row["campaign"], row["slot"]] += 1
        found += [f"{where}: {fault}" for fault in faults_of(arrival, row, settled)]
        shown = clock(arrival.at)
        if not (shown.weekday() < 6 and hours[0] <= shown.hour <= hours[1]):
            found.append(f"{where} arrived at {shown}, outside its hours")
    found += [
        f"{campaign} arrived {count} times in slot {slot}" for (campaign, slot), count in counted.items() if count > 1
    ]
    names = Counter((arrival.campaign, arrival.name) for arrival in arrivals)
    found += [f"{'/'.join(name)} arrived {count} times" for name, count in names.items() if count > 1]
    found += [
        f"{name[0]}/{name[1]}: delivered says the ledger, and it never arrived"
        for name, row in rows.items()
        if row["state"] == "delivered" and not names[name]
    ]
    if settled:
        in_doubt = [row for row in ledger if row["state"] in ("claimed", "exported", "publishing", "withdrawing")]
        found += [f"{row['campaign']} {row['slot']}: still {row['state']} after a run that ended" for row in in_doubt]
    return found


def faults_of(arrival: Arrival, row: Row, settled: bool) -> list[str]:
    """What is wrong with one file that arrived, and that the ledger knows."""
    found = []
    known = ("delivered", "in doubt") if settled else ("delivered", "in doubt", "publishing", "withdrawing")
    if row["state"] not in known:
        found.append(f"arrived, and the ledger says {row['state']}")
    if (arrival.size_bytes, arrival.sha256) != (row["size_bytes"], row["sha256"]):
        found.append(f"arrived with {arrival.size_bytes} bytes, and the ledger says {row['size_bytes']}")
    elif arrival.path.exists():
        lines = arrival.path.read_bytes().count(b"\n")
        if lines != row["rows"] + 1:
            found.append(f"has {lines} lines for {row['rows']} rows and a header")
    return found
