"""Ray: the bits of one process on a cluster whose actors and machines are killed, and an end in seconds."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError
from tests.commands import Started, run
from tests.processes import children_of, descendants_of, is_there, program_of
from tests.simulations.killing import kill_in
from tests.simulations.run_result import result

import agfl
from agfl.population import MadePopulation
from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.folder_lock import held
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_server.rounds.observer import Observer
from agfl_server.search.search import CHOSEN_FILE, RACE_FILE
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.ray_engine import RayEngine
from agfl_sim.engines.workers import ray_link
from agfl_sim.engines.workers.messages import Refusal
from agfl_sim.engines.workers.ray_cluster import ray_cluster
from agfl_sim.engines.workers.shared_mark import SharedMark, shared_mark

SECURE = "aggregation={type: secure, min_cohort: 3, max_colluders: 1}"
STATE = ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform")
SEARCH = ("search={slate: [configured, mingru], rungs: [1]}", "num_rounds=1", "aggregation.cohort_size=5")
TOKENIZER = ("tokenizer={type: bpe, vocab_size: 275, merges_per_round: 8}", "model.vocab_size=275")
ELASTIC = ("elastic={widths: [0.5, 1.0]}", "data.max_widths={0.5: 1, 1.0: 2}")
SLOW_S = 300  # Ray's processes start one after the other, on a machine that may be busy
Configs = Callable[..., RunConfig]
MakeOwners = Callable[[int], Path]
IsDue = Callable[[str, list[int]], bool]
pytestmark = [
    pytest.mark.timeout(2 * SLOW_S),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
BARE = {"include_log_monitor": False}  # a process that the driver, which wants no logs of its workers, does without
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster that RAY_ADDRESS names, of a head that trains nobody; tests add machines."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ENABLE_AUTO_CONNECT", "USAGE_STATS_ENABLED", "worker_niceness", "ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            patch.setenv(f"RAY_{name}", "0")
        head = {**BARE, "num_cpus": 0, "include_dashboard": False, "no_monitor": True, "_system_config": QUICK}
        cluster: Any = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """Start a machine of Ray, twice if need be: it has 30 s, not always enough where others take the processors."""
    try:
        return start()
    except Exception:
        return start()


def add_machine(cluster: Any, **settings: Any) -> Any:
    return started(lambda: cluster.add_node(**BARE, **settings))


def rows(number: int) -> list[str]:
    return [f"owner {number} saw the sea on day {day}" for day in range(8)]


def raylet_of(machine: Any) -> int:
    return int(machine.all_processes["raylet"][0].process.pid)


def actors_of(machine: Any) -> list[int]:
    children = children_of(raylet_of(machine))
    return [pid for pid in children if "RayWorker" in program_of(pid)]


def test_killed_actor_and_killed_machine_change_no_bit(
    cluster: Any, run_config: Configs, make_owners: MakeOwners, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (add_machine(cluster, num_cpus=1) for _ in range(2))
    config = run_config(
        "num_rounds=2", "training.local_steps=1", "evaluation.max_examples=4", SECURE, *STATE, *TOKENIZER
    )
    owners = sorted(make_owners(4).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "whole", resume=False, observer=Observer())
    niceness = set[int]()

    def kill_actor() -> None:
        (actor,) = actors_of(first)
        niceness.add(os.getpriority(os.PRIO_PROCESS, actor))
        os.kill(actor, signal.SIGKILL)

    def kill_machine() -> None:
        actors = actors_of(second)
        assert actors
        cluster.remove_node(second, allow_graceful=False)
        for actor in actors:  # at once, as with a machine: alone they would go on for a moment
            with suppress(ProcessLookupError):
                os.kill(actor, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        killed = [kill_in(patch, wire.TRAIN, kill_actor, 1), kill_in(patch, sw.MASK, kill_machine, 4)]
        RayEngine(config, owners, "cpu", 2).run(tmp_path / "torn", resume=False, observer=Observer())
    assert [len(calls) for calls in killed] == [1, 1]
    assert niceness == {0}
    assert result(tmp_path / "torn") == result(tmp_path / "whole")
    lines = [record.message for record in caplog.records if record.name == "agfl.simulate"]
    # Until the cluster knows that a machine is gone, it may place another actor there.
    lost = r"was lost on (?:a machine|machine [\d.]+) \((.*)\) while it (?:worked|started) for owner-\d\d;"
    reasons = [re.search(lost, line) for line in lines]
    assert all(reason is not None and reason[1].endswith("died") for reason in reasons), lines
    assert len(lines) >= 2
    assert any("on machine " in line for line in lines)
    assert not (tmp_path / "torn" / ".shared").exists()


def test_a_ray_that_is_joined_already_serves_elastic_owners_and_stays(
    cluster: Any, run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    if len(cluster.list_all_nodes()) == 1:
        add_machine(cluster, num_cpus=1)
    config = run_config(*ELASTIC, "num_rounds=2", "evaluation.max_examples=4", SECURE)
    owners = sorted(make_owners(3).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "whole", resume=False, observer=Observer())
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        RayEngine(config, owners, "cpu", 1).run(tmp_path / "ray", resume=False, observer=Observer())
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert result(tmp_path / "ray") == result(tmp_path / "whole")


def test_a_search_over_a_population_takes_the_same_candidate_and_ends_with_the_same_bits(
    cluster: Any, run_config: Configs, tmp_path: Path
) -> None:
    """In one run, since a Ray and an actor take seconds to start. Owners are opened on the actor that asks them."""
    if len(cluster.list_all_nodes()) == 1:
        add_machine(cluster, num_cpus=1)
    config = run_config(*SEARCH, "training.local_steps=1", "evaluation.max_examples=4")
    found = []
    for name, kind in (("whole", InlineEngine), ("ray", RayEngine)):
        folder = tmp_path / name
        owners = MadePopulation(config, agfl.Population(1_000_000, rows), folder / "owners")
        owners.write()
        kind(config, owners, "cpu", 1).run(folder, resume=False, observer=Observer())
        search = [
            json.loads((folder / "search" / RACE_FILE).read_text()),
            (folder / "search" / CHOSEN_FILE).read_text(),
        ]
        found.append((result(folder), [path.name for path in owners.files], search))
    assert found[0] == found[1]
    assert len(found[0][1]) < 40


def test_worker_that_does_not_start_is_given_up(
    cluster: Any, run_config: Configs, make_owners: MakeOwners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would wait without end."""
    monkeypatch.setattr(ray_link, "_START_S", 0.01)
    engine = RayEngine(run_config(), sorted(make_owners(3).iterdir()), "cpu", 1)
    with pytest.raises(ConfigError, match=r"Ray cannot start a worker: .* within 0\.01 s \[AGFL-CONFIG-207\]"):
        engine.run(tmp_path / "ray", resume=False, observer=Observer())
    assert_free(tmp_path / "ray")


