import numpy as np
import pytest

import minires as mr


def test_round_trip(tmp_path):
    net = mr.resnet.resnet(8)
    path = tmp_path / "new" / "net.safetensors"
    for epoch in ("1", "2"):
        mr.checkpoint.save(path, net.state_dict(), {"epoch": epoch})
    arrays, metadata = mr.checkpoint.load(path)
    assert metadata == {"epoch": "2"}
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(arrays[name], value)
    assert list(path.parent.iterdir()) == [path]


def test_unusable_files(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(mr.checkpoint.CheckpointError, match="cannot read"):
        mr.checkpoint.load(path)
    mr.checkpoint.save(path, {"a": np.ones(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(mr.checkpoint.CheckpointError, match="not a whole safetensors file"):
        mr.checkpoint.load(path)
    with pytest.raises(mr.checkpoint.CheckpointError, match="cannot write"):
        mr.checkpoint.save("/proc/nothing/net.safetensors", {"a": np.ones(1)})


def test_half_precision_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    values = torch.tensor([1.5, -2.25, 3e30])
    save({"b": values.bfloat16(), "h": values[:2].half(), "f": values}, tmp_path / "t.safetensors")
    arrays, _ = mr.checkpoint.load(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(arrays["b"], values.bfloat16().float().numpy())
    assert arrays["b"].dtype == arrays["f"].dtype == np.float32 and arrays["h"].tolist() == [1.5, -2.25]
    net, state = mr.resnet.resnet(8), {}
    for name, value in net.state_dict().items():
        state[name] = value.astype(np.float16)
    for tensor in mr.resnet.from_state_dict(state).state_dict().values():
        assert tensor.dtype == np.float32


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path, kind):
    path = tmp_path / "net.pth"
    path.write_bytes({"zip": b"PK\x03\x04rest", "pickle": b"\x80\x02}q\x00."}[kind])
    with pytest.raises(mr.checkpoint.CheckpointError, match=r"net.pth is a pickle.*torch.load.*net.safetensors"):
        mr.checkpoint.load(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_all_names_are_taken_off(prefix):
    net = mr.resnet.resnet(8, shortcut="B")
    state = {prefix + name: value for name, value in net.state_dict().items()}
    loaded = mr.resnet.from_state_dict(state).state_dict()
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("fc.weight"), "nearest is ResNet-14, shortcut A\nexpected and not found: fc.weight (10, 64)\n"),
        (lambda s: s.update(extra=np.zeros(3)), "nothing\nfound and not expected: extra (3,)"),
        (lambda s: s.update({"conv1.weight": np.zeros((64, 3, 7, 7))}), "found and not expected: conv1.weight (64, 3, 7, 7)"),
        (lambda s: s.clear(), "nearest is ResNet-8"),
        (lambda s: [s.pop(k) for k in list(s) if "layer3" in k], "expected and not found: layer3.0.bn1.bias (64,)"),
    ],
    ids=range(5),
)
def test_other_weights_are_named_in_three_lines(change, words):
    state = mr.resnet.resnet(14).state_dict()
    change(state)
    with pytest.raises(ValueError, match="these are not the weights of a ResNet of BasicBlocks") as caught:
        mr.resnet.from_state_dict(state)
    message = str(caught.value)
    assert words in message and len(message.splitlines()) == 3, message
