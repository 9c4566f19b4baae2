"""Check a Flowtrail audit bundle: a zip file with a part of a trail and with what proves it.

    python check.py FILE.zip [--seal ID:HASH]... [--kept FILE] [--public-key FILE]...

It needs Python 3.9 or newer and nothing else: no package, no network, no Flowtrail. Exit code 0: everything holds;
1: something does not, a sentence for each thing; 2: the command line or a file cannot be used.

Flowtrail asks EnOS again and again which workflows each user can see. A list that differs from the one before is a
version; its hash covers its changes, when the list was seen, and the version before. A run that has ended gets a seal:
a hash over whom it was to ask, who failed, what else happened, its versions, and the seal before. So the newest seal
covers everything. Whoever can rewrite all of it can also write a bundle of it; without --seal, --kept or --public-key
only that the bundle agrees with itself is proven. So get a seal or the public key in another way than the bundle.

docs/audit.md and docs/formats.md have what is in a bundle, the rules that are checked here, and for each line that is
printed what proves it.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import hashlib
import json
import re
import struct
import sys
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from itertools import accumulate, zip_longest
from typing import IO, Any, Callable, DefaultDict, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

Row = Dict[str, Any]
Target = Tuple[str, str, str]
Flow = List[Any]
Held = Tuple[Any, ...]
Columns = List[Tuple[str, str]]

BUNDLE = "flowtrail-audit/1"
KINDS = ("baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed")
VERDICTS = ("changed", "unchanged", "held", "failed", "stale")
SUMS = ("targets", *VERDICTS, *KINDS)
NAMES = "org_id:text user_id:text expression:text"
FILES = {
    "trails": "trail_id:text created_at:time first_seal:int",
    "seals": "id:int format:int run_id:int parent:hash seal:hash sealed_at:time targets_digest:hash "
    "change_sets_digest:hash issues_digest:hash events_digest:hash acknowledgements_digest:hash signature:text? "
    "key_id:hash?",
    "runs": "id:int schedule:text? origin:text scheduled_for:time? missed_slots:int status:text started_at:time "
    "finished_at:time scope:object opened:text " + " ".join(name + ":int" for name in SUMS),
    "hashes": "run_id:int hashes:texts",
    "memberships": f"id:int {NAMES} run_id:int schedule:text? kind:text at:time coverage_gap_seconds:int?",
    "holds": f"{NAMES} run_id:int kind:text at:time flow_ids:texts doubted:doubts data_hash:hash",
    "details": "org_id:text flow_id:text run_id:int asked_at:time observed_at:time update_user:text? update_time:text? "
    "creator:text? create_time:text? owner:text? freq:text? active:int? type:int? locked:bool? "
    "enos_timezone:text? detail_hash:hash",
    "org_events": "run_id:int org_id:text flow_id:text kind:text user_id:text? old_name:text? "
    "new_name:text? old_cycle:text? new_cycle:text? old_editable:bool? new_editable:bool? last_unchanged_at:time "
    "observed_at:time users_before:int users_after:int proven_for_all:bool unheard:int decided_at:time",
    "pruned_issues": "run_id:int pruned_run_id:int at:time",
    "issues": f"{NAMES} run_id:int verdict:text error_code:text? missing:int",
    "openings": f"{NAMES} version:int flows:flows",
    "change_sets": f"{NAMES} version:int format:int run_id:int kind:text observed_at:time last_unchanged_at:time? "
    "flow_count:int state_digest:hash approved_by:text? approved_scope:hash? data_hash:hash parent_hash:hash hash:hash "
    + " ".join(kind + ":int" for kind in KINDS),
    "changes": f"{NAMES} version:int flow_id:text kind:text old_name:text? new_name:text? old_cycle:text? "
    "new_cycle:text? old_editable:bool? new_editable:bool?",
    "spans": f"{NAMES} version:int first_at:time last_asked_at:time last_at:time observations:int "
    "longest_gap_seconds:int interrupted:bool",
    "timestamps": "seal_id:int token:text",
    "acknowledgements": "id:int made_at:time made_by:text ticket:text? note:text? org_id:text flow_id:text? "
    "user_id:text? kind:text? after:time? until:time? revokes:int?",
    "other_acknowledgements": "id:int made_at:time hash:hash",
}
KEPT_SEAL = "trail_id:text id:int seal:text sealed_at:time"
KEPT_HEAD = f"{NAMES} version:int hash:hash taken_at:time"
ACKNOWLEDGED = ("made", "revoked", "covered", "events")
DIGESTS = ("targets", "change_sets", "issues", "events", "acknowledgements")
EVENTS = ("memberships", "holds", "details", "org_events", "pruned_issues")
CHANGE = ("flow_id", "kind", "old_name", "new_name", "old_cycle", "new_cycle", "old_editable", "new_editable")
ATTRIBUTES = {"renamed": 1, "cycle_changed": 2, "editable_changed": 3}
"""The kinds that change an attribute, and its place in a workflow."""
SPAN = ("first_at", "last_asked_at", "last_at", "observations", "longest_gap_seconds", "interrupted")
SECOND = 1_000_000
UNREADABLE = (KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What a damaged or encrypted archive makes of the reading."""
MANIFEST = ("bundle", "made_at", "since", "until", "org_id", "last_seal", "files")
BESIDE = ("manifest.json", "check.py")
"""The files of a bundle that hold no rows."""
ANSWERS = "answers/"
WIDE = 2**31 - 1
"""A zip archive writes what is larger in 64 bits, into an additional field."""

SAID = {
    "compared": "Compared: {seals} kept seals, {heads} kept heads, {signatures} signatures. They confirm the seals up "
    "to {confirmed} of {all}.",
    "alone": "Compared: nothing that was kept elsewhere, so a trail that was rewritten as a whole would pass.",
    "period": "Proven: period: all {runs} runs that were sealed from {first} to {last}. {before} earlier and {after} "
    "later ones are not part of it.",
    "empty": "Proven: period: no run was sealed in it.",
    "chosen": "Claimed: period: {since} to {until}. {whole} of the {runs} runs that were sealed in it are open here; "
    "the numbers below are theirs.",
    "organisations": "Proven: organisations: {names}.",
    "users": "Proven: users: {users}, with {lists} lists (what a user is shown: all workflows, or those of a search).",
    "directories": "Proven: directories: of {names}. A directory is EnOS's own list of an organisation's workflows.",
    "runs": "Proven: runs: {succeeded} succeeded, {partial} in part, {failed} failed, {aborted} cut short.",
    "answers": "Proven: answers: to {answered} of {asked} requests; {changed} with changes, {unchanged} without, "
    "{held} held.",
    "failures": "Proven: failures: {failed} requests without a valid answer, {stale} whose answer came too late.",
    "silences": "Proven: silences: {missed_slots} times a run was due and did not come, {unknown} requests of runs "
    "that were cut short have no result.",
    "changes": "Proven: changes: {versions} versions of lists, with {added} workflows added, {removed} removed, "
    "{cycle_changed} cycles changed, {renamed} renamed, {editable_changed} made editable or not.",
    "holds": "Proven: holds: {held} removals and changes began to wait for a person, {back} came back, {approved} were "
    "approved.",
    "approvals": "Proven: approvals: {versions}{by}.",
    "acknowledgements": "Proven: acknowledgements: {made}{by}; {revoked} of them revoked. They cover {covered} of the "
    "{events} events of organisations that are here.",
    "kept": "Proven: kept answers: {versions} of {of} versions have their answer, and {holds} of {of_holds} holds.",
    "stamps": "Proven: time stamps: {stamps}, each of its seal. Whose they are, 'openssl ts -verify' says.",
    "made": "Claimed: made at {made_at}. The newest seal in it is {number}, of {sealed_at}.",
    "pruned": "Claimed: who failed was deleted when its time had come, of runs: {runs}. How many failed is proven.",
    "shut": "Not proven: that the {runs} runs of the period that are not open here asked nobody of this organisation. "
    "Who failed in them, what was held, and what came after the last version here is not in the bundle.",
    "older": "Not proven: that the list had no other version between the one that is here and the period, of lists: "
    "{lists}. Kept heads prove it, or a bundle from the first run.",
    "veiled": "Not proven: that the {others} acknowledgements of which only a hash is here are of other organisations.",
    "checker": "Not proven: what the check.py in the bundle does. It is another file than the one that is running.",
    "unsigned": "Not compared: the signatures of the seals. --public-key FILE checks them.",
    "younger": "Not compared: kept lines that are younger than the bundle: {lines}.",
    "beside": "Not compared: kept heads of versions that the bundle does not contain: {heads}.",
    "cut": "Not compared: line {number} of {file}, the last one, which was cut short.",
    "end": "{seals} seals, {targets} targets, {versions} change sets, {changes} changes checked: {result}.",
}
"""Every line that is printed, but for the findings. What is called proven is so if what was compared is true."""


class Broken(Exception):
    """A thing that does not hold: its place, and a sentence."""

    def __init__(self, place: str, sentence: str) -> None:
        super().__init__(f"{place}: {sentence}" if place else sentence)


def require(place: str, what: str, expected: Any, found: Any) -> None:
    """Raise Broken where ``found`` is not ``expected``."""
    if found != expected or type(found) is not type(expected):
        raise Broken(place, f"{what} should be {shown(expected)}, but is {shown(found)}")


def shown(value: Any) -> str:
    """A value as a finding names it."""
    return "null" if value is None else f"'{printable(value)}'" if isinstance(value, str) else printable(value)


