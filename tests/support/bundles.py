"""A trail of some days, built in memory, and its audit bundle, hashed with the program's own functions."""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from etl.audit import check
from etl.domain import chain, seal
from etl.domain.diff import baseline, diff
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, ChangeSet, Flow, Span, Target

Row = dict[str, Any]
Rows = dict[str, list[Row]]
Sign = Callable[[bytes], tuple[str, str]]
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
TAKEN_AT = "2026-03-30T00:00:00Z"
ANN, BEN, CAT = Target("o1", "ann"), Target("o1", "ben", "电"), Target("o2", "cat")


class Failed(NamedTuple):
    """No valid answer."""

    code: str | None = "62101"
    verdict: str = "failed"


class Held(NamedTuple):
    """An answer whose removals are held; ``whole``: nothing of it is applied."""

    flows: Sequence[Flow]
    whole: bool = False


class Lost(NamedTuple):
    """The run was aborted before its request."""


Answer = Sequence[Flow] | Failed | Held | Lost


class Seen:
    """The state of a target in the story."""

    def __init__(self) -> None:
        self.version = 0
        self.hash = chain.GENESIS
        self.state: dict[str, Flow] = {}
        self.spans: list[Row] = []
        self.open: Row | None = None
        self.held: set[str] = set()
        self.held_since: dt.datetime | None = None


