"""The deployment files name what exists."""

import re

import yaml

from serving import replicator
from serving.model_server import config, metrics


def test_files_agree_with_the_commands(root):
    deploy = root / "serving" / "deploy"
    (model,) = config.read_file(str(deploy / "models.config"))
    assert model.name == "tfmm"
    assert metrics.monitored_path(str(deploy / "monitoring.config")) == metrics.DEFAULT_PATH
    dockerfile = (deploy / "Dockerfile").read_text()
    assert {"--xla_cpu_compilation_enabled=true", "--enable_batching=false"} <= set(
        re.findall(r'"(--[^"]+)"', dockerfile)
    )
    targets = re.findall(r"AS (\w+)", dockerfile)
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    assert [service["build"]["target"] for service in services.values()] == targets
    (container,) = containers(kubernetes(deploy)["StatefulSet", "tfmm-server"])
    assert container["args"] == ["--ssl_config_file=/tls/ssl.config"]
    assert container["image"] == f"tfmm-{targets[0]}"
    known = {option for action in replicator.parser()._actions for option in action.option_strings}
    module, *arguments = services["replicator"]["command"]
    assert module == "serving.replicator"
    assert set(arguments[::2]) <= known
    assert arguments[arguments.index("--model-name") + 1] == model.name


def kubernetes(deploy):
    found = yaml.safe_load_all((deploy / "kubernetes.yaml").read_text())
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in found}


def containers(workload):
    return workload["spec"]["template"]["spec"]["containers"]


def test_index_is_on_one_node_and_reaches_every_server(root):
    found = kubernetes(root / "serving" / "deploy")
    server, index = found["StatefulSet", "tfmm-server"], found["StatefulSet", "tfmm-index"]
    service = found["Service", "tfmm-server"]
    ports = {port["containerPort"] for port in containers(server)[0]["ports"]}
    assert ports == {port["port"] for port in service["spec"]["ports"]}
    assert service["spec"]["clusterIP"] == "None" and server["spec"]["serviceName"] == service["metadata"]["name"]
    assert index["spec"]["replicas"] == 1
    (claim,) = index["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    shared = {volume["name"] for volume in server["spec"]["template"]["spec"]["volumes"]}
    assert claim["metadata"]["name"] not in shared
    options = {}
    for container in containers(index):
        assert container["image"] == "tfmm-index"
        module, *arguments = container["args"]
        path = root.joinpath(*module.split("."))
        source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        known = set(re.findall(r'"(--[\w-]+)"', source.read_text() + (root / "serving" / "channel.py").read_text()))
        assert set(arguments[::2]) <= known
        options[module] = list(zip(arguments[::2], arguments[1::2]))
    assert len({dict(found)["--index"] for found in options.values()}) == 1
    name = server["metadata"]["name"]
    wanted = {f"{name}-{n}.{service['metadata']['name']}:8500" for n in range(server["spec"]["replicas"])}
    assert {value for option, value in options["serving.replicator"] if option == "--target"} == wanted


def test_only_the_index_and_callers_reach_the_servers(root):
    found = kubernetes(root / "serving" / "deploy")
    policy, server = found["NetworkPolicy", "tfmm-server"]["spec"], found["StatefulSet", "tfmm-server"]["spec"]
    assert policy["podSelector"] == server["selector"] and policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    named = {port["name"] for port in containers({"spec": server})[0]["ports"]}
    assert {port["port"] for port in rule["ports"]} == named
    assert found["StatefulSet", "tfmm-index"]["spec"]["selector"] == rule["from"][0]["podSelector"]
    services = yaml.safe_load((root / "serving" / "deploy" / "compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])


def test_images_hold_what_is_packaged_and_nothing_else(root):
    lines = [line for line in (root / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    packages = re.search(r"^PACKAGES = \((.*)\)$", (root / "setup.py").read_text(), re.M).group(1)
    assert kept == {"setup.py", "pyproject.toml", "README.md", "LICENSE", *re.findall(r'"(\w+)"', packages)}
