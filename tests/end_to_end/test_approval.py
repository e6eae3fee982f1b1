"""Owners whose policy asks them: nothing is trained before each has approved the plan, on its own machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Site

from tests.commands import run
from tests.end_to_end.conftest import run_ok


def test_a_run_waits_for_each_owner_and_the_ledger_tells_what_left(site: Site) -> None:
    site.policy_file.write_text("runs: ask\n")
    server, port = site.start_server("--set", "num_rounds=1")
    clients = [site.start_client(owner, port) for owner in site.owners]
    run_id = server.wait_for(r"waits for its owner: agfl-client approve (\S+)").group(1)
    for owner, client in zip(site.owners, clients, strict=True):
        client.wait_for(f"agfl-client approve {run_id} --keys ")
        assert "round 1" not in server.output(), "one owner has not answered"
        shown = run_ok("agfl-client", "approve", run_id, "--keys", site.folder / "keys" / owner.stem, "--yes")
        for told in ("members", "group", "own error"):
            assert told in shown.lower()
    assert server.wait() == 0, server.output()
    assert [client.wait(30) for client in clients] == [0, 0, 0]
    keys = site.folder / "keys" / site.owners[0].stem
    assert run_id[:8] in run_ok("agfl-client", "ledger", "--keys", keys)
    lines = (keys / "ledger.jsonl").read_text().splitlines(keepends=True)
    (keys / "ledger.jsonl").write_text("".join(lines).replace('"exchange":1', '"exchange":7', 1))
    changed = run("agfl-client", "ledger", "--keys", keys)
    assert changed.returncode == 2
    assert "must follow from the line before" in changed.stderr


def test_an_owner_that_refuses_is_named_and_nobody_trains(site: Site) -> None:
    site.policy_file.write_text("runs: ask\n")
    server, port = site.start_server("--set", "num_rounds=1")
    owner = site.owners[0]
    client = site.start_client(owner, port)
    run_id = client.wait_for(r"agfl-client approve (\S+)").group(1)
    run_ok("agfl-client", "approve", run_id, "--keys", site.folder / "keys" / owner.stem, "--refuse", "--yes")
    server.wait_for(f"{owner.stem} refused: its owner has refused the plan")
