"""The slate: every candidate can be built, has the parameters of the user's own model, and differs from the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agfl_models.errors import ConfigError
from agfl_models.layers.attention import AttentionConfig
from agfl_models.layers.cross_attention import CrossAttentionConfig
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import build_model
from agfl_models.model.model import AutoGenModel
from agfl_models.validation import dump_yaml, load_yaml, validate
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_server.search.slate import CONFIGURED, make_slate, variants

MakeConfig = Callable[..., RunConfig]
MIXERS = """[{type: attention, num_heads: 2}, {type: ff, hidden_dim: 64}, {type: rnn, cell: lstm}, {type: ff}]"""
DECODER = f"{{vocab_size: 259, dim: 32, layers: [{{repeat: 2, layers: {MIXERS}}}]}}"
ENCODER_DECODER = """{vocab_size: 259, dim: 32, family: encoder_decoder,
  encoder: {layers: [{type: attention, num_heads: 2}, {type: ff, hidden_dim: 192}]},
  layers: [{type: rnn, cell: mingru}, {type: attention, cross: true}, {type: ff, hidden_dim: 192}]}"""
ENCODER = """{vocab_size: 259, dim: 32, family: encoder, head: {type: span},
  layers: [{type: attention}, {type: ff, hidden_dim: 192}, {type: rnn}, {type: ff, hidden_dim: 192}]}"""
TASKS = {
    DECODER: "{type: language_modeling, sequence_length: 16}",
    ENCODER_DECODER: "{type: translation}",
    ENCODER: "{type: question_answering}",
}
CHOICE = """{vocab_size: 259, dim: 16, layers: [
  {type: choice, name: mixer, of: [[{type: rnn}], [{type: attention}, {type: rnn, cell: lstm}]]},
  {repeat: 2, layers: [{type: ff, hidden_dim: 8}, {type: choice, name: mixer, of: [[{type: rnn}], [{type: ff}]]}]}]}"""


@pytest.fixture(params=TASKS, ids=["decoder", "encoder_decoder", "encoder"])
def searching(request: pytest.FixtureRequest, run_config: MakeConfig) -> RunConfig:
    """A run that begins with a search, of each family."""
    return run_config(f"model={request.param}", f"task={TASKS[request.param]}", "search={}", "data={}")


def test_candidates_have_the_parameters_of_the_configured_model_and_can_be_built(searching: RunConfig) -> None:
    slate = make_slate(searching)
    wanted = searching.model.num_parameters()
    for candidate in slate.candidates:
        model = build_model(candidate.config.model, seed=0)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == candidate.num_parameters
        assert abs(count / wanted - 1) <= 0.02, candidate.name
    assert slate.candidates[0].name == CONFIGURED
    assert slate.candidates[0].config.model == searching.model
    assert slate.reference_flops == slate.candidates[0].flops_per_token
    assert {*slate.skipped, *(candidate.name for candidate in slate.candidates)} == {CONFIGURED, *variants()}
    assert len(slate.candidates) >= 4


def test_a_candidate_is_an_ordinary_run_that_clients_can_read(searching: RunConfig) -> None:
    for candidate in make_slate(searching).candidates:
        config = candidate.config
        assert config.search is None
        received = client_plan_from_json(config.client_plan.to_json())
        assert received == config.client_plan
        assert "search" not in config.client_plan.to_json()
        written = dump_yaml(config.model_dump(mode="json", exclude_unset=True), is_compact=True)
        assert validate(RunConfig, load_yaml(written), "chosen") == config


def mixers(model: Any) -> list[str]:
    """The kinds of a model's mixers, those of its encoder first."""
    resolved = model.resolve()
    layers = [*(resolved.encoder.layers if resolved.encoder else ()), *resolved.layers]
    return [layer.kind for layer in layers if layer.is_mixer]


