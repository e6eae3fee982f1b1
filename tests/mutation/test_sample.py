"""Two deleted checks fail their tests; all of them are tried by `python tests/mutation/delete_checks.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.mutation.delete_checks import make_copy, mutants, passes, survives


@pytest.mark.parametrize(
    ("file", "test"),
    [
        ("client/agfl_client/masking.py", "tests/client/test_masking.py"),
        ("shared_models/agfl_protocol/secagg/shamir.py", "tests/protocol/secagg"),
    ],
)
def test_a_deleted_check_fails_a_test(file: str, test: str, tmp_path: Path) -> None:
    copy = make_copy(tmp_path)
    assert passes(copy, [test])
    assert not survives(next(mutant for mutant in mutants() if mutant.file == file), copy, [test])
    assert passes(copy, [test])
