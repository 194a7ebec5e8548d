"""Pictures for the canary: does a model with images still see?

Text alone never reaches its cross-attention layers, so a canary of sentences cannot tell that they are broken. The
answer to a question about a picture can: it must be likelier than a guess among all tokens, by the canary's own limit.
"""

from __future__ import annotations

from quantlab.engines import ScoreRequest
from quantlab.errors import BadInput
from quantlab.formats.seeing import spell
from quantlab.measure import Bench


def asked(bench: Bench) -> list[ScoreRequest]:
    """One request for each of the suite's sights; the same prompt as `seeing` makes.

    Raises:
        BadInput: a picture that cannot be used, or an answer without tokens.
    """
    if not bench.suite.sights:
        return []
    from quantlab.measure.seeing import Shelf

    shelf, tokenizer = Shelf(bench.checkpoint), bench.tokenizer
    token = str(getattr(tokenizer, "image_token", None) or "<|image|>")
    found = []
    for one in bench.suite.sights:
        prompt = spell(token + one.question, token, tokenizer.bos_token)
        context = tokenizer.encode(prompt, add_special_tokens=False)
        whole = tokenizer.encode(f"{prompt} {one.answer}", add_special_tokens=False)
        if len(whole) <= len(context):
            raise BadInput("an answer without tokens.", place=f"canary, {one.image}", cure="Write the answer.")
        image = shelf.image(bench.beside_suite(one.image))
        found.append(ScoreRequest(tuple(context), tuple(whole[len(context) :]), images=(image,)))
    return found
