"""The slate: the whole architectures that race, all made from the user's own model by replacing its mixers.

A mixer moves information between positions: self-attention, a recurrent layer, or any other registered layer that says
so. Cross-attention stays, and so do
feed-forward layers but for their hidden width, which is scaled so that every variant has the parameters of that model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from math import prod
from typing import Any, TypeAlias

from pydantic import ValidationError

from agfl_models.errors import ConfigError
from agfl_models.layers import LayerConfig
from agfl_models.layers.feed_forward import FFConfig
from agfl_models.layers.layer import LAYERS
from agfl_models.model.config import ModelConfig
from agfl_models.model.stack_config import written_out
from agfl_models.validation import nearest, validate
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.config.search_config import MAX_CANDIDATES, SearchConfig

CONFIGURED = "configured"
PARAMETER_TOLERANCE = 0.02
Stated: TypeAlias = dict[str, Any]  # a layer as a person writes it
# Kinds of layers that take the place of a stack's mixers, in turn. Those of other mixers follow from the registry.
_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "mingru": ("mingru",),
    "gru": ("gru",),
    "gated_delta": ("gated_delta",),
    "ff": ("ff",),
    "attention+mingru": ("mingru", "attention"),
    "attention+gru": ("gru", "attention", "gru", "gru"),
}


def variants() -> dict[str, tuple[str, ...]]:
    """Return by name what takes the place of a stack's mixers: also each registered mixer that needs no settings."""
    kinds = {kind for turn in _VARIANTS.values() for kind in turn}
    return {**_VARIANTS, **{kind: (kind,) for kind in _other_mixers() if kind not in kinds}}


def _other_mixers() -> Iterator[str]:
    for name in LAYERS.names:
        try:
            layer = LAYERS.validate({"type": name})
        except ValidationError:
            continue  # it has settings that only a person can choose
        if layer.is_mixer and layer.kind == name:
            yield name


@dataclass(frozen=True)
class Candidate:
    """An architecture, and the ordinary run that trains it; FLOPs as `ModelConfig.flops_per_token` counts them."""

    name: str
    config: RunConfig
    num_parameters: int
    flops_per_token: int


@dataclass(frozen=True)
class Slate:
    """Who races; skipped: name -> why it does not; reference_flops: a token's in the configured model."""

    candidates: tuple[Candidate, ...]
    skipped: Mapping[str, str]
    reference_flops: int


def make_slate(config: RunConfig) -> Slate:
    """Return the candidates of a run with `search`, in the order in which they take turns.

    Raises:
        ConfigError: an unknown name, too many candidates, or fewer than two that can be built and differ.
    """
    assert config.search is not None
    assert isinstance(config.model, ModelConfig), "`RunConfig` has checked it"
    models = _Models(config.model)
    names = _chosen_names(config.search, [*models.own, *variants()])
    found: dict[str, Candidate] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            candidate = _candidate(name, config, models.make(name))
        except ConfigError as error:
            skipped[name] = error.sentence.removeprefix(f"candidate {name}: ")
            continue
        twin = next((other for other, one in found.items() if _is_same(one, candidate)), None)
        if twin is not None and name == CONFIGURED:  # this name it is to have, since the race knows it by that
            skipped[twin] = f"is the same as {name}"
            del found[twin]
        elif twin is not None:
            skipped[name] = f"is the same as {twin}"
            continue
        found[name] = candidate
    if len(found) < 2:
        reasons = "".join(f"; {name} {reason}" for name, reason in skipped.items())
        raise ConfigError(
            "AGFL-CONFIG-188", f"search.slate: must leave two candidates, got {', '.join(found) or 'none'}{reasons}"
        )
    reference = config.model.flops_per_token(config.task.context_length)
    return Slate(tuple(found.values()), skipped, reference)


def _chosen_names(search: SearchConfig, known: Sequence[str]) -> Sequence[str]:
    names = known if search.slate == "auto" else search.slate
    for name in names:
        if name not in known:
            raise ConfigError(
                "AGFL-CONFIG-189", f"search.slate: unknown candidate {name!r}{nearest(name, list(known))}"
            )
    if len(names) > MAX_CANDIDATES:
        raise ConfigError(
            "AGFL-CONFIG-190", f"search.slate: must be at most {MAX_CANDIDATES} candidates, got {len(names)}"
        )
    return names


def _candidate(name: str, config: RunConfig, model: Stated) -> Candidate:
    content = config.model_dump(mode="json", exclude_unset=True, exclude={"search"})
    own = validate(RunConfig, {**content, "model": model}, f"candidate {name}")
    context_length = config.task.context_length
    return Candidate(name, own, own.model.num_parameters(), own.model.flops_per_token(context_length))


def _is_same(one: Candidate, other: Candidate) -> bool:
    return one.config.model.resolve() == other.config.model.resolve()


