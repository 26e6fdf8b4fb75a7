"""A codebook whose keys belong to classes, and quantization that trains through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def key_owners(
    K: int, num_classes: int, N_shared: int = 0, *, reference: bool = False
) -> Tensor:
    """Say which class each key of a codebook belongs to.

    Keys are dealt out in order, in one run of neighbours per class, the runs' lengths
    differing by at most one; the last ``N_shared`` keys belong to every class.

    Parameters
    ----------
    K : int
        Number of keys.
    num_classes : int
        Number of classes that own keys.
    N_shared : int
        Number of keys open to every class.
    reference : bool
        Deal the keys out as speechbrain 1.1.2 does, by rounding a line from -0.5 to
        ``num_classes - 0.51``. The two maps differ at the borders of the runs, so
        weights trained there need this one.

    Returns
    -------
    Tensor
        ``(K,)`` int64; ``-1`` marks a shared key.

    Raises
    ------
    ValueError
        If a class would own no key (not with ``reference=True``, where such a class
        silently uses key 0, as upstream).
    """
    own = K - N_shared
    if N_shared < 0 or own < 0:
        raise ValueError(
            f"shared_keys={N_shared} does not fit a codebook of K={K} keys; "
            f"choose shared_keys between 0 and K - num_classes."
        )
    if own < num_classes and not reference:
        raise ValueError(
            f"K={K} with shared_keys={N_shared} leaves {own} keys for {num_classes} "
            f"classes, so some classes would own none; raise K to at least "
            f"{num_classes + N_shared}."
        )
    if reference:
        owners = torch.linspace(-0.5, num_classes - 0.51, own).round().long()
    else:
        owners = torch.arange(own) * num_classes // max(own, 1)
    return torch.cat([owners, torch.full((N_shared,), -1)])


def irrelevant_regions(
    labels: Tensor,
    K: int,
    num_classes: int,
    N_shared: int = 0,
    *,
    reference: bool = False,
    training: bool = True,
) -> Tensor:
    """Mark the keys that a clip of a given class may not use.

    Parameters
    ----------
    labels : Tensor
        ``(B,)`` class indices.
    K, num_classes, N_shared, reference
        As in `key_owners`. With ``reference=True`` shared keys are closed in training
        and open afterwards, as upstream; else they are open always.
    training : bool
        Read only with ``reference=True``.

    Returns
    -------
    Tensor
        ``(B, K)`` bool; True where the key is closed to the clip.

    Raises
    ------
    ValueError
        If a label is no class index (not with ``reference=True``).

    References
    ----------
    .. [1] F. Paissan, C. Subakan, M. Ravanelli, "Posthoc Interpretation via
       Quantization", arXiv:2303.12659.
    """
    labels = labels if reference else _class_indices(labels, num_classes)
    owners = key_owners(K, num_classes, N_shared, reference=reference)
    owners = owners.to(labels.device)
    closed = owners != labels.reshape(-1, 1)
    closed[:, owners == -1] = reference and training
    return closed


def _class_indices(labels: Tensor, num_classes: int) -> Tensor:
    whole = labels.long()
    wrong = (whole != labels) | (whole < 0) | (whole >= num_classes)
    if wrong.any():
        raise ValueError(
            f"labels holds {labels[wrong][0].item():g}, which is no class index; "
            f"the codebook has {num_classes} classes, 0 to {num_classes - 1}."
        )
    return whole


@torch.no_grad()
def vector_quantize(
    inputs: Tensor, codebook: Tensor, irrelevant: Tensor | None = None
) -> Tensor:
    """Find each vector's nearest key. Not differentiable; see `straight_through`.

    Parameters
    ----------
    inputs : Tensor
        ``(B, ..., D)`` vectors.
    codebook : Tensor
        ``(K, D)`` keys.
    irrelevant : Tensor, optional
        ``(B, K)`` bool, the keys closed to each item of the batch.

    Returns
    -------
    Tensor
        ``(B, ...)`` int64 key indices.
    """
    tokens = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    # ‖z‖² is the same for every key: leaving it out costs nothing and rounds less.
    distances = codebook.square().sum(1) - 2 * tokens @ codebook.T
    if irrelevant is not None:
        distances = distances.masked_fill(irrelevant[:, None], torch.inf)
    return distances.argmin(-1).reshape(inputs.shape[:-1])


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.keys = len(codebook)
        return codebook[indices]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad = grads[0]
        (indices,) = ctx.saved_tensors
        to_codebook = None
        if ctx.needs_input_grad[1]:
            to_codebook = grad.new_zeros(ctx.keys, grad.shape[-1])
            to_codebook.index_add_(
                0, indices.reshape(-1), grad.reshape(-1, grad.shape[-1])
            )
        return grad if ctx.needs_input_grad[0] else None, to_codebook, None


def straight_through(
    inputs: Tensor, codebook: Tensor, irrelevant: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replace each vector by its nearest key and let the gradient pass unchanged.

    Parameters
    ----------
    inputs, codebook, irrelevant
        As in `vector_quantize`.

    Returns
    -------
    quantized : Tensor
        Shape of ``inputs``. Its gradient reaches ``inputs`` as if quantization were
        the identity, and every key used, where the codebook asks for one.
    indices : Tensor
        ``(B, ...)`` int64.

    References
    ----------
    .. [1] A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete
       Representation Learning", arXiv:1711.00937, section 3.2.
    """
    indices = vector_quantize(inputs, codebook, irrelevant)
    return _StraightThrough.apply(inputs, codebook, indices), indices


