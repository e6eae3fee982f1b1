"""The Trainer of Hugging Face's transformers as local training: three owners adapt a checkpoint, with secure sums.

Nothing of the package is edited: the trainer registers itself, and the run names it as `training.trainer`. What it
cannot serve, such as SCAFFOLD, is refused when the run is read. It needs the extra `huggingface`. Run it:

    python simulations/examples/transformers_trainer.py runs/transformers
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from own_text import OWNERS
from tiny_checkpoint import write_checkpoint
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PrinterCallback, Trainer, TrainingArguments

import agfl
from agfl_protocol.config.trainer_config import TRAINERS, Serves, TrainerConfig
from agfl_protocol.config.training_config import AdamWConfig
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork


@TRAINERS.register
class TransformersConfig(TrainerConfig):
    """warmup_steps: over which the rate rises, in each round anew."""

    serves = frozenset({Serves.ADAMW, Serves.CLIPPING})

    type: Literal["transformers"]
    warmup_steps: int = 0

    def build(self) -> LocalTrainer:
        return TransformersTrainer(self.warmup_steps)


class TransformersTrainer(LocalTrainer):
    """Owners of one process take turns: the library seeds the generators of the process, and keeps state of its own."""

    _turn = threading.Lock()

    def __init__(self, warmup_steps: int) -> None:
        self._warmup_steps = warmup_steps

    def train(self, work: LocalWork) -> LocalResult:
        with self._turn, TemporaryDirectory() as folder, torch.random.fork_rng():
            return self._train(work, folder)

    def _train(self, work: LocalWork, folder: str) -> LocalResult:
        config = work.training
        assert isinstance(config.optimizer, AdamWConfig), "`serves` says so"
        before = work.layout.flatten(work.model)
        optimizer = config.optimizer
        arguments = TrainingArguments(
            folder,
            max_steps=config.local_steps,
            max_grad_norm=config.max_grad_norm or 0.0,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=self._warmup_steps,
            seed=int(work.rng.integers(2**31)),
            use_cpu=work.device == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        weights = [parameter for parameter in work.model.parameters() if parameter.requires_grad]
        adamw = AdamW(weights, optimizer.lr, optimizer.betas, weight_decay=optimizer.weight_decay)
        scored = _Scored(work)
        trainer = _Trainer(scored, arguments, optimizers=(adamw, None))
        trainer.batches = work.batches()
        trainer.remove_callback(PrinterCallback)
        steps = trainer.train().global_step
        delta, first = work.layout.flatten(work.model) - before, scored.losses[0] / max(scored.predictions[0], 1)
        return LocalResult(delta, sum(scored.losses), sum(scored.predictions), steps, first)


class _Scored(nn.Module):
    """The model with its task's loss, as the library wants it; it keeps count."""

    def __init__(self, work: LocalWork) -> None:
        super().__init__()
        self.model, self._task = work.model, work.task
        self.losses: list[float] = []
        self.predictions: list[int] = []

    def forward(self, batch: Any) -> dict[str, Tensor]:
        loss, predictions = self._task.loss(self.model, batch)
        self.losses.append(float(loss.detach()))
        self.predictions.append(predictions)
        return {"loss": loss / max(predictions, 1)}


class _Trainer(Trainer):  # type: ignore[misc]  # the library is not followed
    """Takes the round's batches from whoever knows how many there are to be."""

    batches: Iterator[Any]

    def get_train_dataloader(self) -> Any:
        return _Columns(self.batches)


class _Columns:
    """What stands for a DataLoader: it yields arguments of `forward`, and has no length."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"batch": batch} for batch in self._batches)


RUN: dict[str, Any] = {
    "num_rounds": 2,
    "task": {"type": "language_modeling", "sequence_length": 32},
    "tokenizer": {"type": "huggingface"},
    "model": {"family": "huggingface", "architecture": "causal"},
    "training": {
        "trainer": {"type": "transformers", "warmup_steps": 2},
        "optimizer": {"type": "adamw", "lr": 0.01},
        "batch_size": 8,
        "local_steps": 15,
    },
    "aggregation": {"server_optimizer": {"type": "fedavg"}},
    "evaluation": {"every": 2, "max_examples": 32},
}


def run(folder: Path) -> agfl.History:
    """Make a checkpoint and train it further."""
    checkpoint = write_checkpoint(folder / "checkpoint")
    settings = {"model.folder": str(checkpoint)}
    history = agfl.simulate(RUN, owners=OWNERS, settings=settings, out=folder / "run", progress=False)
    first, last = history.rows[0]["eval/bits_per_byte"], history.rows[-1]["eval/bits_per_byte"]
    print(f"bits per byte of what owners hold out: {first:.2f} before, {last:.2f} after {RUN['num_rounds']} rounds")
    return history


if __name__ == "__main__":
    run(Path(sys.argv[1]))
