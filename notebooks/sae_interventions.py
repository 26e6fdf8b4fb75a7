# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does turning a unit change the word that is written?
#
# That a unit answers to a phone does not mean that anyone listens to it. This chapter
# turns units of the dictionary while Qwen2-Audio listens, and watches what it writes:
# with everything else held as it was, beside control units that are turned as far. Then
# it asks whether sound and text share directions.
#
# **You learn** how to edit a unit without dropping what the dictionary cannot describe;
# why a control must match; what necessity and sufficiency mean here; and how to compare
# spoken with written words. **You need** the [chapter on the
# dictionary](qwen2_audio_sae). **It takes** about 30 minutes to read.

# %% tags=["parameters"]
encoder: str = "qwen2-audio-mini"  # bundled, or folder or hub id of a Qwen2-Audio
corpora: list[str] = ["words"]  # with a column text
dtype: str = "float32"  # or bfloat16, half the memory
on_error: str = "raise"  # or skip, to leave out clips that cannot be read
instruction: str = ""  # text behind the sound; Qwen2-Audio itself wants a task
n_latents: int = 512  # size of the dictionary
k: int = 8  # latents that may be active in a frame
n_samples: int = 1000000  # frames the dictionary is trained on, with repetition
n_words: int = 12  # words to intervene in
takes: int = 6  # clips of each, in unseen voices
top_units: int = 16  # units turned together for a word
controls: int = 4  # random choices of matched units
concepts: int = 40  # words compared between sound and text
seed: int = 0  # random seed, zero or more

# %% tags=["hide-input"]
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from analysis_lib import figures
from analysis_lib.base import AnalysisError
from analysis_lib.drawings import sae_interventions as draw
from analysis_lib.encoders import load_encoder
from analysis_lib.encoders.qwen2_audio_language import PROMPT, load_full
from analysis_lib.notebook import Parameters, glue, provenance, say
from analysis_lib.sae import evaluate_sae, train_sae
from analysis_lib.sae.crossmodal import (
    concept_retrieval,
    mean_codes,
    modality_share,
    nearest_tokens,
)
from analysis_lib.sae.dictionary import load_speech, trained_sae, unseen_voices
from analysis_lib.sae.effects import (
    answer_inputs,
    answer_log_probs,
    dose_response,
    generation_changes,
    kl_divergence,
    necessity_and_sufficiency,
)
from analysis_lib.sae.frames import cache_frames, language_frames
from analysis_lib.sae.interventions import (
    Edit,
    edit_units,
    matched_sets,
    patch_projector,
    reconstruction_patch,
    unit_reference,
)
from analysis_lib.sound import players
from analysis_lib.stats import group_bootstrap


class Settings(Parameters):
    encoder: str
    corpora: list[str]
    dtype: Literal["float32", "bfloat16"]
    on_error: Literal["raise", "skip"]
    instruction: str
    n_latents: int = Field(ge=8)
    k: int = Field(ge=1)
    n_samples: int = Field(ge=1024)
    n_words: int = Field(ge=2)
    takes: int = Field(ge=1)
    top_units: int = Field(ge=1)
    controls: int = Field(ge=1)
    concepts: int = Field(ge=3)
    seed: int = Field(ge=0)


settings = Settings.from_notebook()
figures.set_theme()

# %% tags=["hide-input"]
clips = load_speech(settings.corpora, on_error=settings.on_error)
if "text" not in clips.table:
    raise AnalysisError(
        f"{clips.name} has no column `text` in its metadata.csv; what is said is "
        "needed to see whether it changes."
    )
encoder = load_encoder(settings.encoder)
provenance(settings, encoder=encoder, corpus=clips)

# %% [markdown]
# ## The model, its frames, the dictionary
#
# The frames and the dictionary are those of the chapters before. This time the language
# model is loaded, too.

# %%
frames = cache_frames(
    encoder, clips, "projector", batch_size=16, on_error=settings.on_error
)
unseen = unseen_voices(clips, seed=settings.seed)
train = ~unseen[frames.clip_index]
sae = trained_sae(
    frames,
    train,
    n_latents=settings.n_latents,
    k=settings.k,
    n_samples=settings.n_samples,
    seed=settings.seed,
)

