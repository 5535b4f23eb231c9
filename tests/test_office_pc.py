"""The office PC: its folder, and README's ten steps walked one after the other on a real Windows Python under Wine.

The walk is played once, in the order of README, by somebody who has the ZIP, the unpacked Python of "Without an
installer" and a folder `wheels`; the tests read what that person saw. What README says after "You see:" must be there.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from local_servers import LocalPostgres, SftpServer
from stage import PROJECT, Stage
from windows import needs, wine

if TYPE_CHECKING:
    from windows.cpython import WindowsPython, WindowsStage

README = (PROJECT / "README.md").read_text("utf-8")
CANARY = "SEGREDO-4711"


# ---- What --check says of this PC ------------------------------------------------------------------------------------


def notes(stage: Stage) -> list[str]:
    """The lines of --check that nobody must heed, but should know."""
    result = stage.main(["--check"])
    assert result.exit_code == 0, result.said
    assert CANARY not in result.said
    text = re.sub(r"\n(?!(ok|NOTE|FAULT)\b)", " ", result.stdout)  # long lines are folded
    return [line for line in text.splitlines() if line.startswith("NOTE")]


@pytest.fixture
def checked(stage: Stage) -> Stage:
    stage.query("10_a", "SELECT 1 AS telefone")
    stage.folder.chmod(0o700)
    return stage


def test_a_folder_of_one_s_own_on_this_pc_is_nothing_to_tell(checked: Stage) -> None:
    assert notes(checked) == []


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701], ids=oct)
def test_check_tells_of_a_folder_that_others_may_open(checked: Stage, mode: int) -> None:
    checked.folder.chmod(mode)
    (note,) = notes(checked)
    assert "other users of this PC may open it" in note


def test_check_tells_of_onedrive(tmp_path: Path, database: LocalPostgres, sftp: SftpServer) -> None:
    stage = Stage(tmp_path / "OneDrive - Empresa", database, sftp)
    stage.query("10_a", "SELECT 1 AS telefone")
    stage.folder.chmod(0o700)
    (note,) = notes(stage)
    assert "OneDrive uploads what is in it" in note
    stage.close()


@pytest.mark.parametrize(
    ("urls", "wrong"),
    [
        (f"json://localhost/{CANARY}", ""),
        (f"json://localhost mailtoo://{CANARY}@example.com nowhere", "2, 3"),
        (f"tgram://{CANARY}", "1"),
        (CANARY, "1"),
    ],
)
def test_check_says_which_alert_url_cannot_be_used_and_shows_none(checked: Stage, urls: str, wrong: str) -> None:
    checked.settings(ALERT_URLS=urls)
    found = notes(checked)
    assert [re.findall(r"apprise cannot use URL (.*?):", note) for note in found] == ([[wrong]] if wrong else [])


@pytest.mark.parametrize(
    ("url", "is_good"),
    [
        (f"https://hc.example.com/{CANARY}", True),
        ("HTTP://x", True),
        (f"hc.example.com/{CANARY}", False),
        (f"https:///{CANARY}", False),
    ],
)
def test_check_says_whether_the_heartbeat_is_a_url_and_does_not_fetch_it(
    checked: Stage, url: str, is_good: bool
) -> None:
    checked.settings(HEARTBEAT_URL=url)
    assert ["https://" in note for note in notes(checked)] == ([] if is_good else [True])


def test_what_the_program_writes_is_for_this_user_alone(checked: Stage) -> None:
    result = checked.run()
    assert result.exit_code == 0, result.said
    written = [path for folder in (checked.output, checked.logs) for path in (folder, *folder.rglob("*"))]
    assert len(written) > 4
    assert [path for path in written if path.stat().st_mode & 0o077] == []


# ---- The ten steps ---------------------------------------------------------------------------------------------------

FILES = ("mailing_pipeline.py", "run_pipeline.bat", "schedule_task.xml", "requirements.txt", "config.env.example")
FOLDERS = ("queries", "sample_data", "tests")


@dataclass
class Walk:
    """What a person saw, step by step; each step's exit code; and what came of it."""

    folder: Path
    saw: dict[int, str] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    arrivals: list[str] = field(default_factory=list)
    delivered: bytes = b""
    again: tuple[int, str] = (0, "")


def promised(text: str) -> list[str]:
    """What README says that a person sees: the quoted words of the sentence that begins with "You see:"."""
    sentences = re.findall(r"You see: (.*?)\.(?=\s[A-Z]|\s*$)", " ".join(text.split()))
    return [words for sentence in sentences for words in re.findall("`([^`]+)`", sentence)]


def readme_part(title: str) -> str:
    return README.split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]


def steps(title: str) -> dict[int, str]:
    found = re.split(r"^(\d+)\. ", readme_part(title), flags=re.MULTILINE)
    return {int(number): text.split("\n\n")[0] for number, text in zip(found[1::2], found[2::2], strict=True)}


STEPS = steps("## Install it on the office PC")


def unpack_zip(folder: Path) -> None:
    """The project as a person gets it, unpacked."""
    archive = folder.parent / "mailing_pipeline.zip"
    found = [path for name in FOLDERS for path in (PROJECT / name).rglob("*") if "__pycache__" not in path.parts]
    with zipfile.ZipFile(archive, "w") as packed:
        for path in [*(PROJECT / name for name in FILES), PROJECT / "README.md", *found]:
            packed.write(path, path.relative_to(PROJECT))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)


def fill_in(config: Path, values: dict[str, str]) -> None:
    """As with Notepad: what stands after the names that are there, also behind a #."""
    text = config.read_text("utf-8")
    for key, value in values.items():
        text, count = re.subn(rf"^#?{key}=.*$", lambda _, k=key, v=value: f"{k}='{v}'", text, flags=re.MULTILINE)
        assert count, key
    config.write_text(text, "utf-8", newline="\r\n")


