"""What a data owner accepts, whatever the server asks: `start --policy FILE`, in YAML, every key optional.

min_cohort: 5            # fewest owners in a sum; default max_colluders + 3, or all
max_colluders: 3         # owners that may conspire with the server; default a third of the roster, at least 1
allow_plain: false       # true: the server may see this owner's update itself
uploads_per_round: 3     # vectors that leave for one round: one whose sum fails goes on in the next exchange
announcements_per_round: 16 # exchanges of one round that are answered at all
runs: ask                # which plans need no answer of yours: ask (none), same_operator_and_task (as before), all
max_sampled_examples: 512 # most examples of a sum whose owners may be other ones than in the sums before
max_pairs: 128           # pairs of sums with and without an owner, after which this owner stops; default no bound
max_parameters: 100000000
max_width: 0.5           # of a model that is trained in several widths, the widest that this device may hold; default 1
max_seconds_per_round: 3600   # after these a round is given up, and nothing of it leaves
max_memory: 8GB          # of a run, as estimated before its model is built; default this machine's memory
tasks: [language_modeling, translation]   # default: every task, summarization and question_answering too
plugins: [agfl-digits]   # installed distributions whose parts may run here; default none
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, PositiveFloat, PositiveInt

from agfl_client.training.memory_estimate import estimate, part_size
from agfl_models.errors import AgflError
from agfl_models.machine import usable_memory
from agfl_models.plugins import enable, names_in, normalized
from agfl_models.tasks import TaskName
from agfl_models.validation import Config, read_yaml, validate
from agfl_protocol.config.elastic_config import Width
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.secagg.parameters import Parameters

_MAX_FILE_BYTES = 1 << 16


class PolicyViolation(AgflError):
    """The server asks for what this owner's policy does not permit."""

    area = "POLICY"


class Policy(Config):
    """One owner's policy; no message changes it."""

    min_cohort: PositiveInt | None = None
    max_colluders: PositiveInt | None = None
    allow_plain: bool = False
    uploads_per_round: PositiveInt = 3
    announcements_per_round: PositiveInt = 16
    runs: Literal["ask", "same_operator_and_task", "all"] = "ask"
    max_sampled_examples: PositiveInt = 512
    max_pairs: PositiveInt | None = None
    max_parameters: PositiveInt = 100_000_000
    max_width: Width = 1.0
    max_seconds_per_round: PositiveFloat = 3600.0
    max_memory: ByteSize = Field(default_factory=lambda: ByteSize(usable_memory()), gt=0)
    tasks: tuple[TaskName, ...] | None = None
    plugins: tuple[str, ...] = ()

    def parameters(self, roster_size: int) -> Parameters:
        """Return what protects this owner in secure sums over a roster.

        Raises:
            ConfigError: the roster is too small, or the policy asks for what it cannot give.
        """
        return Parameters.of(roster_size, self.max_colluders, self.min_cohort)

    def tier(self, config: ClientPlan) -> int:
        """Check a run before any text is touched; return how many rings of its model this owner may train.

        That is 1 where the model is not elastic, and else as many as `max_width`, `max_parameters` and `max_memory`
        permit.

        Raises:
            PolicyViolation: names the key and what the run asks for. The server gets the line, so it does not say what
                the owner permits.
        """
        self._check_kind(config)
        widths = (1.0,) if config.elastic is None else config.elastic.widths
        permitted = [k for k, width in enumerate(widths, start=1) if width <= self.max_width]
        if not permitted:
            raise PolicyViolation(
                "AGFL-POLICY-002",
                f"max_width: must be at least {widths[0]:g}, the run's least width, to take part; it is not",
            )
        sizes = {k: part_size(config, k) for k in permitted}
        fitting = [k for k, size in sizes.items() if size <= self.max_parameters]
        if not fitting:
            least = min(sizes.values())
            raise PolicyViolation(
                "AGFL-POLICY-003", f"max_parameters: must be at least {least}, the run's, to take part; it is not"
            )
        needs = {k: estimate(config, k) for k in fitting}
        in_memory = [k for k, need in needs.items() if need <= self.max_memory]
        if not in_memory:
            least = min(needs.values())
            raise PolicyViolation(
                "AGFL-POLICY-004",
                f"max_memory: must be at least {least} bytes, the run's by estimate, to take part; it is not",
            )
        return in_memory[-1]

    def check_unasked(self) -> None:
        """Check that the owner takes part unasked; raises PolicyViolation."""
        if self.runs != "all":
            raise PolicyViolation(
                "AGFL-POLICY-005", "runs: must be all in this owner's policy, since this node keeps no approvals"
            )

    def check_pairs(self, pairs: float) -> None:
        """Check that sums with and without this owner are not too many pairs yet; raises PolicyViolation."""
        if self.max_pairs is not None and pairs >= self.max_pairs:
            raise PolicyViolation("AGFL-POLICY-006", "max_pairs: this owner takes no further part in the run")

    def _check_kind(self, config: ClientPlan) -> None:
        if config.aggregation.type == "plain" and not self.allow_plain:
            raise PolicyViolation(
                "AGFL-POLICY-007", "allow_plain: must be true in this owner's policy for aggregation 'plain'"
            )
        permitted = set(map(normalized, self.plugins))
        strange = next((plugin for plugin in config.plugins if plugin.name not in permitted), None)
        if strange is not None:
            raise PolicyViolation("AGFL-POLICY-013", f"plugins: must hold {strange.name} to take part; it does not")
        if self.tasks is not None and config.task.type not in self.tasks:
            raise PolicyViolation("AGFL-POLICY-008", f"tasks: must hold {config.task.type} to take part; it does not")


def load_policy(path: Path) -> Policy:
    """Read a policy file, and load the plug-ins that it enables.

    Raises:
        ConfigError: names the file, the key, the rule and the value.
    """
    content = read_yaml(path, may_be_empty=True, max_bytes=_MAX_FILE_BYTES)
    enable(names_in(content, str(path)), f"{path}: plugins")  # before `tasks` are known
    return validate(Policy, content, str(path))