# %%
codes = sae.codes(frames)
reference = unit_reference(codes[train])
model, processor = load_full(settings.encoder, dtype=settings.dtype)
prompt = PROMPT + settings.instruction

# %% [markdown]
# ## What it writes
#
# Single words of unseen voices that the model gets right: only where it writes the
# true word can we see it change.

# %%
rng = np.random.default_rng(settings.seed)
text = clips.table["text"].astype(str).to_numpy()
single = np.array([len(words.split()) == 1 for words in text])
usable = np.flatnonzero(unseen & single & (frames.lengths > 0))
known = sorted(set(text[single & ~unseen]) & set(text[usable]))
if len(known) < 2:
    raise AnalysisError(
        f"{clips.name} has {len(known)} words that stand alone in a clip both in "
        "training and in unseen voices; two at least are needed."
    )

# %% [markdown]
# A few words are drawn, in several unseen voices each.

# %%
drawn = rng.permutation(known)[: settings.n_words]
candidates = np.concatenate(
    [usable[text[usable] == word][: settings.takes] for word in drawn]
)
rate = encoder.sampling_rate
sounds = {int(i): clips.audio(int(i), rate) for i in candidates}
plain = generation_changes(
    model,
    processor,
    [prompt] * len(sounds),
    list(sounds.values()),
    {"nothing": partial(patch_projector, model, lambda x, clip, frame: x)},
)
written = plain["before"].str.strip().str.lower().to_numpy()

# %%
right = written == np.char.lower(text[candidates].astype(str))
chosen = candidates[right]
if len(set(text[chosen])) < 2:
    raise AnalysisError(
        f"{model.__class__.__name__} writes {int(right.sum())} of {len(right)} words "
        "correctly; set `instruction` to the task it was trained for."
    )

# %% tags=["hide-input"]
players(
    [
        (sounds[int(i)], rate, str(text[i]), f"clip {clips.table['clip'][i]}")
        for i in chosen[:3]
    ]
)
identity = float((plain["before"] != plain["after"]).sum())
glue(right=float(right.mean()), heard=len(right), chosen=len(chosen))

# %% [markdown]
# It writes {glue:text}`right:.0%` of {glue:text}`heard` words correctly. These
# {glue:text}`chosen` clips are what the rest of the chapter listens to.

# %% [markdown]
# ## An edit that adds only its own difference
#
# Let $f$ be the code of frame $x$ and $f'$ the code we would like. The language model
# then gets
#
# $$x' = x + \sum_h (f'_h - f_h)\, d_h.$$ (eq-edit)
#
# What the dictionary cannot reconstruct stays in $x'$: the *error term*. If one passes
# the bare reconstruction of $f'$ instead, the error of the dictionary is an
# intervention, too, and can be larger than that of the edit.
#
# :::{admonition} Four ways to get an intervention wrong
# :class: warning
# Dropping the error term. Editing pre-activations that TopK would not have chosen, and
# so switching on units that were off. Adding the same constant to every unit, though
# one unit's maximum is another's noise. And setting a unit that is off to zero by
# overwriting the weakest that is on. Each changes more than the unit in question.
# :::
#
# First the sanity checks: an edit that changes nothing must change nothing, to the last
# bit.

# %%
answers = answer_inputs(
    processor,
    [prompt] * len(chosen),
    [sounds[int(i)] for i in chosen],
    text[chosen].tolist(),
)

# %% [markdown]
# The answers are scored by teacher forcing: the true word stands behind the sound, and
# we read how likely each of its tokens is.

# %%
base, before = answer_log_probs(model, answers)
one = [int(np.argmax(np.asarray((codes[train] > 0).sum(0)).ravel()))]
checks = {
    "identity": lambda: patch_projector(model, lambda x, clip, frame: x),
    "a unit times 1": lambda: edit_units(model, sae, Edit(one, "scale", 1.0)),
    "the commonest unit masked": lambda: edit_units(model, sae, Edit(one, "mask")),
    "reconstruction, error dropped": lambda: patch_projector(
        model, reconstruction_patch(sae)
    ),
}

