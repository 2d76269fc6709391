"""Model types that no family file can serve as things stand, each with the reason in words. Checked in transformers 5.23."""

from __future__ import annotations

from collections.abc import Mapping

_CONVOLUTION = "short convolutions mix neighbouring tokens, a dropped one changes the next: no family file says yet where"
_RECURRENT = "recurrent layers carry a state past every token, which a dropped one changes: no family file says yet where"
_INDEXED = "an indexer beside its recurrent layers chooses tokens by keys of its own, which a dropped token changes too"
_CROSS = "visual tokens never enter the decoder's sequence: its layers look at them by cross-attention"
_ENCODER_DECODER = "visual tokens are in an encoder's sequence; the decoder looks at them by cross-attention"
_QUERIES = "an image is {} learned queries, which have no places in the image{}"
_FEW = ", and so few that dropping some saves little"
_CODES = "an image is a run of codes of a discrete tokenizer, words of the model's own vocabulary, not features of an encoder"
_SPEAKS = "it is a thinker, a talker and what turns codes into sound in one model: attach a plan to its .thinker"

REFUSED: Mapping[str, str] = {
    # Layers with a state.
    "qwen4_exp": _INDEXED,
    "glm5_next": _INDEXED,
    "minicpmv4_6": _RECURRENT,
    "minicpmv4_7": _RECURRENT,
    "nemotron_h_omni": _RECURRENT,
    "lfm3_vl": _CONVOLUTION,
    "inkling2": _CONVOLUTION,
    # Visual tokens outside the decoder's sequence.
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip": _CROSS,
    "florence2": _ENCODER_DECODER,
    "pix2struct": _ENCODER_DECODER,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
    "git": "visual tokens are put in front of the text inside the model: the prompt has no columns for them",
    # Queries instead of places.
    "blip-2": _QUERIES.format(32, _FEW),
    "instructblip": _QUERIES.format(32, _FEW),
    "instructblipvideo": _QUERIES.format("32 per frame", _FEW),
    "kosmos-2": _QUERIES.format(64, _FEW),
    "kosmos-2.5": _QUERIES.format(2048, ""),
    # Codes instead of features.
    "chameleon": _CODES,
    "emu3": _CODES,
    # A family file serves a part of it.
    "qwen2_5_omni": _SPEAKS,
    "qwen3_omni_moe": _SPEAKS,
    # Not tried.
    "perception_lm": "its encoder comes from the package timm, without which transformers cannot build it: nobody tried it",
    # No text token after text token.
    "diffusion_gemma": "it writes whole blocks by denoising, each step looking in both directions, not token after token",
    "pi0": "it answers with a robot's actions, not with text",
}
