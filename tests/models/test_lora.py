"""An adapter is the formula of LoRA, the same for every owner, and averaging it is averaging what it does."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_pretrained import CAUSAL, TARGETS, quiet, write_pretrained
from torch import Tensor, nn

from agfl_models.errors import ConfigError
from agfl_models.huggingface.lora import LoRAConfig, LowRank, add_lora, merge_lora
from agfl_models.model.sequence_model import trained_parameters

IDS_BT = torch.randint(5, 80, (2, 6), generator=torch.Generator().manual_seed(0))


def library_model(tmp_path: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM

    write_pretrained(tmp_path / kind, kind)
    with quiet():
        return AutoModelForCausalLM.from_pretrained(tmp_path / kind).eval()


def plain() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def adapters(model: nn.Module) -> dict[str, LowRank]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


def fill(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(model).values():
        nn.init.normal_(adapter.b, generator=generator)


def weight_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def test_the_weight_is_that_of_the_formula_and_begins_as_it_was() -> None:
    model, before = plain(), plain()
    add_lora(model, LoRAConfig(rank=2, alpha=6, targets=("0",)))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(x), before(x))
    fill(model, 0)
    (adapter,) = adapters(model).values()
    weight, bias, first = before[0].weight, before[0].bias, model[0]
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    assert torch.allclose(first(x), x @ (weight + 3 * adapter.b @ adapter.a).T + bias, atol=1e-6)


def test_only_the_adapter_is_trained() -> None:
    frozen, both = plain(), plain()
    add_lora(frozen, LoRAConfig(rank=2, targets=("0", "2")))
    add_lora(both, LoRAConfig(rank=2, targets=("0", "2"), train_a=True))
    assert [tuple(p.shape) for p in trained_parameters(frozen).values()] == [(5, 2), (4, 2)]
    assert [tuple(p.shape) for p in trained_parameters(both).values()] == [(2, 6), (5, 2), (2, 5), (4, 2)]


def test_a_is_the_same_for_everybody_on_every_machine() -> None:
    drawn: list[list[Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(drawn))
        before = torch.random.get_rng_state()
        model = plain()
        add_lora(model, LoRAConfig(rank=2, targets=("0", "2"), seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        drawn.append([adapter.a for adapter in adapters(model).values()])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(drawn[0][0][:, :5], drawn[0][1]), "layers do not share one"
    # What the first owners drew: another machine, or another version of NumPy or PyTorch, must draw the same.
    assert drawn[0][0][0, :3].tolist() == [-0.13196754455566406, -0.014105688780546188, 0.1206180676817894]


def test_a_is_uniform_as_that_of_peft() -> None:
    model = nn.Sequential(nn.Linear(400, 3))
    add_lora(model, LoRAConfig(rank=50, targets=("0",)))
    (adapter,) = adapters(model).values()
    assert adapter.a.abs().max() <= 1 / 20
    assert abs(float(adapter.a.mean())) < 4 * (1 / 20) / (3 * 20_000) ** 0.5
    assert float(adapter.a.std()) == pytest.approx((1 / 20) / 3**0.5, rel=0.02)


@pytest.mark.parametrize("kind", CAUSAL)
def test_an_adapted_model_computes_what_peft_computes(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours, theirs = library_model(tmp_path, kind), library_model(tmp_path, kind)
    add_lora(ours, LoRAConfig(rank=3, alpha=5, targets=TARGETS[kind]))
    fill(ours, 0)
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=list(TARGETS[kind]), fan_in_fan_out=kind == "gpt2", task_type=None
    )
    peft.inject_adapter_in_model(settings, theirs)
    with torch.no_grad():
        for name, adapter in adapters(ours).items():
            layer = theirs.get_submodule(name.partition(".parametrizations")[0])
            layer.lora_A["default"].weight.copy_(adapter.a)
            layer.lora_B["default"].weight.copy_(adapter.b)
        assert torch.allclose(ours(IDS_BT).logits, theirs(IDS_BT).logits, atol=1e-5)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_merged_model_is_an_ordinary_one_that_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = library_model(tmp_path, kind)
    names = set(model.state_dict())
    add_lora(model, LoRAConfig(rank=3, targets=TARGETS[kind]))
    fill(model, 0)
    with torch.no_grad():
        expected = model(IDS_BT).logits
        merge_lora(model)
        assert torch.allclose(model(IDS_BT).logits, expected, atol=1e-6)
    assert set(model.state_dict()) == names
    assert not adapters(model)


def test_with_one_a_the_mean_of_the_adapters_is_the_mean_of_what_they_do() -> None:
    config = LoRAConfig(rank=2, targets=("0", "2"))
    owners = []
    for seed in range(3):
        model = plain()
        add_lora(model, config)
        fill(model, seed)
        owners.append(model)
    mean = copy.deepcopy(owners[0])
    for name, adapter in adapters(mean).items():
        adapter.b.data = torch.stack([adapters(owner)[name].b.data for owner in owners]).mean(0)
    for index in (0, 2):
        found, *weights = (weight_of(model[index]) for model in (mean, *owners))
        assert torch.allclose(found, torch.stack(weights).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (("q_projj",), "must name linear layers of the model, got 'q_projj' (did you mean 'q_proj'?)"),
        (("self_attn",), "must name linear layers of the model, got 'self_attn'"),
        (("embed_tokens",), "must name linear layers of the model, got 'embed_tokens'"),
        (("q_proj", "nothing"), "must name linear layers of the model, got 'nothing'"),
        (("lm_head",), "must not name a layer whose weight another one shares, got lm_head"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_refused(targets: tuple[str, ...], line: str, tmp_path: Path) -> None:
    write_pretrained(tmp_path / "tied", "llama", tie_word_embeddings=True)
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    with pytest.raises(ConfigError, match="^" + re.escape(f"model.lora.targets: {line}")):
        add_lora(model, LoRAConfig(targets=targets))


def test_a_target_is_a_whole_name() -> None:
    model = nn.ModuleDict({"q": nn.Linear(2, 2), "seq": nn.Linear(2, 2), "deep": nn.ModuleDict({"q": nn.Linear(2, 2)})})
    add_lora(model, LoRAConfig(targets=("q",)))
    assert [name.partition(".parametrizations")[0] for name in adapters(model)] == ["q", "deep.q"]
