"""What the article says, claim by claim in its order, and what papers report on the same question.

Studies test these with contrasts; nothing here is measured by minilora.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A published result. `says`: "for" or "against" the article's statement, or "other" where it decides neither."""

    source: str
    reported: str
    says: str


@dataclass(frozen=True)
class Claim:
    """A statement of the article in our words."""

    knob: str
    statement: str
    paper: Paper | None = None


LORA = "LoRA, arXiv 2106.09685, tables 5 and 6"
REGRET = "LoRA Without Regret, Thinking Machines 2025"

ARTICLE = {
    "R1": Claim("rank", "Trainable parameters and adapter compute grow linearly in r"),
    "R2": Claim("rank", "Too small r underfits",
                Paper(LORA, "r = 1 to 64 on q, v: 73.4 to 73.5 on WikiSQL, so a very small r is enough", "against")),
    "R3": Claim("rank", "Too large r overfits",
                Paper("arXiv 2404.09610, 2403.00812", "LoRA overfits, and dropout counters it", "for")),
    "R4": Claim("rank", "Start from r=8; 16 or 32 for harder tasks",
                Paper(LORA, "r = 1 to 64 on q, v: 73.4 to 73.5 on WikiSQL", "other")),
    "A1": Claim("alpha", "A larger alpha moves the model further"),
    "A2": Claim("alpha", "Holding alpha/r fixed removes the need to retune the rate when r changes",
                Paper(REGRET, "at alpha = 32 the best rate moves less than twofold for r = 4 to 512", "against")),
    "A3": Claim("alpha", "alpha = 2r is a good setting",
                Paper("arXiv 2606.12883", "the best alpha grows about as sqrt(r)", "other")),
    "A4": Claim("alpha", "A high alpha needs a lower learning rate",
                Paper("arXiv 2602.06204", "how the best rate moves depends on init and alpha", "other")),
    "D1": Claim("dropout", "Dropout reduces overfitting",
                Paper("arXiv 2404.09610", "dropout acts on LoRA as sparsity regularisation", "for")),
    "D2": Claim("dropout", "High dropout hinders learning"),
    "D3": Claim("dropout", "Small data wants more dropout, large data little or none"),
    "D4": Claim("dropout", "Dropout acts in training alone"),
    "T1": Claim("modules", "Adapting q and v is a good default",
                Paper(LORA, "equal budget: q 70.4, k 70.0, v 73.0, o 73.2, qv 73.7, qkvo 73.7", "for")),
    "T2": Claim("modules", "More modules: more parameters and more fit, at a cost",
                Paper(REGRET, "all modules above attention alone", "for")),
    "T3": Claim("modules", "Attention first, other modules later",
                Paper(REGRET, "attention at r = 256 below MLP at r = 128, at equal parameters", "against")),
    "T4": Claim("modules", "Different modules change different abilities"),
    "Y1": Claim("layers", "The layers chosen control how deep adaptation goes"),
    "L1": Claim("learning rate", "LoRA wants a larger learning rate than full fine-tuning",
                Paper(REGRET, "9.8 times, over 14 models; about 15 times for short runs", "for")),
    "L2": Claim("learning rate", "Too large a learning rate oscillates, too small a one is slow"),
    "I1": Claim("init", "A random and B zero starts exactly at the base model",
                Paper("LoRA, arXiv 2106.09685, section 4.1", "B zero, so that the change is zero at the start", "for")),
    "I2": Claim("init", "Starting elsewhere damages the pretrained model"),
    "I3": Claim("init", "He or Xavier style init of A speeds convergence",
                Paper("arXiv 2602.04998", "with tuned rates the variants lie within 1 to 2 %", "against")),
    "B1": Claim("bias", "Training biases may help a little and adds overfitting risk",
                Paper("BitFit, arXiv 2106.10199", "biases alone: ahead on small data, behind on large", "other")),
    "S1": Claim("batch size", "Batch size trades speed against gradient noise",
                Paper(REGRET, "LoRA tolerates large batches less than full fine-tuning", "other")),
    "W1": Claim("weight decay", "AdamW's weight decay limits overfitting"),
    "E1": Claim("epochs", "LoRA converges fast; early stopping prevents overfitting"),
    "G1": Claim("search", "Grid or Bayesian search finds good settings"),
    "G2": Claim("search",
                "The recipe (small r for easy tasks; more dropout and lower r for little data; alpha = 2r) is good"),
}  # fmt: skip

ORDER = list(ARTICLE)


def agreement(paper: Paper | None, verdict: str) -> str:
    """How our verdict stands to the paper's.

    >>> agreement(Paper("", "", "for"), "supported"), agreement(Paper("", "", "against"), "supported")
    ('agrees', 'disagrees')
    """
    if paper is None or paper.says == "other":
        return "" if paper is None else "asks it otherwise"
    if verdict == "inconclusive":
        return "open here"
    return "agrees" if (paper.says == "for") == (verdict == "supported") else "disagrees"