def printable(value: Any) -> str:
    """A value on one line that no terminal can be fooled with."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(value)[:300])


def name_of(target: Target) -> str:
    org, user, expression = map(printable, target)
    return f"{org}/{user or '(directory)'}" + (f" [{expression}]" if expression else "")


# ------------------------------------------------------------------------------------------------ encoding, and hashes


def encode(value: Any) -> bytes:
    """JSON as it is hashed: what RFC 8785 does with strings and integers."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    return sha256(encode(value))


def linked(parent: str, value: Any) -> str:
    return sha256(parent.encode() + encode(value))


# -------------------------------------------------------------------------------------------------------- the zip file

TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(?!000000)(\d{6}))?Z", re.ASCII)
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
SURROGATE = re.compile("[\ud800-\udfff]")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)


def microseconds(text: str) -> int:
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError("is no time")
    since = dt.datetime.fromisoformat(match[1] + "+00:00") - EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND + int(match[2] or 0)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and SURROGATE.search(value) is None


def is_doubt(value: Any) -> bool:
    """A held change: ``[flow_id, kind, new value]``."""
    if not isinstance(value, list) or len(value) != 3 or not is_text(value[0]) or value[1] not in ATTRIBUTES:
        return False
    fits = isinstance(value[2], bool) if value[1] == "editable_changed" else is_text(value[2])
    return fits or value[2] is None


def is_flow(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    flow_id, name, cycle, editable = value
    texts = is_text(flow_id) and all(each is None or is_text(each) for each in (name, cycle))
    return texts and (editable is None or isinstance(editable, bool))


FITS: Dict[str, Callable[[Any], bool]] = {
    "text": is_text,
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "time": lambda value: isinstance(value, str),
    "hash": lambda value: isinstance(value, str) and HASH.fullmatch(value) is not None,
    "texts": lambda value: isinstance(value, list) and all(is_text(each) for each in value),
    "object": lambda value: isinstance(value, dict) and is_text(json.dumps(value, ensure_ascii=False)),
    "doubts": lambda value: isinstance(value, list) and all(is_doubt(each) for each in value),
    "flows": lambda value: isinstance(value, list) and all(is_flow(each) for each in value),
}


def without_twins(pairs: List[Tuple[str, Any]]) -> Row:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("holds a key twice")
    return dict(pairs)


def refuse(text: str) -> None:
    raise ValueError(f"holds the number {text}")


def columns_of(line: str) -> Columns:
    return [(name, kind) for name, _, kind in (column.partition(":") for column in line.split())]


def typed(row: Row, columns: Columns) -> Row:
    """These columns of a row; times as microseconds. ValueError where a value is none of its kind."""
    found = {}
    for name, kind in columns:
        value, found[name] = row[name], row[name]
        if value is None and kind[-1] == "?":
            continue
        kind = kind.rstrip("?")
        if not FITS[kind](value):
            raise ValueError(f"{name} is no {kind}: {shown(value)}")
        if kind == "time":
            found[name] = microseconds(value)
    return found


def is_entry(value: Any) -> bool:
    """Whether a value is what the manifest says of a file."""
    return isinstance(value, dict) and tuple(value) == ("bytes", "sha256")


def in_64_bits(*sizes: int) -> bytes:
    """The additional field of a zip archive for sizes and offsets, none for none."""
    return struct.pack(f"<HH{len(sizes)}Q", 1, 8 * len(sizes), *sizes) if sizes else b""


STRICT = json.JSONDecoder(object_pairs_hook=without_twins, parse_float=refuse, parse_constant=refuse)


def loads(line: bytes) -> Any:
    """Strict JSON: no key twice, no fractions."""
    return STRICT.decode(line.decode())


class Bundle:
    """The files of a bundle, as lines of typed columns."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile) -> None:
        self.file, self.archive = file, archive
        self.names = [info.filename for info in archive.infolist()]
        for info in archive.infolist():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Broken(printable(info.filename), "is compressed in a way that bundles do not use")
        try:
            text = archive.read("manifest.json")
            self.manifest = loads(text)
            self.files: Dict[str, Row] = self.manifest["files"]
            self.since = self._time("since")
            self.until = self._time("until")
            self.made_at = microseconds(self.manifest["made_at"])
            self.last_seal = dict(self.manifest["last_seal"])
            self.org_id: Optional[str] = self.manifest["org_id"]
            if tuple(self.manifest) != MANIFEST or not all(map(is_entry, self.files.values())):
                raise ValueError(f"should have {', '.join(MANIFEST)}, and of each file its bytes and sha256")
            if json.dumps(self.manifest, ensure_ascii=False, indent=1) + "\n" != text.decode():
                raise ValueError("is not written as bundles are: one space for each level, nothing escaped")
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Broken("manifest.json", f"cannot be read: {printable(error)}") from None
        require("manifest.json", "bundle", BUNDLE, self.manifest.get("bundle"))
        answers = (name[len(ANSWERS) :] for name in self.names if name.startswith(ANSWERS))
        self.answers = frozenset(answer for answer in answers if ANSWERS + answer in self.files)
        self.unnamed_answers = dict.fromkeys(sorted(self.answers))
        """Kept answers that no version and no hold has named so far."""

    def whole(self) -> Iterator[Broken]:
        """What is not as the manifest says, and what is in the archive beside its files."""
        known = {*BESIDE, *(f"{name}.jsonl" for name in FILES)}
        for name, count in Counter(self.names).items():
            if count > 1:
                yield Broken(printable(name), "is in the archive twice")
            if name not in known and not name.startswith(ANSWERS):
                yield Broken(printable(name), "is no file of a bundle")
        wanted = {*self.files, "manifest.json"}
        missing = {f"{name}.jsonl" for name in FILES} - self.files.keys()
        for name in sorted(missing | (wanted ^ set(self.names))):
            yield Broken(printable(name), "is not both in the manifest and in the archive")
        end = directory = 0
        for info in self.archive.infolist():
            name, entry = info.filename, self.files.get(info.filename)
            begins = self._begins(info, end)
            if not begins:
                yield Broken(
                    printable(name), "does not follow the file before it: something else is in the archive, too"
                )
                return
            size, computed, end = self._content(info, begins)
            directory += 46 + len(name.encode()) + len(info.extra)
            if size != info.file_size or end != begins + info.compress_size:
                yield Broken(printable(name), "is not all that is in its place in the archive")
                return
            if entry is not None and entry != {"bytes": size, "sha256": computed}:
                yield Broken(printable(name), "is another file than the manifest says")
            if name.startswith(ANSWERS) and name != ANSWERS + computed:
                yield Broken(printable(name), f"should be bytes with this hash, but they have {shown(computed)}")
        yield from self._ends(end, directory)

    def _begins(self, info: zipfile.ZipInfo, at: int) -> int:
        """Where the content of a file begins if its header is at ``at`` and says what the directory says; else 0."""
        self.file.seek(at)
        head, sizes = self.file.read(30), (info.file_size, info.compress_size)
        if len(head) < 30 or info.header_offset != at or info.comment:
            return 0
        signature, *found, packed, size, named, more = struct.unpack("<4s2x2H4x3L2H", head)
        name, extra = self.file.read(named), self.file.read(more)
        wide = [*(sizes if max(sizes) > WIDE else ()), *([at] if at > WIDE else ())]
        right = [signature == b"PK\3\4", found == [info.flag_bits, info.compress_type, info.CRC]]
        right += [name == info.orig_filename.encode(), info.orig_filename == info.filename]
        right += [(size, packed) in (sizes, (2**32 - 1,) * 2 if extra else sizes), extra in (b"", in_64_bits(*sizes))]
        return at + 30 + named + more if all(right) and info.extra == in_64_bits(*wide) else 0

    def _content(self, info: zipfile.ZipInfo, begins: int) -> Tuple[int, str, int]:
        """How long a file is, its hash, and where its compressed bytes really end."""
        computed, unpacker, size, left = hashlib.sha256(), zlib.decompressobj(-15), 0, info.compress_size
        self.file.seek(begins)
        while left:
            piece = self.file.read(min(left, 1 << 16))
            content = unpacker.decompress(piece) if info.compress_type else piece
            computed.update(content)
            size, left = size + len(content), left - (len(piece) or left)
            if unpacker.unused_data:
                return size, computed.hexdigest(), -1
        return size, computed.hexdigest(), begins + info.compress_size

    def _ends(self, at: int, directory: int) -> Iterator[Broken]:
        """What stands after the last file should be its directory, and then the end of the archive."""
        count, end = len(self.names), b""
        if count > 0xFFFF or max(at, directory) > WIDE:
            end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, directory, at)
            end += struct.pack("<4sLQL", b"PK\6\7", 0, at + directory, 1)
        counts, places = [min(count, 0xFFFF)] * 2, [min(directory, 2**32 - 1), min(at, 2**32 - 1)]
        end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts, *places, 0)
        self.file.seek(at + directory)
        if self.file.read(len(end) + 1) != end:
            yield Broken("the archive", "has something behind its files, or a comment")

    def rows(self, name: str) -> Iterator[Row]:
        """The lines of a file; times as microseconds."""
        columns = columns_of(FILES[name])
        with self.archive.open(f"{name}.jsonl") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield self._row(line, columns)
                except (ValueError, RecursionError) as error:
                    raise Broken(f"{name}.jsonl, line {number}", printable(error)) from None

    def answer(self, data_hash: str) -> Optional[bytes]:
        """The kept bytes of an answer's ``data``."""
        self.unnamed_answers.pop(data_hash, None)
        return self.archive.read(ANSWERS + data_hash) if data_hash in self.answers else None

    def _row(self, line: bytes, columns: Columns) -> Row:
        row = loads(line)
        if not isinstance(row, dict) or list(row) != [name for name, _ in columns]:
            raise ValueError(f"should have the keys {', '.join(name for name, _ in columns)}, in this order")
        found = typed(row, columns)
        if encode(row) + b"\n" != line:
            raise ValueError("is not written as bundles are: no space, nothing escaped that need not be")
        if self.org_id not in (None, row.get("org_id", self.org_id)):
            raise ValueError(f"is of the organisation {shown(row['org_id'])}, and the bundle of {shown(self.org_id)}")
        return found

    def covers(self, at: int) -> bool:
        """Whether a time lies in the period of the bundle."""
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)

    def _time(self, name: str) -> Optional[int]:
        return None if self.manifest[name] is None else microseconds(self.manifest[name])


