"""The metrics of `serve`, and the documentation, alert rules and dashboard that use them."""

from __future__ import annotations

import ast
import datetime as dt
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from etl import config
from etl.demo.world import World
from etl.domain.model import Target
from etl.gateway import connection, errors
from etl.report.conditions import CODES as CONDITIONS
from etl.report.health import HealthSnapshot, Overdue
from etl.service.metrics import CODES, MOST_SCHEDULES, OTHERS, Metrics, ServiceStatus
from etl.sync import RunReport, Tally
from tests.support.builders import numbered
from tests.support.enos import Fault, LocalGateway
from tests.support.postgres import free_port
from tests.support.program import KEY, SECRET, Program, Running
from tests.support.served import wait_until

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
BOARD = ROOT / "deploy" / "grafana" / "flowtrail.json"
ORG, ANN, BOB = "org-canary", "ann-canary", "bob-canary"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def gateway() -> Iterator[LocalGateway]:
    world = World(orgs=0)
    world.set_flows(ORG, ANN, numbered(1, 30))
    world.set_flows(ORG, BOB, numbered(1, 2))
    with LocalGateway(world, access_key=KEY, secret_key=SECRET) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def flowtrail(tmp_path_factory: pytest.TempPathFactory, gateway: LocalGateway) -> Program:
    program = Program(tmp_path_factory.mktemp("service"), gateway.url)
    program.configure()
    program.schedule("plants", [(ORG, [ANN, BOB])], when='every = "1s"')
    return program


@pytest.fixture(scope="module")
def service(flowtrail: Program) -> Iterator[Running]:
    """One service for all of these tests."""
    (flowtrail.folder / "secret").write_text(f"whsec_{'A' * 32}")
    webhook = 'name = "tickets"\nurl = "http://127.0.0.1:9/"\nsecret_file = "secret"\non = ["disappeared"]'
    (flowtrail.folder / "rules").mkdir()
    (flowtrail.folder / "rules" / "none.sql").write_text("-- title: None\nSELECT flow_id FROM org_workflow")
    flowtrail.configure(rest=f"[[webhook]]\n{webhook}", listen=f"127.0.0.1:{free_port()}")
    service = flowtrail.start("serve")
    service.wait_for("run_ended", times=2)
    yield service
    assert service.stop() == 0


def scraped(service: Running) -> Samples:
    """Every sample, by its name and its labels, once the runs whose end was logged are counted."""
    ended = sum(entry["event"] == "run_ended" for entry in service.log)
    samples: Samples = {}

    def are_counted() -> bool:  # a run is counted right after the line that says so
        samples.update(of(service.get("/metrics")[1]))
        return sum(count for (name, _), count in samples.items() if name == "flowtrail_runs_total") >= ended

    wait_until(are_counted)
    return samples


def of(exposition: str) -> Samples:
    families = text_string_to_metric_families(exposition)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"flowtrail_{name}", frozenset(labels.items())]


# --------------------------------------------------------------------------------------------------- what is told


def test_runs_requests_and_the_state_of_the_database_are_exported(service: Running, gateway: LocalGateway) -> None:
    before = scraped(service)
    gateway.order(Fault("code", code=62109, user=ANN, times=1))
    gateway.order(Fault("code", code=4711, user=BOB, times=2))
    gateway.order(Fault("empty", user=BOB, times=1))
    gateway.world.set_flows(ORG, ANN, numbered(1, 10))
    gateway.world.set_cycle(ORG, "1", "H")
    service.wait_for("run_ended", lambda entry: entry.get("held") == 1, times=2)
    now = scraped(service)

    def rise(name: str, **labels: str) -> float:
        return value(now, name, **labels) - before.get((f"flowtrail_{name}", frozenset(labels.items())), 0)

    assert value(now, "runs_total", schedule="plants", status="succeeded") >= 1
    assert value(now, "run_duration_seconds_count", schedule="plants") >= 3
    assert rise("changes_total", kind="cycle_changed") >= 1
    assert value(now, "changes_total", kind="baseline") == 32
    assert rise("run_targets_total", verdict="held") >= 1
    assert rise("run_second_questions_total") == 2
    assert rise("gateway_retries_total") >= 1
    assert rise("gateway_errors_total", call="flows", error_code="62109") == 1
    assert rise("gateway_errors_total", call="flows", error_code="other") == 2, "4711 is nobody's code"
    assert rise("run_failures_total", error_code="other") == 1
    assert rise("gateway_request_duration_seconds_count", call="flows") >= 4
    assert value(now, "gateway_token_renewals_total") == 1
    assert rise("database_apply_duration_seconds_count") >= 2
    assert (value(now, "targets"), value(now, "targets_held"), value(now, "held_workflows")) == (2, 1, 20)
    assert (value(now, "role", role="active"), value(now, "role", role="standing_by")) == (1, 0)
    assert value(now, "health", check="alive") == value(now, "health", check="ready") == value(now, "database_up") == 1
    assert now["process_resident_memory_bytes", frozenset()] > 1e6


