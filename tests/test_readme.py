"""The README's and the guides' code is run, and every command that they name exists with those options."""

import doctest
import pathlib
import re
import shlex

import click
import pytest
import sybil
import sybil.parsers.markdown

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
SYBIL = sybil.Sybil(
    parsers=[
        sybil.parsers.markdown.PythonCodeBlockParser(
            doctest_optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        ),
        sybil.parsers.markdown.SkipParser(),
    ]
)


def shell_lines():
    """Every command in a bash block, without its comment, as (document, line)."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if shlex.split(line, comments=True):
                    yield document, line


def commands(program):
    return [
        pytest.param(shlex.split(line, comments=True)[1:], id=f"{document}: {line.strip()}")
        for document, line in shell_lines()
        if shlex.split(line, comments=True)[0] == program
    ]


# These guides' code needs a server; tests/test_end_to_end.py and tests/serving/test_stages.py run it against one.
NEED_A_SERVER = ("docs/first_score.md", "docs/serving.md", "docs/operation.md", "docs/stages.md")


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in NEED_A_SERVER])
def test_code_of_the_document_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in SYBIL.parse(ROOT / document).examples():
        example.evaluate()


@pytest.mark.parametrize("arguments", commands("tfmm"))
def test_tfmm_command_exists(arguments, tmp_path, monkeypatch):
    from tfmm import cli

    monkeypatch.chdir(tmp_path)
    for word in arguments:  # folders that must exist
        if not word.startswith("-") and not pathlib.Path(word).suffix:
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
    parse(cli.main, arguments)


@pytest.mark.parametrize("arguments", commands("make"))
def test_make_target_exists(arguments):
    targets = " ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)).split()
    assert {word for word in arguments if "=" not in word} <= set(targets)


def test_paths_of_a_quickstart_are_those_that_it_makes(tmp_path):
    from tfx_pipeline import environments, published

    made = environments.Environment.from_variables({"TFMM_WORKDIR": str(tmp_path)})
    index = pathlib.Path(made.index_url)
    places = {str(one.relative_to(tmp_path)) for one in (index, made.encoders_dir, made.serving_dir)}
    named = {
        (document, path)
        for document, line in shell_lines()
        for path in re.findall(r"(?<![\w/])quickstart/([\w./-]+)", line)
    }
    assert named
    assert not [one for one in sorted(named) if one[1] not in places | set(published.OUTPUTS)]


@pytest.mark.parametrize("arguments", commands("tfx"))
def test_tfx_command_exists(arguments):
    from tfx.tools.cli.cli_main import cli_group

    from tfx_pipeline import cli

    cli.add_options()
    parse(cli_group, arguments)


def parse(command, arguments):
    """Parses as far as the last subcommand, which checks its options, and runs nothing."""
    context = command.make_context(command.name, list(arguments))
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, subcommand, rest = context.command.resolve_command(context, rest)
        context = subcommand.make_context(name, rest, parent=context)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_readme_names_the_two_commands():
    lines = [line for document, line in shell_lines() if document == "README.md"]
    assert any(line.startswith("make quickstart") for line in lines)
    assert any(line.startswith("make test") for line in lines)