# ------------------------------------------------------------------------------------------------------------ the seals


class Run:
    """A sealed run, and what the files say of it."""

    def __init__(self, row: Row, seal: Row, inside: bool) -> None:
        self.row, self.seal, self.inside = row, seal, inside
        self.id: int = row["id"]
        self.place = f"run {self.id} (seal {seal['id']})"
        self.opened: str = row["opened"]
        self.pruned = False
        self.targets: "frozenset[Target]" = frozenset()
        self.targets_digest = ""
        self.events: List[List[bytes]] = [[] for _ in EVENTS]
        self.hashes: List[str] = []
        self.issues: List[List[Any]] = []
        self.stale: Dict[Target, None] = {}
        """Targets whose answer came too late; another process of the same run may have been faster."""
        self.counts: "Counter[str]" = Counter()

    @property
    def complete(self) -> bool:
        """Whether each target that it was to ask, and has no issue of, was observed in it."""
        return self.row["status"] != "aborted" and not self.pruned

    @property
    def unanswered(self) -> bool:
        """Whether the sums still tell, after its issues were pruned, that nobody was observed in it."""
        return self.pruned and self.row["failed"] + self.row["stale"] >= self.row["targets"]


class Trail:
    """The seals from the first on, their runs, and the events of these."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.trails = sorted(bundle.rows("trails"), key=lambda trail: int(trail["first_seal"]))
        if not self.trails:
            raise Broken("trails.jsonl", "is empty")
        self.runs: Dict[int, Run] = {}
        self.seals: List[Row] = []
        self.findings: List[str] = []
        self.members: Dict[Target, None] = {}
        self.approved: Dict[Tuple[int, Target], int] = {}
        """When the hold began that was approved in a run."""
        self.began: Dict[Target, int] = {}
        """When the hold of a target began."""
        self.waiting: DefaultDict[Target, Dict[Held, None]] = defaultdict(dict)
        """What is held, after the rows so far."""
        self.missing: Dict[Tuple[int, Target], int] = {}
        """How many removals are held after a run."""
        self.impossible: Dict[Tuple[int, Target], str] = {}
        """What was held twice or ended without having begun, by the run that says so."""
        self.holds: DefaultDict[Target, List[Row]] = defaultdict(list)
        self.acknowledged: DefaultDict[Tuple[str, Optional[str]], List[Row]] = defaultdict(list)
        """What was acknowledged and not revoked, by organisation and workflow; None: any workflow."""
        self.acknowledgers: "Counter[str]" = Counter()
        self.counts: "Counter[str]" = Counter()

    def trail_of(self, number: int) -> Row:
        """The trail that a seal was made in."""
        first = [trail["first_seal"] for trail in self.trails]
        return self.trails[max(bisect_right(first, number) - 1, 0)]

    def read_seals(self) -> None:
        """Follow the seals from the first. Broken where one is missing; one that is wrong is a finding."""
        require("trails.jsonl", "first_seal", 1, self.trails[0]["first_seal"])
        runs: Dict[int, Row] = {}
        for row in self.bundle.rows("runs"):
            if runs.setdefault(row["id"], row) is not row:
                raise Broken("runs.jsonl", f"run {row['id']} is there twice")
        parent, before = "", 0
        for seal in self.bundle.rows("seals"):
            number = len(self.seals) + 1
            place = f"seal {number}"
            require(place, "id", number, seal["id"])
            require(place, "format", 1, seal["format"])
            parent = self._parent(parent, number)
            require(place, "parent", parent, seal["parent"])
            if seal["run_id"] not in runs:
                raise Broken(place, f"its run {seal['run_id']} is missing, or has two seals")
            row = runs.pop(seal["run_id"])
            run = Run(row, seal, self.bundle.covers(seal["sealed_at"]))
            computed = self._computed(seal, row)
            if computed != seal["seal"]:
                self.findings.append(f"{run.place}: seal should be {shown(computed)}, but is {shown(seal['seal'])}")
            order = [before, row["started_at"], row["finished_at"], seal["sealed_at"]]
            if order[0] > order[3] or order[1:] != sorted(order[1:]):
                self.findings.append(f"{run.place}: the times of the run and of the seal go back")
            parent, before = seal["seal"], seal["sealed_at"]
            self.seals.append(seal)
            self.runs[run.id] = run
        if runs:
            raise Broken(f"run {min(runs)}", "has no seal")
        self._require_end()

    def _parent(self, before: str, number: int) -> str:
        for trail in self.trails:
            if trail["first_seal"] == number:
                begun = ["trail/1", trail["trail_id"], trail["created_at"]]
                before = digest(begun + ([before] if before else []))
        return before

    def _computed(self, seal: Row, row: Row) -> str:
        content = ["seal/1", self.trail_of(seal["id"])["trail_id"], seal["id"]]
        content += [row[name] for name in ("id", "schedule", "origin", "scheduled_for", "missed_slots", "status")]
        content += [row["started_at"], row["finished_at"], [row[name] for name in SUMS]]
        content += [seal[name + "_digest"] for name in DIGESTS]
        return linked(seal["parent"], [*content, seal["sealed_at"]])

    def _require_end(self) -> None:
        begun = self.trails[-1]["first_seal"]
        if begun > len(self.seals) + 1:
            raise Broken("trails.jsonl", f"a trail begins with seal {begun}, and the last seal is {len(self.seals)}")
        last: Row = self.seals[-1] if self.seals else {"id": 0, "seal": None, "sealed_at": self.bundle.made_at}
        require("manifest.json", "last_seal", self.bundle.last_seal, {"id": last["id"], "seal": last["seal"]})
        if self.bundle.made_at < last["sealed_at"]:
            made_at, sealed_at = moment(self.bundle.made_at), moment(last["sealed_at"])
            self.findings.append(f"manifest.json: made_at is {made_at}, before the last seal was made, at {sealed_at}")
        for run in self.runs.values():
            if run.opened not in ("whole", "hashes", "no"):
                raise Broken(run.place, "opened should be 'whole', 'hashes' or 'no'")
            if run.inside and self.bundle.org_id is None and run.opened != "whole":
                raise Broken(run.place, "lies in the time of the bundle, and is not opened")
            if not run.inside and run.opened == "whole":
                raise Broken(run.place, "is opened, and does not lie in the time of the bundle")

    def read_acknowledgements(self) -> None:
        """Each seal covers what was acknowledged since the seal before, until its own time."""
        rows, others = (list(self.bundle.rows(name)) for name in ("acknowledgements", "other_acknowledgements"))
        if others and self.bundle.org_id is None:
            raise Broken("other_acknowledgements.jsonl", "has rows, though the bundle is about every organisation")
        columns = [column for column, _ in columns_of(FILES["acknowledgements"])]
        made = [(row["made_at"], row["id"], digest([row[column] for column in columns])) for row in rows]
        made = sorted(made + [(row["made_at"], row["id"], row["hash"]) for row in others])
        taken = 0
        for seal in self.seals:
            begin = taken
            while taken < len(made) and made[taken][0] <= seal["sealed_at"]:
                taken += 1
            computed = digest([each[2] for each in made[begin:taken]])
            if computed != seal["acknowledgements_digest"]:
                given = f"{shown(computed)}, but is {shown(seal['acknowledgements_digest'])}"
                self.findings.append(f"{self.runs[seal['run_id']].place}: acknowledgements_digest should be {given}")
        for number, each in enumerate(made, 1):
            if each[1] != number or number > taken:
                wrong = "was made after the last seal" if each[1] == number else f"should have the id {number}"
                raise Broken(f"acknowledgement {each[1]}", wrong)
        revoked = {row["revokes"] for row in rows}
        self.counts.update(made=len(rows), revoked=len(revoked - {None}), veiled=len(others))
        for row in rows:
            self.acknowledgers[row["made_by"]] += 1
            if row["revokes"] is None and row["id"] not in revoked:
                self.acknowledged[row["org_id"], row["flow_id"]].append(row)

    def is_acknowledged(self, event: Row) -> bool:
        """Whether anything that was acknowledged, and not revoked, covers an event of an organisation."""
        listed = (self.acknowledged.get((event["org_id"], flow_id), []) for flow_id in (event["flow_id"], None))
        return any(covers(each, event) for some in listed for each in some)

    def read_events(self) -> None:
        """Give each run the events that name it, and derive the targets that it was to ask."""
        memberships: List[Row] = []
        latest: Dict[Tuple[str, Target], int] = {}
        for place, name in enumerate(EVENTS):
            columns = [column for column, _ in columns_of(FILES[name]) if column != "id"]
            for row in self.bundle.rows(name):
                run = self.run_of(row, f"{name}.jsonl")
                if name in ("details", "org_events") and run.opened != "whole":
                    raise Broken(run.place, f"is not opened, and has rows in {name}.jsonl")
                run.events[place].append(encode([row[column] for column in columns]))
                if name == "org_events":
                    self.counts.update(events=1, covered=self.is_acknowledged(row))
                if name in ("memberships", "holds"):
                    self._require_order(name, row, latest)
                if name == "memberships":
                    memberships.append(row)
                elif name == "holds":
                    self._keep_hold(row)
                elif name == "pruned_issues" and row["pruned_run_id"] in self.runs:
                    self.runs[row["pruned_run_id"]].pruned = True
        self.findings += self.impossible.values()
        self._derive_targets(memberships)
        for row in self.bundle.rows("hashes"):
            run = self.run_of(row, "hashes.jsonl")
            if run.opened != "hashes" or run.hashes:
                raise Broken(run.place, "should have no list of hashes, or one")
            run.hashes = row["hashes"]

    def _require_order(self, name: str, row: Row, latest: Dict[Tuple[str, Target], int]) -> None:
        """The order of a target's rows decides what was so at a time, and only that within a run is in a digest."""
        key, place = (name, target_of(row)), f"{name_of(target_of(row))}, {self.runs[row['run_id']].place}"
        before = latest.setdefault(key, row["at"])
        if row["at"] < before:
            said = f"at is {moment(row['at'])}, before {moment(before)}, the time of an earlier line of the target"
            self.findings.append(f"{place}, {name}.jsonl: {said}")
        latest[key] = row["at"]

    def run_of(self, row: Row, place: str) -> Run:
        """The run that a row names. Broken where it is not sealed."""
        run = self.runs.get(row["run_id"])
        if run is None:
            raise Broken(place, f"a row names run {row['run_id']}, which has no seal")
        return run

    def _keep_hold(self, row: Row) -> None:
        """Nothing is held twice, and nothing ends that did not begin."""
        target, run_id, kind, held = target_of(row), row["run_id"], row["kind"], held_by(row)
        place, waiting = f"{name_of(target)}, hold", self.waiting[target_of(row)]
        require(place, "flow_ids", sorted(set(row["flow_ids"])), row["flow_ids"])
        require(place, "doubted", sorted(row["doubted"], key=lambda doubt: doubt[:2]), row["doubted"])
        self.holds[target].append(row)
        if not waiting:
            self.began[target] = row["at"]
        for each in held:
            if (kind == "held") == (each in waiting) or kind not in ("held", "back", "approved"):
                wrong = f"{place}: {printable(kind)} of {shown(each[0])} in run {run_id} cannot be"
                self.impossible.setdefault((run_id, target), wrong)
            waiting.update({each: None}) if kind == "held" else waiting.pop(each, None)
        if kind == "approved":
            self.approved[run_id, target] = self.began[target]
        self.missing[run_id, target] = sum(not each[1] for each in waiting)

    def approved_scope(self, run: Run, target: Target) -> Optional[str]:
        """The digest of the hold of a target that was approved in a run: all that ended in it."""
        if (run.id, target) not in self.approved:
            return None
        events = [row for row in self.holds[target] if row["run_id"] == run.id and row["kind"] != "held"]
        ended = sorted((each for event in events for each in held_by(event)), key=lambda each: each[:2])
        gone, doubted = [each[0] for each in ended if not each[1]], [each for each in ended if each[1]]
        return digest([*target, self.approved[run.id, target], gone, doubted])

    def _derive_targets(self, memberships: List[Row]) -> None:
        """Replay the memberships up to what each run saw of them."""
        listed: DefaultDict[str, Dict[Target, None]] = defaultdict(dict)
        known: Dict[Any, Tuple["frozenset[Target]", str]] = {}
        applied, last_id = 0, 0
        for row in memberships:
            if row["id"] <= last_id:
                raise Broken("memberships.jsonl", f"id {row['id']} does not rise")
            last_id = row["id"]
            self.members[target_of(row)] = None
        whole = (run for run in self.runs.values() if run.opened == "whole")
        for run in sorted(whole, key=lambda run: seen_by(run)):
            while applied < len(memberships) and memberships[applied]["id"] <= seen_by(run):
                row = memberships[applied]
                if row["kind"] == "joined":
                    listed[row["schedule"]][target_of(row)] = None
                elif row["kind"] == "left":
                    listed[row["schedule"]].pop(target_of(row), None)
                applied += 1
            scope = {key: value for key, value in run.row["scope"].items() if key != "membership_id"}
            key = (encode(scope), applied)
            if key not in known:
                found = targets_in(scope, listed, run.place)
                known[key] = (frozenset(found), digest(sorted(map(list, found))))
            run.targets, run.targets_digest = known[key]

    def require_run(self, run: Run) -> None:
        """Compare what was found of a run with its seal. Broken at the first thing that differs."""
        if run.opened == "no":
            return
        require(run.place, "change_sets_digest", digest(run.hashes), run.seal["change_sets_digest"])
        if run.opened != "whole":
            return
        require(run.place, "targets_digest", run.targets_digest, run.seal["targets_digest"])
        events = b"[" + b",".join(b"[" + b",".join(rows) + b"]" for rows in run.events) + b"]"
        require(run.place, "events_digest", sha256(events), run.seal["events_digest"])
        if run.pruned:
            require(run.place, "its issues, which were pruned,", 0, len(run.issues))
        else:
            require(run.place, "issues_digest", digest(run.issues), run.seal["issues_digest"])
        self._require_sums(run)

    @staticmethod
    def _require_sums(run: Run) -> None:
        row, counts = run.row, run.counts
        names = [name for name in SUMS if name not in ("targets", "unchanged")]
        for name in names if not run.pruned else KINDS:
            require(run.place, name, counts[name], row[name])
        if run.pruned and not row["changed"] <= counts["changed"] <= row["changed"] + row["held"]:
            raise Broken(run.place, f"changed is {row['changed']}, and it made {counts['changed']} versions")
        require(run.place, "targets", len(run.targets), row["targets"])
        aborted = row["status"] == "aborted"
        others = sum(row[name] for name in VERDICTS if name != "unchanged")
        require(run.place, "unchanged", 0 if aborted else row["targets"] - others, row["unchanged"])
        trouble = row["failed"] + row["held"]
        status = "succeeded" if not trouble else "failed" if row["failed"] == row["targets"] else "partial"
        require(run.place, "status", "aborted" if aborted else status, row["status"])


