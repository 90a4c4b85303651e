"""The training step that the tests of recorded graphs and of the late GPU take."""

from collections.abc import Callable

import minires as mr


def training_step(net: mr.nn.Module, optimizer: mr.optim.SGD) -> Callable:
    """What a batch's images and labels do to the network; it gives the loss, and how many answers were right."""

    def step(x, labels):
        logits = net(x)
        loss = mr.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), mr.functional.count_correct(logits, labels)

    return step
