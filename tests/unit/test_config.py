"""Settings and schedules: what is accepted, and that every mistake is named with its place and remedy."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import pickle
import re
import tracemalloc
from collections.abc import Callable, Mapping
from io import StringIO
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from etl.config import Schedule, Settings, TargetList, load, load_all, load_schedules, policy_of, with_policy
from etl.config.loading import another_database
from etl.config.slots import Cron, Every
from etl.config.units import duration, duration_or_zero, size, without_password
from etl.domain.model import Target
from etl.errors import ConfigError

CANARY = "kanarien-vogel"
SECRET = {"FLOWTRAIL_GATEWAY__SECRET_KEY": CANARY}
GATEWAY = '[gateway]\nurl = "https://apim.example.com"\naccess_key = "key"\n'
TARGETS = '[[targets]]\norg = "o1"\nusers = ["u1"]\n'


def write(folder: Path, text: str = GATEWAY, name: str = "flowtrail.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def settings(folder: Path, text: str = GATEWAY, environ: Mapping[str, str] = SECRET) -> Settings:
    return load(write(folder, text), environ)


def problems(folder: Path, text: str = GATEWAY, environ: Mapping[str, str] = SECRET) -> dict[str, str]:
    """What is wrong, by place; the name of the folder is left out."""
    with pytest.raises(ConfigError) as caught:
        settings(folder, text, environ)
    assert CANARY not in str(caught.value)
    assert len({place for place, _ in caught.value.problems}) == len(caught.value.problems)
    return {place.removeprefix(f"{folder}/"): message for place, message in caught.value.problems}


def problem(folder: Path, text: str = GATEWAY, environ: Mapping[str, str] = SECRET) -> tuple[str, str]:
    (only,) = problems(folder, text, environ).items()
    return only


def schedules(folder: Path, **files: str) -> tuple[Schedule, ...]:
    for name, text in files.items():
        write(folder, text, f"schedules/{name}.toml")
    return load_schedules(settings(folder))


def schedule_problems(folder: Path, **files: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        schedules(folder, **files)
    return [(place.removeprefix(f"{folder}/schedules/"), message) for place, message in caught.value.problems]


# Settings


def test_a_minimal_file_gets_the_documented_defaults(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found.path == tmp_path / "flowtrail.toml"
    assert found.schedules_dir == tmp_path / "schedules"
    assert found.coverage_gap == dt.timedelta(hours=36)
    assert (found.gateway.auth, found.gateway.concurrency, found.gateway.requests_per_second) == ("token", 16, 0)
    assert (found.gateway.timeout, found.gateway.deadline) == (dt.timedelta(seconds=30), dt.timedelta(minutes=2))
    assert found.gateway.max_body == 64 * 2**20
    assert found.gateway.max_clock_skew == dt.timedelta(minutes=5)
    assert found.database.url == f"sqlite:///{tmp_path}/flowtrail.db"
    assert (found.guard.min_removed, found.guard.max_removed_share) == (10, 0.3)
    assert (found.guard.max_emptied_targets, found.guard.max_emptied_share) == (5, 0.2)
    assert (found.service.listen, found.service.page, found.service.grace.seconds) == ("127.0.0.1:8787", True, 25)
    assert (found.retention.keep_runs, found.retention.heads_file) == (dt.timedelta(days=400), "")
    assert (found.log.level, found.log.format, found.scale.dask) == ("INFO", "auto", "")
    assert (found.archive.answers, found.seal.key_file, found.seal.timestamp_url) == ("none", "", "")
    assert found.warnings == ()


def test_without_requests_the_gateway_needs_no_address_no_key_and_no_files(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {}, asks_gateway=False).gateway.url == ""
    files = GATEWAY + 'secret_key_file = "/not/here"\nca_bundle = "/not/here"\n'
    assert load(write(tmp_path, files), {}, asks_gateway=False).gateway.access_key == "key"
    for wrong in ('url = "http://far.example.com"', 'url = "ftp://x"', "concurrency = 0", 'secret_key = "x"'):
        with pytest.raises(ConfigError):
            load(write(tmp_path, f"[gateway]\n{wrong}\n"), {}, asks_gateway=False)


EVERY_VALUE: dict[str, tuple[str, Any]] = {
    "SCHEDULES_DIR": ("/etc/plans", Path("/etc/plans")),
    "COVERAGE_GAP": ("2d", dt.timedelta(days=2)),
    "GATEWAY__URL": ("http://10.0.0.1:8080/enos/", "http://10.0.0.1:8080/enos"),
    "GATEWAY__ALLOW_HTTP": ("true", True),
    "GATEWAY__ACCESS_KEY": ("4711", "4711"),
    "GATEWAY__AUTH": ("none", "none"),
    "GATEWAY__CONCURRENCY": ("1000", 1000),
    "GATEWAY__REQUESTS_PER_SECOND": ("2.5", 2.5),
    "GATEWAY__TIMEOUT": ("500ms", dt.timedelta(milliseconds=500)),
    "GATEWAY__DEADLINE": ("1h30m", dt.timedelta(minutes=90)),
    "GATEWAY__MAX_BODY": ("10MB", 10_000_000),
    "GATEWAY__MAX_CLOCK_SKEW": ("0", dt.timedelta(0)),
    "GATEWAY__PROXY": ("http://proxy:3128", "http://proxy:3128"),
    "DATABASE__URL": ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"),
    "GUARD__MIN_REMOVED": ("1", 1),
    "GUARD__MAX_REMOVED_SHARE": ("1", 1.0),
    "GUARD__MAX_EMPTIED_TARGETS": ("7", 7),
    "GUARD__MAX_EMPTIED_SHARE": ("0", 0.0),
    "SERVICE__HOSTS": ("flowtrail, Flowtrail.example.com.", ("flowtrail", "flowtrail.example.com")),
    "SERVICE__LISTEN": ("[::1]:0", "[::1]:0"),
    "SERVICE__PAGE": ("false", False),
    "SERVICE__GRACE": ("10s", dt.timedelta(seconds=10)),
    "RETENTION__KEEP_RUNS": ("90d", dt.timedelta(days=90)),
    "RETENTION__HEADS_FILE": ("/mnt/heads.jsonl", "/mnt/heads.jsonl"),
    "LOG__LEVEL": ("debug", "DEBUG"),
    "LOG__FORMAT": ("json", "json"),
    "SCALE__DASK": ("tcp://scheduler:8786", "tcp://scheduler:8786"),
}


def test_every_value_can_be_overridden_by_its_environment_variable(tmp_path: Path) -> None:
    written = {f"FLOWTRAIL_{name}": text for name, (text, _) in EVERY_VALUE.items()}
    found = settings(tmp_path, GATEWAY + "concurrency = 3\n", written)
    for name, (_, value) in EVERY_VALUE.items():
        assert attrgetter(name.lower().replace("__", "."))(found) == value, name


def test_the_file_and_its_values_come_from_the_environment_or_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = write(tmp_path, name="elsewhere/other.toml")
    assert load(None, {**SECRET, "FLOWTRAIL_CONFIG": str(named)}).path == named
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWTRAIL_GATEWAY__SECRET_KEY", CANARY)
    write(tmp_path, "\ufeff" + GATEWAY)  # with a byte order mark, as editors write it
    here = load(None)
    assert (here.path, here.gateway.read_secret()) == (tmp_path / "flowtrail.toml", CANARY)


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (b"[gateway]\nurl = x\n", "flowtrail.toml:2", "not valid TOML"),
        (b"[gateway]\n[gateway]\n", "flowtrail.toml:2", "not valid TOML"),
        (b"\xff\xfe", "flowtrail.toml", "not UTF-8"),
        (b"a = " + b"[" * 50_000, "flowtrail.toml", "nested too deeply"),
        (None, "nowhere.toml", "there is no such file: `flowtrail init`"),
        (None, "", "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(
    tmp_path: Path, content: bytes | None, place: str, message: str
) -> None:
    path = tmp_path / place.partition(":")[0]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path, SECRET)
    assert caught.value.problems[0].place == str(tmp_path / place)


def test_all_problems_come_at_once_with_their_places(tmp_path: Path) -> None:
    text = """
