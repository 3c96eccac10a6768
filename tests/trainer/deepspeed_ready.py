"""Opens DeepSpeed once, which compiles its communication extension where that is not there yet."""

import torch
from torch import nn

from trainer.config import OptimConfig
from trainer.engine.base import Setup
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.processes import group_scope

with group_scope():
    setup = Setup("fp32", 1, lambda world_size: 1)
    DeepSpeedEngine(nn.Linear(2, 2), OptimConfig(), setup, torch.device("cpu")).close()
