"""run_pipeline.bat in a real command interpreter: Wine's cmd.exe, with stand-ins for Python and schtasks.

What Wine cannot show, a real PC must (tests/README.md). Two places where Wine 8's cmd differs from Windows':
- it expands % in %* a second time, so that a per cent sign is doubled here to arrive as one;
- it knows no file handle above 2, so that what is printed while the environment is set up lands in .venv.lock.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
from windows import needs, wine

PROJECT = Path(__file__).parents[1]
BAT = PROJECT / "run_pipeline.bat"
TASK_FILE = PROJECT / "schedule_task.xml"
AWKWARD = "Área de Trabalho & Mala! Direta"
NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
EXIT_CODES = range(8)

pytestmark = pytest.mark.timeout(300)  # the first test under Wine waits for its Windows to be made


# ---- The file itself -------------------------------------------------------------------------------------------------


def test_the_bat_is_pure_ascii_with_crlf_line_ends():
    raw = BAT.read_bytes()
    assert raw.isascii()
    assert raw.count(b"\r\n") == raw.count(b"\n") > 100


def test_git_gives_every_clone_a_bat_with_crlf_and_everything_else_with_lf():
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    asked = ["git", "check-attr", "eol", "run_pipeline.bat", "schedule_task.xml", "mailing_pipeline.py"]
    answer = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.rsplit(" ", 1)[1] for line in answer] == ["crlf", "lf", "lf"]


def test_a_remark_has_no_character_that_cmd_would_act_on():
    remarks = re.findall(r"^REM.*", BAT.read_text("ascii"), re.MULTILINE)
    assert remarks
    assert not [remark for remark in remarks if set(remark.replace("%ERRORLEVEL%", "")) & set("&|<>^%")]


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_is_explained_in_portuguese_and_in_english(code):
    assert len(re.findall(rf'^if "%CODE%"=="{code}" echo \S', BAT.read_text("ascii"), re.MULTILINE)) == 2


def snippet(name: str) -> str:
    """A piece of Python that the BAT keeps in a variable."""
    return re.search(rf'^set "{name}=(.*)"\r?$', BAT.read_text("ascii"), re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("version", "bits", "good"),
    [
        ((3, 10, 14), 64, False),
        ((3, 11, 0), 64, True),
        ((3, 14, 1), 64, True),
        ((3, 15, 0), 64, False),
        ((3, 12, 1), 32, False),
    ],
)
def test_a_python_is_good_from_3_11_to_3_14_and_with_64_bits(monkeypatch, version, bits, good):
    fake = SimpleNamespace(version_info=version, maxsize=2 ** (bits - 1) - 1, exit=sys.exit)
    monkeypatch.setitem(sys.modules, "sys", fake)
    with pytest.raises(SystemExit) as ended:
        exec(snippet("WANTED"), {})
    assert bool(ended.value.code) is not good


# ---- Under Wine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def windows(tmp_path_factory):
    needs.programs(*wine.PROGRAMS, packages=wine.PACKAGES)
    machine = wine.Wine(tmp_path_factory.mktemp("wine"))
    yield machine
    machine.stop()


class OfficePc:
    """The program in its folder on a PC with some Pythons, and a way to call its BAT."""

    def __init__(self, machine: wine.Wine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.desk = wine.Desk(machine.standin, folder)
        self.path = machine.programs("all", "py", "python", "schtasks", "icacls")
        folder.mkdir(parents=True)
        for file in (BAT, TASK_FILE):
            shutil.copy(file, folder)
        (folder / "mailing_pipeline.py").write_text("never read: Python is a stand-in\n")
        (folder / "requirements.txt").write_text("psycopg[binary]>=3.2\n")

    def have_environment(self) -> "OfficePc":
        self.desk.make_environment(SimpleNamespace(arguments=(".venv",)))
        shutil.copy(self.folder / "requirements.txt", self.folder / ".venv" / "requirements.installed")
        return self

    def have_pythons(self, *names: str) -> "OfficePc":
        self.path = self.machine.programs("-".join(names) or "none", "schtasks", "icacls", *names)
        return self

    def job_ends_with(self, code: int) -> "OfficePc":
        self.desk.replies.append(lambda call: (code, "") if call.is_job else None)
        return self

    def have_python_folder(self) -> "OfficePc":
        """python.org's embeddable build, unpacked beside the BAT, and wheels."""
        for name in ("python", "wheels"):
            (self.folder / name).mkdir()
        shutil.copy(self.machine.standin, self.folder / "python" / "python.exe")
        (self.folder / "python" / "python313._pth").write_bytes(b"python313.zip\r\n.\r\n#import site")
        (self.folder / "wheels" / "pip-26.3-py3-none-any.whl").touch()
        return self

    def call(
        self, arguments: str = "", directory: str = "C:\\windows\\system32", stdin: bytes = b"", **environ: str
    ) -> wine.Ended:
        """Call the BAT as typed in a console: everything after its name stands as it is."""
        line = f'cmd.exe /d /c ""{wine.windows_path(self.folder)}\\run_pipeline.bat" {arguments}"'
        return self.machine.run(line, directory, self.desk, self.path, stdin, **environ)

    def double_click(self) -> wine.Ended:
        """As Explorer does it; somebody presses a key at the end."""
        return self.call(stdin=b"\r\n")