def target_of(row: Row) -> Target:
    return row["org_id"], row["user_id"], row["expression"]


def covers(acknowledgement: Row, event: Row) -> bool:
    """Whether the scope of an acknowledgement has an event of its workflow; null in it is anything."""
    after, until = acknowledgement["after"], acknowledgement["until"]
    same = all(acknowledgement[name] in (None, event[name]) for name in ("user_id", "kind"))
    before_until = until is None or event["last_unchanged_at"] < until
    return same and (after is None or event["observed_at"] > after) and before_until


def seen_by(run: Run) -> int:
    """The highest membership that a run saw."""
    seen = run.row["scope"].get("membership_id")
    if not isinstance(seen, int) or isinstance(seen, bool):
        raise Broken(run.place, "scope has no membership_id")
    return seen


def targets_in(scope: Row, listed: Dict[str, Dict[Target, None]], place: str) -> List[Target]:
    """The targets that a scope names, of those that the schedules list."""
    named = scope["targets"] if scope.keys() == {"targets"} else None
    if isinstance(named, list) and all(FITS["texts"](each) and len(each) == 3 for each in named):
        return [tuple(each) for each in named]
    if scope.keys() != {"schedules", "org_id", "user_id"} or not FITS["texts"](scope["schedules"]):
        raise Broken(place, f"scope is none: {shown(encode(scope).decode())}")
    found = {target for schedule in scope["schedules"] for target in listed.get(schedule, ())}
    org_id, user_id = scope["org_id"], scope["user_id"]
    return [each for each in found if org_id in (None, each[0]) and user_id in (None, each[1])]


# --------------------------------------------------------------------------------------- which runs asked, and when


class Times:
    """The times of some runs: how many meet a span, lie in a gap, or reach over one."""

    def __init__(self, pairs: List[Tuple[int, int]]) -> None:
        pairs = sorted(pairs)
        self.starts = [start for start, _ in pairs]
        self.ends = [end for _, end in pairs]
        self.sorted_ends, self.latest = sorted(self.ends), list(accumulate(self.ends, max))

    def meeting(self, first: int, last: int) -> int:
        """How many have a moment in common with ``first`` to ``last``."""
        return bisect_right(self.starts, last) - bisect_left(self.sorted_ends, first)

    def over(self, before: int, after: int) -> int:
        """How many begin at or before ``before`` and end at or after ``after``."""
        at, found = bisect_right(self.starts, before) - 1, 0
        while at >= 0 and self.latest[at] >= after:
            found += self.ends[at] >= after
            at -= 1
        return found

    def inside(self, before: int, after: int) -> int:
        """How many begin after ``before`` and end before ``after``."""
        outside = bisect_right(self.starts, before) + len(self.starts) - bisect_left(self.sorted_ends, after)
        return len(self.starts) - outside + self.over(before, after)


def times_of(runs: List[Run]) -> Times:
    return Times([(run.row["started_at"], run.row["finished_at"]) for run in runs])


class Asked(NamedTuple):
    """The times of runs that were to ask the same targets, for certain and perhaps."""

    targets: "frozenset[Target]"
    certain: Times
    perhaps: Times


