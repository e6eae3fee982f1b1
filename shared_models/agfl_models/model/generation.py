"""Decoding: continue prompts greedily, by drawing, or by beam search, one `model.step` after the other.

R rows of the running batch, V vocabulary, C candidates of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from agfl_models.bounded import MOST_FACTOR
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.layers.layer import Memory, State, at_least_float32
from agfl_models.model.sequence_model import SequenceModel
from agfl_models.validation import Config

BLOCK, MOST = 128, 1 << 14  # ids of a prompt that are read at once: whole blocks, and at most so many, for memory


class GenerationConfig(Config):
    """How to continue a prompt.

    Attributes:
        max_new_tokens: at most so many, the end token among them, and at most up to the model's last position.
        temperature: draw from softmax(logits / temperature); 0 takes the most probable token.
        top_k: draw among the k most probable tokens only; None for all (Fan et al. 2018, arXiv:1805.04833).
        num_beams: hypotheses that beam search keeps; 1 follows a single one.
        length_penalty: alpha in equation 14 of Wu et al. 2016, arXiv:1609.08144: 0 compares hypotheses by their
            probability, which favors short ones; more favors longer ones.
        no_repeat_ngram: no sequence of so many tokens comes twice in the new text, as in Paulus et al. 2017,
            arXiv:1705.04304, section 2.5; 0 to allow it.
    """

    # Order matters: a field is checked against those above it.
    max_new_tokens: Annotated[int, Field(gt=0, le=2**20)]
    temperature: float = Field(default=0.0, ge=0, le=MOST_FACTOR)
    top_k: PositiveInt | None = None
    num_beams: PositiveInt = 1
    length_penalty: float = Field(default=1.0, ge=0, le=10)
    no_repeat_ngram: NonNegativeInt = 0

    @field_validator("num_beams")
    @classmethod
    def _beams_are_not_drawn(cls, num_beams: int, info: ValidationInfo) -> int:
        if num_beams > 1 and (info.data.get("temperature") or info.data.get("top_k")):
            raise BrokenRule("AGFL-CONFIG-112", "must be 1 to draw with temperature or top_k")
        return num_beams

    def score(self, log_prob: float, length: int) -> float:
        """Return what hypotheses are compared by: log P divided by the length penalty."""
        penalty: float = ((5 + length) / 6) ** self.length_penalty
        return log_prob / penalty


def generate(
    model: SequenceModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    eos_id: int,
    memory: Memory | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Return the new ids of each prompt, without `eos_id`; prompts in a batch do not change each other's.

    Beam search prefers a finished hypothesis: one that was cut at `max_new_tokens` is returned if there is no other.

    Args:
        model: a model with a language-model head.
        prompts: at least one id each, for example the tokenizer's `bos_id`; their lengths may differ.
        config: how to continue them.
        eos_id: the token that ends a text.
        memory: what an encoder-decoder's `encode` made of the sources, a row for each prompt.
        generator: source of randomness, on the CPU; None for the global one. A batch draws from it what its prompts
            would draw one after the other.

    Raises:
        ConfigError: the model is an encoder, a layer sees later positions, or a prompt is longer than the model reads.
    """
    searches = [_Search(prompt, config, eos_id, generator, room(model, prompt)) for prompt in prompts]
    for _ in _steps(model, searches, config, memory):
        pass
    return [list(search.ids) for search in searches]


