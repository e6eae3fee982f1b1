"""Generation finds what the model says: the best token, one of the k best, or the best text of all.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agfl_models import AutoGenModel
from agfl_models.errors import ConfigError
from agfl_models.layers.layer import Memory
from agfl_models.model.generation import GenerationConfig, generate, stream
from agfl_models.model.heads import LanguageModelHead
from agfl_models.tokenizers.tokenizer import Tokenizer
from agfl_models.validation import validate

PROMPT = [1, 5, 3]
PROMPTS = [PROMPT, [7], [2, 2, 9, 4, 4, 4, 11], [1, 5], [19, 0, 3, 3]]
EOS = 0
LAYERS: list[dict[str, Any]] = [
    {"type": "attention"},
    {"type": "rnn", "cell": "mingru"},
    {"type": "rnn", "cell": "gated_delta"},
    {"type": "rnn", "cell": "lstm"},
    {"type": "ff"},
]
ENCODER_DECODER: dict[str, Any] = {
    "family": "encoder_decoder",
    "encoder": {"layers": [{"type": "rnn", "cell": "gated_delta"}, {"type": "attention"}]},
    "layers": [*LAYERS, {"type": "attention", "cross": True}],
}
FAMILIES: dict[str, dict[str, Any]] = {"decoder": {"layers": LAYERS}, "encoder_decoder": ENCODER_DECODER}
BEAMS = {"num_beams": 4}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "top_k": 7},
    "beam search": BEAMS,
    "beam search without repeats": BEAMS | {"no_repeat_ngram": 2, "length_penalty": 0.6},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def make_model(vocab_size: int = 20, seed: int = 0, family: str = "decoder") -> AutoGenModel:
    """A model whose logits differ by much more than rounding does; an untrained one's are all but equal."""
    sizes = {"vocab_size": vocab_size, "dim": 16, "head": {"type": "language_model", "tied": False}}
    model = AutoGenModel(sizes | FAMILIES[family], seed=seed)
    assert isinstance(model.head, LanguageModelHead)
    assert model.head.projection is not None
    nn.init.normal_(model.head.projection.weight, std=0.4, generator=torch.Generator().manual_seed(seed))
    return model.double()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> AutoGenModel:
    return make_model(family=request.param)


def config_of(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 12} | settings)


def decode(
    model: AutoGenModel, prompts: list[list[int]], config: GenerationConfig, eos_id: int = EOS, seed: int = 0
) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return generate(model, prompts, config, eos_id=eos_id, memory=memory_of(model, prompts), generator=generator)


def draw(model: AutoGenModel, seed: int = 0, eos_id: int = EOS, **settings: Any) -> list[int]:
    return decode(model, [PROMPT], config_of(**settings), eos_id, seed)[0]


def source_of(model: AutoGenModel, prompt: Sequence[int]) -> list[int]:
    """Return what an encoder-decoder reads before it continues the prompt: something else for each."""
    assert model.config.vocab_size is not None
    return [(7 * token_id + 3) % model.config.vocab_size for token_id in [*prompt, 1, *prompt]]


def memory_of(model: AutoGenModel, prompts: Sequence[Sequence[int]]) -> Memory | None:
    """Return the memory of all sources, padded to the same length."""
    if model.encoder is None:
        return None
    sources = [torch.tensor(source_of(model, prompt)) for prompt in prompts]
    ids_BS = nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=1)
    mask_BS = nn.utils.rnn.pad_sequence([torch.ones_like(ids, dtype=torch.bool) for ids in sources], batch_first=True)
    with torch.no_grad():
        return model.encode(ids_BS, mask_BS)


def log_probs_after(model: AutoGenModel, prompt: Sequence[int], *new: Sequence[int]) -> Tensor:
    """Without a state: the prompt with each of the new texts, equally long, runs through `forward` as a whole."""
    return whole_log_probs(model, prompt, *new)[:, -1]


def whole_log_probs(model: AutoGenModel, prompt: Sequence[int], *new: Sequence[int]) -> Tensor:
    ids_BT = torch.tensor([[*prompt, *ids] for ids in new])
    source = None if model.encoder is None else torch.tensor([source_of(model, prompt)] * len(new))
    with torch.no_grad():
        log_probs_BTV: Tensor = model(ids_BT, source=source).log_softmax(dim=-1)
    return log_probs_BTV


