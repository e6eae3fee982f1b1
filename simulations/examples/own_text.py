"""Your own text, three owners in memory, one model that none of them could train alone. Run it:

python simulations/examples/own_text.py runs/mine
"""

from __future__ import annotations

import sys

import agfl

RUN = {
    "num_rounds": 6,
    "task": {"type": "language_modeling", "sequence_length": 32},
    "model": {"vocab_size": 259, "dim": 48, "layers": [{"type": "attention", "num_heads": 4}, {"type": "ff"}]},
    "training": {"optimizer": {"type": "adamw", "lr": 0.003}, "batch_size": 8, "local_steps": 10},
    "aggregation": {"server_optimizer": {"type": "fedavg"}},
    "evaluation": {"every": 3, "max_examples": 32},
}
OWNERS = {
    "harbor": [f"The ship number {i} came to the harbor, and the pilot wrote it down." for i in range(60)],
    "hospital": [f"The patient number {i} came to the hospital, and the nurse wrote it down." for i in range(60)],
    "school": [f"The pupil number {i} came to the school, and the teacher wrote it down." for i in range(60)],
}


def run(folder: str) -> agfl.History:
    """Train on all three, with secure sums, and let the model go on with a beginning."""
    history = agfl.simulate(RUN, owners=OWNERS, out=folder, progress=False)
    first, last = history.rows[0]["eval/bits_per_byte"], history.rows[-1]["eval/bits_per_byte"]
    print(f"bits per byte of what owners hold out: {first:.2f} untrained, {last:.2f} after {RUN['num_rounds']} rounds")
    print(history.model.generate("The p", max_new_tokens=40))
    return history


if __name__ == "__main__":
    run(sys.argv[1])