class Story:
    """Runs, one after the other; ``rows`` are the files of a bundle, times as datetimes."""

    def __init__(self, sign: Sign | None = None) -> None:
        self.rows: Rows = {name: [] for name in check.FILES}
        self.answers: dict[str, bytes] = {}
        self.now = START
        self.targets: dict[Target, Seen] = {}
        self.sign = sign
        self.begin_trail("6f1d0a52-53c5-4a0e-9b55-0d7f6f1b3c11")

    def begin_trail(self, trail_id: str) -> None:
        first = len(self.rows["seals"]) + 1
        self.rows["trails"].append({"trail_id": trail_id, "created_at": self.now, "first_seal": first})

    def run(
        self,
        answers: dict[Target, Answer],
        *,
        schedule: str | None = "plants",
        origin: str = "schedule",
        aborted: bool = False,
        joins: Iterable[Target] = (),
        leaves: Iterable[Target] = (),
        approved_by: str | None = None,
        prunes: int | None = None,
        besides: dict[str, Row] | None = None,
    ) -> int:
        """Add a run over the targets of ``answers``; return its id."""
        self.now += 15 * MINUTE
        number, started_at = len(self.rows["runs"]) + 1, self.now
        for kind, targets in (("joined", joins), ("left", leaves), ("retired", leaves)):
            for target in targets:
                listed, gap = schedule if kind != "retired" else None, 129600 if kind == "joined" else None
                self._event("memberships", target, number, kind=kind, schedule=listed, coverage_gap_seconds=gap)
        for target, answer in answers.items():
            self.now += MINUTE / 10
            self._observe(number, target, answer, approved_by)
        for name, row in (besides or {}).items():
            self.rows[name].append({"run_id": number, **row})
        if prunes is not None:
            self.rows["pruned_issues"].append({"run_id": number, "pruned_run_id": prunes, "at": self.now})
            self.rows["issues"] = [row for row in self.rows["issues"] if row["run_id"] != prunes]
        scope: Row = {"schedules": [schedule] if schedule else [], "org_id": None, "user_id": None}
        if approved_by is not None:
            scope = {"targets": [list(target) for target in answers]}
        scope["membership_id"] = len(self.rows["memberships"])
        self.now += MINUTE
        run: Row = {"id": number, "schedule": schedule, "origin": origin, "scheduled_for": None, "missed_slots": 0}
        run |= {"started_at": started_at, "finished_at": self.now, "scope": scope, "opened": "whole"}
        self.rows["runs"].append(run | self._sums(number, len(answers), aborted))
        self.rows["seals"].append({"id": number, "format": 1, "run_id": number, "sealed_at": self.now})
        seal_from(self.rows, number, self.sign)
        return number

    def acknowledge(self, org_id: str, **values: Any) -> None:
        row = {name: values.get(name) for name in seal.ACKNOWLEDGEMENT} | {"made_by": "Zoë", "org_id": org_id}
        row |= {"id": len(self.rows["acknowledgements"]) + 1, "made_at": self.now + MINUTE}
        self.rows["acknowledgements"].append(row)

    def _observe(self, run: int, target: Target, answer: Answer, approved_by: str | None) -> None:
        seen = self.targets.setdefault(target, Seen())
        if isinstance(answer, Lost):
            return
        if isinstance(answer, Failed):
            seen.open = seen.open if answer.verdict == "stale" else None
            self._issue(target, run, answer.verdict, answer.code, 0)
            return
        flows = {flow.flow_id: flow for flow in (answer.flows if isinstance(answer, Held) else answer)}
        data = encoded_answer(flows.values())
        missing = seen.state.keys() - flows.keys() if isinstance(answer, Held) else set()
        held = seen.held
        self._hold(run, target, seen, missing, flows.keys(), data)
        if isinstance(answer, Held):
            self._issue(target, run, "held", None, len(missing))
            flows = seen.state if answer.whole else flows | {each: seen.state[each] for each in missing}
        was_open = seen.open
        if flows != seen.state or not seen.version:
            self._version(run, target, seen, flows, data, approved_by, held)
        interrupted = bool(seen.spans) and was_open is None
        if isinstance(answer, Held):
            seen.open = None
        elif seen.open is None:
            self._span(target, seen, interrupted=interrupted)
        else:
            span = seen.open
            gap = (self.now - span["last_at"]) // dt.timedelta(seconds=1)
            span |= {"last_at": self.now, "last_asked_at": self.now - MINUTE / 60}
            span["observations"] += 1
            span["longest_gap_seconds"] = max(gap, span["longest_gap_seconds"])

    def _hold(self, run: int, target: Target, seen: Seen, missing: set[str], answered: Set[str], data: bytes) -> None:
        data_hash = hashlib.sha256(data).hexdigest()
        events = {
            "held": missing - seen.held,
            "back": seen.held & answered,
            "approved": seen.held - missing - answered,
        }
        for kind, flow_ids in events.items():
            if flow_ids:
                self.answers[data_hash] = data
                self._event("holds", target, run, kind=kind, flow_ids=sorted(flow_ids), doubted=[], data_hash=data_hash)
        if missing and not seen.held:
            seen.held_since = self.now
        seen.held = set(missing)

    def _version(
        self,
        run: int,
        target: Target,
        seen: Seen,
        flows: dict[str, Flow],
        data: bytes,
        approved_by: str | None,
        held: set[str],
    ) -> None:
        data_hash = hashlib.sha256(data).hexdigest()
        self.answers[data_hash] = data
        approved = any(row["run_id"] == run and row["kind"] == "approved" for row in self.rows["holds"])
        scope = chain.approved_scope(target, seen.held_since, held) if approved else None
        changes = diff(seen.state, flows) if seen.version else baseline(flows)
        counts = Counter(change.kind for change in changes)
        latest = seen.spans[-1]["last_asked_at"] if seen.spans else None
        row: Row = {
            **target._asdict(),
            "version": seen.version + 1,
            "format": 1,
            "run_id": run,
            "kind": "delta" if seen.version else "baseline",
            "observed_at": self.now,
            "last_unchanged_at": latest,
            "flow_count": len(flows),
            "state_digest": chain.state_digest(flows.values()),
            "approved_by": approved_by if approved else None,
            "approved_scope": scope,
            "data_hash": data_hash,
            "parent_hash": seen.hash,
            **{kind: counts[kind] for kind in CHANGE_KINDS},
        }
        version = {**target._asdict(), "version": row["version"]}
        self.rows["changes"] += [version | dict(zip(check.CHANGE, columns(each), strict=True)) for each in changes]
        self.rows["change_sets"].append(row)
        row["hash"] = hash_of(self.rows, row)
        seen.version, seen.hash, seen.state, seen.open = row["version"], row["hash"], flows, None

    def _span(self, target: Target, seen: Seen, *, interrupted: bool) -> None:
        span = {**target._asdict(), "version": seen.version, "first_at": self.now, "last_at": self.now}
        span |= {"last_asked_at": self.now - MINUTE / 60, "observations": 1, "longest_gap_seconds": 0}
        seen.open = span | {"interrupted": interrupted}
        seen.spans.append(seen.open)
        self.rows["spans"].append(seen.open)

    def _issue(self, target: Target, run: int, verdict: str, code: str | None, missing: int) -> None:
        row = {"run_id": run, "verdict": verdict, "error_code": code, "missing": missing}
        self.rows["issues"].append({**target._asdict(), **row})

    def _event(self, name: str, target: Target, run: int, **values: Any) -> None:
        number = {"id": len(self.rows[name]) + 1} if name == "memberships" else {}
        self.rows[name].append({**number, **target._asdict(), "run_id": run, "at": self.now, **values})

    def _sums(self, run: int, targets: int, aborted: bool) -> Row:
        issues = [row for row in self.rows["issues"] if row["run_id"] == run]
        verdicts = Counter(row["verdict"] for row in issues)
        held = {target_of(row) for row in issues if row["verdict"] == "held"}
        made = [row for row in self.rows["change_sets"] if row["run_id"] == run]
        verdicts["changed"] = sum(target_of(row) not in held for row in made)
        verdicts["unchanged"] = 0 if aborted else targets - verdicts.total()
        sums = {"targets": targets, **{name: verdicts[name] for name in check.VERDICTS}}
        sums |= {kind: sum(row[kind] for row in made) for kind in check.KINDS}
        trouble = sums["failed"] + sums["held"]
        status = "failed" if trouble and sums["failed"] == targets else "partial" if trouble else "succeeded"
        return sums | {"status": "aborted" if aborted else status}


