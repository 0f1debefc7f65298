"""A tiny BERT and sentences for it."""

import torch
import transformers

TINY = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "max_position_embeddings": 10,
}  # fmt: skip


IDS = torch.randint(1, 20, (6, 7), generator=torch.Generator().manual_seed(3))


MASK = (torch.arange(7) < torch.tensor([[7], [5], [7], [3], [6], [7]])).long()


LABELS = torch.arange(6) % 2


def bert(kind=transformers.BertForSequenceClassification, **options):
    return kind(transformers.BertConfig(**TINY, attn_implementation="eager"), **options).eval()


def sentences(model, parameters):
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    return torch.func.functional_call(model, parameters, (), inputs).loss


SENTENCES = [
    {"input_ids": i, "attention_mask": m, "labels": y}
    for i, m, y in zip(IDS.split(4), MASK.split(4), LABELS.split(4), strict=True)
]


def bert_again(folder):
    return transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
