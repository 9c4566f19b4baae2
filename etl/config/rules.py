"""Rules: files of SQL, each a query that should find nothing. Read here, evaluated in ``etl.database.restricted``.

A rule that cannot be used stops nobody but itself: its problem is a ``Problem``, and the other rules are used.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast, get_args

import msgspec

from etl.config.units import shown
from etl.errors import ConfigError, Problem
from etl.system.disk import KIB, read_regular
from etl.timeparse import parse_moment

Severity = Literal["info", "warning", "error"]
SEVERITIES: Final[Sequence[Severity]] = get_args(Severity)
MOST_RULES: Final = 200
_LARGEST: Final = 64 * KIB
_LONGEST_VALUE: Final = 500
_HEADER: Final = ("title", "severity", "key")
_HEADER_LINE: Final = re.compile(r"--\s*([A-Za-z_]{1,20})\s*:\s*(.*?)\s*")
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_SOME_TIME: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
      | (?P<quoted>[A-Za-z_]*&?'(?:[^']|'')*')
      | (?P<named>(?:[Uu]&)?"(?:[^"]|"")*")
      | (?P<name>[A-Za-z_\u0080-\U0010ffff][\w$\u0080-\U0010ffff]*)
      | (?P<parameter>(?<![:\w\])]):[A-Za-z_]\w*)
      | (?P<moment>\{[^{}\n]*\})
      | (?P<other>[0-9.]+|.)""",
    re.DOTALL | re.VERBOSE,
)
_CHANGES: Final = frozenset(
    {
        *("insert", "update", "delete", "merge", "into", "create", "drop", "alter", "truncate"),
        *("attach", "detach", "pragma", "vacuum"),
    }
)
"""No word of a query that only reads, unless it is quoted."""
_QUOTES: Final = ("'", '"')
_MARKS: Final = ("$", "?", "{", "}")
_ONLY: Final = "a rule is one SELECT"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One file ``NAME.sql`` of ``rules_dir``; ``text`` is all of it."""

    name: str
    path: Path
    text: str
    title: str
    severity: Severity = "warning"
    key: tuple[str, ...] = ()
    """The columns that identify what is found; (): all."""
    pieces: tuple[str, ...]
    """The SQL; every second piece is a moment, such as ``7 days ago``."""
    functions: tuple[str, ...]
    """The names before a ``(``."""

    def sql(self, now: dt.datetime) -> str:
        """The statement, with its moments as they are at ``now``, in whole seconds."""
        parts = [
            f"'{parse_moment(piece, now):%Y-%m-%d %H:%M:%S}+00'" if number % 2 else piece
            for number, piece in enumerate(self.pieces)
        ]
        return "".join(parts)


class Refused(NamedTuple):
    """A file that is no rule, and why; ``name`` is its stem."""

    name: str
    problem: Problem


class Rules(NamedTuple):
    """The rules of a folder, by name, and the files in it that cannot be used as one."""

    usable: Sequence[Rule] = ()
    refused: Sequence[Refused] = ()

    @property
    def names(self) -> frozenset[str]:
        """Every name that a file has."""
        return frozenset({each.name for each in self.usable} | {each.name for each in self.refused})


def read_rules(folder: Path) -> Rules:
    """The rules of ``folder``; a folder that is not there has none. Hidden files are left out."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".sql" and path.name[0] != ".")
    except FileNotFoundError:
        return Rules()
    except OSError as error:
        return Rules((), [Refused("", Problem(str(folder), f"the folder of rules cannot be read ({error.strerror})"))])
    usable, refused = list[Rule](), list[Refused]()
    names, files = dict[str, str](), dict[tuple[int, int], str]()
    for number, path in enumerate(paths):
        if number == MOST_RULES:
            many = f"there may be at most {MOST_RULES} rules: this file and all after it are left out"
            refused.append(Refused(path.stem, Problem(str(path), many)))
            refused.append(Refused("", Problem(str(folder), f"has {len(paths)} files of rules: {MOST_RULES} are used")))
            break
        try:
            _require_once(path, names, files)
            usable.append(_read(path))
        except _Complaint as complaint:
            refused.append(Refused(path.stem, complaint.problem(path)))
    return Rules(usable, refused)


def signature(folder: Path) -> tuple[object, ...]:
    """A value that changes with the files of rules; () while there is none."""
    found = list[tuple[object, ...]]()
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("[!.]*.sql")):
            found.append((path.name,))
            with contextlib.suppress(OSError):  # a link that leads nowhere hides no other file
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def read_rule(path: Path) -> Rule:
    """The rule in a file. Raises ConfigError."""
    try:
        return _read(path)
    except _Complaint as complaint:
        raise ConfigError([complaint.problem(path)]) from None