schedules_dr = "x"
coverage_gap = "5 parsecs"
guard = 3
[gateway]
url = "http://far.example.com"
concurency = 3
concurrency = 0
page = true
[gatway]
[database]
url = "mysql://u:kanarien-vogel@h/db"
[log]
level = "loud"
"""
    environ = {"FLOWTRAIL_SERVICE__PAGE": "maybe", "FLOWTRAIL_GATEWAY__CONCURENCY": "3", "OTHER": "x"}
    found = problems(tmp_path, text, environ)
    assert found == {
        "flowtrail.toml: schedules_dr": "there is no such setting: did you mean schedules_dir?",
        "flowtrail.toml: coverage_gap": found["flowtrail.toml: coverage_gap"],
        "flowtrail.toml: guard": "must be a section: write [guard] on a line of its own",
        "flowtrail.toml: gateway.concurency": "there is no such setting: did you mean concurrency?",
        "flowtrail.toml: gateway.concurrency": "must be a whole number from 1 to 1000, not 0",
        "flowtrail.toml: gateway.page": "there is no such setting: it belongs in [service]",
        "flowtrail.toml: gatway": "there is no such setting: did you mean gateway?",
        "flowtrail.toml: log.level": "must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL",
        "FLOWTRAIL_GATEWAY__CONCURENCY": ("there is no such setting: did you mean FLOWTRAIL_GATEWAY__CONCURRENCY?"),
        "FLOWTRAIL_SERVICE__PAGE": 'must be true or false, not "maybe"',
        "flowtrail.toml: gateway.url": (
            "must start with https:// (http only to this machine, or with allow_http = true)"
        ),
        "flowtrail.toml: gateway.access_key": (
            'is missing: the access key of the EnOS application (or set auth = "none")'
        ),
        "flowtrail.toml: gateway.secret_key": (
            "is missing: set FLOWTRAIL_GATEWAY__SECRET_KEY in the environment, or secret_key_file to a file"
        ),
        "flowtrail.toml: database.url": ("mysql is not supported: Flowtrail keeps its trail in SQLite or PostgreSQL"),
    }
    assert 'such as "90s"' in found["flowtrail.toml: coverage_gap"]


GOOD_URLS = [
    "https://apim.example.com",
    "https://apim.example.com:8443/prefix/of/it",
    "HTTPS://APIM.Example.com",
    "https://münchen.example",
    "https://10.1.2.3",
    "https://[2001:db8::1]:8443",
    "http://localhost:8080",
    "http://127.0.0.1",
    "http://127.9.9.9:1",
    "http://[::1]:8080/x",
    "https://a_b.internal",
]
BAD_URLS = {
    "must be an address": (
        *("apim.example.com", "", "https://", "https:///path", "https:apim.example.com", "ftp://apim.example.com"),
        *("file:///etc/passwd", "javascript:alert(1)", " https://apim.example.com", "https://apim.example.com/a b"),
        *("https://apim.example.com\\@evil", "https://apim.example.com\\n"),
    ),
    "user name or password": (
        *("https://user@apim.example.com", "https://user:kanarien-vogel@apim.example.com"),
        *("https://:kanarien-vogel@apim.example.com", "https://apim.example.com@evil.example"),
        *("https://@apim.example.com",),
    ),
    "no query": (
        *("https://apim.example.com/?a=b", "https://apim.example.com?", "https://apim.example.com/#x"),
        *("https://apim.example.com#",),
    ),
    "invalid host or port": (
        *("https://apim.example.com:99999", "https://apim.example.com:0", "https://apim.example.com:"),
        *("https://apim.example.com:https", "https://[::1", "https://[::g]", "https://a..b", "https://."),
        *("https://" + "a" * 64 + ".example", "https://169%2e254.169.254", "https://apim,example.com"),
        *("https://2852039166", "https://0xa9fea9fe", "https://0251.0376.0251.0376", "https://169.254.43518"),
    ),
    "metadata": (
        *("https://169.254.169.254", "https://169.254.169.254.", "https://169.254.169.254:443/latest"),
        *("https://169.254.170.2", "https://１６９.254.169.254", "https://169。254。169。254"),
        *("https://[::ffff:169.254.169.254]", "https://[::ffff:a9fe:a9fe]", "https://[fd00:ec2::254]"),
        *("https://[fe80::1]", "https://100.100.100.200", "https://metadata.google.internal"),
        *("https://METADATA.google.internal.", "http://169.254.169.254"),
    ),
    "must start with https": (
        *("http://apim.example.com", "HTTP://apim.example.com", "http://10.0.0.1", "http://0.0.0.0"),
        *("http://localhost.example.com", "http://127.0.0.1.example.com", "http://[::2]"),
    ),
}


GOOD_DATABASES = [
    ("sqlite:///trail.db", "sqlite:///{folder}/trail.db"),
    ("sqlite:///../trail.db?timeout=5", "sqlite:///{folder}/../trail.db?timeout=5"),
    ("sqlite:////abs/trail.db", "sqlite:////abs/trail.db"),
    ("sqlite+pysqlite:///trail.db", "sqlite:///{folder}/trail.db"),
    ("postgresql://u@h/db", "postgresql+psycopg://u@h/db"),
    ("postgres://u@h:5432/db?sslmode=require", "postgresql+psycopg://u@h:5432/db?sslmode=require"),
    ("postgresql+psycopg:///db?host=/run/pg", "postgresql+psycopg:///db?host=/run/pg"),
]
BAD_DATABASES = [
    ("mysql://h/db", "mysql is not supported"),
    ("oracle+oracledb://h/db", "oracle+oracledb is not supported"),
    ("postgresql+asyncpg://h/db", "psycopg, not asyncpg"),
    ("sqlite+aiosqlite:///x.db", "is not supported"),
    ("sqlite://", "needs a file"),
    ("sqlite:///", "needs a file"),
    ("sqlite:///:memory:", "needs a file"),
    ("sqlite://trail.db", "needs a file"),
    ("sqlite:///file:x?mode=memory&uri=true", "needs a file"),
    ("flowtrail.db", "must be"),
    ("", "must be"),
]


def with_value(name: str, value: str) -> str:
    """A settings file with this value, as TOML, and otherwise only with what is required."""
    values = {"gateway.url": '"https://apim.example.com"', "gateway.access_key": '"key"', name: value}
    return "".join(f"{each} = {text}\n" for each, text in values.items())


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        *[("retention.keep_runs", text, "None") for text in ("", "forever", "Forever")],
        ("retention.heads_file", "heads.jsonl", "{folder}/heads.jsonl"),
        ("seal.key_file", "seal.pem", "{folder}/seal.pem"),
        ("verify.public_keys", ["a.pub"], "('{folder}/a.pub',)"),
        *[("gateway.url", url, url) for url in GOOD_URLS],
        *[("database.url", *each) for each in GOOD_DATABASES],
    ],
)
def test_a_value_is_completed_and_a_path_is_relative_to_the_settings(
    tmp_path: Path, name: str, written: object, expected: str
) -> None:
    found = attrgetter(name)(settings(tmp_path, with_value(name, json.dumps(written))))
    assert str(found) == expected.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gateway.concurrency", "1001", "from 1 to 1000, not 1001"),
        ("gateway.concurrency", '"16"', 'from 1 to 1000, not "16"'),
        ("gateway.concurrency", "1.5", "from 1 to 1000, not 1.5"),
        ("gateway.concurrency", "true", "from 1 to 1000, not true"),
        ("gateway.concurrency", "[1]", "from 1 to 1000, not a list"),
        ("gateway.access_key", "12", "must be text in quotes, not 12"),
        ("gateway.auth", '"basic"', 'must be "token" or "none", not "basic"'),
        ("gateway.requests_per_second", "-1", "0 for no limit, not -1"),
        ("gateway.requests_per_second", "inf", "0 for no limit, not inf"),
        ("gateway.timeout", '"0"', "longer than zero"),
        ("gateway.max_clock_skew", '"soon"', "must be a duration such as"),
        ("gateway.max_body", '"0"', "at least one byte"),
        ("gateway.allow_http", '"yes"', "must be true or false"),
        ("gateway.ca_bundle", '"nowhere.pem"', "there is no file"),
        ("gateway.proxy", '"socks5://h:1"', "must be an address such as"),
        ("gateway.nested", "{a = 1}", "there is no such setting"),
        ("guard.min_removed", "0", "1 or more, not 0"),
        ("guard.max_removed_share", "1.1", "a share from 0 to 1, not 1.1"),
        ("guard.max_emptied_share", "nan", "a share from 0 to 1, not nan"),
        ("service.listen", '"8787"', "host:port"),
        ("service.listen", '"localhost:99999"', "host:port"),
        ("service.listen", '":8787"', "host:port"),
        ("retention.keep_runs", '"23h"', 'must be at least a day, such as "400d", or "forever"'),
        ("retention.keep_runs", '"0"', "must be at least a day"),
        ("retention.keep_runs", '"always"', "must be a duration such as"),
        ("archive.answers", '"all"', 'must be "none" or "changed", not "all"'),
        ("seal.timestamp_url", '"tsa.example.com"', "must be an address such as"),
        ("log.format", '"xml"', 'must be "auto", "console" or "json"'),
        ("scale.dask", '"scheduler"', "tcp://scheduler:8786"),
        ("scale.dask", '"tcp://scheduler:8786"', "needs PostgreSQL"),
        ("schedules_dir", "2024-01-01", "must be text in quotes"),
        *[("gateway.url", json.dumps(url), message) for message, urls in BAD_URLS.items() for url in urls],
        *[("database.url", json.dumps(url), message) for url, message in BAD_DATABASES],
    ],
)
def test_a_wrong_value_is_refused_with_what_it_must_be(tmp_path: Path, name: str, value: str, message: str) -> None:
    place, found = problem(tmp_path, with_value(name, value))
    assert place == f"flowtrail.toml: {name}"
    assert message in found


def test_an_address_is_needed_and_allowing_plain_http_allows_no_metadata(tmp_path: Path) -> None:
    place, message = problem(tmp_path, '[gateway]\naccess_key = "key"\n')
    assert (place, message[:10]) == ("flowtrail.toml: gateway.url", "is missing")
    text = GATEWAY.replace("https://apim.example.com", "http://169.254.169.254")
    assert "metadata" in problem(tmp_path, text + "allow_http = true")[1]


# Secrets


def test_a_secret_in_the_file_is_refused_with_the_remedy_and_not_repeated(tmp_path: Path) -> None:
    for environ in (SECRET, {}):
        place, message = problem(tmp_path, f'{GATEWAY}secret_key = "{CANARY}"\n', environ)
        assert place == "flowtrail.toml: gateway.secret_key"
        assert "FLOWTRAIL_GATEWAY__SECRET_KEY" in message
        assert "secret_key_file" in message


def test_the_secret_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = write(tmp_path, f"{CANARY}\n", "enos")
    file.chmod(0o600)
    gateway = settings(tmp_path, f'{GATEWAY}secret_key_file = "enos"\n', {}).gateway
    assert gateway.secret_key_file == str(file)
    assert gateway.read_secret() == CANARY
    file.write_text("another\n")
    assert gateway.read_secret() == "another"
    file.write_text(" \n")
    with pytest.raises(ConfigError, match=r"gateway\.secret_key_file: .*enos is empty"):
        gateway.read_secret()
    file.unlink()
    with pytest.raises(ConfigError, match="enos cannot be read: No such file"):
        gateway.read_secret()


def test_the_secret_of_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    text = f'{GATEWAY}secret_key_file = "nowhere"\n'
    assert settings(tmp_path, text, SECRET).gateway.read_secret() == CANARY
    assert "nowhere cannot be read" in problem(tmp_path, text, {"FLOWTRAIL_GATEWAY__SECRET_KEY": ""})[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"a\nb\n", "more than one line"), (b"\xff", "is not UTF-8"), (b"a\0b", "control characters")],
)
def test_a_secret_file_without_one_secret_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "enos").write_bytes(content)
    place, found = problem(tmp_path, f'{GATEWAY}secret_key_file = "enos"\n', {})
    assert place == "flowtrail.toml: gateway.secret_key_file"
    assert message in found


def test_a_gateway_without_keys_needs_no_secret(tmp_path: Path) -> None:
    gateway = settings(tmp_path, '[gateway]\nurl = "http://localhost"\nauth = "none"\n', {}).gateway
    with pytest.raises(ConfigError, match="no secret is configured"):
        gateway.read_secret()


def test_secrets_and_passwords_print_as_stars(tmp_path: Path) -> None:
    text = f'{GATEWAY}proxy = "http://user:{CANARY}@proxy:3128"\n'
    url = f"postgresql://me:{CANARY}@host/db?sslpassword={CANARY}"
    found = settings(tmp_path, text, {**SECRET, "FLOWTRAIL_DATABASE__URL": url})
    console = Console(file=StringIO(), width=500)
    console.print(found)
    shown = [repr(found), str(found), f"{found.gateway}", str(found.gateway.secret_key), repr(found.database)]
    for text in [*shown, console.file.getvalue()]:  # type: ignore[attr-defined]
        assert CANARY not in text
        assert "***" in text
    assert found.database.url == url.replace("postgresql:", "postgresql+psycopg:")


def test_a_secret_does_not_travel_to_another_process(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(settings(tmp_path).gateway)


def test_files_with_a_secret_that_others_can_read_get_a_warning(tmp_path: Path) -> None:
    secret, url = write(tmp_path, CANARY, "enos"), write(tmp_path, "postgresql://u:p@h/db", "url")
    text = f'{GATEWAY}secret_key_file = "enos"\n[database]\nurl_file = "url"\n'
    secret.chmod(0o640)
    url.chmod(0o600)
    (warning,) = settings(tmp_path, text, {}).warnings
    assert warning == f"{secret} is open to others (mode 0640): chmod 600 {secret}"
    url.chmod(0o604)
    secret.chmod(0o400)
    (warning,) = settings(tmp_path, text, {}).warnings
    assert str(url) in warning
    write(tmp_path, f'{GATEWAY}[database]\nurl = "postgresql://u:p@h/db"\n').chmod(0o644)
    (warning,) = load(tmp_path / "flowtrail.toml", SECRET).warnings
    assert "flowtrail.toml is open to others" in warning


# The database's address


def test_the_address_of_the_database_may_lie_in_a_file(tmp_path: Path) -> None:
    write(tmp_path, f"postgresql://u:{CANARY}@h/db\n", "url").chmod(0o600)
    text = f'{GATEWAY}[database]\nurl_file = "url"\n'
    found = settings(tmp_path, text)
    assert found.database.url == f"postgresql+psycopg://u:{CANARY}@h/db"
    assert found.warnings == ()
    other = {**SECRET, "FLOWTRAIL_DATABASE__URL": "sqlite:////x.db"}
    assert settings(tmp_path, text, other).database.url == "sqlite:////x.db"
    assert "cannot be combined with url" in problem(tmp_path, text + 'url = "sqlite:///x.db"\n')[1]
    (tmp_path / "url").write_text(f"mysql://u:{CANARY}@h/db")
    place, message = problem(tmp_path, text)
    assert place == "flowtrail.toml: database.url_file"
    assert "mysql is not supported" in message


# Durations and sizes


SECONDS = [
    *[("90s", 90), ("15m", 900), ("36h", 129_600), ("1d", 86_400), ("2w", 1_209_600), ("500ms", 0.5)],
    *[("1h30m", 5400), ("1h 30m", 5400), ("1.5h", 5400), (" 5 s ", 5), ("1m500ms", 60.5)],
]
BYTES = [
    ("64MiB", 67_108_864),
    ("10MB", 10**7),
    ("1.5kB", 1500),
    ("2 GiB", 2**31),
    ("512b", 512),
    ("4096", 4096),
    (7, 7),
]


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        *[(duration, text, dt.timedelta(seconds=seconds)) for text, seconds in SECONDS],
        *[(duration_or_zero, zero, dt.timedelta(0)) for zero in ("0", 0, "0s")],
        *[(size, value, amount) for value, amount in BYTES],
    ],
)
def test_measures_are_read_as_people_write_them(read: Callable[[object], Any], value: object, expected: object) -> None:
    assert read(value) == expected


NO_DURATIONS = ["", "5", "s", "5x", "5 minutes", "1h1h", "m5", "1e3s", "-1s", "5M", "٣s", 5, 1.5, True]
NO_SIZES = ["", "MB", "5iB", "64XB", "-1MB", "1e9", 1.5, True, None, 0, "0.5b", "2TiB", 2**60]


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        *[(duration, value, 'must be a duration such as "90s"') for value in NO_DURATIONS],
        *[(duration, zero, "longer than zero") for zero in ("0", 0, "0s")],
        (duration, "999999999999w", "shorter than 100 years"),
        *[(size, value, "must be") for value in NO_SIZES],
    ],
)
def test_an_invalid_measure_is_refused(read: Callable[[object], Any], value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(value)


@given(st.text())
def test_any_text_is_a_measure_or_a_value_error(text: str) -> None:
    for read in (duration, duration_or_zero, size):
        with contextlib.suppress(ValueError):
            read(text)


@given(st.text(min_size=1).filter(lambda text: "/" not in text and "@" not in text))
def test_a_password_is_hidden_whatever_it_looks_like(password: str) -> None:
    assert without_password(f"postgresql://u:{password}@h/db") == "postgresql://u:***@h/db"


def test_a_user_is_hidden_where_it_may_be_a_token_and_shown_where_it_names_a_role() -> None:
    assert without_password("http://token@proxy:3128") == "http://***@proxy:3128"
    assert without_password("http://u:p@proxy:3128") == "http://***@proxy:3128"
    assert without_password("postgresql+psycopg://role@h/db") == "postgresql+psycopg://role@h/db"


def test_the_name_of_a_key_file_is_masked_and_is_no_password_on_the_command_line() -> None:
    url = "postgresql://u@h/db?sslkey=/etc/flowtrail/client.key"
    assert "client.key" not in without_password(url)
    assert another_database(url, None).endswith("client.key")
    with pytest.raises(ConfigError, match="--to-file"):
        another_database(f"{url}&sslpassword=x", None)


# Schedules


def test_the_shipped_example_is_a_valid_schedule_and_so_is_every_line_that_is_commented_out(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "schedules" / "example.toml").read_text()
    (example,) = schedules(tmp_path, example=shipped)
    assert (example.slots, example.jitter) == (Cron("*/15 * * * *"), dt.timedelta(seconds=20))
    assert [target.user_id for target in example.targets] == ["u15426865866571", "u15426865866572"]
    (example,) = schedules(tmp_path, example=re.sub(r"(?m)^# (\[|(org|users|expression) =|cov)", r"\1", shipped))
    assert example.coverage_gap == dt.timedelta(hours=36)
    assert example.targets[-1] == Target("o15427722038191", "u15426865866571", "report")


def test_only_jitter_makes_a_schedule_walk_through_the_years_of_its_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cron, "shortest_gap", lambda self: pytest.fail("nobody needs it"))
    schedules(tmp_path, a=f'cron = "0 3 * * 7"\n{TARGETS}')


def test_schedules_are_named_after_their_files_in_order(tmp_path: Path) -> None:
    b = f'every = "15m"\njitter = "20s"\ncoverage_gap = "2d"\n{TARGETS}expression = "x"\n'
    a = f'cron = "0 3 * * 7"\ntimezone = "Asia/Shanghai"\n{TARGETS}'
    write(tmp_path, "not = valid", "schedules/.hidden.toml")
    write(tmp_path, "not a schedule", "schedules/readme.md")
    first, second = schedules(tmp_path, b=b, a=a)
    assert (first.name, first.path) == ("a", tmp_path / "schedules/a.toml")
    assert (first.slots, first.timezone) == (Cron("0 3 * * 7", "Asia/Shanghai"), "Asia/Shanghai")
    assert (first.jitter, first.coverage_gap, [*first.targets]) == (dt.timedelta(0), None, [Target("o1", "u1")])
    assert second.slots == Every(dt.timedelta(minutes=15))
    assert (second.jitter, second.coverage_gap) == (dt.timedelta(seconds=20), dt.timedelta(days=2))
    assert [*second.targets] == [Target("o1", "u1", "x")]


def test_a_missing_folder_or_schedule_is_reported_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"schedules: .*No such file.*`flowtrail init`"):
        load_schedules(settings(tmp_path))
    (tmp_path / "schedules").mkdir()
    with pytest.raises(ConfigError, match=r"has no schedule .*`flowtrail init`"):
        load_schedules(settings(tmp_path))


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (TARGETS, "s.toml", "exactly one of cron"),
        ('cron = "* * * * *"\nevery = "5m"\n' + TARGETS, "s.toml", "exactly one of cron"),
        ('cron = "* * *"\n' + TARGETS, "s.toml: cron", "a cron expression has five fields"),
        ("cron = 5\n" + TARGETS, "s.toml: cron", "must be text in quotes, not 5"),
        ('every = "1ms"\n' + TARGETS, "s.toml: every", '"100ms" or longer'),
        ('every = "soon"\njitter = "1m"\n' + TARGETS, "s.toml: every", "must be a duration"),
        ('every = "5m"\njitter = "5m"\n' + TARGETS, "s.toml: jitter", "must be shorter than the 0:05:00 between two"),
        ('cron = "*/15 * * * *"\njitter = "1h"\n' + TARGETS, "s.toml: jitter", "than the 0:15:00 between two slots"),
        ('every = "5m"\ntimezone = "Asia/Shangai"\n' + TARGETS, "s.toml: timezone", "Asia/Shanghai"),
        ('every = "5m"\ncoverage_gap = 5\n' + TARGETS, "s.toml: coverage_gap", "must be a duration"),
        ('every = "5m"\njiter = "5s"\n' + TARGETS, "s.toml: jiter", "did you mean jitter?"),
        ('every = "5m"\nusers = []\n' + TARGETS, "s.toml: users", "belongs below a line [[targets]]"),
        ('every = "5m"\n', "s.toml", "has no targets"),
        ('every = "5m"\ntargets = []\n', "s.toml", "has no targets"),
        ('every = "5m"\ntargets = 3\n', "s.toml: targets", "must be written as [[targets]]"),
        ('every = "5m"\n[targets]\norg = "o"\n', "s.toml: targets", "must be written as [[targets]]"),
        ('every = "5m"\n[[targets]]\nusers = ["u"]\n', "s.toml: [[targets]] #1", "needs org"),
        ('every = "5m"\n[[targets]]\norg = "o"\n', "s.toml: [[targets]] #1", "needs users"),
        ('every = "5m"\n[[targets]]\norg = "o"\nusers = "u"\n', "s.toml: [[targets]] #1", "needs users, a list"),
        ('every = "5m"\n[[targets]]\norg = "o"\nusers = [5]\n', "s.toml: [[targets]] #1", "ids in quotes, not 5"),
        ('every = "5m"\n[[targets]]\norg = 5\nusers = ["u"]\n', "s.toml: [[targets]] #1", "org must be text"),
        ('every = "5m"\n' + TARGETS + "user = 5\n", "s.toml: [[targets]] #1", "did you mean users?"),
        ('every = "5m"\n' + TARGETS.replace("u1", " "), "s.toml: [[targets]] #1, users #1", "user is empty"),
        ('every = "5m"\n' + TARGETS.replace("u1", "u1 "), "s.toml: [[targets]] #1, users #1", "white space"),
        ('every = "5m"\n' + TARGETS.replace("o1", ""), "s.toml: [[targets]] #1, users #1", "org is empty"),
        ('every = "5m"\n' + TARGETS.replace("u1", "u\\u00001"), "s.toml: [[targets]] #1, users #1", "control"),
        ('every = "5m"\n' + TARGETS.replace("u1", "u\\u20281"), "s.toml: [[targets]] #1, users #1", "control"),
        ('every = "5m"\n' + TARGETS.replace("u1", "u" * 256), "s.toml: [[targets]] #1, users #1", "longer than"),
        (f'every = "5m"\n{TARGETS}'.replace("u1", "\U00020000" * 255), "s.toml: [[targets]] #1, users #1", "765 bytes"),
        ('every = "5m"\n' + TARGETS + 'expression = "\\n"\n', "s.toml: [[targets]] #1, users #1", "control"),
        ('every = "5m"\ntargets_file = "no.csv"\n', "s.toml: targets_file", "no.csv cannot be read"),
        ('every = "5m"\ntargets_file = 5\n', "s.toml: targets_file", "must be the name of a CSV file"),
    ],
)
def test_a_mistake_in_a_schedule_is_named_with_its_place(tmp_path: Path, text: str, place: str, message: str) -> None:
    ((found_place, found),) = schedule_problems(tmp_path, s=text)
    assert found_place == place
    assert message in found


def test_a_target_listed_twice_is_an_error_that_names_both_places(tmp_path: Path) -> None:
    text = 'every = "5m"\ntargets_file = "s.csv"\n' + TARGETS.replace('"u1"', '"u1", "u2", "u1"')
    write(tmp_path, "org,user\no1,u3\n\no1,u2\n", "schedules/s.csv")
    first = f"{tmp_path}/schedules/s.toml: [[targets]] #1, users"
    assert schedule_problems(tmp_path, s=text) == [
        ("s.toml: [[targets]] #1, users #3", f"o1/u1 is already a target, at {first} #1: remove one of the two"),
        ("s.csv:4", f"o1/u2 is already a target, at {first} #2: remove one of the two"),
    ]


def test_a_target_may_be_in_two_schedules_or_have_several_expressions_and_a_long_id(tmp_path: Path) -> None:
    text = f'every = "5m"\n{TARGETS}{TARGETS}expression = "x"\n'.replace("u1", "流" * 255)
    assert len(schedules(tmp_path, a=text, b=text)) == 2


def test_a_broken_file_never_hides_the_problems_of_others(tmp_path: Path) -> None:
    found = schedule_problems(
        tmp_path,
        a="= broken",
        b='cron = "61 * * * *"\ntimezone = "Mars/Base"\n',
        c='every = "5m"\n' + TARGETS,
        d='every = "x"\n' + TARGETS,
        **{"my plants": 'every = "5m"\n' + TARGETS},
    )
    places = ["a.toml:1", "b.toml: timezone", "b.toml: cron", "b.toml", "d.toml: every", "my plants.toml"]
    assert [place for place, _ in found] == places
    assert "only letters, digits" in found[-1][1]


def test_settings_and_schedules_can_be_refused_together(tmp_path: Path) -> None:
    write(tmp_path, "every = 5\n", "plans/s.toml")
    with pytest.raises(ConfigError) as caught:
        load_all(write(tmp_path, 'schedules_dir = "plans"\n' + GATEWAY + "concurrency = 0\n"), SECRET)
    places = [place.removeprefix(f"{tmp_path}/") for place, _ in caught.value.problems]
    assert places == ["flowtrail.toml: gateway.concurrency", "plans/s.toml: every", "plans/s.toml"]
    write(tmp_path, 'every = "5m"\n' + TARGETS, "plans/s.toml")
    found, (schedule,) = load_all(write(tmp_path, 'schedules_dir = "plans"\n' + GATEWAY), SECRET)
    assert (found.schedules_dir, schedule.name) == (tmp_path / "plans", "s")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_targets_come_from_a_csv_file(tmp_path: Path, mark: str, end: str) -> None:
    rows = ["user,expression,org", "u1,,o1", "", 'u2,"a, ""b""", o1 ', "ü3,,o2"]
    write(tmp_path, mark + end.join(rows) + end, "schedules/s.csv")
    for heading, before in (("", []), ('[[targets]]\norg = "o0"\nusers = ["u0"]\n[[targets]]\n', [Target("o0", "u0")])):
        (schedule,) = schedules(tmp_path, s=f'every = "5m"\n{heading}targets_file = "s.csv"\n')
        assert [*schedule.targets] == [*before, Target("o1", "u1"), Target("o1", "u2", 'a, "b"'), Target("o2", "ü3")]


