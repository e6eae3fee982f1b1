"""One process at a time in a folder, also where the file system cannot lock folders, or nothing at all."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agfl_models.errors import AgflError, ConfigError
from agfl_models.files import file_systems
from agfl_protocol.folder_lock import held, lock

TAKEN, NONE_THERE = ConfigError("AGFL-CONFIG-000", "taken"), ConfigError("AGFL-CONFIG-000", "no locks")
ODD = [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EPERM]
OTHER = """
import fcntl, os, sys
from pathlib import Path
from agfl_models.errors import ConfigError
from agfl_protocol.folder_lock import held
if len(sys.argv) > 2:
    def flock(*_): raise OSError(int(sys.argv[2]), "odd")
    fcntl.flock = flock
try:
    with held(Path(sys.argv[1]), ConfigError("AGFL-CONFIG-000", "taken")): print("free")
except ConfigError as error: print(error)
"""


def of_another_process(folder: Path, *arguments: int) -> str:
    command = [sys.executable, "-c", OTHER, str(folder), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def failing(number: int) -> object:
    def function(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    return function


def test_a_folder_is_held_and_free_again(tmp_path: Path) -> None:
    with held(tmp_path, TAKEN):
        assert of_another_process(tmp_path) == "taken [AGFL-CONFIG-000]"
    assert of_another_process(tmp_path) == "free"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ODD)
def test_a_folder_that_cannot_be_locked_is_held_by_a_file_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with held(tmp_path, TAKEN, without=NONE_THERE):
        assert of_another_process(tmp_path, number) == "taken [AGFL-CONFIG-000]"
    assert of_another_process(tmp_path, number) == "free"


@pytest.mark.parametrize("number", ODD)
def test_without_any_locks_it_is_said_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, failing(number))
    monkeypatch.setattr(file_systems, "_told", set())
    with caplog.at_level(logging.WARNING), held(tmp_path, TAKEN):
        pass
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}: this file system has no locks")
    with pytest.raises(AgflError, match=r"^no locks ."), held(tmp_path, TAKEN, without=NONE_THERE):
        pass
    assert lock(tmp_path, wait=True) is None


def test_what_a_lock_answers_for_another_process_is_taken_and_what_fails_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EACCES))
    with pytest.raises(AgflError, match=r"^taken ."), held(tmp_path, TAKEN):
        pass
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), held(tmp_path, TAKEN):
        pass
