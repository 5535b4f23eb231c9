"""schedule_task.xml: that Windows takes it, and that it starts the program when it should."""

import re
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from windows import needs

PROJECT = Path(__file__).parents[1]
TASK_FILE = PROJECT / "schedule_task.xml"
SCHEMA_FILE = PROJECT.parent / "shared" / "schema" / "task-scheduler.xsd"
NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# The order of Windows' own exports (Task Scheduler, "Export..."), which the schema leaves open.
EXPORTED_ORDER = {
    "Task": "RegistrationInfo Triggers Principals Settings Actions",
    "CalendarTrigger": "Repetition StartBoundary EndBoundary ExecutionTimeLimit Enabled RandomDelay ScheduleByWeek",
    "Repetition": "Interval Duration StopAtDurationEnd",
    "ScheduleByWeek": "DaysOfWeek WeeksInterval",
    "Principal": "UserId LogonType RunLevel",
    "Settings": "MultipleInstancesPolicy DisallowStartIfOnBatteries StopIfGoingOnBatteries AllowHardTerminate "
    "StartWhenAvailable RunOnlyIfNetworkAvailable IdleSettings AllowStartOnDemand Enabled Hidden RunOnlyIfIdle "
    "WakeToRun ExecutionTimeLimit Priority",
    "IdleSettings": "StopOnIdleEnd RestartOnIdle",
    "Exec": "Command Arguments WorkingDirectory",
}

SETTINGS = {
    "MultipleInstancesPolicy": "IgnoreNew",
    "DisallowStartIfOnBatteries": "false",
    "StopIfGoingOnBatteries": "false",
    "AllowHardTerminate": "true",
    "StartWhenAvailable": "true",
    "RunOnlyIfNetworkAvailable": "true",
    "AllowStartOnDemand": "true",
    "Enabled": "true",
    "Hidden": "false",
    "RunOnlyIfIdle": "false",
    "WakeToRun": "true",
    "ExecutionTimeLimit": "PT55M",
    "Priority": "4",
}


@pytest.fixture
def task() -> ElementTree.Element:
    return ElementTree.parse(TASK_FILE).getroot()


def find(element: ElementTree.Element, *names: str) -> ElementTree.Element:
    found = element.findall("/".join(NAMESPACE + name for name in names))
    assert len(found) == 1, names
    return found[0]


def name_of(element: ElementTree.Element) -> str:
    return element.tag.removeprefix(NAMESPACE)


def duration(text: str) -> timedelta:
    days, hours, minutes = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?)?", text).groups(default="0")
    return timedelta(days=int(days), hours=int(hours), minutes=int(minutes))


