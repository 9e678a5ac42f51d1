"""The inner loops of the PZF codec: static Huffman coding of bytes, as the Basic Compression Library writes it.

Why it exists: the C library trusts what it reads. These kernels do the same work on NumPy arrays, with every index
bounded by a check on the array it goes into, so bytes from a socket can be given to them; and they are several times
faster, because they look codes up in tables instead of walking a tree bit by bit.

What it does not know: headers, shapes, pixel types, threads. `tilecast_protocol.pzf` calls it, and is the only one to
do so. This module imports numba, which takes a second: import it when there is something to code, never before.

The stream: first the tree in preorder (bit 0 = inner node, child A then child B; bit 1 = leaf, and the eight bits of
its symbol), then for each byte of the data its path from the root (0 = A, 1 = B). Most significant bit first,
throughout. No length and no terminator. A tree that is a single leaf has no path; the encoder then writes one 0 bit
for each byte, and the decoder reads none of them.

Conventions: a *code entry* is ``code << 8 | length`` in 64 bits, the code right-aligned. Arrays that are only read
come in read-only, so that there is one specialisation of each kernel, whoever owns the bytes. Indices are uint64,
because numba then leaves out the code for negative ones. Kernels return a status; they never raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

U8Array = npt.NDArray[np.uint8]
U16Array = npt.NDArray[np.uint16]
U32Array = npt.NDArray[np.uint32]
U64Array = npt.NDArray[np.uint64]
I64Array = npt.NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., object])

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64

#: Bytes of the longest tree: 255 inner nodes of one bit and 256 leaves of nine, padded.
TREE_BYTES = 328
#: Bytes that a kernel may write, as zeros, behind the last byte it was asked for: the tail of a 64-bit store.
SLACK_BYTES = 8
#: Most nodes of a tree over 256 symbols.
MAX_NODES = 511

OK = 0
TREE_CUT = 1
TREE_TOO_BIG = 2
BITS_EXHAUSTED = 3

#: Bits that index the decoder's table. 2**12 entries of 2 + 4 bytes stay in a first-level cache of 32 KiB.
_TABLE_BITS = 12
#: Up to 7 bits wait in the accumulator, and 56 more leave it less than full: a full one would have to be shifted by 64,
#: which is undefined.
_ROOM_BITS = 56


def _kernel(function: _F) -> _F:
    """Compile on first call, without the GIL, cached beside the source."""
    return cast(_F, njit(cache=True, nogil=True, error_model="numpy")(function))


@_kernel
def _store64(out: U8Array, at: np.uint64, word: np.uint64) -> None:
    """Write eight bytes, most significant first. The compiler makes one swapped store of it."""
    out[at] = u8(word >> u64(56))
    out[at + u64(1)] = u8(word >> u64(48))
    out[at + u64(2)] = u8(word >> u64(40))
    out[at + u64(3)] = u8(word >> u64(32))
    out[at + u64(4)] = u8(word >> u64(24))
    out[at + u64(5)] = u8(word >> u64(16))
    out[at + u64(6)] = u8(word >> u64(8))
    out[at + u64(7)] = u8(word)


@_kernel
def _load64(data: U8Array, at: np.uint64) -> np.uint64:
    """Read eight bytes, most significant first. The compiler makes one swapped load of it."""
    return (
        (u64(data[at]) << u64(56))
        | (u64(data[at + u64(1)]) << u64(48))
        | (u64(data[at + u64(2)]) << u64(40))
        | (u64(data[at + u64(3)]) << u64(32))
        | (u64(data[at + u64(4)]) << u64(24))
        | (u64(data[at + u64(5)]) << u64(16))
        | (u64(data[at + u64(6)]) << u64(8))
        | u64(data[at + u64(7)])
    )


@_kernel
def _store4(out: U8Array, at: np.uint64, word: np.uint32) -> None:
    """Write four bytes, least significant first."""
    out[at] = u8(word)
    out[at + u64(1)] = u8(word >> u32(8))
    out[at + u64(2)] = u8(word >> u32(16))
    out[at + u64(3)] = u8(word >> u32(24))


@_kernel
def _put(
    out: U8Array, at: np.uint64, bits: np.uint64, filled: np.uint64, code: np.uint64, length: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Append a code of 1 to _ROOM_BITS bits; whole bytes leave at once, so that less than 8 bits stay behind.

    `bits` holds, at its top, the `filled` bits that wait for their byte, and zeros below them. Eight bytes are stored
    each time, whatever is whole among them: no branch, and what is not yet whole is written again.
    """
    filled += length
    bits |= code << (u64(64) - filled)
    _store64(out, at, bits)
    return at + (filled >> u64(3)), bits << (filled & u64(56)), filled & u64(7)