@pytest.fixture
def pc(windows, tmp_path) -> OfficePc:
    return OfficePc(windows, tmp_path / "pc" / AWKWARD)


def says_both(said: str, portuguese: str, english: str) -> bool:
    return portuguese in said and english in said


PAUSED = "Press any key"  # Wine's words for pause, in an English locale


# ---- Wine's own failings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["its server is killed", "a stand-in hears nothing", "cmd cannot start a program"])
@pytest.mark.long
def test_where_wine_itself_fails_the_story_is_played_again_from_its_beginning(pc, failing):
    failed = []
    reply = {
        "its server is killed": lambda: pc.machine.server.process.kill(),
        "a stand-in hears nothing": lambda: (0, wine.FAILINGS[0]),
        "cmd cannot start a program": lambda: (0, wine.FAILINGS[1]),
    }[failing]

    def fail_once(call: wine.Call) -> tuple[int, str] | None:
        if not call.is_job or failed:
            return None
        failed.append(call)
        return reply()

    pc.desk.replies.append(fail_once)
    with pytest.warns(UserWarning, match="played again"):
        ended = pc.call("--check")
    assert failed
    assert ended.code == 0
    assert pc.desk.modules() == ["venv", "pip"]  # not ready from the first time
    assert len(pc.desk.jobs()) == 1


def test_where_a_test_s_own_answer_fails_nothing_is_played_again(pc):
    def fail(_: wine.Call) -> tuple[int, str]:
        raise LookupError("on purpose")

    pc.desk.replies.append(fail)
    with pytest.raises(LookupError, match="on purpose"):
        pc.call("--check")


# ---- Arguments, directory, exit code ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*EXIT_CODES, 255, -1073741510])
def test_an_exit_code_comes_through(pc, code):
    ended = pc.have_environment().job_ends_with(code).call("--scheduled")
    assert ended.code == code


@pytest.mark.parametrize(
    ("typed", "arrives"),
    [
        ("--scheduled", ["--scheduled"]),
        ("--dry-run --only a --only b", ["--dry-run", "--only", "a", "--only", "b"]),
        (r'--config "C:\Meus Documentos\config.env"', ["--config", r"C:\Meus Documentos\config.env"]),
        ('--config "João & Maria.env" --check', ["--config", "João & Maria.env", "--check"]),
        ('--only "a! b!" !x!', ["--only", "a! b!", "!x!"]),
        ('--only "100%% de %%PATH"', ["--only", "100% de %PATH"]),
        (r'--only "say \"hi\"" "C:\dir\\"', ["--only", 'say "hi"', "C:\\dir\\"]),
        ('"" --check', ["", "--check"]),
        ('--only "a | b > c < d ^ (e)"', ["--only", "a | b > c < d ^ (e)"]),
        ("--only=a,b;c", ["--only=a,b;c"]),
        ('"a b" --check', ["a b", "--check"]),
    ],
    ids=str,
)
def test_arguments_come_through_untouched(pc, typed, arrives):
    ended = pc.have_environment().call(typed)
    (job,) = pc.desk.jobs()
    assert list(job.words[1:]) == arrives
    assert ended.code == 0


