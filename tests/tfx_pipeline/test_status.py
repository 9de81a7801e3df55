"""What `tfmm pipeline status` tells of runs, from files that ML Metadata itself writes."""

import json
import subprocess
import sys

import pytest
from click import testing

pytest.importorskip("ml_metadata", reason="TFX is not installed")

from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as protos

from tfmm import cli, folder_lock
from tfx_pipeline import metadata, status

WRITE = """
import itertools, select, sys
sys.path.insert(0, sys.argv[2])
import test_status
writer = test_status.Writer(sys.argv[1])
print("begun", flush=True)
for number in itertools.count():
    if select.select([sys.stdin], [], [], 0)[0]:  # it was closed
        break
    writer.node(f"run-{number}", "Trainer", test_status.protos.Execution.COMPLETE, outputs={"model": f"/m/{number}"})
print(number)
"""


class Writer:
    """Writes nodes of runs as TFX does."""

    def __init__(self, path):
        connection = protos.ConnectionConfig()
        connection.sqlite.filename_uri = str(path)
        connection.sqlite.connection_mode = protos.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = metadata_store.MetadataStore(connection)
        self.kinds = {
            name: self.store.put_context_type(protos.ContextType(name=name)) for name in ("pipeline_run", "node")
        }
        self.execution_type = self.store.put_execution_type(protos.ExecutionType(name="tfx.Node"))
        self.artifact_type = self.store.put_artifact_type(protos.ArtifactType(name="Model"))
        self.contexts = {}

    def node(self, run, name, state, inputs=(), outputs=None):
        """Returns the ids of its outputs; `outputs` are uris by name, or ids of artifacts that the cache gave."""
        artifacts = {}
        events = [(protos.Event.INPUT, key, protos.Artifact(id=number)) for key, number in dict(inputs).items()]
        for key, made in (outputs or {}).items():
            artifact = protos.Artifact(type_id=self.artifact_type, uri=made) if isinstance(made, str) else None
            artifacts[key] = self.store.put_artifacts([artifact])[0] if artifact else made
            events.append((protos.Event.OUTPUT, key, protos.Artifact(id=artifacts[key])))
        execution = protos.Execution(type_id=self.execution_type, last_known_state=state)
        execution.custom_properties["code"].string_value = "abc"
        (number,) = self.store.put_executions([execution])
        for kind, key, artifact in events:
            event = protos.Event(execution_id=number, artifact_id=artifact.id, type=kind)
            event.path.steps.add(key=key)
            self.store.put_events([event])
        for kind, context in (("pipeline_run", run), ("node", f"tfmm.{name}")):
            if (kind, context) not in self.contexts:
                made = protos.Context(type_id=self.kinds[kind], name=context)
                known = self.store.get_context_by_type_and_name(kind, context)
                self.contexts[kind, context] = known.id if known else self.store.put_contexts([made])[0]
            link = protos.Association(execution_id=number, context_id=self.contexts[kind, context])
            self.store.put_attributions_and_associations([], [link])
        return artifacts


@pytest.fixture
def workdir(tmp_path):
    """Two runs: one that trained and stopped in the middle of judging, one that the cache answered and that failed."""
    execution, writer = protos.Execution, Writer(tmp_path / "metadata.sqlite")
    data = writer.node("run-1", "Marketplace", execution.COMPLETE, outputs={"dataset": f"{tmp_path}/pipeline/data/1"})
    model = writer.node("run-1", "MAKETrainer", execution.COMPLETE, data, {"make": f"{tmp_path}/pipeline/make/2"})
    writer.node("run-1", "ModelGate", execution.RUNNING, model)
    writer.node("run-2", "Marketplace", execution.CACHED, outputs=data)
    writer.node("run-2", "MAKETrainer", execution.CACHED, data, model)
    writer.node("run-2", "ModelGate", execution.FAILED, model)
    return tmp_path


def test_status_tells_states_what_the_cache_gave_and_what_was_made_of_what(workdir):
    found = status.read(workdir)
    first, second = found.runs
    assert (first.state, second.state) == (status.STOPPED, metadata.FAILED) and found.at_work is None
    assert [(node.name, node.state) for node in first.nodes] == [
        ("Marketplace", "complete"), ("MAKETrainer", "complete"), ("ModelGate", "stopped")
    ]  # fmt: skip
    assert [(node.name, node.state, node.made_in) for node in second.nodes] == [
        ("Marketplace", "cached", "run-1"), ("MAKETrainer", "cached", "run-1"), ("ModelGate", "failed", "run-2")
    ]  # fmt: skip
    make = second.nodes[1]
    assert make.outputs == {"make": f"{workdir}/pipeline/make/2"}
    assert make.inputs == [status.Input("dataset", f"{workdir}/pipeline/data/1", "Marketplace", "run-1")]


def test_run_that_is_at_work_is_told_from_one_that_was_stopped(workdir):
    writer = Writer(workdir / "metadata.sqlite")
    writer.node("run-3", "Marketplace", protos.Execution.RUNNING)
    assert status.read(workdir).runs[-1].state == status.STOPPED
    with folder_lock.hold(workdir):
        found = status.read(workdir)
    assert [run.state for run in found.runs] == ["stopped", "failed", "running"] and "process" in found.at_work


def test_command_shows_tables_and_json(workdir):
    def run(*options):
        return testing.CliRunner().invoke(cli.main, ["pipeline", "status", "--workdir", str(workdir), *options])

    said = run("--lineage", "--run", "run-1").output
    assert "Pre-train MAKE" in said and "MAKETrainer.make" in said and "Nodes of run-1" in said
    told = json.loads(run("--json").output)
    assert [run["state"] for run in told["runs"]] == ["stopped", "failed"]
    unknown = run("--run", "run-9")
    assert unknown.exit_code == 1 and "must be the id of a run" in unknown.output


def test_folder_without_runs_is_one_line(tmp_path):
    result = testing.CliRunner().invoke(cli.main, ["pipeline", "status", "--workdir", str(tmp_path)])
    assert result.exit_code == 1 and "must be the workdir of a run of the pipeline" in result.output
    assert list(tmp_path.iterdir()) == []


def test_reading_goes_on_beside_a_run_and_does_not_disturb_it(tmp_path):
    path = tmp_path / "metadata.sqlite"
    command = [sys.executable, "-c", WRITE, str(path), str(__file__).rpartition("/")[0]]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as writer:
        assert writer.stdout.readline() == "begun\n", writer.stderr.read()
        found = []
        while len(found) < 20 or found[-1] < 100:
            assert writer.poll() is None, writer.stderr.read()
            found.append(len(metadata.executions(path)))
        written, errors = writer.communicate()
    assert writer.returncode == 0, errors
    assert found == sorted(found) and len(status.read(tmp_path).runs) == int(written) >= found[-1]


CRASH = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN EXCLUSIVE")
database.execute("UPDATE Execution SET last_known_state = 1")
database.execute("CREATE TABLE filler AS SELECT randomblob(1000000) AS filling")
os._exit(9)  # as if killed: pages were written, and the journal still stands
"""


def test_write_that_a_kill_cut_off_is_not_seen_and_the_file_is_left_alone(workdir):
    path, before = workdir / "metadata.sqlite", status.read(workdir)
    subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    content, journal = path.read_bytes(), workdir / "metadata.sqlite-journal"
    assert journal.stat().st_size > 0
    assert status.read(workdir) == before
    assert path.read_bytes() == content and journal.exists()