@_kernel
def _code_table(counts: I64Array, codes: U64Array, tree: U8Array) -> int:
    """Build the Huffman code of a byte histogram, and write its tree.

    The reference scans all nodes for the two lightest, in the order leaves by symbol, then merged nodes by age; of
    equals the later wins, and the lightest becomes child A. That is an order by (count, -index): leaves sorted once by
    it, and merged nodes, which are born in the order of their counts, in runs of equal count, each a stack.

    Parameters
    ----------
    counts : int64, (256,)
        How often each byte occurs; at least one does.
    codes : uint64, (256,)
        Receives the code entries; 0 for bytes that do not occur.
    tree : uint8, (TREE_BYTES,)
        Receives the tree, padded with zero bits.

    Returns
    -------
    int
        Bits of the tree.
    """
    # Leaves are numbered by symbol. The sort is stable, so it starts from the later index.
    order = np.empty(256, np.int64)
    sorted_ = np.empty(256, np.int64)
    weight = np.empty(MAX_NODES, np.int64)
    symbol = np.empty(MAX_NODES, np.int64)
    n_leaves = 0
    heaviest = np.int64(0)
    for value in range(256):
        codes[value] = u64(0)
        if counts[value] > 0:
            weight[n_leaves] = counts[value]
            symbol[n_leaves] = value
            heaviest = max(heaviest, counts[value])
            n_leaves += 1
    for i in range(n_leaves):
        order[i] = n_leaves - 1 - i
    # Radix sort, a byte of the count at a time: as many rounds as the heaviest count has bytes.
    bucket = np.empty(257, np.int64)
    shift = 0
    while (heaviest >> shift) > 0:
        bucket[:] = 0
        for i in range(n_leaves):
            bucket[((weight[order[i]] >> shift) & 255) + 1] += 1
        for i in range(256):
            bucket[i + 1] += bucket[i]
        for i in range(n_leaves):
            digit = (weight[order[i]] >> shift) & 255
            sorted_[bucket[digit]] = order[i]
            bucket[digit] += 1
        order, sorted_ = sorted_, order
        shift += 8

    child_a = np.empty(MAX_NODES, np.int64)
    child_b = np.empty(MAX_NODES, np.int64)
    below = np.empty(MAX_NODES, np.int64)  # the next older node of the same run
    run_top = np.empty(256, np.int64)
    first_run = 0
    n_runs = 0
    next_leaf = 0
    n_nodes = n_leaves
    lightest = np.int64(0)
    for _ in range(n_leaves - 1):
        for which in range(2):
            # On a tie the merged node, which is the later one.
            if first_run < n_runs and (next_leaf >= n_leaves or weight[run_top[first_run]] <= weight[order[next_leaf]]):
                node = run_top[first_run]
                if below[node] >= 0:
                    run_top[first_run] = below[node]
                else:
                    first_run += 1
            else:
                node = order[next_leaf]
                next_leaf += 1
            if which == 0:
                lightest = node
        merged = n_nodes
        n_nodes += 1
        child_a[merged] = lightest
        child_b[merged] = node
        weight[merged] = weight[lightest] + weight[node]
        symbol[merged] = -1
        if first_run < n_runs and weight[run_top[n_runs - 1]] == weight[merged]:
            below[merged] = run_top[n_runs - 1]
            run_top[n_runs - 1] = merged
        else:
            below[merged] = -1
            run_top[n_runs] = merged
            n_runs += 1

    # Preorder walk: codes, and the tree itself.
    waiting = np.empty(257, np.int64)
    path = np.empty(257, np.uint64)
    depth = np.empty(257, np.int64)
    waiting[0] = n_nodes - 1
    path[0] = u64(0)
    depth[0] = 1 if n_leaves == 1 else 0
    n_waiting = 1
    bits = u64(0)
    n_bits = 0
    at = 0
    while n_waiting > 0:
        n_waiting -= 1
        node = waiting[n_waiting]
        code = path[n_waiting]
        length = depth[n_waiting]
        if symbol[node] >= 0:
            codes[symbol[node]] = (code << u64(8)) | u64(length)
            bits = (bits << u64(9)) | u64(256) | u64(symbol[node])
            n_bits += 9
        else:
            bits <<= u64(1)
            n_bits += 1
            waiting[n_waiting] = child_b[node]
            path[n_waiting] = (code << u64(1)) | u64(1)
            depth[n_waiting] = length + 1
            waiting[n_waiting + 1] = child_a[node]
            path[n_waiting + 1] = code << u64(1)
            depth[n_waiting + 1] = length + 1
            n_waiting += 2
        while n_bits >= 8:
            n_bits -= 8
            tree[at] = u8((bits >> u64(n_bits)) & u64(255))
            at += 1
    tree[at] = u8((bits << u64(8 - n_bits)) & u64(255))
    return at * 8 + n_bits


