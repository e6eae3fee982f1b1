"""A deleted check fails its tests; all of them are tried by `python tests/mutation/delete_checks.py`."""

from __future__ import annotations

from pathlib import Path

from tests.mutation.delete_checks import make_copy, mutants, passes, survives


def test_a_deleted_check_fails_a_test(tmp_path: Path) -> None:
    file, test = "client/agfl_client/secure/masking.py", "tests/client/test_masking.py"
    copy = make_copy(tmp_path)
    assert not survives(next(mutant for mutant in mutants() if mutant.file == file), copy, [test])
    assert passes(copy, [test]), "it fails with every check in place, too"