def test_machine_without_the_package_is_one_line(
    cluster: Any, run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    for machine in [node for node in cluster.list_all_nodes() if node is not cluster.head_node]:
        cluster.remove_node(machine)
    broken = tmp_path / "broken" / "agfl_sim"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ModuleNotFoundError('No module named agfl_sim')")
    add_machine(cluster, num_cpus=1, env_vars={"PYTHONPATH": str(broken.parent)})
    engine = RayEngine(run_config(), sorted(make_owners(3).iterdir()), "cpu", 1)
    rule = r"--engine ray: machine [\d.]+ must have agfl installed as here, has not: ModuleNotFoundError.*-236\]"
    with pytest.raises(ConfigError, match=rule):
        engine.run(tmp_path / "ray", resume=False, observer=Observer())


def test_machine_that_lacks_the_folder_or_has_other_versions_is_one_line(tmp_path: Path) -> None:
    with shared_mark(tmp_path / "run") as mark:
        assert mark.is_seen()
        with shared_mark(tmp_path / "of_another_machine"):
            other = SharedMark(tmp_path / "of_another_machine", mark.content)
        (refused,) = ray_link.RayWorker(other, ray_link.versions_here()).hear(None)
        assert isinstance(refused, Refusal)
        assert refused.code == "AGFL-CONFIG-237"
        assert str(other.folder) in refused.sentence
        (refused,) = ray_link.RayWorker(mark, {"torch": "0.1"}).hear(None)
        assert isinstance(refused, Refusal)
        assert refused.code == "AGFL-CONFIG-238"
        assert "must have torch 0.1, as where the run was started, has agfl" in refused.sentence


@pytest.mark.parametrize(
    ("address", "code"), [("ray://head:10001", 239), ("head", 239), ("127.0.0.1:9", 206), ("127.0.0.1:99999", 206)]
)
def test_a_ray_that_cannot_be_joined_is_one_line_in_seconds(
    address: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    rule = rf"--engine ray: RAY_ADDRESS: .* got {address}.*\[AGFL-CONFIG-{code}\]"
    with pytest.raises(ConfigError, match=rule), ray_cluster():
        pass


CONFIG = """
num_rounds: 5000
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 8, layers: [{type: ff}]}
training: {batch_size: 2, local_steps: 1}
aggregation: {type: secure, min_cohort: 3, max_colluders: 1}
"""


def test_ray_that_cannot_start_is_one_line_in_seconds(
    tmp_path: Path, make_owners: MakeOwners, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    deep = tmp_path / ("x" * 100)  # too long for a socket below it
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    data = ("--set", f"data.path={make_owners(3)}")
    refused = run("agfl-simulate", tmp_path / "run.yaml", "--output", tmp_path / "ray", "--engine", "ray", *data)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: --engine ray: Ray cannot start here: .*", refused.stderr.splitlines()[-1])
    assert "Traceback" not in refused.stdout + refused.stderr
    assert_free(tmp_path / "ray")


@pytest.mark.parametrize(
    ("sent", "is_due"),
    [
        (signal.SIGINT, lambda log, pids: "round   2/" in log),
        (signal.SIGTERM, lambda log, pids: any("gcs_server" in program_of(pid) for pid in pids)),
    ],
    ids=["rounds", "start"],
)
def test_signal_ends_a_run_on_its_own_ray_in_seconds_and_all_of_it(
    tmp_path: Path, make_owners: MakeOwners, monkeypatch: pytest.MonkeyPatch, sent: int, is_due: IsDue
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "run.yaml").write_text(CONFIG)
    log, data = tmp_path / "log", ("--set", f"data.path={make_owners(3)}")
    started = ("agfl-simulate", tmp_path / "run.yaml", "--output", tmp_path / "ray", "--engine", "ray", *data)
    process = Started(*started, log=log)
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})  # one worker, since each loads PyTorch
    try:
        deadline = time.monotonic() + SLOW_S
        log.touch()
        while not is_due(log.read_text(), descendants_of(process.pid)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        if sent == signal.SIGINT:
            refuse_stranger(process.pid)
        all_of_it = descendants_of(process.pid)
        for pid in (*(all_of_it if sent == signal.SIGINT else ()), process.pid):  # a terminal sends it to all
            os.kill(pid, sent)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_there, all_of_it)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, all_of_it))
    assert re.search("stopped; go on with: .*|interrupted", log.read_text())
    assert "Traceback" not in log.read_text()
    assert_free(tmp_path / "ray")


