"""The source of tfmm as digests: what code a stage runs, so that nothing answers for code that has changed."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NAME = pathlib.Path(__file__).parent.name


def fingerprint(*packages: str) -> str:
    """Returns a hash of the source of packages.

    Args:
        *packages: dotted names of modules or packages, such as `"tfmm.data"`.
    Raises:
        ValueError: one cannot be imported.
    """
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(f"`packages` must name importable modules. Received: {package!r}.")
        origin = pathlib.Path(spec.origin)
        is_package = origin.name == "__init__.py" and not package.endswith(".__init__")
        files = sorted(origin.parent.rglob("*.py")) if is_package else [origin]
        for path in files:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def imported_modules(*packages: str) -> list[str]:
    """Returns the modules of packages and all of tfmm's that they import, in functions too, sorted.

    Args:
        *packages: their dotted names, such as `"tfmm.make"` or `"tfmm.ctr.train"`.
    """
    places = [_ROOT / package.replace(".", "/") for package in packages]
    waiting = [file for place in places for file in (place.with_suffix(".py"), *place.rglob("*.py")) if file.is_file()]
    found: set[pathlib.Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return sorted(".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in found)


def digest_of(*packages: str) -> str:
    """Returns a hash of the source of packages and of all of tfmm's that they import."""
    return fingerprint(*imported_modules(*packages))


@functools.cache
def _imports(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the files of tfmm that a file imports when it runs."""
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            waiting += ast.iter_child_nodes(node)
    parts = [name.split(".") for name in names if name.partition(".")[0] == _NAME]
    places = [_ROOT.joinpath(*name[:depth]) for name in parts for depth in range(1, len(name) + 1)]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return tuple(file for file in files if file.is_file())