def test_no_label_has_a_target_a_user_or_a_workflow_in_it(service: Running) -> None:
    labels = {label for _, labels in scraped(service) for label in labels}
    assert {"schedule", "verdict", "kind", "status", "role", "check", "call", "error_code"} <= dict(labels).keys()
    assert not re.findall("canary", service.get("/metrics")[1])


def test_every_replica_exports_the_same_of_the_database(service: Running, flowtrail: Program) -> None:
    """Also what a `sync` on the command line did, of which the service knows only from the database."""
    flowtrail.configure(listen=f"127.0.0.1:{free_port()}")
    standby = flowtrail.start("serve")
    standby.wait_for("standing_by")
    flowtrail("sync")
    mine, other = scraped(service), scraped(standby)
    read = ("targets", "targets_held", "held_workflows", "targets_refused", "targets_failing", "listed_workflows")
    assert {name: value(mine, name) for name in read} == {name: value(other, name) for name in read}
    assert value(other, "role", role="standing_by") == 1
    assert "flowtrail_runs_total" not in {name for name, _ in other}, "it ran nothing"
    assert standby.stop() == 0


def test_openmetrics_is_served_on_request(service: Running) -> None:
    body = service.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]
    assert body.endswith("# EOF\n")


def test_every_code_of_the_gateway_client_has_its_own_label() -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "etl").rglob("*.py") if "demo" not in path.parts)
    keywords = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.keyword) and each.arg == "code"]
    literal = {each.value.value for each in keywords if isinstance(each.value, ast.Constant)}
    translated = {code for _, code, _ in connection._MEANINGS}
    assert {"timeout", "malformed", "gateway_down"} <= literal | translated
    known = literal | translated | {str(code) for code in errors._CODES} | {f"http_{s}" for s in errors._STATUSES}
    assert known <= CODES


def status_now(**known: Any) -> ServiceStatus:
    well = dict.fromkeys(("alive", "ready", "database_up"), True)
    unknown = dict.fromkeys(("clock_skew_seconds", "snapshot"))
    return ServiceStatus(**{"role": "active", "runs_under_way": 0, "conditions": {}, **well, **unknown, **known})


def snapshot(**known: Any) -> HealthSnapshot:
    counts = ("targets", "never_observed", "failing", "refused", "held", "held_workflows", "listed", "ahead")
    times = ("last_observation_at", "oldest_observation_at", "last_change_at", "ahead_until")
    return HealthSnapshot(**{**dict.fromkeys(counts, 0), **dict.fromkeys(times), "refused_targets": (), **known})


def test_metrics_unknown_to_the_database_are_left_out() -> None:
    metrics = Metrics()
    metrics.watch(lambda: status_now(role="database_unreachable", ready=False, database_up=False))
    told = metrics.render("")[0].decode()
    assert 'flowtrail_health{check="fresh"} 0.0' in told
    assert not re.search("^flowtrail_(targets|held_workflows|last_observation|gateway_clock_skew)", told, re.MULTILINE)


def test_the_schedules_beyond_a_thousand_are_exported_together() -> None:
    names = [f"s{number:04}" for number in range(MOST_SCHEDULES + 2)]
    at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    success = {name: at + dt.timedelta(minutes=number) for number, name in enumerate(names)}
    late = tuple(Overdue(name, Target("o1", "ann"), None, None, None) for name in (names[0], *names[-2:]))
    metrics = Metrics()
    metrics.know(names)
    metrics.watch(lambda: status_now(snapshot=snapshot(last_success_at=success, overdue=late)))
    ended = RunReport(run_id=1, status="succeeded", duration_seconds=1.0, targets=0, tally=Tally())
    for name in names:
        metrics.run_ended(ended, name)
    samples = of(metrics.render("")[0].decode())
    schedules = {dict(labels)["schedule"] for _, labels in samples if "schedule" in dict(labels)}
    assert schedules == {*names[:MOST_SCHEDULES], OTHERS}
    assert value(samples, "runs_total", schedule=OTHERS, status="succeeded") == 2
    overdue = [value(samples, "targets_overdue", schedule=each) for each in (names[0], names[1], OTHERS)]
    assert overdue == [1, 0, 2]
    oldest = value(samples, "schedule_last_success_timestamp_seconds", schedule=OTHERS)
    assert oldest == success[names[MOST_SCHEDULES]].timestamp()


# --------------------------------------------------------------------------------------------------- what builds on it