def stream(
    model: SequenceModel,
    prompt: Sequence[int],
    config: GenerationConfig,
    *,
    eos_id: int,
    memory: Memory | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield the ids that `generate` returns for one prompt as soon as they are known: at once, but for beam search."""
    search, shown = _Search(prompt, config, eos_id, generator, room(model, prompt)), 0
    for _ in _steps(model, [search], config, memory):
        if config.num_beams == 1 or not search.running:
            yield from search.ids[shown:]
            shown = len(search.ids)


def room(model: SequenceModel, prompt: Sequence[int]) -> float:
    """Return how many tokens can follow a prompt before the model's positions end.

    Raises:
        ConfigError: the prompt alone has more.
    """
    if len(prompt) > model.max_length:
        rule = f"must be at most {model.max_length} tokens long for this model, its beginning included"
        raise ConfigError("AGFL-CONFIG-113", f"prompt: {rule}, got {len(prompt)}")
    return model.max_length - len(prompt) + 1  # the last one is written and not read


def _steps(
    model: SequenceModel, searches: Sequence[_Search], config: GenerationConfig, memory: Memory | None
) -> Iterator[None]:
    """Yield after every step of the model, until no search is running.

    Every row reads its own prompt, whole blocks of it at a time while all have such, then one id a step, and goes on
    with its own text while others still read: all have seen equally many positions, and nothing needs padding. A search
    has one row while it reads, then one for each hypothesis, and none when it has ended.
    """
    state = model.initial_state(len(searches), memory)
    running = searches
    while blocks := min(((search.unread - 1) // BLOCK for search in searches), default=0):
        size = min(blocks * BLOCK, MOST)
        with torch.no_grad():
            state = model.read(_as_ids([search.read(size) for search in searches], model), state)
    while running:
        with torch.no_grad():
            ids = [token_id for search in running for token_id in search.inputs()]
            logits_RV, state = model.step(_as_ids(ids, model), state)
        candidates = _candidates(logits_RV, running, config)
        rows: list[int] = []
        first = 0
        for search in running:
            num_rows = len(search.running)
            rows += [first + parent for parent in search.advance(candidates[first : first + num_rows])]
            first += num_rows
        running = [search for search in running if search.running]
        if rows != list(range(first)):
            state = _select(state, torch.tensor(rows, dtype=torch.long, device=logits_RV.device))
        yield


@dataclass(frozen=True)
class _Hypothesis:
    """A continuation so far and the logarithm of its probability; an end token counts in `log_prob` only."""

    ids: tuple[int, ...] = ()
    log_prob: float = 0.0

    def repeating(self, n: int) -> set[int]:
        """Return the ids that would make the last n ids a sequence that came before; none if n is 0."""
        ids = self.ids
        starts = range(len(ids) - n + 1) if n else ()
        return {ids[i + n - 1] for i in starts if ids[i : i + n - 1] == ids[len(ids) - n + 1 :]}


class _Search:
    """The search for the continuation of one prompt; `running` are the hypotheses to be extended, best first."""

    def __init__(
        self,
        prompt: Sequence[int],
        config: GenerationConfig,
        eos_id: int,
        generator: torch.Generator | None,
        room: float,
    ) -> None:
        assert prompt, "generation starts from at least one token"
        self.running = [_Hypothesis()]
        self._prompt, self._read = prompt, 0
        self._config, self._eos_id = config, eos_id
        self._max_new = min(config.max_new_tokens, room)
        self._finished: _Hypothesis | None = None  # the best of those that ended
        self._finished_score = -math.inf
        # All of them at once, so that what another prompt draws does not depend on where this one ends.
        is_drawn = config.temperature > 0
        self._uniforms = torch.rand(config.max_new_tokens * is_drawn, dtype=torch.float64, generator=generator)

    @property
    def ids(self) -> tuple[int, ...]:
        """The best continuation that has ended, or else the best so far."""
        return (self._finished or self.running[0]).ids

    @property
    def unread(self) -> int:
        """How many ids of the prompt are still to be read."""
        return len(self._prompt) - self._read

    def read(self, size: int) -> Sequence[int]:
        """Return the next `size` ids of the prompt, and count them as read."""
        self._read += size
        return self._prompt[self._read - size : self._read]

    def inputs(self) -> list[int]:
        """Return the next id that each row reads."""
        if self._read < len(self._prompt):
            return [self._prompt[self._read]]
        return [hypothesis.ids[-1] for hypothesis in self.running]

    def uniform(self) -> float:
        """Return the random number in [0, 1) that draws the next id."""
        return float(self._uniforms[len(self.running[0].ids)])

    def advance(self, candidates: list[list[tuple[float, int]]]) -> list[int]:
        """Extend the running hypotheses by (log-probability, id); return which of them each new one continues."""
        self._read += 1
        if self._read < len(self._prompt):
            return [0]
        extensions, before, parents = self._best(candidates), self.running, []
        self.running = []
        for log_prob, parent, token_id in extensions:
            ids = before[parent].ids
            if token_id == self._eos_id:
                self._finish(_Hypothesis(ids, log_prob), len(ids) + 1)
            else:
                self.running.append(_Hypothesis((*ids, token_id), log_prob))
                parents.append(parent)
        if self._is_decided():
            self._finished = self._finished or (self.running or before)[0]
            self.running = []
        return parents if self.running else []

    def _best(self, candidates: list[list[tuple[float, int]]]) -> list[tuple[float, int, int]]:
        extensions = [
            (hypothesis.log_prob + log_prob, parent, token_id)
            for parent, (hypothesis, row) in enumerate(zip(self.running, candidates, strict=True))
            for log_prob, token_id in row
            if log_prob > -math.inf  # neither forbidden nor NaN
        ]
        return sorted(extensions, key=lambda extension: -extension[0])[: self._config.num_beams]

    def _finish(self, hypothesis: _Hypothesis, length: int) -> None:
        score = self._config.score(hypothesis.log_prob, length)
        if self._finished is None or score > self._finished_score:
            self._finished, self._finished_score = hypothesis, score

    def _is_decided(self) -> bool:
        if not self.running or len(self.running[0].ids) >= self._max_new:
            return True
        # A running hypothesis can only become less probable, and never longer than this.
        bound = self._config.score(self.running[0].log_prob, int(self._max_new))
        return self._finished is not None and bound <= self._finished_score


def _candidates(
    logits_RV: Tensor, searches: Sequence[_Search], config: GenerationConfig
) -> list[list[tuple[float, int]]]:
    """Return for each row the tokens that may come next, as (log-probability, id)."""
    log_probs_RV = at_least_float32(logits_RV).log_softmax(dim=-1)
    hypotheses = [hypothesis for search in searches for hypothesis in search.running]
    for row, hypothesis in enumerate(hypotheses):
        if forbidden := hypothesis.repeating(config.no_repeat_ngram):
            log_probs_RV[row, list(forbidden)] = -math.inf
    if config.temperature > 0:
        uniforms_R = torch.tensor([search.uniform() for search in searches], dtype=torch.float64)
        ids_RC = _draw(log_probs_RV, uniforms_R, config).unsqueeze(-1)
        best_RC = log_probs_RV.gather(-1, ids_RC)
    else:
        best_RC, ids_RC = log_probs_RV.topk(min(config.num_beams, log_probs_RV.shape[-1]), dim=-1)
    return [list(zip(*row, strict=True)) for row in zip(best_RC.tolist(), ids_RC.tolist(), strict=True)]


def _draw(log_probs_RV: Tensor, uniforms_R: Tensor, config: GenerationConfig) -> Tensor:
    """Return an id for each row, by inversion of the cumulative distribution at the uniform number."""
    scaled_RV = log_probs_RV.cpu().double()
    scaled_RV = (scaled_RV - scaled_RV.amax(dim=-1, keepdim=True)) / config.temperature
    num_tokens = scaled_RV.shape[-1]
    if config.top_k is not None and config.top_k < num_tokens:
        smallest_R1 = scaled_RV.topk(config.top_k, dim=-1).values[:, -1:]
        scaled_RV = scaled_RV.masked_fill(scaled_RV < smallest_R1, -math.inf)
    cumulative_RV = scaled_RV.softmax(dim=-1).cumsum(dim=-1)
    thresholds_R1 = uniforms_R.unsqueeze(-1) * cumulative_RV[:, -1:]
    ids_R1 = torch.searchsorted(cumulative_RV, thresholds_R1, right=True)
    return ids_R1.squeeze(-1).clamp(max=num_tokens - 1).to(log_probs_RV.device)  # past the end where logits are NaN


def _as_ids(ids: Sequence[int] | Sequence[Sequence[int]], model: SequenceModel) -> Tensor:
    return torch.tensor(ids, device=next(model.parameters()).device)


def _select(state: tuple[State, ...], rows_R: Tensor) -> tuple[State, ...]:
    return tuple(tuple(part.index_select(0, rows_R) for part in layer) for layer in state)
