import json
import socket
import threading
import time

import pytest

from keras_minilmv2.training import strategy


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def config(workers, index):
    return json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    )


def test_a_worker_that_is_not_there_is_named(monkeypatch):
    workers = [free_address(), free_address()]
    monkeypatch.setenv("TF_CONFIG", config(workers, 0))
    monkeypatch.setattr(strategy, "_WORKER_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"Received: {workers[1]}, not there"):
        strategy.make_strategy("multi_worker")
    assert time.monotonic() - started < 5


def test_workers_that_come_late_are_awaited(monkeypatch):
    workers = [free_address() for _ in range(3)]
    errors = []
    # One environment for all threads: each reads it before the next one is set.
    read = threading.Event()
    loads = json.loads

    def loads_once(text):
        read.set()
        return loads(text)

    monkeypatch.setattr(strategy.json, "loads", loads_once)

    def wait():
        try:
            strategy._await_workers()
        except Exception as error:
            errors.append(error)

    threads = []
    for index in range(3):
        monkeypatch.setenv("TF_CONFIG", config(workers, index))
        read.clear()
        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        read.wait()
        time.sleep(0.5)
    for thread in threads:
        thread.join(20)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)


def test_unknown_strategies_are_refused():
    with pytest.raises(ValueError, match="`strategy` must be one of auto, one_device"):
        strategy.make_strategy("gpu")


def test_several_workers_need_tf_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="names several workers. Received: 1 of them"):
        strategy.make_strategy("multi_worker")
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="TF_CONFIG must be a JSON object"):
        strategy.make_strategy("auto")


def test_one_device_is_found(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert strategy.make_strategy("auto").num_replicas_in_sync == 1
    assert strategy.is_chief(strategy.make_strategy("one_device"))