@pytest.fixture(scope="module")
def walk(database: LocalPostgres, sftp: SftpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    needs.shared_file(PROJECT.parent / "shared" / "windows" / "setup.sh")
    needs.programs(*wine.PROGRAMS, packages=wine.PACKAGES)
    from windows import cpython

    (line,) = re.findall(r"^python (-m pip download .+)$", README, re.MULTILINE)
    wheels = cpython.wheels_once(f"python {line}")
    if isinstance(wheels, str):
        needs.internet(wheels)
    python = cpython.WindowsPython()

    @cpython.replayed
    def play(python: cpython.WindowsPython) -> Walk:
        stage = cpython.WindowsStage(tmp_path_factory.mktemp("walk"), database, sftp, python)
        try:
            return walked(stage, wheels)
        finally:
            stage.close()

    try:
        yield play(python=python)
    finally:
        python.stop()


def walked(stage: WindowsStage, wheels: Path) -> Walk:
    """README from its first step to its last."""
    from windows import cpython

    walk = Walk(stage.elsewhere / "João da Silva" / "AppData Local" / "mailing pipeline & cia")
    walk.folder.mkdir(parents=True)
    config, queries, python = walk.folder / "config.env", walk.folder / "queries", stage.python

    def do(step: int, line: str) -> None:
        walk.codes[step], walk.saw[step] = python.typed(walk.folder, line)

    unpack_zip(walk.folder)
    cpython.unpack_embeddable(walk.folder / "python")
    (walk.folder / "wheels").symlink_to(wheels)
    do(2, r"python\python.exe --version")

    config.write_bytes((walk.folder / "config.env.example").read_bytes())
    values = {"RUN_DAYS": "mon-sun", "RUN_HOURS": "00:00-23:59", "SFTP_BASE_DIR": str(stage.remote_base)}
    values |= {key: value for key, value in stage.values.items() if key.startswith(("PG", "SFTP_"))}
    fill_in(config, values | {"SFTP_HOST_KEY": ""})
    for sample in queries.glob("[1-6]0_*.sql"):
        sample.unlink()
    mine = stage.query("10_minha", "SELECT telefone, nome FROM contatos ORDER BY id LIMIT 100", phones="telefone")
    (queries / mine.name).write_bytes(mine.read_bytes())

    do(5, "run_pipeline.bat --check")
    fill_in(config, {"SFTP_HOST_KEY": re.findall(r"SHA256:\S+", walk.saw[5])[0]})
    do(6, "run_pipeline.bat --check")
    do(7, "run_pipeline.bat --dry-run")
    with stage.dialer() as dialer:
        do(8, "run_pipeline.bat --only minha")
        do(9, "run_pipeline.bat --register-task")
        walk.again = as_the_task_scheduler_does(walk, python)
        walk.arrivals = [arrival.campaign for arrival in dialer.record]
        walk.delivered = dialer.record[0].path.read_bytes() if dialer.record else b""
    walk.saw[10] = (walk.folder / "output" / "status.html").read_text("utf-8")
    python.typed(walk.folder, "run_pipeline.bat --unregister-task")
    return walk


def as_the_task_scheduler_does(walk: Walk, python: WindowsPython) -> tuple[int, str]:
    """Start what was registered. Wine's Windows keeps the task, but not its action."""
    assert (python.prefix / "drive_c" / "windows" / "system32" / "tasks" / "mailing_pipeline").exists()
    task = ElementTree.parse(walk.folder / ".venv" / "schedule_task.xml")
    command, arguments, folder = (str(part.text) for part in task.findall(".//{*}Exec/*"))
    assert command == r"%SystemRoot%\System32\cmd.exe" and arguments.startswith("/d /c ")
    return python.typed(Path(folder.removeprefix("Z:").replace("\\", "/")), arguments.removeprefix("/d /c "))


def test_readme_has_ten_steps_and_says_what_is_seen_at_those_that_show_something() -> None:
    assert list(STEPS) == list(range(1, 11))
    assert {number for number, text in STEPS.items() if promised(text)} == {2, 5, 6, 7, 8, 9, 10}


@pytest.mark.parametrize("step", [2, 5, 6, 7, 8, 9, 10])
@pytest.mark.long
@pytest.mark.timeout(900)
def test_at_each_step_a_person_sees_what_readme_says(walk: Walk, step: int) -> None:
    saw = " ".join(walk.saw[step].split())
    for words in promised(STEPS[step]):
        assert words in saw, walk.saw[step]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_step_ends_as_it_should(walk: Walk) -> None:
    assert walk.codes == {2: 0, 5: 2, 6: 0, 7: 0, 8: 0, 9: 0}, walk.saw


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_walk_ends_with_one_mailing_delivered_and_the_task_sends_nothing_twice(walk: Walk) -> None:
    assert walk.arrivals == ["minha"]
    assert walk.delivered.count(b"\r\n") == 101
    code, saw = walk.again
    assert (code, "already delivered" in saw) == (0, True), saw


@pytest.mark.long
@pytest.mark.timeout(900)
def test_check_tells_of_the_folder_s_rights_as_windows_has_them(walk: Walk) -> None:
    """Wine's icacls does nothing, so that the folder is as open as Linux has it."""
    assert "other users of this PC may open it" in " ".join(walk.saw[6].split())
    assert "on the network" not in walk.saw[6]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_unpacked_python_stays_as_it_came(walk: Walk) -> None:
    from windows import cpython

    assert (walk.folder / "python" / "python313._pth").read_bytes() == cpython.EMBEDDABLE_PATHS
    assert not (walk.folder / "python" / "Lib").exists()
