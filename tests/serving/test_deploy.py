"""The deployment files name what exists."""

import re

import yaml

from serving.model_server import config


def test_files_agree_with_the_commands(root):
    deploy = root / "serving" / "deploy"
    (model,) = config.read_file(str(deploy / "models.config"))
    assert model.name == "tfmm"
    dockerfile = (deploy / "Dockerfile").read_text()
    assert {"--xla_cpu_compilation_enabled=true", "--enable_batching=false"} <= set(
        re.findall(r'"(--[^"]+)"', dockerfile)
    )
    targets = re.findall(r"AS (\w+)", dockerfile)
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    assert [service["build"]["target"] for service in services.values()] == targets
    deployment, service = yaml.safe_load_all((deploy / "kubernetes.yaml").read_text())
    server, replicator = deployment["spec"]["template"]["spec"]["containers"]
    assert {port["containerPort"] for port in server["ports"]} == {port["port"] for port in service["spec"]["ports"]}
    known = set(re.findall(r'add_argument\("(--[\w-]+)"', (root / "serving" / "replicator.py").read_text()))
    for arguments in (services["replicator"]["command"], replicator["args"]):
        assert {argument for argument in arguments if argument.startswith("--")} <= known
        assert arguments[arguments.index("--model-name") + 1] == model.name
