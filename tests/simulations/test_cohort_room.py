"""Where each round asks a few owners, sums that are over all of them have room for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine

BPE = ("tokenizer={type: bpe, vocab_size: 265, merges_per_round: 4}", "model.vocab_size=265")
FEW = ("aggregation={server_optimizer: {type: fedavg}, type: secure, max_colluders: 1, min_cohort: 3, cohort_size: 3}",)


class Diary(Observer):
    """Notes every sum that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        self.failed.append(reason)


def test_a_tokenizer_is_learned_and_the_last_model_evaluated_by_all_owners_at_the_first_try(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    config, diary = run_config("num_rounds=1", *FEW, *BPE), Diary()
    InlineEngine(config, sorted(make_owners(6).iterdir())).run(tmp_path / "r", resume=False, observer=diary)
    assert diary.failed == []
    rows = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert '"eval/loss": null' not in rows[-1]