@pytest.mark.parametrize("directory", ["C:\\", "C:\\windows\\system32", "Z:\\"])
def test_started_anywhere_the_program_runs_in_its_own_folder_with_its_own_python_in_utf_8(pc, directory):
    pc.have_environment().call("--check", directory)
    (job,) = pc.desk.jobs()
    assert job.directory == wine.windows_path(pc.folder)
    assert job.path.lower() == (wine.windows_path(pc.folder) + r"\.venv\Scripts\python.exe").lower()
    assert job.is_alone


def test_without_the_program_beside_it_the_bat_says_to_extract_the_zip_and_ends_with_2(pc):
    (pc.folder / "mailing_pipeline.py").unlink()
    ended = pc.call("--check")
    assert ended.code == 2
    assert says_both(ended.said, "extraia tudo primeiro", "extract all of it first")
    assert not pc.desk.calls


# ---- Double-click and pause ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", EXIT_CODES)
def test_a_double_click_explains_the_exit_code_in_two_languages_and_waits(pc, code):
    ended = pc.have_environment().job_ends_with(code).double_click()
    explanation = re.findall(rf'^if "%CODE%"=="{code}" echo (.*?)\r?$', BAT.read_text("ascii"), re.MULTILINE)
    assert ended.code == code
    assert [line for line in explanation if line in ended.said] == explanation
    assert PAUSED in ended.said


@pytest.mark.parametrize(
    ("code", "english"), [(-1073741510, "was interrupted"), (9, "did not end normally")], ids=["Ctrl+C", "unknown"]
)
def test_a_double_click_has_words_for_any_other_exit_code_too(pc, code, english):
    ended = pc.have_environment().job_ends_with(code).double_click()
    assert ended.code == code
    assert english in ended.said and PAUSED in ended.said


@pytest.mark.parametrize("arguments", ["--scheduled", '""', "--register-task", "--unregister-task", '"a b"'])
def test_with_any_argument_nothing_waits_for_a_key(pc, arguments):
    ended = pc.have_environment().job_ends_with(4).call(arguments)
    assert PAUSED not in ended.said
    assert "Codigo" not in ended.said


# ---- The environment -------------------------------------------------------------------------------------------------


def test_the_first_use_makes_the_environment_and_runs_and_the_second_only_runs(pc):
    assert pc.call("--check").code == 0
    assert pc.desk.modules() == ["venv", "pip"]
    assert (pc.folder / ".venv" / "requirements.installed").read_text() == "psycopg[binary]>=3.2\n"
    assert pc.call("--check").code == 0
    assert pc.desk.modules() == ["venv", "pip"]
    assert len(pc.desk.jobs()) == 2
    assert not (pc.folder / ".venv.lock").exists()


def test_the_first_use_says_that_it_takes_a_while(pc):
    assert says_both(pc.call("--check").said, "alguns minutos", "a few minutes")


def test_packages_come_from_the_internet_unless_a_folder_wheels_is_there(pc):
    first = pc.call("--check")
    (pc.folder / "wheels").mkdir()
    (pc.folder / "requirements.txt").write_text("psycopg[binary]>=3.3\n")
    second = pc.call("--check")
    assert (first.code, second.code) == (0, 0), f"{first.said}\n{second.said}"
    assert pc.desk.modules() == ["venv", "pip", "venv", "pip"], f"{first.said}\n{second.said}\n{pc.desk.calls}"
    online, offline = (" ".join(call.words) for call in pc.desk.calls if call.module == "pip")
    assert "--no-index" not in online
    assert offline.endswith("--no-index --find-links wheels -r requirements.txt")


