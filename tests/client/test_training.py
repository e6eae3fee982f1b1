"""Local training is what PyTorch does by hand: every token once an epoch, the same bits for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agfl_client.training.device import choose_device
from agfl_client.training.evaluation import evaluate
from agfl_client.training.optimizers.delta_sgd import DeltaSGD
from agfl_client.training.optimizers.local_optimizer import without_compiler
from agfl_client.training.trainer import BatchTrainer, effective_steps
from agfl_models.errors import ConfigError
from agfl_models.examples import TextRow, read_rows
from agfl_models.model.families import build_model
from agfl_models.tasks.evaluation import HeldOut
from agfl_models.tasks.language_modeling import LanguageModeling, TokenStream
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.config.training_config import TrainingConfig
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_protocol.methods.method import Gradient
from agfl_protocol.update import Layout, Vector

MakeConfig = Callable[..., RunConfig]


@dataclass
class Bench:
    """One owner's text, and the model of the tiny run."""

    config: RunConfig
    task: LanguageModeling
    text: TokenStream

    def model(self) -> nn.Module:
        return build_model(self.config.model, seed=5)

    def train(self, seed: int = 0) -> LocalResult:
        model = self.model()
        rng = np.random.default_rng(seed)
        return BatchTrainer().train(LocalWork(model, Layout.of(model), self.task, self.text, rng, self.config.training))

    def by_hand(self, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> tuple[Vector, float]:
        """The textbook loop, clipping included; returns (delta, summed loss)."""
        model, rng, total = self.model(), np.random.default_rng(0), 0.0
        start, optimizer = Layout.of(model).flatten(model), optimizer_of(model)
        for _ in range(steps):
            batch = self.text.sample(self.config.training.batch_size, rng)
            loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
            total += loss.item() * int((batch.targets >= 0).sum())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.config.training.max_grad_norm is not None:
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients))  # type: ignore[arg-type]
                for gradient in gradients:
                    gradient.mul_(min(1.0, self.config.training.max_grad_norm / (norm.item() + 1e-6)))
            optimizer.step()
        return Layout.of(model).flatten(model) - start, total


@pytest.fixture
def bench(run_config: MakeConfig, make_owners: Callable[..., Path]) -> Callable[..., Bench]:
    def make(*overrides: str) -> Bench:
        config = run_config(*overrides)
        task = config.build_task()
        assert isinstance(task, LanguageModeling)
        return Bench(config, task, task.prepare(read_rows(make_owners(1) / "owner-00.jsonl", TextRow)))

    return make


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def test_one_step_is_minus_lr_times_gradient(bench: Callable[..., Bench]) -> None:
    one = bench("training.local_steps=1", "training.max_grad_norm=null")
    model = one.model()
    batch = one.text.sample(4, np.random.default_rng(0))
    loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).numpy()
    result = one.train()
    np.testing.assert_allclose(result.delta, -0.5 * gradient, rtol=1e-3, atol=2e-7)
    assert result.num_predictions == int((batch.targets >= 0).sum())
    assert result.loss == pytest.approx(loss.item() * result.num_predictions, rel=1e-6)
    assert result.delta.dtype == np.float32


@pytest.mark.parametrize("max_grad_norm", ["null", "1.0", "0.01"])
@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        ("{type: sgd, lr: 0.5}", sgd),
        (
            "{type: sgd, lr: 0.2, momentum: 0.9, weight_decay: 0.1}",
            lambda m: torch.optim.SGD(m.parameters(), 0.2, momentum=0.9, weight_decay=0.1),
        ),
        (
            "{type: adamw, lr: 0.01, betas: [0.8, 0.9], weight_decay: 0.2}",
            lambda m: torch.optim.AdamW(m.parameters(), 0.01, (0.8, 0.9), weight_decay=0.2),
        ),
        ("{type: delta_sgd, lr: 0.1}", lambda m: DeltaSGD(m.parameters(), 0.1, 2.0, 0.1)),
    ],
)
def test_steps_are_those_of_pytorch(
    bench: Callable[..., Bench],
    optimizer: str,
    by_hand: Callable[[nn.Module], torch.optim.Optimizer],
    max_grad_norm: str,
) -> None:
    one = bench("training.local_steps=5", f"training.optimizer={optimizer}", f"training.max_grad_norm={max_grad_norm}")
    result = one.train()
    delta, loss = one.by_hand(by_hand, 5)
    assert np.linalg.norm(result.delta - delta) <= 1e-3 * np.linalg.norm(delta)
    assert result.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_are_those_of_pytorch_to_the_bit(kind: type[torch.optim.SGD | torch.optim.AdamW]) -> None:
    found = []
    for made in (kind, without_compiler(kind)):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = made(model.parameters(), lr=0.1, weight_decay=0.2)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        found.append([one.detach().clone() for one in model.parameters()])
    assert all(map(torch.equal, *found))


def test_a_proximal_term_is_part_of_the_loss(bench: Callable[..., Bench]) -> None:
    """FedProx, Li et al. 2020, equation 2, by automatic differentiation."""
    one = bench("training.local_steps=5", "training.max_grad_norm=null", "training.proximal_mu=0.7")
    model, rng = one.model(), np.random.default_rng(0)
    start, optimizer = Layout.of(model).flatten(model), sgd(model)
    anchor = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(5):
        batch = one.text.sample(4, rng)
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        squares = [(p - p_0).square().sum() for p, p_0 in zip(model.parameters(), anchor, strict=True)]
        optimizer.zero_grad()
        torch.autograd.backward(loss + 0.7 / 2 * torch.stack(squares).sum())
        optimizer.step()
    delta = Layout.of(model).flatten(model) - start
    result = one.train()
    assert np.linalg.norm(result.delta - delta) <= 1e-4 * np.linalg.norm(delta)
    free = bench("training.local_steps=5", "training.max_grad_norm=null").train()
    assert np.linalg.norm(result.delta) < 0.99 * np.linalg.norm(free.delta), "it stays nearer"


