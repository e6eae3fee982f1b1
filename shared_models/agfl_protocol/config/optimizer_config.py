"""The server optimizers that a run can name, and what each needs of clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from agfl_models.bounded import Examples, Rounds
from agfl_models.validation import Config
from agfl_protocol.config.presets import Preset, is_preset, server_settings
from agfl_protocol.config.training_config import Beta
from agfl_protocol.methods.candidates import CandidatesConfig
from agfl_protocol.methods.feddyn import FedDynMethodConfig
from agfl_protocol.methods.method import MethodConfig
from agfl_protocol.methods.scaffold import ScaffoldMethodConfig
from agfl_protocol.methods.square_norm import SquareNormConfig


class OptimizerConfig(Config):
    """A server optimizer."""

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """What clients must do for it, beside what they do for any."""
        return ()


class _TunedConfig(OptimizerConfig):
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


class NesterovConfig(OptimizerConfig):
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


class FedExPConfig(OptimizerConfig):
    """A step as long as the clients' updates differ (FedExP, Jhunjhunwala et al. 2023, arXiv:2301.09604).

    max_lr: ours; without it the step has no bound where updates cancel out.
    """

    type: Literal["fedexp"]
    epsilon: PositiveFloat = 1e-3
    max_lr: Annotated[float, Field(ge=1)] = 5.0

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """The squares of updates."""
        return (SquareNormConfig(type="square_norm"),)


class ScaffoldConfig(OptimizerConfig):
    """Control variates at each owner (SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378); see `drift`.

    lr: of the server's step.
    """

    type: Literal["scaffold"]
    lr: PositiveFloat = 1.0

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """Owners keep state."""
        return (ScaffoldMethodConfig(type="scaffold"),)


class FedDynConfig(OptimizerConfig):
    """A regularizer that each owner learns (FedDyn, Acar et al. 2021, arXiv:2111.04263); see `drift`.

    alpha: of the pull toward the global model, alpha / 2 |x - x_0|^2, and of what an owner remembers of past rounds.
    """

    type: Literal["feddyn"]
    alpha: PositiveFloat = 0.1

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """Owners keep state."""
        return (FedDynMethodConfig(type="feddyn", alpha=self.alpha),)


_Arm = FedAvgConfig | FedAvgMConfig | NesterovConfig | FedAdagradConfig | FedAdamConfig | FedYogiConfig
ArmConfig = Annotated[_Arm, Field(discriminator="type")]


class PortfolioConfig(OptimizerConfig):
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

    @property
    def client_methods(self) -> tuple[MethodConfig, ...]:
        """The losses of all arms' models."""
        num_models, max_examples = self.num_models, self.max_examples
        return (CandidatesConfig(type="candidates", num_models=num_models, max_examples=max_examples),)


_Server = _Arm | FedExPConfig | ScaffoldConfig | FedDynConfig | PortfolioConfig
ServerOptimizerConfig = Annotated[_Server, Field(discriminator="type")]
