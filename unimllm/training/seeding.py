"""One seed for everything that draws random numbers."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (initial weights; the loop seeds each step anew)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
