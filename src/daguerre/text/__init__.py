"""Words to numbers: the tokenizer, the prompt language, and the conditions that a network reads."""

from daguerre.text.chunks import Word
from daguerre.text.conditioner import Conditioner, PictureSize, TextConditioner
from daguerre.text.plan import PromptPlan, Voices
from daguerre.text.prompt import Prompt
from daguerre.text.sdxl import SDXLConditioner
from daguerre.text.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "Conditioner",
    "PictureSize",
    "Prompt",
    "PromptPlan",
    "SDXLConditioner",
    "TextConditioner",
    "Tokenizer",
    "Voices",
    "Word",
    "train_tokenizer",
]
