"""Makes the sheet of the front page with the embedded model: `python docs/embedded/make.py`, a few seconds. Unselected: seed 0 for each."""

from pathlib import Path

import daguerre
from daguerre.pipelines.grid import labelled_grid

PROMPTS = (
    *("a red apple", "cat face", "a dog", "grinning face", "a sunflower", "a pizza", "an elephant", "a rocket"),
    *("flag of France", "a guitar", "an octopus", "a red heart", "a blue apple", "a purple elephant", "a green guitar", "a pink octopus"),
    *("a dog on a blue background", "a rocket on a green background", "cat face on a purple background", "a pizza on a yellow background"),
    *("a cat to the left of a pizza", "a sunflower above a car", "a red heart to the right of a dog", "an apple below an umbrella"),
)

if __name__ == "__main__":
    pictures = daguerre.generate(daguerre.load(), prompt=PROMPTS)
    labelled_grid([picture.image for picture in pictures], PROMPTS, columns=8).save(Path(__file__).with_name("samples.png"))
