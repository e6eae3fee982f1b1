"""The plan: what an owner approves, once for a whole run, and what every request is then held against."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import AnyModelConfig
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_models.validation import Config, broken, first_problem, validate
from agfl_protocol.config.search_config import MAX_CANDIDATES
from agfl_protocol.identity.identity import NAME_RULE
from agfl_protocol.plans.client_plan import ClientPlan, RunBase
from agfl_protocol.plans.groups import Names, draw_groups, draw_members, groups_after
from agfl_protocol.plans.plan_fields import PlanViolation, canonical, changes, check_fields, members_changed
from agfl_protocol.secagg.context import RUN_ID_RULE
from agfl_protocol.secagg.parameters import MAX_MEMBERS

MAX_PLAN_CHARACTERS = 2**22
_SOURCE = "plan"
_LABEL_WORDS = 4


class Plan(Config):
    """What a run may ask of its owners, from learning a tokenizer to its last round, its candidates included.

    run_id: the run's nonce. config: a client plan, before a tokenizer is learned.
    candidates: models that it may train beside the configured one. members: sorted. groups: of members, each sorted;
    none where sums are plain. A member of no group takes part in sampled sums alone. retired: those whose group lost
    somebody. roster: SHA-256, in hexadecimal, of the members' signing keys; empty where sums are plain.
    """

    run_id: str
    config: dict[str, Any]
    candidates: tuple[dict[str, Any], ...] = ()
    members: Names
    groups: tuple[Names, ...] = ()
    retired: Names = ()
    roster: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @field_validator("run_id")
    @classmethod
    def _is_run_id(cls, run_id: str) -> str:
        if re.fullmatch(RUN_ID_RULE, run_id) is None:
            raise BrokenRule("AGFL-CONFIG-159", f"must match {RUN_ID_RULE}, got {run_id[:80]!r}")
        if run_id.startswith("."):  # owners have files by this name
            raise BrokenRule("AGFL-CONFIG-160", f"must not begin with a dot, got {run_id!r}")
        return run_id

    @field_validator("members")
    @classmethod
    def _are_sorted_names(cls, members: Names) -> Names:
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise BrokenRule("AGFL-CONFIG-161", f"must be 1 to {MAX_MEMBERS} names, got {len(members)}")
        if list(members) != sorted(set(members)):
            raise BrokenRule("AGFL-CONFIG-162", "must be sorted, each name once")
        wrong = next((name for name in members if re.fullmatch(NAME_RULE, name) is None), None)
        if wrong is not None:
            raise BrokenRule("AGFL-CONFIG-163", f"must each match {NAME_RULE}, got {wrong[:80]!r}")
        return members

    @field_validator("groups", "retired")
    @classmethod
    def _are_names(cls, names: Any) -> Any:
        for name in (one for part in names for one in ((part,) if isinstance(part, str) else part)):
            if re.fullmatch(NAME_RULE, name) is None:
                raise BrokenRule("AGFL-CONFIG-214", f"must hold names that match {NAME_RULE}, got {name[:80]!r}")
        return names

    @model_validator(mode="after")
    def _config_is_whole(self) -> Plan:
        """Refuse what is no run, or leaves open what a default would fill in: the owner must see every field."""
        if len(self.candidates) > MAX_CANDIDATES:
            raise BrokenRule(
                "AGFL-CONFIG-164", f"candidates: must be at most {MAX_CANDIDATES}, got {len(self.candidates)}"
            )
        try:
            for model in (self.config.get("model"), *self.candidates):
                config = validate(ClientPlan, self.config | {"model": model}, "config")
                if config.to_json() != canonical(self.config | {"model": model}):
                    raise BrokenRule(
                        "AGFL-CONFIG-165", "config: must have every field as a run's own JSON has it; it has not"
                    )
        except ConfigError as error:
            raise BrokenRule.of(error) from None
        return self

    @staticmethod
    def of(
        config: ClientPlan,
        run_id: str,
        members: Iterable[str],
        min_cohort: int,
        candidates: Iterable[AnyModelConfig] = (),
        before: Plan | None = None,
        roster: bytes = b"",
    ) -> Plan:
        """Return the plan of a run over these members; groups have at least `min_cohort` where there are as many.

        roster: `SigningRoster.hash` of the members.
        before: of a run that goes on, whose groups stay as they are, but for those that lost somebody.
        """
        names = tuple(sorted(set(members)))
        models = (config.model_copy(update={"model": model}).fields()["model"] for model in candidates)
        groups, retired = groups_after(
            () if before is None else before.groups, () if before is None else before.retired, names, min_cohort
        )
        if config.aggregation.type == "plain":
            groups, retired, roster = (), (), b""
        return Plan(
            run_id=run_id,
            config=config.fields(),
            candidates=tuple(models),
            members=names,
            groups=groups,
            retired=retired,
            roster=roster.hex(),
        )

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, no spaces."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return canonical(self.model_dump(mode="json"))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical text, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def client_plan(self) -> ClientPlan:
        """What its rounds go by."""
        return validate(ClientPlan, self.config, _SOURCE)

    @cached_property
    def client_text(self) -> str:
        """The canonical text of `client_plan`."""
        return self.client_plan.to_json()

    def check_roster(self, own: bytes, own_names: Collection[str]) -> None:
        """Check that the run's roster is this owner's, of the names `own_names`; its hash is `own`.

        Raises:
            PlanViolation: it is another, so this owner could be in no sum; says which two there are.
        """
        if self.roster == own.hex() or self.client_plan.aggregation.type == "plain":
            return
        strangers = sorted(set(self.members) - set(own_names))
        more = f", {', '.join(strangers[:3])} among them" if strangers else ""
        raise PlanViolation(
            "AGFL-PLAN-010",
            f"plan.roster: must be this owner's, {roster_shown(len(own_names), own.hex())}; got "
            f"{roster_shown(len(self.members), self.roster)}{more}",
        )

    def check_groups(self, roster_names: Collection[str], min_cohort: int, own_name: str) -> None:
        """Check what protects one owner in every sum: who is in it, and with whom.

        Raises:
            PlanViolation: the owner is no member, one is not in its roster, or, where sums are secure, the groups are
                not disjoint sets of members, of at least its `min_cohort` each.
        """
        _require(
            own_name in self.members,
            "AGFL-PLAN-011",
            f"plan.members: must hold {own_name}, got {len(self.members)} others",
        )
        if self.client_plan.aggregation.type == "plain":
            _require(
                not self.groups,
                "AGFL-PLAN-012",
                f"plan.groups: must be none with plain aggregation, got {len(self.groups)}",
            )
            return
        strangers = sorted(set(self.members) - set(roster_names))
        _require(
            not strangers,
            "AGFL-PLAN-013",
            f"plan.members: must be in this owner's roster, got {', '.join(strangers[:3])}",
        )
        grouped = [name for group in self.groups for name in group]
        _require(
            len(grouped) == len(set(grouped)),
            "AGFL-PLAN-014",
            "plan.groups: must be disjoint, got a name that stands twice",
        )
        others = sorted(set(grouped) - set(self.members))
        _require(bool(grouped), "AGFL-PLAN-015", "plan.groups: must be at least one where sums are secure, got none")
        _require(not others, "AGFL-PLAN-016", f"plan.groups: must be of members, got {', '.join(others[:3])}")
        _require(
            all(list(group) == sorted(group) for group in self.groups),
            "AGFL-PLAN-017",
            "plan.groups: must each be sorted",
        )
        least = min(map(len, self.groups))
        # How many this owner wants in a sum stays its own.
        _require(
            least >= min_cohort,
            "AGFL-PLAN-018",
            f"plan.groups: must each have this owner's min_cohort or more, got one of {least}",
        )

    def covers(self, config: ClientPlan, merges: str | None = None) -> None:
        """Check a request's configuration against the plan, field by field.

        merges: `merges_of` the first configuration of this run that had some, where there was one: they stay.

        Raises:
            PlanViolation: names the field, the rule and the value.
        """
        if config is self.client_plan and merges is None:
            return  # the very one that the owner approved
        asked, planned = config.fields(), self.config
        if isinstance(config.tokenizer, BPETokenizerConfig) and self._learns_tokenizer:
            found = merges_of(config)
            if merges is not None and found != merges:
                got = "others" if found else "none"
                raise PlanViolation(
                    "AGFL-PLAN-019", f"tokenizer.merges: must stay as this run first had them, got {got}"
                )
            asked["tokenizer"]["merges"] = None
        model = asked.pop("model")
        check_fields({key: value for key, value in planned.items() if key != "model"}, asked)
        if canonical(model) not in map(canonical, (planned["model"], *self.candidates)):
            if not self.candidates:
                check_fields(planned["model"], model, "model")
            raise PlanViolation(
                "AGFL-PLAN-020", f"model: must be the plan's or one of its {len(self.candidates)} candidates; it is not"
            )

    @property
    def _learns_tokenizer(self) -> bool:
        tokenizer = self.client_plan.tokenizer
        return isinstance(tokenizer, BPETokenizerConfig) and not tokenizer.is_trained

    @property
    def is_by_group(self) -> bool:
        """Whether each exchange is of one group alone, one after the other in turn; those that count are of all."""
        return self.client_plan.aggregation.group_rule != "mean"

    @property
    def turns(self) -> int:
        """One exchange in so many can ask an owner."""
        return len(self.groups) if self.is_by_group else 1

    def draw(self, exchange: int) -> Names:
        """Return whom a sampled exchange asks, sorted: the public draw over all members."""
        if self.is_by_group:
            return self.groups[exchange % len(self.groups)]
        config = self.client_plan
        return draw_members(self.members, config.aggregation.cohort_size, config.seed, exchange)

    def draw_groups(self, exchange: int) -> Names:
        """Return whom an exact exchange asks, sorted: whole groups, as many as fit into the cohort's size."""
        if self.is_by_group:
            return self.draw(exchange)
        config = self.client_plan
        return draw_groups(self.groups, config.aggregation.cohort_size, config.seed, exchange)

    def room(self, *, all_owners: bool) -> int:
        """Return for how many clients the integers of a secure sum have room, whoever is there.

        all_owners: of a sum that all members are asked for, as counts and full evaluations are.
        """
        size, largest = self.client_plan.aggregation.cohort_size, max(map(len, self.groups), default=0)
        return len(self.members) if size is None or all_owners else min(len(self.members), max(size, largest))

    @cached_property
    def max_evaluations(self) -> int:
        """How many models are evaluated after the last round: that one, and after a search it without each layer."""
        if not self.candidates:
            return 1
        resolved = (validate(ModelConfig, one, "model").resolve() for one in (self.config["model"], *self.candidates))
        return 1 + max(
            sum(1 for stack in (one.encoder_stack, one.stack) if stack is not None for _ in stack.places())
            for one in resolved
        )

    def evaluates_in(self, round_number: int) -> bool:
        """Whether the model that this round broadcasts is evaluated in its sum, too."""
        return (round_number - 1) % self.client_plan.evaluation.every == 0


