"""An operator and three data owners run the federation that a researcher simulates: same bits, over TLS."""

from __future__ import annotations

import json
import re
import signal
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from agfl_server.run.sittings import read_sittings

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Site


def test_a_killed_client_and_a_killed_server_come_back_to_the_same_bits(site: Site) -> None:
    server, port = site.start_server()
    clients = [site.start_client(owner, port) for owner in site.owners[1:]]
    site.start_until_killed(site.owners[0], port, "share", 2)  # it has a state by then
    clients.append(site.start_client(site.owners[0], port))
    server.wait_for(r"round 2 done")
    server.kill()
    server, _ = site.start_server("--resume", port=port)
    assert server.wait() == 0, server.output()
    assert [client.wait(30) for client in clients] == [0, 0, 0]
    assert site.model == site.simulated_model
    rows = [json.loads(line) for line in (site.federation / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["clients"] for row in rows[1:]] == [3] * 4
    assert [one.outcome for one in read_sittings(site.federation / "run")] == [None, "finished"]
    page = (site.federation / "run" / "report.html").read_text()
    assert "<dt>Total time</dt><dd>at least " in page
    assert "The server holds no text of its owners" in page


def test_a_tokenizer_is_learned_to_the_same_bits_whoever_is_killed_meanwhile(site: Site) -> None:
    """A server that comes back learns it anew; a node that comes back cuts its text up again."""
    tokenizer = "tokenizer={type: bpe, vocab_size: 283, merges_per_round: 4}"
    overrides = ("num_rounds=1", "model.vocab_size=283", tokenizer)
    options = [part for value in overrides for part in ("--set", value)]
    owners = ("--set", f"data.path={site.folder / 'owners'}")
    site.run_ok("agfl-simulate", site.config, "--output", site.folder / "learned", *options, *owners)
    server, port = site.start_server(*options)
    clients = [site.start_client(owner, port) for owner in site.owners]
    server.wait_for(r"tokenizer: \d+ of 24 merges, counting at 3 nodes\n.*tokenizer: ")
    server.kill()
    server, _ = site.start_server("--resume", *options, port=port)
    server.wait_for(r"tokenizer: \d+ of 24 merges, counting at 3 nodes\n.*tokenizer: ")
    clients[0].kill()
    clients[0] = site.start_client(site.owners[0], port)
    assert server.wait() == 0, server.output()
    assert "tokenizer: 24 of 24 merges, learned" in server.output()
    learned = site.folder / "learned" / "model"
    # Its counts were asked for under numbers that are used up, so the batches after it are others.
    assert (site.federation / "run" / "model" / "config.yaml").read_bytes() == (learned / "config.yaml").read_bytes()


def test_plain_run_needs_policies_that_allow_it_and_gives_the_same_bits(site: Site) -> None:
    site.policy_file.write_text("allow_plain: true\nruns: all\n")
    server, port = site.start_server("--set", "aggregation.type=plain", "--set", "aggregation.min_cohort=3")
    clients = [site.start_client(owner, port, roster=False) for owner in site.owners]
    assert server.wait() == 0, server.output()
    assert [client.wait(20) for client in clients] == [0, 0, 0]
    assert site.model == site.simulated_model
    assert "aggregation is plain: this server sees every owner's update" in server.output()


def test_owner_who_does_not_allow_plain_refuses_it_in_one_line_on_both_sides(site: Site) -> None:
    plain = ("aggregation.type=plain", "aggregation.min_cohort=3", "aggregation.max_attempts=1")
    server, port = site.start_server(*(part for value in plain for part in ("--set", value)))
    clients = [site.start_client(owner, port) for owner in site.owners]
    line = "allow_plain: must be true in this owner's policy for aggregation 'plain'"
    for command in (server, *clients):
        command.wait_for(line)
        assert "Traceback" not in command.output()


def test_node_with_unregistered_key_is_refused_in_one_line(site: Site) -> None:
    _, port = site.start_server()
    keys = site.folder / "keys" / "stranger"
    site.run_ok("agfl-client", "keygen", "stranger", "--keys", keys)
    site.policy_file.write_text("allow_plain: true")
    client = site.start_client(site.owners[0], port, keys=keys, roster=False)
    assert client.wait(30) == 2
    assert "Traceback" not in client.output()
    assert "add-node" in client.output().splitlines()[-1]


def test_owner_that_was_removed_learns_why_and_the_server_ends_without_noise(site: Site) -> None:
    site.policy_file.write_text("{allow_plain: true, runs: all}")
    server, port = site.start_server("--set", "aggregation.type=plain", "--set", "num_rounds=500")
    clients = [site.start_client(owner, port, roster=False) for owner in site.owners]
    server.wait_for("round 1 done")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 130
    assert "ERROR" not in server.output()
    name = site.owners[0].stem
    site.run_ok("agfl-server", "remove-node", name, "--federation", site.federation)
    site.start_server("--resume", port=port)
    assert clients[0].wait(60) == 2
    line = clients[0].output().splitlines()[-1]
    assert re.fullmatch(
        r"error: transport key: \S+ does not admit this key \([0-9a-f ]+\); its operator has removed .*", line
    )


def test_client_with_a_wrong_ca_is_refused_in_one_line(site: Site) -> None:
    _, port = site.start_server()
    other = site.folder / "other"
    site.run_ok("agfl-server", "init", other, "--config", site.config)
    client = site.start_client(site.owners[0], port, ca=other / "ca.pem")
    assert client.wait(30) == 2
    assert "Traceback" not in client.output()
    assert "certificate" in client.output().splitlines()[-1]


def test_control_and_runtime_paths_are_closed_from_outside(site: Site) -> None:
    _, port = site.start_server()
    context = ssl.create_default_context(cafile=str(site.federation / "ca.pem"))
    for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/openapi.json"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"https://127.0.0.1:{port}{path}", data=b"", context=context, timeout=10)
        assert refused.value.code == 403, path
        refused.value.close()
