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