class Attendance:
    """Compares the spans of a target with the runs that asked for it."""

    def __init__(self, runs: List[Run], bundle: Bundle) -> None:
        groups: DefaultDict["frozenset[Target]", Tuple[List[Run], List[Run]]] = defaultdict(lambda: ([], []))
        for run in runs:
            if run.opened == "whole" and run.targets and not run.unanswered:
                groups[run.targets][0 if run.complete else 1].append(run)
        self.groups = [Asked(targets, times_of(some), times_of(others)) for targets, (some, others) in groups.items()]
        shut = [(run.row["started_at"], run.row["finished_at"]) for run in runs if run.opened != "whole"]
        self.shut = Times(shut + ([(bundle.until, 2**63)] if bundle.until is not None else []))
        """Runs of which it is unknown which targets they asked, and the time after that of the bundle."""

    def require(self, target: Target, spans: List[Row], issues: List[Run]) -> None:
        """Every observation lies in a run that asked, and every such run is an observation."""
        groups = [group for group in self.groups if target in group.targets]
        edges = [{"last_at": -(2**63)}, *spans, {"first_at": 2**63}]
        for before, after in zip(edges, edges[1:]):  # noqa: RUF007 - Python 3.9 has no pairwise
            lost = sum(group.certain.inside(before["last_at"], after["first_at"]) for group in groups)
            excused = sum(within(run, before["last_at"], after["first_at"]) for run in issues if run.complete)
            if lost > excused:
                until = f"and before {moment(after['first_at'])}" if len(after) > 1 else "to the end"
                since = f"after {moment(before['last_at'])} " if len(before) > 1 else ""
                found = f"{lost - excused} runs that have neither an observation nor an issue of it"
                raise Broken(f"{name_of(target)}, {since}{until}", f"there are {found}")
        for before, span, after in zip(edges, spans, edges[2:]):
            self._require_span(target, groups, before["last_at"], span, after["first_at"], issues)

    def _require_span(
        self, target: Target, groups: List[Asked], before: int, span: Row, after: int, issues: List[Run]
    ) -> None:
        first, last = span["first_at"], span["last_at"]
        least = most = 0
        for group in groups:
            least += group.certain.meeting(first, last) - group.certain.over(before, first)
            least -= group.certain.over(last, after)
            most += group.certain.meeting(first, last) + group.perhaps.meeting(first, last)
        for run in issues:
            start, end = run.row["started_at"], run.row["finished_at"]
            if start <= last and end >= first:
                most -= target not in run.stale
                least -= run.complete and start > before and end < after
        found, place = span["observations"], f"{name_of(target)}, version {span['version']}"
        if found < least or (found > most and not self.shut.meeting(first, last)):
            wanted = f"{max(least, 1)}" if least == most else f"{max(least, 1)} to {most}"
            said = f"observation.observations from {moment(first)} to {moment(last)} should be {wanted}"
            raise Broken(place, f"{said}, by the sealed runs that asked in that time, but is {found}")
        for name in ("first_at", "last_at"):
            at = span[name]
            here = self.shut.over(at, at)
            here += sum(group.certain.over(at, at) + group.perhaps.over(at, at) for group in groups)
            failed = (run for run in issues if target not in run.stale)
            here -= sum(run.row["started_at"] <= at <= run.row["finished_at"] for run in failed)
            if here < 1:
                raise Broken(place, f"observation.{name} is {moment(at)}, when no sealed run observed it")


def within(run: Run, before: int, after: int) -> bool:
    return bool(run.row["started_at"] > before and run.row["finished_at"] < after)


def moment(at: int) -> str:
    return str(EPOCH + dt.timedelta(microseconds=at))


# ------------------------------------------------------------------------------------------------- a target's versions


class Lines:
    """A file in the order of the targets, read once."""

    def __init__(self, bundle: Bundle, name: str, order: Tuple[str, ...]) -> None:
        self.rows, self.name, self.order = bundle.rows(name), name, order
        self.next: Optional[Row] = None
        self._before: Optional[Tuple[Any, ...]] = None
        self.read = 0
        self._advance()

    def take(self, target: Target) -> Iterator[Row]:
        while self.next is not None and target_of(self.next) == target:
            yield self.next
            self._advance()

    def _advance(self) -> None:
        self.next = next(self.rows, None)
        if self.next is None:
            return
        self.read += 1
        key = target_of(self.next) + tuple(self.next[name] for name in self.order)
        if self._before is not None and (key <= self._before if self.order else key < self._before):
            raise Broken(f"{self.name}.jsonl, line {self.read}", "is not in the order of the targets, or there twice")
        self._before = key


class Chain:
    """What the versions so far make of a target."""

    def __init__(self, target: Target, trail: Trail, opening: Optional[Row]) -> None:
        self.target, self.trail, self.opening = target, trail, opening
        self.version = opening["version"] - 1 if opening else 0
        self.state: Dict[str, Flow] = {}
        self.hash = "0" * 64
        self.last_at: Optional[int] = None
        self.observed_at = 0
        self.latest: Optional[Row] = None
        self.spans: List[Row] = []

    def place(self, version: int) -> str:
        return f"{name_of(self.target)}, version {version}"

    def link(self, row: Row, changes: List[Row], spans: List[Row]) -> None:
        """Add the next version, and then its spans. Broken where it does not follow from what is there."""
        version = self.version + 1
        at, opens = self.place(version), self.opening is not None and version == self.opening["version"]
        require(at, "change_set.version", version, row["version"])
        require(at, "change_set.format", 1, row["format"])
        require(at, "change_set.kind", "baseline" if version == 1 else "delta", row["kind"])
        if not opens:
            require(at, "change_set.parent_hash", self.hash, row["parent_hash"])
        self._require_times(row, opens, at)
        counts = Counter(change["kind"] for change in changes)
        for kind in KINDS:
            require(at, f"change_set.{kind}", counts[kind], row[kind])
        before = dict(self.state)
        self._open(changes, at) if opens else self._replay(before, changes, at)
        require(at, "change_set.flow_count", len(self.state), row["flow_count"])
        computed = digest([self.state[flow_id] for flow_id in sorted(self.state)])
        require(at, "change_set.state_digest", computed, row["state_digest"])
        require(at, "change_set.hash", self._hash(row, changes), row["hash"])
        self._require_run(row, at)
        self._require_answer(row, self.state if opens else before, at)
        self.version, self.hash, self.observed_at = version, row["hash"], row["observed_at"]
        self.last_at = row["observed_at"]
        self.see(spans, opens)

    def see(self, spans: List[Row], opens: bool) -> None:
        """Add the spans of the latest version. Broken where they cannot have been so."""
        self.spans = spans
        for number, span in enumerate(spans):
            at, first, last = self.place(self.version), span["first_at"], span["last_at"]
            require_possible(span, at)
            before = self.latest
            if before is not None and min(first, span["last_asked_at"]) <= before["last_at"]:
                ended = moment(before["last_at"])
                raise Broken(at, f"observation: first_at and last_asked_at should be after {ended}, the span before")
            if first < self.observed_at:
                raise Broken(at, f"observation.first_at is {moment(first)}, before the version was observed")
            known = before is not None or (self.version == 1 and not opens)
            begins = number == 0 and first == self.observed_at
            if known and not span["interrupted"] and not begins:
                raise Broken(at, "observation.interrupted should be True, since the span does not begin its version")
            if before is None and known and (span["interrupted"] or not begins):
                raise Broken(at, "observation: the baseline should open a span that is not interrupted")
            self.latest, self.last_at = span, last
        if self.latest is None and not opens and self.version:
            raise Broken(self.place(1), "observation: the span that the baseline opened is missing")

    def _require_times(self, row: Row, opens: bool, at: str) -> None:
        if self.last_at is not None and row["observed_at"] <= self.last_at:
            raise Broken(at, f"change_set.observed_at should be after {moment(self.last_at)}, the time recorded before")
        if not opens or self.latest is not None:
            asked = self.latest["last_asked_at"] if self.latest else None
            require(at, "change_set.last_unchanged_at", asked, row["last_unchanged_at"])

    def _open(self, changes: List[Row], at: str) -> None:
        """Take the state that a bundle opens with; its digest and the hash of its version prove it."""
        flows = self.opening["flows"] if self.opening else []
        self.state = {flow[0]: flow for flow in flows}
        require(at, "its flows, in order,", [self.state[each] for each in sorted(self.state)], flows)
        for change in changes:
            after = None if change["kind"] == "removed" else after_of(change)
            require(at, f"workflow {shown(change['flow_id'])}", self.state.get(change["flow_id"]), after)

    def _replay(self, before: Dict[str, Flow], changes: List[Row], at: str) -> None:
        """Apply the changes, which must be just those that lead from the state before to what they say."""
        for change in changes:
            self.state.pop(change["flow_id"], None)
            if change["kind"] != "removed":
                self.state[change["flow_id"]] = after_of(change)
        expected: List[List[Any]] = []
        for each in sorted({change["flow_id"] for change in changes}):
            expected += changes_of(each, before.get(each), self.state.get(each), self.version == 0)
        for right, found in zip_longest(expected, ([change[name] for name in CHANGE] for change in changes)):
            require(f"{at}, workflow {shown((right or found)[0])}", "change", right, found)
        if not changes and self.version:
            raise Broken(at, "changes nothing")

    def _hash(self, row: Row, changes: List[Row]) -> str:
        content = ["change/1", *self.target, row["version"], row["kind"], row["observed_at"], row["last_unchanged_at"]]
        content.append([[span[name] for name in SPAN] for span in self.spans])
        content += [row[name] for name in ("approved_by", "approved_scope", "data_hash", "state_digest")]
        content.append([[change[name] for name in CHANGE] for change in changes])
        return linked(row["parent_hash"], content)

    def _require_run(self, row: Row, at: str) -> None:
        run = self.trail.run_of(row, at)
        if not run.row["started_at"] <= row["observed_at"] <= run.row["finished_at"]:
            raise Broken(at, f"change_set.observed_at is {moment(row['observed_at'])}, not in the time of {run.place}")
        if run.opened == "whole":
            if self.target not in run.targets:
                raise Broken(at, f"{run.place} was not to ask this target")
            require(at, "change_set.approved_scope", self.trail.approved_scope(run, self.target), row["approved_scope"])
        elif run.opened == "no" or row["hash"] not in run.hashes:
            raise Broken(at, f"is not in {run.place}, which it names")
        if (row["approved_by"] is None) != (row["approved_scope"] is None):
            raise Broken(at, "change_set.approved_by and approved_scope should both be there, or neither")
        if row["approved_by"] is not None:
            require(at, "the origin of its run", "approval", run.row["origin"])

    def _require_answer(self, row: Row, before: Dict[str, Flow], at: str) -> None:
        """The kept answer gives the version, but for workflows whose removal was held."""
        answer = answer_of(self.trail.bundle, row["data_hash"], at)
        if answer is None:
            return
        for flow_id in sorted(answer.keys() | self.state.keys()):
            held = flow_id not in answer and before.get(flow_id) == self.state.get(flow_id)
            if not held or not self._is_held(flow_id, row["run_id"]):
                require(
                    f"{at}, workflow {shown(flow_id)}", "in its answer", self.state.get(flow_id), answer.get(flow_id)
                )

    def _is_held(self, flow_id: str, run_id: int) -> bool:
        """Whether the removal of a workflow was held when a run ended."""
        held, last = False, self.trail.runs[run_id].seal["id"]
        for event in self.trail.holds[self.target]:
            if self.trail.runs[event["run_id"]].seal["id"] <= last and flow_id in event["flow_ids"]:
                held = event["kind"] == "held"
        return held