def starts(trigger: ElementTree.Element, first: datetime, last: datetime) -> list[datetime]:
    """When a weekly trigger starts its task, from `first` to `last`, as Microsoft describes it.

    The first start of a day is StartBoundary's time; Repetition starts again every Interval for Duration, the last time
    not after its end (Microsoft's daily example: every minute for 4 minutes starts five times).
    """
    boundary = datetime.fromisoformat(find(trigger, "StartBoundary").text)
    weeks = int(find(trigger, "ScheduleByWeek", "WeeksInterval").text)
    days = {name_of(day) for day in find(trigger, "ScheduleByWeek", "DaysOfWeek")}
    interval = duration(find(trigger, "Repetition", "Interval").text)
    length = duration(find(trigger, "Repetition", "Duration").text)
    week_of_boundary = boundary.date() - timedelta(days=boundary.weekday())

    found = []
    day = boundary
    while day <= last:
        week = (day.date() - week_of_boundary).days // 7
        if DAYS[day.weekday()] in days and week % weeks == 0:
            found += [day + n * interval for n in range(length // interval + 1)]
        day += timedelta(days=1)
    return [start for start in found if first <= start <= last]


def test_two_weeks_of_starts_are_every_hour_from_8_to_20_on_monday_to_saturday(task):
    monday = datetime(2026, 12, 14)
    expected = [
        monday + timedelta(days=day, hours=hour)
        for day in range(14)
        if (monday + timedelta(days=day)).weekday() != 6
        for hour in range(8, 21)
    ]
    found = starts(find(task, "Triggers", "CalendarTrigger"), monday, monday + timedelta(days=14))
    assert found == expected
    assert len(found) == 2 * 78


def test_the_trigger_is_the_only_one_enabled_and_without_a_time_zone(task):
    (trigger,) = find(task, "Triggers")
    assert find(trigger, "Enabled").text == "true"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT08:00:00", find(trigger, "StartBoundary").text)
    assert trigger.find(f"{NAMESPACE}EndBoundary") is None


def test_the_last_run_of_the_day_is_not_cut_off_when_the_repetition_ends(task):
    assert find(task, "Triggers", "CalendarTrigger", "Repetition", "StopAtDurationEnd").text == "false"


def test_a_run_is_ended_before_the_next_is_due(task):
    limit = duration(find(task, "Settings", "ExecutionTimeLimit").text)
    interval = duration(find(task, "Triggers", "CalendarTrigger", "Repetition", "Interval").text)
    assert limit < interval


@pytest.mark.parametrize(("name", "value"), SETTINGS.items())
def test_a_setting_is_the_chosen_one(task, name, value):
    assert find(task, "Settings", name).text == value


def test_no_setting_is_left_out_of_these_tests(task):
    assert {name_of(element) for element in find(task, "Settings")} == set(SETTINGS) | {"IdleSettings"}


def test_the_settings_that_are_not_obvious_have_their_reason_in_the_comment_above_them():
    with_comments = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    settings = list(find(ElementTree.parse(TASK_FILE, with_comments).getroot(), "Settings"))
    above = dict(zip(settings[1:], settings, strict=False))
    explained = {
        name_of(element)
        for element, previous in above.items()
        if previous.tag is ElementTree.Comment and element.tag is not ElementTree.Comment
    }
    assert set(SETTINGS) - explained == {"StopIfGoingOnBatteries", "Enabled", "RunOnlyIfIdle"}


def test_it_runs_as_the_user_who_registers_it_without_a_stored_password_or_an_administrator(task):
    principal = find(task, "Principals", "Principal")
    assert find(principal, "LogonType").text == "InteractiveToken"
    assert find(principal, "RunLevel").text == "LeastPrivilege"
    assert [name_of(element) for element in principal] == ["LogonType", "RunLevel"]
    assert find(task, "Actions").get("Context") == principal.get("id")


def test_it_calls_the_bat_with_scheduled_and_names_the_folder_once_without_quotes(task):
    action = find(task, "Actions", "Exec")
    assert find(action, "Command").text == r"%SystemRoot%\System32\cmd.exe"
    assert find(action, "Arguments").text == r"/d /c .\run_pipeline.bat --scheduled"
    assert find(action, "WorkingDirectory").text == r"%LOCALAPPDATA%\mailing_pipeline"
    assert TASK_FILE.read_text("ascii").count(r"<WorkingDirectory>") == 1


def test_the_file_is_pure_ascii_and_names_no_encoding():
    raw = TASK_FILE.read_bytes()
    assert raw.isascii()
    assert raw.startswith(b'<?xml version="1.0"?>')


def test_the_elements_stand_in_the_order_of_windows_own_exports(task):
    for element in task.iter():
        if order := EXPORTED_ORDER.get(name_of(element), "").split():
            places = [order.index(name_of(child)) for child in element]
            assert places == sorted(places), name_of(element)


def test_it_is_valid_against_microsofts_schema():
    etree, schema = needs.module("lxml.etree"), microsofts_schema()
    assert schema.validate(etree.parse(TASK_FILE)), schema.error_log


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("<Priority>4</Priority>", "<Priority>11</Priority>"),
        ("PT55M", "55 minutes"),
        ("<Monday />", "<Segunda />"),
        ("IgnoreNew", "Ignore"),
        ('Context="Author"', 'Context="Nobody"'),
    ],
)
def test_the_schema_check_finds_a_fault(right, wrong):
    broken = needs.module("lxml.etree").fromstring(TASK_FILE.read_text("ascii").replace(right, wrong))
    assert not microsofts_schema().validate(broken)


def microsofts_schema():
    """Without customTriggerType, whose content libxml2 holds to be ambiguous. We have no such trigger."""
    etree = needs.module("lxml.etree")
    schema = etree.parse(needs.shared_file(SCHEMA_FILE))
    for element in schema.xpath('//*[@name="customTriggerType" or @type="customTriggerType"]'):
        element.getparent().remove(element)
    return etree.XMLSchema(schema)