@pytest.mark.parametrize("max_grad_norm", ["null", "0.1"])
def test_a_correction_is_a_linear_part_of_the_loss(bench: Callable[..., Bench], max_grad_norm: str) -> None:
    """By automatic differentiation of the loss plus <correction, x>; the bound is one of the whole gradient."""
    one = bench("training.local_steps=3", f"training.max_grad_norm={max_grad_norm}")
    model, rng = one.model(), np.random.default_rng(0)
    layout = Layout.of(model)
    start, optimizer = layout.flatten(model), sgd(model)
    correction = 0.01 * np.random.default_rng(1).standard_normal(layout.size, np.float32)
    for _ in range(3):
        batch = one.text.sample(4, rng)
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        parts = [(p * part).sum() for p, part in zip(model.parameters(), layout.split(correction), strict=True)]
        optimizer.zero_grad()
        torch.autograd.backward(loss + torch.stack(parts).sum())
        if one.config.training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), one.config.training.max_grad_norm)
        optimizer.step()
    delta = layout.flatten(model) - start
    model = one.model()
    training, seeded, shaped = one.config.training, np.random.default_rng(0), [Gradient(shift=correction)]
    result = BatchTrainer().train(LocalWork(model, layout, one.task, one.text, seeded, training, gradients=shaped))
    assert np.linalg.norm(result.delta - delta) <= 1e-4 * np.linalg.norm(delta)


@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_effective_steps_are_the_coefficients_of_the_paper(num_steps: int) -> None:
    """FedNova, Wang et al. 2020, section 4.1: the vectors a_i of plain, momentum and proximal SGD, summed."""

    def steps(**settings: object) -> float:
        optimizer = {
            "type": "sgd",
            "lr": 0.2,
            **({"momentum": settings.pop("momentum")} if "momentum" in settings else {}),
        }
        config = TrainingConfig.model_validate({"optimizer": optimizer, "local_epochs": 1, **settings})
        return effective_steps(config, num_steps)

    assert steps() == num_steps
    momentum = [(1 - 0.9 ** (num_steps - k)) / (1 - 0.9) for k in range(num_steps)]
    assert steps(momentum=0.9) == pytest.approx(sum(momentum), rel=1e-12)
    proximal = [(1 - 0.2 * 0.5) ** (num_steps - 1 - k) for k in range(num_steps)]
    assert steps(proximal_mu=0.5) == pytest.approx(sum(proximal), rel=1e-12)
    adamw = TrainingConfig.model_validate({"optimizer": {"type": "adamw", "lr": 0.1}, "local_epochs": 1})
    assert effective_steps(adamw, num_steps) == num_steps


@pytest.mark.parametrize("max_norm", [1e-3, 0.1])
def test_clipped_step_is_as_long_as_the_bound(bench: Callable[..., Bench], max_norm: float) -> None:
    result = bench("training.local_steps=1", f"training.max_grad_norm={max_norm}").train()
    assert np.linalg.norm(result.delta) == pytest.approx(0.5 * max_norm, rel=1e-3)


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_predict_every_token_of_the_text_once_each(bench: Callable[..., Bench], epochs: int) -> None:
    one = bench("training.local_steps=null", f"training.local_epochs={epochs}", "aggregation.max_weight=1000")
    documents = int((one.text.train == 256).sum())
    assert one.train().num_predictions == epochs * (one.text.train.size - documents)


def test_same_seed_gives_the_same_bits_and_another_seed_others(bench: Callable[..., Bench]) -> None:
    one = bench()
    first, again, other = one.train(1), one.train(1), one.train(2)
    assert (first.delta.tobytes(), first.loss) == (again.delta.tobytes(), again.loss)
    assert first.delta.tobytes() != other.delta.tobytes()


def test_training_does_not_touch_the_global_generators(bench: Callable[..., Bench]) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    bench().train()
    assert torch.equal(before, torch.random.get_rng_state())


def test_bfloat16_trains_nearly_as_float32(bench: Callable[..., Bench]) -> None:
    exact, rough = bench().train(), bench("training.precision=bfloat16").train()
    assert rough.delta.dtype == np.float32
    assert rough.delta.tobytes() != exact.delta.tobytes()
    cosine = np.dot(rough.delta, exact.delta) / np.linalg.norm(rough.delta) / np.linalg.norm(exact.delta)
    assert cosine > 0.98
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_does_not_depend_on_the_batch_size_nor_change_the_model(
    bench: Callable[..., Bench], batch_size: int
) -> None:
    one, model = bench(), bench().model()
    before = Layout.of(model).flatten(model)
    sums = evaluate(model, HeldOut(one.task, one.text, batch_size, 1000))
    reference = evaluate(model, HeldOut(one.task, one.text, 1, 1000))
    assert sums == pytest.approx(reference, rel=1e-6)
    assert sums["eval/tokens"] > 0
    assert before.tobytes() == Layout.of(model).flatten(model).tobytes()
    assert all(p.grad is None for p in model.parameters())


def test_auto_device_is_one_of_this_machine() -> None:
    torch.empty(1, device=choose_device("auto"))
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "tpu9000", "", "mps:7", "cpu,cuda"])
def test_device_that_is_not_there_is_one_line(name: str) -> None:
    rule = rf"^--device: must be auto, cpu, or a device of this machine, got '{name}' \(.+\) .AGFL-CONFIG-186"
    with pytest.raises(ConfigError, match=rule) as error:
        choose_device(name)
    assert "\n" not in str(error.value)
