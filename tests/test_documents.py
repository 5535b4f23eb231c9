"""What is written about the program is true: config.env.example, README, --help."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from stage import PROGRAM, PROJECT, Stage

import mailing_pipeline
from mailing_pipeline import SETTING_FIELDS, ExitCode, SettingsFault, State, load_settings

EXAMPLE = PROJECT / "config.env.example"
README = PROJECT / "README.md"
TESTS = PROJECT / "tests"
SETTING = re.compile(r"(?m)^(#?)([A-Z][A-Z0-9_]*)=(.*)$")
NEEDED = {"PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD", "SFTP_HOST", "SFTP_USER", "SFTP_PASSWORD", "SFTP_HOST_KEY"}


@pytest.fixture
def help_text() -> str:
    command = [sys.executable, str(PROGRAM), "--help"]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


@pytest.fixture
def readme() -> str:
    assert README.exists(), "README.md is not written yet"
    return README.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# config.env.example
# ---------------------------------------------------------------------------------------------------------------------


def settings_in_example() -> list[tuple[str, str, str]]:
    """Every setting there: # or nothing, key, value."""
    return SETTING.findall(EXAMPLE.read_text(encoding="utf-8"))


def test_the_example_has_every_setting_once_and_no_other() -> None:
    counted = Counter(key for _, key, _ in settings_in_example() if not key.startswith("PG"))
    assert counted == dict.fromkeys(SETTING_FIELDS, 1)


def test_the_example_shows_every_default() -> None:
    shown = {key: value for _, key, value in settings_in_example()}
    assert {key: shown[key] for key in SETTING_FIELDS} == {
        key: field.metadata["default"] for key, field in SETTING_FIELDS.items()
    }


def test_the_example_leaves_open_what_must_be_filled_in_and_nothing_else() -> None:
    assert {key for mark, key, _ in settings_in_example() if not mark} == NEEDED
    assert all(value == "" for mark, _, value in settings_in_example() if not mark)


def test_the_example_explains_every_setting() -> None:
    """Some words stand above each; a pair of settings may share them."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if SETTING.fullmatch(line):
            above = [text for text in lines[max(0, number - 3) : number] if re.match(r"# \S", text)]
            assert above, f"line {number + 1}: {line}"


def test_the_example_is_without_faults_as_it_is_and_with_every_default_written_out(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    config = tmp_path / "config.env"
    for written in (text, SETTING.sub(r"\2=\3", text)):
        config.write_text(written, encoding="utf-8")
        settings = load_settings(config, {}, sends=False, knows_host=False)
        assert settings.run_deadline_minutes == 50
        with pytest.raises(SettingsFault) as caught:
            load_settings(config, {}, sends=True, knows_host=True)
        told = "\n".join(map(str, caught.value.lines))
        assert len(caught.value.lines) == 4
        assert all(f"{key}: missing" in told for key in ("SFTP_HOST", "SFTP_USER", "SFTP_HOST_KEY"))
        assert "SFTP_PASSWORD, SFTP_KEY_FILE" in told


@pytest.mark.parametrize(
    ("written", "meant"), [(r"'a b#c$d'", "a b#c$d"), (r"'it\'s'", "it's"), (r"'back\\slash'", "back\\slash")]
)
def test_the_quotes_that_the_example_advises_do_what_it_says(tmp_path: Path, written: str, meant: str) -> None:
    assert written in EXAMPLE.read_text(encoding="utf-8")
    (tmp_path / "config.env").write_text(f"SFTP_PASSWORD={written}\n", encoding="utf-8")
    assert load_settings(tmp_path / "config.env", {}, sends=False, knows_host=False).sftp_password == meant


def test_the_example_filled_in_runs(stage: Stage) -> None:
    """Copy, fill in what is empty, run: as the README tells a newcomer."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for key in ("PGPORT", "SFTP_PORT", "SFTP_BASE_DIR", "RUN_DAYS", "RUN_HOURS", "SFTP_KEY_FILE", *NEEDED):
        if key in stage.values:
            text = re.sub(rf"(?m)^#?{key}=.*$", lambda _, key=key: f"{key}='{stage.values[key]}'", text)  # type: ignore[misc]
    stage.config.write_text(text, encoding="utf-8")
    stage.query("10_a", "SELECT 1 AS n")
    assert stage.main().exit_code == 0
    assert stage.files("a")


