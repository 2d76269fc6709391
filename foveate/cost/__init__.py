"""Arithmetic of FLOPs and KV bytes: shapes and a plan in, numbers with units out. No model, no weights, no transformers.

`flops` and `kv_bytes` count what the hardware is asked to do; `tokens` says how many tokens a plan leaves to each decoder
layer; `conventions` holds the ways in which papers count; `estimate` joins them into one record; `presets` are the
configurations of published models. FLOPs are 2 x MAC (multiply-accumulates) throughout, unless a convention's unit says MACs.
"""
