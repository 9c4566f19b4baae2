"""deploy/: what can be checked without an engine, a cluster or a booted systemd, and a rollout with real processes."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml

from etl import config
from etl.config.secret import openness
from etl.config.settings import ServiceSettings
from etl.domain.model import Flow
from etl.system.descriptors import allocate
from tests.support import image
from tests.support.enos import Fault, LocalGateway
from tests.support.program import ANN, ORG, Program, Running

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "flowtrail.service"
GRACE_SECONDS = ServiceSettings().grace.total_seconds()
MOST_IN_FLIGHT = 1000
"""The highest [gateway] concurrency."""
BOB = "bob"


# Settings: those of each way to deploy are settings that Flowtrail takes.


def loads(folder: Path, environment: Mapping[str, str], files: Mapping[str, str]) -> config.Settings:
    """Read settings and schedules as a container does that has ``files`` (by their paths there) and ``environment``."""
    for path, text in files.items():
        file = folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace('"/etc/', f'"{folder}/etc/'))
        file.chmod(0o600)
    placed = {name: re.sub(r"^/(etc|run)/", rf"{folder}/\1/", value) for name, value in environment.items()}
    settings, schedules = config.load_all(None, placed)
    assert [schedule.name for schedule in schedules] == ["plants"]
    assert settings.warnings == ()
    return settings


def of_image() -> dict[str, str]:
    """The variables that the image sets."""
    words = " ".join(image.values(image.stages()[1], "ENV")).split()
    return dict(word.split("=", 1) for word in words if word.startswith("FLOWTRAIL_"))


def of_folder(folder: Path, at: str) -> dict[str, str]:
    return {f"{at}/{path.relative_to(folder)}": path.read_text("utf-8") for path in folder.rglob("*.toml")}


# The image


def test_the_dockerfile_copies_what_is_there_and_ignores_all_else() -> None:
    copied = {name for value in image.values(image.stages()[0], "COPY") for name in value.split()[:-1]}
    assert {name for name in copied if not (ROOT / name).exists()} == set()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_image_runs_the_service_itself_as_a_number_without_a_name() -> None:
    final = image.stages()[1]
    assert (image.exec_form(final, "ENTRYPOINT"), image.exec_form(final, "CMD")) == (["flowtrail"], ["serve"])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", image.values(final, "USER")[0])
    assert image.values(final, "RUN") == []


def healthy(port: int) -> int:
    """The exit code of the image's health check, asked at another port."""
    words = [word.replace("8787", str(port)) for word in image.exec_form(image.stages()[1], "HEALTHCHECK")]
    return subprocess.run([sys.executable, *words[1:]], capture_output=True, check=False).returncode


# Compose


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


def test_the_compose_file_is_one_by_its_schema() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_compose_file_starts_in_order_and_stops_in_peace(compose: Any) -> None:
    for name in ("flowtrail", "standby"):
        service = compose["services"][name]
        assert service["depends_on"]["upgrade"] == {"condition": "service_completed_successfully"}
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["ulimits"]["nofile"] >= allocate(0, MOST_IN_FLIGHT)[0]
    used = {secret for service in compose["services"].values() for secret in service["secrets"]}
    assert used == compose["secrets"].keys()


def test_the_settings_of_the_compose_file_are_settings(compose: Any, tmp_path: Path) -> None:
    environment = {**of_image(), **compose["services"]["flowtrail"]["environment"]}
    secrets = {
        "/run/secrets/enos_secret_key": "secret",
        "/run/secrets/database_url": "postgresql+psycopg://flowtrail:x@postgres/flowtrail",
    }
    settings = loads(tmp_path, environment, {**of_folder(DEPLOY / "config", "/etc/flowtrail"), **secrets})
    assert settings.service.listen == "0.0.0.0:8787"
    assert settings.database.url.startswith("postgresql")


# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the program that is installed here."""
    installed = str(Path(sys.executable).with_name("flowtrail"))
    file = tmp_path / UNIT.name
    file.write_text(UNIT.read_text("utf-8").replace("/opt/flowtrail/bin/flowtrail", installed))
    return file


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd: apt-get install systemd")
@pytest.mark.parametrize("asked", ["verify --man=no", "security --offline=yes --no-pager --threshold=15"])
def test_systemd_finds_no_fault_in_the_unit_and_that_it_is_hardly_exposed(unit: Path, asked: str) -> None:
    done = subprocess.run(["systemd-analyze", *asked.split(), unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_the_service_is_ready_goes_on_and_stops(
    flowtrail: Program, tmp_path: Path, abstract: bool
) -> None:
    address = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address.replace("@", "\0", 1))
        heard.settimeout(60)
        service = flowtrail.start("serve", NOTIFY_SOCKET=address, WATCHDOG_USEC="300000")
        said: list[str] = []
        while not said or "READY=1" not in said[-1]:
            said.append(heard.recv(4096).decode())
        service.wait_for("active")
        while "STATUS=active" not in said[-1]:
            said.append(heard.recv(4096).decode())
        service.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in said[-1]:
            said.append(heard.recv(4096).decode())
        assert service.stop() == 0
    assert sum("READY=1" in each for each in said) == 1
    assert all("WATCHDOG=1" in each for each in said[:-1])


def test_the_unit_stops_in_peace_and_its_settings_are_settings(tmp_path: Path) -> None:
    lines = [line.partition("=")[::2] for line in UNIT.read_text("utf-8").splitlines() if re.match("[A-Z]", line)]
    unit = dict(lines)
    assert int(unit["TimeoutStopSec"]) > GRACE_SECONDS
    assert int(unit["LimitNOFILE"]) >= allocate(0, MOST_IN_FLIGHT)[0]
    places = {"%E": "/etc", "%S": "/var/lib", "%d": "/run/credentials"}
    given = [re.sub("%[ESd]", lambda found: places[found[0]], value) for name, value in lines if name == "Environment"]
    files = {**of_folder(DEPLOY / "config", "/etc/flowtrail"), "/run/credentials/enos_secret_key": "secret"}
    settings = loads(tmp_path, dict(value.split("=", 1) for value in given), files)
    assert settings.database.url == "sqlite:////var/lib/flowtrail/flowtrail.db"


@pytest.mark.skipif(os.geteuid() != 0, reason="no root, who may give a file away")
@pytest.mark.parametrize(("mode", "warned"), [(0o440, False), (0o400, False), (0o444, True), (0o460, True)])
def test_a_secret_readable_by_our_group_only_is_not_open(tmp_path: Path, mode: int, warned: bool) -> None:
    """As systemd and Kubernetes do; not so where others may read it, or the group may write."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.chown(secret, 65534, os.getegid())
    secret.chmod(mode)
    assert (openness(secret) is not None) is warned


# Kubernetes


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text("utf-8"))]
    return [document for document in documents if document["kind"] != "Kustomization"]


def the(manifests: list[dict[str, Any]], kind: str, name: str = "flowtrail") -> dict[str, Any]:
    (found,) = (each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def test_every_manifest_is_one_by_the_schema_of_kubernetes(manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_has_every_manifest_but_the_secret() -> None:
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert {*listed, "kustomization.yaml", "secret.yaml"} == {file.name for file in folder.glob("*.yaml")}


def test_a_rollout_keeps_two_and_no_probe_asks_what_a_restart_cannot_mend(manifests: list[dict[str, Any]]) -> None:
    spec = the(manifests, "Deployment")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]) == (2, {"maxUnavailable": 0, "maxSurge": 1})
    assert pod["terminationGracePeriodSeconds"] > GRACE_SECONDS
    probes = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
    assert probes == {"livenessProbe": "/healthz", "readinessProbe": "/readyz", "startupProbe": "/healthz"}
    assert pod["initContainers"][0]["args"] == ["db", "upgrade"]


def test_everything_selects_the_pods_of_the_deployment(manifests: list[dict[str, Any]]) -> None:
    deployment, budget = the(manifests, "Deployment"), the(manifests, "PodDisruptionBudget")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert the(manifests, "Service")["spec"]["selector"] == labels


def test_the_pods_are_confined(manifests: list[dict[str, Any]]) -> None:
    pod = the(manifests, "Deployment")["spec"]["template"]["spec"]
    for container in (*pod["containers"], *pod["initContainers"]):
        may = container["securityContext"]
        assert (may["readOnlyRootFilesystem"], may["allowPrivilegeEscalation"]) == (True, False)
        assert may["capabilities"] == {"drop": ["ALL"]}
    (user,) = image.values(image.stages()[1], "USER")
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user


def test_the_settings_of_the_manifests_are_settings(manifests: list[dict[str, Any]], tmp_path: Path) -> None:
    pod = the(manifests, "Deployment")["spec"]["template"]["spec"]
    held = {
        "config": the(manifests, "ConfigMap")["data"],
        "schedules": the(manifests, "ConfigMap", "flowtrail-schedules")["data"],
        "secrets": the(manifests, "Secret")["stringData"],
    }
    (container,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    files = {f"{mounted[volume]}/{name}": text for volume, data in held.items() for name, text in data.items()}
    given = {each["name"]: each["value"] for each in container["env"]}
    settings = loads(tmp_path, {**of_image(), **given}, files)
    assert settings.service.listen == "0.0.0.0:8787"
    allowed = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    assert 5 * settings.gateway.concurrency * settings.gateway.max_body < 0.7 * allowed, "docs/operate.md has the rule"


# A rollout


@pytest.fixture
def gateway(gateway: LocalGateway) -> LocalGateway:
    gateway.world.set_flows(ORG, BOB, [Flow("1", "one", "D", True)])
    return gateway


class Watch:
    """Asks every replica that it was told of, over and over, as a probe and an alert do."""

    def __init__(self) -> None:
        self.alive: list[Running] = []
        self.bad: list[tuple[str, object]] = []
        self.asked = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def joins(self, replica: Running) -> None:
        replica.wait_for("listening")
        with self._lock:
            self.alive.append(replica)

    def leaves(self, replica: Running) -> None:
        with self._lock:
            self.alive.remove(replica)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            with self._lock:
                for replica, path in product(self.alive, ("/healthz", "/readyz", "/freshness")):
                    self._ask(replica, path)

    def _ask(self, replica: Running, path: str) -> None:
        try:
            status, body = replica.get(path)
            self.asked += 1
            if status != 200:
                self.bad.append((path, body))
        except OSError as error:
            self.bad.append((path, error))


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_deploy_fires_no_alert(database_url: str, gateway: LocalGateway, tmp_path: Path) -> None:
    """SIGTERM reaches the active one in mid-run, the standby takes over, and a new replica joins as standby."""
    flowtrail = Program(tmp_path, gateway.url, database_url)
    flowtrail.configure(listen="127.0.0.1:0", rest='grace = "20s"')
    flowtrail.schedule("plants", [(ORG, [ANN, BOB])], when='every = "5s"')
    with Watch() as watch:
        active = flowtrail.start("serve")
        active.wait_for("run_ended")
        watch.joins(active)
        standby = flowtrail.start("serve")
        standby.wait_for("standing_by")
        watch.joins(standby)
        port = int(standby.wait_for("listening")["url"].rpartition(":")[2])
        assert healthy(port) == 0
        slow = gateway.order(Fault("delay", seconds=1.0, user=BOB))
        assert slow.reached.wait(60)
        watch.leaves(active)
        assert active.stop() == 0
        stopped = active.wait_for("stopped")
        ended = active.wait_for("run_ended", times=2)
        standby.wait_for("run_ended")
        new = flowtrail.start("serve")
        new.wait_for("standing_by")
        watch.joins(new)
        standby.wait_for("run_ended", times=2)
    assert (stopped["runs_ended"], ended["status"]) == (True, "succeeded")
    assert watch.bad == []
    assert watch.asked > 30
    assert (new.stop(), standby.stop()) == (0, 0)
    assert healthy(port) == 1
    served = runs(database_url)
    assert {status for _, status in served} == {"succeeded"}
    slots = [slot for slot, _ in served]
    assert slots == sorted(set(slots))
    assert len(slots) >= 3


def test_an_old_replica_works_on_beside_a_newer_schema(gateway: LocalGateway, tmp_path: Path) -> None:
    """A rollout migrates first: the old replica stays ready and goes on, and is not started again."""
    flowtrail = Program(tmp_path, gateway.url)
    flowtrail.configure(listen="127.0.0.1:0")
    flowtrail.schedule("plants", [(ORG, [ANN])], when='every = "1s"')
    with Watch() as watch:
        old = flowtrail.start("serve")
        old.wait_for("run_ended")
        watch.joins(old)
        with contextlib.closing(sqlite3.connect(tmp_path / "flowtrail.db", timeout=60)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        seen = len(old.log)
        again = flowtrail("serve")
        old.wait_for("run_ended", lambda entry: old.log.index(entry) > seen)
        asked = watch.asked
        assert old.wait_for("run_ended", lambda entry: watch.asked > asked + 3)
    assert (again.returncode, "ahead of this Flowtrail" in again.stderr) == (3, True)
    assert (watch.bad, old.stop()) == ([], 0)


def runs(database_url: str) -> list[tuple[dt.datetime, str]]:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        return connection.execute("SELECT scheduled_for, status FROM sync_run ORDER BY id").fetchall()


def test_every_requirement_is_one_version_with_its_hashes_and_the_same_in_all_lists() -> None:
    held = {}
    for file in (ROOT / "requirements").glob("*.txt"):
        entries = re.findall(r"(?m)^[^#\s].*", file.read_text("utf-8").replace("\\\n", " "))
        pinned = r"([a-z0-9._-]+(?:\[[a-z,]+\])?)==([^\s;]+) .*--hash=sha256:[0-9a-f]{64}"
        held[file.name] = dict(re.findall(pinned, "\n".join(entries)))
        assert len(held[file.name]) == len(entries), file
    assert len(held["core.txt"]) > 20
    for name in ("core.txt", "all.txt", "build.txt"):
        assert held[name].items() <= held["dev.txt"].items()
    assert not held["all.txt"].keys() & {"pytest", "ruff", "mypy", "hatchling"}
