"""Makes the sheet of the front page with the embedded model: `python docs/embedded/make.py`, a few seconds. Unselected: seed 0 for each."""

from pathlib import Path

import daguerre
from daguerre.pipelines.images.grid import labelled_grid

PROMPTS = (
    *("a red apple", "cat face", "an octopus", "grinning face", "a sunflower", "a guitar", "an elephant", "a rocket"),
    # From here on combinations that are held out, which training never showed.
    *("a blue airplane", "a pink dog", "a green cat face", "a red tiger face", "a green crab", "a blue key", "a blue trophy", "a red pear"),
    *("dog face on a blue background", "a parrot on a pink background", "a rocket on a pink background", "a pizza on a green background"),
    *("a cat to the left of a sailboat", "an octopus to the right of a red heart", "a rocket above a turtle", "a cat and a guitar"),
)

if __name__ == "__main__":
    pictures = daguerre.generate(daguerre.load(), prompt=PROMPTS)
    labelled_grid([picture.image for picture in pictures], PROMPTS, columns=8).save(Path(__file__).with_name("samples.png"))
