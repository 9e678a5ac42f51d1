"""A camera script: sends frames of a serpentine when it is told how many, and says when it has.

It runs in a process of its own, so that it can speak from within another network namespace: a test starts it there.
Each line on standard input is a number of frames; at its end the run is ended, and all of it acknowledged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from integration.scanning import pictures, serpentine
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast_protocol.publisher import Publisher

MOST = 1000


def main(endpoint: str, seed: int) -> None:
    """Send until standard input ends."""
    sent = pictures(seed, MOST)
    with Publisher(endpoint, instrument="scope", stream="cam", timeout_s=60.0) as publisher:
        run = publisher.start("a scan on a service", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        say(run=run)
        frame = 0
        for line in sys.stdin:
            for _ in range(int(line)):
                publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                frame += 1
            say(sent=frame)
        publisher.end()
        publisher.flush()
        say(frames=frame, rejected=len(publisher.rejected))


def say(**what: object) -> None:
    """One line of JSON."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
