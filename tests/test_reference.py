"""Every public name has its place in the reference, with a docstring that says dtype and shape of its arrays."""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import typing

import pytest

from tfmm import config

ROOT = pathlib.Path(__file__).resolve().parents[1]
GUIDES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
ARRAYS = re.compile(r"ndarray|Tensor\b|ArrayLike")
OF_TENSORS = ("tfmm.layers", "tfmm.losses", "tfmm.metrics")
SHAPE = re.compile(r"(?:float|int|uint|bool|string|bytes|id|byte)[\w ]*\[[^\]]*\]")
# Keras's own docstrings say what these do, and what `call` takes stands in the class's; `close` says it itself.
KERAS = {"build", "call", "compute_mask", "compute_output_shape", "compute_output_spec", "get_config", "result"}
KNOWN = {*KERAS, "close"}


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


public = load("public")
ROOTS = sorted({module.partition(".")[0] for module in public.entries()})
DEFINITIONS = [
    pytest.param(module, name, node, id=f"{module}.{name}")
    for module, entry in public.entries().items()
    for name, node in public.definitions(entry).items()
    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
]


def methods(node):
    inner = [n for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    return inner if isinstance(node, ast.ClassDef) else []


def signature(node):
    """The arguments of a function, or of a class by its `__init__` or fields, and of its `call`; None where unknown."""
    if isinstance(node, ast.FunctionDef):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return {argument.arg for argument in every} - {"self", "cls"} | ({"**"} if node.args.kwarg else set())
    own = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "call")]
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    inherited = {"**"} if node.bases and "__init__" not in [function.name for function in own] else set()
    return set().union(fields, inherited, *(signature(function) for function in own))


def documented(text):
    """The names that a docstring describes as arguments."""
    sections = re.findall(r"^(?:Args|Call arguments):\n((?:    .*\n|\n)+)", text + "\n", re.M)
    lines = [line for section in sections for line in re.findall(r"^    (\S.*?):(?: |$)", section, re.M)]
    return {name.strip("*") for line in lines for name in re.split(r", | and ", line)}


def of_a_protocol(module, name):
    """The methods of a class that a protocol of its module describes."""
    protocols = [n for n in public.tree(module).body if isinstance(n, ast.ClassDef) and n.name != name and n.bases]
    return {f"{name}.{method.name}" for p in protocols for method in methods(p) if ast.get_docstring(method)}


def test_every_module_of_the_reference_says_what_it_is():
    assert len(public.entries()) > 30
    assert all(public.first_line(module) for module in public.entries())


def test_every_exported_name_is_defined_in_the_reference():
    packages = [path for path in ROOT.glob("tfmm/*/__init__.py") if "__all__" in path.read_text("utf-8")]
    assert {f"tfmm.{path.parent.name}" for path in packages} <= set(public.entries())
    for module, entry in public.entries().items():
        assert set(public.exported(module) or ()) <= set(public.definitions(entry)), module


def settings_of(one):
    """The classes of settings below one, by the types of their fields."""
    below = {kind for hint in typing.get_type_hints(one).values() for kind in (hint, *typing.get_args(hint))}
    own = {kind for kind in below if dataclasses.is_dataclass(kind)}
    return own.union(*map(settings_of, own))


def test_every_setting_of_a_run_is_in_the_reference():
    found = settings_of(config.RunConfig)
    assert len(found) > 15
    assert not [kind for kind in found if public.full_name(f"{kind.__module__}.{kind.__qualname__}") is None]


@pytest.mark.parametrize(("module", "name", "node"), DEFINITIONS)
def test_public_name_is_described(module, name, node):
    parts = [(name, node), *((f"{name}.{method.name}", method) for method in methods(node) if method.name not in KNOWN)]
    described = [(part, inner, ast.get_docstring(inner)) for part, inner in parts if ast.get_docstring(inner)]
    others = {part for part, _ in parts} - {part for part, _, _ in described}
    assert not {part for part in others if part == name or not getattr(node, "bases", [])} - of_a_protocol(module, name)

    for part, inner, text in described:
        unknown = documented(text) - signature(inner)
        assert not unknown or "**" in signature(inner), f"{part}: no such argument"
        taken = ast.unparse(inner.args) if isinstance(inner, ast.FunctionDef) else ""
        takes_tensors = taken not in ("", "self") or "call" in {method.name for method in methods(inner)}
        if ARRAYS.search(taken) or (module in OF_TENSORS and takes_tensors):
            assert SHAPE.search(text + (ast.get_docstring(node) or "")), f"{part}: no dtype [shape] of its arrays"


def names_in(code):
    """The names of this project that a piece of code uses, in full."""
    tree, known, used = ast.parse(code), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in known:
            used.add(known[node.id])
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in known:
            used.add(f"{known[ast.unparse(node.value)]}.{node.attr}")
    return {name for name in used if name.partition(".")[0] in ROOTS}


def code_of(guide):
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / guide).read_text("utf-8"), re.M | re.S):
        if block.startswith(">>>"):
            yield "\n".join(line[4:] for line in block.splitlines() if line.startswith((">>> ", "... ")))
        else:
            yield block


@pytest.mark.parametrize("guide", GUIDES)
def test_names_that_a_guide_imports_are_in_the_reference(guide):
    packages = {module.rpartition(".")[0] for module in public.entries()}
    used = set().union(*(names_in(code) for code in code_of(guide)))
    assert not [name for name in sorted(used - packages) if public.full_name(name) is None]


@pytest.mark.parametrize("guide", GUIDES)
def test_names_that_a_guide_speaks_of_are_in_the_reference(guide):
    prose = re.sub(r"^```.*?^```$", "", (ROOT / guide).read_text("utf-8"), flags=re.M | re.S)
    spoken = set(re.findall(rf"`((?:{'|'.join(ROOTS)})\.[\w.]+)[`(]", prose))
    packages = {module.rpartition(".")[0] for module in public.entries()}
    assert not [name for name in sorted(spoken - packages) if public.full_name(name) is None]