# %%
rows = []
for name, context in checks.items():
    total, after = answer_log_probs(model, answers, context)
    rows.append(
        {
            "edit": name,
            "largest change of a log probability": float((after - before).abs().max()),
            "KL, nats": kl_divergence(before, after),
        }
    )
sanity = pd.DataFrame(rows).set_index("edit")
sanity.map(lambda value: f"{value:.2g}")

# %% tags=["remove-input"]
still = sanity.iloc[0, 0]
dropped, masked_one = sanity["KL, nats"].iloc[3], sanity["KL, nats"].iloc[2]
say(
    f"The identity patch changes a log probability by {still:.1f} at most. Dropping "
    "the "
    f"error term costs {dropped:.3g} nats of KL, masking a unit {masked_one:.3g}: "
    + (
        "dropping it would **drown** the effect of this unit."
        if dropped > masked_one
        else "here the error term weighs less than the unit."
    )
)

# %% [markdown]
# ## Which units belong to a word?
#
# For every word the units are chosen on *training voices*: those whose mean activation
# in the clips of the word exceeds that in other clips the most, in units of their own
# 99th percentile. Controls are matched: as frequent and as strong, drawn at random. As
# atoms have length 1, both kinds of edit move the frames equally far.

# %%
vocabulary = sorted(set(text[chosen]))
of_clip = np.where(single, text, "")[frames.clip_index]
rows_of = np.flatnonzero(train & (of_clip != ""))
means = mean_codes(codes[rows_of], of_clip[rows_of], vocabulary).toarray()
overall = np.asarray(codes[rows_of].mean(0)).ravel()
doses = np.maximum(reference.numpy(), 1e-9)
excess = np.where(reference.numpy() > 0, (means - overall) / doses, -np.inf)

# %%
own = {
    word: np.argsort(-row, kind="stable")[: settings.top_units].tolist()
    for word, row in zip(vocabulary, excess, strict=True)
}


matched = {
    word: matched_sets(
        codes[rows_of], units, settings.controls, seed=settings.seed
    ).tolist()
    for word, units in own.items()
}

# %% [markdown]
# ## Without a word's units
#
# We mask them, clip by clip, and let the model write. Masking more and more units shows
# how the word depends on them.

# %%
groups = {word: np.flatnonzero(text[chosen] == word) for word in vocabulary}


def patch_each(units_of, mode="mask", value=0.0):
    """Context: in every clip edit the units of that clip's word."""
    edits = []
    for word, items in groups.items():
        every = np.arange(int(frames.lengths.max()))
        places = [every if i in set(items) else [] for i in range(len(chosen))]
        edits.append(Edit(units_of(word), mode, value, places))
    return edit_units(model, sae, edits, reference=reference)


# %%
sizes = [2**i for i in range(9) if 2**i <= settings.top_units]

# %% tags=["hide-input"]
masked = []
for size in sizes:
    kinds = {
        "own": [lambda w, n=size: own[w][:n]],
        "matched random": [
            lambda w, n=size, d=d: matched[w][d][:n] for d in range(settings.controls)
        ],
    }
    for kind, choices in kinds.items():
        for choose in choices:
            total, after = answer_log_probs(model, answers, partial(patch_each, choose))
            masked.append(
                pd.DataFrame(
                    {
                        "units": kind,
                        "size": size,
                        "item": range(len(chosen)),
                        "change": (total - base).numpy(),
                    }
                )
            )
masked = pd.concat(masked)

# %%
contexts = {"own": partial(patch_each, lambda w: own[w])} | {
    f"matched {d}": partial(patch_each, lambda w, d=d: matched[w][d])
    for d in range(settings.controls)
}

# %% tags=["hide-input"]
told = generation_changes(
    model, processor, [prompt] * len(chosen), [sounds[int(i)] for i in chosen], contexts
)
told["changed"] = (told["before"] != told["after"]).astype(float)
told["kind"] = np.where(told["context"] == "own", "own", "matched random")
by_item = told.pivot_table("changed", "item", "kind")
voices = clips.groups[chosen]


