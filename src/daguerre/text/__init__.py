"""Words to numbers: the tokenizer, the prompt language, and the conditions that a network reads."""

from daguerre.text.chunks import Word
from daguerre.text.conditioner import Conditioner, LDMTextConditioner, PictureSize, TextConditioner
from daguerre.text.plan import PromptPlan, Voices
from daguerre.text.prompt import Prompt
from daguerre.text.sdxl import SDXLConditioner
from daguerre.text.tokenizer import Tokenizer, train_tokenizer
from daguerre.text.wordpiece import WordPiece

__all__ = [
    "Conditioner",
    "LDMTextConditioner",
    "PictureSize",
    "Prompt",
    "PromptPlan",
    "SDXLConditioner",
    "TextConditioner",
    "Tokenizer",
    "Voices",
    "Word",
    "WordPiece",
    "train_tokenizer",
]