def test_variants_replace_every_mixer_and_nothing_else(run_config: MakeConfig) -> None:
    slate = make_slate(run_config(f"model={DECODER}", "search={}"))
    found = {candidate.name: mixers(candidate.config.model) for candidate in slate.candidates}
    assert found == {
        "configured": ["attention", "lstm"] * 2,
        "attention": ["attention"] * 4,
        "mingru": ["mingru"] * 4,
        "gru": ["gru"] * 4,
        "gated_delta": ["gated_delta"] * 4,
        "ff": [],
        "causal_conv": ["causal_conv"] * 4,
        "attention+mingru": ["mingru", "attention"] * 2,
        "attention+gru": ["gru", "attention", "gru", "gru"],
    }
    model: Any = slate.candidates[1].config.model
    assert all(layer.num_heads == 2 for layer in model.resolve().layers if isinstance(layer, AttentionConfig))


def test_cross_attention_stays(run_config: MakeConfig) -> None:
    config = run_config(f"model={ENCODER_DECODER}", "task={type: translation}", "search={}")
    for candidate in make_slate(config).candidates:
        model: Any = candidate.config.model
        kinds = [isinstance(layer, CrossAttentionConfig) for layer in model.resolve().layers]
        assert kinds == [False, True, False], candidate.name


def test_a_variant_that_cannot_have_the_parameters_is_skipped_with_the_reason(run_config: MakeConfig) -> None:
    model = "{vocab_size: 259, dim: 16, layers: [{type: rnn}, {type: attention}, {type: ff, hidden_dim: 2}]}"
    slate = make_slate(run_config(f"model={model}", "search={}"))
    wanted = run_config(f"model={model}").model.num_parameters()
    assert f"must have {wanted:,} parameters within 2% by the width of its ff layers" in slate.skipped["gru"]


def test_equal_candidates_race_once(run_config: MakeConfig) -> None:
    slate = make_slate(run_config("search={slate: [attention, configured, mingru]}"))
    assert [candidate.name for candidate in slate.candidates] == ["configured", "mingru"]
    assert slate.skipped == {"attention": "is the same as configured"}


def test_choices_of_one_name_switch_together_and_join_the_slate(run_config: MakeConfig) -> None:
    slate = make_slate(run_config(f"model={CHOICE}", "search={}"))
    names = [candidate.name for candidate in slate.candidates]
    assert names[:2] == ["configured", "mixer2"]
    first, second = (candidate.config.model for candidate in slate.candidates[:2])
    assert isinstance(first, ModelConfig)
    assert isinstance(second, ModelConfig)
    assert [layer.type for layer in first.resolve().layers] == ["rnn", "ff", "rnn", "ff", "rnn"]
    assert mixers(second) == ["attention", "lstm"]
    assert [layer.type for layer in second.resolve().layers] == ["attention", "rnn", *["ff"] * 4]
    assert not first.choices


def choices(count: int, size: int) -> str:
    """A model with `count` choices of `size` alternatives each."""
    of = ", ".join(f"[{{type: ff, hidden_dim: {i + 1}}}]" for i in range(size))
    items = ", ".join(f"{{type: choice, name: c{i}, of: [{of}]}}" for i in range(count))
    return f"model={{vocab_size: 259, dim: 16, layers: [{items}]}}"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("search={slate: [attention, grru]}",), "search.slate: unknown candidate 'grru' (did you mean 'gru'?)"),
        (("search={slate: [configured, attention]}",), "search.slate: must leave two candidates, got configured"),
        ((choices(4, 3), "search={}"), "model.layers: choices must make at most 16 candidates, got 81 (3 of c0"),
        ((choices(2, 4), "search={}"), "search.slate: must be at most 16 candidates, got 24"),
        ((choices(1, 2),), "search: required where model.layers hold a choice, got c0"),
        (("search={rungs: []}",), "search.rungs: "),
        (("search={keep: 1}",), "search.keep: "),
        (("search={slate: everything}",), "search.slate"),
    ],
)
def test_refusals_name_the_key(run_config: MakeConfig, overrides: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_slate(run_config(*overrides))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_choices_of_one_name_must_be_as_many_everywhere(run_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="choice mixer: must have 2 alternatives everywhere, got 3"):
        run_config(
            f"model={CHOICE.replace('[[{type: rnn}], [{type: ff}]]', '[[{type: ff}], [{type: rnn}], [{type: ff}]]')}"
        )


def test_a_model_with_a_choice_is_not_built() -> None:
    with pytest.raises(ConfigError, match="layers: a model has no choices left, got mixer"):
        AutoGenModel(load_yaml(CHOICE))
