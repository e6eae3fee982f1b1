"""A LoRA adapter of a pretrained model: three owners train it with secure sums, and nothing else travels.

The checkpoint is a tiny one with random weights, which the example makes itself; any causal model's folder does as
well. It needs the extra `huggingface`. Run it:

    python simulations/examples/lora_of_a_pretrained_model.py runs/lora
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from own_text import OWNERS
from tiny_checkpoint import write_checkpoint

import agfl

RUN: dict[str, Any] = {
    "num_rounds": 4,
    "task": {"type": "language_modeling", "sequence_length": 32},
    "tokenizer": {"type": "huggingface"},  # the model's own
    "model": {
        "family": "huggingface",
        "architecture": "causal",
        "lora": {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj", "down_proj", "lm_head"]},
    },
    "training": {"optimizer": {"type": "adamw", "lr": 0.02}, "batch_size": 8, "local_steps": 10},
    "aggregation": {"server_optimizer": {"type": "fedavg"}},
    "evaluation": {"every": 4, "max_examples": 32},
}


def run(folder: Path) -> agfl.History:
    """Make a checkpoint and adapt it; an ordinary model comes out, with the adapter in its weights."""
    checkpoint = write_checkpoint(folder / "checkpoint")
    settings = {"model.folder": str(checkpoint)}
    history = agfl.simulate(RUN, owners=OWNERS, settings=settings, out=folder / "run", progress=False)
    model, travels = history.model, history.config.model.num_parameters()
    print(f"{travels:,} parameters travel, of a model of {sum(p.numel() for p in model.module.parameters()):,}")
    first, last = history.rows[0]["eval/bits_per_byte"], history.rows[-1]["eval/bits_per_byte"]
    print(f"bits per byte of what owners hold out: {first:.2f} before, {last:.2f} after {RUN['num_rounds']} rounds")
    print(model.generate("The p", max_new_tokens=40))
    return history


if __name__ == "__main__":
    run(Path(sys.argv[1]))
