"""The networks of PIQ: a convolutional encoder, and ψ, which explains what it heard."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis_lib.piq.quantization import VQEmbedding


class ResBlockAudio(nn.Module):
    """A residual block, ``(B, dim, H, W)`` to the same shape."""

    def __init__(self, dim: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Conv2dEncoder(nn.Module):
    """Four strided convolutions and a residual block over a log-magnitude spectrogram.

    Parameters
    ----------
    dim : int
        Number of channels.

    Notes
    -----
    ``forward`` takes ``(B, T, F)`` to ``(B, dim, T // 16, F // 16)``. Weights carry
    the names of speechbrain's ``Conv2dEncoder_v2``.

    Raises
    ------
    ValueError
        If the spectrogram has fewer than 16 frames or bins.
    """

    def __init__(self, dim: int = 256):
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"conv{i}", nn.Conv2d(dim if i > 1 else 1, dim, 4, 2, 1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(dim))
        self.resblock = ResBlockAudio(dim)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < 16:
            raise ValueError(
                f"a spectrogram of {x.shape[-2]} frames × {x.shape[-1]} bins is "
                f"smaller than the encoder's step of 16 × 16; use a longer clip, a "
                f"smaller hop or a larger n_fft."
            )
        h = x[:, None]
        for i in range(1, 5):
            h = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(h)))
        return self.resblock(h)


def weights_init(module: nn.Module) -> None:
    """Fill a convolution with Xavier-uniform weights and zero bias; pass over others.

    Use it as ``network.apply(weights_init)``.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class RowwiseConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of stride 1, one row of its kernel at a time.

    Equal to ``nn.ConvTranspose2d`` up to rounding, weights and all. Kernels for one
    output channel leave most of a vector unit idle; the rows of the filter taken as
    channels fill it, and adding them up, each a step lower, is cheap.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        rows, columns = self.weight.shape[-2:]
        top, left = int(self.padding[0]), int(self.padding[1])
        if self.out_channels != 1 or self.stride != (1, 1) or left > columns - 1:
            return super().forward(x, output_size)
        weight = self.weight[:, 0].transpose(0, 1).flip(-1)[:, :, None]
        by_row = F.conv2d(x, weight, padding=(0, columns - 1 - left))
        size = (x.shape[-2] + rows - 1 - 2 * top, by_row.shape[-1])
        out = F.fold(by_row.flatten(2), size, (rows, 1), padding=(top, 0))
        return out if self.bias is None else out + self.bias[:, None, None]


def grid_size(length: int) -> int:
    """Give the least size ≥ ``length`` that ψ gives back exactly: 1 modulo 32."""
    return max(33, (length + 30) // 32 * 32 + 1)


def pad_to_grid(x: Tensor) -> Tensor:
    """Add silent frames and bins until ψ's output covers the whole spectrogram.

    Parameters
    ----------
    x : Tensor
        ``(..., T, F)`` log magnitudes, 0 being silence.

    Returns
    -------
    Tensor
        ``(..., grid_size(T), grid_size(F))``.
    """
    frames, bins = x.shape[-2:]
    return F.pad(x, (0, grid_size(bins) - bins, 0, grid_size(frames) - frames))


class PSIOutput(NamedTuple):
    """What ψ returns.

    Attributes
    ----------
    logits : Tensor
        ``(B, 1, T, F)``; its sigmoid is the mask.
    latents : Tensor
        ``(B, dim, h, w)`` before quantization.
    quantized : Tensor
        ``(B, dim, h, w)`` keys, carrying the gradient to the codebook.
    indices : Tensor
        ``(B, h, w)`` int64 keys used; -1 where ψ does not quantize.
    """

    logits: Tensor
    latents: Tensor
    quantized: Tensor
    indices: Tensor


class VectorQuantizedPSI(nn.Module):
    """ψ: from a classifier's hidden maps, through its class's keys, to a mask.

    Parameters
    ----------
    dim : int
        Channels of the classifier's maps, and width of the keys.
    K : int
        Number of keys.
    numclasses : int
        Number of classes.
    activate_class_partitioning : bool
        Whether each class has keys of its own.
    shared_keys : int
        Number of keys open to every class.
    use_adapter : bool
        Whether a residual block first adapts the maps.
    adapter_reduce_dim : bool
        Whether the maps are quantized at half their resolution.
    decoder : {"published", "light", "tokens"}
        The published decoder for convolutional classifiers; a light one of the same
        output size, which works at a quarter of it; or the published one for square
        maps of transformer and FocalNet tokens (14 × 14 to 431 × 513).
    quantize : bool
        False leaves quantization out: the ablation.
    reference : bool
        Behave as speechbrain 1.1.2 does; see `VQEmbedding`.

    Raises
    ------
    ValueError
        If a class would own no key, or the decoder is unknown.

    Notes
    -----
    Weights of the published decoders carry speechbrain's names, so its
    ``state_dict`` loads.

    References
    ----------
    .. [1] F. Paissan, C. Subakan, M. Ravanelli, "Posthoc Interpretation via
       Quantization", arXiv:2303.12659.
    """

    def __init__(
        self,
        dim: int = 128,
        K: int = 512,
        numclasses: int = 50,
        activate_class_partitioning: bool = True,
        shared_keys: int = 0,
        use_adapter: bool = True,
        adapter_reduce_dim: bool = True,
        *,
        decoder: str = "published",
        quantize: bool = True,
        reference: bool = False,
    ):
        super().__init__()
        if decoder not in _DECODERS:
            raise ValueError(
                f"decoder={decoder!r} is unknown; choose one of {', '.join(_DECODERS)}."
            )
        self.quantize = quantize
        self.codebook = VQEmbedding(
            K,
            dim,
            numclasses,
            activate_class_partitioning,
            shared_keys,
            reference=reference,
        )
        self.adapter = ResBlockAudio(dim) if use_adapter else nn.Identity()
        self.down: nn.Module = nn.Identity()
        self.up: nn.Module = nn.Identity()
        if adapter_reduce_dim:
            self.down = nn.Conv2d(dim, dim, 4, 2, 1)
            self.up = nn.ConvTranspose2d(dim, dim, 4, 2, 1)
        self.decoder = _DECODERS[decoder](dim)
        self.apply(weights_init)

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> PSIOutput:
        """Decode the hidden maps with the keys of the classes named.

        Parameters
        ----------
        hidden : Tensor
            ``(B, dim, H, W)`` maps of the classifier.
        labels : Tensor, optional
            ``(B,)`` class whose keys to use: the predicted class, or any other that
            one asks about. Needed while the codebook is partitioned.
        size : tuple of int, optional
            ``(T, F)`` to cut the mask to. None: as it comes, which for an input of T
            frames is ``32 * (T // 32) + 1``.

        Returns
        -------
        PSIOutput

        Raises
        ------
        ValueError
            If the decoder gives less than ``size``: frames would be lost.
        """
        latents = self.encode(hidden)
        if self.quantize:
            z_st, z_q, indices = self.codebook.straight_through(latents, labels)
        else:
            z_st = z_q = latents
            indices = latents.new_full(
                (len(latents), *latents.shape[2:]), -1, dtype=torch.long
            )
        logits = self.decode(z_st)
        if size is not None:
            frames, bins = logits.shape[-2:]
            if frames < size[0] or bins < size[1]:
                raise ValueError(
                    f"ψ gives a mask of {frames} × {bins} for a spectrogram of "
                    f"{size[0]} × {size[1]}, so its end would be lost; pass the "
                    f"spectrogram through pad_to_grid before the encoder."
                )
            logits = logits[..., : size[0], : size[1]]
        return PSIOutput(logits, latents, z_q, indices)

    def encode(self, hidden: Tensor) -> Tensor:
        """Adapt and reduce hidden maps to the vectors that are quantized."""
        return self.down(self.adapter(hidden))

    def decode(self, quantized: Tensor) -> Tensor:
        """Turn keys ``(B, dim, h, w)`` into mask logits ``(B, 1, T, F)``."""
        return self.decoder(self.up(quantized))


class VectorQuantizedPSIFocalNet(VectorQuantizedPSI):
    """`VectorQuantizedPSI` with the published decoder for FocalNet's maps."""

    def __init__(
        self, dim: int = 1024, K: int = 512, numclasses: int = 50, **more: Any
    ):
        super().__init__(dim, K, numclasses, decoder="tokens", **more)


class VectorQuantizedPSIViT(VectorQuantizedPSI):
    """`VectorQuantizedPSI` with the published decoder for a ViT's maps."""

    def __init__(self, dim: int = 768, K: int = 512, numclasses: int = 50, **more: Any):
        super().__init__(dim, K, numclasses, decoder="tokens", **more)


def _upsampling(
    dim: int, kernels: list, strides: list, head: int | tuple[int, int]
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for kernel, stride in zip(kernels, strides, strict=True):
        layers += [
            nn.ConvTranspose2d(dim, dim, kernel, stride, 1),
            nn.ReLU(),
            nn.BatchNorm2d(dim),
        ]
    return nn.Sequential(*layers, RowwiseConvTranspose2d(dim, 1, head, 1, 1))


def _published(dim: int) -> nn.Sequential:
    return _upsampling(dim, [3, 4, 4, 4], [2, 2, 2, 2], 12)


def _tokens(dim: int) -> nn.Sequential:
    return _upsampling(
        dim, [3, (4, 1), (4, 1), (4, 2)], [(4, 5), 2, 2, 2], head=(10, 8)
    )


def _light(dim: int) -> nn.Sequential:
    # The published decoder spends nearly all its work at full resolution; this one
    # stops at a quarter of it and draws 4 × 4 bins at once, overlapping by half.
    layers: list[nn.Module] = []
    for width in (dim, 16):
        layers += [
            nn.ConvTranspose2d(dim, width, 4, 2, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 1, 9, 4, 2))


_DECODERS = {"published": _published, "light": _light, "tokens": _tokens}
