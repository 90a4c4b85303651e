"""Trains a ResNet for some steps and prints what came of it; tests run it on the late GPU, with some seeds, and on the CPU."""

import gc
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import minires as mr
from minires import device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from steps import training_step  # noqa: E402

now = device.current()
now.tiling = "cuda"
late = now.name == "cuda"
if late:
    import cupy
    from cupy import _memory, _queues


def run(depth: int, steps: int, recorded: bool) -> dict:
    mr.manual_seed(0)
    net = mr.resnet.resnet(depth)
    optimizer = mr.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def test(x, labels):
        with mr.no_grad():
            return mr.functional.cross_entropy(net(x), labels)

    step, evaluate = (mr.graph(f) if recorded else f for f in (training_step(net, optimizer), test))
    data = mr.cifar.synthetic(4, 4)
    # The middle of each image: what this is about is the order of launches, not their size.
    train, held_out = (
        mr.cifar.Split(np.ascontiguousarray(s.images[:, 12:20, 12:20]), s.labels) for s in (data.train, data.test)
    )
    report = {"losses": [], "allocated_after": [], "waits_in_a_step": 0, "in_dictionaries": []}
    loader = mr.cifar.Loader(train, 2, train=True)
    done = 0
    while done < steps:
        loader.epoch = done
        for x, labels in loader:
            optimizer.lr = 0.1 / (1 + done)
            before = _queues.waits if late else 0
            loss, correct = step(x, labels)
            if late and done >= 4:
                report["waits_in_a_step"] += _queues.waits - before
            report["losses"].append([loss.item(), int(correct)])
            done += 1
            if late:
                report["allocated_after"].append(_memory.allocated)
            if done in (4, steps):
                gc.collect()
                report["in_dictionaries"].append(sum(len(o) for o in gc.get_objects() if type(o) is dict))
            if done == steps:
                break
    net.eval()
    report["accuracy"] = [
        float(evaluate(x, labels).item()) for _ in range(4) for x, labels in mr.cifar.Loader(held_out, 2, train=False)
    ]
    state = net.state_dict() | optimizer.state_dict()
    report["state"] = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in state.values())).hexdigest()
    return report


depth, steps, mode, *seeds = sys.argv[1:]
reports = []
for seed in map(int, seeds):
    if late:
        cupy.late_seed(seed)
    reports.append(run(int(depth), int(steps), mode == "graph"))
print(json.dumps(reports))
