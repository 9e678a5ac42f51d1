"""The page's files: what is served, under which policy, and that all of it is in the package."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from built_wheel import wheel
from plugins.web.conftest import running_web
from tilecast_plugins.web import page


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A gateway that has no runs and no daemon; the page is there all the same."""
    with (
        running_web("--store", str(tmp_path_factory.mktemp("runs"))) as web,
        httpx.Client(base_url=web.url) as client,
    ):
        yield client


def test_the_page_and_everything_it_names_is_served_under_its_policy(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert len(named) >= 4
    for path in named:
        assert not path.startswith(("/", "http")), f"{path}: a path that works below /t/TOKEN/ too is relative"
        found = client.get(f"/{path}")
        assert found.status_code == 200, path
        assert found.headers["content-security-policy"] == answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_every_module_that_is_imported_exists_and_is_javascript(client: httpx.Client) -> None:
    folder = page.FOLDER / "js"
    for path in folder.glob("*.js"):
        for name in re.findall(r"from '\./([\w-]+\.js)'", path.read_text()):
            assert (folder / name).is_file(), f"{path.name} imports {name}"
        answer = client.get(f"/static/js/{path.name}")
        assert answer.headers["content-type"].startswith("text/javascript"), path.name
        assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/static/js", "/static/nothing.js"]
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_style_that_the_viewer_writes_is_the_one_that_is_allowed() -> None:
    """A new version of OpenSeadragon may write another: then the policy has to follow."""
    vendored = page.FOLDER / "vendor" / "openseadragon"
    script = (vendored / "openseadragon.min.js").read_text()
    found = re.search(r'textContent="(@media \(hover: none\)[^"]*)"', script)
    assert found is not None
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.HEADERS["Content-Security-Policy"]
    assert "Redistribution and use" in (vendored / "LICENSE.txt").read_text()


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which builds the wheel, is not on the path")
def test_who_installs_the_wheel_has_all_of_the_page(tmp_path: Path) -> None:
    package = page.FOLDER.parents[1]
    assets = {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in files_of(page.FOLDER)}
    assert len(assets) > 30
    with zipfile.ZipFile(wheel(tmp_path, "0.1.92")) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if "/web/static/" in name}
    assert found == assets


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
