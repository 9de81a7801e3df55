"""What is public: the modules and names of docs/reference.md, and what their sources say, without importing them."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import typing

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = (ROOT, ROOT / "serving" / "client_package")  # that hold packages
REFERENCE = "reference.md"
ENTRY = re.compile(r"^- `([\w.]+)`(?: \((`\w+`(?:, `\w+`)*)\))?$", re.M)


class Entry(typing.NamedTuple):
    """A module of the reference."""

    module: str
    members: tuple[str, ...]  # its public names; (): all that it has


def sections(name: str) -> list[tuple[str, str]]:
    """Returns title and text of each section of a file of docs/."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / name).read_text("utf-8"), flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def groups() -> dict[str, list[Entry]]:
    """Returns the reference's modules by the title of their group."""
    return {
        title: [Entry(module, tuple(re.findall(r"\w+", members))) for module, members in ENTRY.findall(body)]
        for title, body in sections(REFERENCE)
    }


def entries() -> dict[str, Entry]:
    """Returns the reference's modules by name."""
    return {entry.module: entry for group in groups().values() for entry in group}


def module_file(module: str) -> pathlib.Path:
    """Returns the source file of a module or package."""
    places = [folder / module.replace(".", "/") for folder in SOURCES]
    path = next(place for place in places if place.is_dir() or place.with_suffix(".py").exists())
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def tree(module: str) -> ast.Module:
    """Returns the parsed source of a module."""
    return ast.parse(module_file(module).read_text("utf-8"))


def exported(module: str) -> list[str] | None:
    """Returns the names in `__all__` of a module, None where it has none."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def definitions(entry: Entry) -> dict[str, ast.stmt]:
    """Returns the statements that define a module's public names, those of other modules that it exports too."""
    names, defined = exported(entry.module), _defined(entry.module)
    wanted = entry.members or (defined if names is None else names)
    found = {}
    for name in wanted:
        node = defined[name]
        if isinstance(node, ast.ImportFrom):
            if name not in (names or entry.members):
                continue  # imported for the module's own use
            node = _defined(str(node.module)).get(name, node)
        found[name] = node
    return found


@functools.cache
def _defined(module: str) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
        else:
            names = []
        found.update({name: node for name in names if not name.startswith("_")})
    return found


def first_line(module: str) -> str:
    """Returns the first line of a module's docstring."""
    return (ast.get_docstring(tree(module)) or "").partition("\n")[0]


def full_name(name: str) -> str | None:
    """Returns the full name of what the reference has under a dotted or a class's name, else None."""
    modules = entries()
    for module in modules:
        if name == module or name.startswith(module + "."):
            first = name[len(module) + 1 :].partition(".")[0]
            if not first or first in definitions(modules[module]):
                return name
            node = _defined(module).get(first)  # which a listed module may have
            return full_name(f"{node.module}{name[len(module) :]}") if isinstance(node, ast.ImportFrom) else None
    first, _, rest = name.partition(".")
    full = _classes().get(first)
    return full and full + (f".{rest}" if rest else "")


@functools.cache
def _classes() -> dict[str, str]:
    """Returns full names of public classes by the last part, where only one has it."""
    found: dict[str, list[str]] = {}
    for module, entry in entries().items():
        for name, node in definitions(entry).items():
            if isinstance(node, ast.ClassDef):
                found.setdefault(name, []).append(f"{module}.{name}")
    return {name: full[0] for name, full in found.items() if len(full) == 1}
