"""The only room that touches a model. It owns every invariant; methods only answer.

attach.py installs and removes hooks; conversation.py and forward.py hold what lives for one generate call and one forward
call; layout.py finds the media in a call; observe.py measures attention rows; prefill.py runs stages; projection.py brings
masks and positions to the surviving tokens; cache.py stores fewer slots than columns; compat.py knows transformers versions.

Everything outside decoder layers stays in logical space: a *column* is an index in `input_ids`. A cache layer stores *slots*
and knows the column of each.
"""
