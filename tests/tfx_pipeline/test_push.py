"""A push that was killed before it was written down is not made again."""

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from tfmm.stages import folders
from tfx_pipeline import push


def blessed(kind, passed=1):
    artifact = kind()
    artifact.set_int_custom_property("blessed", passed)
    return artifact


@pytest.fixture
def do(tmp_path):
    """Returns a function that pushes a model of some bytes, as a run of its own; it returns what is written down."""

    def push_one(content, passed=1):
        model, pushed = standard_artifacts.Model(), standard_artifacts.PushedModel()
        model.uri, pushed.uri = (str(tmp_path / name) for name in ("model", "pushed"))
        version = tmp_path / "model" / folders.SERVING
        version.mkdir(parents=True, exist_ok=True)
        (version / "saved_model.pb").write_bytes(content)
        destination = pusher_pb2.PushDestination()
        destination.filesystem.base_directory = str(tmp_path / "serving")
        inputs = {
            "model": [model],
            "model_blessing": [blessed(standard_artifacts.ModelBlessing)],
            "infra_blessing": [blessed(standard_artifacts.InfraBlessing, passed)],
        }
        settings = {"push_destination": proto_utils.proto_to_json(destination)}
        push.Executor().Do(inputs, {"pushed_model": [pushed]}, settings)
        return pushed.get_int_custom_property("pushed"), pushed.get_string_custom_property("pushed_version")

    return push_one


def test_what_is_in_service_to_the_last_byte_is_not_pushed_again(do, tmp_path):
    place = tmp_path / "serving" / "1000" / "saved_model.pb"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"graph")  # by a run that was killed then
    assert do(b"graph") == (1, "1000")
    assert [path.name for path in (tmp_path / "serving").iterdir()] == ["1000"]


def test_another_model_is_pushed_and_one_without_the_blessings_is_not(do, tmp_path):
    is_pushed, version = do(b"graph")
    assert is_pushed and (tmp_path / "serving" / version / "saved_model.pb").read_bytes() == b"graph"
    assert do(b"other", passed=0) == (0, "")
    assert [path.name for path in (tmp_path / "serving").iterdir()] == [version]
