"""Makes text_tokenizer.json: what the `tokenizers` package says about many strings.

Usage: python text_tokenizer.py TOKENIZER.json OUT.json

A few hundred strings are written out with their ids. The many others are not stored: this script and
tests/text/tokenizer_test.cpp draw the same ones from splitmix64, from the fragments and code point
ranges in the vector, and only a hash for each group of them is. Bytes that are not UTF-8 are decoded
with errors="replace" first, which is the rule of src/text/utf8.h. The hash of a string covers its ids
with and without markers parsed, and what the package decodes them to. Sequences of ids drawn at random,
a few of them ids that do not exist, are decoded too: most of them are broken UTF-8.
"""

import json
import sys
import unicodedata

from tokenizers import Tokenizer, normalizers

SEED = 20240229
STRINGS = 65536
SEQUENCES = 16384
GROUP = 64
MASK = (1 << 64) - 1

FRAGMENTS = [
    # code
    "def fibonacci(n):\n    if n < 2:\n        return n\n", "    return ", "self.", "import numpy as np\n",
    "#include <vector>\n", "std::vector<uint32_t> ids;", "for (int i = 0; i < n; ++i) {\n\t", "}\n\n\n",
    "fn main() -> Result<(), Box<dyn Error>> {", "SELECT * FROM t WHERE a='b';", "x = {'a': [1, 2.5e-3]}",
    "<div class=\"x\">&nbsp;</div>", "\t\tif (!p) goto out;\r\n", "camelCaseName", "snake_case_name",
    "SCREAMING_CASE", "0x1F600", "3.14159265", "1234567890", "#!/bin/sh\r\n", "//---------------------//",
    "==========", "\\n\\t\\\\", "https://example.org/a?b=c&d=%20#e", "a+b*c-d/e", "$HOME/.config", "@property\n",
    # contractions, in both cases and with the letters that fold to s
    "'s", "'S", "'t", "'re", "'VE", "'m", "'Ll", "'d", "'\u017f", "don't", "I'M", "we'Re", "\u2019s", "'x", "''ll",
    # spaces
    " ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n ", " \t \n \t ", "\u00a0", "\u3000",
    "\u2003", "\u2028", "\u0085", "\u200b", "\ufeff", "\u180e", "\u1680", "\x0b", "\x0c", "\x1c", "\x00", "\x7f",
    # scripts
    "Hello", " world", "na\u00efve caf\u00e9", "Stra\u00dfe", "\u0130stanbul", "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f",
    "\uc548\ub155\ud558\uc138\uc694", "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u1019\u103c\u1014\u103a\u1019\u102c", "\u12a0\u121b\u122d\u129b", "\U0001d54f\U0001d7d8",
    "\u0663\u0664\u0665", "\u2167\u00bd\u00b2", "\u0969\u096a", "\u2460\u3289", "\u10d2\u10d0\u10db", "\u0531\u0580", "\U00010400\U00010428",
    # emoji
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3",
    # normalisation: composition, order of marks, exclusions, Hangul, singletons, long runs of marks
    "e\u0301", "a\u0323\u0302", "a\u0302\u0323", "q\u0307\u0323", "\u1e9b\u0323", "\u212b", "\u2126", "\u0344", "\u0958", "\u2adc",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\u0cc6\u0cc2\u0cd5", "\u0b47\u0b56", "\U0001d15e",
    "\u0308", " \u0301", "\n\u0301", "x" + "\u0301\u0316" * 9, "\u00c5\u0301", "\u01d5", "u\u0308\u0304", "\u0387", "\uf900", "\U0002f800",
    "\u0f73\u0f71", "\u1025\u102e", "\u0627\u0653", "o\u0328\u0304", "\u00e9\u0301", "e\u0301\u0301",
    # markers, whole and broken
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>", "<|im_start", "|>", "<", "<<", "<|", "<|im_start|", "< think>", "</", "<think", "<|mask|>", "<THINK>",
    "<|im_\u0301start|>", "assistant\n", "user\n",
]


def ranges():
    """Code points drawn alone, as [first, last]: the scripts one by one, then everything."""
    return [[0, 0x7F], [0, 0xFF], [0x80, 0x24F], [0x300, 0x36F], [0x370, 0x3FF], [0x400, 0x52F], [0x590, 0x6FF],
            [0x900, 0xD7F], [0xE00, 0xFFF], [0x1100, 0x11FF], [0x1E00, 0x1FFF], [0x2000, 0x206F], [0x20D0, 0x214F],
            [0x2150, 0x2BFF], [0x3000, 0x30FF], [0x4E00, 0x9FFF], [0xAC00, 0xD7A3], [0xF900, 0xFAFF],
            [0xFB00, 0xFFFD], [0x1D000, 0x1D7FF], [0x1F300, 0x1FAFF], [0x2F800, 0x2FA1D], [0, 0xD7FF],
            [0xE000, 0x10FFFF]]