class _Models:
    """Makes models by name, each as a person would write it.

    own: name -> alternative of each choice; the first of each, or a model without choices, is the configured one.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self.own = {_own_name(picks): picks for picks in _products(model.choices)}

    def make(self, name: str) -> Stated:
        """Return a model; raises ConfigError if it cannot have the parameters of the configured one."""
        if name == CONFIGURED and not self._model.choices:
            return self._model.model_dump(mode="json", exclude_unset=True)
        if name in self.own:
            return self._with_stacks([list(map(_stated, stack)) for stack in self._stacks(self.own[name])])
        changed = [_with_mixers(stack, variants()[name]) for stack in self._stacks({})]
        return self._with_stacks(self._scaled(changed))

    def _stacks(self, picks: Mapping[str, int]) -> list[list[LayerConfig]]:
        """Return the layers of the decoder, and of the encoder if there are two stacks."""
        items = [self._model.layers, *([self._model.encoder.layers] if self._model.encoder else [])]
        return [list(written_out(stack, picks)) for stack in items]

    def _with_stacks(self, stacks: Sequence[Sequence[Stated]]) -> Stated:
        content = self._model.model_dump(mode="json", exclude_unset=True, exclude={"layers", "encoder"})
        layers, *encoder = map(_grouped, stacks)
        return {**content, **({"encoder": {"layers": encoder[0]}} if encoder else {}), "layers": layers}

    def _scaled(self, stacks: Sequence[Sequence[Stated]]) -> Sequence[Sequence[Stated]]:
        """Return the stacks with the hidden width of each ff layer in the same proportion, so that parameters match."""
        wanted = self._model.num_parameters()
        raw = validate(ModelConfig, self._with_stacks(stacks), "model").resolve()
        resolved = [raw.layers, *([raw.encoder.layers] if raw.encoder else [])]
        in_ffs = sum(layer.num_parameters() for stack in resolved for layer in stack if isinstance(layer, FFConfig))
        ratio = (wanted - (raw.num_parameters() - in_ffs)) / in_ffs if in_ffs else 1.0
        scaled = [
            [_scaled_ff(layer, one, ratio) for layer, one in zip(stack, ones, strict=True)]
            for stack, ones in zip(stacks, resolved, strict=True)
        ]
        got = validate(ModelConfig, self._with_stacks(scaled), "model").num_parameters()
        if abs(got / wanted - 1) > PARAMETER_TOLERANCE:
            rule = f"must have {wanted:,} parameters within {PARAMETER_TOLERANCE:.0%} by the width of its ff layers"
            raise ConfigError("AGFL-CONFIG-191", f"model: {rule}, got {got:,}")
        return scaled


def _products(choices: Mapping[str, int]) -> Iterator[dict[str, int]]:
    if prod(choices.values()) > MAX_CANDIDATES:
        counts = ", ".join(f"{count} of {name}" for name, count in choices.items())
        rule = f"choices must make at most {MAX_CANDIDATES} candidates"
        raise ConfigError("AGFL-CONFIG-192", f"model.layers: {rule}, got {prod(choices.values())} ({counts})")
    for picks in product(*(range(count) for count in choices.values())):
        yield dict(zip(choices, picks, strict=True))


def _own_name(picks: Mapping[str, int]) -> str:
    """Return "mixer2+tail1" for the second alternative of `mixer` and the first of `tail`; they count from 1."""
    return "+".join(f"{name}{pick + 1}" for name, pick in picks.items()) if any(picks.values()) else CONFIGURED


def _with_mixers(stack: Sequence[LayerConfig], kinds: Sequence[str]) -> list[Stated]:
    turns = cycle(kinds)
    return [_of_kind(next(turns), stack) if layer.is_mixer else _stated(layer) for layer in stack]


def _of_kind(kind: str, stack: Sequence[LayerConfig]) -> Stated:
    """Return a layer of a kind: the first one that the user's own stack has, or one with every default."""
    default: Stated = {"type": kind} if kind in LAYERS.names else {"type": "rnn", "cell": kind}
    return next((_stated(layer) for layer in stack if layer.kind == kind and not layer.needs_memory), default)


def _stated(layer: LayerConfig) -> Stated:
    return {"type": layer.type, **layer.model_dump(mode="json", exclude_unset=True)}


def _scaled_ff(layer: Stated, resolved: LayerConfig, ratio: float) -> Stated:
    if not isinstance(resolved, FFConfig):
        return layer
    assert resolved.hidden_dim is not None
    return {**layer, "hidden_dim": max(1, round(ratio * resolved.hidden_dim))}


def _grouped(layers: Sequence[Stated]) -> list[Stated]:
    """Return the layers as the shortest repeat group that they are, if they are one."""
    for period in range(1, len(layers) // 2 + 1):
        count, rest = divmod(len(layers), period)
        if not rest and list(layers) == list(layers[:period]) * count:
            return [{"repeat": count, "layers": list(layers[:period])}]
    return list(layers)