# ------------------------------------------------------------------------------------------------------------ hashes


def columns(change: Change) -> list[Any]:
    return [getattr(change, name) for name in check.CHANGE]


def target_of(row: Row) -> Target:
    return Target(row["org_id"], row["user_id"], row["expression"])


def of_version(rows: Rows, name: str, target: Target, version: int) -> list[Row]:
    return [row for row in rows[name] if target_of(row) == target and row["version"] == version]


def hash_of(rows: Rows, row: Row) -> str:
    """The hash of a row of ``change_sets``, computed by the program."""
    target, version = target_of(row), row["version"]
    spans = of_version(rows, "spans", target, version - 1)
    changes = of_version(rows, "changes", target, version)
    names = ("kind", "observed_at", "last_unchanged_at", "approved_by", "approved_scope", "data_hash", "state_digest")
    made = ChangeSet(
        target=target,
        version=version,
        spans=tuple(Span(*(span[name] for name in check.SPAN)) for span in spans),
        changes=[Change(*(change[name] for name in check.CHANGE)) for change in changes],
        **{name: row[name] for name in names},
    )
    return chain.change_set_hash(row["parent_hash"], made)


def trail_of(rows: Rows, number: int) -> Row:
    return [trail for trail in rows["trails"] if trail["first_seal"] <= number][-1]


def parent_of(rows: Rows, number: int) -> str:
    before: str | None = next((row["seal"] for row in rows["seals"] if row["id"] == number - 1), None)
    for trail in rows["trails"]:
        if trail["first_seal"] == number:
            before = seal.genesis(trail["trail_id"], trail["created_at"], before)
    assert before is not None
    return before


def seal_from(rows: Rows, number: int, sign: Sign | None) -> None:
    """Seal a run (again) with the digests of its rows."""
    row = next(each for each in rows["seals"] if each["id"] == number)
    run = next(each for each in rows["runs"] if each["id"] == row["run_id"])
    digests = digests_of(rows, run)
    row |= {f"{name}_digest": getattr(digests, name) for name in seal.Digests.__struct_fields__}
    names = ("schedule", "origin", "scheduled_for", "missed_slots", "status", "started_at", "finished_at")
    sealed = seal.SealedRun(run_id=run["id"], sums=[run[n] for n in seal.SUMS], **{name: run[name] for name in names})
    trail_id = trail_of(rows, number)["trail_id"]
    row["parent"] = parent_of(rows, number)
    row["seal"] = seal.seal_hash(row["parent"], trail_id, number, sealed, digests, row["sealed_at"])
    row["signature"], row["key_id"] = sign(seal.signed_bytes(trail_id, number, row["seal"])) if sign else (None, None)


