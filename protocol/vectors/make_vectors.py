"""Writes the golden messages: one `.bin` file per message, and `manifest.json`, which says what each of them is.

    python protocol/vectors/make_vectors.py [folder]

For programs in other languages, and to notice when this one changes by accident. The bytes are made from literal values
with msgpack and struct alone; nothing of tilecast is imported, so a mistake in it cannot make its own vectors agree.
What the entries of the manifest mean is in `README.md` beside this file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import msgpack

RUN = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
OTHER_RUN = "7d1b9a40-02c4-4f7e-8a77-5b0c6e2d1f38"
BOOT = "c0ffee00-1234-4abc-8def-0123456789ab"
DAEMON_BOOT = "5a5a5a5a-0000-4000-8000-00000000da3e"
T = 1_790_000_000_123_456_789
PIXELS = struct.pack("<12H", *range(100, 112))  # 3 rows of 4
DARK = struct.pack("<12H", *[7] * 12)


def pzf(pixels: bytes, rows: int, columns: int, data_format: int = 1) -> bytes:
    """A PZF record, version 3, raw, C order."""
    kind = struct.pack("<2s4B1s1x", b"BD", 3, data_format, 0, 0, b"C")
    return kind + struct.pack("<qIIIIQffI12x", 5, 0, rows, columns, 1, T, 0, 1, 64) + pixels


def envelope(kind: str, seq: int = 7, **keys: Any) -> dict[str, Any]:
    """A header with the keys that every publisher's message has, and others."""
    return {"v": 1, "type": kind, "src": "orca-1", "boot": BOOT, "seq": seq, "t": T} | keys


def start(**keys: Any) -> dict[str, Any]:
    """The header of a start; keys that are None are left out."""
    header = envelope("start", run=RUN, name="liver, slide 4", shape=[3, 4], dtype="<u2", px_um=[0.65, 0.65]) | keys
    return {key: value for key, value in header.items() if value is not None}


def image(**keys: Any) -> dict[str, Any]:
    """The header of an image of 3 × 4 raw pixels; keys that are None are left out."""
    header = envelope("image", run=RUN, frame=0, codec="raw", nbytes=len(PIXELS)) | keys
    return {key: value for key, value in header.items() if value is not None}


def without(header: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in header.items() if name != key}


