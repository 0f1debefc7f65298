"""Trains the checkpoint of `hvpspec demo` and writes it, with its data, to hvpspec/demo/.

    .venv/bin/python scripts/train_demo.py

Needs scikit-learn, for its digits. The same seed gives the same network up to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from usage import only_help

from hvpspec import demo

STEPS, BATCH, RATE, SEED = 600, 64, 3e-3, 0


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    digits = load_digits()
    np.savez_compressed(demo.DATA, images=digits.data.astype(np.uint8), labels=digits.target.astype(np.uint8))
    ((images, labels),) = demo.batches(len(digits.target))
    model = demo.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        chosen = torch.randint(0, len(labels), (BATCH,))
        loss = cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outputs = model(images)
    accuracy = float((outputs.argmax(1) == labels).float().mean())
    print(f"loss {float(cross_entropy(outputs, labels)):.4f}, accuracy {accuracy:.2%}")
    torch.save(model.state_dict(), demo.CHECKPOINT)


if __name__ == "__main__":
    only_help(__doc__)
    main()