@pytest.mark.parametrize("half", ["nothing installed", "no python.exe", "base Python gone", "other requirements"])
def test_an_environment_that_is_not_whole_is_made_anew(pc, half):
    pc.have_environment()
    if half == "nothing installed":
        (pc.folder / ".venv" / "requirements.installed").unlink()
    if half == "no python.exe":
        (pc.folder / ".venv" / "Scripts" / "python.exe").unlink()
    if half == "base Python gone":  # .venv's python.exe then says "No Python at ..." and returns 103
        pc.desk.replies.append(lambda call: (103, "") if ".venv" in call.path and not pc.desk.modules() else None)
    if half == "other requirements":
        (pc.folder / "requirements.txt").write_text("psycopg[binary]>=99\n")
    leftover = pc.folder / ".venv" / "half_a_package.py"
    leftover.touch()
    assert pc.call("--check").code == 0
    assert pc.desk.modules() == ["venv", "pip"]
    assert not leftover.exists()
    assert len(pc.desk.jobs()) == 1
    installed = (pc.folder / ".venv" / "requirements.installed").read_text()
    assert installed == (pc.folder / "requirements.txt").read_text()


def test_a_set_up_that_fails_half_way_says_what_to_do_runs_nothing_and_is_redone(pc):
    pc.desk.replies.append(lambda call: (1, "") if call.module == "pip" else None)
    ended = pc.call("--check")
    assert ended.code == 2
    assert says_both(ended.said, "traga a", "bring") and "wheels" in ended.said
    assert not pc.desk.jobs()
    pc.desk.replies.clear()
    assert pc.call("--check").code == 0
    assert pc.desk.modules() == ["venv", "pip", "venv", "pip"]


def test_a_folder_that_cannot_be_written_to_is_said_to_be_that(pc):
    pc.desk.replies.append(lambda call: (1, "") if call.module == "venv" else None)
    ended = pc.call("--check")
    assert ended.code == 2
    assert says_both(ended.said, "criar a pasta .venv", "folder .venv could not be created")
    assert pc.desk.modules() == ["venv"]


def test_two_at_once_do_not_set_up_the_same_folder(pc):
    """The second comes while pip of the first is at work: it leaves the folder alone and says so."""
    second: list[wine.Ended] = []

    def start_the_second(call: wine.Call) -> tuple[int, str] | None:
        if call.module == "pip" and pc.desk.modules() == ["venv", "pip"]:
            other = threading.Thread(target=lambda: second.append(pc.call("--scheduled")))
            other.start()
            other.join()
        return None

    pc.desk.replies.append(start_the_second)
    assert pc.call("--check").code == 0
    assert second[-1].code == 3
    assert says_both(second[-1].said, "Outra janela", "Another window")
    assert pc.desk.modules() == ["venv", "pip"]
    assert len(pc.desk.jobs()) == 1


# ---- Which Python ----------------------------------------------------------------------------------------------------


def test_the_launcher_is_asked_first(pc):
    pc.call("--check")
    maker = next(call for call in pc.desk.calls if call.module == "venv")
    assert (maker.program, maker.arguments[0]) == ("py", "-3")


@pytest.mark.parametrize("why", ["no launcher", "the launcher's is too old"])
def test_python_is_tried_when_the_launcher_has_none(pc, why):
    if why == "no launcher":
        pc.have_pythons("python")
    else:
        pc.desk.replies.append(lambda call: (1, "") if call.program == "py" else None)
    assert pc.call("--check").code == 0
    assert next(call for call in pc.desk.calls if call.module == "venv").program == "python"


def test_where_the_newest_python_is_newer_than_the_packages_the_launcher_is_asked_for_an_older_one(pc):
    def has_3_15_and_3_13(call: wine.Call) -> tuple[int, str] | None:
        is_good = call.program == "py" and call.arguments[0] == "-3.13"
        return None if is_good or not call.is_version_question else (1, "")

    pc.desk.replies.append(has_3_15_and_3_13)
    assert pc.call("--check").code == 0
    assert next(call for call in pc.desk.calls if call.module == "venv").arguments[0] == "-3.13"


