"""Deployment files are as their schemas say, of the TensorFlow that exports, and name paths that there are."""

import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from tfmm import runs

pytest.importorskip("tfx", reason="TFX is not installed")

from tfx_pipeline import environments

KUBERNETES = "1.31"  # the oldest that is still about


def manifests(root):
    return list(yaml.safe_load_all((root / "serving" / "deploy" / "kubernetes.yaml").read_text()))


def test_kubernetes_takes_every_manifest(root):
    kinds = []
    for manifest in manifests(root):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        kinds.append(manifest["kind"])
    assert kinds == ["StatefulSet", "Service", "NetworkPolicy", "StatefulSet"]
    manifest["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("schema", "files"),
    [("compose-spec", "serving/deploy/compose.yaml"), ("github-workflows", ".github/workflows/*.yml")],
)
def test_files_are_as_their_schema_says(root, schema, files):
    found = [str(path) for path in root.glob(files)]
    command = [sys.executable, "-m", "check_jsonschema", f"--builtin-schema=vendor.{schema}", *found]
    done = subprocess.run(command, capture_output=True, text=True)
    assert found and done.returncode == 0, done.stdout + done.stderr


def pins(root, lock):
    text = (root / "requirements" / f"{lock}.lock").read_text()
    return dict(line.split("==") for line in text.splitlines())


def test_images_are_of_the_tensorflow_that_exports(root):
    dockerfile = (root / "serving" / "deploy" / "Dockerfile").read_text()
    default = re.search(r"^ARG TENSORFLOW_SERVING=(.+)$", dockerfile, re.M).group(1)
    assert "FROM tensorflow/serving:${TENSORFLOW_SERVING} AS server" in dockerfile
    rows = re.findall(r"^ *\| (2\.[\d.]+) \| (2\.[\d.]+) \|$", (root / "docs" / "serving.md").read_text(), re.M)
    locks = [pins(root, lock) for lock in ("py310", "py312")]
    assert rows == [(lock["tensorflow"], lock["tensorflow-serving-api"]) for lock in locks]
    assert default == locks[0]["tensorflow-serving-api"]
    assert default.split(".")[:2] == locks[0]["tensorflow"].split(".")[:2]
    python = re.search(r"FROM python:([\d.]+)-slim AS index", dockerfile).group(1)
    assert python == ".".join((root / ".python-version").read_text().strip().split(".")[:2])


def test_every_path_is_one_that_a_stage_writes(root):
    """Volume `models` has copies of the workdir's folder of versions and of its encoders, `index` has the index."""
    run = environments.Environment(pathlib.Path("/work"), None, runs.load("small"))
    of_models = {f"/models/{path.name}" for path in (run.serving_dir, run.encoders_dir)}
    index = pathlib.Path(run.index_url)
    of_index = {f"/index/{name}" for name in (index.name, "events.sqlite")}  # the latter is made where missing
    of_tls = {"/tls/ssl.config", "/tls/ca.pem"}
    named = set(re.findall(r'base_path: "(.+)"', (root / "serving" / "deploy" / "models.config").read_text()))
    for manifest in manifests(root):
        for container in manifest["spec"].get("template", {"spec": {"containers": []}})["spec"]["containers"]:
            paths = {path for word in container["args"] for path in re.findall(r"(?<![\w:])/[\w./-]+", word)}
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert all(any(path.startswith(f"{mount}/") for mount in mounts) for path in paths), (paths, mounts)
            named |= paths
            probe = container.get("readinessProbe")
            assert probe is None or probe["httpGet"]["path"] == f"/v1/models/{environments.MODEL_NAME}/metadata"
    assert named == of_models | of_index | of_tls
    said = (root / "serving" / "deploy" / "kubernetes.yaml").read_text()
    assert "ssl.config" in said and f"{environments.MODEL_NAME}/<version>/" in said
