"""`agfl-client policy`: what an owner's policy permits, the plug-ins on this machine, and what a run would sum up."""

from __future__ import annotations

from pathlib import Path

from agfl_client.approval.sums_text import sums_lines
from agfl_client.policy import Policy
from agfl_models.errors import ConfigError
from agfl_models.plugins import described, installed, names_in, normalized
from agfl_models.validation import dump_yaml, read_yaml
from agfl_protocol.plans.client_plan import ClientPlan


def print_policy(policy: Policy) -> None:
    """Print a policy's keys and all installed plug-ins; of those that it does not enable no code runs."""
    print(dump_yaml(policy.model_dump(mode="json")), end="")
    enabled, there = set(map(normalized, policy.plugins)), list(installed())
    print("installed plug-ins:" if there else "installed plug-ins: none")
    for one in there:
        print(f"  {described(one)}: {'enabled' if normalized(one.name) in enabled else 'not enabled'}")


def print_sums(policy: Policy, plan: ClientPlan) -> None:
    """Print what an owner adds to the sums of a run; raises PolicyViolation where the policy does not permit it."""
    policy.tier(plan)
    print("what you add to the sums of this run beside your update:")
    print("\n".join(sums_lines(plan)))


def refuse_disabled(run: Path, policy: Policy) -> None:
    """Raise ConfigError where an operator's file names a plug-in that the policy does not enable; none is loaded."""
    enabled = set(map(normalized, policy.plugins))
    for name in names_in(read_yaml(run), str(run)):
        if normalized(name) not in enabled:
            rule = "must be enabled in your policy (its key plugins), it is not"
            raise ConfigError("AGFL-CONFIG-270", f"{run}: plugins: {normalized(name)} {rule}")
