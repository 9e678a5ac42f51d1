"""`tilecast doctor`: is this installation fit for work, and if not, what is to be done?"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from tilecast.commands.common import Invocation, console, tilecast_command

if TYPE_CHECKING:
    from rich.console import Console

    from tilecast.commands._checkup import Finding

_DTYPES: Final = {"u1": 1, "u2": 2, "f4": 4}
_STYLE: Final = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


@tilecast_command("doctor")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Frames per second of your camera.")
@click.option("--shape", metavar="ROWSxCOLUMNS", default="2048x2048", show_default=True, help="Pixels of its frames.")
@click.option("--dtype", type=click.Choice(tuple(_DTYPES)), default="u2", show_default=True, help="Type of its pixels.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, for programs.")
@click.pass_context
def command(
    ctx: click.Context, invocation: Invocation, fps: float | None, shape: str, dtype: str, as_json: bool
) -> None:
    """Check this installation as a colleague would, and say what to do about what is wrong.

    Looks at Python, compiled kernels, memory, the clock, the network's buffers, limits, the disk of the runs (kind,
    permissions, room, speed against your camera), keys, and the daemon: the running one is asked, else one is started,
    gets a small scan and is ended. Run it as the user of the daemon, with the daemon's configuration. It ends with
    status 1 if anything fails.

    \b
    Examples:
      tilecast doctor
      tilecast doctor --config /etc/tilecast/tilecast.toml --shape 2048x2048 --dtype u2 --fps 20
    """
    from tilecast.commands._checkup import Camera, Verdict, examine

    match = re.fullmatch(r"(\d+)[x×](\d+)", shape)
    if match is None:
        raise click.UsageError(f"--shape: expected ROWSxCOLUMNS, as 2048x2048, got {shape!r}")
    frame_nbytes = int(match[1]) * int(match[2]) * _DTYPES[dtype]
    camera = None if fps is None else Camera(frame_nbytes=frame_nbytes, fps=fps)
    out = console()
    findings: list[Finding] = []
    for finding in examine(invocation.config, camera):
        findings.append(finding)
        if not as_json:
            _show(out, finding)
    count = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    worst = next((verdict for verdict in reversed(Verdict) if count[verdict]), Verdict.OK)
    if as_json:
        answer = {"verdict": worst, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        n_ok, n_warn, n_fail = (count[verdict] for verdict in Verdict)
        out.print(f"\n{n_ok} in order, {n_warn} to look at, {n_fail} to be repaired")
    if worst is Verdict.FAIL:
        ctx.exit(1)


def _show(out: Console, finding: Finding) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=4)
    table.add_column(width=14, no_wrap=True)
    table.add_column(overflow="fold")
    text = Text(finding.found)
    if finding.advice:
        text.append(f"\n→ {finding.advice}", "bold")
    table.add_row(Text(finding.verdict, style=_STYLE[finding.verdict]), Text(finding.check, style="cyan"), text)
    out.print(table)