class VQEmbedding(nn.Module):
    """The codebook: K keys of D numbers, dealt out to the classes.

    Parameters
    ----------
    K, D : int
        Number of keys, and their width.
    numclasses : int
        Number of classes.
    activate_class_partitioning : bool
        Whether a clip may use only its class's keys and the shared ones.
    shared_keys : int
        Number of keys open to every class.
    reference : bool
        Behave as speechbrain 1.1.2 does, oddities and all, to load its weights or
        repeat its numbers: keys dealt out by rounding, shared keys closed in training,
        no check of labels, and a ``forward`` that forgets the module's settings
        (10 classes, 10 shared keys, partitioned, whatever the module holds).

    Raises
    ------
    ValueError
        If a class would own no key.
    """

    def __init__(
        self,
        K: int,
        D: int,
        numclasses: int = 50,
        activate_class_partitioning: bool = True,
        shared_keys: int = 0,
        *,
        reference: bool = False,
    ):
        super().__init__()
        if activate_class_partitioning:
            key_owners(K, numclasses, shared_keys, reference=reference)
        self.embedding = nn.Embedding(K, D)
        nn.init.uniform_(self.embedding.weight, -1 / K, 1 / K)
        self.numclasses = numclasses
        self.activate_class_partitioning = activate_class_partitioning
        self.shared_keys = shared_keys
        self.reference = reference

    def irrelevant(self, labels: Tensor | None) -> Tensor | None:
        """Mark the keys closed to each label, ``(B, K)`` bool; None: all are open."""
        if not self.activate_class_partitioning:
            return None
        if labels is None:
            raise ValueError(
                "labels is missing: a codebook partitioned by class needs each clip's "
                "class; pass labels, or set activate_class_partitioning=False."
            )
        return irrelevant_regions(
            labels,
            self.embedding.num_embeddings,
            self.numclasses,
            self.shared_keys,
            reference=self.reference,
            training=self.training,
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Give the key index of every vector; not differentiable.

        Parameters
        ----------
        z : Tensor
            ``(B, D, H, W)``.
        labels : Tensor, optional
            ``(B,)`` class indices; needed while the codebook is partitioned.

        Returns
        -------
        Tensor
            ``(B, H, W)`` int64.
        """
        keys = self.embedding.weight
        closed = (
            irrelevant_regions(labels, len(keys), 10, 10, reference=True)
            if self.reference and labels is not None
            else self.irrelevant(labels)
        )
        return vector_quantize(z.movedim(1, -1), keys, closed)

    def straight_through(
        self, z: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize, with one output that trains the network and one for the keys.

        Parameters
        ----------
        z, labels
            As in `forward`.

        Returns
        -------
        z_st : Tensor
            ``(B, D, H, W)`` keys; the gradient passes to ``z``, none to the keys.
        z_q : Tensor
            The same numbers; the gradient passes to the keys, none to ``z``.
        indices : Tensor
            ``(B, H, W)`` int64.
        """
        keys = self.embedding.weight
        z_st, indices = straight_through(
            z.movedim(1, -1), keys.detach(), self.irrelevant(labels)
        )
        return (
            z_st.movedim(-1, 1).contiguous(),
            self.embedding(indices).movedim(-1, 1).contiguous(),
            indices,
        )
