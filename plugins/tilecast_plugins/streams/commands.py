"""The commands of `tilecast listen`: take in what another program streams, in a process of its own.

The options of the commands are those of the plugins, field by field, in place of what the configuration says.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from pydantic import ValidationError

from tilecast.options import PluginOptions, kind_of
from tilecast_plugins.streams.options import AreaDetectorOptions, DectrisOptions


def _flag(name: str) -> str:
    return "--from" if name == "endpoint" else f"--{name.replace('_', '-')}"


def _with_options(options_class: type[PluginOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Command-line options for all fields but `enabled`, and the daemon's endpoint."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for name, field in reversed(list(options_class.model_fields.items())):
            if name != "enabled":
                kind = kind_of(field)
                function = click.option(
                    _flag(name), name, metavar=kind.name.upper().replace(" ", "-"), help=field.description
                )(function)
        function = click.option("--instrument", help="Name of the microscope. Default: the configured one.")(function)
        return click.option("--ack", metavar="ENDPOINT", help="The daemon's ingest.ack. Default: the configured one.")(
            function
        )

    return decorate


@click.command("areadetector")
@_with_options(AreaDetectorOptions)
@click.pass_obj
def areadetector(invocation: Any, /, ack: str | None, instrument: str | None, **given: str | None) -> None:
    """Listen to areaDetector's NDPluginZMQ (array-1.0)."""
    from tilecast_plugins.streams.source import areadetector_source

    _listen(invocation, "areadetector", areadetector_source, ack, instrument, given)


@click.command("dectris")
@_with_options(DectrisOptions)
@click.pass_obj
def dectris(invocation: Any, /, ack: str | None, instrument: str | None, **given: str | None) -> None:
    """Listen to the stream 2 (CBOR) of a Dectris detector."""
    from tilecast_plugins.streams.source import dectris_source

    _listen(invocation, "dectris", dectris_source, ack, instrument, given)


def _listen(
    invocation: Any,
    plugin: str,
    make: Callable[[Any], Any],
    ack: str | None,
    instrument: str | None,
    given: dict[str, str | None],
) -> None:
    import logging

    from tilecast_plugins.patience import STEP_S
    from tilecast_plugins.streams.runs import log
    from tilecast_protocol.publisher import Publisher

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = make(_merged(invocation.config.of_plugin(plugin), given))
    source.listener.open()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    publisher = Publisher(
        ack or invocation.config.ingest.ack,
        instrument=instrument or invocation.config.instrument,
        stream=source.stream,
        src=f"{plugin}-{source.stream}",
        timeout_s=STEP_S,
        on_rejected=lambda rejected: log.warning("the daemon refused a message: %s", rejected),
    )
    click.echo(f"tilecast listen: {source.listener.endpoint} to {publisher.endpoint}")
    try:
        source.listen(publisher, stop)
    finally:
        publisher.close(30.0)


def _merged(configured: PluginOptions, given: dict[str, str | None]) -> PluginOptions:
    fields = type(configured).model_fields
    values = configured.model_dump()
    for name, text in given.items():
        if text is not None:
            with suppress(ValueError):  # what is no TOML is refused by name below
                values[name] = text
                values[name] = kind_of(fields[name]).from_text(text)
    try:
        return type(configured).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise click.UsageError(f"{_flag(name)}: {first['msg']}; got {given.get(name, values.get(name))!r}") from error
