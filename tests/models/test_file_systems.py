"""File systems that answer oddly to what is asked for durability; those that fail are still a fault."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_models.files import file_systems
from agfl_models.files.durable_files import write_atomically

ODD = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EBADF]


def answering(number: int, when: Callable[..., bool], real: Callable[..., None]) -> Callable[..., None]:
    def call(target: int | str | Path, *rest: int) -> None:
        if when(target):
            raise OSError(number, os.strerror(number))
        real(target, *rest)

    return call


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("number", ODD)
def test_a_folder_that_cannot_be_synced_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", answering(number, is_folder, os.fsync))
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", ODD)
def test_a_file_that_cannot_be_synced_is_written_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", answering(number, lambda _: True, os.fsync))
    monkeypatch.setattr(file_systems, "_told", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            write_atomically(tmp_path / "file", b"content")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: this file system confirms no writes; a power cut may take the last of them"
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("when", [is_folder, lambda descriptor: not is_folder(descriptor)])
def test_a_disk_that_fails_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: Callable[[int], bool]
) -> None:
    monkeypatch.setattr(os, "fsync", answering(number, when, os.fsync))
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(tmp_path / "file", b"content")


def test_modes_that_cannot_be_set_are_left_unless_they_are_too_wide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.chmod
    monkeypatch.setattr(os, "chmod", answering(errno.EPERM, lambda _: True, os.chmod))
    write_atomically(tmp_path / "file", b"content")
    write_atomically(tmp_path / "private", b"content", mode=0o600)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    real(tmp_path / "file", 0o755)
    with pytest.raises(PermissionError):
        file_systems.set_mode(tmp_path / "file", 0o600)
