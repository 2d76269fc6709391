"""Model types that no family file can serve as things stand, each with the reason in words. Checked in transformers 5.24."""

from __future__ import annotations

from collections.abc import Mapping

_CONVOLUTION = "short convolutions mix neighbouring tokens, a dropped one changes the next: no family file says yet where"
_RECURRENT = "recurrent layers carry a state past every token, which a dropped one changes: no family file says yet where"
_INDEXED = "an indexer beside its recurrent layers chooses tokens by keys of its own, which a dropped token changes too"
_INDEXED_KEYS = "an indexer in its layers chooses tokens by keys of its own, in a cache that no family file describes yet"
_CROSS = "visual tokens never enter the decoder's sequence: its layers look at them by cross-attention"
_ENCODER_DECODER = "visual tokens are in an encoder's sequence; the decoder looks at them by cross-attention"
_QUERIES = "an image is {} learned queries, which have no places in the image{}"
_FEW = ", and so few that dropping some saves little"
_TIMM = "its encoder comes from the package timm, without which transformers cannot build it: nobody tried it"
_CODES = "an image is a run of codes of a discrete tokenizer, words of the model's own vocabulary, not features of an encoder"
_UNWRITTEN = ": no family file was written and tried for it yet"
_SPEAKS = "it is a thinker, a talker and what turns codes into sound in one model: attach a plan to its .thinker"

REFUSED: Mapping[str, str] = {
    # Layers with a state.
    "qwen4_exp": _INDEXED,
    "glm5_next": _INDEXED,
    "nemotron_h_omni": _RECURRENT,
    "inkling2": _CONVOLUTION,
    "inkling2_loop": _CONVOLUTION,
    "inkling_mm_model": _CONVOLUTION,
    # Layers with caches or states of another form.
    "dots3_note": _INDEXED_KEYS,
    "hy_v4_vl": _INDEXED_KEYS,
    "mistral_large4": _INDEXED_KEYS,
    "minimax_m3_vl": _INDEXED_KEYS,
    "unlimited_ocr": "its cache slides over answers and not over prompts, in cache layers of its own, which cannot be cut yet",
    "gemma3n": "its layers hand on several states of each token at once (AltUp), and stages here read one",
    # Visual tokens outside the decoder's sequence.
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip": _CROSS,
    "evolla": "it reads proteins, not pictures: its layers look at them by cross-attention",
    "florence2": _ENCODER_DECODER,
    "pix2struct": _ENCODER_DECODER,
    "pp_formulanet": _ENCODER_DECODER,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
    "git": "visual tokens are put in front of the text inside the model: the prompt has no columns for them",
    # Queries instead of places.
    "aria": _QUERIES.format("128 or 256", ""),
    "blip-2": _QUERIES.format(32, _FEW),
    "deepseek_ocr2": _QUERIES.format("256 (and 144 for each tile)", ""),
    "idefics2": _QUERIES.format(64, _FEW),
    "instructblip": _QUERIES.format(32, _FEW),
    "instructblipvideo": _QUERIES.format("32 per frame", _FEW),
    "kosmos-2": _QUERIES.format(64, _FEW),
    "kosmos-2.5": _QUERIES.format(2048, ""),
    # Codes instead of features.
    "apertus1p5": _CODES,
    "chameleon": _CODES,
    "emu3": _CODES,
    # A family file could be written, and was not.
    "deepseek_vl_hybrid": "each of its tokens comes from two encoders" + _UNWRITTEN,
    "fuyu": "its patches enter the decoder without an encoder, line by line" + _UNWRITTEN,
    "granite4_vision": "features of several kinds enter at several of its decoder layers" + _UNWRITTEN,
    "kimi_k25": "its keys and values have different widths (latent attention)" + _UNWRITTEN,
    "muse_glimmer": "its sliding and its full layers treat positions differently" + _UNWRITTEN,
    "muse_spark": "its sliding and its full layers treat positions differently" + _UNWRITTEN,
    "step3p7": "its sliding and its full layers have different numbers of heads" + _UNWRITTEN,
    # No picture to read.
    "mistral4": "it is a language model without a vision encoder",
    # An encoder from outside of transformers.
    "fast_vlm": _TIMM,
    "perception_lm": _TIMM,
    # A family file serves a part of it.
    "qwen2_5_omni": _SPEAKS,
    "qwen3_omni_moe": _SPEAKS,
    # No text token after text token.
    "diffusion_gemma": "it writes whole blocks by denoising, each step looking in both directions, not token after token",
    "shieldgemma2": "it answers with the probabilities of Yes and No for a policy, not with text",
    "pi0": "it answers with a robot's actions, not with text",
}