def digests_of(rows: Rows, run: Row) -> seal.Digests:
    own = {name: [row for row in listed if row.get("run_id") == run["id"]] for name, listed in rows.items()}
    made = sorted(own["change_sets"], key=lambda row: (target_of(row), row["version"]))

    def encoded(listed: Iterable[Row], columns: Sequence[str]) -> list[bytes]:
        return [seal.encoded_row(row[name] for name in columns) for row in listed]

    number = next(row["id"] for row in rows["seals"] if row["run_id"] == run["id"])
    times = [START, *(row["sealed_at"] for row in rows["seals"] if row["id"] in (number - 1, number))][-2:]
    acknowledged = [(row["made_at"], row["id"], hash_of_acknowledgement(row)) for row in rows["acknowledgements"]]
    acknowledged += [(row["made_at"], row["id"], row["hash"]) for row in rows["other_acknowledgements"]]
    return seal.Digests(
        targets=seal.targets_digest(asked_by(rows, run)),
        change_sets=chain.digest([row["hash"] for row in made]),
        issues=seal.digest_of(encoded(sorted(own["issues"], key=target_of), seal.ISSUE)),
        events=seal.digest_of_lists(map(encoded, (own[file] for file in check.EVENTS), seal.EVENTS.values())),
        acknowledgements=chain.digest([each[2] for each in sorted(acknowledged) if times[0] < each[0] <= times[1]]),
    )


def hash_of_acknowledgement(row: Row) -> str:
    return seal.acknowledgement_hash(row[name] for name in seal.ACKNOWLEDGEMENT)


def asked_by(rows: Rows, run: Row) -> set[Target]:
    scope = run["scope"]
    if "targets" in scope:
        return {Target(*each) for each in scope["targets"]}
    listed: set[Target] = set()
    for event in rows["memberships"]:
        if event["id"] <= scope["membership_id"] and event["schedule"] in scope["schedules"]:
            (listed.add if event["kind"] == "joined" else listed.discard)(target_of(event))
    return listed


def forge(rows: Rows) -> None:
    """Recompute every hash and every seal, as the owner of a database can."""
    parents: dict[Target, str] = {}
    for row in sorted(rows["change_sets"], key=lambda row: (target_of(row), row["version"])):
        row["parent_hash"] = parents.get(target_of(row), chain.GENESIS)
        parents[target_of(row)] = row["hash"] = hash_of(rows, row)
    runs = {row["id"] for row in rows["runs"]}
    rows["seals"] = [row for row in rows["seals"] if row["run_id"] in runs]
    for trail in rows["trails"]:
        trail["first_seal"] = 1 + sum(row["id"] < trail["first_seal"] for row in rows["seals"])
    for number, row in enumerate(rows["seals"], 1):
        row["id"] = number
        seal_from(rows, number, None)


# ------------------------------------------------------------------------------------------------------------ a bundle


def encoded_answer(flows: Iterable[Flow]) -> bytes:
    """The bytes of ``data`` as EnOS sends them: with spaces, a number as an id, and additional fields."""
    listed = [
        {"flowId": int(f.flow_id) if f.flow_id.isdigit() else f.flow_id, "flowName": f.flow_name, "more": 1.5}
        | {"cycle": f.cycle, "editable": f.editable}
        for f in flows
    ]
    return json.dumps(listed).encode()


def lines_of(rows: Iterable[Row]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=written).encode() + b"\n"


