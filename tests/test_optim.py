import math

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
    with pytest.raises(ValueError, match="total_steps must be at least 1"):
        mr.optim.OneCycleLR(optimizer, 0.4, 0)
    with pytest.raises(ValueError, match="StepLR: step_size must be at least 1, got 0"):
        mr.optim.StepLR(optimizer, 0)
    with pytest.raises(ValueError, match="CosineAnnealingLR: T_max must be at least 1, got 0"):
        mr.optim.CosineAnnealingLR(optimizer, 0)
