"""The optimizers that a run can name: those that train on a client, and those that step on the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from agfl_models.bounded import Examples, Rounds
from agfl_models.validation import Config
from agfl_protocol.config.presets import Preset, is_preset, server_settings

Beta = Annotated[float, Field(ge=0, lt=1)]  # decay of a moving average


class SGDConfig(Config):
    """Plain SGD on the client."""

    type: Literal["sgd"]
    lr: PositiveFloat
    momentum: Beta = 0.0
    weight_decay: NonNegativeFloat = 0.0


class AdamWConfig(Config):
    """AdamW on the client; its moments start anew each round."""

    type: Literal["adamw"]
    lr: PositiveFloat
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.1


class DeltaSGDConfig(Config):
    """SGD that finds its own step size (Delta-SGD, Kim et al. 2024, arXiv:2306.11201); it starts anew each round.

    lr: the first step of a round. gamma: how far to trust the measured smoothness. delta: how fast steps may grow.
    """

    type: Literal["delta_sgd"]
    lr: PositiveFloat = 0.2
    gamma: PositiveFloat = 2.0
    delta: PositiveFloat = 0.1


ClientOptimizerConfig = Annotated[SGDConfig | AdamWConfig | DeltaSGDConfig, Field(discriminator="type")]


class _TunedConfig(Config):
    """A method that Reddi et al. 2021 tuned: `preset` fills in what is not stated of `lr` and `tau`."""

    preset: Preset | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if isinstance(data, dict) and is_preset(data.get("preset")) and "type" in data:
            return {**server_settings(data["type"], data["preset"]), **data}
        return data


class FedAvgConfig(_TunedConfig):
    """x += lr * delta (McMahan et al. 2017)."""

    type: Literal["fedavg"]
    lr: PositiveFloat = 1.0


class FedAvgMConfig(_TunedConfig):
    """Server momentum (Hsu et al. 2019, arXiv:1909.06335)."""

    type: Literal["fedavgm"]
    lr: PositiveFloat = 1.0
    momentum: Beta = 0.9


class NesterovConfig(Config):
    """Nesterov momentum on the mean delta (DiLoCo, Douillard et al. 2023, arXiv:2311.08105)."""

    type: Literal["nesterov"]
    lr: PositiveFloat = 0.7
    momentum: Beta = 0.9


class _AdaptiveConfig(_TunedConfig):
    lr: PositiveFloat = 1e-2
    beta1: Beta = 0.9
    tau: PositiveFloat = 1e-3


class FedAdagradConfig(_AdaptiveConfig):
    """FedAdagrad (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2)."""

    type: Literal["fedadagrad"]


class FedAdamConfig(_AdaptiveConfig):
    """FedAdam (Reddi et al. 2021, Algorithm 2)."""

    type: Literal["fedadam"]
    beta2: Beta = 0.99


class FedYogiConfig(_AdaptiveConfig):
    """FedYogi (Reddi et al. 2021, Algorithm 2)."""

    type: Literal["fedyogi"]
    beta2: Beta = 0.99


class FedExPConfig(Config):
    """A step as long as the clients' updates differ (FedExP, Jhunjhunwala et al. 2023, arXiv:2301.09604).

    max_lr: ours; without it the step has no bound where updates cancel out.
    """

    type: Literal["fedexp"]
    epsilon: PositiveFloat = 1e-3
    max_lr: Annotated[float, Field(ge=1)] = 5.0


class ScaffoldConfig(Config):
    """Control variates at each owner (SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378); see `drift`.

    lr: of the server's step.
    """

    type: Literal["scaffold"]
    lr: PositiveFloat = 1.0


class FedDynConfig(Config):
    """A regularizer that each owner learns (FedDyn, Acar et al. 2021, arXiv:2111.04263); see `drift`.

    alpha: of the pull toward the global model, alpha / 2 |x - x_0|^2, and of what an owner remembers of past rounds.
    """

    type: Literal["feddyn"]
    alpha: PositiveFloat = 0.1


_Arm = FedAvgConfig | FedAvgMConfig | NesterovConfig | FedAdagradConfig | FedAdamConfig | FedYogiConfig
ArmConfig = Annotated[_Arm, Field(discriminator="type")]


class PortfolioConfig(Config):
    """Several optimizers on the same updates: the server takes the first one's step, or that of a better one.

    every: rounds from one choice to the next; in such a round the models of all arms are broadcast.
    max_examples: on which an owner evaluates each. arms: the first one's step is taken unless the loss of another
    is less by more than `margin`, in nats a prediction: ratios would mean little where the loss is near zero.
    """

    type: Literal["auto"]
    every: Rounds = 3
    max_examples: Examples = 64
    margin: NonNegativeFloat = 0.1
    arms: Annotated[tuple[ArmConfig, ...], Field(min_length=2, max_length=8)] = (
        NesterovConfig(type="nesterov"),
        NesterovConfig(type="nesterov", lr=0.3),
        FedAvgConfig(type="fedavg"),
        FedAdamConfig(type="fedadam"),
    )

    @property
    def num_models(self) -> int:
        """How many models are broadcast where a choice is due: one of each arm."""
        return len(self.arms)


_Server = _Arm | FedExPConfig | ScaffoldConfig | FedDynConfig | PortfolioConfig
ServerOptimizerConfig = Annotated[_Server, Field(discriminator="type")]
