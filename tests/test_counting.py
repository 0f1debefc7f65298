"""The counts that other tests rely on, compared with what is counted by hand."""

import pytest
import torch
from counting import counted


@pytest.mark.parametrize(
    ("run", "kernels", "reads"),
    [
        (lambda x: x.T[1:].view(-1), 0, 0),
        (lambda x: x.new_empty(3), 0, 0),
        (lambda x: x + x, 1, 0),
        (lambda x: (x @ x).sum(), 2, 0),
        (lambda x: x.T.reshape(-1), 1, 0),  # which copies
        (lambda x: x.add_(1).mul_(2), 2, 0),
        (lambda x: float(x.sum()), 1, 1),
        (lambda x: x[0, 0].item(), 0, 1),
        (lambda x: bool((x > 0).all()), 2, 1),
        (lambda x: torch.isfinite(x).all().tolist(), 5, 1),  # x == x, |x|, |x| != inf, both, all
        (lambda x: x.cpu().numpy(), 0, 1),
        (lambda x: x.to("cpu"), 0, 1),
        (lambda x: x.to(x.device), 0, 0),
        (lambda x: x.double(), 1, 0),
        (lambda x: torch.equal(x, x), 1, 1),
        (lambda x: x.nonzero(), 1, 1),
        (lambda x: x[x > 0], 2, 1),
        (lambda x: x[torch.tensor([0, 1])], 1, 0),
    ],
)
def test_kernels_and_reads_are_counted(run, kernels, reads):
    x = torch.eye(2)
    with counted() as counts:
        run(x)
    assert (counts.kernels, counts.reads) == (kernels, reads), (counts.by_name, counts.reads_by_name)


def test_the_backward_of_autograd_is_counted():
    x = torch.ones(3, requires_grad=True)
    y = (x * x).sum()
    with counted() as counts:
        torch.autograd.grad(y, x)
    assert counts.by_name["aten::mul"] == 2
