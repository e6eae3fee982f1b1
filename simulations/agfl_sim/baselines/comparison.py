"""How the global model compares with what each owner has alone: "should I join?", from the scores of four models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from agfl_models.tasks.task import MainMetric
from agfl_server.report.charts import number_text

GLOBAL, TUNED, LOCAL, CENTRALIZED = "global", "tuned", "local", "centralized"
MODELS = (GLOBAL, TUNED, LOCAL, CENTRALIZED)
NAMES = {
    GLOBAL: "global model",
    TUNED: "global, trained further at home",
    LOCAL: "own model",
    CENTRALIZED: "all text in one place",
}


@dataclass(frozen=True)
class Score:
    """What one of `MODELS` reaches on an owner's validation text, or on that of all owners together.

    owner: NAME, or None for all. round: after which the model stood that counts, None for all. sums: the task's
    `eval_sums`; metrics: what the task makes of them, empty where no text is held out.
    """

    model: str
    owner: str | None
    round: int | None
    metrics: Mapping[str, float]
    sums: Mapping[str, float]


@dataclass(frozen=True)
class Budget:
    """How long the baselines were trained.

    local, tuned, centralized: in `unit`, which is batches or epochs. num_points: models along the way, of which the
    best one counts.
    """

    unit: str
    local: int
    tuned: int
    centralized: int
    num_points: int


@dataclass(frozen=True)
class Comparison:
    """The models side by side, in the task's main metric.

    pooled: by model, over the validation text of all owners together. owners: NAME -> value by model, for those who
    hold text out.
    """

    metric: MainMetric
    pooled: Mapping[str, float]
    owners: Mapping[str, Mapping[str, float]]
    budget: Budget

    @staticmethod
    def of(metric: MainMetric, scores: Iterable[Score], budget: Budget) -> Comparison:
        """Return the comparison that `scores` make."""
        found: dict[str | None, dict[str, float]] = {}
        for score in scores:
            if math.isfinite(score.metrics.get(metric.name, math.nan)):
                found.setdefault(score.owner, {})[score.model] = score.metrics[metric.name]
        complete = {name: values for name, values in found.items() if values.keys() == set(MODELS)}
        pooled = complete.pop(None, {})
        owners = {name: values for name, values in complete.items() if name is not None and pooled}
        return Comparison(metric, pooled, owners, budget)

    def gain(self, values: Mapping[str, float]) -> float:
        """Return by how much the global model is better than the local one; negative where it is worse."""
        difference = values[GLOBAL] - values[LOCAL]
        return difference if self.metric.higher_is_better else -difference

    @property
    def gains(self) -> dict[str, float]:
        """NAME -> what joining brings this owner, the greatest gain first."""
        gains = {name: self.gain(values) for name, values in self.owners.items()}
        return dict(sorted(gains.items(), key=lambda item: (-item[1], item[0])))

    @property
    def num_gaining(self) -> int:
        """Owners for whom the global model is better than their own."""
        return sum(gain > 0 for gain in self.gains.values())

    @property
    def num_gaining_tuned(self) -> int:
        """Owners for whom the global model, trained further at home, is better than their own."""
        return sum(self.gain({**values, GLOBAL: values[TUNED]}) > 0 for values in self.owners.values())

    @property
    def num_even(self) -> int:
        """Owners for whom both are as good."""
        return sum(gain == 0 for gain in self.gains.values())

    @property
    def median(self) -> dict[str, float]:
        """The median over owners, by model."""
        return self._over_owners(median)

    @property
    def worst_tenth(self) -> dict[str, float]:
        """The mean over the worst tenth of owners, rounded up, by model: each model has its own worst owners."""
        return self._over_owners(self._mean_of_worst)

    @property
    def answer(self) -> str:
        """Return the answer to "should I join?" in a few sentences."""
        if not self.owners:
            return "Nothing can be said: no owner holds text out."
        total, typical = len(self.owners), self.median
        more, better = 2 * self.num_gaining > total, self.gain(typical) > 0
        verdict = {(True, True): "Yes", (False, False): "No, not as trained here"}.get((more, better), "Not clearly")
        if verdict != "Yes" and 2 * self.num_gaining_tuned > total:
            verdict = "Yes, if you train it further at home"
        if len({value for values in self.owners.values() for value in values.values()}) == 1:
            verdict = f"Nothing can be said, since every model has the same {self.metric.title} for everybody"
        even = f", for {self.num_even} it is as good" if self.num_even else ""
        return (
            f"{verdict}: for {self.num_gaining} of {total} owners ({100 * self.num_gaining / total:.0f} %) the global "
            f"model is better than what they train alone{even}. The median owner has {number_text(typical[GLOBAL])} "
            f"{self.metric.title} with it and {number_text(typical[LOCAL])} alone. Trained further at home, the global "
            f"model reaches {number_text(typical[TUNED])} and is better than the own one for "
            f"{self.num_gaining_tuned} of {total}."
        )

    @property
    def side_by_side(self) -> str:
        """Return the numbers over all owners together, in one line."""
        numbers = (f"{NAMES[model]} {number_text(value)}" for model, value in self.pooled.items())
        return f"{self.metric.title}: {', '.join(numbers) or 'no owner holds text out'}"

    def _over_owners(self, summary: Callable[[Sequence[float]], float]) -> dict[str, float]:
        return {model: summary([values[model] for values in self.owners.values()]) for model in MODELS}

    def _mean_of_worst(self, values: Sequence[float]) -> float:
        worst = sorted(values, reverse=not self.metric.higher_is_better)[: math.ceil(len(values) / 10)]
        return sum(worst) / len(worst)
