"""Tokens per second of beam search, with the cache and without it: 64 sentences, 4 beams, an encoder-decoder of 3M.

The model is a hybrid of recurrent and attention layers with random weights, and no token ends a text, so every
hypothesis has the full length. With the cache a position costs one `AutoGenModel.step`; without it every position
runs the decoder over all ids so far. The encoder reads the sources once in both. Tokens are those of the texts
returned, one of four hypotheses each; how many are the same both ways is printed (rounding may turn a near tie).

    python simulations/benchmarks/speed/decoding_speed.py [--tokens 48] [--repetitions 3] [--smoke]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from agfl_models import AutoGenModel
from agfl_models.layers.layer import Memory, State
from agfl_models.machine import usable_cpus
from agfl_models.model.generation import GenerationConfig, generate

SENTENCES, BEAMS, SOURCE_LENGTH, VOCAB_SIZE = 64, 4, 32, 2000
BOS, NO_EOS = 1, -1
CONFIG = {
    "family": "encoder_decoder",
    "vocab_size": VOCAB_SIZE,
    "dim": 192,
    "encoder": {
        "layers": [{"repeat": 2, "layers": [{"type": "rnn", "cell": "mingru"}, {"type": "attention"}, {"type": "ff"}]}]
    },
    "layers": [
        {
            "repeat": 2,
            "layers": [
                {"type": "rnn", "cell": "gated_delta"},
                {"type": "attention"},
                {"type": "attention", "cross": True},
                {"type": "ff"},
            ],
        }
    ],
}


class Uncached(AutoGenModel):
    """The same model, whose state is all it has read: (ids_BT, the memory's states and mask)."""

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> tuple[State, ...]:
        assert memory is not None
        assert memory.mask_BS is not None
        return ((torch.empty(batch_size, 0, dtype=torch.long), memory.states_BSD, memory.mask_BS),)

    def step(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        past_BT, states_BSD, mask_BS = state[0]
        ids_BT = torch.cat((past_BT, x.unsqueeze(1)), dim=1)
        y_BTE = self.run_stack(self._embed(ids_BT), None, Memory(states_BSD, mask_BS))
        return self._read_out(y_BTE[:, -1], None), ((ids_BT, states_BSD, mask_BS),)


def decode(model: AutoGenModel, tokens: int) -> tuple[float, list[list[int]]]:
    """Return the wall seconds of decoding all sentences after they were encoded, and the texts."""
    source_BS = torch.randint(VOCAB_SIZE, (SENTENCES, SOURCE_LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        memory = model.encode(source_BS, torch.ones_like(source_BS, dtype=torch.bool))
    config = GenerationConfig(max_new_tokens=tokens, num_beams=BEAMS)
    began = time.perf_counter()
    texts = generate(model, [[BOS]] * SENTENCES, config, eos_id=NO_EOS, memory=memory)
    return time.perf_counter() - began, texts


def main() -> None:
    """Measure both in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="two tokens, once")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.tokens, arguments.repetitions = 2, 1
    models = {"with the cache": AutoGenModel(CONFIG, seed=0), "without it": Uncached(CONFIG, seed=0)}
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(arguments.repetitions):
        results = {label: decode(model, arguments.tokens) for label, model in models.items()}
        for label, (wall_s, _) in results.items():
            seconds[label].append(wall_s)
        same = sum(one == other for one, other in zip(*(texts for _, texts in results.values()), strict=True))
    parameters = models["without it"].config.num_parameters()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{SENTENCES} sentences of {arguments.tokens} tokens, {BEAMS} beams, {parameters:,} parameters")
    print(f"{usable_cpus()} processors, {torch.get_num_threads()} threads, load average {load}")
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    for label, median in medians.items():
        speed = SENTENCES * arguments.tokens / median
        print(f"{label:<16} {speed:8.0f} tokens/s   p50 {median:7.3f} s   n = {len(seconds[label])}")
    ratio = medians["without it"] / medians["with the cache"]
    print(f"ratio of the medians: {ratio:.1f}; {same} of {SENTENCES} texts are the same")


if __name__ == "__main__":
    main()
