"""Codes that records share: they decode, they cost little, and records that need their own code get it."""

from __future__ import annotations

import threading
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecast_protocol import _pzf_kernels, pzf
from tilecast_protocol.errors import PZFError

#: Of 32 KiB or a little more in each type: the smallest images that share codes.
SIDES = {"u1": 184, "u2": 128, "f4": 96}
#: What sharing may cost: 2 % by the sample, and 2.5 % that the sample did not see.
MOST = 1.05


def noise(mean: float, n: int = 1, seed: int = 0) -> list[npt.NDArray[np.uint16]]:
    rng = np.random.default_rng(seed)
    return [rng.poisson(mean, (128, 128)).astype("u2") for _ in range(n)]


def stream_tree(record: bytes) -> bytes:
    """The whole bytes of the tree of a code with 256 leaves: 255 + 256 · 9 bits."""
    return record[64 : 64 + (255 + 256 * 9) // 8]


def content(name: str, rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> npt.NDArray[Any]:
    rows, columns = np.indices(shape)
    match name:
        case "blank":
            return np.zeros(shape, dtype)
        case "constant":
            return np.full(shape, 77, dtype)
        case "ramp":
            return ((rows + columns) % 251).astype(dtype)
        case "half":
            return (rng.poisson(60, shape) * (rows % 2)).astype(dtype)
        case "outlier":
            image = rng.poisson(20, shape).astype(dtype)
            image.flat[rng.integers(image.size)] = 255
            return image
        case "bytes":
            return np.frombuffer(rng.bytes(rows.size * np.dtype(dtype).itemsize), dtype).reshape(shape)
        case _:
            return rng.poisson(int(name), shape).astype(dtype)


CONTENTS = ["blank", "constant", "ramp", "half", "outlier", "bytes", "4", "140", "150"]


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(SIDES)),
    st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_any_stack_comes_back_and_costs_little(dtype: str, names: list[str], seed: int, as_list: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (SIDES[dtype], SIDES[dtype])
    images = [content(name, rng, shape, dtype) for name in names]
    records = pzf.encode_images(images if as_list else np.stack(images))
    assert len(records) == len(images)
    for image, record in zip(images, records, strict=True):
        assert pzf.decode_image(record, shape=shape, dtype=dtype).tobytes() == image.tobytes()
        assert len(record) <= min(MOST * len(pzf.encode_image(image)), 64 + image.nbytes)


@settings(max_examples=25)
@given(hnp.arrays(np.uint8, st.integers(1, 60)), hnp.arrays(np.uint8, st.integers(1, 256)), st.integers(1, 40))
def test_what_the_sample_does_not_see_is_written_too(
    seen: npt.NDArray[np.uint8], unseen: npt.NDArray[np.uint8], every: int
) -> None:
    rng = np.random.default_rng(len(unseen))
    words = rng.choice(seen, 2 << 14).view("<u2").copy()
    hidden = np.arange(words.size) % 3 != 0  # of 16,384 words every third is looked at
    hidden &= np.arange(words.size) % every == 0
    words[hidden] = rng.choice(unseen, 2 * words.size).view("<u2")[hidden]
    image = words.reshape(128, 128)
    (record,) = pzf.encode_images([image])
    assert pzf.decode_image(record).tobytes() == image.tobytes()
    assert len(record) <= 64 + image.nbytes


def test_images_of_a_kind_share_one_code_and_cost_two_percent_at_most() -> None:
    images = noise(2000, 8)
    records = pzf.encode_images(images)
    own = [pzf.encode_image(image) for image in images]
    assert len({stream_tree(bytes(record)) for record in records}) == 1
    assert len({stream_tree(bytes(record)) for record in own}) == 8
    assert sum(map(len, records)) <= 1.02 * sum(map(len, own))


def test_images_of_another_kind_get_another_code() -> None:
    dark, bright = noise(200, 2), noise(20_000, 2)
    records = pzf.encode_images([dark[0], bright[0], bright[1], dark[1]])
    trees = [stream_tree(bytes(record)) for record in records]
    assert trees[1] == trees[2]
    assert len(set(trees)) == 3
    for image, record in zip([dark[0], bright[0], bright[1], dark[1]], records, strict=True):
        assert len(record) <= 1.03 * len(pzf.encode_image(image))


@pytest.mark.parametrize("value", [0, 77])
def test_blank_images_get_their_own_code(value: int) -> None:
    blank = np.full((128, 128), value, "u2")
    records = pzf.encode_images([noise(2000)[0], blank])
    assert records[1] == pzf.encode_image(blank)


def test_an_image_that_its_sample_belies_gets_its_own_code() -> None:
    image = noise(20)[0]
    hidden = np.arange(image.size) % 3 != 0  # of 16,384 words every third is looked at
    image.flat[hidden] = np.random.default_rng(1).integers(0, 30_000, image.size)[hidden]
    assert pzf.encode_images([image]) == [bytes(pzf.encode_image(image))]


def test_small_images_get_their_own_code() -> None:
    small = [image[:, :127].copy() for image in noise(2000, 3)]
    assert pzf.encode_images(small) == [bytes(pzf.encode_image(image)) for image in small]


@pytest.mark.parametrize("by_pairs", [True, False])
def test_the_longest_codes_that_can_be_shared_are_written_right(by_pairs: bool) -> None:
    # Most bytes are not in the sample, and have long codes among each other; they weigh as much as the rarest byte that
    # is, and of the others each is as frequent as the two rarer together.
    counts = np.zeros(256, np.int64)
    counts[:2] = 30, 60
    for value in range(2, 256):
        count = counts[value - 1] + counts[value - 2]
        if counts.sum() + count > 2 * _pzf_kernels._MOST_SAMPLES:
            break
        counts[value] = count
    codes, tree = np.zeros(256, np.uint64), np.zeros(_pzf_kernels.TREE_BYTES, np.uint8)
    tree_bits = _pzf_kernels._code_table(counts * _pzf_kernels._SAMPLE_WEIGHT + 1, codes, tree)
    lengths = codes & np.uint64(255)
    assert 18 < lengths.max() <= _pzf_kernels.SHARED_LONGEST_BITS
    assert lengths.min() > 0
    assert sum(2.0 ** -int(length) for length in lengths) == 1  # every byte can be told from the others

    # Written with them: bytes of any frequency, of which some words are joined and others are not.
    joined, rows = np.full(1 << 16, _pzf_kernels.NOT_JOINED, np.uint64), np.zeros(256, np.bool_)
    upper = np.zeros(256, np.int64)
    upper[: 100 if by_pairs else 256] = 1
    assert _pzf_kernels._join_rows(upper, codes, joined, rows) is by_pairs
    rng = np.random.default_rng(0)
    data = np.where(rng.random(40_001) < 0.7, rng.integers(8, 14, 40_001), rng.integers(0, 256, 40_001)).astype("u1")
    data.flags.writeable = False
    pairs = data[:-1].view("<u2")
    out = np.empty(data.size * 3 + _pzf_kernels.TREE_BYTES + _pzf_kernels.SLACK_BYTES, np.uint8)
    end = _pzf_kernels.huffman_emit(data, pairs, joined, codes, tree, tree_bits, by_pairs, out, 0)
    decoded = np.empty(data.size, np.uint8)
    stream = out[:end]
    stream.flags.writeable = False
    status, n_bits = _pzf_kernels.huffman_decode(stream, decoded)
    assert (status, -(-n_bits // 8)) == (_pzf_kernels.OK, end)
    assert np.array_equal(decoded, data)
    assert n_bits == tree_bits + int(lengths[data].sum())


def test_records_depend_on_the_images_of_the_call_only() -> None:
    images = noise(2000, 2)
    expected = pzf.encode_images(images)
    for before in (noise(20), [np.zeros((128, 128), "u2")], [image.view("<f4") for image in noise(60_000)]):
        pzf.encode_images(before)
        assert pzf.encode_images(images) == expected


def test_more_images_than_may_share_their_memory_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(300, 5)
    for limit in (1, 200_000):
        monkeypatch.setattr(pzf, "_MAX_SHARED_BYTES", limit)
        for image, record in zip(images, pzf.encode_images(images), strict=True):
            assert np.array_equal(pzf.decode_image(record), image)
            assert record != pzf.encode_image(image)


def test_a_sequence_is_encoded_as_its_stack_is() -> None:
    images = noise(300, 4)
    expected = pzf.encode_images(np.stack(images), frame_num=3)
    assert pzf.encode_images(images, frame_num=3) == expected
    assert pzf.encode_images(tuple(np.asfortranarray(image) for image in images), frame_num=3) == expected
    assert pzf.encode_images([image.astype(">u2") for image in images], frame_num=3) == expected
    unaligned = [np.frombuffer(b"?" + image.tobytes(), np.uint8)[1:].view("<u2").reshape(128, 128) for image in images]
    for image, record in zip(images, pzf.encode_images(unaligned), strict=True):
        assert record == pzf.encode_image(image)
    assert pzf.encode_images([]) == []


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([np.zeros((4, 4), "u1"), np.zeros((4, 5), "u1")], "one shape"),
        ([np.zeros((4, 4), "u1"), np.zeros((4, 4), "u2")], "one shape"),
        ([np.zeros((4, 4, 1), "u1")], "2 dimensions"),
        ([np.zeros((4, 4), "i8")], "int64"),
    ],
)
def test_a_sequence_of_different_images_is_refused(images: list[npt.NDArray[Any]], said: str) -> None:
    with pytest.raises(PZFError, match=said):
        pzf.encode_images(images)


def test_threads_do_not_share_codes() -> None:
    kinds = [[*noise(mean, 3), np.zeros((128, 128), "u2")] for mean in (10, 300, 2000, 30_000)]
    expected = [pzf.encode_images(images) for images in kinds]
    wrong: list[int] = []

    def work(n: int) -> None:
        wrong.extend(n for _ in range(20) if pzf.encode_images(kinds[n]) != expected[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