def difference(index):
    """Share of words changed by own units, minus that by matched ones."""
    part = by_item.to_numpy()[index]
    return float((part[:, 1] - part[:, 0]).mean())


by_item = by_item[["matched random", "own"]]

# %%
interval, _, _ = group_bootstrap(difference, voices, 500, seed=settings.seed)
share = by_item.mean()
gap = difference(np.arange(len(by_item)))

# %% tags=["hide-input"]
curve = masked.groupby(["units", "size"])["change"].mean().unstack(0)
figures.show(
    draw.masked_curve(masked),
    alt="Mean change of the true word's log probability over the number of masked "
    "units: "
    + "; ".join(
        f"{kind} " + ", ".join(f"{v:.2f} at {n}" for n, v in curve[kind].items())
        for kind in curve
    )
    + ".",
    caption="The true word loses probability as more of its own units are masked "
    "(orange) and as many matched random units (grey). Bands: 95 % over clips.",
)
examples = told[(told["context"] == "own") & (told["changed"] > 0)]
examples[["before", "after"]].head(8).reset_index(drop=True)

# %% tags=["remove-input"]
more = interval[0] > 0
say(
    f"With its {settings.top_units} own units masked, **{share['own']:.0%} of the "
    "words "
    f"change**; with as many matched random units {share['matched random']:.0%}. The "
    f"difference is {gap:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}] (95 %, over "
    "voices): these units "
    + ("are **used** for the word." if more else "are **not reliably** used for it.")
)

# %% [markdown]
# ## Needed, and enough?
#
# *Necessity*: the share of the evidence for a word (its log probability, over that
# under mean frames) that goes when the units are masked. *Sufficiency*: the share that
# is there when mean frames carry these units and nothing else.

# %%
seen_mean = torch.from_numpy(frames[np.flatnonzero(train)[::4]].mean(0))
few = sorted(vocabulary, key=lambda word: -len(groups[word]))[:6]

# %% tags=["hide-input"]
rows = []
for word in few:
    part = answer_inputs(
        processor,
        [prompt] * len(groups[word]),
        [sounds[int(chosen[i])] for i in groups[word]],
        [word] * len(groups[word]),
    )
    for kind, members in (("own", own[word]), ("matched random", matched[word][0])):
        found = necessity_and_sufficiency(model, sae, part, members, seen_mean)
        rows.append(
            {
                "word": word,
                "units": kind,
                "clips": len(groups[word]),
                "evidence, nats": found.evidence.mean(),
                "necessity": found.necessity.mean(),
                "sufficiency": found.sufficiency.mean(),
            }
        )
causal = pd.DataFrame(rows).set_index(["word", "units"])
causal.round(2)

# %% tags=["remove-input"]
average = causal.groupby("units")[["necessity", "sufficiency"]].mean()
say(
    f"On average {average.loc['own', 'necessity']:.0%} of the evidence goes with the "
    f"own units ({average.loc['matched random', 'necessity']:.0%} with matched ones), "
    f"and {average.loc['own', 'sufficiency']:.0%} is there with them alone "
    f"({average.loc['matched random', 'sufficiency']:.0%})."
)

# %% [markdown]
# ## Saying another word
#
# Masking breaks things; steering should build them. We take clips of one word, mask its
# units, and boost those of another, in doses of each unit's own 99th percentile. Does
# the other word become likelier, and is it ever written? As control the same doses go
# to units matched to those of the other word.

# %%
pairs = []
for source in few[:4]:
    near = sorted(
        (w for w in vocabulary if w != source),
        key=lambda w: (abs(len(w) - len(source)), w),
    )
    pairs += [(source, near[0])]

# %%
levels = (0.25, 0.5, 1.0, 1.5)
steered = []
for source, target in pairs:
    here = [sounds[int(chosen[i])] for i in groups[source]]
    part = answer_inputs(processor, [prompt] * len(here), here, [target] * len(here))
    kinds = {"own": own[target], "matched random": matched[target][0]}
    found = dose_response(model, sae, part, kinds, levels, reference=reference)
    steered.append(found.assign(pair=f"{source} → {target}"))
