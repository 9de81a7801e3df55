"""Two processes train as one does, and a training of which one is killed goes on when it is started again."""

import json
import re
import signal
import socket

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def free_places(count):
    """Addresses of this machine, each with a port of its own that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    places = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return places


def read(folder):
    (path,) = folder.glob("checkpoints/*/state.npz")
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "__meta__"}


def history(folder):
    lines = json.loads((folder / "history.json").read_text())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture
def start_both(start_training):
    def start(output, trainers):
        places = free_places(2)
        own = {"cluster": places}
        return [start_training(output, "multi_worker", trainers, "later", index=index, **own) for index in range(2)]

    return start


@pytest.mark.timeout(1800)
def test_two_processes_train_as_one_and_go_on_where_one_was_killed(start_training, start_both, tmp_path):
    trainers = ("text", "make", "ctr")
    alone = start_training(tmp_path, "one", ",".join(trainers), "later")
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors[-3000:]
    whole = start_both(tmp_path, ",".join(trainers))
    for process in whole:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    for name in trainers:
        one, two = (tmp_path / strategy / name / "later" for strategy in ("one", "multi_worker"))
        state, found = read(one), read(two)
        for variable, value in state.items():
            if not variable.startswith("optimizer/"):
                np.testing.assert_allclose(found[variable], value, atol=1e-3, err_msg=f"{name} {variable}")
        assert json.loads((two / "manifest.json").read_text())["kind"]

    killed = tmp_path / "killed"
    chief, other = start_both(killed, "ctr")
    while int(chief.stdout.readline().split()[1]) < 12:
        pass
    other.send_signal(signal.SIGKILL)
    _, errors = chief.communicate()
    assert chief.returncode == 1
    assert re.search(r"ConnectionError: Every process.*Start all of them again: training goes on from", errors)
    folder = killed / "multi_worker" / "ctr" / "later"
    assert not (folder / "manifest.json").exists()
    again = start_both(killed, "ctr")
    said = again[0].stdout.readline()
    for process in again:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    assert "parts were trained before" in said and int(said.split()[1]) >= 8
    uninterrupted = tmp_path / "multi_worker" / "ctr" / "later"
    assert history(folder) == history(uninterrupted)
    for variable, value in read(uninterrupted).items():
        np.testing.assert_array_equal(read(folder)[variable], value, err_msg=variable)
