"""A small vision-language model that was trained on rendered pictures, so that everything works offline.

`scenes`, `drawing`, `questions` and `samples` make pictures and what is asked about them; `evaluation`, `forced`, `packing` and
`blind` score answers; `loading` reads the shipped model: start there.
"""
