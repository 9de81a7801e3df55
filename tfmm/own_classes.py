"""Classes of a user's own, named by module and class, such as `my_team.models:Ranker`; and their source."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
import typing

_INSTALLED = {"site-packages", "dist-packages"}


def is_own(reference: str) -> bool:
    """Returns whether a name is `module:name` of a user's own, and not one of ours."""
    return ":" in reference


def look_here() -> None:
    """Lets modules of the current folder be imported: a command's own path does not have it."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)


def is_installed(path: str | os.PathLike[str]) -> bool:
    """Returns whether a source file is of tfmm, of Python or of an installed package, so not of a user's folder."""
    place = pathlib.Path(path)
    known = (pathlib.Path(__file__).parent, pathlib.Path(os.__file__).parent)
    return bool(_INSTALLED & set(place.parts)) or any(folder in place.parents for folder in known) or "<" in str(path)


def in_words(error: Exception) -> str:
    """Returns what an error says, with its type where that is not in what it says."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def place_of(error: Exception) -> str:
    """Returns where in a user's code an error came from, for a message; "" where it is not from there."""
    if isinstance(error, SyntaxError) and error.filename and not is_installed(error.filename):
        return f" ({pathlib.Path(error.filename).name}, line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_installed(f.filename)]
    return f" ({pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def load(reference: str, noun: str) -> typing.Any:
    """Returns what `module:name` stands for, looked for in the current folder first.

    Args:
        reference: what a run names.
        noun: what it is, for messages.
    Raises:
        ValueError: it cannot be imported.
    """
    module, _, attribute = reference.partition(":")
    look_here()
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may fail in any way
        raise ValueError(
            f"The {noun} {reference!r} must name an importable class, `module:Class`, in the current folder "
            f"({os.getcwd()}) or on PYTHONPATH. Received: {type(error).__name__}: {error}{place_of(error)}."
        ) from error


def find(reference: str, base: type, noun: str) -> type:
    """Returns the class that `module:Class` names, looked for in the current folder first.

    Args:
        reference: what a run names.
        base: what it must be a subclass of.
        noun: what it is, for messages.
    Raises:
        ValueError: it cannot be imported, or is no such class.
    """
    found = load(reference, noun)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"The {noun} {reference!r} must be a subclass of {base.__module__}.{base.__name__}.")
    return found


def require_settings(
    kind: type, settings: typing.Mapping[str, typing.Any], given: typing.Collection[str], what: str
) -> None:
    """Checks that a class has the settings that a run gives it, and is given those that it needs.

    Args:
        kind: the class; its settings are the arguments of its `__init__`, and of its base classes where it hands
            `**kwargs` on.
        settings: by name.
        given: the arguments that are not settings, which it must take.
        what: what has the settings, for messages.
    Raises:
        ValueError: it has no such setting, or one without a default is not given, or does not take what is `given`.
    """
    if not isinstance(settings, typing.Mapping):
        raise ValueError(f"{what} must be given its settings by name. Received: {settings!r}.")
    found = _arguments(kind)
    if lacking := sorted(set(given) - set(found)):
        raise ValueError(f"{what} must take {', '.join(lacking)} in its `__init__`, and hand them to its base class.")
    names = [name for name in found if name not in given]
    if unknown := sorted(set(settings) - set(names)):
        raise ValueError(f"{what} has the settings {names}. Received: {unknown}.")
    needed = [name for name in names if found[name]]
    if missing := sorted(set(needed) - set(settings)):
        raise ValueError(f"{what} needs the settings {needed}. Missing: {missing}.")


def _arguments(kind: type) -> dict[str, bool]:
    """Returns the arguments of a class, each with whether it must be given, as far as its own `__init__` says."""
    found: dict[str, bool] = {}
    for depth, base in enumerate(base for base in kind.__mro__ if "__init__" in vars(base)):
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        for one in parameters:
            if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                found.setdefault(one.name, depth == 0 and one.default is one.empty)
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found


def source_digest(references: typing.Iterable[str]) -> str:
    """Returns a hash of the source of classes' modules and of all that these import of the same folder.

    Of an installed package, its own modules count alone. What is of tfmm does not count.

    Raises:
        ValueError: a module that cannot be found, or that is no file.
    """
    digest = hashlib.sha256()
    for path in sorted({path for reference in filter(is_own, references) for path in _sources(reference)}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(reference: str) -> set[pathlib.Path]:
    module = reference.partition(":")[0]
    look_here()
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(module)
        place = None if spec is None else spec.origin
    except ValueError:  # it is no module that was imported, but such as __main__
        place = getattr(sys.modules[module], "__file__", None)
    if place is None or not pathlib.Path(place).is_file():
        raise ValueError(f"{reference!r} must name something in a module that is a file. Received: {place}.")
    origin = pathlib.Path(place).resolve()
    root = origin.parents[module.count(".") + (origin.name == "__init__.py")]
    own_package = module.partition(".")[0] if is_installed(origin) else None
    waiting, found = [origin], set[pathlib.Path]()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _imported_names(path, root) if path.suffix == ".py" else ():
            if own_package in (None, name.partition(".")[0]):
                waiting += _files(root, name)
    return found


def _files(root: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Returns the files that an import of a dotted name runs, of those under `root`."""
    parts = name.split(".")
    places = [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if file.is_file()]


def _imported_names(path: pathlib.Path, root: pathlib.Path) -> typing.Iterator[str]:
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            before = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*before, *([node.module] if node.module else [])])
            yield from (name for alias in node.names for name in (module, f"{module}.{alias.name}") if name)
