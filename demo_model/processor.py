"""The demo model's processor: a byte-level BPE tokenizer learnt from the generator, and the LLaVA processor around it.

Text is lower-cased and every digit is its own token, so capitals and unseen numbers stay readable to a tiny model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from demo_model.labels import patch_words
from foveate.demo.long_answers import CAPTION_PHRASINGS
from foveate.demo.packing import ASSISTANT_TOKEN, END_TOKEN, IMAGE_TOKEN, PAD_TOKEN, START_TOKEN, USER_TOKEN
from foveate.demo.pictures import PATCH_PIXELS, PICTURE_PIXELS
from foveate.demo.samples import KINDS, make_sample

UNKNOWN_TOKEN = "<unk>"
SPECIAL_TOKENS = (PAD_TOKEN, START_TOKEN, END_TOKEN, USER_TOKEN, ASSISTANT_TOKEN, IMAGE_TOKEN, UNKNOWN_TOKEN)

VOCABULARY_LIMIT = 704
VOCABULARY_SAMPLES = 3000

# A system turn is skipped: the model never saw one in training.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_processor(
    seed: int = 0, sample_count: int = VOCABULARY_SAMPLES, side: int = PICTURE_PIXELS, detailed: bool = False
) -> Any:
    """Return a `LlavaProcessor` for pictures of `side` pixels whose tokenizer was learnt from `sample_count` samples."""
    from transformers import LlavaProcessor

    # The Pil class is imported directly: the plain name warns when torchvision is absent.
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": side},
        do_center_crop=True,
        crop_size={"height": side, "width": side},
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_build_tokenizer(seed, sample_count, detailed),
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def _build_tokenizer(seed: int, sample_count: int, detailed: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(seed, sample_count, detailed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        additional_special_tokens=[USER_TOKEN, ASSISTANT_TOKEN, IMAGE_TOKEN],
        padding_side="left",
        model_max_length=2048,
    )


def _texts(seed: int, sample_count: int, detailed: bool) -> Iterator[str]:
    # Often enough to be one token each, whatever the samples say.
    yield from (f" {word}" for word in patch_words(detailed) for _ in range(sample_count // 10))
    for text in CAPTION_PHRASINGS:
        yield f" {text}"
    for index in range(sample_count):
        for kind in KINDS:
            sample = make_sample("vocabulary", seed, index, kind=kind, detailed=detailed)
            for question in (*sample.questions, *sample.long_questions):
                yield f" {question.text}"
                yield f" {question.answer}"
