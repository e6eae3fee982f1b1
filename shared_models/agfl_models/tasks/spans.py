"""Windows on a context, and the spans in them: what a model that scores start and end positions reads and says.

Legend: T positions of a window. A window is BOS question EOS context EOS; position 0 stands for "no answer", as in
Devlin et al. 2019 (BERT), arXiv:1810.04805, section 4.3. Question and context are of different types, as there; that
a token of the context also stands in the question is the "exact match" of Chen et al. 2017 (DrQA), arXiv:1704.00051,
section 3.2: small models learn late, if at all, to compare tokens themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from agfl_models.tokenizers.tokenizer import TextTokenizer


class Span(NamedTuple):
    """Positions of an answer's first and last token in a window; (0, 0) says that there is none."""

    start: int
    end: int


NO_ANSWER = Span(0, 0)
QUESTION, CONTEXT, SHARED = range(3)


class Window(NamedTuple):
    """A part of a context as the model reads it.

    offset: position of the first context token in `ids`; spans: characters of the context that each token covers.
    """

    ids: list[int]
    offset: int
    spans: list[tuple[int, int]]

    @property
    def types(self) -> list[int]:
        """What each token is: `QUESTION`, `CONTEXT`, or `SHARED`, which stands in the context and in the question."""
        question, context = set(self.ids[1 : self.offset - 1]), self.ids[self.offset :]
        return [QUESTION] * self.offset + [SHARED if token in question else CONTEXT for token in context]

    def positions(self, start: int, end: int) -> Span | None:
        """Return the positions that cover the characters [start, end), if the window holds all of them."""
        covering = [i for i, (left, right) in enumerate(self.spans) if left < end and right > start]
        if not covering or self.spans[covering[0]][0] > start or self.spans[covering[-1]][1] < end:
            return None
        return Span(self.offset + covering[0], self.offset + covering[-1])

    def characters(self, context: str, span: Span) -> slice:
        """Return where in the context the tokens of a span stand, without the space around them."""
        left, _ = self.spans[span.start - self.offset]
        _, right = self.spans[span.end - self.offset]
        text = context[left:right]
        start = left + len(text) - len(text.lstrip())
        return slice(start, start + len(text.strip()))

    def best_span(self, logits_T2: Tensor, max_length: int) -> tuple[float, Span]:
        """Return the span of at most `max_length` context tokens with the largest sum of start and end logits."""
        place = slice(self.offset, self.offset + len(self.spans))
        start_T, end_T = logits_T2[place, 0], logits_T2[place, 1]
        allowed_TT = torch.ones(len(start_T), len(end_T), dtype=torch.bool).triu().tril(max_length - 1)
        scores_TT = (start_T[:, None] + end_T[None, :]).masked_fill(~allowed_TT, -torch.inf)
        start, end = divmod(int(scores_TT.argmax()), len(end_T))
        return float(scores_TT[start, end]), Span(self.offset + start, self.offset + end)


def room_for_question(length: int) -> int:
    """Return how many tokens of a question a window of `length` tokens has room for: no more than half of it."""
    return length // 2 - 2


def windows_on(question: str, context: str, length: int, tokenizer: TextTokenizer) -> Iterator[Window]:
    """Yield windows of at most `length` tokens that cover the context and overlap by half.

    A question that is too long is cut.
    """
    question_ids = tokenizer.encode(question)[: room_for_question(length)]
    prefix = [tokenizer.bos_id, *question_ids, tokenizer.eos_id]
    ids, spans = tokenizer.encode_with_offsets(context)
    room = length - len(prefix) - 1
    stride = max(room // 2, 1)
    for first in range(0, max(len(ids) - room, 0) + stride, stride):
        part = slice(first, first + room)
        yield Window([*prefix, *ids[part], tokenizer.eos_id], len(prefix), spans[part])
