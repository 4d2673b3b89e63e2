"""minilora: LoRA fine-tuning from scratch in NumPy."""

from minilora.adapter import Adapter
from minilora.checkpoint import load_adapter, load_model, save_adapter, save_model
from minilora.data.base import load_base
from minilora.data.names import decode, encode, load_names, names_task
from minilora.data.planted import PlantedTask, planted_task
from minilora.dataset import Dataset
from minilora.evaluation import evaluate
from minilora.generate import sample_names
from minilora.lora import (
    LoraConfig,
    ParameterCount,
    count_parameters,
    init_adapter,
    merge,
    select_modules,
    weight_changes,
)
from minilora.model import Model, ModelConfig, forward, init_params
from minilora.opt import load_opt, load_opt_adapter
from minilora.optim import AdamW, AdamWState
from minilora.stack import FineTuning, fit_stack
from minilora.train import DivergedError, History, TrainConfig, fit

__all__ = [
    "AdamW",
    "AdamWState",
    "Adapter",
    "Dataset",
    "DivergedError",
    "FineTuning",
    "History",
    "LoraConfig",
    "Model",
    "ModelConfig",
    "ParameterCount",
    "PlantedTask",
    "TrainConfig",
    "count_parameters",
    "decode",
    "encode",
    "evaluate",
    "fit",
    "fit_stack",
    "forward",
    "init_adapter",
    "init_params",
    "load_adapter",
    "load_base",
    "load_model",
    "load_names",
    "load_opt",
    "load_opt_adapter",
    "merge",
    "names_task",
    "planted_task",
    "sample_names",
    "save_adapter",
    "save_model",
    "select_modules",
    "weight_changes",
]
__version__ = "0.1.0"
