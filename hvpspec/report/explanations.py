"""What each quantity means to somebody who has a training problem: one sentence or two each, for every report."""

from __future__ import annotations

from collections.abc import Iterable

from hvpspec.report.numbers import QUANTITY_NAMES

EXPLANATIONS = {
    "eigenvalues": "Curvature of the loss along single directions, by default the most curved ones first. Along a "
    "direction with a negative one the loss curves downwards.",
    "trace": "Sum of all eigenvalues. Noise of variance σ² in every parameter raises the loss by about σ²/2 times the "
    "trace.",
    "frobenius_norm": "Square root of the sum of all squared eigenvalues: the overall size of the curvature, mostly of "
    "the largest eigenvalues.",
    "density": "How the eigenvalues are distributed. Trained networks often have a few large ones, and most close to "
    "zero: directions along which the loss hardly changes.",
    "largest": "The largest eigenvalue, also called the sharpness. It limits the learning rate.",
    "smallest": "The smallest eigenvalue. Where it is negative, the parameters are not at a minimum of the loss.",
    "norm": "The largest magnitude of an eigenvalue.",
    "step": "The largest learning rate with which gradient descent does not overshoot further and further along the "
    "sharpest direction. It holds for full batches; mini-batches and Adam have other limits.",
    "edge": "The largest λ_max at which gradient descent with this learning rate is stable: 2/lr, and 2(1 + β)/lr with "
    "momentum β (heavy ball, as in torch.optim.SGD). Training with full batches tends to drive λ_max up to it. Of a "
    "preconditioned matrix it is that of the optimizer, such as 38/lr for Adam with β₁ = 0.9 (arXiv:2207.14484).",
    "edge_ratio": "Below 1, the learning rate is stable. Above 1, updates along the sharpest direction grow from step "
    "to step.",
    "negative": "Number of independent directions in which the loss curves downwards; none at a minimum.",
    "negative_mass": "Magnitudes of the negative eigenvalues, added up. If that is small compared with the trace, the "
    "loss is nearly convex here.",
    "stable_rank": "How many eigenvalues of the largest magnitude would make up the Frobenius norm. Near 1, a single "
    "direction dominates.",
    "participation_ratio": "About how many eigenvalues the trace is spread over: as many equal ones would have this "
    "trace and norm. Also called the participation ratio.",
    "rank": "Number of eigenvalues that differ from zero by more than rounding. Along all other directions the loss is "
    "flat to second order.",
    "bulk_mean": "Mean of the eigenvalues that were not computed one by one.",
    "bulk_spread": "Standard deviation of the eigenvalues that were not computed one by one. Little compared with "
    "‖H‖₂ means that the other directions are all about equally curved.",
    "kappa": "The largest |λ| divided by the smallest. The larger it is, the slower gradient descent converges, and "
    "the less accurate the solution of a linear system with this matrix.",
    "nearest_zero": "Curvature along the flattest direction.",
    "refined": "The eigenvalue nearest to zero, from a search of its own (--refine).",
    "effective_dimension": "Number of directions that are curved by more than the damping δ, each counted as "
    "λ/(λ + δ): roughly, how many parameters the data determine.",
    "log_determinant": "Sum of the logarithms of all eigenvalues, which a Laplace approximation of the evidence needs.",
    "gradient_descent": "How many iterations gradient descent needs with the best fixed learning rate, from the worst "
    "starting point.",
    "conjugate_gradients": "How many iterations the method of conjugate gradients needs at most, without rounding.",
    "digits_lost": "Decimal digits of the number format that solving a linear system with this matrix may lose: "
    "log₁₀ κ.",
    "finite_difference": "Error of a Hessian from finite differences of the gradient in this number format, relative "
    "to the smallest |λ|. From 1 on, such a Hessian says nothing about the smallest eigenvalues, not even their signs.",
    "gradient_norm": "Length of the gradient of the loss on these data.",
    "gradient_curvature": "Curvature of the loss along its gradient, gᵀHg/‖g‖²: a gradient step larger than 2 divided "
    "by it raises the loss. Near λ_max, the gradient lies along the sharpest directions.",
    "gradient_step": "The step of gradient descent that minimises the quadratic model of the loss, ‖g‖²/gᵀHg.",
    "gradient_share": "How much of the squared length of the gradient lies in the span of the eigenvectors found. Near "
    "1, training moves along a few sharp directions.",
    "noise_scale": "Variance of the gradients of single samples over the squared length of the gradient. Batches much "
    "smaller than that are mostly noise; much larger ones add little (arXiv:1812.06162).",
    "update_length": "Length of the next step u of the optimizer, if it is given this gradient.",
    "update_slope": "Change of the loss by that step, to first order; negative where the step goes downhill.",
    "update_curvature": "Curvature of the loss along that step, uᵀHu/‖u‖².",
    "update_change": "Change of the loss by that step, to second order: gᵀu + ½ uᵀHu.",
    "diagonal": "Curvature along single parameters, averaged over those of one tensor or group. Independent noise of "
    "variance σ² in each of these raises the loss by about σ²/2 times mean and size.",
    "block": "Of the Hessian with respect to this group's parameters only, with all others held fixed.",
    "per_batch": "Of the loss on one mini-batch alone, as a step of stochastic gradient descent meets it. λ_max is "
    "larger there on average than that of all data, the more so the smaller the batches are.",
}


def explanations(quantities: Iterable[str]) -> list[tuple[str, str]]:
    """Name and explanation of each of these quantities that has one, once."""
    return [(QUANTITY_NAMES[key], EXPLANATIONS[key]) for key in dict.fromkeys(quantities) if key in EXPLANATIONS]


def explanation_lines(quantities: Iterable[str]) -> list[str]:
    """The same as lines of text, "trace: Sum of …"."""
    return [f"{name}: {sentence}" for name, sentence in explanations(quantities)]