@lru_cache(maxsize=2)  # a node reads the plan of its run for each request
def plan_from_json(text: str) -> Plan:
    """Read a plan's canonical text.

    Raises:
        ConfigError: it is too long, malformed, not canonical, or breaks a rule of a plan.
    """
    if len(text) > MAX_PLAN_CHARACTERS:
        raise ConfigError(
            "AGFL-CONFIG-166", f"{_SOURCE}: must have at most {MAX_PLAN_CHARACTERS} characters, got {len(text)}"
        )
    try:
        content = json.loads(text)
        plan = Plan.model_validate(content)
        is_canonical = plan.to_json() == text
    except ValidationError as error:
        raise broken(error.errors()[0], f"{_SOURCE}: {first_problem(error, content)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError("AGFL-CONFIG-167", f"{_SOURCE}: malformed JSON: {str(error)[:80]}") from None
    if not is_canonical:
        raise ConfigError(
            "AGFL-CONFIG-168", f"{_SOURCE}: must be canonical JSON (sorted keys, no spaces, every field); it is not"
        )
    return plan


def merges_of(config: RunBase) -> str | None:
    """Return the SHA-256 of the tokenizer's merges, in hexadecimal; None where it has none."""
    merges = config.tokenizer.merges if isinstance(config.tokenizer, BPETokenizerConfig) else None
    return None if merges is None else hashlib.sha256(canonical(merges).encode()).hexdigest()


def differences(old: Plan, new: Plan) -> list[str]:
    """Return in what a plan differs from an earlier one, a line each, for people."""
    lines = changes(old.config, new.config)
    lines += changes({"candidates": list(old.candidates)}, {"candidates": list(new.candidates)})
    lines += members_changed(old.members, new.members)
    if old.groups != new.groups:
        lines.append(f"groups: {_sizes(old.groups)} before, {_sizes(new.groups)} now")
    if old.roster != new.roster:
        before, now = (roster_shown(len(plan.members), plan.roster) for plan in (old, new))
        lines.append(f"roster: {before} before, {now} now")
    return lines


def roster_shown(size: int, roster: str) -> str:
    """Return how a line names a roster: its first words are a label; all 24 must be compared."""
    if not roster:
        return "none"
    from agfl_protocol.identity.fingerprint import to_words

    words = to_words(bytes.fromhex(roster)).split()
    return f"one of {size} owners ({' '.join(words[:_LABEL_WORDS])} ...)"


def _sizes(groups: Sequence[Names]) -> str:
    return f"{len(groups)} of {'/'.join(map(str, sorted(set(map(len, groups))))) or 0}"


def _require(holds: bool, code: str, line: str) -> None:
    if not holds:
        raise PlanViolation(code, line)
