"""What the fuzzer has found, and what is well formed, stays harmless: no other exceptions, little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from faults.fuzz_targets import TARGETS, limit_nbytes

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_harmless(target: str) -> None:
    inputs = sorted(path for path in (CORPUS / target).iterdir() if path.is_file())
    assert len(inputs) > 3
    run = TARGETS[target]
    run(inputs[0].read_bytes())  # whatever is compiled or kept is there now
    for path in inputs:
        data = path.read_bytes()
        tracemalloc.start()
        try:
            run(data)
            _, peak_nbytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_nbytes <= limit_nbytes(data), f"{path.name}: {peak_nbytes} bytes for {len(data)}"


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 200_000
