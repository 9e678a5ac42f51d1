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

Conventions: a *code entry* is ``code << 8 | length`` in 64 bits, the code right-aligned. A *joined entry*, of two codes
one behind the other, is ``length << 58 | code``: entries are joined as they are, and what then stands above their code
is cut off once. Arrays that are only read come in read-only, so that there is one specialisation of each kernel,
whoever owns the bytes. Indices are uint64, because numba then leaves out the code for negative ones. Kernels return a
status; they never raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import carray, njit  # type: ignore[attr-defined]

from ._addresses import pointer, read_only

U8Array = npt.NDArray[np.uint8]
U16Array = npt.NDArray[np.uint16]
U32Array = npt.NDArray[np.uint32]
U64Array = npt.NDArray[np.uint64]
I64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
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
#: From so many 16-bit words on their range is not looked for before they are counted.
_LARGE_PAIRS = 1 << 18
#: Where the length stands in a joined entry, and what keeps the code only.
_LENGTH_AT = 58
_CODE_MASK = (1 << _LENGTH_AT) - 1
#: Four words of more than 13 bits each, on average, are often too long to be joined, and seldom enough not to be. It
#: is quicker then not to try.
_BLOCK_WORDS = 512
_BLOCK_MOST_BYTES = _BLOCK_WORDS * 13 // 8
#: The entry of two codes that are not to be joined: a length that no put takes.
NOT_JOINED = 63 << _LENGTH_AT

#: Below this a record gets its own code: the tree of a shared one, with all 256 leaves, would be noticed.
_SHARED_FROM_BYTES = 32 << 10
#: At most so many words, evenly spread, are looked at to see whether a code fits.
_MOST_SAMPLES = 8192
#: A sampled byte counts so much, so that bytes that were not met, which count 1, take little room in the code. The
#: weights of a code are then 131,328 together at most. A Huffman code of 25 bits needs F(27) = 196,418.
_SAMPLE_WEIGHT = 8
SHARED_LONGEST_BITS = 24
#: How much longer than with its own code a record may become, as far as a sample can tell, and how much longer than
#: the sample said before it is given its own after all.
_MOST_PENALTY = 1.02
_MOST_SURPRISE = 1.025
#: A code that exceeds the entropy of its bytes by more does so for a reason that need not hold for other tiles.
_MOST_REDUNDANCY = 1.02
#: With more upper bytes than this, words are too many for a table of them to stay in a near cache.
_MOST_ROWS = 128


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
def _join(first: np.uint64, second: np.uint64) -> np.uint64:
    """The joined entry of two code entries; NOT_JOINED where they are too long together."""
    length = (first & u64(255)) + (second & u64(255))
    if length > u64(_ROOM_BITS):
        return u64(NOT_JOINED)
    return (length << u64(_LENGTH_AT)) | ((first >> u64(8)) << (second & u64(63))) | (second >> u64(8))


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
    is_large = n_pairs >= u64(_LARGE_PAIRS)
    if is_large:  # a table of all words is less than another pass over the data
        high = np.int64(65535)
        low = np.int64(0)
    elif n_pairs > u64(0):
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
        n_counted = n_pairs
        if low == high:  # blank: nothing to count
            even[low] = u32(n_pairs)
            n_counted = u64(0)
        # Two tables, so that equal neighbours do not wait for each other's increment.
        for k in range(n_counted >> u64(1)):
            even[pairs[u64(2) * k]] += u32(1)
            odd[pairs[u64(2) * k + u64(1)]] += u32(1)
        if n_counted & u64(1):
            even[pairs[n_pairs - u64(1)]] += u32(1)
        if is_large:
            while even[low] == u32(0) and odd[low] == u32(0):
                low += 1
            while even[high] == u32(0) and odd[high] == u32(0):
                high -= 1
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
        joined[word] = _join(first, second)
    return (n_bits + 7) >> 3, tree_bits, bool(low <= high)


