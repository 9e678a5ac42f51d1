"""Documentation that fails when it lies: options, commands, hooks and libraries, in both directions."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

from tilecast import cli, hookspecs
from tilecast.plugins import Plugins
from tilecast.service.config import Config, options, to_markdown

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "protocol" / "tilecast_protocol", ROOT / "daemon" / "tilecast", ROOT / "plugins" / "tilecast_plugins"]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/README.md"))]


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def hooks() -> dict[str, list[str]]:
    """Name of every hook, and its arguments."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if hasattr(function, f"{hookspecs.PROJECT}_spec")
    }


def modules() -> list[Path]:
    return sorted(path for folder in SOURCES for path in folder.rglob("*.py"))


def code_of(path: Path) -> list[str]:
    """Every line of a fenced block, and every piece of code between backticks."""
    blocks, prose = [], []
    for number, part in enumerate(re.split(r"^```.*$", path.read_text(), flags=re.MULTILINE)):
        (blocks if number % 2 else prose).append(part)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", "".join(prose))


def test_the_table_of_options_is_the_one_of_the_code() -> None:
    found = "".join(re.findall(r"^\| option \|.*\n(?:\|.*\n)+", text_of("daemon/README.md"), re.MULTILINE))
    assert found == to_markdown(), "put the output of `uv run tilecast config --markdown` into daemon/README.md"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_that_are_mentioned_exist(path: Path) -> None:
    known = {info.name for info in options()}
    tables = "|".join(Config.model_fields.keys() - known)
    mentioned = {
        name
        for code in code_of(path)
        for name in re.findall(rf"(?:^|--set |[\"])((?:{tables})(?:\.[a-z_]+)+)\b(?!\.)", code)
        if not name.startswith("plugins.my_plugin")  # of the plugin that readers are shown how to write
    }
    assert mentioned - {"ingest.json"} <= known  # a file in a run's folder, not an option


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_variables_that_are_mentioned_exist(path: Path) -> None:
    known = {info.variable for info in options()} | {"TILECAST_CONFIG"}
    mentioned = set(re.findall(r"\bTILECAST_[A-Z_]*[A-Z]", path.read_text()))
    assert mentioned - {"TILECAST_PLUGINS_MY_PLUGIN"} <= known  # the beginning of those of a plugin that readers write


@pytest.mark.parametrize("name", [*cli.COMMANDS, *cli.guest_names()])
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"\btilecast {name}\b", text_of("README.md")), f"README.md does not show `tilecast {name}`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_that_are_shown_exist(path: Path) -> None:
    calls = [
        re.search(r"(?:^|[$&] |uv run )tilecast (?:--\S+ [^\s-]\S* )*([a-z][a-z-]*)(.*)", code)
        for code in code_of(path)
    ]
    for name, rest in (call.groups() for call in calls if call):
        assert name in {*cli.COMMANDS, *cli.guest_names()}, f"{path.name} shows `tilecast {name}`, which does not exist"
        command = cli.main.get_command(click.Context(cli.main), name)  # type: ignore[attr-defined]
        known = {opt for param in command.params for opt in [*param.opts, *param.secondary_opts]} | {"--help", "-h"}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
            assert option in known, f"{path.name} shows `tilecast {name} {option}`, which does not exist"


@pytest.mark.parametrize(("name", "arguments"), hooks().items())
def test_every_hook_is_documented(name: str, arguments: list[str]) -> None:
    row = re.search(rf"^\| `{name}` \|([^|]*)\|", text_of("daemon/README.md"), re.MULTILINE)
    assert row, f"daemon/README.md has no row for the hook {name}"
    assert re.findall(r"`(\w+)`", row[1]) == arguments
    docstring = inspect.getdoc(getattr(hookspecs, name)) or ""
    for argument in arguments:
        assert re.search(rf"^{argument} : ", docstring, re.MULTILINE), f"{name}: {argument} is not explained"


@pytest.mark.parametrize("name", hooks())
def test_every_hook_has_a_numpydoc_docstring(name: str) -> None:
    docstring = inspect.getdoc(getattr(hookspecs, name)) or ""
    sections = re.findall(r"^(\w+)\n-{3,}$", docstring, re.MULTILINE)
    assert sections[:1] == ["Parameters"], name
    returns = inspect.signature(getattr(hookspecs, name)).return_annotation
    assert returns == "None" or len(docstring.split("\n\n")) > 1, f"{name}: what does it return?"


@pytest.mark.parametrize("name", hooks())
def test_the_example_of_a_plugin_has_every_hook_but_the_one_of_calibration(name: str) -> None:
    example = text_of("tests/example_plugin/tilecast_example/plugin.py")
    assert name == "tilecast_find_calibration" or f"def {name}(" in example


def test_the_plugin_in_the_documents_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What "Write a plugin" shows is taken from the page, and loaded."""
    chapter = text_of("daemon/README.md").partition("## Write a plugin")[2]
    files = re.findall(r"```python\n# (my_package/\w+\.py).*\n((?:.*\n)*?)```", chapter)
    assert [path for path, _ in files] == ["my_package/options.py", "my_package/plugin.py"]
    (tmp_path / "my_package").mkdir()
    for path, text in files:
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    [value] = re.findall(r'^my-plugin = "(my_package\.plugin)"$', chapter, re.MULTILINE)
    plugins = Plugins.load([EntryPoint("my-plugin", value, "tilecast.plugins")])
    assert plugins.failed == {}
    assert plugins.hooks() == {"my-plugin": ["tilecast_committed"]}
    for name in ("my_package", "my_package.options", "my_package.plugin"):
        monkeypatch.delitem(sys.modules, name)


def test_hooks_that_are_mentioned_exist() -> None:
    assert len(hooks()) >= 6
    for path in DOCUMENTS:
        mentioned = set(re.findall(r"`(tilecast_\w+)`", path.read_text()))
        assert mentioned <= hooks().keys() | {"tilecast_protocol", "tilecast_plugins"}, path


def test_every_library_has_its_reason() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    required = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    libraries = text_of("README.md").partition("## Libraries")[2].partition("\n## ")[0]
    for requirement in required:
        name = re.match(r"[\w-]+", requirement)
        assert name is not None
        assert re.search(rf"\b{name[0]}\b", libraries, re.IGNORECASE), f"README.md, Libraries: why {name[0]}?"


def test_the_first_thing_in_the_readme_is_how_to_try_it() -> None:
    first = text_of("README.md").split("\n## ")[0] + text_of("README.md").split("\n## ")[1]
    assert first.index("pip install uv && uv run tilecast demo") < first.index("uv run pytest")


def test_the_changelog_tells_of_this_version() -> None:
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert re.search(rf"^## \[?{re.escape(version)}\b", text_of("CHANGELOG.md"), re.MULTILINE)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_opens_with_its_reason(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    assert len(docstring.split()) >= 4, f"{path}: what is it for?"