def written(at: dt.datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


ORDER = {
    "change_sets": ("version",),
    "openings": ("version",),
    "changes": ("version", "flow_id", "kind"),
    "spans": ("version", "first_at"),
    "issues": (),
}


def files_of(rows: Rows, answers: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a bundle, without its manifest; of the answers, those that its rows name."""
    files = {"check.py": Path(check.__file__).read_bytes()}
    for name, listed in rows.items():
        if name in ORDER:
            listed = sorted(listed, key=lambda row: (*target_of(row), *(row[column] for column in ORDER[name])))
        columns = [column.partition(":")[0] for column in check.FILES[name].split()]
        files[f"{name}.jsonl"] = b"".join(lines_of({column: row[column] for column in columns} for row in listed))
    named = {row["data_hash"] for row in (*rows["change_sets"], *rows["holds"])}
    return files | {f"answers/{name}": data for name, data in answers.items() if name in named}


def manifest_of(rows: Rows, files: dict[str, bytes], **fields: Any) -> Row:
    last = rows["seals"][-1] if rows["seals"] else {"id": 0, "seal": None}
    return {
        "bundle": "flowtrail-audit/1",
        "made_at": "2026-04-01T00:00:00Z",
        "since": None,
        "until": None,
        "org_id": None,
        "last_seal": {"id": last["id"], "seal": last["seal"]},
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
        **fields,
    }


def write(file: Path, files: dict[str, bytes], manifest: Row) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1, default=written) + "\n")
        for name, data in files.items():
            archive.writestr(name, data)
    return file


def pack(file: Path, rows: Rows, answers: dict[str, bytes], **fields: Any) -> Path:
    """Write a bundle; ``fields`` are those of the manifest."""
    files = files_of(rows, answers)
    return write(file, files, manifest_of(rows, files, **fields))


def between(story: Story, begin: dt.datetime, end: dt.datetime) -> Rows:
    """The rows of a bundle about a period: each target opens with the version that it had then."""
    rows: Rows = copy.deepcopy(story.rows)
    whole = {row["run_id"] for row in rows["seals"] if begin <= row["sealed_at"] < end}
    late = {row["run_id"] for row in rows["seals"] if row["sealed_at"] >= end}
    versions = [(target_of(row), row["version"]) for row in rows["change_sets"] if row["run_id"] in late]
    for name in ("change_sets", "changes", "spans"):
        rows[name] = [row for row in rows[name] if (target_of(row), row["version"]) not in versions]
    first: dict[Target, int] = {}
    for row in rows["change_sets"]:
        if row["run_id"] not in whole or row["version"] == 1:
            first[target_of(row)] = row["version"]
    opening = {row["run_id"] for row in rows["change_sets"] if row["version"] == first[target_of(row)]} - whole
    for run in rows["runs"]:
        run["opened"] = "whole" if run["id"] in whole else "hashes" if run["id"] in opening else "no"
    for number in sorted(opening):
        made = [row for row in rows["change_sets"] if row["run_id"] == number]
        hashes = [row["hash"] for row in sorted(made, key=lambda row: (target_of(row), row["version"]))]
        rows["hashes"].append({"run_id": number, "hashes": hashes})
    for target, version in first.items():
        if version > 1:
            flows = sorted(state_at(rows, target, version).values(), key=lambda flow: flow.flow_id)
            listed = [[f.flow_id, f.flow_name, f.cycle, f.editable] for f in flows]
            rows["openings"].append({**target._asdict(), "version": version, "flows": listed})
    for name, before in (("change_sets", 0), ("changes", 0), ("spans", 1)):
        rows[name] = [row for row in rows[name] if row["version"] >= first[target_of(row)] - before]
    for name in ("issues", "details", "org_events"):
        rows[name] = [row for row in rows[name] if row["run_id"] in whole]
    return rows


def only(story: Story, org_id: str) -> Rows:
    """The rows of a bundle about one organisation, where no run asked users of two."""
    others = [row for row in story.rows["acknowledgements"] if row["org_id"] != org_id]
    rows = {
        name: [row for row in listed if row.get("org_id", org_id) == org_id]
        for name, listed in copy.deepcopy(story.rows).items()
    }
    rows["other_acknowledgements"] = [
        {"id": row["id"], "made_at": row["made_at"], "hash": hash_of_acknowledgement(row)} for row in others
    ]
    for run in rows["runs"]:
        if any(target.org_id != org_id for target in asked_by(story.rows, run)):
            run |= {"scope": {}, "opened": "no"}
    return rows


def state_at(rows: Rows, target: Target, version: int) -> dict[str, Flow]:
    state: dict[str, Flow] = {}
    made = [row for row in rows["changes"] if target_of(row) == target and row["version"] <= version]
    for row in sorted(made, key=lambda row: row["version"]):
        if row["kind"] == "removed":
            del state[row["flow_id"]]
        else:
            state[row["flow_id"]] = Flow(row["flow_id"], row["new_name"], row["new_cycle"], row["new_editable"])
    return state


def kept_lines(rows: Rows) -> bytes:
    """Every seal as a line of a kept file."""
    kept = (
        seal.kept_line(trail_of(rows, row["id"])["trail_id"], row["id"], row["seal"], row["sealed_at"])
        for row in rows["seals"]
    )
    return b"".join(lines_of(kept))


def kept_heads(rows: Rows) -> list[Row]:
    """The latest version of each target as a line of a kept file has it."""
    latest = {target_of(row): row for row in sorted(rows["change_sets"], key=lambda row: int(row["version"]))}
    names = ("version", "hash", "state_digest")
    return [
        {**target._asdict(), **{name: row[name] for name in names}, "spans": [], "open": False, "taken_at": TAKEN_AT}
        for target, row in latest.items()
    ]


# ------------------------------------------------------------------------------------------------------------- a story


def some_days(sign: Sign | None = None) -> Story:
    """Everything that can happen to a target and a run, in about twenty runs."""
    one = [Flow("1", "one", "D", True), Flow("2", 'the "two"\n', None, None), Flow("流", "三", "mi", False)]
    two = [Flow("1", "one!", "H", True), *one[1:], Flow("10", None, "M", True)]
    many = [Flow(str(number), f"name {number}", "W", number % 2 == 0) for number in range(100, 112)]
    story = Story(sign)
    story.run({ANN: one, BEN: many}, joins=[ANN, BEN])
    story.run({ANN: one, BEN: many})
    story.run({ANN: two, BEN: Failed()})
    story.acknowledge("o1", flow_id="1", kind="renamed", after=START - MINUTE, until=START + MINUTE, ticket="4711")
    story.acknowledge("o1", flow_id="2", user_id="ann", note="by mistake")
    story.run({ANN: two, BEN: many})
    story.run({ANN: Failed("http_503"), BEN: Failed(None, "stale")})
    story.run({ANN: two, BEN: Held([Flow("100", "new name", "W", True), *many[8:]])})
    story.run({ANN: two[:2], BEN: Held([Flow("100", "new name", "W", True), *many[6:]])})
    story.run({ANN: Held([], whole=True), BEN: Failed("timeout")})
    story.run({ANN: two[:2], BEN: Lost()}, aborted=True)
    story.run(
        {BEN: [Flow("100", "new name", "W", True), many[5], *many[8:]]},
        schedule=None,
        origin="approval",
        approved_by="Zoë",
    )
    story.acknowledge("o2", until=START)
    story.acknowledge("o1", revokes=2)
    story.run({CAT: []}, schedule="wind", joins=[CAT])
    story.run({ANN: two[:2], BEN: many[8:]}, besides={"details": DETAIL, "org_events": EVENT})
    story.begin_trail("0b0f6a1e-0c55-4f6e-8f21-1f9a3f6f7d02")
    story.run({ANN: two[:2]}, leaves=[BEN])
    story.run({CAT: Failed("62103")}, schedule="wind")
    story.run({}, schedule=None, origin="maintenance", prunes=5)
    story.run({ANN: one, BEN: many}, joins=[BEN])
    story.run({ANN: one, BEN: many})
    story.run({ANN: one, BEN: many})
    return story


DETAIL: Row = {"org_id": "o1", "flow_id": "1", "asked_at": START, "observed_at": START + MINUTE, "update_user": "u9"}
DETAIL |= {"update_time": "2019-07-22 08:56:58.0", "creator": None, "create_time": None, "owner": "u1;u2", "freq": None}
DETAIL |= {"active": 1, "type": 1, "locked": False, "enos_timezone": "GMT+8", "detail_hash": "88" * 32}
EVENT: Row = {"org_id": "o1", "flow_id": "1", "kind": "renamed", "user_id": None, "old_name": "one"}
EVENT |= {"new_name": "one!", "old_cycle": "D", "new_cycle": "H", "old_editable": None, "new_editable": None}
EVENT |= {"last_unchanged_at": START, "observed_at": START + MINUTE, "users_before": 1, "users_after": 1}
EVENT |= {"proven_for_all": True, "unheard": 0, "decided_at": START + 2 * MINUTE}
