"""The gateway against its own description: schemathesis asks what the OpenAPI document allows, and what it forbids."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from integration.talking import PATIENCE_S
from plugins.web.conftest import WebStation
from tilecast_plugins.web.app import create_app
from tilecast_plugins.web.settings import Settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
HOW_OFTEN = pytest.mark.parametrize("n", [8, pytest.param(200, marks=pytest.mark.slow)])


def often(n: int) -> settings:
    """So many examples, always the same."""
    return settings(
        max_examples=n, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )


def described() -> list[str]:
    """Every operation of the API, as `GET /api/v1/runs`; events never end, so they are left out."""
    document = create_app(Settings(store_path=Path(tempfile.gettempdir()))).openapi()
    return [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/api/v1") and path != "/api/v1/events"
    ]


@pytest.fixture(scope="module")
def operations(web_station: WebStation) -> dict[str, Any]:
    """What the running gateway says of itself, by operation."""
    schema = schemathesis.openapi.from_url(f"{web_station.web.url}/api/v1/openapi.json", timeout=PATIENCE_S)
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_the_description_is_of_openapi_3(operations: dict[str, Any]) -> None:
    assert set(described()) <= operations.keys()
    assert len(described()) > 15


@HOW_OFTEN
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("label", described())
def test_answers_are_as_described(operations: dict[str, Any], label: str, mode: GenerationMode, n: int) -> None:
    operation = operations[label]
    if mode is GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query or operation.body):
        pytest.skip("nothing can be wrong about it")

    @given(case=operation.as_strategy(generation_mode=mode))
    @often(n)
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=PATIENCE_S)

    ask()


@HOW_OFTEN
@pytest.mark.parametrize("label", [one for one in described() if "{run}" in one and one.startswith("GET")])
def test_answers_about_a_run_that_is_there(
    operations: dict[str, Any], web_station: WebStation, label: str, n: int
) -> None:
    epoch = web_station.client.run(web_station.scan)["epoch"]

    @given(case=operations[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    @often(n)
    def ask(case: Any) -> None:
        case.path_parameters["run"] = web_station.scan
        if "epoch" in case.path_parameters:
            case.path_parameters["epoch"] = epoch
        case.call_and_validate(checks=CHECKS, timeout=PATIENCE_S)

    ask()