def score(log_prob: float, length: int, alpha: float) -> float:
    """Equation 14 of Wu et al. 2016, without the coverage penalty."""
    penalty: float = (5 + length) ** alpha / (5 + 1) ** alpha
    return log_prob / penalty


def test_greedy_is_the_argmax_of_forward(model: AutoGenModel) -> None:
    ids: list[int] = []
    for token_id in draw(model, eos_id=99):
        assert token_id == int(log_probs_after(model, PROMPT, ids)[0].argmax())
        ids.append(token_id)
    assert len(ids) == 12
    assert len(set(ids)) > 2


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(10))
def test_a_wide_beam_finds_the_best_of_all_texts(seed: int, alpha: float) -> None:
    model, length = make_model(4, seed, family=["decoder", "encoder_decoder"][seed % 2]), 4
    eos_id = int(log_probs_after(model, [1, 2], [])[0].argmin())  # so that the best text is not always empty
    log_probs = all_log_probs(model, [1, 2], length, eos_id)
    config = config_of(max_new_tokens=length, num_beams=4**length, length_penalty=alpha)
    best = max(log_probs, key=lambda ids: score(log_probs[ids], len(ids) + 1, alpha))
    assert decode(model, [[1, 2]], config, eos_id) == [list(best)]


def all_log_probs(model: AutoGenModel, prompt: list[int], length: int, eos_id: int) -> dict[tuple[int, ...], float]:
    """Return the log probability of every text of four ids that ends within `length`, its end token counted."""
    found = {}
    for n in range(length):
        texts = [(*ids, eos_id) for ids in itertools.product({0, 1, 2, 3} - {eos_id}, repeat=n)]
        log_probs_BTV = whole_log_probs(model, prompt, *texts)[:, len(prompt) - 1 : -1]
        said_BT = log_probs_BTV.gather(2, torch.tensor(texts).unsqueeze(2)).squeeze(2)
        found.update({text[:-1]: log_prob for text, log_prob in zip(texts, said_BT.sum(1).tolist(), strict=True)})
    return found


@pytest.mark.parametrize("settings", [{}, {"length_penalty": 0.0}, {"no_repeat_ngram": 2}, {"length_penalty": 3.0}])
@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_beam_search_is_itself_without_a_state_and_without_an_early_stop(
    model: AutoGenModel, settings: dict[str, Any], num_beams: int
) -> None:
    config = config_of(num_beams=num_beams, **settings)
    for eos_id, prompt in enumerate(PROMPTS[1:3]):
        want = plain_beam_search(model, prompt, config, eos_id)
        assert decode(model, [prompt], config, eos_id) == [want]