def held_by(event: Row) -> List[Held]:
    """What a row of holds is about: removals have no kind."""
    return [(flow_id, "", None) for flow_id in event["flow_ids"]] + [tuple(doubt) for doubt in event["doubted"]]


def after_of(change: Row) -> Flow:
    return [change["flow_id"], change["new_name"], change["new_cycle"], change["new_editable"]]


def changes_of(flow_id: str, before: Optional[Flow], after: Optional[Flow], first: bool) -> List[List[Any]]:
    """The rows of the changes of a workflow from one state to another, in their order."""
    old, new = before or [flow_id, None, None, None], after or [flow_id, None, None, None]
    kinds = [kind for kind, column in sorted(ATTRIBUTES.items()) if old[column] != new[column]]
    if before is None:
        kinds = ["baseline" if first else "added"]
    elif after is None:
        kinds = ["removed"]
    return [[flow_id, kind, old[1], new[1], old[2], new[2], old[3], new[3]] for kind in kinds]


def require_possible(span: Row, at: str) -> None:
    """One observation has no length; with several, the longest gap lies between the mean and the length."""
    first, last, count, gap = (span[name] for name in ("first_at", "last_at", "observations", "longest_gap_seconds"))
    length = last - first
    if count < 1 or length < 0 or span["last_asked_at"] > last or (length == 0) != (count == 1):
        raise Broken(at, f"observation: {count} observations from {moment(first)} to {moment(last)} cannot be")
    least = length // max(count - 1, 1) // SECOND
    if not least <= gap <= length // SECOND or (count < 2 and gap):
        raise Broken(at, f"observation.longest_gap_seconds cannot be {gap}")


def answer_of(bundle: Bundle, data_hash: str, at: str) -> Optional[Dict[str, Flow]]:
    """The workflows in a kept answer; None if it was not kept. Broken where it cannot be read, or is another one."""
    kept = bundle.answer(data_hash)
    if kept is None:
        return None
    require(at, "the hash of its answer", data_hash, sha256(kept))
    try:
        return flows_of(kept)
    except (ValueError, RecursionError) as error:
        raise Broken(at, f"its answer cannot be read: {printable(error)}") from None


def workflows_in(items: List[Any]) -> Iterator[Any]:
    """The items of a list; of a directory the files of type 1, as items of a list would have them."""
    waiting = [items]
    while waiting:
        for item in waiting.pop():
            if not isinstance(item, dict) or "isDirectory" not in item:
                yield item
            elif item["isDirectory"] is True:
                waiting.append(item.get("children") or [])
            elif whole(item.get("type")) == "1":
                yield {"flowId": whole(item.get("key")), "flowName": item.get("title")}


def whole(found: Any) -> Optional[str]:
    """A whole number as its digits: it may be an integer, a fraction or a text."""
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    digits, _, zeros = str(found).partition(".")
    return digits if not isinstance(found, bool) and digits.isdigit() and not zeros.strip("0") else None


def flows_of(data: bytes) -> Dict[str, Flow]:
    """The workflows in the ``data`` of an answer."""
    found: Dict[str, Flow] = {}
    items = json.loads(data, object_pairs_hook=without_twins)
    if not isinstance(items, list):
        raise ValueError("it is no list")
    for item in workflows_in(items):
        given = item["flowId"] if isinstance(item, dict) and "flowId" in item else None
        flow_id = str(given) if FITS["int"](given) else given
        flow = [flow_id] + [item.get(name) for name in ("flowName", "cycle", "editable")] if flow_id else None
        if not is_flow(flow) or flow is None or found.setdefault(flow[0], flow) != flow:
            raise ValueError(f"it holds what is no workflow: {shown(str(item))}")
    return found


# ------------------------------------------------------------------------------------------------- all of it, in order


