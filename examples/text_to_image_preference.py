"""Find the text that draws the picture someone has in mind, who can only say which of two pictures is closer.

    python examples/text_to_image_preference.py

The stand-in for a diffusion model is a renderer of simple scenes; ``hfdataopt.generation.images`` takes a pipeline of diffusers
or any function of a text. The search sees pictures through its own features, never the person's. Needs Pillow
(``pip install 'hfdataopt[images]'``); offline, seconds.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.generation.images import CallableImages
from hfdataopt.prompting.judges import SimulatedJudge
from hfdataopt.prompting.tasks import text_to_image

TARGET = "a large red circle left of a small blue square on a green background"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", help="pictures, votes and the result go here (default: a temporary folder)")
    parser.add_argument("--votes", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="some seconds: does it run?")
    options = parser.parse_args(argv)
    folder = options.output_dir or tempfile.mkdtemp()
    user = text_to_image.SimulatedUser(TARGET)  # has the picture in mind, and reads others pixel by pixel

    def closeness(completions, **kwargs):
        return [user.score(image) for image in completions]

    pool = text_to_image.descriptions(TARGET, 20 if options.smoke else 100)
    trainer = PromptTrainer(
        "apohf",
        model=CallableImages(text_to_image.render),  # or DiffusersImages("stabilityai/sdxl-turbo")
        judge=SimulatedJudge(closeness, scale=10.0),
        encoder=text_to_image.image_features,
        train_dataset=[{"prompt": ""}],  # the instruction is all of the text
        args=PromptConfig(
            output_dir=folder,
            max_judge_calls=12 if options.smoke else options.votes,
            items=1,
            optimizer_options={"pool": pool, "features": "image"},
            logging_steps=0,
        ),
    )
    print(trainer.train())
    found = text_to_image.render(trainer.best_prompt)
    found.save(Path(folder) / "best.png")
    scores = sorted(user.score(text_to_image.render(text)) for text in pool)
    mean = sum(scores) / len(scores)
    print(f"closeness {user.score(found):.2f}; of the pool's texts the mean is {mean:.2f}, the best {scores[-1]:.2f}")
    print(f"the picture is {Path(folder) / 'best.png'}")


if __name__ == "__main__":
    main()