class _Complaint(ValueError):
    """What is wrong with a file, and in which line (0: as a whole)."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line

    def problem(self, path: Path) -> Problem:
        return Problem(f"{path}:{self.line}" if self.line else str(path), str(self))


def _require_once(path: Path, names: dict[str, str], files: dict[tuple[int, int], str]) -> None:
    """Refuse a name that differs from another only in case, and a second name of a file."""
    other = names.setdefault(path.name.lower(), path.name)
    if other != path.name:
        raise _Complaint(f"differs from {other} only in upper and lower case: rename one of the two")
    try:
        found = path.stat()
    except OSError:
        return  # reading it says why
    other = files.setdefault((found.st_dev, found.st_ino), path.name)
    if other != path.name:
        raise _Complaint(f"is the same file as {other}: keep one of the two")


def _read(path: Path) -> Rule:
    if not _NAME.fullmatch(path.stem):
        raise _Complaint("a rule is named after its file: use only letters, digits, dot, underscore and hyphen")
    try:
        text = read_regular(path, _LARGEST).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise _Complaint("is not UTF-8 text: save it as UTF-8") from None
    except FileNotFoundError:
        raise _Complaint("there is no such file, or it is a link that leads nowhere") from None
    except OSError as error:
        raise _Complaint(f"cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise _Complaint("has a NUL character", text.count("\n", 0, text.index("\0")) + 1)
    header = _header(text)
    pieces, functions = _statement(text)
    if "title" not in header:
        raise _Complaint("has no title: begin with a line such as -- title: Settlement flows run daily", 1)
    return Rule(
        name=path.stem,
        path=path,
        text=text,
        title=header["title"],
        severity=cast("Severity", header.get("severity", "warning")),
        key=tuple(column.strip() for column in header["key"].split(",")) if "key" in header else (),
        pieces=pieces,
        functions=functions,
    )


def _header(text: str) -> dict[str, str]:
    """What the comment lines before the statement say."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("--"):
            break
        match = _HEADER_LINE.fullmatch(line.strip())
        name = match[1].lower() if match else ""
        if match is None or name not in _HEADER:
            if likely := get_close_matches(name, _HEADER, 1):
                raise _Complaint(f"a rule has no {shown(name)}: did you mean {likely[0]}?", number)
            continue
        value = match[2]
        if name in found:
            raise _Complaint(f"{name} is given twice", number)
        if not value or len(value) > _LONGEST_VALUE or not value.isprintable():
            raise _Complaint(f"{name} must have 1 to {_LONGEST_VALUE} printable characters", number)
        if name == "severity" and value not in SEVERITIES:
            raise _Complaint(f"severity must be one of {', '.join(SEVERITIES)}, not {shown(value)}", number)
        if name == "key" and not all(column.strip() for column in value.split(",")):
            raise _Complaint("key must name columns, such as -- key: org_id, flow_id", number)
        found[name] = value
    return found


class _Token(NamedTuple):
    kind: str
    text: str
    at: int
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    """Everything but comments and space. What the two databases would read differently is refused."""
    line = 1
    for match in _TOKEN.finditer(text):
        kind, found, at = str(match.lastgroup), match[0], match.start()
        if kind == "quoted" and found[0] != "'" and found[:2].lower() != "x'":
            raise _Complaint("write texts as '...': the two databases read other kinds differently", line)
        if kind == "named" and found[0] != '"':
            raise _Complaint('write names as "...": the two databases read other kinds differently', line)
        if kind == "other" and (found in _QUOTES or text.startswith("/*", at)):
            raise _Complaint(f"a {'comment' if found == '/' else 'quotation'} is not closed", line)
        if kind == "parameter" or (kind == "other" and found in _MARKS):
            raise _Complaint(f"has a {found}: there are no parameters, and a moment is written as {{7 days ago}}", line)
        if kind != "space":
            yield _Token(kind, found, at, line)
        line += found.count("\n")


def _statement(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pieces of the only statement, and the functions that it calls. Refuses anything but one SELECT."""
    tokens, ends = list(_tokens(text)), len(text)
    while tokens and tokens[-1].text == ";":
        ends = tokens.pop().at
    if not tokens:
        raise _Complaint(f"has no statement: {_ONLY}")
    first = tokens[0]
    if first.text.lower() not in ("select", "with"):
        raise _Complaint(f"begins with {shown(first.text)}: {_ONLY}", first.line)
    depth = 0
    for token in tokens:
        depth += (token.text == "(") - (token.text == ")")
        if depth < 0:
            raise _Complaint("has a ) too many", token.line)
        if token.text == ";":
            raise _Complaint(f"has a second statement after a semicolon: {_ONLY}", token.line)
        if token.kind == "name" and token.text.lower() in _CHANGES:
            raise _Complaint(f"has the word {token.text.upper()}: {_ONLY}, which only reads", token.line)
    if depth:
        raise _Complaint("has a ( that is not closed", tokens[-1].line)
    calls = {
        before.text.strip('"') if before.kind == "named" else before.text.lower()
        for before, after in pairwise(tokens)
        if after.text == "(" and before.kind in ("name", "named")
    }
    return tuple(_pieces(text[:ends], tokens)), tuple(sorted(calls))


def _pieces(text: str, tokens: Sequence[_Token]) -> Iterator[str]:
    """SQL and moments in turn."""
    done = 0
    for token in tokens:
        if token.kind != "moment":
            continue
        try:
            parse_moment(token.text[1:-1], _SOME_TIME)
        except ValueError as error:
            raise _Complaint(str(error), token.line) from None
        yield text[done : token.at]
        yield token.text[1:-1]
        done = token.at + len(token.text)
    yield text[done:]
