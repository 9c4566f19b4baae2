"""The checker as a program: alone, on old Pythons, on hostile archives; its Ed25519, and what it prints."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import signing
from etl.audit import check
from etl.domain import seal
from etl.signing.keys import SMALL_ORDER_POINTS
from tests.support import bundles
from tests.support.authority import Authority, served

CHECKER = Path(check.__file__)
STORY = bundles.some_days()
Checked = Callable[..., tuple[int, str]]


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Checked:
    """Runs the checker with arguments: the exit code, and what was printed."""
    return lambda *arguments: (check.main([*map(str, arguments)]), "".join(capsys.readouterr()))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.pack(tmp_path / "bundle.zip", STORY.rows, STORY.answers)


# ------------------------------------------------------------------------------------------------------------- alone


def pythons() -> list[str]:
    found = {sys.executable: sys.version_info[:2]}
    roots = [Path(os.path.expanduser("~/.pyenv/versions")), Path("/usr/bin"), Path("/usr/local/bin")]
    for minor in range(9, 15):
        listed = (path for root in roots for path in [*root.glob(f"3.{minor}.*/bin/python"), root / f"python3.{minor}"])
        found |= {str(path): (3, minor) for path in listed if path.exists() and (3, minor) not in found.values()}
    return list(found)


@pytest.mark.parametrize("python", pythons())
def test_the_checker_runs_alone_on_every_python_that_is_here(tmp_path: Path, python: str) -> None:
    shutil.copy(CHECKER, tmp_path)
    bundles.pack(tmp_path / "bundle.zip", STORY.rows, STORY.answers)
    done = subprocess.run([python, "-I", "-S", "check.py", "bundle.zip"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.endswith("18 seals, 3 targets, 10 change sets, 40 changes checked: everything holds.\n")


# ---------------------------------------------------------------------------------------------------- hostile archives


def test_what_is_no_bundle_is_refused_in_one_sentence(checked: Checked, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    data = bundle.read_bytes()
    version = data.index(b"PK\x01\x02") + 6
    (tmp_path / "newer.zip").write_bytes(data[:version] + b"\xff\x00" + data[version + 2 :])
    for file in ("text", "missing", ".", "newer.zip"):
        code, printed = checked(tmp_path / file)
        assert (code, printed.count("\n")) == (2, 1), printed
    assert "cannot be checked" in printed


@pytest.mark.parametrize("option", ["--kept", "--public-key"])
def test_an_option_that_names_a_missing_file_is_refused_in_one_sentence(
    checked: Checked, bundle: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "other").write_text("hello\n")
    for name in ("missing", "other"):
        code, printed = checked(bundle, option, tmp_path / name)
        assert (code, printed.count("\n")) == (2, 1), printed


def test_a_last_kept_line_that_was_cut_short_is_ignored_and_said(
    checked: Checked, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_bytes(bundles.kept_lines(STORY.rows)[:-20])
    code, printed = checked(bundle, "--kept", tmp_path / "kept")
    assert (code, f"line 18 of {tmp_path}/kept, the last one, which was cut short." in printed) == (0, True)


def test_a_last_kept_line_that_only_lacks_its_end_is_compared(checked: Checked, bundle: Path, tmp_path: Path) -> None:
    last = bundles.kept_lines(STORY.rows).splitlines()[-1]
    (tmp_path / "kept").write_bytes(last)
    code, printed = checked(bundle, "--kept", tmp_path / "kept")
    assert (code, "Not compared: line" in printed) == (0, False)
    (tmp_path / "kept").write_text(json.dumps({**json.loads(last), "id": 17}))
    assert checked(bundle, "--kept", tmp_path / "kept")[0] == 1


MANIFESTS = {
    "": "cannot be read",
    "{}": "cannot be read",
    "[]": "cannot be read",
    '{"files": {}, "files": {}}': "cannot be read: holds a key twice",
    '{"files": 1}': "cannot be read",
    "[" * 50_000: "cannot be read",
}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda text: text[:30])
def test_an_invalid_manifest_is_refused_in_one_sentence(checked: Checked, tmp_path: Path, manifest: str) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        if manifest:
            archive.writestr("manifest.json", manifest)
    code, printed = checked(tmp_path / "bundle.zip")
    assert (code, f"manifest.json: {MANIFESTS[manifest]}" in printed) == (1, True), printed


def test_no_trail_begins_after_the_next_seal(checked: Checked, tmp_path: Path) -> None:
    rows = copy.deepcopy(STORY.rows)
    last = {**rows["trails"][-1], "trail_id": "99999999-0c55-4f6e-8f21-1f9a3f6f7d02"}
    rows["trails"].append({**last, "first_seal": 19})
    assert checked(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))[0] == 0
    rows["trails"][-1]["first_seal"] = 20
    code, printed = checked(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))
    assert (code, "a trail begins with seal 20, and the last seal is 18" in printed) == (1, True)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9])
def test_a_damaged_archive_is_a_finding_and_no_traceback(
    checked: Checked, bundle: Path, tmp_path: Path, place: float
) -> None:
    data = bytearray(bundle.read_bytes())
    start = int(len(data) * place)
    data[start : start + 40] = bytes(40)
    bundle.write_bytes(data)
    code, printed = checked(bundle)
    assert code in (1, 2), printed
    assert "Traceback" not in printed


def test_foreign_text_cannot_fool_a_terminal(checked: Checked, tmp_path: Path) -> None:
    rows = copy.deepcopy(STORY.rows)
    for row in (row for name in ("change_sets", "changes", "spans") for row in rows[name]):
        row["user_id"] = "\x1b[2J\u202e" + row["user_id"]
    code, printed = checked(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))
    assert code == 1
    assert r"\u001b[2J\u202eann" in printed
    assert "\x1b" not in printed


# ------------------------------------------------------------------------------------------------- Ed25519 (RFC 8032)

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def said_of(public: bytes, message: bytes, signature: bytes) -> bool:
    return check.is_signed(public, message, base64.b64encode(signature).decode())


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert said_of(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature))
    assert not said_of(bytes.fromhex(public), bytes.fromhex(message) + b"x", bytes.fromhex(signature))


@settings(derandomize=True, database=None, max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.integers(0, 511), st.booleans())
def test_it_agrees_with_cryptography(secret: bytes, message: bytes, bit: int, altered: bool) -> None:
    key = Ed25519PrivateKey.from_private_bytes(secret)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    number = int.from_bytes(key.sign(message), "little") ^ (altered << bit)
    signature = number.to_bytes(64, "little")
    assert said_of(public, message, signature) == (not altered)


def test_a_signature_has_one_spelling(tmp_path: Path) -> None:
    """Of the last letter only two bits count."""
    signing.generate_key(tmp_path / "key")
    key = signing.load_signing_key(tmp_path / "key")
    raw = check.public_key_in((tmp_path / "key.pub").read_bytes())
    right = key.sign(b"message").signature
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = right[:-3] + letters[letters.index(right[-3]) ^ 1] + "=="
    assert base64.b64decode(twin) == base64.b64decode(right)
    assert (check.is_signed(raw, b"message", right), check.is_signed(raw, b"message", twin)) == (True, False)
    assert (key.public.accepts(right, b"message"), key.public.accepts(twin, b"message")) == (True, False)


def test_a_signature_whose_number_is_not_below_the_order_is_refused() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), key.sign(b"m")
    other = signature[:32] + (int.from_bytes(signature[32:], "little") + check.ORDER).to_bytes(32, "little")
    assert not said_of(public, b"m", other)
    assert not check.is_signed(public, b"m", "not base64!")
    assert not said_of(public, b"m", signature[:-1])


@pytest.mark.parametrize("point", sorted(SMALL_ORDER_POINTS), ids=bytes.hex)
def test_a_point_of_small_order_is_not_a_key(point: bytes) -> None:
    """Those that the program lists are those that the arithmetic finds."""
    decoded = check.point_of(point)
    assert decoded is None or check.is_weak(decoded)
    assert not said_of(point, b"m", point + bytes(32))


def test_every_point_of_small_order_is_listed() -> None:
    """From one of order eight come all eight; y may be written with the prime added, and x = 0 with either sign."""
    generator = check.point_of(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"))
    assert generator is not None
    multiple, found = check.NEUTRAL, set()
    for _ in range(8):
        multiple = check.plus(multiple, generator)
        found.add(check.bytes_of(multiple))
    assert len(found) == 8
    assert found <= SMALL_ORDER_POINTS
    flipped = {bytes([*point[:31], point[31] ^ 0x80]) for point in SMALL_ORDER_POINTS}
    assert flipped == SMALL_ORDER_POINTS


def test_the_public_key_file_is_the_one_that_keygen_writes(checked: Checked, tmp_path: Path) -> None:
    signing.generate_key(tmp_path / "key")
    signing.generate_key(tmp_path / "other")
    story = bundles.some_days(signing.load_signing_key(tmp_path / "key").sign)
    file = bundles.pack(tmp_path / "bundle.zip", story.rows, story.answers)
    assert checked(file, "--public-key", tmp_path / "key.pub")[0] == 0
    code, printed = checked(file, "--public-key", tmp_path / "other.pub")
    assert (code, "seal 1: signature is not that of this public key" in printed) == (1, True)
    assert checked(file, "--public-key", tmp_path / "key")[0] == 2
    unsigned = bundles.pack(tmp_path / "unsigned.zip", STORY.rows, STORY.answers)
    code, printed = checked(unsigned, "--public-key", tmp_path / "key.pub")
    assert (code, "no seal is signed, though a public key was given" in printed) == (1, True)


# -------------------------------------------------------------------------------------------------------- time stamps


def test_a_time_stamp_names_its_seal(checked: Checked, tmp_path: Path) -> None:
    authority, rows = Authority(tmp_path / "tsa"), copy.deepcopy(STORY.rows)
    stamped = rows["seals"][4]
    message = seal.signed_bytes(bundles.trail_of(rows, 5)["trail_id"], 5, stamped["seal"])
    with served(authority.answer) as url:
        token = base64.b64encode(signing.timestamps_by(url)(message).token).decode()
    rows["timestamps"] = [{"seal_id": 5, "token": token}]
    code, printed = checked(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))
    assert (code, "Proven: time stamps: 1, each of its seal." in printed) == (0, True)
    for wrong in ({"seal_id": 6}, {"seal_id": 0}, {"seal_id": 99}, {"token": "AAAA"}, {"token": "!"}):
        rows["timestamps"] = [{"seal_id": 5, "token": token, **wrong}]
        code, printed = checked(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))
        assert (code, "is not one of this seal" in printed) == (1, True), printed


def test_the_page_of_the_format_names_every_file_and_every_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    for name, columns in check.FILES.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}.jsonl` |"))
        named = [name for part in line.split("|")[2].split("`")[1::2] for name in part.replace(" ", "").split(",")]
        assert [column.partition(":")[0] for column in columns.split()] == named, name


# ------------------------------------------------------------------------------------------- counting runs in a time

instants = st.integers(0, 30)
intervals = st.lists(st.tuples(instants, instants).map(lambda pair: (min(pair), max(pair))), max_size=8)


@settings(derandomize=True, database=None, max_examples=200)
@given(intervals, instants, st.integers(0, 10))
def test_runs_are_counted_as_one_by_one_however_they_overlap(
    runs: list[tuple[int, int]], first: int, length: int
) -> None:
    last, times = first + length, check.Times(runs)
    assert times.meeting(first, last) == sum(start <= last and end >= first for start, end in runs)
    assert times.over(first, last) == sum(start <= first and end >= last for start, end in runs)
    assert times.inside(first, last) == sum(start > first and end < last for start, end in runs)


def test_runs_that_overlap_over_one_target_are_no_finding(checked: Checked, tmp_path: Path) -> None:
    """Where two runs were under way at once it is not known in which of two spans each observed: at least, at most."""
    rows = copy.deepcopy(STORY.rows)
    rows["runs"][2]["started_at"] = rows["runs"][1]["started_at"]
    rows["runs"][10]["started_at"] = rows["runs"][9]["started_at"]
    bundles.forge(rows)
    code, printed = checked(bundles.pack(tmp_path / "bundle.zip", rows, STORY.answers))
    assert code == 0, printed