@pytest.mark.parametrize("why", ["none", "too old", "only the pointer to the Store"])
def test_without_a_python_that_will_do_the_bat_says_what_to_install_and_ends_with_2(pc, why):
    if why == "none":
        pc.have_pythons()
    else:
        code = 1 if why == "too old" else 9009
        pc.desk.replies.append(lambda call: (code, "") if call.is_version_question else None)
    ended = pc.call("--check")
    assert ended.code == 2
    assert says_both(ended.said, "Falta um Python de 3.11 a 3.14", "Python 3.11 to 3.14")
    assert not pc.desk.modules() and not pc.desk.jobs()
    assert not (pc.folder / ".venv").exists()


def test_a_double_click_without_python_stays_open(pc):
    ended = pc.have_pythons().double_click()
    assert ended.code == 2
    assert "Falta um Python" in ended.said and PAUSED in ended.said


@pytest.mark.parametrize("build", ["embeddable", "full"])
def test_a_folder_python_beside_the_bat_is_taken_before_any_installed_python(pc, build):
    pc.have_python_folder()
    if build == "full":
        (pc.folder / "python" / "python313._pth").unlink()
    assert pc.call("--check").code == 0
    assert pc.desk.modules() == (["venv", "pip"] if build == "full" else ["pip"])
    assert {call.program for call in pc.desk.calls} == {"python", "icacls"}
    assert {call.path.split("\\")[-2] for call in pc.desk.calls if call.program == "python"} == {"python", "Scripts"}
    assert len(pc.desk.jobs()) == 1


def test_the_embeddable_python_is_copied_told_where_packages_are_and_filled_from_wheels_by_pip_s_own(pc):
    """It has no venv and no pip, and looks for modules where its ._pth says and nowhere else."""
    assert pc.have_python_folder().call("--check").code == 0
    (pip,) = [call for call in pc.desk.calls if call.module == "pip"]
    assert pip.words[:2] == (r"wheels\pip-26.3-py3-none-any.whl\pip", "install")
    assert " ".join(pip.words).endswith("--no-index --find-links wheels -r requirements.txt")
    own = (pc.folder / ".venv" / "Scripts" / "python313._pth").read_text().split()
    assert own == ["python313.zip", ".", "#import", "site", r"Lib\site-packages"]
    assert (pc.folder / "python" / "python313._pth").read_text().split() == own[:-1]


def test_a_python_folder_that_is_too_old_does_not_stop_an_installed_one(pc):
    beside = wine.windows_path(pc.folder) + r"\python\python.exe"
    pc.have_python_folder()
    pc.desk.replies.append(lambda call: (1, "") if call.path.lower() == beside.lower() else None)
    assert pc.call("--check").code == 0
    assert next(call for call in pc.desk.calls if call.module == "venv").program == "py"


# ---- Other people's environment --------------------------------------------------------------------------------------


def test_what_others_set_for_their_own_python_does_not_reach_ours(pc):
    foreign = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONUSERBASE", "PIP_TARGET", "PIP_USER", "PY_PYTHON3")
    assert pc.call("--check", **dict.fromkeys(foreign, r"C:\OSGeo4W\apps\Python312")).code == 0
    pythons = [call for call in pc.desk.calls if call.program in ("py", "python")]
    assert len(pythons) == 4  # which, venv, pip, the program
    assert not [call.environment for call in pythons if set(call.environment.split()) & set(foreign)]
    assert all(call.is_alone for call in pythons), pythons


@pytest.mark.parametrize("name", ["py.bat", "python.bat", "py.cmd", "schtasks.bat", "icacls.bat"])
def test_a_script_of_the_folder_with_a_program_s_name_is_not_run_in_its_place(pc, name):
    """Nor, on Windows, is an .exe: NoDefaultCurrentDirectoryInExePath, which Wine 8's cmd does not heed."""
    (pc.folder / name).write_bytes(b"@echo hijacked\r\n@exit 0\r\n")
    for option in ("--check", "--register-task", "--unregister-task"):
        ended = pc.call(option)
        assert (ended.code, "hijacked" in ended.said) == (0, False), ended.said


