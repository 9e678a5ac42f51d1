"""The Huffman stream of PZF, slow and obvious, to compare the codec with.

Written from the description of the format, with nothing of tilecast: nodes are scanned for the two lightest as the
reference library scans them, and bits are handled one at a time.
"""

from __future__ import annotations

import numpy as np


def code_of(data: bytes) -> tuple[list[int], dict[int, list[int]]]:
    """Bits of the tree, and bits of each symbol's code."""
    symbols = sorted(set(data))
    weights: list[int] = [data.count(bytes([symbol])) for symbol in symbols]
    alive = [True] * len(symbols)
    children: dict[int, tuple[int, int]] = {}
    while sum(alive) > 1:
        lightest = second = -1
        for node in range(len(weights)):
            if not alive[node]:
                continue
            if lightest < 0 or weights[node] <= weights[lightest]:
                lightest, second = node, lightest
            elif second < 0 or weights[node] <= weights[second]:
                second = node
        alive[lightest] = alive[second] = False
        children[len(weights)] = (lightest, second)
        weights.append(weights[lightest] + weights[second])
        alive.append(True)
    tree: list[int] = []
    codes: dict[int, list[int]] = {}

    def walk(node: int, path: list[int]) -> None:
        if node in children:
            tree.append(0)
            walk(children[node][0], [*path, 0])
            walk(children[node][1], [*path, 1])
        else:
            tree.append(1)
            tree.extend(symbols[node] >> bit & 1 for bit in range(7, -1, -1))
            codes[symbols[node]] = path or [0]

    walk(len(weights) - 1, [])
    return tree, codes


def encode(data: bytes) -> bytes:
    """The stream of `data`."""
    if not data:
        return b""
    tree, codes = code_of(data)
    lengths = np.zeros(256, np.int64)
    table = np.zeros((256, max(map(len, codes.values()))), np.uint8)
    for symbol, code in codes.items():
        lengths[symbol] = len(code)
        table[symbol, : len(code)] = code
    values = np.frombuffer(data, np.uint8)
    starts = np.cumsum(lengths[values]) - lengths[values]
    bits = np.zeros(int(lengths[values].sum()), np.uint8)
    for bit in range(table.shape[1]):
        has = lengths[values] > bit
        bits[starts[has] + bit] = table[values[has], bit]
    return np.packbits(np.concatenate([np.array(tree, np.uint8), bits])).tobytes()


def decode(stream: bytes, n: int) -> bytes:
    """The `n` bytes that `stream` stands for; raises ValueError unless it is exactly as long as they need."""
    bits = [byte >> bit & 1 for byte in stream for bit in range(7, -1, -1)]
    at = 0
    n_nodes = 0

    def take() -> int:
        nonlocal at
        if at >= len(bits):
            raise ValueError("the bits are exhausted")
        at += 1
        return bits[at - 1]

    # A node is a symbol, or the list of its two children.
    root: list[object] = []
    open_nodes = [root]
    while open_nodes:
        n_nodes += 1
        if n_nodes > 511:
            raise ValueError("too many nodes")
        parent = open_nodes[-1]
        if take():
            parent.append(sum(take() << bit for bit in range(7, -1, -1)))
        else:
            inner: list[object] = []
            parent.append(inner)
            open_nodes.append(inner)
        while open_nodes and len(open_nodes[-1]) == (1 if open_nodes[-1] is root else 2):
            open_nodes.pop()
    out = bytearray()
    if isinstance(root[0], int):
        out += bytes([root[0]]) * n
        at += n
    else:
        while len(out) < n:
            node: object = root[0]
            while isinstance(node, list):
                node = node[take()]
            assert isinstance(node, int)
            out.append(node)
    if -(-at // 8) != len(stream):
        raise ValueError("the stream has another length")
    return bytes(out)
