"""Writes mask_embedding/*.pt: what torch.save makes of {mask_token_id, embedding}.

    python tests/vectors/mask_embedding.py

Made with torch 2.15.0. mask_embedding_test.cpp knows the values: element i is (i - 3) / 7, rounded to
bf16. Everything is small, so that the files can be fuzz seeds too.
"""

from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "mask_embedding"
VALUES = (torch.arange(8) - 3) / 7


def save(name: str, token: int, embedding: torch.Tensor) -> None:
    torch.save({"mask_token_id": token, "embedding": embedding}, FOLDER / name)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    save("bf16.pt", 151643, VALUES.bfloat16())
    save("f32.pt", 7, VALUES)
    padded = torch.cat([torch.full((3,), 9.0), VALUES, torch.full((2,), 9.0)])
    save("bf16_offset.pt", 3_000_000_000, padded.bfloat16()[3:11])
    save("f32_offset.pt", 300, padded[3:11])
    # Refused:
    save("f16.pt", 7, VALUES.half())
    save("stride.pt", 7, VALUES.repeat_interleave(2)[::2])
    save("matrix.pt", 7, VALUES[None])
    save("parameter.pt", 7, torch.nn.Parameter(VALUES))
    torch.save({"mask_token_id": 7, "embedding": VALUES}, FOLDER / "legacy.pt",
               _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
