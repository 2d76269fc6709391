"""A small vision-language model trained from scratch on rendered pictures, so that everything works offline.

`scenes`, `drawing`, `questions` and `samples` make the data. `processor` and `model` are the standard LLaVA classes of
transformers; `packing`, `objective`, `optimization` and `training` train them. `evaluation` and `blind` score,
`release` and `examples` write the package data, and `loading` reads it: start there.
"""
