#!/usr/bin/env python3
"""Trains a byte-level BPE vocabulary of the size that large models have, on texts of this machine, for
`tessera bench masks --tokenizer OUT`.

    pip install tokenizers
    bench/masks/vocabulary.py OUT/tokenizer.json                      # 152,064 entries; some minutes
    bench/masks/vocabulary.py OUT/tokenizer.json --size 32000 DIR...

What matters for masks is how many tokens there are and how they are cut: as in Qwen2's vocabulary by its
published pattern. Which texts taught them (source code and documentation, by default those under
/usr/lib/python3, /usr/share and /usr/include) matters less.
"""

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
           r"\s+(?!\S)|\s+")
KINDS = {".py", ".txt", ".md", ".h", ".hpp", ".rst", ".html", ".json", ".pl", ".pm", ".c", ".cpp", ".po", ".js", ".css", ".xml"}


def texts(folders, bytes_max):
    left = bytes_max
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix not in KINDS or path.is_symlink() or not path.is_file():
                continue
            try:
                text = path.read_bytes()[:1 << 20].decode()
            except (UnicodeDecodeError, OSError):
                continue
            left -= len(text)
            if left < 0:
                return
            yield text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="*", default=["/usr/lib/python3", "/usr/share", "/usr/include"])
    parser.add_argument("--size", type=int, default=152_064, help="entries (152064)")
    parser.add_argument("--megabytes", type=int, default=400, help="of text at most (400)")
    arguments = parser.parse_args()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=arguments.size, min_frequency=2, special_tokens=specials,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts(arguments.folders, arguments.megabytes * 1_000_000), trainer)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.out))
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()