steered = pd.concat(steered)

# %% tags=["hide-input"]
response = steered.groupby(["units", "dose"])["change"].mean().unstack(0)
figures.show(
    draw.dose_curve(steered),
    alt="Change of the other word's log probability over dose: "
    + "; ".join(
        f"{kind} " + ", ".join(f"{v:+.2f} at {d:g}" for d, v in response[kind].items())
        for kind in response
    )
    + ".",
    caption="Log probability of the other word while its units (orange) or matched "
    "random ones (grey) are boosted. One thin line a pair of words.",
)

# %% tags=["hide-input"]
rows = []
for source, target in pairs:
    here = [sounds[int(chosen[i])] for i in groups[source]]
    for kind, members in (("own", own[target]), ("matched random", matched[target][0])):
        for dose in levels:
            edits = [Edit(own[source], "mask"), Edit(members, "boost", dose)]
            turn = partial(edit_units, model, sae, edits, reference=reference)
            made = generation_changes(
                model, processor, [prompt] * len(here), here, {"": turn}
            )
            rows.append(
                {
                    "from": source,
                    "to": target,
                    "units": kind,
                    "dose": dose,
                    "written": made["after"].mode().iloc[0],
                    "share": (made["after"].str.strip() == target).mean(),
                }
            )
steering = pd.DataFrame(rows)
steering.pivot_table("written", ["from", "to", "units"], "dose", aggfunc="first")

# %% tags=["remove-input"]
hit = steering.groupby(["units", "dose"])["share"].mean().unstack(0)
top = response.loc[levels[-2]]
say(
    f"At a dose of {levels[-2]:g} the other word gains {top['own']:+.2f} nats with its "
    f"own units and {top['matched random']:+.2f} with matched ones. It is written in "
    "at "
    f"most {hit['own'].max():.0%} of the clips (controls "
    f"{hit['matched random'].max():.0%})."
)

# %% [markdown]
# ## Text in the same space
#
# The projector's output stands among token embeddings. So one can ask which tokens an
# atom points to, a *logit lens for sound*. Embeddings are centred first, and the null
# turns the atoms by random rotations.

# %%
embeddings = model.get_input_embeddings().weight.detach().float().cpu().numpy()
tokens = processor.tokenizer.convert_ids_to_tokens(range(len(embeddings)))

# %% tags=["hide-input"]
used = sorted({unit for units in own.values() for unit in units[:2]})
lens = nearest_tokens(
    sae.W_dec.numpy()[used],
    embeddings,
    tokens,
    n=3,
    n_rotations=49,
    seed=settings.seed,
)
lens["unit"] = np.array(used)[lens["atom"]]
first = lens[lens["rank"] == 1]
aligned = int((first["p"] < 0.05).sum())
glue(
    aligned=aligned,
    lensed=len(first),
    best_cosine=float(first["cosine"].max()),
    null_cosine=float(first["null"].mean()),
)
first.sort_values("cosine", ascending=False)[
    ["unit", "token", "cosine", "null", "p"]
].head(6).round(3)

# %% [markdown]
# Of {glue:text}`lensed` atoms {glue:text}`aligned` point to a token more closely than
# the best atom does after a random turn (largest cosine {glue:text}`best_cosine:.2f`;
# by chance {glue:text}`null_cosine:.2f`).
#
# :::{admonition} The last layer is not an embedding
# :class: warning
# Comparing projector frames with the *output* of the language model, which some code
# calls "token embeddings", compares two ends of a network. What shares the projector's
# space is the embedding matrix, or the residual stream of the *same* layer at positions
# of sound and of text. And a dictionary of bare embeddings sees no more vectors than
# there are tokens; a text dictionary needs a layer with context.
# :::

# %% [markdown]
# ## A spoken word and its written form
#
# At every layer we take the mean vector of a spoken word (positions of sound, over
# voices) and of the same word written (positions of text, no sound), and ask whether
# the one finds the other among {glue:text}`n_concepts` words. Pairs are shuffled for
# the null.

