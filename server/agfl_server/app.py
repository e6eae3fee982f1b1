"""The server's side of a run: build the parts, search, learn the tokenizer, run the rounds, tell the nodes to stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from agfl_models.errors import ConfigError, RoundError
from agfl_models.files.store_files import MODEL_FOLDER
from agfl_protocol.config.run_config import AggregationConfig, RunConfig, load_run_config
from agfl_protocol.messages import wire
from agfl_protocol.methods.registry import known_methods
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.plans.sum_kind import MAX_SAMPLED_EXAMPLES, may_train_exactly
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import Aggregator
from agfl_server.aggregation.group_rule import MIN_GROUPS
from agfl_server.aggregation.plain_sum import PlainSum
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.rounds.attempts import RunContext
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.cohort_sums import Federation
from agfl_server.rounds.journal import Journal
from agfl_server.rounds.loop import run_rounds
from agfl_server.rounds.observer import Observer, Row
from agfl_server.rounds.state import ServerState
from agfl_server.rounds.suspects import Suspects
from agfl_server.rounds.tokenizer_training import public_rows, train_tokenizer, with_public_tokenizer
from agfl_server.run.delivery import deliver_model
from agfl_server.run.opened_run import open_run
from agfl_server.run.run_folder import RunFolder
from agfl_server.run.settings import write_settings
from agfl_server.run.sittings import SittingLog
from agfl_server.search.search import open_search, run_search
from agfl_server.search.skipping import write_skip_costs
from agfl_server.search.slate import make_slate
from agfl_server.tracking.registry import refuse_missing, tracked
from agfl_server.transport.connected_nodes import ConnectedNodes
from agfl_server.transport.messaging import ask_nodes

_FINISH_TIMEOUT_S = 10.0
SecureSumOf: TypeAlias = Callable[[Observer, SigningRoster, Parameters], Aggregator]


def run_federation(
    grid: Grid,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    registered_name: Callable[[int], str | None] | None = None,
    roster: SigningRoster | None = None,
    owners: Collection[str] | None = None,
    settings: Sequence[str] | None = None,
    sitting: SittingLog | None = None,
    secure_sum: SecureSumOf = SecureSum,
    is_held: bool = False,
) -> ServerState:
    """Run a federation to its last round over `grid` and leave everything it made in `folder`.

    registered_name: the NAME under which the transport admitted a node id, where it knows one.
    roster: the signing keys of all owners, which secure aggregation needs. owners: who can take part, where that is
    known and there is no roster. settings: what `--set` changed, kept for a run that goes on. sitting: of the command,
    which begins here. secure_sum: what adds up where the configuration says secure; owners' nodes must take part in it.
    is_held: whether the caller holds the folder, as `RunFolder.hold`.

    Raises:
        AgflError: one line for a person; what was checkpointed stays and can be resumed.
    """
    observer = observer or Observer()
    run_folder = RunFolder(folder)
    aggregator, min_cohort = build_aggregator(config.aggregation, roster, observer, secure_sum)
    num_owners = None if roster is None else len(roster)
    _refuse_few_owners(config.aggregation, num_owners, min_cohort)
    nodes = ConnectedNodes(grid, observer, registered_name)
    with nullcontext() if is_held else run_folder.hold():
        _refuse_before_writing(config, run_folder, resume)
        if settings is not None:
            write_settings(folder, settings)
        if sitting is not None:
            sitting.begin(folder, resume=resume)
        journal = Journal(folder)
        if not (resume and journal.is_begun):
            journal.begin()
        if owners is None:
            owners = nodes.wait_for(min_cohort) if roster is None else roster.keys
        plan = _plan(config, run_folder, journal.run_id, owners, min_cohort, b"" if roster is None else roster.hash)
        nodes.propose(plan)
        context = RunContext(
            config=config,
            grid=grid,
            nodes=nodes,
            aggregator=aggregator,
            observer=observer,
            min_cohort=min_cohort,
            journal=journal,
            plan=plan,
            num_owners=num_owners,
            suspects=Suspects(plan.groups, plan.is_by_group),
        )
        federation, state = _run(context, run_folder, resume)
    deliver_model(federation, state)
    _finish(grid, nodes.online, state)
    return state


def _plan(
    config: RunConfig, folder: RunFolder, run_id: str, owners: Collection[str], min_cohort: int, roster: bytes
) -> Plan:
    """Return what owners are to approve: what they have approved before, while that covers the run as it is now.

    Raises:
        CheckpointError: the plan cannot be read or written.
    """
    config = config.with_pretrained(config.pretrained, "model.folder")
    candidates = () if config.search is None else (one.config.model for one in make_slate(config).candidates)
    known = folder.read_plan()
    plan = Plan.of(config.client_plan, run_id, owners, min_cohort, candidates, known, roster)
    if plan.is_by_group and len(plan.groups) < MIN_GROUPS:
        rule = f"must be {MIN_GROUPS} groups or more with group_rule {config.aggregation.group_rule}"
        raise ConfigError("AGFL-CONFIG-069", f"plan.groups: {rule}, those who joined and left made {len(plan.groups)}")
    if known is not None and known.run_id == run_id and not _asks_more(plan, known, config):
        return known
    folder.write_plan(plan)
    return plan


def _asks_more(plan: Plan, known: Plan, config: RunConfig) -> bool:
    """Whether a plan asks owners for more than the one before it."""
    fields = ("members", "groups", "candidates", "roster")
    if any(getattr(plan, field) != getattr(known, field) for field in fields):
        return True
    try:
        known.covers(config.client_plan)
    except PlanViolation:
        return True
    return False


def _run(context: RunContext, run_folder: RunFolder, resume: bool) -> tuple[Federation, ServerState]:
    """Search where the run says so, and train."""
    if context.config.search is None:
        return _train(context, run_folder, resume)
    chosen = run_search(context, run_folder, resume=resume)
    federation, state = _train(replace(context, config=chosen), run_folder, resume=True)
    write_skip_costs(federation, state, run_folder)
    return federation, state


def _train(context: RunContext, run_folder: RunFolder, resume: bool) -> tuple[Federation, ServerState]:
    """Learn the tokenizer where there is none, run all rounds, and leave the trained model in the folder."""
    observer = context.observer
    config, is_new = _opened(context.config, run_folder, resume)
    config = with_public_tokenizer(config, observer)
    if is_new:
        run_folder.begin(config)
    cost: Row = {}
    if not config.tokenizer.is_trained:
        config, cost = train_tokenizer(replace(context, config=config))
        run_folder.write_config(config)
    federation, *begun = open_run(replace(context, config=config), run_folder, is_new=is_new, cost=cost)
    with tracked(config, run_folder.path, observer) as watchers:
        state = _run_rounds(federation, begun, run_folder, watchers)
    return federation, state


def _run_rounds(
    federation: Federation, begun: list[ServerState], run_folder: RunFolder, watchers: Observer
) -> ServerState:
    """Run all rounds that are left, and leave the trained model, or the last good one, in the folder.

    begun: the state to go on from, which is taken out: else its model would be in memory as long as the run.
    """
    config = federation.context.config

    def save(after: ServerState, rows: Sequence[Row]) -> ServerState:
        after = run_folder.save(config, after, rows)
        watchers.saved(rows)
        return after

    try:
        state = run_rounds(federation, begun.pop(), save)
    except RoundError:
        if not run_folder.has_checkpoint:
            raise
        kept = load_checkpoint(run_folder.checkpoints, config.hash)
        number = kept.round
        if kept.confirmed.model.size:
            kept, number = replace(kept, model=kept.confirmed.model), kept.confirmed.round
        run_folder.save_model(config, federation.layout, kept)
        federation.context.observer.kept(number, str(run_folder.path / MODEL_FOLDER))
        raise
    run_folder.save_model(config, federation.layout, state)
    watchers.finished(run_folder.path / MODEL_FOLDER)
    return state


def _opened(config: RunConfig, run_folder: RunFolder, resume: bool) -> tuple[RunConfig, bool]:
    """Return the run as it is to begin or to go on in the folder, and whether it begins; nothing is written."""
    config = run_folder.resolved(config) if resume else config
    config = config.with_pretrained(config.pretrained, "model.folder")
    # A run that ended before its tokenizer was learned begins anew.
    is_new = not resume or not config.tokenizer.is_trained
    if is_new:
        run_folder.refuse_existing_run()
    else:
        run_folder.refuse_other_run(config)
    return config, is_new


def refuse_run(config: RunConfig, folder: Path, *, resume: bool, roster: SigningRoster | None, num_owners: int) -> None:
    """Raise what `run_federation` would before it writes, so that a caller writes nothing for a run that cannot be.

    Raises:
        AgflError: one line for a person.
    """
    _, min_cohort = build_aggregator(config.aggregation, roster, Observer())
    _refuse_few_owners(config.aggregation, num_owners, min_cohort)
    _refuse_before_writing(config, RunFolder(folder), resume)


def _refuse_before_writing(config: RunConfig, folder: RunFolder, resume: bool) -> None:
    if may_train_exactly(config.client_plan):
        _refuse_exact(config.client_plan)
    if config.search is not None:
        open_search(config, folder, resume=resume)
    else:
        _opened(config, folder, resume)
    if not resume:
        public_rows(config)
    refuse_missing(config.tracking)


def _refuse_exact(plan: ClientPlan) -> None:
    """Raise ConfigError where a method cannot be in exact sums: owners would refuse them."""
    try:
        for method in known_methods(plan):
            method.refuse_exact(plan, {})
    except PlanViolation as error:
        sums = f"sums are exact where owners train or evaluate on more than {MAX_SAMPLED_EXAMPLES} examples a round"
        raise ConfigError.of(error, f"{error.sentence} ({sums})") from None


def _refuse_few_owners(config: AggregationConfig, num_owners: int | None, min_cohort: int) -> None:
    """Raise ConfigError where a run would wait for ever for owners, or groups of them, that there are not."""
    if num_owners is None:
        return
    if num_owners < min_cohort:
        rule = f"must be at most {num_owners}, the owners that there are"
        raise ConfigError("AGFL-CONFIG-071", f"aggregation.min_cohort: {rule}, got {min_cohort}")
    if config.group_rule != "mean" and num_owners // min_cohort < MIN_GROUPS:
        rule = f"must make {MIN_GROUPS} groups or more with group_rule {config.group_rule}"
        got = f"{min_cohort}, which makes {num_owners // min_cohort} of {num_owners} owners"
        hint = "a lower max_colluders, in the run and in owners' policies, makes more"
        raise ConfigError("AGFL-CONFIG-072", f"aggregation.min_cohort: {rule}, got {got} ({hint})")


def build_aggregator(
    config: AggregationConfig, roster: SigningRoster | None, observer: Observer, secure_sum: SecureSumOf = SecureSum
) -> tuple[Aggregator, int]:
    """Return the aggregator that the run configuration names, and how many updates a round needs.

    There is no fallback from secure to plain.

    Raises:
        ConfigError: secure aggregation without a roster, or over one that is too small for it; or cohorts are too small
            for a round.
    """
    aggregator, min_cohort = _aggregator_of(config, roster, observer, secure_sum)
    if config.cohort_size is not None and config.cohort_size < min_cohort:
        raise ConfigError(
            "AGFL-CONFIG-073",
            f"aggregation.cohort_size: must be at least min_cohort = {min_cohort}, got {config.cohort_size}",
        )
    return aggregator, min_cohort


def _aggregator_of(
    config: AggregationConfig, roster: SigningRoster | None, observer: Observer, secure_sum: SecureSumOf
) -> tuple[Aggregator, int]:
    if config.type == "plain":
        min_cohort = config.min_cohort or 2
        return PlainSum(observer, min_cohort), min_cohort
    if roster is None:
        raise ConfigError(
            "AGFL-CONFIG-074",
            "aggregation.type: secure needs a roster of signing keys, which this runtime has not; use plain",
        )
    parameters = Parameters.of(len(roster), config.max_colluders, config.min_cohort)
    return secure_sum(observer, roster, parameters), parameters.min_cohort


def _finish(grid: Grid, nodes: Iterable[int], state: ServerState) -> None:
    """Tell every node that the run is over; who does not answer soon learns it from the closed door."""
    content = wire.FinishRequest(state.run_id).to_record()
    requests = [Message(content, node, wire.FINISH) for node in nodes]
    for _ in ask_nodes(grid, requests, _FINISH_TIMEOUT_S):
        pass


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of Flower's own runtimes (`flwr run .`): paths come from the run configuration."""
    config, output = (str(context.run_config.get(key, "")) for key in ("config", "output"))
    if not config or not output:
        raise ConfigError(
            "AGFL-CONFIG-075", "run-config: config and output must name a file and a folder, got an empty value"
        )
    run_federation(grid, load_run_config(Path(config)), Path(output))