@pytest.mark.parametrize(
    ("rows", "place", "message"),
    [
        (b"", "s.csv:1", 'must be the header "org,user"'),
        (b"o1,u1\n", "s.csv:1", 'not "o1,u1"'),
        (b"org;user\no1;u1\n", "s.csv:1", 'not "org;user"'),
        (b"org,user,org\n", "s.csv:1", "must be the header"),
        (b"org,user,name\n", "s.csv:1", "must be the header"),
        (b"org,user\no1,u1,x\n", "s.csv:2", "has 3 fields where the header has 2"),
        (b"org,user\no1,u1\no1,\n", "s.csv:3", "user is empty"),
        (b"org,user\n\n\n,u1\n", "s.csv:4", "org is empty"),
        (b"org,user\no1,u\0\n", "s.csv:2", "control character"),
        (b'org,user\no1,"u1\n', "s.csv:2", "is not valid CSV"),
        (b"org,user\no1,\xff\n", "s.csv", "is not UTF-8"),
        (b"org,user\n", "s.toml", "has no targets"),
    ],
)
def test_a_mistake_in_a_csv_file_is_named_with_its_line(tmp_path: Path, rows: bytes, place: str, message: str) -> None:
    write(tmp_path, "", "schedules/s.csv").write_bytes(rows)
    found = schedule_problems(tmp_path, s='every = "5m"\ntargets_file = "s.csv"\n')
    assert found[0][0] == place
    assert message in found[0][1]


