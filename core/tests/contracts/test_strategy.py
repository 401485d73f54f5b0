"""The defaults of a strategy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen import Module, Strategy


class One(Strategy):
    name = "one"
    root_device = torch.device("cpu")

    def connect(self, accelerator, devices, num_nodes, environment):
        pass


def test_the_defaults_of_a_strategy_are_right_for_one_process():
    strategy, value = One(), torch.arange(3.0)
    assert (strategy.world_size, strategy.global_rank, strategy.local_rank, strategy.node_rank) == (1, 0, 0, 0)
    assert strategy.all_reduce(value) is value
    assert strategy.all_gather(value).shape == (1, 3)
    assert (strategy.broadcast("a"), strategy.agree(2), strategy.barrier("here")) == ("a", 2, None)
    assert (strategy.launcher, strategy.sampler_arguments(), strategy.no_sync(nn.Identity())) == (None, None, None)
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    assert strategy.setup_module(layer) is layer
    assert strategy.setup_optimizers([optimizer]) == [optimizer]
    assert strategy.wrap_step(Module(), "training_step", len) is len
    strategy.backward(layer, layer(torch.ones(1, 1)).sum())
    assert strategy.clip_grad_norm(list(layer.parameters()), 0.1) == pytest.approx(2**0.5)
    optimizer.step()
    strategy.load_optimizer_state(torch.optim.Adam(layer.parameters()), strategy.optimizer_state(optimizer))
    strategy.load_module_state(nn.Linear(1, 1), strategy.module_state(layer))
    with strategy.init_context():
        assert strategy.setup_environment() is strategy.teardown() is None