@pytest.mark.parametrize("module", ["secrets", "psycopg", "sitecustomize"])
def test_a_python_file_of_the_folder_with_a_module_s_name_is_not_run_in_its_place(tmp_path, module):
    """With the options that the BAT starts Python with, on the Python of this test."""
    shutil.copy(PROJECT / "mailing_pipeline.py", tmp_path)
    (tmp_path / f"{module}.py").write_text("print('hijacked')\nraise SystemExit(99)\n")
    command = [sys.executable, *snippet("ALONE").split(), "mailing_pipeline.py", "--status"]
    environ = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "nowhere"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, "config.env" in done.stderr) == (2, True), done.stdout + done.stderr


def test_cmd_looks_for_no_program_in_the_folder_itself():
    assert 'set "NoDefaultCurrentDirectoryInExePath=1"' in BAT.read_text("ascii")


# ---- Whose folder it is ----------------------------------------------------------------------------------------------


def test_the_first_set_up_leaves_the_folder_to_this_user_and_system_and_says_so_once(pc):
    first, again = pc.call("--check"), pc.call("--check")
    rights = [call.arguments for call in pc.desk.calls if call.program == "icacls"]
    assert [words[:2] for words in rights] == [(".", "/grant:r"), (".", "/inheritance:r")]
    user, system, quiet = rights[0][2:]
    assert quiet == "/q"
    assert re.fullmatch(r"[^\\]+\\[^\\]+:\(OI\)\(CI\)F", user) and system == "*S-1-5-18:(OI)(CI)F"
    assert says_both(first.said, "Esta pasta agora e so deste usuario", "This folder is now for this user alone")
    assert "Esta pasta" not in again.said


def test_where_windows_refuses_the_rights_nothing_is_taken_away_and_the_set_up_goes_on(pc):
    pc.desk.replies.append(lambda call: (1332, "") if call.program == "icacls" else None)
    ended = pc.call("--check")
    assert ended.code == 0
    assert [call.arguments[1] for call in pc.desk.calls if call.program == "icacls"] == ["/grant:r"]
    assert "Esta pasta" not in ended.said


# ---- An update -------------------------------------------------------------------------------------------------------


def test_new_files_over_the_old_while_it_runs_change_nothing_for_that_run(pc):
    """cmd reads a BAT on from where it was, also when it is another by then."""

    def update(call: wine.Call) -> tuple[int, str] | None:
        if not call.is_job:
            return None
        lines = BAT.read_bytes().split(b"\r\n")
        newer = lines[:1] + [b"REM " + b"new " * 40] * 30 + lines[1:]
        (pc.folder / "run_pipeline.bat").write_bytes(b"\r\n".join(newer))
        return 4, ""

    pc.have_environment().desk.replies.append(update)
    ended = pc.call("--scheduled")
    assert ended.code == 4, ended.said
    assert len(pc.desk.jobs()) == 1


def test_an_update_with_other_requirements_waits_for_the_run_that_is_under_way(pc):
    """Its environment stays whole; Windows lets nobody write to a program that runs, and Wine neither."""
    second: list[wine.Ended] = []

    def update(call: wine.Call) -> tuple[int, str] | None:
        if call.is_job and not second:
            (pc.folder / "requirements.txt").write_text("psycopg[binary]>=99\n")
            other = threading.Thread(target=lambda: second.append(pc.call("--check")))
            other.start()
            other.join()
        return None

    pc.have_environment().desk.replies.append(update)
    assert pc.call("--scheduled").code == 0
    assert second[0].code == 3
    assert says_both(second[0].said, "Outra janela", "Another window")
    assert not pc.desk.modules()
    assert pc.call("--check").code == 0
    assert pc.desk.modules() == ["venv", "pip"]


# ---- The task --------------------------------------------------------------------------------------------------------


def action_of(task: bytes) -> dict[str, str]:
    """Command, Arguments and WorkingDirectory as Windows would read them."""
    (action,) = ElementTree.fromstring(task).iter(f"{NAMESPACE}Exec")
    return {element.tag.removeprefix(NAMESPACE): element.text for element in action}