def test_ten_thousand_mistakes_are_counted_not_listed(tmp_path: Path) -> None:
    write(tmp_path, "org,user\n" + "o1,u1\n" * 10_001, "schedules/s.csv")
    found = schedule_problems(tmp_path, s='every = "5m"\ntargets_file = "s.csv"\n')
    assert len(found) == 21
    assert found[-1] == ("s.toml", "has 9980 more problems with its targets")


def test_thirty_thousand_targets_take_what_their_text_takes_and_little_more(tmp_path: Path) -> None:
    rows = [f"organisation-{n % 3},u{n}" for n in range(30_000)]
    write(tmp_path, "org,user\n" + "\n".join(rows), "schedules/s.csv")
    tracemalloc.start()
    (schedule,) = schedules(tmp_path, s='every = "5m"\ntargets_file = "s.csv"\n')
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(schedule.targets) == 30_000
    text = len("".join(rows))
    assert kept < text + 30_000 * 40
    assert most < kept + 30_000 * 20


# -------------------------------------------------------------------------------------------------------- rosters


def test_a_roster_is_a_sequence_of_its_targets_in_their_order() -> None:
    targets = [Target(f"o{n % 7}", f"u{n}", "é" * (n % 3)) for n in range(5000)]
    roster = TargetList(targets)
    assert [*roster] == targets
    assert (len(roster), roster[0], roster[-1], roster[4990:]) == (5000, targets[0], targets[-1], targets[4990:])
    assert [roster.index(target) for target in targets] == list(range(5000))
    with pytest.raises(IndexError):
        roster[5000]


