"""What a data owner accepts, whatever the server asks: `start --policy FILE`, in YAML, every key optional.

min_cohort: 5            # fewest owners in a sum; default max_colluders + 2
max_colluders: 3         # owners that may conspire with the server; default a third of the roster, at least 1
allow_plain: false       # true: the server may see this owner's update itself
uploads_per_round: 3     # attempts at one round that are answered
max_parameters: 100000000
tasks: [language_modeling, translation]   # default: every task, summarization and question_answering too
"""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from agfl_models.errors import AgflError
from agfl_models.tasks import TaskName
from agfl_models.validation import Config, read_yaml, validate
from agfl_protocol.run_config import RunConfig
from agfl_protocol.secagg.parameters import Parameters


class PolicyViolation(AgflError):
    """The server asks for what this owner's policy does not permit."""


class Policy(Config):
    """One owner's policy; no message changes it."""

    min_cohort: PositiveInt | None = None
    max_colluders: PositiveInt | None = None
    allow_plain: bool = False
    uploads_per_round: PositiveInt = 3
    max_parameters: PositiveInt = 100_000_000
    tasks: tuple[TaskName, ...] | None = None

    def parameters(self, roster_size: int) -> Parameters:
        """Return what protects this owner in secure sums over a roster.

        Raises:
            ConfigError: the roster is too small, or the policy asks for what it cannot give.
        """
        return Parameters.of(roster_size, self.max_colluders, self.min_cohort)

    def check(self, config: RunConfig, num_parameters: int) -> None:
        """Check a run before any text is touched.

        Raises:
            PolicyViolation: names the key, what it permits and what the run asks for.
        """
        if config.aggregation.type == "plain" and not self.allow_plain:
            raise PolicyViolation("allow_plain: must be true in this owner's policy for aggregation 'plain'")
        if self.tasks is not None and config.task.type not in self.tasks:
            raise PolicyViolation(
                f"tasks: must be among {', '.join(self.tasks)} for this owner, got {config.task.type}"
            )
        if num_parameters > self.max_parameters:
            raise PolicyViolation(
                f"max_parameters: must be at most {self.max_parameters} for this owner, got {num_parameters}"
            )


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: names the file, the key, the rule and the value.
    """
    return validate(Policy, read_yaml(path), str(path))
