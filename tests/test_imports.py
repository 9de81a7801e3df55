"""The direction of imports: read from the source, and checked once more in a fresh process."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# They name tfx_pipeline and serving, and only inside a function.
MEETING_PLACES = {
    "quickstart", "cli_running", "cli_data", "cli_pipeline", "cli_dead_letters", "cli_demo", "cli_index", "cli_label",
    "cli_page", "cli_simulate",
}  # fmt: skip
HEAVY = {
    "tfx",
    "tfx_bsl",
    "apache_beam",
    "grpc",
    "tensorflow_serving",
    "tensorflow_transform",
    "tensorflow_data_validation",
    "tensorflow_model_analysis",
    "ml_metadata",
    "kfp",
}


def sources(package):
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path):
    """Yields (dotted name, line, whether it is inside a function) of each import that runs."""
    tree = ast.parse(path.read_text("utf-8"))
    stack = [(tree, False)]
    while stack:
        node, is_lazy = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            stack += [(child, is_lazy) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the package"
            yield from ((f"{node.module}.{alias.name}", node.lineno, is_lazy) for alias in node.names)
        is_lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack += [(child, is_lazy) for child in ast.iter_child_nodes(node)]


def unit(path):
    """The part of tfmm that a file belongs to: `layers` for tfmm/layers/simtier.py."""
    parts = path.relative_to(ROOT / "tfmm").with_suffix("").parts
    return parts[0]


def test_no_file_of_the_library_imports_itself_by_way_of_others():
    """Imports inside functions count: what a file needs to run comes before it, in one order, computed here."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources("tfmm")}
    graph = {}
    for name, path in files.items():
        found = {imported if imported in files else imported.rpartition(".")[0] for imported, _, _ in imports(path)}
        graph[name] = (found & set(files)) - {name}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert order.index("tfmm.features") < order.index("tfmm.config") < order.index("tfmm.ctr.model")


def test_layers_know_nothing_of_the_stages():
    """What others use in their own models stays free of settings, files and tables."""
    allowed = {"layers", "losses", "metrics"}
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for part in sorted(allowed)
        for path in sources(f"tfmm/{part}")
        for name, line, _ in imports(path)
        if name.split(".")[0] == "tfmm" and name.split(".")[1] not in allowed
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package, other", [("tfx_pipeline", "serving"), ("serving", "tfx_pipeline")])
def test_pipeline_and_serving_do_not_know_each_other(package, other):
    faults = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources(package)
        for name, line, _ in imports(path)
        if name.split(".")[0] == other
    ]
    assert not faults, "\n".join(faults)


def test_client_knows_nothing_but_itself_and_what_it_is_installed_with():
    allowed = {"tfmm_client", "google", "grpc", "httpx", "numpy", *sys.stdlib_module_names}
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("serving/client_package/tfmm_client")
        for name, line, _ in imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not faults, "\n".join(faults)


def test_library_names_pipeline_and_serving_only_where_all_meet():
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("tfmm")
        for name, line, is_lazy in imports(path)
        if name.split(".")[0] in {"tfx_pipeline", "serving"}
        and not (unit(path) in MEETING_PLACES and is_lazy)
    ]
    assert not faults, "\n".join(faults)


def test_beam_tfx_and_grpc_stay_out_of_the_library():
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("tfmm")
        for name, line, is_lazy in imports(path)
        if name.split(".")[0] in HEAVY
        and path.name != "beam.py"
        and not (unit(path) in MEETING_PLACES and is_lazy)
    ]
    assert not faults, "\n".join(faults)


def test_layers_losses_and_metrics_do_not_import_tensorflow_at_once():
    """Under the JAX and Torch backends they load without TensorFlow's being there."""
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for part in ("layers", "losses", "metrics")
        for path in sources(f"tfmm/{part}")
        for name, line, is_lazy in imports(path)
        if name.split(".")[0] in {"tensorflow", "jax", "torch"} and not is_lazy
    ]
    assert not faults, "\n".join(faults)


def loaded_by(statement):
    """The top-level modules that a statement loads in a fresh process."""
    code = f"{statement}\nimport sys\nprint('\\n'.join({{n.split('.')[0] for n in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_tfmm_loads_no_heavy_library():
    assert not loaded_by("import tfmm, tfmm.cli") & {"tensorflow", "keras", "keras_cv", "pandas", *HEAVY}


def test_import_of_the_layers_loads_no_pipeline():
    loaded = loaded_by("from tfmm import layers, losses, metrics")
    assert "keras" in loaded
    assert not loaded & {"keras_cv", "tensorflow_recommenders", "starlette", *HEAVY}


def test_subpackages_load_at_first_use():
    assert "keras" in loaded_by("import tfmm\ntfmm.layers.SimTierLayer")


def test_public_names_are_sorted():
    import tfmm

    assert tfmm.__all__ == sorted(tfmm.__all__)
    assert set(tfmm.__all__) <= set(dir(tfmm))


def test_unknown_name_is_an_attribute_error():
    import tfmm

    with pytest.raises(AttributeError, match="no attribute 'simtier'"):
        _ = tfmm.simtier