@_kernel
def huffman_emit(
    data: U8Array,
    pairs: U16Array,
    joined: U64Array,
    codes: U64Array,
    tree: U8Array,
    tree_bits: int | np.int64,
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
        # Four words are joined before they touch the accumulator, whose shifts are the chain that everything waits
        # for; two, where four are too long.
        n_fours = u64(pairs.size) & ~u64(3)
        most = u64(_ROOM_BITS)
        k = u64(0)
        while k < n_fours:
            block_at = at
            block_end = min(k + u64(_BLOCK_WORDS), n_fours)
            while k < block_end:
                e0 = joined[pairs[k]]
                e1 = joined[pairs[k + u64(1)]]
                e2 = joined[pairs[k + u64(2)]]
                e3 = joined[pairs[k + u64(3)]]
                l1 = e1 >> u64(_LENGTH_AT)
                l3 = e3 >> u64(_LENGTH_AT)
                l01 = (e0 >> u64(_LENGTH_AT)) + l1
                l23 = (e2 >> u64(_LENGTH_AT)) + l3
                c01 = (e0 << l1) | e1
                c23 = (e2 << l3) | e3
                if l01 + l23 <= most:
                    code = ((c01 << l23) | c23) & u64(_CODE_MASK)
                    at, bits, filled = _put(out, at, bits, filled, code, l01 + l23)
                elif l01 <= u64(_ROOM_BITS) and l23 <= u64(_ROOM_BITS):
                    at, bits, filled = _put(out, at, bits, filled, c01 & u64(_CODE_MASK), l01)
                    at, bits, filled = _put(out, at, bits, filled, c23 & u64(_CODE_MASK), l23)
                else:
                    for j in range(u64(2) * k, u64(2) * k + u64(8)):
                        entry = codes[data[j]]
                        at, bits, filled = _put(out, at, bits, filled, entry >> u64(8), entry & u64(255))
                k += u64(4)
            most = u64(_ROOM_BITS) if at - block_at <= u64(_BLOCK_MOST_BYTES) else u64(0)
        i = n_fours * u64(2)
    else:
        n_whole = n & ~u64(3)
        while i < n_whole:
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
def _sample(pairs: U16Array, lower: I64Array, upper: I64Array) -> tuple[np.int64, np.int64]:
    """Count the lower and the upper bytes of some words, spread evenly; say how many words, and in which steps."""
    n_pairs = u64(pairs.size)
    step = u64(1)  # and then odd, so that it meets every column of a tile
    while n_pairs // step >= u64(_MOST_SAMPLES):
        step = u64(2) * step + u64(1)
    n_sampled = (n_pairs + step - u64(1)) // step
    # Four tables of each, so that equal neighbours do not wait for each other's increment.
    lowers = np.zeros((4, 256), np.uint32)
    uppers = np.zeros((4, 256), np.uint32)
    k = u64(0)
    for _ in range(n_sampled >> u64(2)):
        for lane in range(4):
            word = pairs[k]
            lowers[lane, word & u16(255)] += u32(1)
            uppers[lane, word >> u16(8)] += u32(1)
            k += step
    while k < n_pairs:
        lowers[0, pairs[k] & u16(255)] += u32(1)
        uppers[0, pairs[k] >> u16(8)] += u32(1)
        k += step
    for value in range(256):
        lower[value] = lowers[0, value] + lowers[1, value] + lowers[2, value] + lowers[3, value]
        upper[value] = uppers[0, value] + uppers[1, value] + uppers[2, value] + uppers[3, value]
    return np.int64(n_sampled), np.int64(step)


@_kernel
def _least_bits(lower: I64Array, upper: I64Array, n_bytes: int | np.int64) -> float:
    """The fewest bits that a Huffman code of its own would take for a sample of so many bytes, its tree aside.

    That is their entropy; but a byte that is half of them or more has a code of one bit, and the others share the rest.
    """
    most = np.int64(0)
    logs = 0.0
    for value in range(256):
        count = lower[value] + upper[value]
        if count > 0:
            logs += count * math.log2(count)
            most = max(most, count)
    if 2 * most < n_bytes:
        return n_bytes * math.log2(n_bytes) - logs
    rest = n_bytes - most
    return n_bytes + (rest * math.log2(rest) - (logs - most * math.log2(most)) if rest > 0 else 0.0)


@_kernel
def _cost_bits(lower: I64Array, upper: I64Array, codes: U64Array) -> np.int64:
    """The bits that a sample takes with a code."""
    n_bits = np.int64(0)
    for value in range(256):
        n_bits += (lower[value] + upper[value]) * np.int64(codes[value] & u64(255))
    return n_bits


@_kernel
def _join_rows(upper: I64Array, codes: U64Array, joined: U64Array, joined_rows: BoolArray) -> bool:
    """Join the codes of all words whose upper byte was met; say whether those are few enough to be worth it."""
    n_rows = 0
    for row in range(256):
        n_rows += upper[row] > 0
    by_pairs = n_rows <= _MOST_ROWS
    for row in range(256):
        wanted = by_pairs and upper[row] > 0
        if wanted:
            second = codes[row]
            for value in range(256):
                joined[row << 8 | value] = _join(codes[value], second)
        elif joined_rows[row]:
            for value in range(256):
                joined[row << 8 | value] = u64(NOT_JOINED)
        joined_rows[row] = wanted
    return by_pairs


@_kernel
def shared_plan(
    pairs: U16Array,
    tree_bits: np.int64,
    redundancy: float,
    by_pairs: bool,
    joined: U64Array,
    joined_rows: BoolArray,
    codes: U64Array,
    tree: U8Array,
) -> tuple[bool, float, np.int64, float, bool]:
    """Find a code for a record without counting all of its bytes: the one at hand, or a new one made from a sample.

    Such a code has a leaf for every byte, so whatever was not in the sample can be written too; it has at most
    SHARED_LONGEST_BITS. It is used where a sample says that the record becomes at most _MOST_PENALTY times as long as
    with its own code.

    Parameters
    ----------
    pairs : uint16, (n,), read-only
        The words to encode.
    tree_bits, redundancy, by_pairs
        Of the code at hand, as returned when it was made; `tree_bits` is 0 if there is none.
    joined : uint64, (65536,)
        The joined entries of the code at hand; NOT_JOINED outside of its rows.
    joined_rows : bool, (256,)
        Which upper bytes have their words in `joined`.
    codes : uint64, (256,)
        The entries of the code at hand.
    tree : uint8, (TREE_BYTES,)
        Its tree.

    Returns
    -------
    fits : bool
        Whether the code at hand, now, is one for this record.
    n_bits : float
        How long the sample says that the record will be with it.
    tree_bits, redundancy, by_pairs
        Of the code at hand, now; `redundancy` is its length over the entropy, for the bytes it was made for.
    """
    lower = np.empty(256, np.int64)
    upper = np.empty(256, np.int64)
    n_sampled, step = _sample(pairs, lower, upper)
    least = _least_bits(lower, upper, 2 * n_sampled)
    n_leaves = 0
    for value in range(256):
        n_leaves += lower[value] + upper[value] > 0
    own_tree_bits = 10 * n_leaves - 1
    if tree_bits > 0:
        n_bits = float(_cost_bits(lower, upper, codes) * step + tree_bits)
        if n_bits <= _MOST_PENALTY * (least * redundancy * step + own_tree_bits):
            return True, n_bits, tree_bits, redundancy, by_pairs

    counts = lower + upper
    new_codes = np.empty(256, np.uint64)
    new_tree = np.empty(TREE_BYTES, np.uint8)
    _code_table(counts, new_codes, new_tree)
    own = _cost_bits(lower, upper, new_codes)
    for value in range(256):
        counts[value] = counts[value] * _SAMPLE_WEIGHT + 1
    new_tree_bits = np.int64(_code_table(counts, new_codes, new_tree))
    n_bits = float(_cost_bits(lower, upper, new_codes) * step + new_tree_bits)
    if own > _MOST_REDUNDANCY * least or n_bits > _MOST_PENALTY * (own * step + own_tree_bits):
        return False, 0.0, tree_bits, redundancy, by_pairs
    codes[:] = new_codes
    tree[:] = new_tree
    return True, n_bits, new_tree_bits, own / least, _join_rows(upper, codes, joined, joined_rows)


@_kernel
def encode_records(
    addresses: I64Array,
    nbytes: int,
    header: U8Array,
    compression_at: int,
    compression_huffman: int,
    out: U8Array,
    ends: I64Array,
    pair_counts: U32Array,
    joined: U64Array,
    codes: U64Array,
    tree: U8Array,
    shared_joined: U64Array,
) -> None:
    """Write one record per image, one behind the other: header, then Huffman stream, or the bytes where it is longer.

    Images of _SHARED_FROM_BYTES or more are written with a code that was made for an earlier one, or from a sample, if
    that costs little (`shared_plan`), and smaller ones, and those that need it, with their own.

    Parameters
    ----------
    addresses : int64, (n,), read-only
        Where in memory each image begins. The caller holds the images.
    nbytes : int
        Bytes of each image, 1 <= nbytes < 2**32.
    header : uint8, (h,), read-only
        The header of an uncompressed record.
    compression_at, compression_huffman : int
        Which byte of the header to change, and to what, where Huffman is used.
    out : uint8, at least n * (h + nbytes) + SLACK_BYTES
        Receives the records. A shared code is used only where there is room for the longest stream it could give:
        (SHARED_LONGEST_BITS * nbytes) // 8 + TREE_BYTES + SLACK_BYTES.
    ends : int64, (n,)
        Receives where each record ends.
    pair_counts, joined, codes, tree
        Scratch, as for `huffman_plan`.
    shared_joined : uint64, (65536,)
        Scratch; NOT_JOINED throughout, before and after.
    """
    joined_rows = np.zeros(256, np.bool_)
    shared_codes = np.empty(256, np.uint64)
    shared_tree = np.empty(TREE_BYTES, np.uint8)
    shared_tree_bits = np.int64(0)
    redundancy = 1.0
    shared_by_pairs = bool(shared_tree_bits > 0)
    room = SHARED_LONGEST_BITS * nbytes // 8 + TREE_BYTES + SLACK_BYTES
    at = np.int64(0)
    for k in range(addresses.size):
        address = addresses[k]
        data = read_only(carray(pointer(address), (nbytes,), np.uint8))
        n_pairs = nbytes // 2 if (address | nbytes) & 1 == 0 else 0
        pairs = read_only(carray(pointer(address), (n_pairs,), np.uint16))
        body = at + header.size
        for i in range(header.size):
            out[at + i] = header[i]
        end = body + nbytes
        if nbytes >= _SHARED_FROM_BYTES and n_pairs > 0 and body + room <= out.size:
            fits, n_bits, shared_tree_bits, redundancy, shared_by_pairs = shared_plan(
                pairs, shared_tree_bits, redundancy, shared_by_pairs, shared_joined, joined_rows,
                shared_codes, shared_tree,
            )  # fmt: skip
            if fits and n_bits < 8 * nbytes:
                end = huffman_emit(
                    data, pairs, shared_joined, shared_codes, shared_tree, shared_tree_bits, shared_by_pairs, out, body
                )
                if 8 * (end - body) > _MOST_SURPRISE * n_bits:
                    end = body + nbytes
        if end - body >= nbytes:
            n_bytes, tree_bits, by_pairs = huffman_plan(data, pairs, pair_counts, joined, codes, tree)
            end = body + nbytes
            if n_bytes < nbytes:
                end = huffman_emit(data, pairs, joined, codes, tree, tree_bits, by_pairs, out, body)
        if end - body < nbytes:
            out[at + compression_at] = u8(compression_huffman)
        else:
            for i in range(nbytes):
                out[body + i] = data[i]
        at = end
        ends[k] = at
    for row in range(256):
        if joined_rows[row]:
            for value in range(256):
                shared_joined[row << 8 | value] = u64(NOT_JOINED)


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