# ---------------------------------------------------------------------------------------------------------------------
# The program's own text, and README
# ---------------------------------------------------------------------------------------------------------------------


def test_the_docstring_lists_every_exit_code_in_the_words_of_help(help_text: str) -> None:
    for code in ExitCode:
        assert f"  {code.value}  {code.meaning}" in help_text
        assert f"    {code.value}  {code.meaning}\n" in (mailing_pipeline.__doc__ or "")


def test_help_fits_into_100_columns(help_text: str) -> None:
    assert max(map(len, help_text.splitlines())) <= 100


def test_readme_holds_todays_help(readme: str, help_text: str) -> None:
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", readme)
    assert help_text in blocks, "README.md needs a fenced block that is exactly what --help prints"


def test_readme_explains_every_exit_code(readme: str) -> None:
    for code in ExitCode:
        assert re.search(rf"(?m)^\|? *`?{code.value}`? *\|", readme), f"no table line for exit code {code.value}"


def test_readme_names_no_setting_that_is_none(readme: str) -> None:
    """A name that is renamed in the code must not live on in README."""
    prefixes = "|".join(sorted({name.split("_")[0] for name in SETTING_FIELDS}))
    named = set(re.findall(rf"`((?:{prefixes})_[A-Z_]+)`", readme))
    assert named <= set(SETTING_FIELDS)


def test_readme_quotes_what_the_program_says_in_both_languages(readme: str) -> None:
    quoted = re.findall(r'^- \*\*"(.+?)" / "(.+?)":\*\*', readme, re.MULTILINE)
    assert len(quoted) >= 3
    for english, portuguese in quoted:
        said = [told for phrase, told in mailing_pipeline.PORTUGUESE.items() if english in phrase]
        assert any(portuguese in told for told in said), (english, portuguese, said)


def test_readme_tells_the_operator_what_each_word_means_in_both_languages(readme: str) -> None:
    told = dict(re.findall(r"(?m)^\| `([^`]+)` / `([^`]+)` \|", readme))
    assert told == {State(word).told("pt"): word for word in told.values()}
    troubles = {State.HELD, State.FAILED, State.IN_DOUBT, State.NOT_TAKEN, State.MISSED}
    assert troubles <= {*told.values()}


def test_readme_names_no_directive_that_is_none(readme: str) -> None:
    for key in re.findall(r"(?m)^-- ([a-z_]+):", readme):
        assert key in mailing_pipeline.DIRECTIVES, key


def test_readme_s_table_has_every_directive(readme: str) -> None:
    told = {*re.findall(r"`([a-z_]+):?", "".join(re.findall(r"(?m)^\| (`.+?) \|", readme)))}
    assert mailing_pipeline.DIRECTIVES.keys() - told == set()


# ---------------------------------------------------------------------------------------------------------------------
# tests/README.md
# ---------------------------------------------------------------------------------------------------------------------


def test_the_tests_readme_names_only_files_that_exist_and_tests_that_stand_in_them() -> None:
    """A row of the table of faults names the files of its tests in its second cell."""
    lines = (TESTS / "README.md").read_text(encoding="utf-8").splitlines()
    for name in re.findall(r"`(test_\w+\.py)`", "\n".join(lines)):
        assert (TESTS / name).exists(), name
    for line in lines:
        files = files_of_row(line) if re.match(r"\| \d", line) else list(TESTS.glob("test_*.py"))
        texts = [path.read_text(encoding="utf-8") for path in files]
        defined = set(re.findall(r"(?m)^def (test_\w+)", "\n".join(texts)))
        named = set(re.findall(r"`(test_\w+)`", line))
        assert named <= defined, (line[:60], named - defined)


def files_of_row(line: str) -> list[Path]:
    """Files that a row names: `database` is test_faults_database.py, `field` test_field.py."""
    words = re.findall(r"\w+", line.split("|")[2])
    names = [f"{start}{word}.py" for word in words for start in ("test_faults_", "test_", "")]
    return [TESTS / name for name in names if (TESTS / name).exists()]
