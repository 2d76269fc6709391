"""What stands in front of the model: the tokenizer, the pictures' padding, the conversation's template."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate.errors import InputError, MissingPackage, first_line

IMAGE_TOKEN = "<image>"
SENTENCEPIECE = "tokenizer.model"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# LLaVA's `vicuna_v1` conversation: pictures stand on lines of their own in front of the text. The official code splits the
# prompt at pictures and tokenizes the parts one by one, which gives each part a leading space: here it is written out.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'] %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set system = '" + SYSTEM.replace("'", "\\'") + "' %}{% set turns = messages %}{% endif %}"
    "{{ system + ' ' }}"
    "{% for turn in turns %}"
    "{{ turn['role'].upper() + ': ' }}"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}"
    "{% for part in turn['content'] if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + " \n' }}{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ ' ' if turn['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's own tokenizer, set for generating: a start token in front, padding on the left.

    Raises:
        InputError: if there is none, or it cannot be read.
        MissingPackage: if it is a SentencePiece model and the packages that read one are not installed.
    """
    if not (folder / "tokenizer.json").is_file():
        if not (folder / SENTENCEPIECE).is_file():
            raise InputError(f"{folder} holds neither tokenizer.json nor {SENTENCEPIECE}: copy the tokenizer into it")
        if not (_installed("sentencepiece") and _installed("google.protobuf")):
            raise MissingPackage(f"{SENTENCEPIECE} is a SentencePiece model: pip install sentencepiece protobuf")
    from transformers import LlamaTokenizer

    try:
        return LlamaTokenizer.from_pretrained(folder, add_bos_token=True, padding_side="left")
    except Exception as error:  # the tokenizers package raises whatever its parsers meet
        raise InputError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from None


def user_turn(tokenizer: Any) -> tuple[int, ...]:
    """Token ids with which a user's turn begins behind an answer, as `CHAT_TEMPLATE` writes it."""
    end: str = tokenizer.eos_token
    ids: list[int] = tokenizer(f"{end}USER:", add_special_tokens=False)["input_ids"]
    return tuple(ids[ids.index(tokenizer.eos_token_id) + 1 :])


def save_processor(tokenizer: Any, folder: Path, image_size: int, patch_size: int, pad: bool) -> None:
    """Write a `LlavaProcessor`; `tokenizer` gains the image token.

    Args:
        image_size, patch_size: of the vision encoder, in pixels.
        pad: whether pictures are padded to squares with CLIP's mean colour, as LLaVA 1.5 was trained, or cropped.
    """
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token  # as Vicuna has it
    square = {"height": image_size, "width": image_size}
    pictures = LlavaImageProcessorPil(size={"shortest_edge": image_size}, crop_size=square, do_pad=pad)
    LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
