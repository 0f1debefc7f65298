"""A Lightning module with hyper-parameters of a class of its own."""

import pytorch_lightning
import torch
import torch.nn.functional as F
from checkpoint.files_for_tests import net


class Schedule:  # what people keep in hyper-parameters
    def __init__(self, rate):
        self.rate = rate


class Lit(pytorch_lightning.LightningModule):
    def __init__(self, schedule, width=4):
        super().__init__()
        self.save_hyperparameters()
        self.model = net()

    def training_step(self, batch, _):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
