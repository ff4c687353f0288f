"""Which lines of a CSV file are a record by themselves, told for a whole block at once.

One bit per byte says where quotes and separators are; a prefix XOR over 64-bit words says what lies
between quotes. That takes a third of the time of the same steps on one byte per byte.
"""

import numpy as np

_ONE, _LAST = np.uint64(1), np.uint64(63)


def whole_lines(data: bytes, ends: np.ndarray, separator: str, width: int) -> np.ndarray:
    """Which lines have `width` fields and quotes, if any, that open and close around whole fields.

    ends: offsets behind the lines, the last one the data's length. Returns bool, one per line.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    starts = np.concatenate([[0], ends[:-1]])
    separates = _words(buffer == ord(separator))
    whole = np.ones(len(ends), dtype=bool)
    if b'"' in data:
        quotes = _words(buffer == ord('"'))
        inside = _prefix_xor(quotes)  # from an opening quote to the byte before the closing one
        closed = _bits(inside, ends - 1)
        begun = np.concatenate([[False], closed[:-1]])  # a quote of a line above is open
        whole = begun == closed
        if begun.any():  # quotes are counted from the start of each line
            turns = np.zeros(len(buffer), dtype=bool)
            turns[starts[1:]] = begun[1:] != begun[:-1]
            inside ^= _prefix_xor(_words(turns))
        # A quote stands at an edge of a field or beside the other half of a doubled quote.
        edges = separates | quotes | _words(buffer == ord("\n"))
        if b"\r" in data:
            edges |= _words(buffer == ord("\r"))
        before = edges << _ONE
        before[1:] |= edges[:-1] >> _LAST
        before[0] |= _ONE
        behind = edges >> _ONE
        behind[:-1] |= edges[1:] << _LAST
        behind[(len(buffer) - 1) >> 6] |= _ONE << np.uint64((len(buffer) - 1) & 63)
        unsound = quotes & ~((inside & before) | (~inside & behind))
        if unsound.any():
            places = np.flatnonzero(np.unpackbits(unsound.view(np.uint8), bitorder="little"))
            whole[np.searchsorted(ends, places, side="right")] = False
        separates &= ~inside  # within quotes it is text
    counts = np.diff(_ranks(separates, np.append(starts, len(buffer))))
    return whole & (counts == width - 1)


def _words(mask: np.ndarray) -> np.ndarray:
    """A bool array as bits in uint64, the first one the lowest, with one word of zeros behind."""
    packed = np.packbits(mask, bitorder="little")
    words = np.zeros(len(mask) // 64 + 2, dtype="<u8")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def _prefix_xor(words: np.ndarray) -> np.ndarray:
    """Bit i: the parity of the bits up to and with i."""
    words = words.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    odd = np.bitwise_xor.accumulate(words >> _LAST)
    words[1:] ^= -odd[:-1]  # all bits of a word, or none
    return words


def _bits(words: np.ndarray, places: np.ndarray) -> np.ndarray:
    return (words[places >> 6] >> (places & 63).astype(np.uint64) & _ONE).astype(bool)


def _ranks(words: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many bits are set before each place."""
    word = places >> 6
    before = np.concatenate([[0], np.cumsum(np.bitwise_count(words), dtype=np.int64)])
    below = (_ONE << (places & 63).astype(np.uint64)) - _ONE
    return before[word] + np.bitwise_count(words[word] & below)
