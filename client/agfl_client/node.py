"""One data owner's node: what it keeps between messages, and what it does with each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

from agfl_client.approval.announced import Announced
from agfl_client.approval.approval_files import Status
from agfl_client.approval.approvals import Approvals
from agfl_client.own_screen import round_shown
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.saved_model import SavedModel
from agfl_client.secure.secure_member import SecureMember, SumRules
from agfl_client.secure.sum_rules import approved_plan, sum_rules
from agfl_client.training import pair_counts
from agfl_client.training.client_state import ClientStates, Recollection, StateKey
from agfl_client.training.deadline import Deadline
from agfl_client.training.device import AUTO, choose_device
from agfl_client.training.own_error import measure_sigma
from agfl_client.training.part import Part, whole_layout
from agfl_client.training.trainer import LocalTrainer, effective_steps, evaluate, validation_loss
from agfl_models.errors import DataError, WireError
from agfl_models.examples import Row, check_readable, read_data
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.model.families import build_model
from agfl_models.model.rings import Rings
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_models.version import VERSION
from agfl_protocol.config.optimizer_config import PortfolioConfig
from agfl_protocol.config.run_config import RunConfig, run_config_from_json
from agfl_protocol.messages.control import check_control
from agfl_protocol.messages.counting import CountCodec, CountRequest
from agfl_protocol.messages.wire import (
    Answer,
    FinishRequest,
    IdentifyReply,
    ModelRequest,
    ProposeReply,
    ProposeRequest,
    RoundReply,
    RoundRequest,
    SumRequest,
)
from agfl_protocol.methods import alignment, candidates, clipping, drift, elastic, ring_losses
from agfl_protocol.methods.alignment import AlignmentWeighting
from agfl_protocol.methods.elastic import Elastic
from agfl_protocol.methods.method import State
from agfl_protocol.plans.plan import Plan, plan_from_json
from agfl_protocol.randomness import SECRET_BYTES, OwnerRandomness, first_model_seed
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.update import Layout, Update

_READ_AGAIN_S = 5.0  # the server asks more often whether a text that was of no use has been mended


@dataclass(frozen=True)
class _Workspace:
    """What is kept warm for one run configuration."""

    config_json: str
    config_hash: str
    config: RunConfig
    task: AnyTask
    dataset: Dataset[Any]
    layout: Layout
    rings: Rings | None
    tier: int
    part: Part
    num_rows: int


class Node:
    """A node keeps its data and model warm from message to message; whoever builds the ClientApp holds it.

    name: the owner's NAME; data: the owner's file or folder, read when the first round says for which task; columns:
    what that task's columns are called there; device: "auto" or a PyTorch device; num_threads: PyTorch threads of
    this node; pretrained: the owner's copy of a pretrained model, for runs that start from one; policy: what the owner
    accepts; member: the node's part in secure sums, None where it has none; folder: this node's own, where it keeps
    state from round to round for methods that need it; randomness: what it draws with, None for a secret of this
    process; approvals: the plans that the owner approved, None where its policy approves all of them; tell: takes a
    line for the owner's own screen; saved: where the trained model is kept, None for nowhere.

    Raises:
        DataError, PretrainedError, ConfigError: the data is not there or cannot be opened, or the pretrained model or
            the device is not there.
        IdentityError: a file of state in `folder` is open to group or others.
    """

    def __init__(
        self,
        name: str,
        data: Path,
        device: str = AUTO,
        num_threads: int = 1,
        *,
        columns: Mapping[str, str] | None = None,
        pretrained: Path | None = None,
        policy: Policy | None = None,
        member: SecureMember | None = None,
        folder: Path | None = None,
        randomness: OwnerRandomness | None = None,
        approvals: Approvals | None = None,
        tell: Callable[[str], None] = lambda line: None,
        saved: SavedModel | None = None,
    ) -> None:
        self.name = name
        self.finished = False
        self._policy = policy or Policy()
        self.announced = Announced(self._policy, pretrained, keeps_model=saved is not None)
        self._saved = saved
        self._member = member
        check_readable(data)
        if pretrained is not None:
            PretrainedFolder(pretrained)
        self._data = data
        self._columns = columns or {}
        self._pretrained = pretrained
        self._device = choose_device(device)
        self._num_threads = num_threads
        self._states = ClientStates(folder) if folder is not None else None
        self._randomness = randomness or OwnerRandomness(secrets.token_bytes(SECRET_BYTES))
        self._approvals = approvals
        self._tell = tell
        self._deadline = Deadline()
        self._workspace: _Workspace | None = None
        self._words: pair_counts.CutWords | None = None
        self._checked = ""  # the hash of the last plan for which the text was found good
        self._useless: tuple[float, DataError] | None = None  # when it was read last, and why it is of no use

    def identify(self) -> IdentifyReply:
        """Say who this is."""
        return IdentifyReply(self.name, VERSION)

    def propose(self, request: ProposeRequest) -> ProposeReply:
        """Say whether the owner approves a plan.

        Raises:
            ConfigError, PolicyViolation, PlanViolation: the plan is none, or not what this owner permits.
        """
        plan = plan_from_json(request.plan_json)
        self._policy.tier(plan.run_config.with_pretrained(self._pretrained, "--pretrained"))
        if plan.groups or self._member is not None:
            plan.check_roster(self.member.roster_hash, self.member.names)
            plan.check_groups(self.member.names, self.member.min_cohort, self.name)
        if self._approvals is None:
            self._policy.check_unasked()
            return ProposeReply(Answer.APPROVED, self._saved is not None)
        status = self._approvals.propose(plan)
        if status is Status.APPROVED:
            self._check_text(plan)  # now, while nobody waits for this owner in a sum
        try:
            if self._policy.runs != "all" and self._approvals.sigma(plan.run_id) is None:
                sigma = self._sigma(plan)
                status = status if sigma is None else self._approvals.note_sigma(plan.run_id, sigma)
        finally:
            self._approvals.announce()  # not before: whoever answers at once is to see what was measured
        return ProposeReply(Answer(status.value), self._saved is not None)

    def _check_text(self, plan: Plan) -> None:
        """Raise DataError where this owner's text is of no use to the run; what was read stays warm for round 1."""
        config = plan.run_config
        config_json = config.to_json()
        if self._workspace is not None or self._checked == plan.hash:
            return
        if self._useless is not None and time.monotonic() - self._useless[0] < _READ_AGAIN_S:
            raise self._useless[1]
        try:
            if config.tokenizer.is_trained and config.search is None:
                own = config.with_pretrained(self._pretrained, "--pretrained")
                self._workspace = self._make_workspace(config_json, own, self._policy.tier(own))
            else:
                self._rows(config)
        except DataError as error:
            self._useless = time.monotonic(), error
            raise
        self._checked, self._useless = plan.hash, None

    def _sigma(self, plan: Plan) -> float | None:
        """Return how much of an update of the first model is the noise of its batches; None where that is not drawn."""
        config = plan.run_config.with_pretrained(self._pretrained, "--pretrained")
        if config.training.local_steps is None or not config.tokenizer.is_trained:
            return None
        torch.set_num_threads(self._num_threads)
        space = self._make_workspace("", config, 1)
        part, trainer = space.part, LocalTrainer(config.training, self._device)
        first = part.layout.flatten(build_model(config.narrowed_model(1), first_model_seed(config.seed)))
        updates = []
        for _ in range(2):
            part.layout.load(part.model, first)
            rng = np.random.default_rng()
            updates.append(trainer.train(part.model, part.layout, space.task, space.dataset, rng, widths=part.widths))
        return measure_sigma(*(update.delta for update in updates))

    @property
    def member(self) -> SecureMember:
        """This node's part in secure sums; raises PolicyViolation where it has none."""
        if self._member is None:
            raise PolicyViolation(
                "aggregation.type: secure needs a node that was started with the owners' roster and that keeps its "
                "keys between messages, which Flower's Ray runtime does not; this node has none"
            )
        return self._member

    @property
    def states(self) -> ClientStates:
        """What this node keeps from round to round; raises PolicyViolation where it has no folder for that."""
        if self._states is None:
            raise PolicyViolation(
                "aggregation.server_optimizer: scaffold and feddyn need a node that was started with a folder of its "
                "own, where it keeps state from round to round; this node has none"
            )
        return self._states

    def handle_round(self, request: RoundRequest) -> RecordDict:
        """Evaluate and train as asked; reply with the vector that enters the sum, or with fresh keys to mask it.

        Raises:
            PolicyViolation: the owner does not permit this.
            ProtocolViolation: this exchange was answered before.
            WireError: the request does not fit its own configuration.
        """
        torch.set_num_threads(self._num_threads)
        self.finished = False
        again = self._answered(request)
        if again is not None:
            return again
        self._deadline, started = Deadline.after(self._policy.max_seconds_per_round), time.monotonic()
        space, rules = self._workspace_for(request)
        config, task, layout = space.config, space.task, space.layout
        num_models, rest = divmod(request.model.size, layout.size)
        if rest or num_models not in (1, config.max_models if request.train else 1):
            raise WireError(f"model: must have {layout.size} parameters as configured, got {request.model.size}")
        if request.plan.clip_step and not clipping.varies(config):
            raise WireError(f"clip_step: must be 0 where the bound stays, got {request.plan.clip_step}")
        codec = UpdateCodec.for_round(
            config,
            task,
            layout,
            request.plan,
            round_number=request.round,
            train=request.train,
            evaluate=request.evaluate,
            num_models=num_models,
            rings=space.rings,
        )
        check_control(config, request, layout.size)
        self._words = None  # the tokenizer is there
        memory = self._recall(space, request)
        update, states = self._update(space, request, memory)
        lanes = codec.encode(update, self._draw(request, "rounding"), states)
        self._say_round(space, request, update, time.monotonic() - started)
        if memory is not None:
            sent = codec.decode_mean(codec.decode_sum(lanes))[0].delta
            self.states.keep(_state_key(request), request.exchange, memory, sent)
        return self._answer(request, rules, lanes, space.part.num_rings)

    def _say_round(self, space: _Workspace, request: RoundRequest, update: Update, seconds: float) -> None:
        """Tell the owner, and nobody else, what its node did."""
        predictions = update.metrics.get(space.task.train_sums[1], 0.0)
        loss = update.metrics[space.task.train_sums[0]] / predictions if request.train and predictions else None
        rounds, rows = space.config.num_rounds, space.num_rows
        self._tell(round_shown(request.round, rounds, rows, seconds, loss=loss, evaluated=request.evaluate))

    def handle_count(self, request: CountRequest) -> RecordDict:
        """Count pairs of tokens in the training text, for a tokenizer; reply as to a round.

        Raises:
            PolicyViolation, ProtocolViolation, WireError: as `handle_round`.
        """
        self.finished = False
        again = self._answered(request)
        if again is not None:
            return again
        config = pair_counts.check_request(request)
        self._policy.tier(config)
        rules = self._rules(config, request)
        self._words = pair_counts.cut(self._words, request, config, lambda: self._rows(config))
        counts = self._words.words.pairs(request.first_new)
        return self._answer(request, rules, CountCodec.of(request).encode(counts))

    def keep_model(self, request: ModelRequest) -> None:
        """Save the trained model of a run that the owner approved.

        Raises:
            PolicyViolation, PlanViolation: the owner keeps none, or did not approve such a run.
            WireError, CheckpointError: as `SavedModel.write`.
        """
        if self._saved is None or self._approvals is None:
            raise PolicyViolation("model: this owner was not started with --save-model, so it keeps none")
        plan = approved_plan(self._approvals.approved(request.run_id), request.run_id, request.plan_hash)
        config = run_config_from_json(request.config_json).with_pretrained(self._pretrained, "--pretrained")
        self._policy.tier(config)
        plan.covers(config, None if self._member is None else self._member.ledger.merges(request.run_id))
        self._workspace = self._words = None  # the memory is needed
        self._saved.write(request, config)
        folder, quoted = self._saved.shown
        self._tell(f"the model after round {request.round} is in {folder}: agfl-model describe {quoted}")

    def finish(self, request: FinishRequest) -> None:
        """Note that the run is over and let go of its model."""
        self.finished = True
        self._workspace = self._words = None
        if self._member is not None:
            self._member.forget()
        if self._states is not None:
            self._states.finish(request.run_id)

    def _rows(self, config: RunConfig) -> list[Row]:
        rows, survey = read_data(self._data, config.task.row, self._columns)
        train, held_out = split_rows(rows, config.task.validation_fraction)
        self._tell(f"data for {config.task.type}: {survey.line}; {len(train):,} train, {len(held_out):,} held out")
        for line in survey.doubts:
            self._tell(line)
        return rows

    def _answered(self, request: SumRequest) -> RecordDict | None:
        """Return the reply to this very request, if the server has lost it."""
        return None if self._member is None else self._member.answered(request)

    def _rules(self, config: RunConfig, request: SumRequest) -> SumRules | None:
        """Check, before any text is touched, that the plan has this sum and that it may be answered.

        Return what a secure sum goes by.
        """
        is_secure = config.aggregation.type == "secure"
        if self._approvals is None:
            self._policy.check_unasked()
            if not is_secure:
                return None
        plan = None if self._approvals is None else self._approvals.approved(request.run_id)
        merges = None if self._member is None else self._member.ledger.merges(request.run_id)
        rules = sum_rules(plan, config, request, self._policy, merges)
        if not is_secure:
            return None
        self.member.ledger.approve(request.run_id, request.plan_hash)
        self.member.check(request, rules)
        every = 1 if plan is None else plan.turns
        self._policy.check_pairs(self.member.ledger.pairs(request.run_id, self.name, every).k)
        return rules

    def _answer(self, request: SumRequest, rules: SumRules | None, lanes: Lanes, num_rings: int = 1) -> RecordDict:
        """Return what enters the sum, or what goes before it where the lanes are to be masked."""
        if rules is not None:
            return self.member.advertise(request, rules, lanes, num_rings)
        return RoundReply(request.config_hash, request.round, request.exchange, lanes).to_record()

    def _draw(self, request: SumRequest, purpose: str) -> np.random.Generator:
        """Return the owner's randomness for one purpose in this exchange, the same each time."""
        return self._randomness.generator(request.run_id, request.exchange, purpose)

    def _recall(self, space: _Workspace, request: RoundRequest) -> Recollection | None:
        """Return the state with which this round begins, where the method has owners keep one."""
        method = drift.drift_of(space.config) if request.train else None
        if method is None:
            return None
        last, is_known = self._last_used(request)
        own, is_lost = self.states.recall(_state_key(request), last if is_known else -1, space.layout.size)
        return Recollection(method, request.control, own, last, is_lost)

    def _last_used(self, request: RoundRequest) -> tuple[int | None, bool]:
        """Return the last exchange whose sum, that was used, had this owner in it, and whether that is sure."""
        if self._member is None:
            used = [exchange for exchange, names in request.used if self.name in names]
            return (used[-1] if used else None), True
        ledger = self._member.ledger
        used = [exchange for exchange, _ in request.used if ledger.has_left(request.run_id, exchange)]
        signed = ledger.signed(request.run_id)
        for exchange in reversed(used):
            if exchange not in signed:  # the vector left, but nobody told whether it was in the sum
                return exchange, False
            if self.name in signed[exchange]:
                return exchange, True
        return None, True

    def _update(
        self, space: _Workspace, request: RoundRequest, memory: Recollection | None
    ) -> tuple[Update, dict[str, State]]:
        """Return what this owner makes of the model, and what each method knows of it."""
        config, task, part = space.config, space.task, space.part
        metrics: dict[str, float] = {}
        models = request.model.reshape(-1, space.layout.size)
        states: dict[str, State] = {
            AlignmentWeighting.name: {alignment.PREVIOUS: request.control},
            Elastic.name: {elastic.TIER: np.array([space.tier]), elastic.TRAINED: np.array([part.num_rings])},
        }
        if len(models) > 1:
            states[candidates.Candidates.name] = self._candidate_losses(space, request, models)
        part.load(models[0])
        if request.evaluate:
            size, examples = config.training.batch_size, config.evaluation.max_examples
            drawn = None if request.full else self._draw(request, "evaluation")
            stop = self._deadline
            metrics |= evaluate(part.model, task, space.dataset, size, examples, self._device, drawn, stop)
            metrics |= self._ring_losses(space, request)
        if not request.train:
            return Update(np.zeros(0, np.float32), 1.0, metrics), states
        rng = self._draw(request, "batches")
        training, correction = config.training, None
        if memory is not None:
            training, correction = memory.training(training), memory.correction
            states[drift.OwnerStates.name] = {drift.IS_LOST: np.array([memory.is_lost])}
        trainer = LocalTrainer(training, self._device)
        result = trainer.train(
            part.model,
            part.layout,
            task,
            space.dataset,
            rng,
            widths=part.widths,
            correction=correction,
            deadline=self._deadline,
        )
        sums = (result.loss, float(result.num_predictions))
        metrics |= dict(zip(task.train_sums, sums, strict=True))
        steps = effective_steps(config.training, result.num_steps)
        delta, count = part.spread(result.delta), result.num_predictions
        return Update(delta, count, metrics, loss=result.first_loss, steps=steps, start=models[0]), states

    def _ring_losses(self, space: _Workspace, request: RoundRequest) -> dict[str, float]:
        """Return what each ring of this owner's part is worth to it; nothing where the model is not elastic."""
        part, widths, config = space.part, space.part.widths, space.config
        if widths is None:
            return {}
        losses, predictions = [], 0
        for k in range(1, part.num_rings + 1):
            with widths.at(k):
                loss, predictions = self._loss(space, config.evaluation.max_examples, self._draw(request, "rings"))
            losses.append(loss)
        return ring_losses.sums(losses, predictions, config.max_rings)

    def _candidate_losses(self, space: _Workspace, request: RoundRequest, models: NDArray[np.float32]) -> State:
        optimizer, losses, predictions = space.config.aggregation.server_optimizer, [], 0
        assert isinstance(optimizer, PortfolioConfig), optimizer.type
        for vector in models:
            space.part.load(vector)
            loss, predictions = self._loss(space, optimizer.max_examples, self._draw(request, "candidates"))
            losses.append(loss)
        return {candidates.LOSSES: np.array(losses), candidates.COUNT: np.array([predictions])}

    def _loss(self, space: _Workspace, max_examples: int, rng: np.random.Generator) -> tuple[float, int]:
        size = space.config.training.batch_size
        model, stop = space.part.model, self._deadline
        return validation_loss(model, space.task, space.dataset, size, max_examples, self._device, rng, stop)

    def _workspace_for(self, request: RoundRequest) -> tuple[_Workspace, SumRules | None]:
        """Return the warm workspace of the request's configuration, or make it; and what the sum goes by."""
        if self._workspace is not None and self._workspace.config_json == request.config_json:
            space = self._workspace
            rules = self._rules(space.config, request)
        else:
            self._workspace = None
            config = run_config_from_json(request.config_json).with_pretrained(self._pretrained, "--pretrained")
            tier = self._policy.tier(config)  # before the model is built and the text is touched
            rules = self._rules(config, request)
            self._workspace = space = self._make_workspace(request.config_json, config, tier)
        num_rings = _num_rings(space, request)
        if num_rings != space.part.num_rings:
            part = Part.of(space.config, space.rings, num_rings, self._device)
            self._workspace = space = replace(space, part=part)
        if request.config_hash != space.config_hash:
            got = request.config_hash[:12]
            raise WireError(f"config_hash: must be {space.config_hash[:12]} as of the configuration, got {got}")
        return space, rules

    def _make_workspace(self, config_json: str, config: RunConfig, tier: int) -> _Workspace:
        task = config.build_task()
        rows = self._rows(config)
        dataset = task.prepare(rows)
        rings = config.build_rings()
        part = Part.of(config, rings, 1, self._device)  # the server's weights replace what is trained
        layout = part.layout if rings is None else whole_layout(config)
        return _Workspace(config_json, config.hash, config, task, dataset, layout, rings, tier, part, len(rows))


def _state_key(request: RoundRequest) -> StateKey:
    return StateKey(request.run_id, request.config_hash)


def _num_rings(space: _Workspace, request: RoundRequest) -> int:
    """Return how many rings the request lets this owner's tier train."""
    expected, got = space.config.max_rings, len(request.rings_by_tier)
    if got != expected:
        raise WireError(f"rings_by_tier: must have {expected} numbers, one for each width, got {got}")
    return request.rings_by_tier[space.tier - 1]