# %%
spoken = sorted(set(text[single & ~unseen]))
spoken = [str(w) for w in rng.permutation(spoken)[: settings.concepts]]
glue(n_concepts=len(spoken))
takes = {w: np.flatnonzero(single & ~unseen & (text == w))[:2] for w in spoken}
order = np.concatenate(list(takes.values()))
waves = [clips.audio(int(i), rate) for i in order]

# %% tags=["hide-input"]
layers = range(model.config.text_config.num_hidden_layers + 1)
sound, lines, found = {}, {}, []
bare = PROMPT.replace("<|AUDIO|>", "")
for layer in layers:
    heard, at = language_frames(
        model, processor, [prompt] * len(waves), waves, layer=layer
    )
    keep = at["is_audio"].to_numpy()
    sound[layer] = heard[keep], text[order][at["item"].to_numpy()[keep]]
    lines[layer], read = language_frames(
        model, processor, [bare + word for word in spoken], layer=layer
    )
    own_text = read["position"].to_numpy() >= 2 + (
        read.groupby("item")["position"].transform("min").to_numpy()
    )
    said = np.array(spoken)[read["item"].to_numpy()]
    audio_mean = [sound[layer][0][sound[layer][1] == w].mean(0) for w in spoken]
    text_mean = [lines[layer][own_text & (said == w)].mean(0) for w in spoken]
    result = concept_retrieval(
        audio_mean, text_mean, k=(1, 5), n_permutations=499, seed=settings.seed
    )
    found.append(result.recall.assign(layer=layer, p=result.p["audio_to_text"]))
retrieval = pd.concat(found).reset_index().set_index(["layer", "k"])
retrieval.round(3)

# %% tags=["remove-input"]
reach = int(retrieval.index.get_level_values("k").max())
five = retrieval.xs(reach, level="k")
top_layer = int(five["audio_to_text"].idxmax())
row = five.loc[top_layer]
say(
    f"Best is layer {top_layer}: the written word is among the {reach} nearest for "
    f"{row['audio_to_text']:.0%} of the spoken ones (chance {row['chance']:.0%}, "
    f"p ≤ {max(row['p'], 0.002):.3f} before correction for {len(five)} layers). "
    + (
        "Sound and text **do meet** there."
        if row["p"] * len(five) < 0.05
        else "That is **not reliably** above chance: this model reads no text without "
        "sound in training, so nothing made it put the two together."
    )
)

# %% [markdown]
# ## One dictionary for both
#
# A dictionary of text positions, and one trained on positions of sound and of text of
# the middle layer together. *Modality share* is 1 for a latent that fires for sound
# alone, 0 for text alone.

# %%
middle = len(layers) // 2
text_only = [PROMPT.replace("<|AUDIO|>", "") + t for t in sorted(set(text[~unseen]))]
written_frames, read = language_frames(model, processor, text_only, layer=middle)
audio_frames = sound[middle][0]
n = min(len(audio_frames), len(written_frames))
both = np.concatenate(
    [
        audio_frames[rng.permutation(len(audio_frames))[:n]],
        written_frames[rng.permutation(len(written_frames))[:n]],
    ]
)

