"""A small vision-language model trained from scratch on rendered pictures, so that everything works offline.

`scenes`, `drawing` and `questions` make the data; `processor` and `model` are the standard LLaVA classes of transformers;
`packing`, `objective`, `optimization` and `training` train them; `evaluation` scores; `loading` returns the shipped result.
"""
