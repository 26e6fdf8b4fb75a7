"""HTS-AT: its front end, its taps against the formulas, its attention, ablation."""

import math

import numpy as np
import pytest
import torch
from transformers import ClapAudioModel, ClapFeatureExtractor

from analysis_lib.base import AnalysisError
from analysis_lib.encoders import ablate, record
from analysis_lib.encoders.htsat import (
    MINI_FRONT_END,
    MSCLAP_FRONT_END,
    HTSATFrontEnd,
    htsat_config,
    htsat_encoder,
)
from analysis_lib.encoders.htsat_checkpoints import random_model

ALL = ["head", "block", "layer", "layer_premerge"]
FRONT_ENDS = {
    "mini": MINI_FRONT_END,
    "msclap": MSCLAP_FRONT_END,
    "laion": HTSATFrontEnd(),
    "fused": HTSATFrontEnd(truncation="fusion"),
    "pad": HTSATFrontEnd(padding="pad"),
    "repeat": HTSATFrontEnd(padding="repeat"),
}


def lively(width=8, seed=0):
    """HTS-AT whose biases and norms differ from their initial zeros and ones."""
    model = random_model(htsat_config(width), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        scale = 1.0 if "bias_table" in name else 0.2
        value.data += scale * torch.randn(value.shape, generator=generator)
    norm = model.audio_encoder.batch_norm
    norm.running_mean.fill_(-40)
    norm.running_var.fill_(400)
    return model


@pytest.fixture(scope="module")
def encoder():
    return htsat_encoder("small", lively(), MINI_FRONT_END, licence="", source="")


@pytest.fixture(scope="module")
def waves():
    rng = np.random.default_rng(0)
    lengths = (88_200, 88_200, 30_000, 100_000)
    return [
        (0.1 * k * rng.standard_normal(n)).astype(np.float32)
        for k, n in enumerate(lengths, 1)
    ]


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_end_equals_clap_feature_extractor(name):
    front_end = FRONT_ENDS[name]
    settings = front_end.to_dict()
    settings.pop("feature_extractor_type")
    reference = ClapFeatureExtractor(**settings)
    rng = np.random.default_rng(0)
    times = np.arange(front_end.samples) / front_end.sampling_rate
    loud = [rng.standard_normal(n) for n in (front_end.samples, 70_000, 1000)]
    decay = np.sin(2 * np.pi * 440 * times) * np.exp(-20 * times)
    waves = [wave.astype(np.float32) for wave in (*loud, decay)]
    expected = reference(
        waves, sampling_rate=front_end.sampling_rate, return_tensors="np"
    )["input_features"]
    mine = front_end(waves).inputs["input_features"].numpy()
    assert mine.shape == expected.shape
    np.testing.assert_allclose(mine, expected, atol=1e-4)


def test_front_end_keeps_the_first_seconds_of_a_longer_clip():
    rng = np.random.default_rng(0)
    long = rng.standard_normal(300_000).astype(np.float32)
    first = long[: MINI_FRONT_END.samples]
    a, b = (MINI_FRONT_END([w]).inputs["input_features"] for w in (long, first))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_front_end_survives_its_own_file():
    again = HTSATFrontEnd.from_dict(MSCLAP_FRONT_END.to_dict())
    assert again == MSCLAP_FRONT_END


def test_front_end_that_does_not_fit_the_model():
    wide = HTSATFrontEnd(max_length_s=20)
    with pytest.raises(AnalysisError, match=r"2001 frames.*at most 1024"):
        htsat_encoder("x", lively(), wide, licence="", source="")


def test_shapes_are_those_of_the_paper(encoder, waves):
    batch = encoder.prepare(waves)
    with record(encoder, ALL) as found:
        encoder.forward(batch)
    layers = "audio_encoder.layers"
    shape = {site: tuple(value.shape) for site, value in found.items()}
    sides = [
        (f"{layers}.{k}.blocks.0.attention.output.dense", "input") for k in range(4)
    ]
    assert [shape[site] for site in sides] == [
        (256, 64, 8), (64, 64, 16), (16, 64, 32), (4, 64, 64)
    ]  # fmt: skip
    sides = [(f"{layers}.{k}.blocks.0.layernorm_after", "input") for k in range(4)]
    assert [shape[site] for site in sides] == [
        (4, 4096, 8), (4, 1024, 16), (4, 256, 32), (4, 64, 64)
    ]  # fmt: skip
    after = [shape[(f"{layers}.{k}", "output")] for k in range(4)]
    assert after == [(4, 1024, 16), (4, 256, 32), (4, 64, 64), (4, 64, 64)]
    before = [shape[(f"{layers}.{k}.downsample", "input")] for k in range(3)]
    assert before == [(4, 4096, 8), (4, 1024, 16), (4, 256, 32)]
    taps = encoder.taps.groupby("granularity")["name"].count()
    assert taps.to_dict() == {
        "head": 184, "block": 12, "layer": 4, "layer_premerge": 3
    }  # fmt: skip
    for tap in encoder.taps[encoder.taps["granularity"] != "head"].itertuples():
        assert found[(tap.module, tap.side)].shape[-1] == tap.width


def attention_by_hand(block, x, grid):
    """Attn_h·V_h of every head from the equations, (B·N_W, heads, M, d_h).

    Swin (Liu et al. 2021), Eq. 4: softmax(QKᵀ/√d + B)V in windows; in every second
    block the image is rolled and tokens that were not neighbours are masked.
    """
    clips, _, width = x.shape
    attention = block.attention.self
    heads, size = attention.num_attention_heads, attention.attention_head_size
    shift = block.shift_size
    image = block.layernorm_before(x).view(clips, grid, grid, width)
    image = torch.roll(image, (-shift, -shift), (1, 2))
    region = torch.zeros(grid, grid)
    if shift:
        edges = [(0, grid - 8), (grid - 8, grid - shift), (grid - shift, grid)]
        for row, (top, bottom) in enumerate(edges):
            for column, (left, right) in enumerate(edges):
                region[top:bottom, left:right] = 3 * row + column
    offset = torch.arange(8)
    results = []
    for clip in range(clips):
        for top in range(0, grid, 8):
            for left in range(0, grid, 8):
                tokens = image[clip, top : top + 8, left : left + 8].reshape(64, width)
                own = region[top : top + 8, left : left + 8].reshape(64)
                mask = torch.where(own[:, None] == own[None], 0.0, -100.0)
                per_head = []
                for head in range(heads):
                    columns = slice(head * size, (head + 1) * size)

                    def project(linear, tokens=tokens, columns=columns):
                        return tokens @ linear.weight[columns].T + linear.bias[columns]

                    q = project(attention.query)
                    k = project(attention.key)
                    v = project(attention.value)
                    row, column = offset.repeat_interleave(8), offset.repeat(8)
                    down = row[:, None] - row[None] + 7
                    right = column[:, None] - column[None] + 7
                    table = attention.relative_position_bias_table
                    bias = table[down * 15 + right, head]
                    scores = q @ k.T / math.sqrt(size) + bias + mask
                    per_head.append(scores.softmax(-1) @ v)
                results.append(torch.stack(per_head))
    return torch.stack(results)


@torch.inference_mode()
def test_every_head_equals_the_formula(encoder, waves):
    batch = encoder.prepare(waves[:1])
    blocks, inputs = [], {}
    for layer, stage in enumerate(encoder.module.audio_encoder.layers):
        blocks += [(layer, k, block) for k, block in enumerate(stage.blocks)]
    hooks = [
        block.register_forward_pre_hook(
            lambda _module, args, key=(layer, k): inputs.__setitem__(key, args[0])
        )
        for layer, k, block in blocks
    ]
    with record(encoder, ["head", "block"]) as found:
        encoder.forward(batch)
    for hook in hooks:
        hook.remove()
    shifted = 0
    for layer, k, block in blocks:
        x = inputs[layer, k]
        expected = attention_by_hand(block, x, grid=64 // 2**layer)
        path = f"audio_encoder.layers.{layer}.blocks.{k}"
        mine = found[(f"{path}.attention.output.dense", "input")]
        windows, heads, tokens, size = expected.shape
        split = mine.view(windows, tokens, heads, size).transpose(1, 2)
        torch.testing.assert_close(split, expected, rtol=1e-4, atol=2e-5)
        shifted += block.shift_size > 0
        # The block tap: what attention added to the residual stream, before the MLP.
        added = found[(f"{path}.layernorm_after", "input")] - x
        values, _ = encoder.tokens(
            next(t for t in encoder.taps.itertuples() if t.name == f"L{layer}_B{k}_H0"),
            mine,
            batch,
        )
        dense = block.attention.output.dense(values)
        in_order, _ = encoder.tokens(
            next(t for t in encoder.taps.itertuples() if t.name == f"L{layer}_B{k}"),
            added,
            batch,
        )
        torch.testing.assert_close(in_order, dense, rtol=1e-3, atol=1e-4)
    assert shifted == 5  # every second block, but not where one window is all


def test_fast_attention_equals_transformers(waves):
    slow = lively(24).eval()
    batch = MINI_FRONT_END(waves)
    with torch.inference_mode():
        expected = slow(**batch.inputs)
    fast = htsat_encoder("x", slow, MINI_FRONT_END, licence="", source="")
    mine = fast.forward(batch)
    error = (mine.pooler_output - expected.pooler_output).abs().max()
    assert error <= 2e-6 * expected.pooler_output.abs().max()


def test_fast_attention_learns_as_the_plain_one(waves):
    features = MINI_FRONT_END(waves[:2]).inputs["input_features"]
    gradients = []
    for fast in (False, True):
        model = lively().eval()
        if fast:
            htsat_encoder("x", model, MINI_FRONT_END, licence="", source="")
            model.requires_grad_(True)
        model(input_features=features).pooler_output.square().sum().backward()
        table = model.audio_encoder.layers[0].blocks[1].attention.self
        gradients.append(table.relative_position_bias_table.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_attention_maps_are_still_to_be_had(encoder, waves):
    batch = encoder.prepare(waves[:1])
    with torch.inference_mode():
        maps = encoder.module(**batch.inputs, output_attentions=True).attentions
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(maps[0].shape[:-1]))


def test_a_clip_gets_the_same_numbers_alone_and_in_a_batch(encoder, waves):
    with record(encoder, ALL) as together:
        batch = encoder.prepare(waves)
        encoder.forward(batch)
    kept = dict(together)
    sites = encoder.sites(ALL)
    for k, wave in enumerate(waves):
        with record(encoder, ALL) as alone:
            own = encoder.prepare([wave])
            encoder.forward(own)
        for site, tap in sites.items():
            a, mask_a = encoder.tokens(tap, kept[site], batch)
            b, mask_b = encoder.tokens(tap, alone[site], own)
            assert torch.equal(mask_a[k], mask_b[0])
            scale = b.abs().max()
            assert (a[k] - b[0]).abs().max() <= 1e-5 * scale


def test_one_forward_pass_serves_all_taps(encoder, waves):
    passes = []
    hook = encoder.module.register_forward_hook(lambda *_: passes.append(1))
    with record(encoder, ALL) as found:
        encoder.forward(encoder.prepare(waves[:1]))
    hook.remove()
    assert len(passes) == 1
    assert found.keys() == encoder.sites(ALL).keys()
    assert not any(m._forward_pre_hooks for m in encoder.module.modules())


def test_tokens_lie_where_the_sound_is():
    """A patch of sound moves the tokens at its own time, in every layout."""
    encoder = htsat_encoder("x", lively(), MINI_FRONT_END, licence="", source="")
    rng = np.random.default_rng(0)
    quiet = 1e-3 * rng.standard_normal(88_200).astype(np.float32)
    for moment in (0.3, 1.1, 1.7):
        loud = quiet.copy()
        at = slice(int((moment - 0.02) * 44_100), int((moment + 0.02) * 44_100))
        loud[at] *= 1000
        batch = encoder.prepare([quiet, loud])
        with record(encoder, ["head", "block"]) as found:
            encoder.forward(batch)
        sites = encoder.sites(["head", "block"])
        for site, tap in sites.items():
            if tap.layer > 0:
                continue
            values, _ = encoder.tokens(tap, found[site], batch)
            change = (values[1] - values[0]).norm(dim=-1).numpy()
            times = encoder.frame_times(len(change))
            assert np.all(np.diff(times) >= 0)
            centre = times[change > 0.7 * change.max()]
            # A window is 8 columns of 1/256 of 2 s.
            assert abs(np.median(centre) - moment) < 0.09, tap.name


@pytest.mark.parametrize("layer", range(4))
def test_frame_times_span_the_clip(encoder, layer):
    grid = 64 // 2**layer
    times = encoder.frame_times(grid * grid)
    assert times.shape == (grid * grid,)
    assert 0 < times[0] < 2 / grid
    assert 2 - 2 / grid < times[-1] < 2
    np.testing.assert_allclose(times[0], 2 - times[-1], atol=0.005)


def test_zeros_after_the_last_repetition_are_no_tokens(encoder):
    half = np.random.default_rng(0).standard_normal(44_100).astype(np.float32)
    fitting = encoder.prepare([half])
    assert fitting.heard is None
    rest = encoder.prepare([half[:30_000], half])
    np.testing.assert_allclose(rest.heard, [60_000 / 44_100, 2])
    np.testing.assert_allclose(rest.seconds, [30_000 / 44_100, 1])
    with record(encoder, ["layer"]) as found:
        encoder.forward(rest)
    for site, tap in encoder.sites(["layer"]).items():
        values, mask = encoder.tokens(tap, found[site], rest)
        times = encoder.frame_times(values.shape[1])
        assert mask[1].all()
        np.testing.assert_array_equal(mask[0].numpy(), times < 60_000 / 44_100)


def test_fused_model_runs(waves):
    config = htsat_config(8)
    config.enable_fusion, config.fusion_type = True, None
    model = ClapAudioModel(config)
    front_end = HTSATFrontEnd(truncation="fusion")
    encoder = htsat_encoder("fused", model, front_end, licence="", source="")
    a = encoder.forward(encoder.prepare(waves[:2])).pooler_output
    b = encoder.forward(encoder.prepare(waves[:1])).pooler_output
    torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-5)


def heads_of(encoder, found, layer, block):
    site = (
        f"audio_encoder.layers.{layer}.blocks.{block}.attention.output.dense",
        "input",
    )
    heads = 4 * 2**layer
    return found[site].unflatten(-1, (heads, -1))


def test_ablation_zeroes_these_heads_and_no_other(encoder, waves):
    batch = encoder.prepare(waves[:1])
    with record(encoder, ["head"]) as plain:
        before = encoder.forward(batch).pooler_output
    with (
        ablate(encoder, [(3, 1, 0), (3, 1, 5)]),
        record(encoder, ["head"]) as found,
    ):
        after = encoder.forward(batch).pooler_output
    own, whole = heads_of(encoder, found, 3, 1), heads_of(encoder, plain, 3, 1)
    assert (own[..., [0, 5], :] == 0).all()
    others = [h for h in range(32) if h not in (0, 5)]
    torch.testing.assert_close(own[..., others, :], whole[..., others, :])
    torch.testing.assert_close(
        heads_of(encoder, found, 3, 0), heads_of(encoder, plain, 3, 0)
    )
    assert (before - after).abs().max() > 1e-4
    torch.testing.assert_close(encoder.forward(batch).pooler_output, before)


def test_ablation_of_one_head_takes_its_part_of_w_o_away(encoder, waves):
    batch = encoder.prepare(waves[:1])
    dense = encoder.module.audio_encoder.layers[2].blocks[0].attention.output.dense
    outputs = []
    hook = dense.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    with record(encoder, ["head"]) as found:
        encoder.forward(batch)
    with ablate(encoder, [(2, 0, 7)]):
        encoder.forward(batch)
    hook.remove()
    head = heads_of(encoder, found, 2, 0)[..., 7, :]
    part = head @ dense.weight[:, 14:16].T
    torch.testing.assert_close(outputs[0] - outputs[1], part, rtol=1e-3, atol=1e-5)


def test_mean_ablation(encoder, waves):
    batch = encoder.prepare(waves[:1])
    means = np.array([[1.0, 2.0], [3.0, 4.0]])
    # Recorded before or after the ablation began, a head is seen as ablated.
    with (
        record(encoder, ["head"]) as found,
        ablate(encoder, [(0, 0, 1), (1, 1, 2)], means),
    ):
        encoder.forward(batch)
    assert (heads_of(encoder, found, 0, 0)[..., 1, :] == torch.tensor([1.0, 2.0])).all()
    assert (heads_of(encoder, found, 1, 1)[..., 2, :] == torch.tensor([3.0, 4.0])).all()


def test_ablating_a_head_that_is_not_there(encoder):
    with (
        pytest.raises(AnalysisError, match=r"no head .*\(0, 0, 4\)"),
        ablate(encoder, [(0, 0, 4)]),
    ):
        pass
    with (
        pytest.raises(AnalysisError, match="one row a head"),
        ablate(encoder, [(0, 0, 1)], np.zeros((2, 2))),
    ):
        pass


def test_unknown_granularity(encoder):
    with pytest.raises(AnalysisError, match=r"'neuron'.*head, block, layer"):
        encoder.sites(["neuron"])
