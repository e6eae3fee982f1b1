"""What an operator asks about nodes: who is here, who left, who knocks; and a new certificate for the server."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from flwr.clientapp import ClientApp
from typer.testing import CliRunner

from agfl_client import keys
from agfl_client.transport.supernode import run_node
from agfl_models.errors import IdentityError
from agfl_protocol.identity.fingerprint import words_of_roster
from agfl_protocol.identity.request_signature import key_id, short_id
from agfl_protocol.identity.roster_file import roster_of
from agfl_server.cli import app
from agfl_server.federation import federation_folder
from agfl_server.federation.authority import Authority, names_of
from agfl_server.rounds.attendance import ATTENDANCE_FILE, STALE_S, Attendance, Seen, read_attendance
from agfl_server.transport import gate
from agfl_server.transport.log_limits import LineLimit

if TYPE_CHECKING:
    from tests.server.conftest import Site


def run(*arguments: str | Path) -> str:
    """Run a command that must succeed; return what it prints."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A federation of three owners."""
    federation = tmp_path / "my federation"
    federation_folder.init(federation, "", ["old.example.org"])
    for name in ("alice", "bob", "carol"):
        federation_folder.add_node(federation, name, keys.generate(name, tmp_path / name))
    return federation


def test_who_is_here_is_what_the_running_server_says(folder: Path) -> None:
    assert "no server runs on this folder" in run("nodes", "--federation", folder)
    path = folder / "run" / ATTENDANCE_FILE
    path.parent.mkdir()
    attendance = Attendance(path, lambda: ["alice"])
    attendance.note("alice", software="0.1.0", does="takes part")
    attendance.note("bob", software="0.0.9")
    attendance.write()
    alice, bob, carol = json.loads(run("nodes", "--federation", folder, "--json"))
    assert (alice["here"], alice["software"], alice["does"]) == (True, "0.1.0", "takes part")
    assert datetime.now(UTC) - datetime.fromisoformat(alice["last_seen"]) < timedelta(seconds=30)
    assert (bob["here"], bob["last_seen"], bob["software"]) == (False, None, "0.0.9")
    assert (carol["here"], carol["last_seen"], carol["software"]) == (False, None, None)
    assert "takes part" in run("nodes", "--federation", folder)


def test_of_a_server_that_stopped_or_was_killed_nobody_is_here(tmp_path: Path) -> None:
    path = tmp_path / ATTENDANCE_FILE
    with Attendance(path, lambda: ["alice"]) as attendance:
        attendance.write()
        (seen,) = read_attendance(path, ["alice"])
        assert seen.here is True
        killed = datetime.now(UTC) + timedelta(seconds=STALE_S)
        assert read_attendance(path, ["alice"], killed) == [Seen("alice", None, seen.last_seen, None, None)]
    assert read_attendance(path, ["alice"]) == [Seen("alice", None, seen.last_seen, None, None)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"written": 1, "is_running": true, "nodes": {}}', '{"written"'])
def test_a_file_that_is_none_is_no_error(tmp_path: Path, text: str) -> None:
    (tmp_path / ATTENDANCE_FILE).write_text(text)
    assert read_attendance(tmp_path / ATTENDANCE_FILE, ["alice"]) == [Seen("alice", None, None, None, None)]


def test_a_node_that_is_removed_is_in_no_roster(folder: Path) -> None:
    before = words_of_roster(roster_of(federation_folder.load(folder).nodes))
    assert f"removed bob; nodes of {folder}: alice, carol" in run("remove-node", "bob", "--federation", folder)
    nodes = federation_folder.load(folder).nodes
    assert [node.name for node in nodes] == ["alice", "carol"]
    assert words_of_roster(roster_of(nodes)) != before
    for name in ("bob", "../server", "carl"):
        with pytest.raises(IdentityError, match=r"^name: must be a node of .*: alice, carol; got .*AGFL-IDENTITY-056"):
            run("remove-node", name, "--federation", folder)
    with pytest.raises(IdentityError, match=r"AGFL-IDENTITY-056"):
        run("remove-node", "carl", "--federation", folder)
    assert (folder / "server.key").exists()


def certificate_of(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())


def test_a_new_certificate_is_by_the_same_authority_for_the_same_key(folder: Path) -> None:
    old, key = certificate_of(folder), (folder / "server.key").read_bytes()
    elsewhere = folder.parent / "safe"
    (folder.parent / "my federation-ca").rename(elsewhere)
    said = run("renew", "--federation", folder, "--host", "new.example.org", "--host", "192.0.2.7", "--ca", elsewhere)
    new = certificate_of(folder)
    assert names_of(new) == ["localhost", "new.example.org", "127.0.0.1", "::1", "192.0.2.7"]
    assert "new.example.org" in said
    new.verify_directly_issued_by(Authority.read(elsewhere).certificate)
    assert (new.public_key(), (folder / "server.key").read_bytes()) == (old.public_key(), key)
    assert new.serial_number != old.serial_number
    run("renew", "--federation", folder, "--ca", elsewhere)
    assert names_of(certificate_of(folder)) == names_of(new)
    assert certificate_of(folder).serial_number != new.serial_number


def test_another_authority_gives_no_certificate(folder: Path, tmp_path: Path) -> None:
    before = (folder / "server.pem").read_bytes()
    federation_folder.init(tmp_path / "other", "", [])
    with pytest.raises(
        IdentityError, match=r"^--ca: .*: must be the authority of .*/ca\.pem; it is another.*AGFL-IDENTITY-058"
    ):
        run("renew", "--federation", folder, "--host", "x.org", "--ca", tmp_path / "other-ca")
    with pytest.raises(IdentityError, match=r"must hold ca\.pem|no such file|ca\.key"):
        run("renew", "--federation", folder, "--host", "x.org", "--ca", tmp_path / "nowhere")
    with pytest.raises(IdentityError, match="--host: must be a host name"):
        run("renew", "--federation", folder, "--host", "x y")
    assert (folder / "server.pem").read_bytes() == before


def test_who_is_not_admitted_is_logged_by_the_name_it_gives_and_its_key(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    keys.generate("mallory", site.keys("mallory"))
    transport = keys.load(site.keys("mallory")).transport
    shown = short_id(key_id(transport.public_key()))
    with site.superlink() as server:
        for name in ("mallory", "m x", ""):
            with pytest.raises(IdentityError, match=f"does not admit this key \\({shown}\\).*AGFL-IDENTITY-045"):
                run_node(
                    f"127.0.0.1:{server.port}",
                    site.ca,
                    transport,
                    ClientApp(),
                    stop=threading.Event(),
                    finished=lambda: False,
                    max_wait_s=10,
                    name=name,
                )
    lines = [record.getMessage() for record in caplog.records if record.name == gate.log.name]
    said = ["says that it is mallory", "gives no name", "gives no name"]
    assert lines == [f"not admitted: a node at 127.0.0.1 {what}, transport key {shown}" for what in said]
    assert gate.log.isEnabledFor(logging.WARNING)
    assert any(isinstance(found, LineLimit) for found in gate.log.filters)
