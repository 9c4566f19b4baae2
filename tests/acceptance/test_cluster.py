"""Batches on Dask's own scheduler and workers: the same result as locally, whatever dies; no secret on the wire."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from etl import config, sync
from etl.cli.application import Application, worker_application
from etl.database import connect, reading, upgrade
from etl.demo.world import World
from etl.domain.model import Flow, Target
from etl.errors import ClusterError
from etl.sync import cluster, worker
from etl.verify import verify
from tests.support.dask_cluster import Dask, Wire
from tests.support.enos import Fault, LocalGateway
from tests.support.postgres import Server
from tests.support.program import KEY, SECRET, Program, disguises

PASSWORD = "pass-canary-9f3c"
SAFETY_NET_SECONDS = 60
FLOWS = [Flow(str(number), f"flow {number}", "DHWM"[number % 4], number % 3 == 0) for number in range(20)]


class Site:
    """A gateway, a PostgreSQL database, and a cluster whose workers know both from their own environment."""

    def __init__(self, folder: Path, url: str, gateway: LocalGateway) -> None:
        self.url = url
        self.engine = connect(url)
        self.gateway = gateway
        self.dask = Dask(folder)
        self.wire, self.worker_wire = Wire(self.dask.port), Wire(self.dask.port)
        self.environment = {
            "FLOWTRAIL_CONFIG": str(folder / "worker" / "flowtrail.toml"),
            "FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET,
            "FLOWTRAIL_DATABASE__URL": url,
        }
        Program(folder / "worker", "http://127.0.0.1:9", "postgresql://nobody@127.0.0.1:9/nothing")

    def start(self) -> None:
        self.workers = [self.dask.worker(self.worker_wire.address, **self.environment) for _ in range(2)]
        for process in self.workers:
            self.dask.wait_until_said(process, "Registered to")

    def program(self, folder: Path, users: int, *, address: str = "", gateway: str = "") -> Program:
        """A coordinator with an organisation of its own."""
        org = f"org-{folder.name}"
        names = [f"user-canary-{number}" for number in range(users)]
        for name in names:
            self.gateway.world.set_flows(org, name, FLOWS)
        program = Program(folder, self.gateway.url, self.url)
        program.configure(gateway or "concurrency = 4", rest=f'[scale]\ndask = "{address or self.wire.address}"')
        (folder / "flowtrail.toml").chmod(0o600)
        program.schedule("plants", [(org, names)])
        return program

    def rows(self, select: str) -> list[tuple[object, ...]]:
        with reading(self.engine) as connection:
            return [tuple(row) for row in connection.execute(text(select))]

    def findings(self) -> list[object]:
        return list(verify(self.engine))


@pytest.fixture(scope="module")
def site(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE clustered")
        admin.execute(f"CREATE ROLE clusterer SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    url = f"postgresql+psycopg://clusterer:{PASSWORD}@127.0.0.1:{postgres.port}/clustered"
    with LocalGateway(World(orgs=0), access_key=KEY, secret_key=SECRET) as gateway:
        site = Site(tmp_path_factory.mktemp("dask"), url, gateway)
        upgrade(site.engine)
        try:
            with site.wire, site.worker_wire:
                site.start()
                yield site
        finally:
            site.dask.stop()
            site.engine.dispose()
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as admin:
        admin.execute("DROP DATABASE clustered WITH (FORCE)")
        admin.execute("DROP ROLE clusterer")


@pytest.fixture
def coordinator(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """This process, with 60 targets in batches of 10."""
    monkeypatch.setattr("etl.sync.runner.BATCH_SIZE", 10)
    site.program(tmp_path, users=60)
    with Application(config.load(tmp_path / "flowtrail.toml", site.environment)) as app:
        assert app.cluster is not None
        app.cluster.connect()
        yield app


def begun(app: Application) -> Future[sync.RunReport]:
    """A run in the background."""
    return ThreadPoolExecutor(1).submit(app.run, "command", app.schedules[0].targets, remote=app.cluster)


def begun_slowly(site: Site, app: Application) -> tuple[Future[sync.RunReport], int]:
    """A run of which more than 12 requests were made, and how many had been made before it."""
    site.gateway.order(Fault("delay", seconds=0.3, times=None))
    since = len(site.gateway.deliveries.entries())
    run = begun(app)
    assert site.gateway.deliveries.wait_until(lambda entries: len(entries) - since > 12, SAFETY_NET_SECONDS)
    return run, since


def test_removals_are_judged_together_over_the_batches_of_a_cluster(site: Site, coordinator: Application) -> None:
    """Nine of twenty workflows go from each of fifty lists; later one from each."""
    targets = coordinator.schedules[0].targets
    found = []
    for losers, lost in ((0, 0), (50, 9), (0, 0), (60, 1)):
        for number, target in enumerate(targets):
            site.gateway.world.set_flows(target.org_id, target.user_id, FLOWS[lost if number < losers else 0 :])
        found.append(dict(begun(coordinator).result(SAFETY_NET_SECONDS).tally.verdicts))
    assert found == [{"changed": 60}, {"held": 50, "unchanged": 10}, {"unchanged": 60}, {"changed": 60}]
    assert site.findings() == []


def test_a_run_on_a_cluster_ends_as_a_local_one(site: Site, coordinator: Application) -> None:
    reports = [begun(coordinator).result(SAFETY_NET_SECONDS), begun(coordinator).result(SAFETY_NET_SECONDS)]
    assert [dict(report.tally.verdicts) for report in reports] == [{"changed": 60}, {"unchanged": 60}]
    assert dict(reports[0].tally.changes) == {"baseline": 60 * len(FLOWS)}
    of_run = f"run_id = {reports[0].run_id}"
    assert site.rows(f"SELECT count(*), sum(baseline) FROM change_set WHERE {of_run}") == [(60, 60 * len(FLOWS))]
    assert len(site.rows(f"SELECT DISTINCT state_digest FROM change_set WHERE {of_run}")) == 1
    seen = f"SELECT DISTINCT observations FROM observation JOIN change_set USING (target_id) WHERE {of_run}"
    assert site.rows(seen) == [(2,)]
    assert site.findings() == []


def test_no_credential_is_on_the_wire_even_when_targets_fail(site: Site, coordinator: Application) -> None:
    """In no encoding, of this run or an earlier one, and though the gateway repeats what it was sent."""
    begun(coordinator).result(SAFETY_NET_SECONDS)
    token = site.gateway.tokens._token
    said = json.dumps({"code": 62103, "msg": f"no: {token}, {KEY}, {SECRET}"}).encode()
    site.gateway.order(Fault("raw", body=said, status=200, user="user-canary-3", times=None))
    site.gateway.order(Fault("html", user="user-canary-4", times=None))
    site.gateway.order(Fault("redirect", location="http://127.0.0.1:9/", user="user-canary-5", times=None))
    report = begun(coordinator).result(SAFETY_NET_SECONDS)
    site.gateway.clear_faults()
    assert dict(report.tally.verdicts) == {"failed": 3, "unchanged": 57}
    assert sorted(each.target.user_id for each in report.tally.issues) == [f"user-canary-{n}" for n in (3, 4, 5)]
    assert b"62103" in site.wire.bytes
    assert b"user-canary-7" in site.wire.bytes
    assert b"user-canary-7" in site.worker_wire.bytes
    on_the_wire = bytes(site.wire.bytes + site.worker_wire.bytes)
    for secret in (SECRET, PASSWORD, KEY, token, site.url):
        assert not [encoding for encoding, each in disguises(secret).items() if each in on_the_wire]


def test_a_killed_worker_costs_a_retry_and_nothing_else(site: Site, coordinator: Application) -> None:
    run, since = begun_slowly(site, coordinator)
    site.workers[0].kill()
    site.workers[0].wait()
    site.gateway.clear_faults()
    report = run.result(SAFETY_NET_SECONDS)
    assert (report.status, dict(report.tally.verdicts)) == ("succeeded", {"changed": 60})
    rows = f"SELECT count(*), sum(baseline) FROM change_set WHERE run_id = {report.run_id}"
    assert site.rows(rows) == [(60, report.tally.changes["baseline"])]
    assert len(site.gateway.deliveries.entries()) - since > 60 + 1
    assert site.findings() == []


def test_a_run_whose_scheduler_vanishes_goes_on_locally(site: Site, coordinator: Application) -> None:
    run, _ = begun_slowly(site, coordinator)
    site.wire.cut()
    site.gateway.clear_faults()
    report = run.result(SAFETY_NET_SECONDS)
    site.wire.mend()
    for name in ("distributed", "distributed.client"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR), "its tracebacks: we say so in one sentence"
    verdicts = dict(report.tally.verdicts)
    assert sum(verdicts.values()) == 60
    assert verdicts.keys() <= {"changed", "unchanged", "stale"}
    assert site.rows(f"SELECT count(*) FROM change_set WHERE run_id = {report.run_id}") == [(60,)]
    assert site.findings() == []


def test_a_stop_reaches_the_workers(site: Site, tmp_path: Path) -> None:
    """A request that hangs would take its whole deadline."""
    program = site.program(tmp_path / "stop", users=20, gateway='timeout = "10m"\ndeadline = "10m"')
    hangs = site.gateway.order(Fault("hang", times=None, user="user-canary-3", org="org-stop"))
    running = program.start("sync")
    assert hangs.reached.wait(SAFETY_NET_SECONDS)
    assert running.stop() == 143
    site.gateway.clear_faults()
    assert site.rows("SELECT status FROM sync_run ORDER BY id DESC LIMIT 1") == [("aborted",)]
    assert site.rows("SELECT count(*) FROM sync_run WHERE status = 'running'") == [(0,)]


def test_without_a_scheduler_a_sync_says_so_and_begins_nothing(site: Site, tmp_path: Path) -> None:
    runs = site.rows("SELECT count(*) FROM sync_run")
    done = site.program(tmp_path / "none", users=1, address="tcp://127.0.0.1:9")("sync")
    assert done.returncode == 2
    assert done.stderr == "The Dask scheduler tcp://127.0.0.1:9 cannot be reached: nobody answers within 5 s.\n"
    assert site.rows("SELECT count(*) FROM sync_run") == runs


def test_a_service_works_locally_while_the_cluster_is_down_and_returns_to_it(site: Site, tmp_path: Path) -> None:
    program = site.program(tmp_path / "serve", users=3)
    program.schedule("plants", [("org-serve", [f"user-canary-{n}" for n in range(3)])], when='every = "1s"')
    site.wire.cut()
    service = program.start("serve")
    assert "cannot be reached" in service.wait_for("cluster_unreachable")["error"]
    assert service.wait_for("run_ended")["changed"] == 3
    site.wire.mend()
    service.wait_for("cluster_reached")
    ended = len([entry for entry in service.log if entry["event"] == "run_ended"])
    assert service.wait_for("run_ended", times=ended + 2)["unchanged"] == 3
    assert service.stop() == 0
    assert [entry["event"] for entry in service.log].count("cluster_reached") == 1, "not with each run"


# ------------------------------------------------------------------------------- what a worker says, asked directly


@pytest.fixture
def plugin(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[worker.CoordinatorPlugin]:
    """What a worker with its own environment, which this process has now, keeps for a coordinator."""
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    made = worker.CoordinatorPlugin(coordinator_of(site))
    yield made
    made.close()


def coordinator_of(site: Site) -> cluster.Coordinator:
    settings = config.load(Path(site.environment["FLOWTRAIL_CONFIG"]), site.environment)
    policy = config.policy_of(settings)
    return cluster.Coordinator(token="t", host="h", pid=1, build=worker_application, policy=policy)


OF_NO_RUN = sync.RunOptions(run_id=987_654)


def test_a_worker_of_another_version_refuses(site: Site) -> None:
    with pytest.raises(ClusterError, match=r"has Flowtrail .*, not 9\.9\.9: install the same"):
        worker.settle(cluster.BatchTask("9.9.9", coordinator_of(site), OF_NO_RUN, []))


def test_a_worker_without_a_secret_says_what_is_missing(
    plugin: worker.CoordinatorPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWTRAIL_GATEWAY__SECRET_KEY")
    with pytest.raises(ClusterError, match="set FLOWTRAIL_GATEWAY__SECRET_KEY in the environment"):
        plugin.build()


def test_a_worker_with_another_database_writes_nothing(site: Site, plugin: worker.CoordinatorPlugin) -> None:
    with pytest.raises(ClusterError, match="its database has no run 987654 of h"):
        plugin.settle(OF_NO_RUN, [Target("o", "u")])
    assert site.rows("SELECT count(*) FROM target WHERE org_id = 'o'") == [(0,)]


def test_a_stopped_worker_begins_nothing(plugin: worker.CoordinatorPlugin) -> None:
    plugin.stop()
    assert plugin.settle(OF_NO_RUN, [Target("o", "u")]).tally.interrupted == 1


def test_a_worker_keeps_what_it_built_for_a_coordinator_until_that_ends(
    site: Site, coordinator: Application, tmp_path: Path
) -> None:
    with Application(config.load(tmp_path / "flowtrail.toml", site.environment)) as other:
        assert other.cluster is not None
        other.cluster.connect()
        tokens = [each.cluster._coordinator.token for each in (coordinator, other)]
        assert kept_by_workers(coordinator, tokens) == tokens
    assert kept_by_workers(coordinator, tokens) == tokens[:1]


def kept_by_workers(app: Application, tokens: Sequence[str]) -> list[str]:
    """Those of the coordinators with these ``tokens`` for whom every worker keeps something."""
    plugins = app.cluster._client.run(lambda dask_worker: [*dask_worker.plugins], on_error="ignore")
    return [token for token in tokens if all(token in names for names in plugins.values())]


def test_a_worker_drops_a_coordinator_that_has_been_silent_for_long(
    plugin: worker.CoordinatorPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was killed cannot say that it has ended."""
    monkeypatch.setattr(worker, "_IDLE_SECONDS", 0.01)
    assert asyncio.run(removal_of(plugin)) == "t"
    assert plugin.settle(OF_NO_RUN, [Target("o", "u")]).tally.interrupted == 1, "it has been torn down"


async def removal_of(plugin: worker.CoordinatorPlugin) -> str:
    """The name under which the plugin has itself removed from its worker."""
    removed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Worker:
        async def plugin_remove(self, name: str) -> None:
            await plugin.teardown(self)
            removed.set_result(name)

    plugin.setup(Worker())
    return await asyncio.wait_for(removed, SAFETY_NET_SECONDS)


def test_other_versions_of_dask_are_named() -> None:
    def of(python: str, dask: str) -> dict[str, object]:
        return {"host": {"python": python}, "packages": {"distributed": dask}}

    ours = of("3.11.7.final.0", "2026.1")
    same = {"client": ours, "scheduler": of("3.11.2.final.0", "2026.1"), "workers": {"tcp://a": ours}}
    assert cluster._version_mismatches(same) == ""
    other = {**same, "workers": {"tcp://a": ours, "tcp://b": of("3.12.1.final.0", "2025.9")}}
    said = "tcp://b has Python 3.12, distributed 2025.9, not Python 3.11, distributed 2026.1"
    assert cluster._version_mismatches(other) == said