def test_a_roster_has_a_target_once_and_knows_what_it_has_not() -> None:
    targets = [Target("o", f"u{n}") for n in range(3000)]
    roster = TargetList(targets)
    assert not any(roster.add(*target) for target in targets)
    assert [*roster] == targets
    assert all(target in roster for target in targets)
    absent = [
        Target("o", "u1", "x"),
        Target("ou", "1"),
        Target("", "ou1"),
        *(Target("o", f"v{n}") for n in range(3000)),
    ]
    assert not any(target in roster for target in absent)
    with pytest.raises(ValueError, match="no target here"):
        roster.index(Target("o", "v1"))


def test_the_union_of_rosters_has_each_target_once() -> None:
    first, second = TargetList([Target("o", "1"), Target("o", "2")]), TargetList([Target("o", "2"), Target("o", "3")])
    assert [*TargetList.union([first, second])] == [Target("o", "1"), Target("o", "2"), Target("o", "3")]
    assert TargetList.union([first]) is first


def test_a_worker_keeps_the_answers_that_its_coordinator_wants_kept(tmp_path: Path) -> None:
    wanted = settings(tmp_path, GATEWAY + '[archive]\nanswers = "changed"\n')
    assert with_policy(settings(tmp_path), policy_of(wanted)).archive.answers == "changed"
