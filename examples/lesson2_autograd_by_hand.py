# %% [markdown]
# # Lesson 2: the chain rule by hand on a network of two layers, beside what backward() computes
#
# An autograd engine does nothing else: forward, each operation notes how to pass a gradient back; backward walks these
# notes from the last to the first. Here they are written out.

# %%
import numpy as np

import minires as mr

F = mr.functional
SPIRALS, POINTS = 3, 100


def spirals(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) of three spirals, and which one each belongs to."""
    radius = np.tile(np.linspace(0.1, 1, POINTS), SPIRALS)
    labels = np.repeat(np.arange(SPIRALS), POINTS)
    angle = 4 * radius + labels * 2 * np.pi / SPIRALS + rng.normal(0, 0.1, len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32), labels


def gradients_by_hand(x: np.ndarray, labels: np.ndarray, w1, b1, w2, b2) -> list[np.ndarray]:
    """loss = cross_entropy(relu(x w1^T + b1) w2^T + b2), and its gradient by each weight, in NumPy."""
    h = x @ w1.T + b1  # forward: keep what the way back needs
    a = np.maximum(h, 0)
    z = a @ w2.T + b2
    e = np.exp(z - z.max(1, keepdims=True))

    dz = e / e.sum(1, keepdims=True)  # d loss / d z = (softmax(z) - one-hot(labels)) / N
    dz[np.arange(len(x)), labels] -= 1
    dz /= len(x)
    dw2, db2 = dz.T @ a, dz.sum(0)  # z = a w2^T + b2
    da = dz @ w2
    dh = np.where(a > 0, da, 0)  # a = relu(h)
    return [dh.T @ x, dh.sum(0), dw2, db2]  # h = x w1^T + b1


# %%
x, labels = spirals(np.random.default_rng(0))
mr.manual_seed(0)
net = mr.nn.Sequential(mr.nn.Linear(2, 64), mr.nn.ReLU(), mr.nn.Linear(64, SPIRALS))
points = mr.Tensor(x)
F.cross_entropy(net(points), labels).backward()
by_hand = gradients_by_hand(x, labels, *(p.numpy() for p in net.parameters()))
for (name, parameter), expected in zip(net.named_parameters(), by_hand, strict=True):
    difference = abs(parameter.grad.numpy() - expected).max() / abs(expected).max()
    print(f"gradient of {name:9} {parameter.shape!s:8} differs from the one by hand by {difference:.1e}")

# %%
optimizer = mr.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
for step in range(501):
    logits = net(points)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        accuracy = int(F.count_correct(logits, labels)) / len(labels)
        print(f"step {step:3}  loss {loss.item():.3f}  accuracy {accuracy:.1%}")
