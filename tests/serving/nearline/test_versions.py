"""Which versions the near-line trainer judges against and removes, at a server that has rolled back by a label."""

import time

import click.testing
import pytest

from serving.model_server import config
from serving.nearline import judge
from tfmm import cli


@pytest.fixture
def rolled_back(tmp_path, write_models, serving_at):
    """A server with the versions 1, 2 and 3, all pushed by the trainer, of which 1 is labelled; (folder, order)."""
    versions = tmp_path / "m"
    for number in (1, 2, 3):
        write_models["half_plus_two"](versions / str(number), offset=float(number))
        judge._keep(versions, str(number), 0)
    path = tmp_path / "models.config"
    entry = f'config {{ name: "m" base_path: "{versions}" model_platform: "tensorflow" }}'
    path.write_text(f"model_config_list {{ {entry} }}")
    with serving_at(tmp_path / "s", models=tuple(config.read_file(str(path))), model_config_file=str(path),
                    config_poll_wait_s=0.1) as addresses:  # fmt: skip
        words = ["label", str(path), "stable=1", "--server", addresses["grpc"], "--model-name", "m"]
        result = click.testing.CliRunner().invoke(cli.main, words)
        assert result.exit_code == 0, result.output
        order, deadline = {"server": addresses["grpc"], "model_name": "m"}, time.monotonic() + 60
        while judge._loaded(order) != {"1": True}:  # the others are not labelled, and go
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield versions, order


def test_a_version_that_a_server_has_in_service_is_judged_against_and_stays(rolled_back):
    versions, order = rolled_back
    loaded = judge._loaded(order)
    assert judge._in_service(versions, loaded) == versions / "1"
    judge._keep(versions, "4", 1, loaded)
    assert sorted(path.name for path in versions.iterdir()) == [judge.PUSHED, "1"]
    assert (versions / judge.PUSHED).read_text().split() == ["1", "4"]  # it goes once it is out of service


def test_without_a_server_the_newest_is_in_service_and_one_that_is_away_says_nothing(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "8").mkdir()
    assert judge._loaded({"server": ""}) == {} and judge._in_service(tmp_path, {}) == tmp_path / "8"
    away = judge._loaded({"server": "127.0.0.1:1", "model_name": "m"})
    assert away is None and judge._in_service(tmp_path, away) == tmp_path / "8"
