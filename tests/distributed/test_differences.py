"""Finite differences on ranks, of which one has no data; and options that are not the same on all of them."""

import numpy as np

import hvpspec
from hvpspec.errors import InputError
from tests.distributed import programs
from tests.distributed.ranks import on_ranks


def found(rank):
    model, data = programs.classifier(1)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="finite-difference")
    spectrum = hvpspec.spectrum(H, 2, rtol=0.05, seed=0)
    pairs, trace = spectrum.eigenpairs, spectrum.trace
    exact = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd", group=False)
    dense = np.linalg.eigvalsh(exact @ np.eye(exact.shape[0]))
    said = None
    try:
        hvpspec.trace(H, rtol=0.1 if rank else 0.2)
    except InputError as error:
        said = str(error)
    return H.noise, spectrum.hvps, pairs.values, pairs.error, trace.value, trace.error, dense, said


def test_their_error_is_the_largest_of_the_ranks():
    both = on_ranks(found, 2)
    for noise, hvps, values, error, trace, off, dense, said in both:
        assert noise == both[0][0] > 0
        assert hvps == both[0][1]
        np.testing.assert_array_equal(values, both[0][2])
        largest = dense[np.argsort(-abs(dense))[:2]]
        assert np.all(abs(values - largest) <= error)
        assert abs(trace - dense.sum()) <= off
        assert said == "rank 1 was given another options than rank 0; give all ranks the same."
