"""Files of rules: what each may say, and what is refused, with the file and the line."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from etl.config.rules import MOST_RULES, read_rule, read_rules, signature
from etl.domain.rules import Changes, Found, compared, keyed
from etl.errors import ConfigError

NOW = dt.datetime(2026, 4, 1, 12, 30, tzinfo=dt.UTC)
TITLE = "-- title: it is so\n"


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_rule(path)
    return str(caught.value).removeprefix(str(path))


def test_a_rule_says_what_it_is_before_its_statement(tmp_path: Path) -> None:
    text = (
        "\ufeff-- why: nobody knows\n-- Title: it is so\r\n--severity: error\n-- key: a , b\n\nSELECT 1 AS a;; -- end\n"
    )
    (tmp_path / "daily.sql").write_text(text, newline="")
    found = read_rule(tmp_path / "daily.sql")
    assert (found.name, found.title, found.severity, found.key) == ("daily", "it is so", "error", ("a", "b"))
    assert found.sql(NOW).endswith("\n\nSELECT 1 AS a")


def test_moments_stand_outside_texts_and_comments(tmp_path: Path) -> None:
    sql = "SELECT '{x''}' AS \"{y}\" /* {z} */ WHERE a >= {7 days ago} AND b < {2026-03-31 14:00 Asia/Shanghai} -- {"
    (tmp_path / "m.sql").write_text(TITLE + sql)
    moments = "WHERE a >= '2026-03-25 12:30:00+00' AND b < '2026-03-31 06:00:00+00' -- {"
    assert read_rule(tmp_path / "m.sql").sql(NOW) == f"{TITLE}SELECT '{{x''}}' AS \"{{y}}\" /* {{z}} */ {moments}"


ONLY = "a rule is one SELECT"
NO_PARAMETERS = "there are no parameters, and a moment is written as {7 days ago}"
DIFFERENTLY = "the two databases read other kinds differently"
REFUSED = {
    "": f": has no statement: {ONLY}",
    "-- title: x\n/* only a comment */ ;": f": has no statement: {ONLY}",
    "SELECT 1": ":1: has no title: begin with a line such as -- title: Settlement flows run daily",
    "-- titel: x\nSELECT 1": ':1: a rule has no "titel": did you mean title?',
    "-- title: x\n-- title: y\nSELECT 1": ":2: title is given twice",
    "-- title:\nSELECT 1": ":1: title must have 1 to 500 printable characters",
    f"{TITLE}-- severity: bad\nSELECT 1": ':2: severity must be one of info, warning, error, not "bad"',
    f"{TITLE}-- key: a,,b\nSELECT 1": ":2: key must name columns, such as -- key: org_id, flow_id",
    f"{TITLE}SELECT 1;\nSELECT 2": f":2: has a second statement after a semicolon: {ONLY}",
    f"{TITLE}DELETE FROM target": f':2: begins with "DELETE": {ONLY}',
    f"{TITLE}WITH a AS (SELECT 1)\nDELETE FROM target": f":3: has the word DELETE: {ONLY}, which only reads",
    f"{TITLE}SELECT 1 INTO x": f":2: has the word INTO: {ONLY}, which only reads",
    f"{TITLE}SELECT 1 FROM x FOR UPDATE": f":2: has the word UPDATE: {ONLY}, which only reads",
    f"{TITLE}ATTACH 'x' AS y": f':2: begins with "ATTACH": {ONLY}',
    f"{TITLE}SELECT 1) AS a,\n(SELECT 2": ":2: has a ) too many",
    f"{TITLE}SELECT (1": ":2: has a ( that is not closed",
    f"{TITLE}SELECT 'a": ":2: a quotation is not closed",
    f'{TITLE}SELECT "a': ":2: a quotation is not closed",
    f"{TITLE}SELECT 1\n/* a": ":3: a comment is not closed",
    f"{TITLE}SELECT E'\\''": f":2: write texts as '...': {DIFFERENTLY}",
    f'{TITLE}SELECT U&"pg\\005fsleep"(1)': f':2: write names as "...": {DIFFERENTLY}',
    f"{TITLE}SELECT $$a$$": f":2: has a $: {NO_PARAMETERS}",
    f"{TITLE}SELECT :a": f":2: has a :a: {NO_PARAMETERS}",
    f"{TITLE}SELECT {{}}": ':2: "" is not a time that can be understood',
    f"{TITLE}SELECT {{some day}}": ':2: "some day" is not a time that can be understood',
    f"{TITLE}SELECT '\0'": ":2: has a NUL character",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_anything_but_one_select_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rule.sql"
    path.write_text(text)
    assert refused(path).startswith(REFUSED[text])


def test_a_file_that_cannot_be_used_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    assert read_rules(folder) == ((), ())
    folder.mkdir()
    (folder / "good.sql").write_text(f"{TITLE}SELECT 1")
    (folder / ".hidden.sql").write_text("")
    (folder / "latin.sql").write_bytes(b"-- title: caf\xe9\nSELECT 1")
    (folder / "large.sql").write_text(f"{TITLE}SELECT 1 --" + "x" * 2**16)
    (folder / "folder.sql").mkdir()
    (folder / "lost.sql").symlink_to(folder / "nowhere")
    (folder / "two words.sql").write_text(f"{TITLE}SELECT 1")
    (folder / "Good.sql").write_text(f"{TITLE}SELECT 1")
    (folder / "z-again.sql").symlink_to(folder / "good.sql")
    found = read_rules(folder)
    assert [rule.name for rule in found.usable] == ["Good", "z-again"]
    assert {each.name: each.problem.message for each in found.refused} == {
        "good": "differs from Good.sql only in upper and lower case: rename one of the two",
        "latin": "is not UTF-8 text: save it as UTF-8",
        "large": "cannot be read: it is larger than 64 KiB",
        "folder": "cannot be read: Is a directory",
        "lost": "there is no such file, or it is a link that leads nowhere",
        "two words": "a rule is named after its file: use only letters, digits, dot, underscore and hyphen",
    }
    (folder / "Good.sql").unlink()
    assert [(each.name, each.problem.message) for each in read_rules(folder).refused][-1] == (
        "z-again",
        "is the same file as good.sql: keep one of the two",
    )
    for number in range(MOST_RULES):
        (folder / f"a{number}.sql").write_text(f"{TITLE}SELECT 1")
    found = read_rules(folder)
    assert len(found.usable) + len(found.refused) == MOST_RULES + 2
    assert "files of rules" in found.refused[-1].problem.message
    (tmp_path / "file").touch()
    assert read_rules(tmp_path / "file").refused[0].problem.message.startswith("the folder of rules cannot be read")


def test_a_link_that_leads_nowhere_hides_no_change_of_another_file(tmp_path: Path) -> None:
    assert signature(tmp_path) == ()
    (tmp_path / "a.sql").symlink_to(tmp_path / "a.sql")
    seen = [signature(tmp_path)]
    for text in ("SELECT 1", "SELECT 11"):
        (tmp_path / "b.sql").write_text(text)
        seen.append(signature(tmp_path))
    assert len({*seen, ()}) == 4


@pytest.mark.parametrize(
    ("columns", "rows", "key", "said"),
    [
        (["a", "a"], [], (), "two of its columns are called a: rename one with AS"),
        (["a", "b"], [], ("c",), "its key names c, which is none of its columns (a, b)"),
        (["a", "b"], [[1, 2], [1, 3]], ("a",), 'two of its rows have the same key, {"a":1}: name more columns there'),
        (["a"], [[1], [1]], (), 'two of its rows have the same key, {"a":1}: write SELECT DISTINCT'),
        (["a"], [["é" * 1000]], (), "a key is longer than 2,000 bytes: name fewer columns in -- key"),
    ],
)
def test_a_key_identifies_one_row(
    columns: list[str], rows: list[list[object]], key: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        keyed(Found(columns, rows), key)


def test_findings_are_compared_by_key() -> None:
    rows = keyed(Found(["a", "b"], [[None, 1], ["x", float("inf")], [True, "\0é"]]), ("a",))
    assert rows == {
        '{"a":null}': '{"a":null,"b":1}',
        '{"a":"x"}': '{"a":"x","b":"Infinity"}',
        '{"a":true}': '{"a":true,"b":"\\u0000é"}',
    }
    known = {"1": "a", "2": "b", "3": "c"}
    assert compared(known, {"2": "b", "3": "d", "4": "e"}) == Changes({"4": "e"}, {"3": "d"}, ["1"])