@_kernel
def huffman_plan(
    data: U8Array,
    pairs: U16Array,
    pair_counts: U32Array,
    joined: U64Array,
    codes: U64Array,
    tree: U8Array,
) -> tuple[np.int64, int, bool]:
    """Count the bytes, build their code, and say how long the stream will be.

    Bytes are counted two at a time, as 16-bit words: in microscope frames a pixel's two bytes, of which few different
    ones occur. Where too many could occur for a table of them to pay, bytes are counted singly.

    Parameters
    ----------
    data : uint8, (n,), read-only
        The bytes to encode, 1 <= n < 2**32.
    pairs : uint16, (n // 2,), read-only
        The same bytes as words; may be empty, which means: count singly.
    pair_counts : uint32, (2, 65536)
        Scratch.
    joined : uint64, (65536,)
        Receives, from the smallest word to the largest, the entry of each word's two codes joined.
    codes : uint64, (256,)
        Receives the code entry of each byte.
    tree : uint8, (TREE_BYTES,)
        Receives the tree.

    Returns
    -------
    n_bytes : int
        Length of the stream.
    tree_bits : int
        Length of the tree.
    by_pairs : bool
        Whether `joined` holds every word; if not, the bytes are to be encoded singly.
    """
    counts = np.zeros(256, np.int64)
    n = u64(data.size)
    n_pairs = u64(pairs.size)
    low = np.int64(1)
    high = np.int64(0)
    if n_pairs > u64(0):
        smallest = pairs[u64(0)]
        largest = pairs[u64(0)]
        for k in range(n_pairs):
            smallest = min(smallest, pairs[k])
            largest = max(largest, pairs[k])
        if (np.int64(largest) - np.int64(smallest)) * 2 <= pairs.size:
            low = np.int64(smallest)
            high = np.int64(largest)
    i = u64(0)
    if low <= high:
        even = pair_counts[0]
        odd = pair_counts[1]
        for word in range(low, high + 1):
            even[word] = u32(0)
            odd[word] = u32(0)
        # Two tables, so that equal neighbours do not wait for each other's increment.
        for k in range(n_pairs >> u64(1)):
            even[pairs[u64(2) * k]] += u32(1)
            odd[pairs[u64(2) * k + u64(1)]] += u32(1)
        if n_pairs & u64(1):
            even[pairs[n_pairs - u64(1)]] += u32(1)
        for word in range(low, high + 1):
            count = np.int64(even[word]) + np.int64(odd[word])
            counts[word & 255] += count
            counts[word >> 8] += count
        i = n_pairs * u64(2)
    else:
        lanes = np.zeros((8, 256), np.uint32)
        while i + u64(8) <= n:
            lanes[0, data[i]] += u32(1)
            lanes[1, data[i + u64(1)]] += u32(1)
            lanes[2, data[i + u64(2)]] += u32(1)
            lanes[3, data[i + u64(3)]] += u32(1)
            lanes[4, data[i + u64(4)]] += u32(1)
            lanes[5, data[i + u64(5)]] += u32(1)
            lanes[6, data[i + u64(6)]] += u32(1)
            lanes[7, data[i + u64(7)]] += u32(1)
            i += u64(8)
        for lane in range(8):
            for value in range(256):
                counts[value] += np.int64(lanes[lane, value])
    while i < n:
        counts[data[i]] += 1
        i += u64(1)

    tree_bits = _code_table(counts, codes, tree)
    n_bits = np.int64(tree_bits)
    for value in range(256):
        n_bits += counts[value] * np.int64(codes[value] & u64(255))
    for word in range(low, high + 1):
        first = codes[word & 255]
        second = codes[word >> 8]
        # Where the two are longer than an entry, the code is cut, but its length tells `huffman_emit` not to use it.
        length = (first + second) & u64(255)
        joined[word] = ((((first >> u64(8)) << (second & u64(63))) | (second >> u64(8))) << u64(8)) | length
    return (n_bits + 7) >> 3, tree_bits, bool(low <= high)


