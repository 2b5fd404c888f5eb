"""Run by torchrun with a configuration: a run of two processes in which writing fails, and its resumption.

The checkpoint of the second step fails in process 1, that of the third in process 0. When the run is done, the
checkpoints behind the fourth are removed, and it goes on from there.
"""

from __future__ import annotations

import shutil
import sys

import torch
from apar.train import load_config, train
from apar.train.saving import checkpoints
from apar.train.trainer import TreeTrainer

config = load_config(sys.argv[1])
plain_save = TreeTrainer._save_rng_state


def save_or_fail(self: TreeTrainer, folder: str) -> None:
    if (self.state.global_step, self.args.process_index) in ((2, 1), (3, 0)):
        raise OSError(28, "No space left on device")
    plain_save(self, folder)


TreeTrainer._save_rng_state = save_or_fail
output = train(config)
torch.distributed.barrier()
if torch.distributed.get_rank() == 0:
    assert [folder.name for folder in checkpoints(output)] == [f"checkpoint-{step}" for step in (1, 4, 5, 6)]
    for folder in checkpoints(output)[2:]:
        shutil.rmtree(folder)
torch.distributed.barrier()
train(config, resume=True)
