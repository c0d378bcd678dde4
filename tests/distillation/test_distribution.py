"""Many devices, accumulation, XLA: the weights of one device, in a process each."""

import json
import socket
from pathlib import Path

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
        [*MANY, 2],
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                [*MANY, 1],
                [*MANY, 4],
                ["--accumulation", 4],
                ["--steps-per-execution", 8],
                ["--jit"],
            )
        ),
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


def start_workers(*arguments, script=None):
    """Starts two workers, whose first argument differs."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index, worker_arguments in enumerate(arguments):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker"}}
        cluster["task"]["index"] = index
        environment = {"TF_CONFIG": json.dumps(cluster)}
        processes.append(
            start(*worker_arguments, environment=environment, script=script)
        )
    return processes


@pytest.mark.slow
def test_two_workers_train_the_weights_of_one_device(one_device, tmp_path):
    paths = [tmp_path / f"worker{index}.npz" for index in range(2)]
    for process in start_workers(*((path, "--strategy", "workers") for path in paths)):
        finish(process)
    for path in paths:
        assert largest_difference(one_device, path) < 1e-5


@pytest.mark.slow
def test_workers_stop_and_resume_together_without_a_shared_file_system(tmp_path):
    """A signal reaches one of them, and the other one has no checkpoint."""
    script = Path(__file__).with_name("train_workers.py")

    def run(name, stop_step=0):
        directories = [tmp_path / f"{name}{index}" for index in range(2)]
        for process in start_workers(
            (directories[0], 0), (directories[1], stop_step), script=script
        ):
            finish(process, timeout=120)
        return [np.load(directory / "end.npz") for directory in directories]

    whole = run("whole")
    for end in run("parts", stop_step=7):
        assert (int(end["start"]), int(end["last"])) == (0, 7)
    for expected, end in zip(whole, run("parts"), strict=True):
        assert (int(end["start"]), int(end["last"])) == (7, 20)
        for name in (name for name in end.files if name.startswith("arr_")):
            np.testing.assert_array_equal(end[name], expected[name])


def facts_of_replicas(about):
    script = Path(__file__).with_name("train_replicas.py")
    process = start(about, script=script)
    lines = finish(process).splitlines()
    return json.loads(next(line for line in lines if line.startswith("{")))


def test_two_replicas_drop_other_units_and_clip_the_summed_gradient():
    facts = facts_of_replicas("one step")
    for (first, count), (second, other_count) in facts["seeds"]:
        assert first != second
        assert count == other_count
    assert sum(count > 0 for (_, count), _ in facts["seeds"]) > 3
    # Shares that are clipped at the full limit add up to more than it.
    # Biases of keys, and what is above the distilled layer, have no gradient.
    updates = [update for update in facts["updates"] if update > 0.01]
    assert len(updates) > 10
    assert updates == pytest.approx([1.0] * len(updates), rel=1e-3)


@pytest.mark.slow
def test_replicas_drop_other_units_and_reproduce_them():
    facts = facts_of_replicas("dropout")
    for (first, count), (second, other_count) in facts["seeds"]:
        assert first != second
        assert count == other_count
    # Above the last projections nothing is dropped.
    counts = [count for (_, count), _ in facts["seeds"]]
    assert counts.count(4) > 3
    assert set(counts) == {0, 4}
    assert facts["parts"] == facts["resumed"] == 0.0


@pytest.mark.slow
def test_two_replicas_clip_as_one_device_does():
    facts = facts_of_replicas("clipping")
    assert set(facts) == {"clipnorm", "clipvalue"}
    assert max(facts.values()) < 1e-3


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
