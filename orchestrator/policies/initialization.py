"""Initial weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

HIDDEN_GAIN = math.sqrt(2.0)
ACTOR_GAIN = 0.01
CRITIC_GAIN = 1.0
"""Scales of the orthogonal weights (Andrychowicz et al. 2021 for the small one of the actor's output)."""


def orthogonal(*shape: int, gain: float) -> Tensor:
    """`gain` times a random matrix with orthonormal rows or columns, whichever are shorter (Saxe et al. 2014).

    Dimensions after the first count as one. Draws from torch's generator. The matrix is a product of random signs
    and fixed orthogonal transforms (Yu et al. 2016, structured orthogonal features): the usual decomposition of a
    normal matrix takes seconds where other processes compete for the cores, and its last bits depend on the number
    of threads, which weights must not.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    length, vectors = max(rows, columns), min(rows, columns)
    matrix = np.eye(vectors, length, dtype=np.float32)
    for signs in torch.randint(0, 2, (3, length)).mul_(2).sub_(1).float().numpy():
        # Real less imaginary part of Fourier's transform is Hartley's, which is orthogonal.
        spectrum = np.fft.fft(signs * matrix)
        matrix = (spectrum.real - spectrum.imag) / np.float32(math.sqrt(length))
    matrix *= gain
    return torch.from_numpy(np.ascontiguousarray(matrix if rows == vectors else matrix.T)).reshape(shape)