def exported(service: Running) -> dict[str, tuple[str, frozenset[str]]]:
    """The type and the labels of each metric; what has no sample yet has no labels here."""
    found = {}
    for family in text_string_to_metric_families(service.get("/metrics")[1]):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels))
    return found


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    page = (ROOT / "docs/metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_documented_metrics_are_those_that_a_service_exports(service: Running) -> None:
    assert documented() == exported(service)


def queried(expression: str) -> set[str]:
    """The metrics that an expression names; those of a histogram or summary by their family."""
    found = re.findall(r"\b(?:flowtrail|process)_\w+", expression)
    kinds = {name: kind for name, (kind, _) in documented().items()}
    bases = {name: re.sub("_(bucket|sum|count)$", "", name) for name in found}
    return {base if kinds.get(base) in ("histogram", "summary") else name for name, base in bases.items()}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(BOARD.read_text("utf-8"))["panels"])


def expressions() -> dict[str, str]:
    """Everything that is asked of Prometheus, by where it stands."""
    of_rules = {rule["alert"]: rule["expr"] for rule in rules()}
    return of_rules | {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel.get("targets", ())
    }


def test_alerts_and_dashboard_use_metrics_and_labels_that_there_are() -> None:
    known, of_prometheus = documented(), {"job", "instance", "le"}
    unseen = {name for name in known if name.startswith("flowtrail_")}
    for place, expression in expressions().items():
        asked = queried(expression)
        assert asked, place
        had = set().union(*(known[name][1] for name in asked), of_prometheus)
        grouped = re.findall(r"\b(?:by|on|ignoring|without) \(([^)]*)\)", expression)
        picked = {label.strip() for group in grouped for label in group.split(",")}
        picked |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
        assert picked <= had, place
        unseen -= asked
    assert unseen == set()


def test_every_alert_says_what_is_wrong_and_has_a_runbook() -> None:
    page = (ROOT / "docs/monitoring.md").read_text("utf-8")
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"} or rule["alert"].endswith("Refused")
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook_url"] == f"{{{{ $externalLabels.flowtrail_docs }}}}/monitoring.md#{anchor}"
    assert headings - {"access"} == {rule["alert"].lower() for rule in rules()}


def test_every_condition_has_an_alert_or_a_reason_why_not() -> None:
    page = (ROOT / "docs/monitoring.md").read_text("utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+) \|[^|]*\| (.*) \|$", page, re.MULTILINE)
    told = {code: (severity, alert) for codes, severity, alert in rows for code in re.findall(r"`(\w+)`", codes)}
    severities = {code: rule.severity for code, rule in CONDITIONS.items()}
    assert {code: severity for code, (severity, _) in told.items()} == severities
    expressions = {rule["alert"]: rule["expr"] for rule in rules()}
    for code, (_, alert) in told.items():
        named = re.match(r"\[(\w+)\]", alert)
        assert alert.startswith("none: ") if named is None else named[1] in expressions, code
    asked = {code: name for name, expr in expressions.items() for code in re.findall(r'condition{code="(\w+)"}', expr)}
    assert {code: told[code][1].startswith(f"[{name}]") for code, name in asked.items()} == dict.fromkeys(asked, True)


def test_the_dashboard_is_one_that_grafana_can_show() -> None:
    board = json.loads(BOARD.read_text("utf-8"))
    assert {each["name"] for each in board["templating"]["list"]} == {"datasource", "job"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["type"] in ("row", "stat", "timeseries")
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
    assert not [(a["title"], b["title"]) for a, b in combinations(panels(), 2) if overlap(a["gridPos"], b["gridPos"])]


def overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


def promtool(*arguments: str, given: str = "") -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=ALERTS.parent, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_the_alert_rules_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", ALERTS.name)
    promtool("test", "rules", "alerts_test.yml")


@needs_promtool
def test_the_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    asked = [expression for place, expression in expressions().items() if not place.startswith("Flowtrail")]
    plain = [each.replace("$__rate_interval", "5m").replace("$job", ".+") for each in asked]
    recorded = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(plain)]
    rules_file = tmp_path / "panels.yml"
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", str(rules_file))


@needs_promtool
def test_the_metrics_follow_prometheus_customs(service: Running) -> None:
    assert promtool("check", "metrics", given=service.get("/metrics")[1]) == ""


def test_the_hosts_of_the_documentation_are_settings(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/monitoring.md").read_text("utf-8"), re.DOTALL)
    file = tmp_path / "flowtrail.toml"
    file.write_text('[gateway]\nurl = "https://apim.example.com"\nauth = "none"\n' + example)
    hosts = config.load(file, {}).service.hosts
    assert hosts == ("flowtrail", "flowtrail.monitoring.svc", "flowtrail.example.com")
