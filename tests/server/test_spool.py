"""Objects that wait on disk: what was kept is read, whatever else comes and goes, and nothing is left behind."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from agfl_server.transport.objects.spool import Kept, Place, Spool, size_of

SIZES = (0, 1, 2**16 - 1, 2**16, 2**16 + 1, 200_000)


def test_each_object_is_read_as_it_was_kept_until_it_is_dropped(tmp_path: Path) -> None:
    spool, rng = Spool(tmp_path), random.Random(3)
    here: list[tuple[bytes, Kept]] = []
    for _ in range(200):
        if here and rng.random() < 0.5:
            _, kept = here.pop(rng.randrange(len(here)))
            spool.drop(kept)
        else:
            content = rng.randbytes(rng.choice(SIZES))
            here.append((content, spool.keep(content)))
        assert all(spool.read(kept) == content and size_of(kept) == len(content) for content, kept in here)
    spool.close()


def test_room_is_used_again_and_given_back_at_the_end(tmp_path: Path) -> None:
    spool, content = Spool(tmp_path), bytes(2**20)
    first = spool.keep(content)
    for _ in range(5):
        spool.drop(spool.keep(content))
    assert spool._file is not None
    assert os.fstat(spool._file.fileno()).st_size == 2 * 2**20
    spool.drop(first)
    assert os.fstat(spool._file.fileno()).st_size == 0
    spool.close()


def test_attack_ever_other_sizes_take_no_more_room(tmp_path: Path) -> None:
    """Whoever keeps one place of the file taken could fill the disk: of no size is there room yet."""
    spool = Spool(tmp_path)
    held = spool.room(70_000)
    for size in range(600_000, 1_000_000, 1_000):
        spool.drop(spool.room(size))
    assert spool._end <= 2**17 + 2**20
    spool.drop(held)
    spool.close()


def test_what_is_read_while_it_is_closed_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a closed file may be another file's next."""
    spool, content, pread = Spool(tmp_path), os.urandom(2**17), os.pread
    kept = spool.keep(content)

    def closed_meanwhile(file: int, size: int, at: int) -> bytes:
        spool.close()
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", closed_meanwhile)
    assert spool.read(kept) == content
    assert spool._file is not None
    assert spool._file.closed
    assert isinstance(kept, Place)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spool.write(kept, 0, content)


def test_the_file_has_no_name(tmp_path: Path) -> None:
    """So that kill -9 leaves no owner's vector in a folder."""
    spool = Spool(tmp_path)
    spool.keep(bytes(2**20))
    assert list(tmp_path.iterdir()) == []
    spool.close()


def test_a_full_disk_is_an_error_and_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            spool.keep(bytes(2**20))
    kept = spool.keep(b"x" * 2**20)
    assert spool.read(kept) == b"x" * 2**20
    spool.close()


def test_a_closed_one_keeps_nothing_and_minds_no_drop(tmp_path: Path) -> None:
    """What was suspended in an error's frames drops its objects later."""
    spool = Spool(tmp_path)
    kept = spool.keep(bytes(2**20))
    spool.close()
    spool.drop(kept)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spool.read(kept)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spool.keep(bytes(2**20))
