"""Training on paragraph trees, each packed once.

from apar.train import load_config, train
folder = train(load_config("config.yaml"))
"""

from apar.train.config import LoraConfig, TrainConfig, load_config
from apar.train.run import train

__all__ = ["LoraConfig", "TrainConfig", "load_config", "train"]
