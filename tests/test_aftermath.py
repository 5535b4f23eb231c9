"""After a run: the heartbeat, the alerts, what the dialer did with the file."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from local_servers import free_port
from stage import NOON, Stage

import mailing_pipeline

ONE = "SELECT 1 AS n"
HOUR = timedelta(hours=1)
CANARY = "s3cret-Canary"


class Listener:
    """A web server that notes what it is sent."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.posted: list[dict[str, str]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.fetched.append(self.path)
                self._answer()

            def do_POST(self) -> None:
                listener.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer()

            def _answer(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"

    @property
    def told(self) -> list[str]:
        """Each alert, title and text."""
        return [f"{post['title']}\n{post['message']}" for post in self.posted]


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


# ---------------------------------------------------------------------------------------------------------------------
# HEARTBEAT_URL
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def beating(stage: Stage, listener: Listener) -> Stage:
    stage.settings(HEARTBEAT_URL=f"http://{listener.address}/beat/{CANARY}")
    stage.query("10_a", ONE)
    return stage


def test_the_heartbeat_is_fetched_after_every_run_that_ended_with_0(beating: Stage, listener: Listener) -> None:
    for minutes in (0, 5):  # the second run finds everything delivered
        assert beating.main(now=NOON + timedelta(minutes=minutes)).exit_code == 0
    assert listener.fetched == [f"/beat/{CANARY}"] * 2


@pytest.mark.parametrize("options", [["--dry-run"], ["--check"], ["--status"]])
def test_looking_is_no_heartbeat(beating: Stage, listener: Listener, options: list[str]) -> None:
    assert beating.main(options).exit_code == 0
    assert listener.fetched == []


def test_a_run_that_failed_is_no_heartbeat(beating: Stage, listener: Listener) -> None:
    beating.query("20_b", "SELECT broken")
    assert beating.main().exit_code == 4
    beating.settings(PGPORT=free_port(), RETRY_ATTEMPTS=1)
    assert beating.main(["--resend"]).exit_code == 5
    assert listener.fetched == []


def test_a_monitor_that_does_not_answer_changes_nothing(beating: Stage) -> None:
    beating.settings(HEARTBEAT_URL=f"http://127.0.0.1:{free_port()}/{CANARY}")
    result = beating.main()
    assert result.exit_code == 0 and "HEARTBEAT_URL" in result.log
    assert CANARY not in result.said


@pytest.mark.parametrize("wrong", ["a blank ", "no http answer"])
def test_a_heartbeat_that_goes_wrong_in_http_changes_nothing_and_is_not_quoted(beating: Stage, wrong: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:

        def answer() -> None:
            with contextlib.suppress(OSError), deaf.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"220 ftp.example.com ready " + CANARY.encode() + b"\r\n")

        threading.Thread(target=answer, daemon=True).start()
        blank = wrong if wrong.startswith("a blank") else ""
        beating.settings(HEARTBEAT_URL=f"http://127.0.0.1:{deaf.getsockname()[1]}/{blank}{CANARY}")
        result = beating.main()
    assert result.exit_code == 0 and "HEARTBEAT_URL" in result.log
    assert CANARY not in result.said and CANARY not in beating.everything_written()


# ---------------------------------------------------------------------------------------------------------------------
# ALERT_URLS
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(stage: Stage, listener: Listener) -> Stage:
    stage.settings(ALERT_URLS=f"json://{listener.address}/{CANARY}")
    stage.query("10_a", ONE)
    return stage


def test_a_run_that_went_well_alerts_nobody(watched: Stage, listener: Listener) -> None:
    assert watched.main(now=NOON).exit_code == 0
    assert listener.posted == []


def test_a_campaign_that_needs_a_person_is_told_with_what_to_do(watched: Stage, listener: Listener) -> None:
    watched.query("20_b", ONE, min_rows=5)
    watched.query("30_c", "SELECT nome2 FROM contatos")
    assert watched.main(now=NOON).exit_code == 4
    (told,) = listener.told
    assert "b: 12:00 held: 1 contact, fewer than min_rows 5" in told and "c: 12:00 failed: 30_c.sql: line 1" in told
    assert "-> " in told and "a:" not in told


def test_a_trouble_that_goes_on_is_not_told_every_hour_and_its_end_is(watched: Stage, listener: Listener) -> None:
    watched.query("10_a", ONE, min_rows=5)
    for hour in range(3):
        watched.main(now=NOON + hour * HOUR)
    assert len(listener.posted) == 1
    watched.query("10_a", ONE)
    watched.main(now=NOON + 3 * HOUR)
    assert len(listener.posted) == 2 and "a: works again" in listener.told[1]
    watched.main(now=NOON + 4 * HOUR)
    assert len(listener.posted) == 2


def test_a_database_that_is_down_is_told(watched: Stage, listener: Listener) -> None:
    watched.settings(PGPORT=free_port(), RETRY_ATTEMPTS=1)
    assert watched.main(now=NOON).exit_code == 5
    assert "PGHOST" in listener.told[0]


def test_settings_that_are_wrong_are_told(watched: Stage, listener: Listener) -> None:
    watched.settings(RUN_DAYS="seg-sex")
    assert watched.main(["--scheduled"]).exit_code == 2
    assert "RUN_DAYS" in listener.told[0]


def test_hours_in_which_the_pc_was_off_are_told_by_the_next_run(watched: Stage, listener: Listener) -> None:
    watched.settings(RUN_DAYS="mon-sat", RUN_HOURS="08:00-20:00")
    watched.main(now=NOON)
    watched.main(now=NOON + HOUR)
    assert listener.posted == []
    watched.main(now=NOON + 4 * HOUR)
    assert "22/12 14:00" in listener.told[0] and "22/12 15:00" in listener.told[0]
    watched.main(now=NOON + 20 * HOUR)  # 08:00 of the next day: 17 to 20 were missed, the night was not
    assert "22/12 20:00" in listener.told[1] and "21:00" not in listener.told[1]


def test_a_day_that_begins_at_half_past_misses_its_first_slot_too(watched: Stage, listener: Listener) -> None:
    watched.settings(RUN_DAYS="mon-sat", RUN_HOURS="08:30-20:00")
    watched.main(now=NOON + 8 * HOUR)  # 20:00, the last of the day
    watched.main(now=NOON + 21 * HOUR)  # 09:00
    assert "08:00" in listener.told[0] and "07:00" not in listener.told[0]


def test_alerts_speak_the_operators_language(watched: Stage, listener: Listener) -> None:
    watched.settings(LANGUAGE="pt")
    watched.query("10_a", ONE, min_rows=5)
    watched.main(now=NOON)
    assert "held" not in listener.told[0] and "contacts" not in listener.told[0]


def test_an_alert_that_cannot_be_sent_changes_nothing_but_the_log(watched: Stage) -> None:
    watched.settings(ALERT_URLS=f"json://127.0.0.1:{free_port()}/{CANARY}")
    watched.query("10_a", ONE, min_rows=5)
    result = watched.main(now=NOON)
    assert result.exit_code == 4 and "ALERT_URLS" in result.log
    assert CANARY not in result.said


@pytest.mark.parametrize("options", [["--dry-run"], ["--check"], ["--status"]])
def test_looking_alerts_nobody(watched: Stage, listener: Listener, options: list[str]) -> None:
    watched.query("20_b", "SELECT broken")
    watched.main(options)
    assert listener.posted == []


# ---------------------------------------------------------------------------------------------------------------------
# The dialer's part
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the file more often than every two seconds."""
    monkeypatch.setattr("mailing_pipeline.PICKUP_POLL_S", 0.1)


def test_a_mailing_that_was_picked_up_says_so(stage: Stage) -> None:
    stage.settings(PICKUP_TIMEOUT_SECONDS=20)
    stage.query("10_a", ONE)
    with stage.dialer():
        result = stage.deliver()
    assert result.exit_code == 0
    assert "picked up" in result.campaigns["a"]["pickup"] and stage.ledger()[0]["pickup"]


def test_a_mailing_that_was_not_picked_up_says_so_and_is_not_sent_again(stage: Stage) -> None:
    stage.settings(PICKUP_TIMEOUT_SECONDS=1)
    stage.query("10_a", ONE)
    result = stage.deliver(now=NOON)
    entry = result.campaigns["a"]
    assert (entry["verdict"], entry["pickup"]) == ("delivered", "not picked up")
    assert "not picked up within 1 s" in entry["message"] and entry["hint"]
    assert stage.deliver(now=NOON + timedelta(minutes=5)).verdicts == {"a": "already delivered"}
    assert len(stage.files("a")) == 1


def test_a_previous_mailing_that_still_stands_there_is_told(stage: Stage) -> None:
    stage.settings(PICKUP_TIMEOUT_SECONDS=1)
    stage.query("10_a", ONE)
    first = stage.deliver(now=NOON)
    assert first.exit_code == 0
    second = stage.deliver(now=NOON + HOUR)
    assert "mailing_a_22-12_12-00.csv" in second.log
    assert second.verdicts == {"a": "delivered"}


def test_a_mailing_that_the_dialer_refused_needs_a_person(stage: Stage) -> None:
    """A dialer that moves what it cannot read into a folder of its own."""
    stage.query("10_a", ONE, pickup=20, pickup_error_folder=stage.remote_base / "erros" / "a")
    stage.query("20_b", ONE)
    with stage.dialer(taken=stage.base / "erros"):
        result = stage.deliver()
    assert result.exit_code == 4 and "refused" in result.campaigns["a"]["pickup"]
    assert result.campaigns["a"]["hint"] and result.campaigns["b"]["pickup"] == ""
    assert result.verdicts == {"a": "delivered", "b": "delivered"}
    assert stage.deliver("--only", "b").exit_code == 0


def test_ctrl_c_beside_the_page_is_no_traceback(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stage.query("10_a", ONE)
    monkeypatch.setattr(mailing_pipeline, "aftermath", interrupted)
    result = stage.deliver()
    assert result.exit_code == 4 and "stopped by the operator" in result.stderr
    assert [row["state"] for row in stage.ledger()] == ["delivered"]


def test_a_ledger_that_is_taken_while_pickups_are_watched_costs_no_report(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.settings(PICKUP_TIMEOUT_SECONDS=1)
    stage.query("10_a", ONE)
    real = mailing_pipeline.Ledger.note

    def note(ledger: mailing_pipeline.Ledger, mailing: mailing_pipeline.Mailing, **values: Any) -> None:
        if values.get("pickup"):
            raise mailing_pipeline.LocalFault(mailing_pipeline.text("{path}: {reason}", path="ledger", reason="locked"))
        real(ledger, mailing, **values)

    monkeypatch.setattr(mailing_pipeline.Ledger, "note", note)
    result = stage.deliver()
    assert result.exit_code == 0 and result.verdicts == {"a": "delivered"}
    assert "the ledger could not note it" in result.log


def test_without_a_pickup_timeout_nobody_waits(stage: Stage) -> None:
    stage.query("10_a", ONE)
    result = stage.deliver()
    assert result.campaigns["a"]["pickup"] == "" and "picked up" not in result.log
