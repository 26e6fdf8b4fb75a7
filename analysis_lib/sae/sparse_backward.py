"""A sparse code on the autograd tape: one dense product per step, not five.

A dictionary step spends its time in products with zeros. Only the encoder's forward
product is dense here; everything else runs over the active entries alone: the decoder
is an ``embedding_bag`` over latents, and each weight gradient is an ``embedding_bag``
over frames, with entries sorted by latent. The gradients equal those of the dense
graph (tested), including the one of the shared bias ``b_dec``, whose encoder part is
taken after summing over frames, as in the reference code of [1]_.

References
----------
.. [1] Gao et al. (2024). Scaling and evaluating sparse autoencoders. arXiv:2406.04093.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Support:
    """Which latents are active in which frame, ordered by frame.

    Attributes
    ----------
    latents, rows : Tensor, shape (n_active,)
        Latent and frame of each active entry; ``rows`` ascends.
    offsets : Tensor, shape (n_frames,)
        Where each frame's entries begin.
    n_latents : int
    """

    latents: Tensor
    rows: Tensor
    offsets: Tensor
    n_latents: int

    @classmethod
    def from_topk(cls, indices: Tensor, n_latents: int) -> Support:
        """Build from per-frame indices of shape (n_frames, k)."""
        n, k = indices.shape
        steps = torch.arange(n, device=indices.device)
        return cls(indices.flatten(), steps.repeat_interleave(k), steps * k, n_latents)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Support:
        """Build from a boolean matrix of shape (n_frames, n_latents)."""
        rows, latents = mask.nonzero(as_tuple=True)
        counts = mask.sum(1)
        return cls(latents, rows, counts.cumsum(0) - counts, mask.shape[1])

    @cached_property
    def counts(self) -> Tensor:
        """How many frames each latent is active in, shape (n_latents,)."""
        return torch.bincount(self.latents, minlength=self.n_latents)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries sorted by latent: order, frames in that order, offsets."""
        order = self.latents.argsort(stable=True)
        return order, self.rows[order], self.counts.cumsum(0) - self.counts

    def sum_frames(self, frames: Tensor, weights: Tensor) -> Tensor:
        """For every latent the weighted sum of its frames, shape (n_latents, D)."""
        order, rows, offsets = self.by_latent
        return embedding_bag(
            rows, frames, offsets, mode="sum", per_sample_weights=weights[order]
        )

    def sum_latents(self, atoms: Tensor, weights: Tensor) -> Tensor:
        """For every frame the weighted sum of its atoms, shape (n_frames, D)."""
        return embedding_bag(
            self.latents, atoms, self.offsets, mode="sum", per_sample_weights=weights
        )


class _TrackPreactivations(torch.autograd.Function):
    """Put already computed pre-activations on the tape, gradients over the support."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        support: Support,
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, b_dec)
        ctx.support = support
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, b_dec = ctx.saved_tensors
        support: Support = ctx.support
        grad = grads[0].contiguous()
        grad_W = support.sum_frames(x - b_dec, grad)
        grad_b = grad.new_zeros(support.n_latents).index_add_(0, support.latents, grad)
        grad_x = support.sum_latents(W_enc, grad) if ctx.needs_input_grad[1] else None
        return None, grad_x, grad_W, grad_b, -(grad_b @ W_enc), None


class _TrackAtoms(torch.autograd.Function):
    """Give the decoder its gradient over the support; the output passes through."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, W_dec: Tensor, values: Tensor, support: Support
    ) -> Tensor:
        ctx.save_for_backward(values)
        ctx.support = support
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        grad = grads[0].contiguous()
        return grad, ctx.support.sum_frames(grad, values), None, None


def track_preactivations(
    values: Tensor,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    support: Support,
) -> Tensor:
    """Return ``values`` differentiable as ``(x - b_dec) @ W_enc.T + b_enc``.

    Parameters
    ----------
    values : Tensor, shape (n_active,)
        The pre-activations at ``support``, computed without a graph.
    x : Tensor, shape (n_frames, D)
    W_enc : Tensor, shape (n_latents, D)
    b_enc : Tensor, shape (n_latents,)
    b_dec : Tensor, shape (D,)
    support : Support

    Returns
    -------
    Tensor, shape (n_active,)
    """
    tracked: Tensor = _TrackPreactivations.apply(
        values.detach(), x, W_enc, b_enc, b_dec, support
    )
    return tracked


def sparse_decode(values: Tensor, W_dec: Tensor, support: Support) -> Tensor:
    """Sum the active atoms of each frame; gradients to values and atoms.

    Parameters
    ----------
    values : Tensor, shape (n_active,)
        Activations at ``support``.
    W_dec : Tensor, shape (n_latents, D)
        One atom a row.
    support : Support

    Returns
    -------
    Tensor, shape (n_frames, D)
    """
    output = support.sum_latents(W_dec.detach(), values)
    if not (torch.is_grad_enabled() and W_dec.requires_grad):
        return output
    tracked: Tensor = _TrackAtoms.apply(output, W_dec, values.detach(), support)
    return tracked
