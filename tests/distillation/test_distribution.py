"""Many devices, accumulation, XLA: the weights of one device, in a process each."""

import json
import socket

import numpy as np
import pytest
from processes import finish, largest_difference, start


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "one.npz"
    finish(start(path))
    return path


MANY = ["--strategy", "mirrored", "--devices"]
EVERYTHING = [*MANY, 2, "--accumulation", 2, "--steps-per-execution", 4, "--jit"]


@pytest.mark.slow
def test_everything_at_once_trains_the_weights_of_one_device(one_device, tmp_path):
    finish(start(tmp_path / "other.npz", *EVERYTHING))
    assert largest_difference(one_device, tmp_path / "other.npz") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [*MANY, 1],
        [*MANY, 2],
        [*MANY, 4],
        ["--accumulation", 4],
        ["--steps-per-execution", 8],
        ["--jit"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_each_option_trains_the_weights_of_one_device(one_device, tmp_path, options):
    finish(start(tmp_path / "other.npz", *options))
    assert largest_difference(one_device, tmp_path / "other.npz") < 1e-5


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_two_workers_train_the_weights_of_one_device(one_device, tmp_path):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker"}}
        cluster["task"]["index"] = index
        processes.append(
            start(
                tmp_path / f"worker{index}.npz",
                "--strategy",
                "workers",
                environment={"TF_CONFIG": json.dumps(cluster)},
            )
        )
    for process in processes:
        finish(process)
    for index in range(2):
        path = tmp_path / f"worker{index}.npz"
        assert largest_difference(one_device, path) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_runs_on_two_devices(one_device, tmp_path, dtype):
    finish(start(tmp_path / "other.npz", *MANY, 2, "--dtype", dtype))
    with np.load(one_device) as a, np.load(tmp_path / "other.npz") as b:
        assert float(b["held_out"]) == pytest.approx(float(a["held_out"]), rel=0.05)


@pytest.mark.slow
def test_dropout_gives_the_same_curve_within_noise(tmp_path):
    finish(start(tmp_path / "one.npz", "--dropout", 0.1))
    finish(start(tmp_path / "two.npz", *MANY, 2, "--dropout", 0.1))
    with np.load(tmp_path / "one.npz") as a, np.load(tmp_path / "two.npz") as b:
        assert float(b["held_out"]) == pytest.approx(float(a["held_out"]), rel=0.1)
