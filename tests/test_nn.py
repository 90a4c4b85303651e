import numpy as np
import pytest

import minires as mr


def test_names_and_state():
    net = mr.nn.Sequential(mr.nn.Conv2d(3, 4, 3, bias=True), mr.nn.BatchNorm2d(4), mr.nn.ReLU(), mr.nn.AvgPool2d(2))
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(net.state_dict()) == [*(n for n, _ in net.named_parameters()), "1.running_mean", "1.running_var"]
    assert net(mr.Tensor(np.ones((2, 6, 6, 3), np.float32))).shape == (2, 2, 2, 4)


def test_the_seed_decides_the_weights():
    states = []
    for seed in (5, 5, 6):
        mr.manual_seed(seed)
        states.append(mr.resnet.resnet(8).state_dict())
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])
    assert not np.array_equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def test_files_have_the_filters_as_pytorch_has_them(rng):
    """O x C x KH x KW in state_dict() and the optimiser's state, KH x KW x C x O in the layer."""
    layer = mr.nn.Conv2d(3, 4, (2, 5))
    optimizer = mr.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    filters, velocity = (rng.standard_normal((4, 3, 2, 5)).astype(np.float32) for _ in range(2))
    layer.load_state_dict({"weight": filters})
    optimizer.load_state_dict({"velocity.0": velocity})
    assert layer.weight.shape == (2, 5, 3, 4) and layer.weight.numpy()[1, 4, 2, 3] == filters[3, 2, 1, 4]
    np.testing.assert_array_equal(layer.state_dict()["weight"], filters)
    np.testing.assert_array_equal(optimizer.state_dict()["velocity.0"], velocity)
    layer.weight.grad = mr.Tensor(np.zeros(layer.weight.shape, np.float32))
    optimizer.step()
    np.testing.assert_allclose(layer.state_dict()["weight"], filters - 0.1 * 0.9 * velocity, rtol=1e-5, atol=1e-6)


def test_he_initialisation_with_fan_out():
    mr.manual_seed(0)
    weight = mr.nn.Conv2d(64, 128, (3, 5)).weight.numpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / (128 * 15)), rel=0.01)
    assert abs(weight.mean()) < 0.001


def test_state_dict_round_trip_and_refusals():
    a, b = mr.resnet.resnet(8), mr.resnet.resnet(8)
    state = a.state_dict() | {"bn1.num_batches_tracked": np.array(3)}
    b.load_state_dict(state)
    for name, value in b.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    before = b.state_dict()
    with pytest.raises(KeyError, match=r"missing \['conv1.weight'\], unknown \['extra'\]"):
        b.load_state_dict({k: v for k, v in state.items() if k != "conv1.weight"} | {"extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"fc.bias has the shape \(10,\), the state's \(9,\)"):
        b.load_state_dict({k: np.zeros_like(v) for k, v in before.items()} | {"fc.bias": np.zeros(9, np.float32)})
    for name, value in b.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_train_and_eval_reach_every_module():
    net = mr.resnet.resnet(8)
    norm = net.layer1.children().__next__()[1].bn1
    assert norm.training and not net.eval().training and not norm.training
    net.train()
    assert norm.training


def test_bad_sizes():
    with pytest.raises(ValueError, match="in_channels must be an integer of at least 1, got 0"):
        mr.nn.Conv2d(0, 3, 3)
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        mr.nn.Conv2d(1, 3, 0)
    with pytest.raises(ValueError, match="num_features"):
        mr.nn.BatchNorm2d(-1)
    with pytest.raises(ValueError, match="out_features"):
        mr.nn.Linear(3, 2.5)


def test_linear_layer(rng):
    layer = mr.nn.Linear(5, 3)
    x = rng.standard_normal((4, 5)).astype(np.float32)
    np.testing.assert_allclose(layer(mr.Tensor(x)).numpy(), x @ layer.weight.numpy().T + layer.bias.numpy(), atol=1e-5)