def test_register_task_hands_schtasks_the_task_with_the_folder_in_which_the_program_stands(pc):
    ended = pc.have_environment().call("--register-task")
    (call,) = [call for call in pc.desk.calls if call.arguments[0] == "/create"]
    assert ended.code == 0
    assert call.arguments == ("/create", "/tn", "mailing_pipeline", "/xml", r".venv\schedule_task.xml", "/f")
    assert pc.desk.kept_task.isascii()
    assert action_of(pc.desk.kept_task) == action_of(TASK_FILE.read_bytes()) | {
        "WorkingDirectory": wine.windows_path(pc.folder)
    }
    assert says_both(ended.said, "Tarefa registrada", "Task registered")
    assert not pc.desk.jobs()


@pytest.mark.parametrize("name", ["a -- b", "it's; (x) [y] {z}", "x=y,z", "日本 € õ"])
def test_register_task_works_in_a_folder_with_any_name(windows, tmp_path, name):
    pc = OfficePc(windows, tmp_path / "pc" / name).have_environment()
    assert pc.call("--register-task").code == 0
    assert action_of(pc.desk.kept_task)["WorkingDirectory"] == wine.windows_path(pc.folder)


def test_what_was_registered_runs_the_program_as_scheduled_when_the_task_scheduler_starts_it(pc):
    pc.have_environment().job_ends_with(4).call("--register-task")
    action = action_of(pc.desk.kept_task)
    command = action["Command"].replace("%SystemRoot%", "C:\\windows")
    ended = pc.machine.run(f"{command} {action['Arguments']}", action["WorkingDirectory"], pc.desk, pc.path)
    (job,) = pc.desk.jobs()
    assert job.words == ("mailing_pipeline.py", "--scheduled")
    assert job.directory == wine.windows_path(pc.folder)
    assert ended.code == 4
    assert PAUSED not in ended.said


@pytest.mark.parametrize("option", ["--register-task", "--unregister-task"])
def test_when_windows_refuses_the_bat_says_whom_to_ask_and_ends_with_2(pc, option):
    denied = "ERROR: Access is denied.\n"
    pc.desk.replies.append(lambda call: (1, denied) if call.program == "schtasks" else None)
    ended = pc.have_environment().call(option)
    assert ended.code == 2
    assert denied.strip() in ended.said
    assert says_both(ended.said, "Peca ao administrador", "Ask the administrator")


def test_unregister_task_deletes_the_task_and_needs_no_environment(pc):
    pc.desk.kept_task = task_of(wine.windows_path(pc.folder))
    assert pc.call("--unregister-task").code == 0
    assert pc.desk.calls[-1].arguments == ("/delete", "/tn", "mailing_pipeline", "/f")
    assert not pc.desk.kept_task
    assert not pc.desk.modules() and not pc.desk.jobs()


def task_of(folder: str) -> bytes:
    """What schtasks prints of the task that another copy of this program registered, in a folder of that name."""
    there = TASK_FILE.read_text("ascii").replace(r"%LOCALAPPDATA%\mailing_pipeline", folder.replace("&", "&amp;"))
    return there.encode("ascii", "replace")


def test_register_task_says_when_windows_will_run_it_next_and_how(pc):
    assert wine.NEXT_RUN.split("\n")[0] in pc.have_environment().call("--register-task").said


def test_register_task_again_replaces_the_task_of_this_folder(pc):
    pc.have_environment().desk.kept_task = task_of(wine.windows_path(pc.folder))
    assert pc.call("--register-task").code == 0
    assert action_of(pc.desk.kept_task)["WorkingDirectory"] == wine.windows_path(pc.folder)


@pytest.mark.parametrize("option", ["--register-task", "--unregister-task"])
def test_the_task_of_another_folder_is_left_alone_and_told(pc, option):
    other = task_of(r"C:\Users\ana\AppData\Local\mailing_pipeline")
    pc.have_environment().desk.kept_task = other
    ended = pc.call(option)
    assert ended.code == 2
    assert r"C:\Users\ana\AppData\Local\mailing_pipeline" in ended.said
    assert says_both(ended.said, "Ja existe uma tarefa", "There is a task")
    assert pc.desk.kept_task == other
    assert not (pc.folder / ".task_there.xml").exists()


def test_register_task_makes_the_environment_first_so_that_the_first_hour_does_not(pc):
    assert pc.call("--register-task").code == 0
    assert pc.desk.modules() == ["venv", "pip"]
    assert pc.desk.kept_task