class Vectors:
    """Collects the entries and writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []

    def _write(self, name: str, parts: list[bytes], entry: dict[str, Any]) -> None:
        (self.folder / f"{name}.bin").write_bytes(b"".join(parts))
        self.entries.append({"name": name, "part_bytes": [len(part) for part in parts]} | entry)

    def good(self, name: str, what: str, said: dict[str, Any], *payload: bytes, topic: str = "", **keys: Any) -> None:
        """A message that must be accepted, and be read as it says (or as `read_as`)."""
        topic = topic or f"tc1/scope/cam/{said['type']}"
        sent_by = "publisher" if said["type"] not in ("welcome", "ack", "tiles", "run") else "daemon"
        entry = {"kind": "message", "sent_by": sent_by, "valid": True, "what": what, "topic": topic, "header": said}
        self._write(name, [topic.encode("ascii"), msgpack.packb(said), *payload], entry | keys)

    def bad(
        self,
        name: str,
        what: str,
        header: dict[str, Any] | bytes,
        *payload: bytes,
        topic: bytes = b"",
        reason: str = "malformed",
        lost: tuple[str, ...] = (),
        **keys: Any,
    ) -> None:
        """A message that must be refused with `reason`; `lost`: what cannot be read any more of src, boot and seq."""
        packed = header if isinstance(header, bytes) else msgpack.packb(header)
        topic = topic or f"tc1/scope/cam/{header['type'] if isinstance(header, dict) else 'image'}".encode()
        identity = {"src": "orca-1", "boot": BOOT, "seq": 7} | dict.fromkeys(lost)
        entry = {"kind": "message", "sent_by": "publisher", "valid": False, "what": what, "reason": reason}
        self._write(name, [topic, packed, *payload], entry | {"identity": identity} | keys)

    def query(self, name: str, what: str, request: dict[str, Any] | bytes, code: str = "", **keys: Any) -> None:
        """A request: accepted, or refused with `code`."""
        packed = request if isinstance(request, bytes) else msgpack.packb(request)
        entry: dict[str, Any] = {"kind": "query", "sent_by": "client", "valid": not code, "what": what}
        entry |= {"code": code, "id": keys.pop("id", None)} if code else {"header": request}
        self._write(name, [packed], entry | keys)

    def reply(self, name: str, what: str, header: dict[str, Any], *payload: bytes) -> None:
        """An answer to a query."""
        entry = {"kind": "reply", "sent_by": "daemon", "valid": True, "what": what, "header": header}
        self._write(name, [msgpack.packb(header), *payload], entry)

    def finish(self) -> None:
        names = [entry["name"] for entry in self.entries]
        assert len(names) == len(set(names)), "two vectors have one name"
        manifest = json.dumps({"protocol": 1, "vectors": self.entries}, indent=1, ensure_ascii=False)
        (self.folder / "manifest.json").write_text(manifest + "\n", encoding="utf-8")


def good_publisher_messages(out: Vectors) -> None:
    full_start = start(
        affine=[[0.65, 0.001], [-0.001, -0.65]],
        n_expected=144,
        channels=[{"name": "DAPI", "color": "#0000ff", "emission_nm": 461}, {"name": "GFP", "emission_nm": 509.5}],
        planes={"t": 1, "c": 2, "z": 3},
        extent_um=[[-100.5, -50], [900, 1200.25]],
        pos_src="stage",
        stage_stream="xy",
        dark="dark-100ms",
        flat="flat-10x",
        blend="nearest",
        group="two-cameras-1",
        resume_of=OTHER_RUN,
        replay_of=OTHER_RUN,
        user={"operator": "Ada", "objective": {"name": "10x", "na": 0.3}},
    )
    parts_start = start(
        dark="part:0",
        flat="part:1",
        nbytes=[len(pzf(DARK, 3, 4)), len(pzf(PIXELS, 3, 4))],
        sha256=[hashlib.sha256(pzf(DARK, 3, 4)).hexdigest(), hashlib.sha256(pzf(PIXELS, 3, 4)).hexdigest()],
    )
    out.good("start-minimal", "only what is required", start())
    out.good("start-full", "every key", full_start)
    out.good("start-u1", "pixels of 8 bits", start(dtype="|u1"))
    out.good("start-f4", "float pixels, whole numbers where a fraction is allowed", start(dtype="<f4", px_um=[1, 2]))
    out.good("start-calibration-parts", "dark and flat as payload", parts_start, pzf(DARK, 3, 4), pzf(PIXELS, 3, 4))
    out.good("start-repeat", "a repeat leaves the parts out, and may keep nbytes", parts_start | {"seq": 8})
    out.good("start-unknown-keys", "unknown keys are kept", start(camera_serial="A-1", roi=[0, 0, 4, 3]))
    out.good("start-nil", "nil stands for a key that is left out", start() | {"affine": None}, read_as=start())
    out.good(
        "start-uuid-forms",
        "a uuid in capitals, or without hyphens, is the same uuid",
        start(run=RUN.upper(), boot=BOOT.replace("-", "")),
        read_as=start(),
    )
    out.good("start-same-but-envelope", "boot, seq and t differ: not a conflict", start(boot=OTHER_RUN, seq=1, t=T + 5))
    out.good("start-other-shape", "the shape differs: a conflict", start(shape=[4, 3]))

    out.good("image-minimal", "raw pixels, placed by the stage stream", image(), PIXELS)
    full_image = image(
        frame=12,
        tcz=[1, 0, 2],
        t0=T - 20_000_000,
        t1=T - 10_000_000,
        pos_um=[-1200.25, 88.5, 3.125],
        set_um=[-1200, 88.5],
        moving=False,
        status=3,
        crc32=zlib.crc32(PIXELS),
        user={"gain": 2},
    )
    out.good("image-full", "every key", full_image, PIXELS, start="start-minimal")
    record = pzf(PIXELS, 3, 4)
    packed_image = image(codec="pzf", nbytes=len(record), crc32=zlib.crc32(record), pos_um=[0, 0])
    out.good("image-pzf", "a PZF record", packed_image, record, start="start-minimal")
    out.good("image-nbytes-list", "nbytes as a list of one", image(nbytes=[24]), PIXELS, read_as=image())
    out.good("image-only-t0", "half an exposure time is none", image(t0=T - 5), PIXELS)
    most = 2**63 - 1
    out.good("image-largest-numbers", "largest seq, frame, time", image(seq=most, frame=most, t=most), PIXELS)
    out.good("image-deep", "nested 4 deep", image(user={"a": {"b": [1, 2]}}), PIXELS)
    padding = 64 * 1024 - len(msgpack.packb(image(user={"pad": ""}))) - 2
    longest_header = image(user={"pad": "x" * padding})
    assert len(msgpack.packb(longest_header)) == 64 * 1024
    out.good("image-64-KiB", "a header of exactly 64 KiB, not repeated here", longest_header, PIXELS, header=None)
    longest = "A" + "z._-" * 15 + "012"
    out.good("image-longest-names", "names of 64 characters", image(), PIXELS, topic=f"tc1/{longest}/{longest}/image")

    out.good("stage-minimal", "x and y", envelope("stage", pos_um=[1, 2.5]), topic="tc1/scope/xy/stage")
    stage = envelope("stage", pos_um=[1.5, -2.5, 0.25], moving=True, set_um=[2, -2.5, 0.25], user={})
    out.good("stage-full", "every key", stage, topic="tc1/scope/xy/stage", read_as=without(stage, "user"))
    out.good("event", "a note", envelope("event", name="focus lost", run=RUN, user={"z_um": 12.5}))
    out.good("event-no-run", "an event of no run", envelope("event", name="shutter"))
    out.good("end", "the end", envelope("end", run=RUN, reason="done", n_sent=144, n_camera_dropped=2))
    out.good("end-abort", "stopped by hand", envelope("end", run=RUN, reason="abort", n_sent=0))
    out.good("hb", "a heartbeat", envelope("hb", state="sending", run=RUN, n_sent=12, queues={"images": 3}))
    out.good("hb-minimal", "a heartbeat between runs", envelope("hb", state="idle"))
    out.good("hello", "takes no seq", {"v": 1, "type": "hello", "src": "orca-1", "boot": BOOT, "next_seq": 0})


def good_daemon_messages(out: Vectors) -> None:
    sent = {"src": "tilecast", "boot": DAEMON_BOOT, "t": T}
    received = {"run": RUN, "state": "open", "next_frame": 20, "received": [[0, 11], [13, 19]]}
    welcome = {"credit": 16, "upto_seq": -1, "max_frame_bytes": 2**28, "durability": "fsync", "state": "ready"}
    out.good("welcome", "nothing is known", {"v": 1, "type": "welcome"} | sent | welcome | {"runs": []})
    welcome |= {"upto_seq": 21, "runs": [received]}
    out.good("welcome-run", "a run to go on with", {"v": 1, "type": "welcome"} | sent | welcome)
    ack = {"upto_seq": 30, "credit": 16, "rejected": [], "state": "ready", "free_bytes": 10**12}
    out.good("ack", "all is well", {"v": 1, "type": "ack"} | sent | ack)
    rejection = {"seq": 29, "reason": "unknown-run", "message": "send start of this run, then the image again"}
    out.good("ack-rejected", "one was refused", {"v": 1, "type": "ack"} | sent | ack | {"rejected": [rejection]})
    tiles = {"run": RUN, "epoch": 0, "rev": 5, "tiles": [[0, 0, 0, 0, -1, 3], [0, 0, 0, 1, -1, 1]], "gone": []}
    tiles |= {"truncated": False, "t_recv": T - 10**8, "t_commit": T, "bbox_um": [[-10, 0], [90.5, 12]]}
    out.good("tiles", "a commit", {"v": 1, "type": "tiles"} | sent | {"seq": 9} | tiles)
    many = {"tiles": None, "truncated": True, "t_recv": None, "bbox_um": None}
    out.good("tiles-truncated", "too many to name", {"v": 1, "type": "tiles"} | sent | {"seq": 10} | tiles | many)
    notice = {"run": RUN, "kind": "gap", "detail": {"missing": [[12, 12]]}}
    out.good("run", "a gap was seen", {"v": 1, "type": "run"} | sent | {"seq": 11} | notice)
    alive = {"state": "ready", "runs": [{"run": RUN, "epoch": 0, "rev": 5}], "wal_bytes": 65536, "free_bytes": 10**12}
    out.good(
        "hb-daemon",
        "the daemon's own heartbeat",
        {"v": 1, "type": "hb"} | sent | {"seq": 12} | alive,
        topic="tc1/scope/daemon/hb",
        sent_by="daemon",
    )


def bad_envelopes(out: Vectors) -> None:
    all_lost = ("src", "boot", "seq")
    out.bad("bad-topic-version", "tc2", image(), PIXELS, topic=b"tc2/scope/cam/image")
    out.bad("bad-topic-short", "no stream", image(), PIXELS, topic=b"tc1/scope/image")
    out.bad("bad-topic-path", "a name that climbs", image(), PIXELS, topic=b"tc1/../cam/image")
    out.bad("bad-topic-bytes", "not ASCII", image(), PIXELS, topic="tc1/scöpe/cam/image".encode())
    out.bad("bad-topic-long-name", "65 characters", image(), PIXELS, topic=b"tc1/" + b"a" * 65 + b"/cam/image")
    out.bad("bad-topic-type", "another type than the header's", image(), PIXELS, topic=b"tc1/scope/cam/stage")
    out.bad("bad-topic-newline", "a line break at the end", image(), PIXELS, topic=b"tc1/scope/cam/image\n")
    out.bad("bad-stream-daemon", "the reserved stream", image(), PIXELS, topic=b"tc1/scope/daemon/image")
    out.bad("bad-type", "an unknown type", envelope("picture"))
    out.bad("bad-type-missing", "no type", without(image(), "type"), PIXELS, topic=b"tc1/scope/cam/image")
    out.bad("bad-version", "version 2", image(v=2), PIXELS)
    out.bad("bad-version-missing", "no version", without(image(), "v"), PIXELS)
    out.bad("bad-version-true", "true is not 1", image(v=True), PIXELS)
    out.bad("bad-version-float", "1.0 is not 1", image(v=1.0), PIXELS)
    for key in ("src", "boot", "seq"):
        out.bad(f"bad-{key}-missing", f"no {key}", without(image(), key), PIXELS, lost=(key,))
    out.bad("bad-t-missing", "no t", without(image(), "t"), PIXELS)
    out.bad("bad-src-empty", "a name of nothing", image(src=""), PIXELS, lost=("src",))
    out.bad("bad-src-control", "an escape sequence", image(src="\x1b[2J"), PIXELS, lost=("src",))
    out.bad("bad-boot-bytes", "a uuid as 16 bytes", image(boot=bytes(16)), PIXELS, lost=("boot",))
    out.bad("bad-boot-text", "not a uuid", image(boot="boot-1"), PIXELS, lost=("boot",))
    out.bad("bad-seq-negative", "-1", image(seq=-1), PIXELS, lost=("seq",))
    out.bad("bad-seq-float", "7.0 is not a whole number here", image(seq=7.0), PIXELS, lost=("seq",))
    out.bad("bad-seq-large", "2^63", image(seq=2**63), PIXELS, lost=("seq",))
    out.bad("bad-t-float", "seconds as a fraction", image(t=1.79e9), PIXELS)
    out.bad("bad-t-true", "a boolean is no number", image(t=True), PIXELS)

    good = msgpack.packb(image())
    fixed_map = 0x80 | len(image())
    assert good[0] == fixed_map
    out.bad("bad-header-empty", "nothing", b"", PIXELS, lost=all_lost)
    out.bad("bad-header-list", "a list", msgpack.packb([1, 2]), PIXELS, lost=all_lost)
    out.bad("bad-header-text", "JSON", json.dumps(image()).encode(), PIXELS, lost=all_lost)
    out.bad("bad-header-cut", "cut short", good[:-5], PIXELS)
    out.bad("bad-header-trailing", "a byte behind the end", good + b"\xc0", PIXELS)
    twice = bytes([fixed_map + 1]) + good[1:] + msgpack.packb("frame") + msgpack.packb(1)
    out.bad("bad-header-key-twice", "frame twice", twice, PIXELS)
    number_key = bytes([fixed_map + 1]) + good[1:] + msgpack.packb(5) + msgpack.packb(1)
    out.bad("bad-header-number-key", "a key that is a number", number_key, PIXELS)
    bytes_key = bytes([fixed_map + 1]) + good[1:] + msgpack.packb(b"key") + msgpack.packb(1)
    out.bad("bad-header-bytes-key", "a key that is bytes", bytes_key, PIXELS)
    not_utf8 = bytes([fixed_map + 1]) + good[1:] + msgpack.packb("key") + b"\xa2\xff\xfe"
    out.bad("bad-header-utf8", "text that is not UTF-8", not_utf8, PIXELS)
    out.bad("bad-header-extension", "an extension type", image(user={"x": msgpack.ExtType(5, b"abc")}), PIXELS)
    out.bad("bad-header-timestamp", "msgpack's timestamp is one too", image(user={"x": msgpack.Timestamp(1)}), PIXELS)
    out.bad("bad-header-deep", "nested 5 deep", image(user={"a": {"b": [[1]]}}), PIXELS)
    bomb = msgpack.packb("user") + b"\xdd\x00\x01\x00\x00" * 10_000
    out.bad("bad-header-bomb", "lists that announce lists", bytes([fixed_map + 1]) + good[1:] + bomb, PIXELS)
    lie = bytes([fixed_map + 1]) + good[1:] + msgpack.packb("user") + b"\xdf\xff\xff\xff\xff"
    out.bad("bad-header-lying-map", "a map of 4,294,967,295", lie, PIXELS)
    padding = 64 * 1024 - len(msgpack.packb(image(user={"pad": ""}))) - 1
    large = image(user={"pad": "x" * padding})
    assert len(msgpack.packb(large)) == 64 * 1024 + 1
    out.bad("bad-header-large", "64 KiB and one byte", large, PIXELS, reason="too-large")


def bad_starts(out: Vectors) -> None:
    for key in ("run", "name", "shape", "dtype", "px_um"):
        out.bad(f"bad-start-{key}-missing", f"no {key}", without(start(), key))
        out.bad(f"bad-start-{key}-nil", f"{key} is nil", start() | {key: None})
    digest = hashlib.sha256(DARK).hexdigest()
    values: dict[str, tuple[str, Any]] = {
        "run-text": ("run", "run 1"),
        "name-number": ("name", 4),
        "name-control": ("name", "a\nb"),
        "shape-3": ("shape", [3, 4, 1]),
        "shape-zero": ("shape", [0, 4]),
        "shape-float": ("shape", [3.0, 4.0]),
        "shape-text": ("shape", "3x4"),
        "dtype-endian": ("dtype", ">u2"),
        "dtype-signed": ("dtype", "<i2"),
        "dtype-name": ("dtype", "uint16"),
        "px-zero": ("px_um", [0, 0.65]),
        "px-negative": ("px_um", [0.65, -0.65]),
        "px-number": ("px_um", 0.65),
        "px-nan": ("px_um", [math.nan, 1]),
        "affine-singular": ("affine", [[1, 2], [2, 4]]),
        "affine-zero": ("affine", [[0, 0], [0, 0]]),
        "affine-inf": ("affine", [[math.inf, 0], [0, 1]]),
        "affine-tiny": ("affine", [[1e-200, 0], [0, 1e-200]]),
        "affine-flat": ("affine", [1, 0, 0, 1]),
        "n-expected": ("n_expected", -1),
        "channels-map": ("channels", {"name": "DAPI"}),
        "channels-wavelength": ("channels", [{"emission_nm": "461"}]),
        "planes-zero": ("planes", {"t": 0}),
        "planes-list": ("planes", [1, 1, 1]),
        "extent-order": ("extent_um", [[10, 0], [0, 10]]),
        "extent-nan": ("extent_um", [[0, 0], [math.nan, 10]]),
        "extent-far": ("extent_um", [[0, 0], [1e9, 1]]),
        "pos-src": ("pos_src", "encoder"),
        "stage-stream": ("stage_stream", "../xy"),
        "stage-stream-daemon": ("stage_stream", "daemon"),
        "dark-path": ("dark", "../../etc/passwd"),
        "dark-part": ("dark", "part:one"),
        "blend": ("blend", "average"),
        "replay-of": ("replay_of", "yesterday"),
        "sha256": ("sha256", digest[:-1]),
        "user": ("user", [1, 2]),
    }
    for name, (key, value) in values.items():
        out.bad(f"bad-start-{name}", f"{key} is {value!r}", start(**{key: value}))
    out.bad("bad-start-part-without-sha", "part:0 and no sha256", start(dark="part:0", nbytes=len(DARK)), DARK)
    out.bad(
        "bad-start-part-absent",
        "part:1 and only one part came",
        start(dark="part:1", sha256=[digest, digest]),
        DARK,
        reason="bad-payload",
    )
    out.bad(
        "bad-start-nbytes",
        "nbytes is not the size of the part",
        start(dark="part:0", sha256=digest, nbytes=len(DARK) + 1),
        DARK,
        reason="bad-payload",
    )
    out.bad(
        "bad-start-part-sha256",
        "another part's SHA-256",
        start(dark="part:0", sha256=digest),
        PIXELS,
        reason="bad-payload",
    )
    two = [{"name": "DAPI"}, {"name": "GFP"}]
    out.bad("bad-start-contradiction", "2 channels and planes.c = 3", start(channels=two, planes={"c": 3}))
    out.bad("bad-start-large", "frames of 20 GB", start(shape=[100_000, 100_000]), reason="too-large")


def bad_images(out: Vectors) -> None:
    for key in ("run", "frame", "codec", "nbytes"):
        out.bad(f"bad-image-{key}-missing", f"no {key}", without(image(), key), PIXELS)
    values: dict[str, tuple[str, Any]] = {
        "frame-negative": ("frame", -1),
        "frame-float": ("frame", 0.0),
        "frame-true": ("frame", True),
        "frame-text": ("frame", "0"),
        "codec": ("codec", "jpeg"),
        "nbytes-text": ("nbytes", "24"),
        "nbytes-float": ("nbytes", 24.0),
        "tcz-2": ("tcz", [0, 0]),
        "tcz-negative": ("tcz", [0, 0, -1]),
        "t0-float": ("t0", 1.5),
        "pos-nan": ("pos_um", [math.nan, 0]),
        "pos-inf": ("pos_um", [0, -math.inf]),
        "pos-1": ("pos_um", [1]),
        "pos-4": ("pos_um", [1, 2, 3, 4]),
        "pos-map": ("pos_um", {"x": 1, "y": 2}),
        "pos-text": ("pos_um", ["1", "2"]),
        "pos-true": ("pos_um", [True, 2]),
        "set-nan": ("set_um", [0, math.nan]),
        "moving-1": ("moving", 1),
        "status-4": ("status", 4),
        "status-true": ("status", True),
        "crc32-negative": ("crc32", -1),
        "crc32-text": ("crc32", "00000000"),
        "user-text": ("user", "gain 2"),
    }
    for name, (key, value) in values.items():
        out.bad(f"bad-image-{name}", f"{key} is {value!r}", image(**{key: value}), PIXELS)
    out.bad("bad-image-exposure", "t1 before t0", image(t0=T, t1=T - 1), PIXELS)
    payload: dict[str, Any] = {"reason": "bad-payload"}
    out.bad("bad-image-nbytes", "nbytes is not the size of the part", image(nbytes=25), PIXELS, **payload)
    out.bad("bad-image-no-payload", "nothing came", image(), **payload)
    out.bad("bad-image-nbytes-count", "one part, two sizes", image(nbytes=[12, 12]), PIXELS, **payload)

    payload["start"] = "start-minimal"
    halves = PIXELS[:12], PIXELS[12:]
    out.bad("bad-payload-two-parts", "an image has one part", image(nbytes=[12, 12]), *halves, **payload)
    out.bad("bad-payload-size", "raw pixels one too few", image(nbytes=22), PIXELS[:-2], **payload)
    out.bad("bad-payload-crc32", "a wrong checksum", image(crc32=zlib.crc32(PIXELS) ^ 1), PIXELS, **payload)
    for name, what, record in (
        ("shape", "rows and columns exchanged", pzf(PIXELS, 4, 3)),
        ("dtype", "8 bits in a run of 16", pzf(PIXELS[:12], 3, 4, data_format=0)),
        ("noise", "not PZF at all", bytes(range(100))),
        ("short", "cut within its header", pzf(PIXELS, 3, 4)[:40]),
    ):
        out.bad(f"bad-payload-pzf-{name}", what, image(codec="pzf", nbytes=len(record)), record, **payload)


def bad_others(out: Vectors) -> None:
    out.bad("bad-stage-pos-missing", "no position", envelope("stage"))
    out.bad("bad-stage-pos-nan", "not finite", envelope("stage", pos_um=[0, math.nan]))
    out.bad("bad-stage-moving", "moving is text", envelope("stage", pos_um=[0, 0], moving="no"))
    out.bad("bad-event-name", "no name", envelope("event"))
    out.bad("bad-event-run", "a run that is no uuid", envelope("event", name="shutter", run=5))
    out.bad("bad-end-reason", "an unknown reason", envelope("end", run=RUN, reason="finished", n_sent=1))
    out.bad("bad-end-n-sent", "n_sent missing", envelope("end", run=RUN, reason="done"))
    out.bad("bad-hb-state", "no state", envelope("hb"))
    out.bad("bad-hb-queues", "a depth below 0", envelope("hb", state="sending", queues={"images": -1}))
    hello = {"v": 1, "type": "hello", "src": "orca-1", "boot": BOOT}
    out.bad("bad-hello-next-seq", "no next_seq", hello, lost=("seq",))


def queries(out: Vectors) -> None:
    head = {"v": 1, "id": 1}
    plane = {"run": RUN, "tcz": [0, 0, 0], "level": 2}
    good: dict[str, dict[str, Any]] = {
        "hello": {},
        "runs": {},
        "run": {"run": RUN},
        "snapshot": {"run": RUN},
        "tile": plane | {"row": -3, "col": 4, "if_newer": 9},
        "region": plane | {"bounds": [-10, 0, 90, 200], "codec": "pzf", "fill": 0},
        "changes": {"run": RUN, "epoch": 0, "since": 12, "limit": 100},
        "placements": {"run": RUN, "since": 3},
        "report": {"run": RUN},
        "stats": {},
        "health": {},
        "end": {"run": RUN},
        "rebuild": {"run": RUN, "blend": "mean", "rejoin": True},
        "repair": {"run": RUN},
        "rename": {"run": RUN, "name": "liver, slide 5"},
        "note": {"run": RUN, "text": "bubble in the\nupper left"},
        "delete": {"run": RUN},
        "seal": {"run": RUN, "force": True},
        "reload": {},
    }
    for cmd, arguments in good.items():
        out.query(f"query-{cmd}", f"the command {cmd}", head | {"cmd": cmd} | arguments)
    page = plane | {"after": [0, 0, 0, 2, -1, 4], "limit": 1000}
    out.query("query-snapshot-page", "one plane and level, the next page", head | {"cmd": "snapshot"} | page)
    out.query("query-text-id", "an id that is text", {"v": 1, "id": "q-1", "cmd": "runs"})
    out.query("query-no-id", "no id", {"v": 1, "cmd": "runs"})
    out.query("query-unknown-argument", "means nothing, and does no harm", head | {"cmd": "runs", "colour": "red"})

    bad = "malformed"
    out.query("bad-query-bytes", "not msgpack", b"GET / HTTP/1.1", bad)
    out.query("bad-query-version", "version 2", {"v": 2, "id": 1, "cmd": "runs"}, bad, id=1)
    out.query("bad-query-no-cmd", "no command", head, bad, id=1)
    out.query("bad-query-unknown", "an unknown command", head | {"cmd": "shutdown"}, "unknown-command", id=1)
    out.query("bad-query-cmd-number", "a command that is a number", head | {"cmd": 5}, "unknown-command", id=1)
    out.query("bad-query-id", "an id that is a list", {"v": 1, "id": [1], "cmd": "runs"}, bad)
    out.query("bad-query-no-run", "an argument is missing", head | {"cmd": "run"}, bad, id=1)
    out.query("bad-query-run", "not a uuid", head | {"cmd": "run", "run": "../x"}, bad, id=1)
    out.query("bad-query-row", "a row with a fraction", head | {"cmd": "tile", "row": 1.5, "col": 0} | plane, bad, id=1)
    far = plane | {"row": 2**31, "col": 0}
    out.query("bad-query-row-far", "a row beyond 31 bits", head | {"cmd": "tile"} | far, bad, id=1)
    no_tcz = without(plane, "tcz") | {"row": 0, "col": 0}
    out.query("bad-query-tcz", "no plane", head | {"cmd": "tile"} | no_tcz, bad, id=1)
    empty = plane | {"bounds": [0, 0, 0, 5]}
    out.query("bad-query-bounds", "bounds that hold nothing", head | {"cmd": "region"} | empty, bad, id=1)
    codec = plane | {"bounds": [0, 0, 5, 5], "codec": "png"}
    out.query("bad-query-codec", "an unknown codec", head | {"cmd": "region"} | codec, bad, id=1)
    since = {"run": RUN, "epoch": 0, "since": -1}
    out.query("bad-query-since", "before the first", head | {"cmd": "changes"} | since, bad, id=1)
    none = {"run": RUN, "epoch": 0, "since": 0, "limit": 0}
    out.query("bad-query-limit", "a page of nothing", head | {"cmd": "changes"} | none, bad, id=1)
    out.query("bad-query-blend", "an unknown mode", head | {"cmd": "rebuild", "run": RUN, "blend": "sum"}, bad, id=1)

    out.reply("reply", "a tile, and its coverage", {"v": 1, "id": 1, "ok": True, "rev": 5, "coverage": "full"}, b"BD")
    error = {"code": "unknown-run", "message": "there is no such run here; ask `runs` for those that there are"}
    out.reply("reply-error", "a refusal", {"v": 1, "id": "q-1", "ok": False, "error": error})


def main(folder: Path) -> None:
    """Write all vectors into `folder`."""
    out = Vectors(folder)
    for write in (
        good_publisher_messages,
        good_daemon_messages,
        bad_envelopes,
        bad_starts,
        bad_images,
        bad_others,
        queries,
    ):
        write(out)
    out.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
