import pytest

from m6rec.text.moments import Calendar, Clock

UNITS = {unit: [f"a {unit}", "{} " + unit + "s"] for unit in ("year", "month", "week", "day", "hour", "minute")}
CLOCK = Clock(UNITS, ["zero", "one", "two", "three"], "{} ago", "just now", "{} later", "then", session_minutes=60)
DAY = 86_400


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "just now"), (0, "just now"), (59, "just now"),
        (60, "a minute ago"), (150, "two minutes ago"), (10 * 60, "10 minutes ago"), (39 * 60, "30 minutes ago"),
        (3_600, "a hour ago"), (3 * 3_600 + 5, "three hours ago"), (DAY - 1, "23 hours ago"),
        (DAY, "a day ago"), (6.9 * DAY, "6 days ago"), (14 * DAY, "two weeks ago"),
        (30 * DAY, "a month ago"), (364 * DAY, "12 months ago"), (365 * DAY, "a year ago"),
        (800 * DAY, "two years ago"),
    ],
)  # fmt: skip
def test_since(seconds, expected):
    assert CLOCK.since(seconds) == expected


def test_after():
    assert CLOCK.after(0) == CLOCK.after(59 * 60) == "then"
    assert CLOCK.after(60 * 60) == "a hour later"
    assert CLOCK.after(2 * DAY) == "two days later"


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (0, ("winter", "Jan", "Thu", "night")),
        (1_720_000_000, ("summer", "Jul", "Wed", "morning")),  # 2024-07-03 09:46:40 UTC
        (1_733_000_000, ("autumn", "Nov", "Sat", "evening")),  # 2024-11-30 20:53:20 UTC
        (1_733_100_000, ("winter", "Dec", "Mon", "night")),  # 2024-12-02 00:40:00 UTC
    ],
)
def test_calendar(time, expected):
    calendar = Calendar(
        ["winter", "spring", "summer", "autumn"],
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"],
        ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
        ["night", "morning", "afternoon", "evening"],
    )
    assert tuple(calendar.describe(time, "north").values()) == expected
    assert set(calendar.describe(time)) == {"month", "weekday", "daypart"}
