"""What the process that forks commands under test has read before: see `commands`."""

from tests.kept_corpora import MOST_USED

MOST_USED.load()
