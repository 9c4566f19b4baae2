"""EnOS's Quartz schedules in words, and those that are not described."""

from __future__ import annotations

import pytest

from etl.config.quartz import quartz_in_words

WORDS = {
    "0 0 0 * * ? *": "at 00:00 every day",
    "0 0 2 * * ? *": "at 02:00 every day",
    "0 0 2 * * ?": "at 02:00 every day",
    "0 30 6 * * ? *": "at 06:30 every day",
    "0 0 * * * ? *": "at the start of every hour",
    "0 */15 * * * ? *": "every 15th minute of every hour",
    "0 0/15 * * * ? *": "every 15th minute of every hour",
    "0 5/15 * * * ? *": "every 15th minute from 5 through 59 of every hour",
    "0 * * * * ? *": "every minute",
    "0 0 8,20 * * ? *": "at 08:00 and 20:00 every day",
    "0 0 9 ? * 2-6 *": "at 09:00 on Monday through Friday",
    "0 0 9 ? * MON-FRI *": "at 09:00 on Monday through Friday",
    "0 0 9 ? * 1 *": "at 09:00 on Sunday",
    "0 0 9 ? * 7 *": "at 09:00 on Saturday",
    "0 0 9 ? * 1,7 *": "at 09:00 on Sunday and Saturday",
    "0 0 9 ? * 6L *": "at 09:00 on the last Friday of the month",
    "0 0 9 ? * 6#2 *": "at 09:00 on the second Friday of the month",
    "0 0 1 1 * ? *": "at 01:00 on the first day of every month",
    "0 0 1 21 * ? *": "at 01:00 on the 21st day of every month",
    "0 0 1 13 * ? *": "at 01:00 on the 13th day of every month",
    "0 0 1 L * ? *": "at 01:00 on the last day of every month",
    "0 0 1 1 JAN ? *": "at 01:00 on January 1",
    "0 0 1 * * ? 2027": "at 01:00 every day, only in 2027",
}


@pytest.mark.parametrize("expression", WORDS)
def test_a_schedule_is_described_as_quartz_means_it(expression: str) -> None:
    assert quartz_in_words(expression) == WORDS[expression]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "0 2 * * *",  # cron's, not Quartz's
        "0 0 2 1 * 2 *",  # Quartz has one of the two days
        "0 0 9 ? * 2/2 *",
        "0 0 9 ? * L *",
        "0 0 9 ? * 0 *",
        "0 0 9 ? * 8 *",
        "0 0 9 ? * FRI-MON *",
        "0 0 9 15W * ? *",
        "0 0 9 L-3 * ? *",
        "0 0 22-4 * * ? *",
        "0 61 9 * * ? *",
        "0 0 9 * * ? 2026-2028",
        "0 0 9 * * ? * *",
        "`rm -rf` <b> \u202e",
        "0 0 ² * * ? *",
        "0 0 9 ? * ² *",
    ],
)
def test_an_uncertain_schedule_is_not_described(expression: str) -> None:
    assert quartz_in_words(expression) == ""