def refuse_stranger(driver: int) -> None:
    """Whoever reaches the machine finds the port of a run's own Ray, but not its token."""
    (found,) = Path("/tmp/ray").glob(f"session_*_{driver}/gcs_server_port_*")
    untyped: Any = ray
    address = f"{untyped.util.get_node_ip_address()}:{found.read_text()}"
    with pytest.raises(ray.exceptions.AuthenticationError, match="token"):
        untyped._raylet.GcsClient(address=address)


def assert_free(folder: Path) -> None:
    """No process holds the folder."""
    folder.mkdir(exist_ok=True)
    with held(folder, ConfigError("AGFL-CONFIG-000", "held")):
        pass


def test_a_run_that_ends_does_not_wait_for_the_death_of_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for anything where Ray has ended; meanwhile the actor cannot be reached, and the cluster does not say why."""

    def get(reference: object, timeout: float) -> None:
        raise ActorUnavailableError("no route", None)

    link = object.__new__(ray_link.RayLink)
    link._how_it_ended = "was ended"
    link._actor, link._is_ended = SimpleNamespace(__ray_ready__=SimpleNamespace(remote=object)), threading.Event()
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    threading.Timer(0.3, link.end).start()
    started = time.monotonic()
    assert link._death() is None
    assert time.monotonic() - started < 10
