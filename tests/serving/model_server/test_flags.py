"""tensorflow_model_server's flags: every one is known, does what it says, or is refused with the reason."""

import re
import shlex
import time

import grpc
import httpx
import pytest
from click.testing import CliRunner
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving.model_server import __main__ as command
from serving.model_server import config, flags
from serving.model_server.config import ModelConfig
from serving.model_server.errors import ServingError
from serving.model_server.manager import ModelManager
from tfmm import cli

THEIRS = [  # of its main.cc
    "port", "grpc_socket_path", "rest_api_port", "rest_api_num_threads", "rest_api_timeout_in_ms",
    "rest_api_enable_cors_support", "enable_batching", "allow_version_labels_for_unavailable_models",
    "batching_parameters_file", "enable_per_model_batching_parameters", "model_config_file",
    "model_config_file_poll_wait_seconds", "model_name", "model_base_path", "num_load_threads",
    "num_unload_threads", "max_num_load_retries", "load_retry_interval_micros", "file_system_poll_wait_seconds",
    "flush_filesystem_caches", "tensorflow_session_parallelism", "tensorflow_session_config_file",
    "tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism", "use_alts_credentials",
    "platform_config_file", "per_process_gpu_memory_fraction", "saved_model_tags", "grpc_channel_arguments",
    "grpc_max_threads", "enable_model_warmup", "num_request_iterations_for_warmup", "version",
    "remove_unused_fields_from_bundle_metagraph", "prefer_tflite_model", "num_tflite_pools",
    "num_tflite_interpreters_per_pool", "enable_signature_method_name_check", "xla_cpu_compilation_enabled",
    "xla_gpu_compilation_enabled", "enable_profiler", "thread_pool_factory_config_file", "mixed_precision",
    "skip_initialize_tpu", "enable_grpc_healthcheck_service", "monitoring_config_file",
    "enable_serialization_as_tensor_content",
]  # fmt: skip


def test_every_flag_of_theirs_is_known():
    known = {option for action in command.parser()._actions for option in action.option_strings}
    assert not [name for name in THEIRS if f"--{name}" not in known]


@pytest.mark.parametrize("name", flags.REFUSED)
def test_what_is_not_done_is_refused_with_the_reason_and_its_default_is_taken(name, capsys):
    kind, harmless, reason = flags.REFUSED[name]
    asked = {bool: not harmless, str: "something", int: 3, float: 0.5}[kind]
    with pytest.raises(SystemExit, match="2"):
        command.main(["--model_base_path=/m", f"--{name}={asked}"])
    assert reason in capsys.readouterr().err
    assert not flags.faults(vars(command.parser().parse_args([f"--{name}={harmless}"])))


@pytest.mark.parametrize("flag", ["--load_retry_interval_micros=-1", "--num_request_iterations_for_warmup=0"])
def test_numbers_that_tensorflow_serving_takes_are_taken(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([flag, "--port=99999", "--model_base_path=/m"])
    said = capsys.readouterr().err.split("error")[-1]
    assert "--port must be" in said and flag.partition("=")[0] not in said


def test_all_faults_are_said_at_once(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--enable_batching", "--port=8500", "--rest_api_port=8500", "--model_base_path=/m"])
    said = capsys.readouterr().err
    assert "--enable_batching=true" in said and "must differ" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense=1"], "unrecognized arguments: --nonsense=1"),
        (["--model_base"], "unrecognized arguments"),
        (["--port=-1", "--model_base_path=/m"], "nothing would be served"),
        (["--file_system_poll_wait_seconds=-1", "--model_base_path=/m"], "0 or more"),
        (["--file_system_poll_wait_seconds=inf", "--model_base_path=/m"], "must be a finite number of seconds"),
        (["--index_wait_seconds=nan", "--model_base_path=/m"], "--index_wait_seconds must be a finite number"),
        (["--port=99999", "--model_base_path=/m"], "--port must be from -1 to 65535. Received: 99999"),
        (["--max_num_load_retries=-1", "--model_base_path=/m"], "--max_num_load_retries must be at least 0"),
        (["--num_threads=-1", "--model_base_path=/m"], "--num_threads must be at least 0. Received: -1"),
        (["--grpc_channel_arguments=max_age", "--model_base_path=/m"], "name=value"),
        (
            ["--tensorflow_session_parallelism=2", "--tensorflow_intra_op_parallelism=2", "--model_base_path=/m"],
            "leave those out",
        ),
    ],
)
def test_flags_that_cannot_be(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_channel_arguments_are_numbers_or_text():
    given = command.parser().parse_args(["--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb=grpclb"])
    assert given.grpc_channel_arguments == (("grpc.max_connection_age_ms", 2000), ("grpc.lb", "grpclb"))


def test_version_is_said_without_a_model(capsys):
    assert command.main(["--version"]) == 0
    assert "TensorFlow 2." in capsys.readouterr().out


def test_tfmm_serve_takes_them_all_and_keeps_its_own():
    def serve(*arguments):
        return CliRunner().invoke(cli.main, ["serve", *arguments])

    refused = serve("--model-base-path=/m", "--rest_api_port", "8501", "--enable_batching")
    assert refused.exit_code == 2 and "--enable_batching=true is not done here" in refused.output
    assert serve("--model_base_path=/m", "--nonsense").exit_code == 2
    helped = serve("--help")
    assert helped.exit_code == 0 and "--monitoring_config_file" in helped.output and "--index" in helped.output
    assert "`tfmm embed` makes" in serve("--model_base_path=/m", "--index", "nowhere.sqlite").output


def test_flags_in_the_docs_exist(root):
    texts = [path.read_text("utf-8") for path in (root / "README.md", *(root / "docs").glob("*.md"))]
    lines = [line for text in texts for line in re.findall(r"^tfmm serve (.*)$", text.replace("\\\n", " "), re.M)]
    known = command.parser()
    known.add_argument("--index")
    assert len(lines) >= 3
    for line in lines:
        known.parse_args(shlex.split(line))


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_config(path, **models):
    entries = "".join(f'config {{ name: "{name}" base_path: "{base}" }}' for name, base in models.items())
    path.write_text(f"model_config_list {{ {entries} }}")


def test_config_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path, half_plus_two_dir, serving_at, caplog):
    path = tmp_path / "models.config"
    write_config(path, one=half_plus_two_dir)
    models = tuple(config.read_file(str(path)))
    with serving_at(tmp_path, models=models, model_config_file=str(path), config_poll_wait_s=0.05) as addresses:
        with httpx.Client(base_url=addresses["rest"] + "/v1/models", timeout=60) as rest:
            path.write_text("nonsense")
            wait_for(lambda: "is not in force" in caplog.text)
            path.write_bytes(b"caf\xe9")
            wait_for(lambda: "can't decode" in caplog.text)
            assert rest.get("/one").status_code == 200
            write_config(path, two=half_plus_two_dir)
            wait_for(lambda: rest.get("/two").status_code == 200)
            wait_for(lambda: rest.get("/one").status_code == 404)


