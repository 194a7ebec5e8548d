"""Which precision to ship on a GPU: what is known (evidence), what follows (choose), in words (explain).

    asked     the question in words, resolved to records
    evidence  ledgers and published tables -> cells for `predict`, accuracy by recipe, and what could not be used
    options   every recipe held against memory, hardware, engine, accuracy and limits
    standing  where an option stands (its best batch, or the load it carries) and who is ahead: one rule
    byload    loads of a running engine as what is ranked, where all options have them; `carried` says it in words
    draws     how often the answer would be the same
    choose    the choice, the runner-up, crossovers
    answer    the records of the answer
    explain   the answer as text

Speeds that differ by less than their errors are ties, and ties are decided by accuracy, then memory. A recipe whose
accuracy was not shown is not chosen unless the user says so (`unproven`): speed alone has never been a reason to ship.
"""

from quantlab.decide.answer import Pair, Recommendation, Row, Speed
from quantlab.decide.asked import OBJECTIVES, Asked
from quantlab.decide.choose import recommend
from quantlab.decide.explain import explain

__all__ = ["OBJECTIVES", "Asked", "Pair", "Recommendation", "Row", "Speed", "explain", "recommend"]
