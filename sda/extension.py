"""Space-time covariances of other lengths than were estimated.

A covariance of fewer frames is the average over the sub-windows. One of more frames is the
continuation as a stationary Gaussian Markov chain of half windows, which is positive semi-definite
by construction: of all processes with these correlations, about the one of largest entropy.

References:
    | Burg (1975), Maximum entropy spectral analysis, PhD thesis, Stanford.
"""

import torch
from torch import Tensor


def resize(blocks: Tensor, window: int, length: int) -> Tensor:
    """Turns window covariances into covariances of `length` frames.

    Arguments:
        blocks: Covariances with shape `(…, window · d, window · d)`, time outermost.
        window: The number of frames given.
        length: The number of frames wanted.

    Returns:
        Covariances with shape `(…, length · d, length · d)`.
    """

    size = blocks.shape[-1] // window
    if length == window:
        return blocks
    if size == 0:
        return blocks.new_zeros(*blocks.shape[:-2], 0, 0)
    if length < window:
        parts = [
            blocks[..., i * size : (i + length) * size, i * size : (i + length) * size]
            for i in range(window - length + 1)
        ]
        return sum(parts[1:], parts[0]) / len(parts)
    if window == 1:
        # Without lags the chain has no memory.
        eye = torch.eye(length, dtype=blocks.dtype)
        return torch.einsum("ij,...ab->...iajb", eye, blocks).flatten(-4, -3).flatten(-2, -1)

    return extend(blocks, size, window, length)


def extend(blocks: Tensor, size: int, window: int, length: int) -> Tensor:
    """Continues window covariances as those of a stationary Gaussian Markov chain.

    A window of 2p frames, p = window // 2, is a pair of successive blocks z, z' with covariances M
    and M' and cross-covariance C. An estimate is not exactly stationary, M ≠ M', and the regression
    C M⁻¹ can grow without bound when it is iterated. The correlation of the pair cannot,

    .. math:: K = M'^{-1/2} C M^{-1/2}, \\qquad \\| K \\|_2 \\leq 1,

    hence the chain is `z' = N^½ K N^-½ z + e` with the common covariance N = (M + M') / 2:

    .. math:: \\mathrm{Cov}(z_{k+n}, z_k) = N^{1/2} K^n N^{1/2}.

    It is stationary, positive semi-definite, and exact for a Markov chain of order up to p.

    Arguments:
        blocks: Covariances of windows, with shape `(…, window · size, window · size)`.
        size: The number of values of a frame.
        window: The number of frames given, at least 2.
        length: The number of frames wanted.
    """

    half = (window // 2) * size
    pair = resize(blocks, window, 2 * (window // 2))
    first, second, cross = pair[..., :half, :half], pair[..., half:, half:], pair[..., half:, :half]
    root, _ = square_roots((first + second) / 2)
    _, inverse_first = square_roots(first)
    _, inverse_second = square_roots(second)
    u, values, vh = torch.linalg.svd(inverse_second @ cross @ inverse_first)
    correlation = (u * values.clamp(max=1).to(u)[..., None, :]) @ vh

    count = -(-length * size // half)
    powers = [torch.eye(half, dtype=blocks.dtype).expand_as(first)]
    for _ in range(count - 1):
        powers.append(correlation @ powers[-1])
    lags = [root @ power @ root for power in powers]
    rows = [
        torch.cat([lags[i - j] if i >= j else lags[j - i].mH for j in range(count)], dim=-1)
        for i in range(count)
    ]

    return torch.cat(rows, dim=-2)[..., : length * size, : length * size]


def square_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The square root and the pseudo-inverse square root of semi-definite matrices `(…, n, n)`."""

    values, vectors = torch.linalg.eigh((matrix + matrix.mH) / 2)
    floor = 1e-12 * values.amax(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    inside = values > floor
    values = torch.where(inside, values, torch.zeros_like(values))
    inverse = torch.where(inside, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))

    return (vectors * values.sqrt()[..., None, :]) @ vectors.mH, (
        vectors * inverse[..., None, :]
    ) @ vectors.mH
