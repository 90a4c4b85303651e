import math

import numpy as np
import pytest

import minires as mr

torch = pytest.importorskip("torch", reason="compares with PyTorch's schedules: pip install torch")

SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 7], "gamma": 0.1}),
    ("CosineAnnealingLR", {"T_max": 20, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": 0.4, "total_steps": 21}),
    ("OneCycleLR", {"max_lr": 0.4, "total_steps": 21, "pct_start": 0.2, "div_factor": 10, "final_div_factor": 100}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=str)
def test_rates_are_pytorchs(name, options):
    ours = mr.optim.SGD([mr.Tensor([1.0], requires_grad=True)], 0.3)
    theirs = torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.3)
    extra = {"cycle_momentum": False} if name == "OneCycleLR" else {}
    our_schedule = getattr(mr.optim, name)(ours, **options)
    their_schedule = getattr(torch.optim.lr_scheduler, name)(theirs, **options, **extra)
    for _ in range(20):
        assert math.isclose(ours.lr, theirs.param_groups[0]["lr"], rel_tol=1e-12)
        theirs.step()
        our_schedule.step()
        their_schedule.step()


def test_one_cycle_ends():
    optimizer = mr.optim.SGD([mr.Tensor([1.0], requires_grad=True)], 0.3)
    schedule = mr.optim.OneCycleLR(optimizer, 0.4, 2)
    schedule.step()
    schedule.step()
    with pytest.raises(ValueError, match="step 3 of 2"):
        schedule.step()
    with pytest.raises(ValueError, match="total_steps must be an integer of at least 1"):
        mr.optim.OneCycleLR(optimizer, 0.4, 0)
    with pytest.raises(ValueError, match="StepLR: step_size must be an integer of at least 1, got 0"):
        mr.optim.StepLR(optimizer, 0)
    with pytest.raises(ValueError, match="CosineAnnealingLR: T_max must be an integer of at least 1, got 0"):
        mr.optim.CosineAnnealingLR(optimizer, 0)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_every_number_states_its_range(value):
    x, ones = mr.Tensor(np.ones((2, 2, 2, 3), np.float32)), mr.Tensor(np.ones(3, np.float32))
    optimizer = mr.optim.SGD([mr.Tensor([1.0], requires_grad=True)], 0.3)
    calls = {
        "SGD: lr": lambda: mr.optim.SGD(optimizer.params, value),
        "SGD: momentum": lambda: mr.optim.SGD(optimizer.params, 0.1, value),
        "SGD: weight_decay": lambda: mr.optim.SGD(optimizer.params, 0.1, weight_decay=value),
        "SGD: lr ": lambda: setattr(optimizer, "lr", value),
        "StepLR: gamma": lambda: mr.optim.StepLR(optimizer, 3, value),
        "MultiStepLR: gamma": lambda: mr.optim.MultiStepLR(optimizer, [3], value),
        "CosineAnnealingLR: eta_min": lambda: mr.optim.CosineAnnealingLR(optimizer, 3, value),
        "OneCycleLR: max_lr": lambda: mr.optim.OneCycleLR(optimizer, value, 3),
        "OneCycleLR: pct_start": lambda: mr.optim.OneCycleLR(optimizer, 1.0, 3, value),
        "OneCycleLR: div_factor": lambda: mr.optim.OneCycleLR(optimizer, 1.0, 3, div_factor=value),
        "OneCycleLR: final_div_factor": lambda: mr.optim.OneCycleLR(optimizer, 1.0, 3, final_div_factor=value),
        "batch_norm: eps": lambda: mr.functional.batch_norm(x, ones, ones, ones, ones, eps=value),
        "batch_norm: momentum": lambda: mr.functional.batch_norm(x, ones, ones, ones, ones, momentum=value),
        "batch_norm_relu: eps": lambda: mr.functional.batch_norm_relu(x, ones, ones, ones, ones, eps=value),
        "BatchNorm2d: eps": lambda: mr.nn.BatchNorm2d(3, eps=value),
        "BatchNorm2d: momentum": lambda: mr.nn.BatchNorm2d(3, momentum=value),
        "cross_entropy: label_smoothing": lambda: mr.functional.cross_entropy(mr.Tensor([[1.0]]), [0], value),
        "gradcheck: eps": lambda: mr.gradcheck(mr.functional.relu, [mr.Tensor(np.ones(2))], eps=value),
        "gradcheck: rtol": lambda: mr.gradcheck(mr.functional.relu, [mr.Tensor(np.ones(2))], rtol=value),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name.strip()} must (lie in|be finite and at least) .*, got {value}"):
            call()
    for name, call in {
        "momentum": lambda: mr.functional.batch_norm(x, ones, ones, ones, ones, momentum=1.5),
        "pct_start": lambda: mr.optim.OneCycleLR(optimizer, 1.0, 3, 1.5),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must lie in 0 .. 1, got 1.5"):
            call()
