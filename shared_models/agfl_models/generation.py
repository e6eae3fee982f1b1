"""Decoding: draw tokens from a model, one after the other.

B batch (1 here), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from agfl_models.model import AutoGenModel


def generate(
    model: AutoGenModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
    eos_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that continue the prompt; stop before `eos_id`.

    Args:
        model: a language model.
        prompt_ids: at least one id, for example the tokenizer's `bos_id`.
        max_new_tokens: at most so many.
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: draw among the k most probable tokens only; None for all (Fan et al. 2018, arXiv:1805.04833).
        generator: source of randomness, on the CPU.
        eos_id: the token that ends the text.

    Raises:
        ConfigError: an attention layer is not causal.
    """
    assert prompt_ids, "generation starts from at least one token"
    state = model.initial_state(batch_size=1)
    pending = list(prompt_ids)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            for token_id in pending:
                logits_BV, state = model.step(_as_batch(token_id, model), state)
        next_id = _draw(logits_BV[0].float().cpu(), temperature, top_k, generator)
        if next_id == eos_id:
            return
        yield next_id
        pending = [next_id]


def _as_batch(token_id: int, model: AutoGenModel) -> Tensor:
    return torch.tensor([token_id], device=next(model.parameters()).device)


def _draw(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        smallest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, float("-inf"))
    probabilities_V = (logits_V / temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities_V, num_samples=1, generator=generator))
