"""Simulated detectors, run as processes of their own: they write what NDPluginZMQ and a Dectris detector write.

`python detectors.py areadetector|dectris pub|push|push-bind ENDPOINT NUMBER…`: frames with these numbers, of the scan
below, with rubbish between them; it prints the endpoint, waits until somebody listens, sends, and waits for its end.
"""

from __future__ import annotations

import datetime
import sys

import numpy as np
import zmq
from numpy.typing import NDArray

SHAPE = (48, 64)
STEP = (36, 48)
GRID = (3, 3)
PX_UM = 0.5

#: What a plugin must survive.
RUBBISH = [
    [b""],
    [b"{}", b""],
    [b"\xff\xfe", b"x"],
    [b'{"htype":["array-1.0"],"type":"uint16","shape":[9999999,9999999],"frame":1}', b"x"],
    [b"[" * 5000, b""],
    [b"\xbf" * 300],
    [b"a", b"b", b"c"],
]


def specimen() -> NDArray[np.uint16]:
    """What is scanned; pixel (0, 0) is at stage (0, 0)."""
    shape = [(n - 1) * step + size for n, step, size in zip(GRID, STEP, SHAPE, strict=True)]
    return np.random.default_rng(3).integers(0, 60_000, shape, np.uint16)


def frame(number: int) -> NDArray[np.uint16]:
    """The frame with this number, from 0."""
    row, col = (number // GRID[1]) * STEP[0], (number % GRID[1]) * STEP[1]
    return specimen()[row : row + SHAPE[0], col : col + SHAPE[1]]


def centre_um(number: int) -> tuple[float, float]:
    """Its stage position."""
    row, col = (number // GRID[1]) * STEP[0], (number % GRID[1]) * STEP[1]
    return (col + SHAPE[1] / 2) * PX_UM, (row + SHAPE[0] / 2) * PX_UM


def array_message(number: int) -> list[bytes]:
    """As NDPluginZMQ.cpp writes it: columns first, bare nan, a comma where an attribute has no value."""
    x_um, y_um = centre_um(number)
    header = (
        f'{{"htype":["array-1.0"], "type":"uint16", "shape":[{SHAPE[1]},{SHAPE[0]}], "frame":{number + 100}, '
        f'"timeStamp":{1_100_000_000.25 + number:.17g}, "encoding":"", "ndattr":{{"StageX":{x_um / 1000:.17g},'
        f'"StageY":{y_um / 1000:.17g},"Exposure":0.25,,"Temperature":nan,"Scan":"A, 1","Gone":}}}}'
    ).replace(',"Gone":', ",")
    return [header.encode(), frame(number).tobytes()]


def series_messages(numbers: list[int], *, compressed: bool = False) -> list[list[bytes]]:
    """A series with these images: start, images, end."""
    import cbor2

    who = {"series_id": 7, "series_unique_id": "01H7"}
    start = {
        "type": "start",
        **who,
        "channels": ["threshold_1"],
        "image_size_x": SHAPE[1],
        "image_size_y": SHAPE[0],
        "number_of_images": GRID[0] * GRID[1],
        "pixel_size_x": 75e-6,
        "pixel_size_y": 75e-6,
        "detector_description": "simulated",
    }
    images = []
    for number in numbers:
        x_um, y_um = centre_um(number)
        pixels: object = frame(number).astype("<u2").tobytes()
        if compressed:
            pixels = cbor2.CBORTag(56500, ["bslz4", 2, bslz4(frame(number))])
        images.append(
            {
                "type": "image",
                **who,
                "image_id": number,
                "series_date": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
                "start_time": [number * 50, 100],
                "stop_time": [number * 50 + 25, 100],
                "user_data": {"x": x_um, "y": y_um},
                "data": {"threshold_1": cbor2.CBORTag(40, [list(SHAPE), cbor2.CBORTag(69, pixels)])},
            }
        )
    return [[cbor2.dumps(message)] for message in (start, *images, {"type": "end", **who})]


def bslz4(pixels: NDArray[np.uint16]) -> bytes:
    """Compressed by the reference: the filter of HDF5."""
    import io

    import h5py
    import hdf5plugin

    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("a", data=pixels, chunks=pixels.shape, **hdf5plugin.Bitshuffle(cname="lz4"))
        return bytes(dataset.id.read_direct_chunk((0, 0))[1])


def main(kind: str, how: str, endpoint: str, *numbers: str) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.XPUB if how == "pub" else zmq.PUSH)
    if how == "push":
        socket.connect(endpoint)
    else:
        socket.bind(endpoint)
    print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    if how == "pub":
        socket.recv()  # somebody has subscribed
    wanted = [int(number) for number in numbers]
    good = [array_message(number) for number in wanted] if kind == "areadetector" else series_messages(wanted)
    for number, message in enumerate(good):
        socket.send_multipart(RUBBISH[number % len(RUBBISH)])
        socket.send_multipart(message)
    sys.stdin.read()
    context.destroy(linger=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