class Draw:
    """splitmix64 (Steele, Lea, Flood 2014)."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, count):
        return self.next() % count


def code_point(draw, settled):
    first, last = settled[draw.below(len(settled))]
    return chr(first + draw.below(last - first + 1)).encode()


def piece(draw, settled):
    """Bytes; one call of the generator in the test draws the same numbers in the same order."""
    kind = draw.below(16)
    if kind < 9:
        return FRAGMENTS[draw.below(len(FRAGMENTS))].encode()
    if kind < 13:
        return code_point(draw, settled)
    if kind < 14:
        return code_point(draw, settled) * (1 + draw.below(70))
    if kind < 15:
        return bytes([32 + draw.below(95)])
    return bytes([draw.below(256)])


def string(index, settled):
    draw = Draw(SEED + index)
    return b"".join(piece(draw, settled) for _ in range(draw.below(16)))


def sequence(index, vocab):
    """Ids, two beyond the vocabulary included."""
    draw = Draw(~SEED ^ index)
    return [draw.below(vocab + 2) for _ in range(draw.below(24))]


def fnv1a(data, state=0xCBF29CE484222325):
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def is_settled(code, package_nfc):
    """Whether Unicode tables of different years say the same of a code point.

    The package carries tables of Unicode 9 for NFC and newer ones for its pattern, Python 14, utf8proc
    and PCRE2 14 or 15. A code point that Python does not know is left out, and one that the package
    orders or composes otherwise than Python among marks: 98 marks that came after 9.
    """
    char = chr(code)
    if unicodedata.category(char) in ("Cn", "Cs"):
        return False
    around = [char, "a\u0301" + char, "a\u0345" + char, char + "\u0301", char + "\u0334"]
    return all(package_nfc.normalize_str(t) == unicodedata.normalize("NFC", t) for t in around)


def settled_ranges():
    """ranges() cut down to code points that are settled."""
    package_nfc = normalizers.NFC()
    settled = []
    for first, last in ranges():
        begin = None
        for code in range(first, last + 2):
            known = code <= last and is_settled(code, package_nfc)
            if known and begin is None:
                begin = code
            if not known and begin is not None:
                settled.append([begin, code - 1])
                begin = None
    return settled


def main():
    path, out = sys.argv[1:]
    parse, plain = Tokenizer.from_file(path), Tokenizer.from_file(path)
    plain.encode_special_tokens = True
    settled = settled_ranges()

    def ids(tokenizer, texts):
        return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

    explicit = FRAGMENTS + ["".join(FRAGMENTS[i:i + 4]) for i in range(0, len(FRAGMENTS), 3)]
    explicit += [" " * n for n in (15, 31, 32, 33, 47, 48, 49, 200)] + ["a" * n for n in (47, 48, 49, 50, 500)]
    explicit += ["", "ab" * 100, "\n" * 100, " \n" * 40, "e\u0301" * 60, "-" * 300, " " * 20 + "x", "\u0301" * 50]
    written = [{"text": t, "parse": p, "plain": q if q != p else None}
               for t, p, q in zip(explicit, ids(parse, explicit), ids(plain, explicit))]

    def hashed(found, state):
        """Adds ids or a text to a hash, and an end mark that neither contains."""
        if isinstance(found, str):
            return fnv1a(found.encode() + b"\xff", state)
        return fnv1a(b"".join(i.to_bytes(4, "little") for i in found + [0xFFFFFFFF]), state)

    def groups(count, of_index):
        """One hash for each GROUP of indices; of_index gives what of an index is hashed."""
        for begin in range(0, count, GROUP):
            state = fnv1a(b"")
            for index in range(begin, begin + GROUP):
                for found in of_index(index):
                    state = hashed(found, state)
            yield f"{state:016x}"

    def of_string(index):
        text = string(index, settled).decode("utf-8", errors="replace")
        [parsed], [unparsed] = ids(parse, [text]), ids(plain, [text])
        shown = parse.decode(unparsed, skip_special_tokens=False)
        if shown != unicodedata.normalize("NFC", text):
            raise SystemExit(f"string {index} does not come back from its ids: {text!r}")
        return parsed, unparsed, parse.decode(parsed, skip_special_tokens=True), shown

    def of_sequence(index):
        drawn = sequence(index, parse.get_vocab_size())
        return tuple(parse.decode(drawn, skip_special_tokens=skip) for skip in (True, False))

    strings, sequences = groups(STRINGS, of_string), groups(SEQUENCES, of_sequence)
    with open(out, "w", encoding="utf-8") as file:
        file.write('{"seed": %d, "strings": %d, "sequences": %d, "group": %d,\n' % (SEED, STRINGS, SEQUENCES, GROUP))
        file.write('"fragments": %s,\n' % json.dumps(FRAGMENTS))
        file.write('"ranges": %s,\n' % json.dumps(settled, separators=(",", ":")))
        file.write('"explicit": [\n%s],\n' % ",\n".join(json.dumps(w, separators=(",", ":")) for w in written))
        file.write('"string_hashes": %s,\n' % json.dumps(list(strings), separators=(",", ":")))
        file.write('"sequence_hashes": %s}\n' % json.dumps(list(sequences), separators=(",", ":")))


if __name__ == "__main__":
    main()
