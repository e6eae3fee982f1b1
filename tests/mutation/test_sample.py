"""A fixed sample of the mutation check; the whole of it is `python tests/mutation/delete_checks.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("delete_checks.py")


@pytest.mark.timeout(900)
def test_a_deleted_check_fails_the_suite() -> None:
    command = [sys.executable, str(SCRIPT), "--every", "111"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"(\d+) of \1 mutants killed", done.stdout.splitlines()[-1])
