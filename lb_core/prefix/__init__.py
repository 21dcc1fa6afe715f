"""Which endpoint has seen the head of a prompt: the prompt's chained keys, and where each was sent.

`keys` makes the keys, `base` says what an index of them promises, `memory` and `redis` are the two indexes,
and `finder` is what the balancer asks.
"""
