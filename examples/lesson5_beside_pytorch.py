# %% [markdown]
# # Lesson 5: the same training step in minires and in PyTorch
#
# The names are the same, so are the formulas, and so are the numbers, up to rounding: the sums are added up in another
# order. This runs in float64, where that is 1e-15 or so. In float32 it is 1e-7, but a network of ReLUs has kinks: of half
# a million activations one may lie so near to zero that rounding puts it on the other side. Its gradient then passes in one
# library and not in the other, and the gradients differ by 1e-3 at that step, and by more at the next ones; neither is
# wrong.

# %%
# %pip install --quiet torch

# %%
import numpy as np
import torch
from pytorch_weights import TorchResNet, channels_first

import minires as mr

rng = np.random.default_rng(0)
images, labels = rng.standard_normal((16, 32, 32, 3)), rng.integers(0, 10, 16)

mr.manual_seed(0)
ours = mr.resnet.resnet20().to(np.float64)
theirs = TorchResNet().double()
state = {name: torch.from_numpy(array) for name, array in ours.state_dict().items()}
theirs.load_state_dict(state, strict=False)  # PyTorch also counts batches, in num_batches_tracked

options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
our_optimizer = mr.optim.SGD(ours.parameters(), **options)
their_optimizer = torch.optim.SGD(theirs.parameters(), **options)

print(f"{'step':>4}{'minires loss':>15}{'PyTorch loss':>15}{'gradients differ by':>22}")
for step in range(1, 4):
    our_loss = mr.functional.cross_entropy(ours(mr.Tensor(images)), labels)
    their_loss = torch.nn.functional.cross_entropy(theirs(channels_first(images)), torch.from_numpy(labels))
    for optimizer, loss in ((our_optimizer, our_loss), (their_optimizer, their_loss)):
        optimizer.zero_grad()
        loss.backward()
    gradients = zip(ours.parameters(), theirs.parameters(), strict=True)
    pairs = [(mr.checkpoint.channels_first(a.grad.numpy()), b.grad.numpy()) for a, b in gradients]
    # Of one number: how far apart all gradients are, as vectors, against their length.
    difference = np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs))
    print(f"{step:4}{our_loss.item():15.9f}{their_loss.item():15.9f}{difference:22.1e}")
    our_optimizer.step()
    their_optimizer.step()
