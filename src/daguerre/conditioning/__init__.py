"""Tokenizers, the prompt language, and the encoders that turn prompts into conditions of a network."""

from daguerre.conditioning.chunks import Word
from daguerre.conditioning.clip import Conditioner, LDMTextConditioner, SizeConditioning, TextConditioner
from daguerre.conditioning.prompt import Prompt
from daguerre.conditioning.prompt_schedule import GuidedConditions, PromptConditions, PromptSchedule
from daguerre.conditioning.sdxl import SDXLConditioner
from daguerre.conditioning.tokenizer import Tokenizer, train_tokenizer
from daguerre.conditioning.wordpiece import WordPiece

__all__ = [
    "Conditioner", "GuidedConditions", "LDMTextConditioner", "Prompt", "PromptConditions", "PromptSchedule", "SDXLConditioner",
    "SizeConditioning", "TextConditioner", "Tokenizer", "Word", "WordPiece", "train_tokenizer",
]  # fmt: skip