def test_rest_time_out_is_504(half_plus_two_dir, serving_at):
    with serving_at(half_plus_two_dir, rest_timeout_s=1e-9) as addresses:
        answer = httpx.post(addresses["rest"] + "/v1/models/half_plus_two:predict", json={"instances": [1]}, timeout=60)
        assert answer.status_code == 504 and "time-out" in answer.json()["error"]


def test_socket_without_ports_and_pages_of_other_origins(tmp_path, half_plus_two_dir, serving_at):
    path = tmp_path / "grpc.sock"
    with serving_at(
        half_plus_two_dir,
        port=-1,
        grpc_socket_path=str(path),
        rest_allows_other_origins=True,
        max_grpc_calls=8,
        grpc_arguments=(("grpc.max_connection_age_ms", 60_000),),
        session_threads=(1, 1),
        with_health=False,
    ) as addresses:
        assert addresses["grpc"].endswith(":None")
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "half_plus_two"
        with grpc.insecure_channel(f"unix:{path}") as channel:
            answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
            assert answer.model_version_status[0].version == 123
            health = channel.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                health(b"", timeout=60)
        page = httpx.get(addresses["rest"] + "/v1/models/half_plus_two", timeout=60)
        assert page.headers["access-control-allow-origin"] == "*"


def test_folders_with_zeros_are_versions_and_a_missing_base_path_is_said_each_time(tmp_path, write_models, caplog):
    manager = ModelManager([ModelConfig("m", str(tmp_path / "base"))])
    for _ in range(3):
        manager.poll()
    assert caplog.text.count("base path") == 3
    write_models["half_plus_two"](tmp_path / "base" / "00000123")
    (tmp_path / "base" / "²").mkdir()
    manager.poll()
    assert [v.version for v in manager.status("m")] == [123]
    manager.stop()


def test_specific_versions_that_are_none_are_none():
    assert ModelConfig("m", "/m", versions=()).wanted([1, 2]) == []


def test_folders_are_looked_at_once_where_the_wait_is_zero(tmp_path, write_models):
    manager = ModelManager([ModelConfig("m", str(tmp_path))], poll_wait_s=0.0)
    polls = []
    poll, manager.poll = manager.poll, lambda: (polls.append(1), poll())
    manager.start()
    wait_for(lambda: polls)
    write_models["half_plus_two"](tmp_path / "1")
    time.sleep(0.3)
    assert len(polls) == 1
    manager.stop()


def test_new_labels_may_lead_where_it_is_allowed(tmp_path, half_plus_two_dir):
    def labelled(version):
        return [ModelConfig("m", str(half_plus_two_dir), labels=(("canary", version),))]

    strict = ModelManager(labelled(123))
    lenient = ModelManager([ModelConfig("m", str(half_plus_two_dir))], labels_may_lead=True)
    for manager in (strict, lenient):
        manager.poll()
    with pytest.raises(ServingError, match="available version"):
        strict.reload(labelled(7))
    lenient.reload(labelled(7))
    with pytest.raises(ServingError, match=r"Specific\(m, 7\)"), lenient.lend("m", label="canary"):
        pass
    with pytest.raises(ServingError, match="available version"):
        lenient.reload(labelled(8))  # an old label moves to an available version alone
    for manager in (strict, lenient):
        manager.stop()