# %%
width = int(min(256, len(both) // 8))
few_latents = min(8, width)
text_sae = train_sae(
    written_frames,
    n_latents=min(width, len(written_frames) // 4),
    k=few_latents,
    n_samples=60_000,
    seed=settings.seed,
)
joint = train_sae(
    both, n_latents=width, k=few_latents, n_samples=60_000, seed=settings.seed
)
part = modality_share(joint.codes(both[:n]), joint.codes(both[n:]))
part = part[np.isfinite(part)]

# %%
glue(
    text_fvu=evaluate_sae(text_sae, written_frames).fvu,
    text_on_sound=evaluate_sae(text_sae, audio_frames).fvu,
    joint_fvu=evaluate_sae(joint, both).fvu,
    audio_only=float((part > 0.9).mean()),
    text_alone=float((part < 0.1).mean()),
    shared=float(((part >= 0.1) & (part <= 0.9)).mean()),
    middle=middle,
)

# %% tags=["hide-input"]
figures.show(
    draw.shares(part),
    alt=f"Histogram of modality share over {len(part)} latents: "
    f"{(part > 0.9).mean():.0%} fire for sound alone, {(part < 0.1).mean():.0%} for "
    "text alone.",
    caption="What the latents of a dictionary of both modalities fire for.",
)

# %% [markdown]
# At layer {glue:text}`middle` the text dictionary leaves {glue:text}`text_fvu:.2f` of
# the variance of text positions and {glue:text}`text_on_sound:.2f` of that of sound.
# (Above 1: worse than the mean.) In the joint dictionary (FVU
# {glue:text}`joint_fvu:.2f`) {glue:text}`audio_only:.0%` of the latents are for sound,
# {glue:text}`text_alone:.0%` for text, {glue:text}`shared:.0%` for both.

# %% [markdown]
# ## Limits
#
# - Units were chosen for whole words. A word's units may be its phones', or its
#   length's; the control matches frequency and strength, not content.
# - Masking several units moves frames to where the model never was. Matched units
#   measure that cost, but not perfectly.
# - Only clips that the model writes correctly were turned; what it finds hard is left
#   out.
# - The text side is weak in the bundled model: it has never seen text without sound.
#
# ## Exercises
#
# ```{exercise}
# :label: turn-half
# Scale the own units by one half instead of masking them. Is the effect half as large?
# ```
#
# ```{solution-start} turn-half
# :class: dropdown
# ```

# %%
for factor in (0.5, 0.0):
    turned = partial(patch_each, lambda w: own[w], "scale", factor)
    total, _ = answer_log_probs(model, answers, turned)
    print(f"times {factor:g}: {float((total - base).mean()):+.2f} nats")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: turn-frames
# Mask the units in the first half of each clip's frames only, then in the second. Where
# does the model listen?
# ```
#
# ```{solution-start} turn-frames
# :class: dropdown
# ```

# %%
word = few[0]
items = groups[word]
here = [sounds[int(chosen[i])] for i in items]
part_answers = answer_inputs(processor, [prompt] * len(here), here, [word] * len(here))
start, _ = answer_log_probs(model, part_answers)
for name, slices in (
    ("first half", lambda n: range(n // 2)),
    ("second half", lambda n: range(n // 2, n)),
):
    where = [list(slices(int(frames.lengths[chosen[i]]))) for i in items]
    edit = Edit(own[word], "mask", frames=where)
    total, _ = answer_log_probs(
        model, part_answers, partial(edit_units, model, sae, edit)
    )
    print(f"{word}, {name}: {float((total - start).mean()):+.2f} nats")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: turn-once
# How often does the projector run while the model writes one answer? Why does a patch
# there act on every word of it all the same?
# ```
#
# ```{solution-start} turn-once
# :class: dropdown
# ```

# %%
inputs = processor(
    text=[prompt],
    audio=[sounds[int(chosen[0])]],
    sampling_rate=rate,
    return_tensors="pt",
)
with torch.inference_mode(), edit_units(model, sae, Edit(own[few[0]])) as state:
    model.generate(**inputs, max_new_tokens=8, do_sample=False)
print("calls:", state["calls"])

# %% [markdown]
# Keys and values of the edited frames stay in the cache, and every later token attends
# to them.
#
# ```{solution-end}
# ```

# %% tags=["remove-input"]
say(
    "## Summary\n\nIn this notebook we turned units of a dictionary while "
    f"`{settings.encoder}` wrote down {len(chosen)} words of unseen voices. Masking "
    "the "
    f"{settings.top_units} units of a word changes {share['own']:.0%} of them, matched "
    f"random units {share['matched random']:.0%} (difference {gap:+.2f} "
    f"[{interval[0]:+.2f}, {interval[1]:+.2f}]). Boosting another word's units raises "
    f"its log probability by {top['own']:+.2f} nats against "
    f"{top['matched random']:+.2f}. "
    f"Between sound and text, recall at {reach} is {row['audio_to_text']:.0%} at layer "
    f"{top_layer} (chance {row['chance']:.0%})."
)

# %% [markdown]
# ## References
#
# ```{footbibliography}
# ```
