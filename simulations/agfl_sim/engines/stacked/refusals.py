"""What of a run cannot be trained for several owners at once, as its configuration says it."""

from __future__ import annotations

from collections.abc import Iterator

from agfl_models.errors import ConfigError
from agfl_models.layers.recurrent import RNNConfig
from agfl_models.model.base_config import ModelConfigBase, OwnModelConfig
from agfl_models.model.config import ModelConfig
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods.method import Method, Round
from agfl_protocol.methods.registry import methods_of
from agfl_server.search.slate import make_slate


def refuse_unstackable(config: RunConfig) -> None:
    """Raise ConfigError where a setting of the run cannot be stacked."""
    for setting in _unstackable(config):
        raise ConfigError("AGFL-CONFIG-277", f"--engine stacked: must be left out with {setting}")


def _unstackable(config: RunConfig) -> Iterator[str]:
    training = config.training
    if training.trainer is not None:
        yield f"training.trainer {training.trainer.type}"
    if training.optimizer.type == "delta_sgd":
        yield "training.optimizer delta_sgd"  # its steps are as long as its own gradients say
    if config.elastic is not None:
        yield "elastic"  # owners have parts of unlike shapes
    for method in methods_of(Round(config.client_plan)):
        if type(method).gradient is not Method.gradient:
            yield f"method {method.name}, which changes owners' gradients"
    models = [config.model] if config.search is None else [one.config.model for one in make_slate(config).candidates]
    for model in models:
        yield from _unstackable_model(model)


def _unstackable_model(model: ModelConfigBase) -> Iterator[str]:
    if isinstance(model, OwnModelConfig):
        return  # nobody knows before it runs
    if not isinstance(model, ModelConfig):
        yield f"model.family {model.family}"
        return
    resolved = model.resolve()
    for layer in (*resolved.layers, *(resolved.encoder_stack.layers if resolved.encoder_stack is not None else ())):
        if isinstance(layer, RNNConfig) and layer.cell in ("gru", "lstm"):
            yield f"a layer rnn with cell {layer.cell}, for which PyTorch has no rule"
