import pathlib

import pytest

from tfmm import presets
from tfx_pipeline import environments


def test_variables_describe_the_environment(tmp_path):
    environment = environments.Environment(tmp_path / "work", tmp_path / "data", presets.quickstart())
    assert environments.Environment.from_variables(environment.to_variables()) == environment


def test_index_is_where_a_variable_says_and_else_in_the_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = "redis://127.0.0.1:6379/0?prefix=items"
    variables = {"TFMM_WORKDIR": "work", "TFMM_INDEX": index}
    environment = environments.Environment.from_variables(variables)
    assert environment.index_url == index
    assert environments.Environment.from_variables(environment.to_variables()) == environment
    assert environments.Environment.from_variables({"TFMM_INDEX": "a.sqlite"}).index_url == f"{tmp_path}/a.sqlite"
    own = environments.Environment(tmp_path / "work", None, presets.small())
    assert own.index_url == f"{tmp_path}/work/index/items.sqlite"
    hidden = environments.Environment.from_variables({"TFMM_INDEX": index, **own.to_variables()})
    assert hidden.index_url == own.index_url


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://me:secret@host:6379/0", r"must hold no password.*redis://me:\*\*\*@host:6379/0\. Put"),
        ("redis://host:6379/0?password=secret", "must hold no password.*REDISCLI_AUTH"),
        ("rediss://host:6379/0?ssl_password=secret", "must hold no password.*REDISCLI_AUTH"),
        ("mongodb://me:secret@host", r"\(TFMM_INDEX\) must be one of .*'redis'.* Received: mongodb://me:\*\*\*@host\."),
    ],
)
def test_index_that_no_run_can_be_given_is_refused_without_its_password(url, fault):
    with pytest.raises(ValueError, match=fault) as refused:
        environments.Environment.from_variables({"TFMM_INDEX": url})
    assert "secret" not in str(refused.value)


def test_without_variables_the_marketplace_is_made_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = environments.Environment.from_variables({})
    assert environment == environments.Environment(tmp_path / "tfmm_workdir", None, presets.small())


def test_data_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"one")
    before = environments.data_fingerprint(tmp_path)
    assert environments.data_fingerprint(tmp_path) == before
    (tmp_path / "items.parquet").write_bytes(b"other")
    assert environments.data_fingerprint(tmp_path) != before


def test_data_fingerprint_follows_parts_behind_links_and_in_folders(tmp_path):
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (folder / "items" / "dt=1").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "impressions").symlink_to(elsewhere)
    (folder / "items" / "dt=2").symlink_to(elsewhere)
    found = [environments.data_fingerprint(folder)]
    for path in (folder / "items" / "dt=1" / "a.parquet", elsewhere / "a.parquet", elsewhere / "b.parquet"):
        path.write_bytes(b"some")
        found.append(environments.data_fingerprint(folder))
    (elsewhere / "b.parquet").unlink()
    assert environments.data_fingerprint(folder) == found[2]
    (elsewhere / "a.parquet").write_bytes(b"others")
    found.append(environments.data_fingerprint(folder))
    (folder / "users.parquet").write_bytes(b"")
    found.append(environments.data_fingerprint(folder))
    assert len(set(found)) == 6


def test_data_fingerprint_leaves_out_what_a_run_writes_into_the_data_folder(tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"one")
    (tmp_path / "run").mkdir()
    before = environments.data_fingerprint(tmp_path)
    (tmp_path / "run" / "progress.jsonl").write_text("{}")
    assert environments.data_fingerprint(tmp_path) == before


def test_newest_version_is_the_highest_complete_one(tmp_path):
    assert environments.newest_version(tmp_path) is None
    for name, complete in (("9", True), ("10", True), ("11", False), ("temporary", True)):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / "saved_model.pb").touch()
    assert environments.newest_version(tmp_path) == pathlib.Path(tmp_path / "10")


def test_latest_outputs_are_those_of_the_last_run_even_if_the_cache_gave_them(tmp_path):
    metadata_store = pytest.importorskip("ml_metadata.metadata_store", reason="TFX is not installed")
    from ml_metadata.proto import metadata_store_pb2 as protos

    connection = protos.ConnectionConfig()
    connection.sqlite.filename_uri = str(tmp_path / "metadata.sqlite")
    connection.sqlite.connection_mode = protos.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    store = metadata_store.MetadataStore(connection)
    artifact_type = store.put_artifact_type(protos.ArtifactType(name="Make"))
    execution_type = store.put_execution_type(protos.ExecutionType(name="MAKETrainer"))
    first, second = store.put_artifacts(
        [protos.Artifact(type_id=artifact_type, uri=f"/root/MAKETrainer/make/{n}") for n in (1, 2)]
    )
    states = (protos.Execution.COMPLETE, protos.Execution.COMPLETE, protos.Execution.CACHED, protos.Execution.FAILED)
    executions = store.put_executions(
        [protos.Execution(type_id=execution_type, last_known_state=state) for state in states]
    )
    store.put_events(
        [
            protos.Event(artifact_id=artifact, execution_id=execution, type=protos.Event.OUTPUT)
            for artifact, execution in zip((first, second, first, second), executions, strict=True)
        ]
    )
    assert environments.latest_outputs(tmp_path / "metadata.sqlite") == {"MAKETrainer.make": "/root/MAKETrainer/make/1"}


def test_data_of_the_shell_is_hidden_from_a_run_without_data(tmp_path):
    variables = environments.Environment(tmp_path, None, presets.small()).to_variables()
    assert environments.Environment.from_variables({"TFMM_DATA": "/elsewhere", **variables}).data_dir is None


def test_workdir_that_tfx_takes_for_a_pattern_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"none of \* \? \[ \\ in its path.*run\[v2\]. Name another folder"):
        environments.Environment.from_variables({"TFMM_WORKDIR": str(tmp_path / "run[v2]")})


def test_workdir_in_a_bucket_is_refused_before_any_work_and_data_may_lie_there(tmp_path):
    with pytest.raises(ValueError, match=r"The workdir \(TFMM_WORKDIR\) must lie in a folder of this.*gs://b/w.*Mount"):
        environments.Environment.from_variables({"TFMM_WORKDIR": "gs://b/w"})
    environment = environments.Environment.from_variables({"TFMM_WORKDIR": str(tmp_path), "TFMM_DATA": "gs://b/tables"})
    assert environment.data_dir == "gs://b/tables"
    assert environments.Environment.from_variables(environment.to_variables()) == environment


def test_data_fingerprint_follows_the_files_of_a_bucket():
    tf = pytest.importorskip("tensorflow")
    found = []
    for text in ("one", "other", "other"):
        with tf.io.gfile.GFile("ram://fingerprint/items.parquet", "w") as file:
            file.write(text)
        found.append(environments.data_fingerprint("ram://fingerprint"))
    assert found[0] != found[1]