class Check:
    """A whole check; ``findings`` are its result."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.trail = bundle, Trail(bundle)
        self.findings = self.trail.findings
        self.notes: List[str] = []
        """What of the kept lines was not compared."""
        self.compared = dict.fromkeys(("seals", "heads", "signatures", "confirmed"), 0)
        """How much that was kept elsewhere agrees, and up to which seal."""
        self.counts: "Counter[str]" = Counter()
        self.approvers: Dict[str, None] = {}
        self.asked: Dict[Target, None] = {}
        """The targets of the runs that are opened, and those that have a version."""
        self.ends: Dict[Target, Tuple[int, List[bytes]]] = {}
        """The first version of each target that is here, and the hashes from it on."""
        self.replayed = False

    def run(self) -> None:
        """Check everything. Where the seals do not hold there is nothing to compare the rest with."""
        self.findings += map(str, self.bundle.whole())
        try:
            self.trail.read_seals()
            self.trail.read_acknowledgements()
            self.trail.read_events()
            self._check_targets(Attendance(list(self.trail.runs.values()), self.bundle))
        except Broken as broken:
            self.findings.append(str(broken))
            return
        self.replayed = True
        for run in self.trail.runs.values():
            self._noted(self.trail.require_run, run)
            self.asked.update(dict.fromkeys(run.targets))
        for data_hash in self.bundle.unnamed_answers:
            self.findings.append(f"{ANSWERS}{printable(data_hash)}: no version and no hold of the bundle names it")

    def page(self) -> Iterator[str]:
        """What was found to hold, in plain words; to be read only if nothing was found not to."""
        seals, runs = self.trail.seals, list(self.trail.runs.values())
        if any(self.compared.values()):
            yield said("compared", all=len(seals), **self.compared)
        else:
            yield said("alone")
        yield from self.notes
        inside = [run for run in runs if run.inside]
        opened = [run for run in inside if run.opened == "whole"]
        yield self._period(runs, inside, len(opened))
        yield said("organisations", names=listed({target[0] for target in self.asked}))
        lists = [target for target in self.asked if target[1]]
        yield said("users", users=len({target[:2] for target in lists}), lists=len(lists))
        if len(lists) < len(self.asked):
            yield said("directories", names=listed({target[0] for target in self.asked if not target[1]}))
        yield from self._sums(opened)
        yield from self._rows(opened)
        newest = {"number": len(seals), "sealed_at": moment(seals[-1]["sealed_at"]) if seals else "no time"}
        yield said("made", made_at=moment(self.bundle.made_at), **newest)
        pruned = sum(run.pruned for run in opened)
        if pruned:
            yield said("pruned", runs=pruned)
        if len(opened) < len(inside):
            yield said("shut", runs=len(inside) - len(opened))
        if self.trail.counts["veiled"]:
            yield said("veiled", others=self.trail.counts["veiled"])
        if self.counts["older"]:
            yield said("older", lists=self.counts["older"])
        if self.bundle.archive.read("check.py") != read_file(__file__):
            yield said("checker")

    def _period(self, runs: List[Run], inside: List[Run], opened: int) -> str:
        if opened < len(inside):
            since = "the first run" if self.bundle.since is None else moment(self.bundle.since)
            until = "the last run" if self.bundle.until is None else moment(self.bundle.until)
            return said("chosen", since=since, until=until, whole=opened, runs=len(inside))
        if not inside:
            return said("empty")
        before = runs.index(inside[0])
        first, last = (moment(run.seal["sealed_at"]) for run in (inside[0], inside[-1]))
        others = {"before": before, "after": len(runs) - before - len(inside)}
        return said("period", runs=len(inside), first=first, last=last, **others)

    def _sums(self, opened: List[Run]) -> Iterator[str]:
        """What the sums in the seals of the opened runs say."""
        total: "Counter[str]" = Counter(run.row["status"] for run in opened)
        yield said("runs", **{status: total[status] for status in ("succeeded", "partial", "failed", "aborted")})
        sums = {name: sum(run.row[name] for run in opened) for name in ("missed_slots", *SUMS)}
        answered = sums["changed"] + sums["unchanged"] + sums["held"]
        yield said("answers", answered=answered, asked=sums["targets"], **sums)
        yield said("failures", **sums)
        yield said("silences", unknown=sums["targets"] - sum(sums[name] for name in VERDICTS), **sums)

    def _rows(self, opened: List[Run]) -> Iterator[str]:
        """What the rows of the bundle say that a seal covers."""
        yield said("changes", **{name: self.counts[name] for name in ("versions", *KINDS)})
        covered = {run.id for run in opened}
        holds = [row for rows in self.trail.holds.values() for row in rows if row["run_id"] in covered]
        ended: "Counter[str]" = Counter()
        for row in holds:
            ended[row["kind"]] += len(held_by(row))
        yield said("holds", **{kind: ended[kind] for kind in ("held", "back", "approved")})
        by = f", by {listed(self.approvers)}" if self.approvers else ""
        yield said("approvals", versions=self.counts["approvals"], by=by)
        if self.trail.counts["made"]:
            by = f", by {listed(self.trail.acknowledgers)}"
            yield said("acknowledgements", by=by, **{name: self.trail.counts[name] for name in ACKNOWLEDGED})
        kept = {"versions": self.counts["answers"], "of": self.counts["versions"], "of_holds": len(holds)}
        yield said("kept", holds=sum(row["data_hash"] in self.bundle.answers for row in holds), **kept)
        if self.counts["stamps"]:
            yield said("stamps", stamps=self.counts["stamps"])

    def _check_targets(self, attendance: Attendance) -> None:
        by_version = {name: Lines(self.bundle, name, ("version",)) for name in ("openings", "change_sets")}
        lines = {
            **by_version,
            "changes": Lines(self.bundle, "changes", ("version", "flow_id", "kind")),
            "spans": Lines(self.bundle, "spans", ("version", "first_at")),
            "issues": Lines(self.bundle, "issues", ()),
        }
        members = sorted(self.trail.members, reverse=True)
        while True:
            waiting = [target_of(each.next) for each in lines.values() if each.next is not None]
            target = min(waiting + members[-1:], default=None)
            if target is None:
                break
            if members[-1:] == [target]:
                members.pop()
            self.counts["targets"] += 1
            taken = {name: list(each.take(target)) for name, each in lines.items()}
            self._noted(self._check_target, target, taken, attendance)
        self.counts.update(versions=lines["change_sets"].read, changes=lines["changes"].read)

    def _check_target(self, target: Target, taken: Dict[str, List[Row]], attendance: Attendance) -> None:
        issues = self._issues(target, taken["issues"])
        self._tell_runs(taken["change_sets"], issues)
        versions = [row["version"] for row in taken["change_sets"]]
        self.ends[target] = (min(versions, default=1), [bytes.fromhex(row["hash"]) for row in taken["change_sets"]])
        changes, spans = by_version_of(taken["changes"]), by_version_of(taken["spans"])
        chain = Chain(target, self.trail, taken["openings"][0] if taken["openings"] else None)
        if chain.opening is not None:
            chain.see(spans.pop(chain.version, []), True)
        for row in taken["change_sets"]:
            chain.link(row, changes.pop(row["version"], []), spans.pop(row["version"], []))
        for name, left in (("workflow_change", changes), ("observation", spans)):
            if left:
                raise Broken(chain.place(min(left)), f"{name}: rows of a version that is not there")
        self.counts["older"] += chain.opening is not None and len(taken["change_sets"]) == 1
        self._require_holds(target, taken["issues"])
        attendance.require(target, taken["spans"], issues)

    def _tell_runs(self, change_sets: List[Row], issues: List[Run]) -> None:
        """Assign the versions to their runs, and count them, whether or not they hold."""
        for row in change_sets:
            self.asked[target_of(row)] = None
            self.counts.update({kind: row[kind] for kind in KINDS})
            self.counts["answers"] += row["data_hash"] in self.bundle.answers
            if row["approved_by"] is not None:
                self.counts["approvals"] += 1
                self.approvers[row["approved_by"]] = None
            run = self.trail.runs.get(row["run_id"])
            if run is not None and run.opened == "whole":
                run.hashes.append(row["hash"])
                run.counts.update({kind: row[kind] for kind in KINDS})
                run.counts["changed"] += run not in issues

    def _issues(self, target: Target, rows: List[Row]) -> List[Run]:
        runs = []
        for row in rows:
            run = self.trail.run_of(row, f"{name_of(target)}, issue")
            run.issues.append([*target, row["verdict"], row["error_code"], row["missing"]])
            run.counts[row["verdict"]] += 1
            if row["verdict"] == "stale":
                run.stale[target] = None
            if run in runs or target not in run.targets:
                raise Broken(f"{name_of(target)}, {run.place}", "sync_issue: it was not asked, or has two verdicts")
            runs.append(run)
        return runs

    def _require_holds(self, target: Target, issues: List[Row]) -> None:
        """As many are missing as the issue says, and the answers show what is held."""
        for event in self.trail.holds[target]:
            self._require_hold_answer(event, f"{name_of(target)}, hold in run {event['run_id']}")
        for row in issues:
            if row["verdict"] == "held" and (row["run_id"], target) in self.trail.missing:
                missing = self.trail.missing[row["run_id"], target]
                require(f"{name_of(target)}, run {row['run_id']}", "missing", missing, row["missing"])

    def _require_hold_answer(self, event: Row, at: str) -> None:
        """The kept answer lists what came back, and nothing that is held or approved."""
        answer = answer_of(self.bundle, event["data_hash"], at)
        if answer is None:
            return
        for flow_id, kind, new in held_by(event):
            flow = answer.get(flow_id)
            shows = flow is None if not kind else flow is not None and flow[ATTRIBUTES[kind]] == new
            if shows == (event["kind"] == "back"):
                raise Broken(at, f"its answer does not show {event['kind']} of {shown(flow_id)}")

    def compare(
        self, number: int, seal: str, where: str, trail_id: Optional[str] = None, at: Optional[int] = None
    ) -> None:
        """Compare a seal that was kept elsewhere; ``at``: its time."""
        if number > len(self.trail.seals):
            self.findings.append(f"{where}: the bundle ends with seal {len(self.trail.seals)}, before seal {number}")
            return
        found = self.trail.seals[number - 1] if number > 0 else {"seal": None, "sealed_at": None}
        known = self.trail.trail_of(number)["trail_id"] if trail_id is not None else None
        if (found["seal"], known) != (seal, trail_id) or at not in (None, found["sealed_at"]):
            self.findings.append(
                f"{where}: seal {number} should be {shown(seal)}, but is {shown(found['seal'])}: "
                f"altered, or restored from before seal {number}"
            )
        else:
            self._confirm("seals", number)

    def _confirm(self, what: str, number: int = 0) -> None:
        self.compared[what] += 1
        self.compared["confirmed"] = max(self.compared["confirmed"], number)

    def compare_kept(self, kept: List[Row], name: str) -> None:
        """Compare the lines of a kept file. A bundle cannot have what was sealed after it was made."""
        own, younger, beside = {trail["trail_id"] for trail in self.trail.trails}, 0, 0
        for line in kept:
            if "trail_id" not in line:
                beside += not self.replayed or not self._compare_head(line)
            elif line["trail_id"] not in own:
                trail = shown(line["trail_id"])
                self.findings.append(f"{line['place']}: is of the trail {trail}, and the bundle of another")
            elif line["id"] > len(self.trail.seals) and line["sealed_at"] > self.bundle.made_at:
                younger += 1
            else:
                self.compare(line["id"], line["seal"], line["place"], line["trail_id"], line["sealed_at"])
        if younger + beside == len(kept):
            made_at = moment(self.bundle.made_at)
            why = f"all {younger} kept lines are younger than the bundle, made at {made_at}" if younger else "none fits"
            self.findings.append(f"{printable(name)}: nothing was compared with it: {why}")
        self.notes += [said("younger", lines=younger)] if younger else []
        self.notes += [said("beside", heads=beside)] if beside else []

    def _compare_head(self, head: Row) -> bool:
        """Compare the head of a chain; False where the bundle need not contain its version."""
        target, version = target_of(head), head["version"]
        first, hashes = self.ends.get(target, (1, []))
        last, place = first + len(hashes) - 1, f"{head['place']}: {name_of(target)}"
        if version < first or self.bundle.org_id not in (None, target[0]):
            return False
        if version <= last:
            found = hashes[version - first].hex()
            if found != head["hash"]:
                wanted = f"should have the hash {shown(head['hash'])}, but has {shown(found)}: altered, or replaced"
                self.findings.append(f"{place}, version {version} {wanted}")
            self._confirm("heads")
            return True
        if head["taken_at"] < self._complete_until():
            self.findings.append(f"{place}: the bundle ends with version {last}, before version {version}")
            return True
        return False

    def _complete_until(self) -> int:
        """What was observed before this time is in the bundle, if anything of its organisation is."""
        until = self.bundle.until
        late = [run for run in self.trail.runs.values() if until is not None and run.seal["sealed_at"] >= until]
        started: List[int] = [run.row["started_at"] for run in late]
        return min([self.bundle.made_at if until is None else until, *started])

    def check_signatures(self, public_keys: List[bytes]) -> None:
        """No unsigned seal after a signed one; with public keys, every signature is of the owner of one of them."""
        signed, stranger = False, None  # of consecutive seals with an unknown key, the first is named
        keys = {sha256(public_key): public_key for public_key in public_keys}
        for seal in self.trail.seals:
            place = f"seal {seal['id']}"
            if (seal["signature"] is None) != (seal["key_id"] is None) or (signed and seal["signature"] is None):
                self.findings.append(f"{place}: is not signed, though a seal before it was")
            signed = signed or seal["signature"] is not None
            if not keys or seal["signature"] is None:
                continue
            message = signed_bytes(self.trail.trail_of(seal["id"])["trail_id"], seal)
            key = keys.get(seal["key_id"])
            before, stranger = stranger, seal["key_id"] if key is None else None
            if key is None and seal["key_id"] != before:
                self.findings.append(f"{place}: signature is not that of this public key, from this seal on")
            elif key is not None and is_signed(key, message, seal["signature"]):
                self._confirm("signatures", seal["id"])
            elif key is not None:
                self.findings.append(f"{place}: signature is not that of this public key over {shown(seal['seal'])}")
        if keys and self.trail.seals and not signed:
            self.findings.append("no seal is signed, though a public key was given")
        self.notes += [said("unsigned")] if signed and not keys else []

    def check_timestamps(self) -> None:
        """A token holds the hash of what it stamps. Whose token it is, `openssl ts` can say."""
        before = 0
        for row in self.bundle.rows("timestamps"):
            number = row["seal_id"]
            seal = self.trail.seals[number - 1] if before < number <= len(self.trail.seals) else None
            token, before = unpacked(row["token"]), number
            imprint = b""
            if seal is not None:
                imprint = hashlib.sha256(signed_bytes(self.trail.trail_of(number)["trail_id"], seal)).digest()
            if not imprint or imprint not in token:
                self.findings.append(f"time stamp of seal {number}: is not one of this seal")
            self.counts["stamps"] += 1

    def _noted(self, step: Callable[..., None], *values: Any) -> None:
        try:
            step(*values)
        except Broken as broken:
            self.findings.append(str(broken))


def said(line: str, **values: Any) -> str:
    """One of the lines that are printed."""
    return SAID[line].format(**values)


def listed(names: Iterable[str]) -> str:
    """Names as one reads them."""
    shortest = [shown(name) for name in sorted(names)]
    return ", ".join(shortest[:20]) + (f" and {len(shortest) - 20} more" if len(shortest) > 20 else "") or "none"


def by_version_of(rows: List[Row]) -> Dict[int, List[Row]]:
    grouped: Dict[int, List[Row]] = {}
    for row in rows:
        grouped.setdefault(row["version"], []).append(row)
    return grouped


def signed_bytes(trail_id: str, seal: Row) -> bytes:
    return f"flowtrail-seal-1\n{trail_id}\n{seal['id']}\n{seal['seal']}".encode()


# ------------------------------------------------------------------------------------------------- Ed25519 (RFC 8032)

PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
CURVE = -121665 * pow(121666, -1, PRIME) % PRIME
Point = Tuple[int, int, int, int]
"""Extended coordinates X, Y, Z, T: x = X/Z, y = Y/Z, xy = T/Z."""
NEUTRAL: Point = (0, 1, 1, 0)


def plus(p: Point, q: Point) -> Point:
    """The sum of two points, equal or not (RFC 8032, section 5.1.4)."""
    a = (p[1] - p[0]) * (q[1] - q[0]) % PRIME
    b = (p[1] + p[0]) * (q[1] + q[0]) % PRIME
    c = 2 * p[3] * q[3] * CURVE % PRIME
    d = 2 * p[2] * q[2] % PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % PRIME, g * h % PRIME, f * g % PRIME, e * h % PRIME


def twice(p: Point) -> Point:
    a, b, c = p[0] * p[0], p[1] * p[1], 2 * p[2] * p[2]
    h, g = a + b, a - b
    e, f = h - (p[0] + p[1]) ** 2, c + g
    return e * f % PRIME, g * h % PRIME, f * g % PRIME, e * h % PRIME


def point_of(encoded: bytes) -> Optional[Point]:
    """The point of 32 bytes: y in little endian, the lowest bit of x on top (section 5.1.3)."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if len(encoded) != 32 or y >= PRIME:
        return None
    square = (y * y - 1) * pow(CURVE * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    if x * x % PRIME != square or (x == 0 and sign):
        return None
    x = PRIME - x if x & 1 != sign else x
    return x, y, 1, x * y % PRIME


def bytes_of(p: Point) -> bytes:
    inverse = pow(p[2], -1, PRIME)
    x, y = p[0] * inverse % PRIME, p[1] * inverse % PRIME
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = point_of((4 * pow(5, -1, PRIME) % PRIME).to_bytes(32, "little")) or NEUTRAL


def is_signed(public_key: bytes, message: bytes, signature: str) -> bool:
    """Whether ``signature`` (base64) over ``message`` is that of the key's owner (section 5.1.7)."""
    raw = unpacked(signature)
    key, scalar = point_of(public_key), int.from_bytes(raw[32:], "little")
    if len(raw) != 64 or scalar >= ORDER or key is None or is_weak(key):
        return False
    hashed = int.from_bytes(hashlib.sha512(raw[:32] + public_key + message).digest(), "little") % ORDER
    minus = (PRIME - key[0], key[1], key[2], PRIME - key[3])
    choice = (NEUTRAL, BASE, minus, plus(BASE, minus))
    total = NEUTRAL
    for bit in range(252, -1, -1):
        total = twice(total)
        picked = (scalar >> bit & 1) + 2 * (hashed >> bit & 1)
        if picked:
            total = plus(total, choice[picked])
    return bytes_of(total) == raw[:32]


def unpacked(text: str) -> bytes:
    """The bytes of base64; none where another text says the same, in bits that are not used."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


def is_weak(key: Point) -> bool:
    """Whether the order of a point divides eight: for such a key anybody can sign."""
    return bytes_of(twice(twice(twice(key)))) == bytes_of(NEUTRAL)


def public_key_in(text: bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key in PEM."""
    match = re.fullmatch(rb"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*", text)
    encoded = base64.b64decode(re.sub(rb"\s", b"", match[1])) if match else b""
    prefix = bytes.fromhex("302a300506032b6570032100")
    key = encoded[len(prefix) :]
    point = point_of(key) if encoded.startswith(prefix) else None
    if point is None or is_weak(point):
        raise ValueError("is no Ed25519 public key in PEM")
    return key


# -------------------------------------------------------------------------------------------------- the command line


def kept_file(text: bytes) -> Tuple[List[Row], Optional[int]]:
    """The lines of a kept file, and the number of its last one if a crash cut that short."""
    kept: List[Row] = []
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = None
        try:
            row = loads(line)
            columns = columns_of(KEPT_SEAL if "trail_id" in row else KEPT_HEAD)
            kept.append({**typed(row, columns), "place": f"kept line {number}"})
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) and row is None:
                return kept, number
            raise ValueError(f"line {number} is no kept seal and no kept head") from None
    return kept, None


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line; its result is the exit code."""
    parser = argparse.ArgumentParser(description="Check a Flowtrail audit bundle.")
    parser.add_argument("file", help="the bundle, a zip file")
    parser.add_argument("--seal", action="append", default=[], metavar="ID:HASH", help="a seal that was kept elsewhere")
    parser.add_argument("--kept", metavar="FILE", help="a file of seals and heads that were kept elsewhere")
    key_help = "the public key of whoever signs the seals, in PEM; may be given again, where it was replaced"
    parser.add_argument("--public-key", action="append", default=[], metavar="FILE", help=key_help)
    given = parser.parse_args(arguments)
    try:
        seals = [(int(number), seal) for number, _, seal in (each.partition(":") for each in given.seal)]
        kept = kept_file(read_file(given.kept)) if given.kept else None
        public_keys = [public_key_in(read_file(name)) for name in given.public_key]
        with open(given.file, "rb") as file, zipfile.ZipFile(file) as archive:
            return checked(file, archive, seals, kept, given.kept, public_keys)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        print(f"{given.file}: cannot be checked: {printable(error)}", file=sys.stderr)
        return 2


def read_file(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def checked(
    file: IO[bytes],
    archive: zipfile.ZipFile,
    seals: List[Tuple[int, str]],
    kept: Optional[Tuple[List[Row], Optional[int]]],
    name: str,
    public_keys: List[bytes],
) -> int:
    """Check, and print what was found. ``kept``: what is in the file ``name``, if one was given."""
    findings, lines, counts = [], [], dict.fromkeys(("seals", "targets", "versions", "changes"), 0)
    try:
        check = Check(Bundle(file, archive))
        findings = check.findings
        check.run()
        for number, seal in seals:
            check.compare(number, seal, "--seal")
        if kept is not None:
            check.compare_kept(kept[0], name)
            check.notes += [said("cut", number=kept[1], file=printable(name))] if kept[1] else []
        check.check_signatures(public_keys)
        check.check_timestamps()
        counts.update({name: check.counts[name] for name in counts}, seals=len(check.trail.seals))
        lines = check.notes if findings else list(check.page())
    except Broken as broken:
        findings.append(str(broken))
    except UNREADABLE as error:
        findings.append(f"the archive is damaged, or a file is missing: {printable(error)}")
    for line in [*lines, *findings]:
        print(line)
    print(said("end", result=f"{len(findings)} findings" if findings else "everything holds", **counts))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
