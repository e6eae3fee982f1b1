"""One data owner's node: what it keeps between messages, and what it does with each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict

from agfl_client.approval.announced import Announced
from agfl_client.approval.approval_files import Status
from agfl_client.approval.approvals import Approvals
from agfl_client.approval.text_check import TextCheck, sigma_of
from agfl_client.own_screen import round_shown
from agfl_client.parallel.choice import Parallel
from agfl_client.parallel.devices import Devices
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.saved_model import SavedModel
from agfl_client.secure.secure_member import SecureMember, SumRules
from agfl_client.secure.sum_rules import approved_plan, sum_rules
from agfl_client.training import pair_counts
from agfl_client.training.client_state import ClientStates, Memory, StateKey, last_used
from agfl_client.training.deadline import Deadline
from agfl_client.training.device import AUTO, choose_device
from agfl_client.training.local_round import LocalRound
from agfl_client.training.part import SPARE_PARTS
from agfl_client.training.workspace import Workspace
from agfl_models.errors import WireError
from agfl_models.examples import Row, check_readable
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.machine import make_room
from agfl_models.tasks.dataset import split_rows
from agfl_models.version import VERSION
from agfl_protocol.local_trainer import LocalTrainer
from agfl_protocol.messages.arrays import check_arrays
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
from agfl_protocol.methods.elastic import rings_by_tier
from agfl_protocol.methods.method import NO_STATES, Method, Round
from agfl_protocol.methods.owner_states.owner_state import OwnerState
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.plans.client_plan import ClientPlan, client_plan_from_json, model_of
from agfl_protocol.plans.plan import plan_from_json
from agfl_protocol.randomness import SECRET_BYTES, OwnerRandomness
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec


class Node:
    """A node keeps its data and model warm from message to message; whoever builds the ClientApp holds it.

    name: the owner's NAME; data: the owner's file or folder, read when the first round says for which task; columns:
    what that task's columns are called there; device: "auto" or a PyTorch device; num_threads: PyTorch threads of
    this node; parallel: what trains together, None for `device` alone; pretrained: the owner's copy of a pretrained
    model, for runs that start from one; policy: what the owner accepts; member: the node's part in secure sums, None
    where it has none; folder: this node's own, where it keeps state from round to round for methods that need it;
    randomness: what it draws with, None for a secret of this process; approvals: the plans that the owner approved,
    None where its policy approves all of them; tell: takes a line for the owner's own screen; saved: where the trained
    model is kept, None for nowhere; trainer: what trains in place of the shipped loop where a run names none.

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
        parallel: Parallel | None = None,
        columns: Mapping[str, str] | None = None,
        pretrained: Path | None = None,
        policy: Policy | None = None,
        member: SecureMember | None = None,
        folder: Path | None = None,
        randomness: OwnerRandomness | None = None,
        approvals: Approvals | None = None,
        tell: Callable[[str], None] = lambda line: None,
        saved: SavedModel | None = None,
        trainer: LocalTrainer | None = None,
    ) -> None:
        self.name = name
        self.finished = False
        self._policy = policy or Policy()
        self.announced = Announced(self._policy, pretrained, keeps_model=saved is not None)
        self._saved, self._trainer = saved, trainer
        self._member = member
        check_readable(data)
        if pretrained is not None:
            PretrainedFolder(pretrained)
        self._data = data
        self._columns = columns or {}
        self._pretrained = pretrained
        parallel = parallel or Parallel("single", (choose_device(device),))
        self._devices = Devices(parallel, num_threads, self._policy.plugins, pretrained)
        self._device = self._devices.own
        self._num_threads = num_threads
        self._states = ClientStates(folder) if folder is not None else None
        self._randomness = randomness or OwnerRandomness(secrets.token_bytes(SECRET_BYTES))
        self._approvals = approvals
        self._tell = tell
        self._workspace: Workspace | None = None
        self._words: pair_counts.CutWords | None = None
        self._text_check = TextCheck()

    def identify(self) -> IdentifyReply:
        """Say who this is."""
        return IdentifyReply(self.name, VERSION)

    def propose(self, request: ProposeRequest) -> ProposeReply:
        """Say whether the owner approves a plan.

        Raises:
            ConfigError, PolicyViolation, PlanViolation: the plan is none, or not what this owner permits.
        """
        plan = plan_from_json(request.plan_json)
        config = plan.client_plan.with_pretrained(self._pretrained, "--pretrained")
        tier = self._tier(config)
        if plan.groups or self._member is not None:
            plan.check_roster(self.member.roster_hash, self.member.names)
            plan.check_groups(self.member.names, self.member.min_cohort, self.name)
        if self._approvals is None:
            self._policy.check_unasked()
            return ProposeReply(Answer.APPROVED, self._saved is not None)
        status = self._approvals.propose(plan)
        if status is Status.APPROVED and self._workspace is None:
            # Now, while nobody waits for this owner in a sum; what was read stays warm for round 1.
            is_first = config.tokenizer.is_trained and not plan.candidates
            read = (lambda: self._make_workspace(plan.client_text, config, tier)) if is_first else None
            self._workspace = self._text_check.run(plan.hash, read or (lambda: self._rows(config)))
        try:
            # A trainer of somebody else's sees no text before its run is approved.
            may_train = config.training.trainer is None or status is Status.APPROVED
            if self._policy.runs != "all" and may_train and self._approvals.sigma(plan.run_id) is None:
                torch.set_num_threads(self._num_threads)
                deadline = Deadline.after(self._policy.max_seconds_per_round)
                sigma = sigma_of(config, self._rows, self._device, deadline)
                status = status if sigma is None else self._approvals.note_sigma(plan.run_id, sigma)
        finally:
            self._approvals.announce()  # not before: whoever answers at once is to see what was measured
        return ProposeReply(Answer(status.value), self._saved is not None)

    @property
    def member(self) -> SecureMember:
        """This node's part in secure sums; raises PolicyViolation where it has none."""
        if self._member is None:
            raise PolicyViolation(
                "AGFL-POLICY-009",
                "aggregation.type: secure needs a node that was started with the owners' roster and that keeps its "
                "keys between messages, which Flower's Ray runtime does not; this node has none",
            )
        return self._member

    @property
    def states(self) -> ClientStates:
        """What this node keeps from round to round; raises PolicyViolation where it has no folder for that."""
        if self._states is None:
            raise PolicyViolation(
                "AGFL-POLICY-010",
                "aggregation.server_optimizer: scaffold and feddyn need a node that was started with a folder of its "
                "own, where it keeps state from round to round; this node has none",
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
        deadline, started = Deadline.after(self._policy.max_seconds_per_round), time.monotonic()
        space, rules = self._workspace_for(request)
        round_ = _round(space, request)
        methods, codec = methods_of(round_), _codec(space, request, round_)
        self._words = None  # the tokenizer is there
        memory = self._recall(space, request, methods) if request.train else None
        trainer = (self._trainer or self._devices.trainer(space, deadline)) if request.train else None
        local = LocalRound(space, request, lambda purpose: self._draw(request, purpose), deadline, trainer)
        size = request.model.size
        make_room(size)
        update, states = local.run(methods, NO_STATES if memory is None else memory.states)
        del local, trainer
        request = request.without_arrays(is_hashed=rules is not None)  # a model or more
        make_room(size)
        rng = self._draw(request, "rounding")
        rotated = codec.rotate(update, rng, states)
        metrics = update.metrics
        del update, states, round_, methods  # a model, and with some methods the one that was broadcast
        lanes = codec.write(rotated, rng)
        del rotated  # a model
        self._say_round(space, request, metrics, time.monotonic() - started)
        if memory is not None:
            sent = codec.decode_mean(codec.decode_sum(lanes))[0].delta
            self.states.keep(_state_key(space, request), request.exchange, memory, sent)
        self._workspace = space.end()
        return self._answer(request, rules, lanes, space.part.num_rings)

    def _say_round(self, space: Workspace, request: RoundRequest, metrics: Mapping[str, float], seconds: float) -> None:
        """Tell the owner, and nobody else, what its node did."""
        predictions = metrics.get(space.task.train_sums[1], 0.0)
        loss = metrics[space.task.train_sums[0]] / predictions if request.train and predictions else None
        rounds, rows = space.plan.num_rounds, space.num_rows
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
        plan = pair_counts.check_request(request)
        self._policy.tier(plan)
        rules = self._rules(plan, request)
        self._words = pair_counts.cut(self._words, request, plan, lambda: self._rows(plan))
        counts = self._words.words.pairs(request.first_new)
        return self._answer(request, rules, CountCodec.of(request).encode(counts))

    def keep_model(self, request: ModelRequest) -> None:
        """Save the trained model of a run that the owner approved.

        Raises:
            PolicyViolation, PlanViolation: the owner keeps none, or did not approve such a run.
            WireError, CheckpointError: as `SavedModel.check` and `SavedModel.write`.
        """
        if self._saved is None or self._approvals is None:
            raise PolicyViolation(
                "AGFL-POLICY-011", "model: this owner was not started with --save-model, so it keeps none"
            )
        plan = approved_plan(self._approvals.approved(request.run_id), request.run_id, request.plan_hash)
        config = client_plan_from_json(request.client_plan).with_pretrained(self._pretrained, "--pretrained")
        self._policy.tier(config)
        plan.covers(config, None if self._member is None else self._member.ledger.merges(request.run_id))
        self._saved.check(request, config)
        self._let_go()  # the memory is needed
        self._saved.write(request, config)
        folder, quoted = self._saved.shown
        self._tell(f"the model after round {request.round} is in {folder}: agfl-model describe {quoted}")

    def finish(self, request: FinishRequest) -> None:
        """Note that the run is over and let go of its model."""
        self.finished = True
        self._let_go()
        if self._member is not None:
            self._member.forget()
        if self._states is not None:
            self._states.finish(request.run_id)

    def close(self) -> None:
        """End the processes that train beside this one, if there are any."""
        self._devices.close()

    def _let_go(self) -> None:
        self._workspace = self._words = None
        self._devices.forget()
        SPARE_PARTS.clear()

    def _rows(self, config: ClientPlan) -> list[Row]:
        rows, survey = config.task.read(self._data, self._columns)
        train, held_out = split_rows(rows, config.task.validation_fraction)
        self._tell(f"data for {config.task.type}: {survey.line}; {len(train):,} train, {len(held_out):,} held out")
        for line in survey.doubts:
            self._tell(line)
        return rows

    def _answered(self, request: SumRequest) -> RecordDict | None:
        """Return the reply to this very request, if the server has lost it."""
        return None if self._member is None else self._member.answered(request)

    def _rules(self, config: ClientPlan, request: SumRequest) -> SumRules | None:
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
        return RoundReply(request.client_plan_hash, request.round, request.exchange, lanes).to_record()

    def _draw(self, request: SumRequest, purpose: str) -> np.random.Generator:
        """Return the owner's randomness for one purpose in this exchange, the same each time."""
        return self._randomness.generator(request.run_id, request.exchange, purpose)

    def _recall(self, space: Workspace, request: RoundRequest, methods: tuple[Method, ...]) -> Memory | None:
        """Return the state with which this round begins, where a method has owners keep one."""
        method = next((method for method in methods if isinstance(method, OwnerState)), None)
        if method is None:
            return None
        ledger = None if self._member is None else self._member.ledger
        arrays = request.arrays[method.name]
        last, is_known = last_used(arrays, ledger, request.run_id, self.name)
        own, is_lost = self.states.recall(_state_key(space, request), last if is_known else -1, space.layout.size)
        return Memory(method, arrays, own, last, is_lost)

    def _workspace_for(self, request: RoundRequest) -> tuple[Workspace, SumRules | None]:
        """Return what belongs to a request, kept from last time if it can be, and what its sum goes by."""
        space = self._workspace
        if space is not None and space.text == request.client_plan:
            _check_vectors(space.plan, request, space.layout.size)
            rules = self._rules(space.plan, request)
        else:
            plan = client_plan_from_json(request.client_plan).with_pretrained(self._pretrained, "--pretrained")
            tier = self._tier(plan)  # before the model is built and the text is touched
            _check_vectors(plan, request, plan.model.num_parameters())
            rules = self._rules(plan, request)
            self._workspace = space = None  # not before all refusals: else a server could have it made anew each time
            space = self._make_workspace(request.client_plan, plan, tier)
        self._workspace = space = space.begin(rings_by_tier(request.arrays)[space.tier - 1])
        return space, rules

    def _tier(self, plan: ClientPlan) -> int:
        """Return `Policy.tier`; raises ConfigError as well, where the model cannot be shared as the owner chose."""
        tier = self._policy.tier(plan)
        self._devices.check(plan, tier)
        return tier

    def _make_workspace(self, text: str, plan: ClientPlan, tier: int) -> Workspace:
        return Workspace.of(text, plan, tier, self._rows, self._device)


def _state_key(space: Workspace, request: RoundRequest) -> StateKey:
    return StateKey(request.run_id, model_of(space.plan))


def _check_vectors(plan: ClientPlan, request: RoundRequest, size: int) -> None:
    """Raise WireError where the models do not fit one of `size` parameters, or arrays are not what methods say."""
    num_models, rest = divmod(request.model.size, size)
    if rest or num_models not in (1, plan.max_models if request.train else 1):
        raise WireError("AGFL-WIRE-050", f"model: must have {size} parameters as configured, got {request.model.size}")
    check_arrays(plan, request.arrays, size, train=request.train)


def _round(space: Workspace, request: RoundRequest) -> Round:
    """Return what methods are built from."""
    return Round(space.plan, request.model.size // space.layout.size, request.arrays, space.rings)


def _codec(space: Workspace, request: RoundRequest, round_: Round) -> UpdateCodec:
    return UpdateCodec.for_round(
        round_,
        space.task,
        space.layout,
        request.plan,
        round_number=request.round,
        train=request.train,
        evaluate=request.evaluate,
    )
