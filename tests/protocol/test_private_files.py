"""Private files have their final mode from the first moment, and a folder is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agfl_models.errors import IdentityError
from agfl_protocol.identity.private_files import check_private, new_folder, read_private, write_private


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "keys") as new:
            assert new.stat().st_mode & 0o777 == 0o700
            write_private(new / "secret", b"1234")
            assert (new / "secret").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert read_private(tmp_path / "keys" / "secret") == b"1234"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "keys") as new:
            write_private(new / "secret", b"1234")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    with new_folder(folder) as new:
        write_private(new / "secret", b"first")
    check_private(folder)
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-019"), new_folder(folder) as new:
        write_private(new / "secret", b"second")
    assert read_private(folder / "secret") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    write_private(tmp_path / "secret", b"first")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "secret", b"second")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
def test_a_mode_that_grants_others_anything_is_refused(mode: int, tmp_path: Path) -> None:
    write_private(tmp_path / "secret", b"1234")
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(
        IdentityError, match=rf"must be closed to group and others.*got mode {mode:04o}.*AGFL-IDENTITY-018"
    ):
        read_private(tmp_path / "secret")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"secret: .*AGFL-IDENTITY-017"):
        read_private(tmp_path / "secret")


def test_a_mount_point_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's volume: it cannot be replaced, and its parent cannot be written."""
    volume = tmp_path / "parent" / "volume"
    (volume / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == volume)
    with new_folder(volume) as new:
        assert new.parent == volume
        write_private(new / "secret", b"s")
    assert sorted(path.name for path in volume.iterdir()) == ["lost+found", "secret"]
    check_private(volume)
    assert read_private(volume / "secret") == b"s"
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-019"), new_folder(volume):
        pass
