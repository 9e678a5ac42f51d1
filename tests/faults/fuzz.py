"""Coverage-guided fuzzing of everything that is handed bytes from outside.

    uv pip install atheris
    uv run python tests/faults/fuzz.py header --seconds 120

The targets are `header`, `image`, `journal` and `query` (`fuzz_targets`). The fuzzer starts from `corpus/<target>` and
writes what it finds interesting to a folder of its own; input that breaks something is left in the working folder as
`crash-…`. Put it into the corpus, where `test_corpus.py` replays it for ever, and mend what it broke.

`--make-corpus` writes the corpus's well-formed part anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CORPUS = Path(__file__).with_name("corpus")


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=("header", "image", "journal", "query"))
    parser.add_argument("--seconds", type=int, default=120, help="how long (120)")
    parser.add_argument("--make-corpus", action="store_true", help="write well-formed inputs into the corpus, and end")
    args = parser.parse_args()
    if args.make_corpus:
        make_corpus()
        return
    if args.target is None:
        parser.error("name a target")
    try:
        import atheris
    except ImportError:
        parser.error("atheris is not there: uv pip install atheris")
    with atheris.instrument_imports(include=["tilecast_protocol", "msgpack"]):
        from faults.fuzz_targets import TARGETS
        from tilecast_protocol import pzf
    for _, compile_it in pzf.KERNELS:
        compile_it()  # or the first input would count as one that takes seconds
    with tempfile.TemporaryDirectory(prefix="tilecast-fuzz-") as found:
        options = [f"-max_total_time={args.seconds}", "-max_len=4096", "-rss_limit_mb=1024", "-timeout=10"]
        atheris.Setup([sys.argv[0], *options, found, str(CORPUS / args.target)], TARGETS[args.target])
        atheris.Fuzz()


def make_corpus() -> None:
    """Well-formed inputs of every kind, and each with an end cut off."""
    import numpy as np

    from faults.fuzz_targets import KINDS
    from tilecast_protocol import pzf, queries
    from tilecast_protocol.journal import Journal, RecordKind
    from wire_messages import PUBLISHER_TYPES, multipart

    made: dict[str, bytes] = {}
    for kind in PUBLISHER_TYPES:
        _, packed, *payload = multipart(kind)
        number = bytes([KINDS.index(kind.encode())])
        made[f"header/{kind}"] = number + packed + b"".join(b"\0\0\0\0" + part for part in payload)
    rng = np.random.default_rng(1)
    for dtype in ("u1", "u2", "f4"):
        for name, mean in (("dark", 0), ("faint", 3), ("bright", 200)):
            pixels = rng.poisson(mean, (20, 24)).astype(dtype)
            made[f"image/{dtype}-{name}"] = bytes(pzf.encode_image(pixels))
    run = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
    some = {
        "run": run,
        "tcz": (0, 0, 0),
        "level": 0,
        "row": 0,
        "col": 0,
        "bounds": (0, 0, 2, 2),
        "epoch": 1,
        "since": 0,
        "name": "x",
        "text": "x",
    }
    for cmd, command in queries.COMMANDS.items():
        arguments = {one.name: some[one.name] for one in command.arguments if one.name in some}
        made[f"query/{cmd}"] = queries.make_query(cmd, 1, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        with Journal.create(Path(folder), run) as journal:
            made["journal/empty"] = (Path(folder) / "000000.tcj").read_bytes()
            for number, kind in enumerate(RecordKind):
                frame = number if kind is RecordKind.IMAGE else None
                journal.append(kind, topic="tc1/a/b/c", header=b"h", parts=[b"p" * 40], t_recv_ns=1, frame=frame)
        made["journal/records"] = (Path(folder) / "000000.tcj").read_bytes()
    for name, data in made.items():
        for ending, kept in (("", len(data)), ("-cut", len(data) * 2 // 3)):
            path = CORPUS / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:kept])


if __name__ == "__main__":
    main()
