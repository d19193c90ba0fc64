"""Which drafted tokens stand: the one acceptance rule of speculative decoding.

Owns the rule and nothing else. Pure Python; it sees token ids, neither logits nor requests.

The rule. A step computes the model's logits behind each draft, and the sampler draws at every one
of these positions just as it would without drafts, with the number that belongs to ``(seed,
choice, position)``. Drafts stand as far as they equal what was drawn; the first draw that differs
takes its draft's place, and if none does the last draw is a token more.

Why it loses nothing. What is emitted is always the model's own draw, given tokens that are the
model's own draws: not only the distribution but each token is the one of plain decoding, so a
seeded request says the same alone, in a batch, resumed, and with drafts.

How it relates to rejection sampling (Leviathan et al., Chen et al.): there a draft ``x`` from
``q`` stands with probability ``min(1, p(x) / q(x))``, else a token is drawn from what is left,
``max(p - q, 0)`` normalised. A deterministic draft (n-gram, or a draft model at temperature 0) is the
case ``q(x) = 1``: it stands with probability ``p(x)``, else a token is drawn from ``p`` without
``x``. That is exactly what drawing from ``p`` and comparing does. For a draft model that samples,
the rule couples both draws through their common number instead of through a second one: a draft
stands when the number falls into the token's interval of both distributions. This gives up
a little of the best possible acceptance (one minus their distance) for outputs that depend on no
drafter, the trade that Daliri et al. call drafter-invariant speculation.

Source: https://arxiv.org/abs/2211.17192 (theorem 3.5 and appendix A.1);
https://arxiv.org/abs/2302.01318 (theorem 1); https://arxiv.org/abs/2408.07978.
"""

from collections.abc import Sequence


def num_accepted(drafts: Sequence[int], draws: Sequence[int]) -> int:
    """How many of the drafts stand; the step yields one token more, ``draws[:accepted + 1]``.

    ``draws`` are the model's own at the drafts' positions and at the one behind them.

    Raises:
        ValueError: there is not exactly one draw more than drafts.
    """
    if len(draws) != len(drafts) + 1:
        raise ValueError(f"{len(drafts)} drafts need {len(drafts) + 1} draws, not {len(draws)}")
    for count, (draft, draw) in enumerate(zip(drafts, draws, strict=False)):
        if draft != draw:
            return count
    return len(drafts)