@_kernel
def huffman_emit(
    data: U8Array,
    pairs: U16Array,
    joined: U64Array,
    codes: U64Array,
    tree: U8Array,
    tree_bits: int,
    by_pairs: bool,
    out: U8Array,
    start: int | np.int64,
) -> np.int64:
    """Write the stream that `huffman_plan` has planned.

    Parameters
    ----------
    data, pairs, joined, codes, tree, tree_bits, by_pairs
        As given to, or filled by, `huffman_plan`.
    out : uint8
        Room for the stream from `start` on, and SLACK_BYTES more.
    start : int
        Where the stream begins in `out`.

    Returns
    -------
    int
        Where it ends.
    """
    at = u64(start)
    whole = u64(tree_bits) >> u64(3)
    for m in range(whole):
        out[at + m] = tree[m]
    at += whole
    filled = u64(tree_bits) & u64(7)
    bits = u64(tree[whole]) << u64(56) if filled > u64(0) else u64(0)

    n = u64(data.size)
    i = u64(0)
    if by_pairs:
        # Three words, on average 48 bits at most, are joined before they touch the accumulator, whose shifts are
        # the chain that everything waits for.
        n_thrice = (u64(pairs.size) // u64(3)) * u64(3)
        k = u64(0)
        while k < n_thrice:
            e0 = joined[pairs[k]]
            e1 = joined[pairs[k + u64(1)]]
            e2 = joined[pairs[k + u64(2)]]
            l1 = e1 & u64(255)
            l2 = e2 & u64(255)
            length = (e0 & u64(255)) + l1 + l2
            if length <= u64(_ROOM_BITS):
                code = (((e0 >> u64(8)) << l1 | (e1 >> u64(8))) << l2) | (e2 >> u64(8))
                at, bits, filled = _put(out, at, bits, filled, code, length)
            else:
                for j in range(u64(2) * k, u64(2) * k + u64(6)):
                    entry = codes[data[j]]
                    at, bits, filled = _put(out, at, bits, filled, entry >> u64(8), entry & u64(255))
            k += u64(3)
        i = n_thrice * u64(2)
    else:
        n_fours = n & ~u64(3)
        while i < n_fours:
            e0 = codes[data[i]]
            e1 = codes[data[i + u64(1)]]
            e2 = codes[data[i + u64(2)]]
            e3 = codes[data[i + u64(3)]]
            l1 = e1 & u64(63)
            l3 = e3 & u64(63)
            l23 = (e2 & u64(63)) + l3
            length = (e0 & u64(63)) + l1 + l23
            if length <= u64(_ROOM_BITS):
                code = (((e0 >> u64(8)) << l1) | (e1 >> u64(8))) << l23 | (((e2 >> u64(8)) << l3) | (e3 >> u64(8)))
                at, bits, filled = _put(out, at, bits, filled, code, length)
            else:
                for j in range(i, i + u64(4)):
                    entry = codes[data[j]]
                    at, bits, filled = _put(out, at, bits, filled, entry >> u64(8), entry & u64(255))
            i += u64(4)
    while i < n:
        entry = codes[data[i]]
        at, bits, filled = _put(out, at, bits, filled, entry >> u64(8), entry & u64(255))
        i += u64(1)
    if filled > u64(0):
        out[at] = u8(bits >> u64(56))
        at += u64(1)
    return np.int64(at)


@_kernel
def encode_records(
    images: U8Array,
    image_pairs: U16Array,
    header: U8Array,
    compression_at: int,
    compression_huffman: int,
    out: U8Array,
    ends: I64Array,
    pair_counts: U32Array,
    joined: U64Array,
    codes: U64Array,
    tree: U8Array,
) -> None:
    """Write one record per image, one behind the other: header, then Huffman stream, or the bytes where it is longer.

    Parameters
    ----------
    images : uint8, (n, nbytes), read-only
        The bytes of each image.
    image_pairs : uint16, (n, nbytes // 2), read-only
        The same as words; (n, 0) if nbytes is odd.
    header : uint8, (h,), read-only
        The header of an uncompressed record.
    compression_at, compression_huffman : int
        Which byte of the header to change, and to what, where Huffman is used.
    out : uint8, at least n * (h + nbytes) + SLACK_BYTES
        Receives the records.
    ends : int64, (n,)
        Receives where each record ends.
    pair_counts, joined, codes, tree
        Scratch, as for `huffman_plan`.
    """
    at = np.int64(0)
    for k in range(images.shape[0]):
        data = images[k]
        pairs = image_pairs[k]
        body = at + header.size
        for i in range(header.size):
            out[at + i] = header[i]
        n_bytes = data.size
        if data.size > 0:
            n_bytes, tree_bits, by_pairs = huffman_plan(data, pairs, pair_counts, joined, codes, tree)
        if n_bytes < data.size:
            out[at + compression_at] = u8(compression_huffman)
            at = huffman_emit(data, pairs, joined, codes, tree, tree_bits, by_pairs, out, body)
        else:
            for i in range(data.size):
                out[body + i] = data[i]
            at = body + data.size
        ends[k] = at


@_kernel
def huffman_decode(stream: U8Array, out: U8Array) -> tuple[int, np.int64]:
    """Decode a stream, whatever its bytes are, into `out`, which says how many symbols there are.

    The tree is read into at most MAX_NODES nodes and, on the way, into a table that is indexed by the next bits of the
    stream and gives up to four symbols at once. The fast loop runs while a 64-bit load and four stores of four bytes
    stay inside the arrays; a checked loop, bit by bit, does the rest, and the codes that are longer than the table's
    index. Time is bounded by the bits of `stream` and the bytes of `out`.

    Parameters
    ----------
    stream : uint8, (n,), read-only
        Tree and codes.
    out : uint8, (m,), m >= 1
        Receives the symbols.

    Returns
    -------
    status : int
        OK, TREE_CUT, TREE_TOO_BIG or BITS_EXHAUSTED.
    n_bits : int
        Bits of the stream that a correct encoder has used; may be more than there are for a tree of one leaf.
    """
    n = u64(stream.size)
    n_bits = n * u64(8)
    n_out = u64(out.size)
    # A table for a handful of symbols would cost more than it saves: about four symbols per entry.
    table_bits = 1
    while table_bits < _TABLE_BITS and (16 << table_bits) <= out.size:
        table_bits += 1
    table_size = 1 << table_bits

    # --- The tree. Nodes are numbered as they come; single[] gives symbol and length of the code that begins with
    # these bits, or 0; deep[] the node that is reached by them where the code is longer.
    child = np.zeros((MAX_NODES, 2), np.int64)
    symbol = np.empty(MAX_NODES, np.int64)
    single = np.zeros(table_size, np.uint16)
    deep = np.zeros(table_size, np.int64)
    parent = np.empty(MAX_NODES + 1, np.int64)
    side = np.empty(MAX_NODES + 1, np.int64)
    path = np.empty(MAX_NODES + 1, np.int64)
    depth = np.empty(MAX_NODES + 1, np.int64)
    parent[0] = -1
    side[0] = 0
    path[0] = 0
    depth[0] = 0
    n_waiting = 1
    n_nodes = 0
    at = u64(0)
    while n_waiting > 0:
        if n_nodes >= MAX_NODES:
            return TREE_TOO_BIG, np.int64(at)
        if at >= n_bits:
            return TREE_CUT, np.int64(at)
        node = n_nodes
        n_nodes += 1
        n_waiting -= 1
        level = depth[n_waiting]
        code = path[n_waiting]
        if parent[n_waiting] >= 0:
            child[parent[n_waiting], side[n_waiting]] = node
        is_leaf = (stream[at >> u64(3)] >> u8(u64(7) - (at & u64(7)))) & u8(1)
        at += u64(1)
        if is_leaf:
            if at + u64(8) > n_bits:
                return TREE_CUT, np.int64(at)
            value = u64(0)
            for _ in range(8):
                value = (value << u64(1)) | u64((stream[at >> u64(3)] >> u8(u64(7) - (at & u64(7)))) & u8(1))
                at += u64(1)
            symbol[node] = np.int64(value)
            if level <= table_bits:
                entry = u16((level << 8) | np.int64(value))
                for i in range(code << (table_bits - level), (code + 1) << (table_bits - level)):
                    single[i] = entry
        else:
            symbol[node] = -1
            if level == table_bits:
                deep[code] = node
            # Paths are wanted only as far as the table reaches; cut there, they cannot overflow.
            below = (code << 1) & (table_size * 2 - 1)
            parent[n_waiting] = node
            side[n_waiting] = 1
            path[n_waiting] = below | 1
            depth[n_waiting] = level + 1
            parent[n_waiting + 1] = node
            side[n_waiting + 1] = 0
            path[n_waiting + 1] = below
            depth[n_waiting + 1] = level + 1
            n_waiting += 2
    if symbol[0] >= 0:
        out[:] = u8(symbol[0])
        return OK, np.int64(at + n_out)

    # --- The table. step[]: bits used, and in the upper byte how many symbols; 0 where the code is too long.
    step = np.zeros(table_size, np.uint16)
    symbols = np.zeros(table_size, np.uint32)
    for i in range(table_size):
        entry = single[i]
        used = np.int64(entry >> u16(8))
        if used > 0:
            count = 1
            values = u32(entry & u16(255))
            while count < 4:
                entry = single[(i << used) & (table_size - 1)]
                length = np.int64(entry >> u16(8))
                if length == 0 or used + length > table_bits:
                    break
                values |= u32(entry & u16(255)) << u32(8 * count)
                used += length
                count += 1
            step[i] = u16(used | (count << 8))
            symbols[i] = values

    # --- The codes.
    shift = u64(64 - table_bits)
    done = u64(0)
    while True:
        # Valid bits stand at the top of `window`; below them come bits that the next load will write again.
        node = 0
        byte = at >> u64(3)
        window = u64(0)
        valid = u64(0)
        if (at & u64(7)) > u64(0) and byte < n:
            window = u64(stream[byte]) << (u64(56) + (at & u64(7)))
            valid = u64(8) - (at & u64(7))
            byte += u64(1)
        while byte + u64(8) <= n and done + u64(16) <= n_out:
            window |= _load64(stream, byte) >> valid
            byte += (u64(63) - valid) >> u64(3)
            valid |= u64(56)
            # Four look-ups of at most 12 bits. A code that is too long uses no bits, so the rest find it again.
            i0 = window >> shift
            s0 = u64(step[i0])
            window <<= s0 & u64(63)
            i1 = window >> shift
            s1 = u64(step[i1])
            window <<= s1 & u64(63)
            i2 = window >> shift
            s2 = u64(step[i2])
            window <<= s2 & u64(63)
            i3 = window >> shift
            s3 = u64(step[i3])
            window <<= s3 & u64(63)
            _store4(out, done, symbols[i0])
            done += s0 >> u64(8)
            _store4(out, done, symbols[i1])
            done += s1 >> u64(8)
            _store4(out, done, symbols[i2])
            done += s2 >> u64(8)
            _store4(out, done, symbols[i3])
            done += s3 >> u64(8)
            valid -= (s0 + s1 + s2 + s3) & u64(255)
            if s3 == u64(0):
                node = deep[i3]
                valid -= u64(table_bits)
                break
        at = byte * u64(8) - valid
        if done >= n_out:
            return OK, np.int64(at)
        # One symbol, bit by bit: from the root, or from where the table's index ends.
        while symbol[node] < 0:
            if at >= n_bits:
                return BITS_EXHAUSTED, np.int64(at)
            node = child[node, (stream[at >> u64(3)] >> u8(u64(7) - (at & u64(7)))) & u8(1)]
            at += u64(1)
        out[done] = u8(symbol[node])
        done += u64(1)
