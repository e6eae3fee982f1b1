"""agfl-client as a person calls it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.commands import Started, run

_CA = """-----BEGIN CERTIFICATE-----
MIIBvzCCAUSgAwIBAgIUbHchMxxRveRIEVw4GWFxoW2E8QMwCgYIKoZIzj0EAwMw
HTEbMBkGA1UEAwwSYWdmbCBmZWRlcmF0aW9uIENBMB4XDTI2MTEyMzEwMTkyN1oX
DTMxMTEyMzEwMTkyN1owHTEbMBkGA1UEAwwSYWdmbCBmZWRlcmF0aW9uIENBMHYw
EAYHKoZIzj0CAQYFK4EEACIDYgAEcjRsddgBL2ViJFa8WAWkt0n05jQk0MWUZVLl
iY8m+VVj3CjTlyhsVkhl68cXSCNEgMri8CJxkP4bPkdZO8rXXeFCbyxSO93hjVLF
E7198Zn39kip2GRrJ/alKuOT8dW3o0UwQzAdBgNVHQ4EFgQUSv/nL3+0G2yAPRP2
CFX66BvPWsowEgYDVR0TAQH/BAgwBgEB/wIBADAOBgNVHQ8BAf8EBAMCAQYwCgYI
KoZIzj0EAwMDaQAwZgIxANVSHB5TkC53cHrK2VoQHif1nA9CteciSrYJybAZSwyO
o1aS0TG83VlV3KBD9GJtsAIxAPDY0SfNRgEZct+LFpIYAfxrN7XHVWPox1U+VsuN
MwIziPMWu/XxEo3RyHOs/V6ynA==
-----END CERTIFICATE-----
"""
HEAVY = ("flwr", "torch", "pydantic", "cryptography", "yaml", "numpy", "httpx")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("agfl-client", *arguments)


def test_help_imports_nothing_heavy() -> None:
    commands = ["", "keygen", "start", "approve", "runs", "ledger"]
    program = (
        "import sys\nfrom agfl_client.cli import app\n"
        "for command in sys.argv[1:]:\n"
        "    app([*filter(None, [command]), '--help'], standalone_mode=False)\n"
        f"    print('imported:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", program, *commands]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.count("Usage") == result.stdout.count("imported: []\n") == len(commands)


def test_keygen_makes_keys_and_never_overwrites_them(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = _run("keygen", "alice", "--keys", str(folder))
    assert (first.returncode, first.stderr) == (0, "")
    assert str(folder / "alice.pub") in first.stdout
    again = _run("keygen", "alice", "--keys", str(folder))
    assert again.returncode == 2
    assert (
        again.stderr == f"error: {folder}: must be a new or empty folder; nothing is overwritten [AGFL-IDENTITY-019]\n"
    )


def test_a_bad_name_is_one_line(tmp_path: Path) -> None:
    result = _run("keygen", "a b", "--keys", str(tmp_path / "keys"))
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: name: must match ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$, got 'a b' (a-b would do) [AGFL-IDENTITY-006]\n"
    )


def test_sigterm_ends_a_node_that_waits_for_an_absent_server(tmp_path: Path) -> None:
    _run("keygen", "alice", "--keys", str(tmp_path / "keys"))
    (tmp_path / "text.txt").write_text("some text\n\nsome more text\n")
    # Any certificate will do: nobody answers.
    (tmp_path / "ca.pem").write_text(_CA)
    (tmp_path / "policy.yaml").write_text("allow_plain: true\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start = ["start", "--server", f"127.0.0.1:{port}", "--ca", str(tmp_path / "ca.pem")]
    start += ["--keys", str(tmp_path / "keys"), "--data", str(tmp_path / "text.txt"), "--once"]
    start += ["--policy", str(tmp_path / "policy.yaml")]
    with Started("agfl-client", *start) as process:
        try:
            assert any("waiting up to 600 s for 127.0.0.1" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            assert process.wait(10) == 130
            assert time.monotonic() - sent < 5  # an idle machine needs less than 1 s
            rest = process.stderr.read()
            assert "stopped by a signal" in rest
            assert "Traceback" not in rest
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--server", "nowhere", "error: --server: must be HOST:PORT, got 'nowhere' [AGFL-TRANSPORT-003]"),
        ("--ca", "nowhere.pem", "error: --ca: nowhere.pem: no such file [AGFL-IDENTITY-040]"),
        ("--policy", "nowhere.yaml", "error: nowhere.yaml: no such file [AGFL-CONFIG-003]"),
        ("--roster", "nowhere.yaml", "error: --roster: nowhere.yaml: no such file [AGFL-CONFIG-003]"),
        ("--keys", "nowhere", "error: nowhere: no such file or directory [AGFL-IDENTITY-017]"),
        ("--data", "nowhere.txt", "error: data: nowhere.txt: no such file or folder [AGFL-DATA-037]"),
        ("--max-wait", "nan", "error: --max-wait: must be a number, got nan [AGFL-CONFIG-060]"),
    ],
)
def test_a_wrong_option_is_one_line(option: str, value: str, line: str, tmp_path: Path) -> None:
    _run("keygen", "alice", "--keys", str(tmp_path / "keys"))
    (tmp_path / "text.txt").write_text("some text\n\nsome more text\n")
    (tmp_path / "ca.pem").write_text(_CA)
    (tmp_path / "policy.yaml").write_text("allow_plain: true\n")
    options = {
        "--server": "127.0.0.1:1",
        "--ca": str(tmp_path / "ca.pem"),
        "--keys": str(tmp_path / "keys"),
        "--data": str(tmp_path / "text.txt"),
        "--policy": str(tmp_path / "policy.yaml"),
        option: value,
    }
    result = _run("start", *(part for pair in options.items() for part in pair))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == line
    assert "Traceback" not in result.stderr


def test_without_a_roster_only_a_policy_that_allows_plain_starts(tmp_path: Path) -> None:
    _run("keygen", "alice", "--keys", str(tmp_path / "keys"))
    (tmp_path / "text.txt").write_text("some text\n\nsome more text\n")
    (tmp_path / "ca.pem").write_text(_CA)
    place = ("--server", "127.0.0.1:1", "--ca", str(tmp_path / "ca.pem"), "--keys", str(tmp_path / "keys"))
    result = _run("start", *place, "--data", str(tmp_path / "text.txt"))
    assert result.returncode == 2
    assert result.stderr == (
        "error: --roster: required, since this owner's policy allows no plain aggregation, got none [AGFL-CONFIG-061]\n"
    )


def test_a_node_says_what_it_read_before_it_calls_anybody(tmp_path: Path) -> None:
    _run("keygen", "alice", "--keys", str(tmp_path / "keys"))
    (tmp_path / "ca.pem").write_text(_CA)
    (tmp_path / "policy.yaml").write_text("allow_plain: true\n")
    (tmp_path / "text.csv").write_text("id;text\n1;S\u00fcden\n2;Norden\n", encoding="utf-8-sig")
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    arguments = ["start", "--server", "127.0.0.1:1", "--ca", str(tmp_path / "ca.pem"), "--keys", str(tmp_path / "keys")]
    arguments += ["--policy", str(tmp_path / "policy.yaml"), "--max-wait", "0", "--data"]
    told = _run(*arguments, str(tmp_path / "text.csv"))
    assert told.returncode == 2
    lines = told.stderr.splitlines()
    place = next(
        i for i, line in enumerate(lines) if ".csv: 1 file, 2 rows, columns id, text, 25 characters, utf-8" in line
    )
    assert "only 2 rows: too few to learn from" in lines[place + 1]
    assert lines[-1].startswith("error: ")
    assert "127.0.0.1:1" in lines[-1]
    assert not any("127.0.0.1:1" in line for line in lines[:place])
    refused = _run(*arguments, str(tmp_path / "text.parquet"))
    assert refused.stderr.splitlines()[-1].startswith(
        f"error: data: {tmp_path / 'text.parquet'}: must be whole Parquet"
    )
    assert "127.0.0.1" not in refused.stderr
