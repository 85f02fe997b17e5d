"""Sparse training from scratch, method against method: `python benchmarks/sparse_training.py`.

Tasks (`--tasks`): Fashion-MNIST with an MLP, a ResNet with BatchNorm and a small ViT; topics of 20 newsgroups and R52
with an MLP over word counts. Methods: dense, and at each sparsity static (random), SET, RigL, MEST, BiDST, and BiDST with
S2-SAM and ZO-SAM. All get the same data, epochs, learning rate, schedule, ERK budgets and random first topology; a seed
fixes initial weights and order of batches for all methods alike.

Each run is written to `results/sparse_training/runs.json` when it ends, and not done again: the same command goes on
where it stopped. Then the table and the plot are made of whatever runs there are. Accuracy is that of the last epoch on
the test set (no run is chosen by it). Training FLOPs are counted from densities and steps, not measured. Mask work is
measured: seconds spent on scores, exchanges and on copying the gradients they read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from real_data import fashion_mnist, newsgroups, reuters
from torch import Tensor, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from peft import get_peft_model

from hf_efficient import S2SAM, ZOSAM, BiDSTConfig, train_sparsely
from hf_efficient.sparsity.layer import BiDSTLayer
