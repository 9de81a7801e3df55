"""What MkDocs builds the site from, beside the guides: files outside docs/ that they link to, and the reference.

The order of the navigation is that of the links in docs/index.md, the modules of the reference those of
docs/reference.md; so each is said once, where a reader of the repository finds it too.
"""

from __future__ import annotations

import logging
import posixpath
import re
import typing

import public  # MkDocs loads a hook with its folder on the path
from mkdocs.structure.files import File

INDEX = "index.md"
_LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_NAME = re.compile(rf"{_LINK.pattern}|^#.*$|(?<!`)`(?P<name>[A-Za-z_][\w.]*)`(?!`)", re.M)
_INDENT = re.compile(r"^( +)(?=\S)", re.M)  # of what is in a list: four columns for MkDocs, two in the repository
_UNREAD = re.compile(r"(?:<p>|^)(?:[-*] |\d+\. |\| ).{,60}", re.M)
_log = logging.getLogger("mkdocs.hooks")
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml"}


def on_config(config):
    """Sets the navigation: sections of docs/index.md, then guides that it does not name, then the reference."""
    named: list[typing.Any] = [INDEX]
    for title, body in public.sections(INDEX):
        named.append({title: [_uri(_target("docs/" + INDEX, link)) for _, link, _ in _LINK.findall(body)]})
    known = {page for section in named[1:] for pages in section.values() for page in pages} | {INDEX, public.REFERENCE}
    if others := sorted(p.name for p in (public.ROOT / "docs").glob("*.md") if p.name not in known):
        named.append({"More": others})
    groups = [{title: [{e.module: _page_of(e.module)} for e in group]} for title, group in public.groups().items()]
    config.nav = [*named, {"Reference": [public.REFERENCE, *groups]}]
    return config


def on_files(files, config):
    """Adds the files that guides link to outside docs/, and a page for each module of the reference."""
    waiting = [("docs/" + file.src_uri, file.content_string) for file in files.documentation_pages()]
    while waiting:
        path, text = waiting.pop()
        for _, link, _ in _LINK.findall(_FENCE.sub("", text)):
            target = _target(path, link)
            if target is None or target.startswith("docs/") or files.get_file_from_path(_uri(target)):
                continue
            is_text = target.endswith(".md")
            content = (public.ROOT / target).read_text("utf-8") if is_text else _shown(target)
            files.append(File.generated(config, _uri(target), content=content))
            waiting += [(target, content)] if is_text else []
    for module, entry in public.entries().items():
        options = f"    options:\n      members: [{', '.join(entry.members)}]\n" if entry.members else ""
        files.append(File.generated(config, _page_of(module), content=f"::: {module}\n{options}"))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to the repository's files into links of the site, and names of the reference into links to it."""
    uri = page.file.src_uri
    path = uri.removeprefix("repository/") if uri.startswith("repository/") else "docs/" + uri
    if not (public.ROOT / path).is_file():  # a page of code, or of a module
        return markdown
    if uri == public.REFERENCE:
        markdown = public.ENTRY.sub(lambda entry: f"{entry[0]}: {public.first_line(entry[1])}", markdown)

    def moved(match):
        target = _target(path, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".") + match[3]

    fences = [re.sub(r"^```python\n(?=>>>)", "```pycon\n", fence) for fence in _FENCE.findall(markdown)]
    prose = [_LINK.sub(moved, _INDENT.sub(r"\1\1", part)) for part in _FENCE.split(markdown)]
    if path != "CHANGELOG.md":  # which speaks of what is gone, too
        prose = [_with_names(part) for part in prose]
    return "".join(part for pair in zip(prose, [*fences, ""], strict=True) for part in pair)


def on_page_content(html, page, config, files):
    """Warns, and so fails the build, where a list or table was not read as one."""
    for text in _UNREAD.findall(re.sub(r"<pre.*?</pre>", "", html, flags=re.S)):
        _log.warning("%s: a list or table that Markdown does not read as one: %s", page.file.src_uri, text)
    return html


def _target(path: str, link: str) -> str | None:
    """Returns the path in the repository that a link of the file `path` leads to; None for the web."""
    if "://" in link:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _uri(target: str) -> str:
    """Returns where the site has a file of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return "repository/" + (target if target.endswith(".md") else target + ".md")


def _page_of(module: str) -> str:
    return f"reference/{module}.md"


def _shown(target: str) -> str:
    """Returns a page with the text of a file, or of the files of a folder."""
    path = public.ROOT / target
    parts = [f"# {target}"]
    for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
        parts += [f"## {file.name}"] if path.is_dir() else []
        parts.append(f"````{_LANGUAGES.get(file.suffix, 'text')}\n{file.read_text('utf-8')}````")
    return "\n\n".join(parts)


def _with_names(text: str) -> str:
    """Returns the text with names of the reference as links to it, but for those in links and headings."""

    def linked(match):
        full = match["name"] and public.full_name(match["name"])
        return f"[{match[0]}][{full}]" if full else match[0]

    return _NAME.sub(linked, text)