def plain_beam_search(model: AutoGenModel, prompt: list[int], config: GenerationConfig, eos_id: int) -> list[int]:
    """The textbook's: extend all, keep the best, set aside those that end; on to the last position."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for _ in range(config.max_new_tokens):
        log_probs_BV = log_probs_after(model, prompt, *(ids for _, ids in running)) if running else ()
        extended = [
            (log_prob + float(more), [*ids, token_id])
            for (log_prob, ids), row_V in zip(running, log_probs_BV, strict=True)
            for token_id, more in enumerate(row_V)
            if not has_repeat([*ids, token_id], config.no_repeat_ngram)
        ]
        kept = sorted(extended, reverse=True)[: config.num_beams]
        ended = [(log_prob, ids) for log_prob, ids in kept if ids[-1] == eos_id]
        finished += [(score(log_prob, len(ids), config.length_penalty), ids[:-1]) for log_prob, ids in ended]
        running = [item for item in kept if item not in ended]
    return max(finished or running)[1]


def test_the_score_is_equation_14() -> None:
    assert config_of(length_penalty=0.6).score(-3.0, 10) == pytest.approx(score(-3.0, 10, 0.6))


def has_repeat(ids: Sequence[int], n: int) -> bool:
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] if n else []
    return len(set(ngrams)) < len(ngrams)


def test_a_search_ends_when_no_hypothesis_can_win_any_more(model: AutoGenModel) -> None:
    rows = []
    for alpha in (0.0, 0.6, 1.0, 3.0):
        config = config_of(max_new_tokens=60, num_beams=4, length_penalty=alpha)
        rows.append(count_rows(model, partial(decode, model, [PROMPT], config, eos_id=EOS)))
    assert rows[0] < 4 * 5  # a text becomes less probable with every token,
    assert rows[0] < rows[1] < rows[2] < rows[3]  # but the longer it may be, the more it may still win
    assert rows[3] > 4 * 55


def count_rows(model: AutoGenModel, act: Callable[[], object]) -> int:
    """Return how many rows `act` sends through the model, over all steps."""
    rows = 0
    step = model.step

    def counted(x: Tensor, state: Any) -> Any:
        nonlocal rows
        rows += len(x)
        return step(x, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "step", counted)
        act()
    return rows


@each_way
def test_a_batch_is_its_prompts_one_by_one(model: AutoGenModel, way: dict[str, Any]) -> None:
    config = config_of(**way)
    for eos_id in (0, 4):
        together = decode(model, PROMPTS, config, eos_id)
        generator, alone = torch.Generator().manual_seed(0), []
        for prompt in PROMPTS:
            memory = memory_of(model, [prompt])
            alone += generate(model, [prompt], config, eos_id=eos_id, memory=memory, generator=generator)
        assert together == alone
    assert len({len(ids) for ids in together}) > 1


def test_a_batch_may_be_empty() -> None:
    assert generate(make_model(), [], config_of(), eos_id=EOS) == []


@each_way
def test_streaming_is_generating(model: AutoGenModel, way: dict[str, Any]) -> None:
    memory, generator = memory_of(model, [PROMPT]), torch.Generator().manual_seed(0)
    streamed = stream(model, PROMPT, config_of(**way), eos_id=EOS, memory=memory, generator=generator)
    assert list(streamed) == draw(model, **way)


def test_streaming_yields_each_id_before_the_next_step(model: AutoGenModel) -> None:
    def first() -> None:
        next(stream(model, PROMPT, config_of(), eos_id=99, memory=memory_of(model, [PROMPT])))

    assert count_rows(model, first) == len(PROMPT)


def test_rows_cost_nothing_once_they_are_finished(model: AutoGenModel) -> None:
    alone = decode(model, PROMPTS, config_of(), eos_id=4)
    # The last id of a prompt brings the first new one; an end token takes a step as an id does.
    steps = [len(p) - 1 + min(len(ids) + 1, 12) for p, ids in zip(PROMPTS, alone, strict=True)]
    assert count_rows(model, partial(decode, model, PROMPTS, config_of(), eos_id=4)) == sum(steps)


@given(
    n=st.integers(1, 4),
    num_beams=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_no_ngram_comes_twice(n: int, num_beams: int, temperature: float, prompt: list[int], seed: int) -> None:
    model = make_model(vocab_size=6, seed=seed)
    config = config_of(
        max_new_tokens=25, no_repeat_ngram=n, num_beams=1 if temperature else num_beams, temperature=temperature
    )
    (ids,) = decode(model, [prompt], config, eos_id=5, seed=seed)
    assert not has_repeat(ids, n)


def test_an_unblocked_text_repeats_itself(model: AutoGenModel) -> None:
    assert has_repeat(draw(model, 0, 99, max_new_tokens=40), 2)
    assert has_repeat(draw(model, 0, 99, max_new_tokens=40, **BEAMS), 2)


def test_a_seed_fixes_the_text_and_the_global_generator_is_left_alone(model: AutoGenModel) -> None:
    before = torch.get_rng_state()
    assert draw(model, seed=1, temperature=1.0) == draw(model, seed=1, temperature=1.0)
    assert draw(model, seed=1, temperature=1.0) != draw(model, seed=2, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_one_draws(model: AutoGenModel) -> None:
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        memory = memory_of(model, [PROMPT])
        texts.append(generate(model, [PROMPT], config_of(temperature=1.0), eos_id=EOS, memory=memory))
    assert texts[0] == texts[1] != texts[2]


def test_top_k_draws_among_the_k_best(model: AutoGenModel) -> None:
    best = set(log_probs_after(model, PROMPT, [])[0].topk(3).indices.tolist())
    drawn = decode(model, [PROMPT] * 60, config_of(max_new_tokens=1, top_k=3, temperature=2.0), eos_id=99)
    assert {ids[0] for ids in drawn} == best
    assert draw(model, top_k=1, temperature=1.0) == draw(model, top_k=5) == draw(model)
    assert draw(model, top_k=99, temperature=1.0) == draw(model, temperature=1.0)


def test_draws_follow_the_probabilities(model: AutoGenModel) -> None:
    probabilities = (log_probs_after(model, PROMPT, [])[0] / 1.5).softmax(-1)
    drawn = decode(model, [PROMPT] * 2000, config_of(max_new_tokens=1, temperature=1.5), eos_id=99)
    frequencies = torch.bincount(torch.tensor(drawn).flatten(), minlength=20) / 2000
    assert float((frequencies - probabilities).abs().max()) < 0.04


def test_a_tiny_temperature_is_greedy(model: AutoGenModel) -> None:
    assert draw(model, temperature=1e-320) == draw(model)


@pytest.mark.parametrize("way", [{}, {"num_beams": 1, "length_penalty": 0.3}])
def test_a_text_ends_before_the_end_token(model: AutoGenModel, way: dict[str, Any]) -> None:
    full = draw(model, 0, 99, **way)
    for end in set(full):
        assert draw(model, 0, end, **way) == full[: full.index(end)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_that_are_no_numbers_end_the_text(family: str) -> None:
    model = make_model(family=family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    for way in WAYS.values():
        assert decode(model, PROMPTS, config_of(**way)) == [[]] * len(PROMPTS)


def test_what_is_streamed_is_complete_utf8() -> None:
    tokenizer = Tokenizer()
    text = "Grüße, 世界 🎉"
    model = Echo([*tokenizer.encode(text), tokenizer.eos_id], tokenizer.vocab_size)
    ids = stream(model, [tokenizer.bos_id], config_of(max_new_tokens=99), eos_id=tokenizer.eos_id)
    pieces = list(tokenizer.decode_stream(ids))
    assert pieces == list(text)
    cut = stream(model, [tokenizer.bos_id], config_of(max_new_tokens=3), eos_id=tokenizer.eos_id)
    assert list(tokenizer.decode_stream(cut)) == ["G", "r", "\ufffd"]


class Echo(AutoGenModel):
    """Says the given ids, whatever it reads; its state is the number of steps."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        super().__init__({"vocab_size": vocab_size, "dim": 2, "layers": [{"type": "ff"}]})
        self.ids = ids

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> tuple[tuple[Tensor, ...], ...]:
        return ((torch.zeros(batch_size, dtype=torch.long),),)

    def step(self, x: Tensor, state: tuple[tuple[Tensor, ...], ...]) -> Any:
        logits_BV = torch.zeros(len(x), 259)
        logits_BV[torch.arange(len(x)), torch.tensor(self.ids)[state[0][0]]] = 9.0
        return logits_BV, ((state[0][0] + 1,),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "max_new_tokens: required but missing"),
        ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than 0, got 0"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0, got -1"),
        ({"temperature": 0.5, "num_beams": 4}, "num_beams: must be 1 to draw with temperature or top_k, got 4"),
        ({"top_k": 5, "num_beams": 4}, "num_beams: must be 1 to draw with temperature or top_k, got 4"),
        ({"length_penalty": 99}, "length_penalty: Input should be less than or equal to 10, got 99"),
        ({"length_penalty": -0.5}, "length_penalty: Input should be greater than or equal to 0, got -0.5"),
    ],
)
def test_refusals_name_field_rule_and_value(settings: dict[str, Any], message: str) -> None:
    given_settings = settings and {"max_new_tokens": 5} | settings
    with pytest.raises(ConfigError) as error:
        validate(GenerationConfig, given_settings, "generation")
    assert error.value.sentence == f"generation: {message}"
